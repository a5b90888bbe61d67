//! A core whose key may be exchanged while it runs, without a packet lost.
//!
//! ```text
//! own keys     present ────────────► present, next ────────────► retired, present ────────────► present
//!                         announced                  exchanged                      forgotten
//! ```
//!
//! A tunnel has a strand for each pair of an own and a peer's key that both may use now: a tunnel of the core beneath. Packets are sealed on
//! the strand of the newest pair as soon as that has a session, and on the one that has a session until then; they are opened on any. So the
//! new key is in use before the old one is given up. Strands are told apart by the two lowest bits of the index that sessions are known by.
//!
//! The name that a node is known by, to the engine and to relays, stays what it was.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{Admission, Core, Kind, NoiseCore, Opened, Refused, Sealed, Tunnel, TunnelKeys};
use crate::batch::Batch;
use crate::clock::Clock;
use crate::key::{PrivateKey, PublicKey};

/// Strands of a tunnel: two own keys and two of the peer's.
pub(crate) const STRANDS: u32 = 4;
/// How soon the newest strand is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The keys of a node's tunnels at one moment.
#[derive(Debug, Clone)]
pub struct OwnKeys {
    /// The one that peers know for sure.
    pub present: PrivateKey,
    /// The one that takes its place, once peers were told.
    pub next: Option<PrivateKey>,
    /// The one whose place it took: no longer used, still answered to.
    pub retired: Option<PrivateKey>,
}

impl OwnKeys {
    /// One key, and no other.
    pub const fn one(present: PrivateKey) -> Self {
        Self {
            present,
            next: None,
            retired: None,
        }
    }
}

/// The cores of the keys in force, the newest last.
#[derive(Debug, Clone)]
struct Cores {
    all: Vec<Arc<NoiseCore>>,
    present: PublicKey,
}

impl Cores {
    fn newest(&self) -> Option<PublicKey> {
        self.all.last().map(|core| core.public_key())
    }
}

/// A core whose key may be exchanged. Its name is that of the key that it was made with.
pub struct RotatingCore {
    name: NoiseCore,
    handshakes_a_second: u32,
    clock: Arc<dyn Clock>,
    cores: Arc<RwLock<Cores>>,
}

impl fmt::Debug for RotatingCore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RotatingCore")
            .field("name", &self.name.public_key())
            .finish_non_exhaustive()
    }
}

fn read(cores: &RwLock<Cores>) -> Cores {
    cores.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl RotatingCore {
    /// The core of the node that is known by this name, with its keys. Beyond `handshakes_a_second`, initiators are asked to prove their address.
    pub fn new(
        name: &PrivateKey,
        keys: &OwnKeys,
        handshakes_a_second: u32,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let core = Self {
            name: NoiseCore::new(name, handshakes_a_second, Arc::clone(&clock)),
            handshakes_a_second,
            clock,
            cores: Arc::new(RwLock::new(Cores {
                all: Vec::new(),
                present: keys.present.public(),
            })),
        };
        core.set_keys(keys);
        core
    }

    /// Takes other keys; those that stay go on. Tunnels follow when the engine tells them ([`crate::Engine::renew`]).
    pub fn set_keys(&self, keys: &OwnKeys) {
        let known = read(&self.cores).all;
        let wanted = [
            keys.retired.as_ref(),
            Some(&keys.present),
            keys.next.as_ref(),
        ];
        let core = |key: &PrivateKey| {
            let public = key.public();
            let same = known.iter().find(|core| core.public_key() == public);
            same.map_or_else(
                || {
                    let clock = Arc::clone(&self.clock);
                    Arc::new(NoiseCore::new(key, self.handshakes_a_second, clock))
                },
                Arc::clone,
            )
        };
        let now = Cores {
            all: wanted.into_iter().flatten().map(core).collect(),
            present: keys.present.public(),
        };
        *self.cores.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Core for RotatingCore {
    fn public_key(&self) -> PublicKey {
        self.name.public_key()
    }

    fn admit(&self, source: IpAddr, message: &[u8]) -> Admission {
        let mut admission = Admission::Refuse;
        for core in read(&self.cores).all.iter().rev() {
            admission = core.admit(source, message);
            // It was made for one key alone.
            if admission != Admission::Refuse {
                break;
            }
        }
        admission
    }

    fn identify(&self, initiation: &[u8]) -> Result<PublicKey, Refused> {
        let cores = read(&self.cores);
        let mut all = cores.all.iter().rev();
        all.find_map(|core| core.identify(initiation).ok())
            .ok_or(Refused)
    }

    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        self.name.agree(other)
    }

    fn tunnel(&self, keys: &TunnelKeys) -> Box<dyn Tunnel> {
        let mut tunnel = RotatingTunnel {
            cores: Arc::clone(&self.cores),
            peers: vec![keys.peer],
            keys: keys.clone(),
            follows: false,
            strands: Vec::new(),
            newest: None,
            keepalive: None,
            asked: None,
            clock: Arc::clone(&self.clock),
        };
        tunnel.arrange();
        Box::new(tunnel)
    }

    fn tick(&self) {
        for core in &read(&self.cores).all {
            core.tick();
        }
    }
}

#[derive(Debug)]
struct Strand {
    own: PublicKey,
    peer: PublicKey,
    slot: u32,
    tunnel: Box<dyn Tunnel>,
}

struct RotatingTunnel {
    cores: Arc<RwLock<Cores>>,
    keys: TunnelKeys,
    /// The peer's keys, the one that it surely answers to first.
    peers: Vec<PublicKey>,
    /// Whether the peer hears of new keys.
    follows: bool,
    /// The first is that of the keys that both surely know. Never empty.
    strands: Vec<Strand>,
    /// The slot of the newest pair, if that is another.
    newest: Option<u32>,
    keepalive: Option<Duration>,
    /// When the newest was tried last.
    asked: Option<Instant>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for RotatingTunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RotatingTunnel")
            .field("strands", &self.strands)
            .finish_non_exhaustive()
    }
}

impl RotatingTunnel {
    /// Makes the strands those of the keys in force. Sessions of pairs that stay go on.
    fn arrange(&mut self) {
        let cores = read(&self.cores);
        let base = (cores.present, self.peers.first().copied());
        let newest = match (self.follows, cores.newest()) {
            (true, Some(own)) => (own, self.peers.last().copied()),
            _ => base,
        };
        let mut before = std::mem::take(&mut self.strands);
        let mut pairs = Vec::new();
        for core in &cores.all {
            for peer in &self.peers {
                let own = core.public_key();
                // Who cannot hear of a key is not called with it.
                let next = own != cores.present && cores.newest() == Some(own);
                if self.follows || !next {
                    pairs.push((core, own, *peer));
                }
            }
        }
        pairs.sort_by_key(|(_, own, peer)| (*own, Some(*peer)) != base);
        before.retain(|strand| {
            let mut pairs = pairs.iter();
            pairs.any(|(_, own, peer)| (*own, *peer) == (strand.own, strand.peer))
        });
        self.newest = None;
        for (core, own, peer) in pairs.into_iter().take(STRANDS as usize) {
            let known = before
                .iter()
                .position(|strand| (strand.own, strand.peer) == (own, peer));
            let strand = match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let taken = |slot: &u32| {
                        let mut all = self.strands.iter().chain(&before);
                        all.any(|strand| strand.slot == *slot)
                    };
                    let slot = (0..STRANDS).find(|slot| !taken(slot)).unwrap_or(0);
                    let keys = TunnelKeys {
                        peer,
                        index: self.keys.index | slot,
                        ..self.keys.clone()
                    };
                    Strand {
                        own,
                        peer,
                        slot,
                        tunnel: core.tunnel(&keys),
                    }
                }
            };
            if (own, Some(peer)) == newest && newest != base {
                self.newest = Some(strand.slot);
            }
            self.strands.push(strand);
        }
        self.asked = None;
        let keepalive = self.keepalive;
        for (at, strand) in self.strands.iter_mut().enumerate() {
            let every = keepalive.filter(|_| at == 0);
            strand.tunnel.set_keepalive(every);
        }
    }

    fn slot(&mut self, slot: u32) -> Option<&mut Strand> {
        self.strands.iter_mut().find(|strand| strand.slot == slot)
    }

    /// Where packets are sealed.
    fn active(&mut self) -> Option<&mut Strand> {
        let ready = |strand: &Strand| strand.tunnel.ready();
        let newest = self.newest;
        let mut all = self.strands.iter();
        let newest = all.position(|strand| Some(strand.slot) == newest && ready(strand));
        let at = newest.or_else(|| self.strands.iter().position(ready));
        self.strands.get_mut(at.unwrap_or(0))
    }
}

impl Tunnel for RotatingTunnel {
    fn seal(&mut self, plain: &Batch, sealed: &mut Batch) -> Sealed {
        match self.active() {
            Some(strand) => strand.tunnel.seal(plain, sealed),
            None => Sealed::default(),
        }
    }

    fn open(
        &mut self,
        sealed: &mut dyn Iterator<Item = &[u8]>,
        plain: &mut Batch,
        replies: &mut Batch,
    ) -> Opened {
        let mut sealed = sealed.peekable();
        let slot = match sealed.peek().copied().and_then(Kind::of) {
            Some(Kind::Data(index)) => index % STRANDS,
            _ => 0,
        };
        match self.slot(slot) {
            Some(strand) => strand.tunnel.open(&mut sealed, plain, replies),
            None => Opened {
                rejected: sealed.count() as u64,
                ..Opened::default()
            },
        }
    }

    fn handshake(&mut self, message: &[u8], replies: &mut Batch) -> Result<(), Refused> {
        match Kind::of(message).ok_or(Refused)? {
            Kind::Response(index) | Kind::Cookie(index) => {
                let strand = self.slot(index % STRANDS).ok_or(Refused)?;
                strand.tunnel.handshake(message, replies)
            }
            Kind::Initiation => {
                let mut strands = self.strands.iter_mut();
                let taken = strands.any(|strand| strand.tunnel.handshake(message, replies).is_ok());
                if taken { Ok(()) } else { Err(Refused) }
            }
            Kind::Data(_) => Err(Refused),
        }
    }

    fn ready(&self) -> bool {
        self.strands.iter().any(|strand| strand.tunnel.ready())
    }

    fn tick(&mut self, replies: &mut Batch) {
        for strand in &mut self.strands {
            strand.tunnel.tick(replies);
        }
        let now = self.clock.now();
        let due = self
            .asked
            .is_none_or(|asked| now.saturating_duration_since(asked) >= AGAIN);
        // Only beside a session: without one there is nothing to move.
        if !self.renewed() && self.ready() && due {
            self.asked = Some(now);
            let newest = self.newest.and_then(|slot| self.slot(slot));
            if let Some(strand) = newest {
                strand.tunnel.seal(&Batch::default(), replies);
            }
        }
    }

    fn set_keepalive(&mut self, every: Option<Duration>) {
        self.keepalive = every;
        if let Some(strand) = self.strands.first_mut() {
            strand.tunnel.set_keepalive(every);
        }
    }

    fn renew(&mut self, peers: &[PublicKey], follows: bool) {
        self.peers = peers.iter().take(2).copied().collect();
        self.follows = follows;
        self.arrange();
    }

    fn renewed(&self) -> bool {
        self.newest.is_none_or(|newest| {
            let mut strands = self.strands.iter();
            strands.any(|strand| strand.slot == newest && strand.tunnel.ready())
        })
    }

    fn last_handshake(&self) -> Option<Instant> {
        let strands = self.strands.iter();
        strands
            .filter_map(|strand| strand.tunnel.last_handshake())
            .max()
    }

    fn handshakes(&self) -> u64 {
        let strands = self.strands.iter();
        strands.map(|strand| strand.tunnel.handshakes()).sum()
    }
}

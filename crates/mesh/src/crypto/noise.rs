//! The core behind the traits: boringtun's `noise`.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use zeroize::Zeroizing;

use super::{
    Admission, COOKIE, Core, INITIATION, Kind, OVERHEAD, Opened, Refused, Sealed, Tunnel,
    TunnelKeys,
};
use crate::batch::Batch;
use crate::clock::Clock;
use crate::key::{PrivateKey, PublicKey};

/// The age at which who began a session begins the next (section 6.1 of the WireGuard paper).
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Counters from here on are refused (the same section); the core would wrap.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Packets of one peer that wait for a session.
const WAITING_PACKETS: usize = 128;
/// Bytes of all peers that wait for sessions.
const WAITING_BYTES: usize = 4 << 20;

/// The public half of a key.
pub(crate) fn public_key(private: &PrivateKey) -> PublicKey {
    let secret = x25519::StaticSecret::from(*private.as_bytes());
    PublicKey::from_bytes(x25519::PublicKey::from(&secret).to_bytes())
}

/// What the holders of two keys have in common; `None` for a key that leads to the same with everybody.
fn agree(secret: &x25519::StaticSecret, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
    let shared = secret.diffie_hellman(&x25519::PublicKey::from(*other.as_bytes()));
    shared
        .was_contributory()
        .then(|| Zeroizing::new(shared.to_bytes()))
}

/// See [`agree`].
pub(crate) fn shared_secret(
    private: &PrivateKey,
    other: &PublicKey,
) -> Option<Zeroizing<[u8; 32]>> {
    agree(&x25519::StaticSecret::from(*private.as_bytes()), other)
}

/// One node's key, its limit on handshakes, and the room for packets that wait.
pub struct NoiseCore {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: RateLimiter,
    /// For tunnels, which would count again what `limiter` let pass.
    unlimited: Arc<RateLimiter>,
    waiting_bytes: Arc<AtomicUsize>,
    clock: Arc<dyn Clock>,
}

impl NoiseCore {
    /// The core of the node with this key. Beyond `handshakes_a_second`, initiators are asked to prove their address.
    pub fn new(private: &PrivateKey, handshakes_a_second: u32, clock: Arc<dyn Clock>) -> Self {
        let secret = x25519::StaticSecret::from(*private.as_bytes());
        let public = x25519::PublicKey::from(&secret);
        Self {
            limiter: RateLimiter::new(&public, handshakes_a_second.into()),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
            waiting_bytes: Arc::default(),
            clock,
        }
    }
}

impl fmt::Debug for NoiseCore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NoiseCore")
            .field("public", &self.public_key())
            .finish_non_exhaustive()
    }
}

impl Core for NoiseCore {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.public.to_bytes())
    }

    fn admit(&self, source: IpAddr, message: &[u8]) -> Admission {
        let mut cookie = [0; COOKIE];
        match self
            .limiter
            .verify_packet(Some(source), message, &mut cookie)
        {
            Ok(_) => Admission::Pass,
            Err(TunnResult::WriteToNetwork(_)) => Admission::Challenge(cookie),
            Err(_) => Admission::Refuse,
        }
    }

    fn identify(&self, initiation: &[u8]) -> Result<PublicKey, Refused> {
        let Ok(Packet::HandshakeInit(parsed)) = Tunn::parse_incoming_packet(initiation) else {
            return Err(Refused);
        };
        let half =
            parse_handshake_anon(&self.secret, &self.public, &parsed).map_err(|_| Refused)?;
        Ok(PublicKey::from_bytes(half.peer_static_public))
    }

    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        agree(&self.secret, other)
    }

    fn tunnel(&self, keys: &TunnelKeys) -> Box<dyn Tunnel> {
        let core = Tunn::new(
            self.secret.clone(),
            x25519::PublicKey::from(*keys.peer.as_bytes()),
            keys.preshared.as_ref().map(|key| *key.as_bytes()),
            None,
            keys.index,
            Some(Arc::clone(&self.unlimited)),
        );
        Box::new(NoiseTunnel {
            core,
            waiting: VecDeque::new(),
            waiting_bytes: Arc::clone(&self.waiting_bytes),
            session: None,
            handshakes: 0,
            keepalive: None,
            last_sent: None,
            clock: Arc::clone(&self.clock),
        })
    }

    fn tick(&self) {
        self.limiter.reset_count();
    }
}

/// What is known of the newest session.
#[derive(Debug, Clone, Copy)]
struct Session {
    since: Instant,
    initiator: bool,
    used: bool,
    renewing: bool,
}

struct NoiseTunnel {
    core: Tunn,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
    session: Option<Session>,
    handshakes: u64,
    keepalive: Option<Duration>,
    last_sent: Option<Instant>,
    clock: Arc<dyn Clock>,
}

impl NoiseTunnel {
    /// Begins a handshake, unless one is under way.
    fn initiate(&mut self, replies: &mut Batch) {
        replies.append(INITIATION, |space| {
            match self.core.format_handshake_initiation(space, false) {
                TunnResult::WriteToNetwork(message) => Some(message.len()),
                _ => None,
            }
        });
    }

    /// Seals one packet for the session there is.
    fn seal_one(core: &mut Tunn, packet: &[u8], sealed: &mut Batch) -> bool {
        // A handshake's message in its place would need more room: then the core errs, and the packet is lost. It
        // does not come to that with a session.
        sealed.append(packet.len() + OVERHEAD, |space| {
            match core.encapsulate(packet, space) {
                TunnResult::WriteToNetwork(message) => Some(message.len()),
                _ => None,
            }
        })
    }

    fn sent(&mut self, data: bool) {
        self.last_sent = Some(self.clock.now());
        if data && let Some(session) = &mut self.session {
            session.used = true;
        }
    }

    /// Keeps a packet until there is a session.
    fn wait(&mut self, packet: &[u8]) -> bool {
        if self.waiting.len() >= WAITING_PACKETS {
            return false;
        }
        let before = self
            .waiting_bytes
            .fetch_add(packet.len(), Ordering::Relaxed);
        if before + packet.len() > WAITING_BYTES {
            self.waiting_bytes
                .fetch_sub(packet.len(), Ordering::Relaxed);
            return false;
        }
        self.waiting.push_back(packet.to_vec());
        true
    }

    fn take_waiting(&mut self) -> Option<Vec<u8>> {
        let packet = self.waiting.pop_front()?;
        self.waiting_bytes
            .fetch_sub(packet.len(), Ordering::Relaxed);
        Some(packet)
    }

    /// Seals what waited.
    fn release(&mut self, replies: &mut Batch) {
        if self.waiting.is_empty() || !self.ready() {
            return;
        }
        while let Some(packet) = self.take_waiting() {
            Self::seal_one(&mut self.core, &packet, replies);
        }
        self.waiting.shrink_to_fit();
        self.sent(true);
    }

    fn established(&mut self, initiator: bool) {
        let since = self.clock.now();
        self.session = Some(Session {
            since,
            initiator,
            used: false,
            renewing: false,
        });
        self.handshakes += 1;
        self.last_sent = Some(since);
    }
}

impl Drop for NoiseTunnel {
    fn drop(&mut self) {
        while self.take_waiting().is_some() {}
    }
}

impl fmt::Debug for NoiseTunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NoiseTunnel")
            .field("session", &self.session)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Tunnel for NoiseTunnel {
    fn seal(&mut self, plain: &Batch, sealed: &mut Batch) -> Sealed {
        let mut result = Sealed::default();
        if !self.ready() {
            for packet in plain.iter() {
                if self.wait(packet) {
                    result.waiting += 1;
                } else {
                    result.dropped += 1;
                }
            }
            self.initiate(sealed);
            return result;
        }
        for packet in plain.iter() {
            if Self::seal_one(&mut self.core, packet, sealed) {
                result.packets += 1;
                result.bytes += packet.len() as u64;
            } else {
                result.dropped += 1;
            }
        }
        self.sent(true);
        result
    }

    fn open(
        &mut self,
        sealed: &mut dyn Iterator<Item = &[u8]>,
        plain: &mut Batch,
        replies: &mut Batch,
    ) -> Opened {
        let mut result = Opened::default();
        for message in sealed {
            let counter = message
                .get(8..16)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes);
            let fits = counter.is_some_and(|counter| counter < REJECT_AFTER_MESSAGES);
            if !fits || !matches!(Kind::of(message), Some(Kind::Data(_))) {
                result.rejected += 1;
                continue;
            }
            plain.append(message.len(), |space| {
                match self.core.decapsulate(None, message, space) {
                    TunnResult::WriteToTunnelV4(packet, _)
                    | TunnResult::WriteToTunnelV6(packet, _) => {
                        result.packets += 1;
                        result.bytes += packet.len() as u64;
                        Some(packet.len())
                    }
                    TunnResult::Done => {
                        result.keepalives += 1;
                        None
                    }
                    TunnResult::Err(_) | TunnResult::WriteToNetwork(_) => {
                        result.rejected += 1;
                        None
                    }
                }
            });
        }
        if result.authentic() {
            self.release(replies);
        }
        result
    }

    fn handshake(&mut self, message: &[u8], replies: &mut Batch) -> Result<(), Refused> {
        let kind = Kind::of(message).ok_or(Refused)?;
        if matches!(kind, Kind::Data(_)) {
            return Err(Refused);
        }
        let mut refused = false;
        replies.append(INITIATION, |space| {
            match self.core.decapsulate(None, message, space) {
                TunnResult::WriteToNetwork(reply) => Some(reply.len()),
                TunnResult::Done => None,
                _ => {
                    refused = true;
                    None
                }
            }
        });
        if refused {
            return Err(Refused);
        }
        match kind {
            Kind::Initiation => self.established(false),
            Kind::Response(_) => {
                self.established(true);
                self.release(replies);
            }
            // The core sends its next initiation with it.
            Kind::Cookie(_) | Kind::Data(_) => {}
        }
        Ok(())
    }

    fn ready(&self) -> bool {
        self.core.time_since_last_handshake().is_some()
    }

    fn tick(&mut self, replies: &mut Batch) {
        let mut expired = false;
        let sent = replies.append(INITIATION, |space| match self.core.update_timers(space) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                expired = true;
                None
            }
            _ => None,
        });
        if sent {
            self.sent(false);
        }
        if expired {
            // Nobody answered for so long that nobody waits for these any more.
            while self.take_waiting().is_some() {}
        }
        let now = self.clock.now();
        if let Some(session) = &mut self.session
            && session.initiator
            && session.used
            && !session.renewing
            && now.saturating_duration_since(session.since) >= REKEY_AFTER
        {
            session.renewing = true;
            self.initiate(replies);
        }
        if let Some(every) = self.keepalive
            && self
                .last_sent
                .is_none_or(|sent| now.saturating_duration_since(sent) >= every)
        {
            if self.ready() {
                Self::seal_one(&mut self.core, &[], replies);
            } else {
                self.initiate(replies);
            }
            self.sent(false);
        }
    }

    fn set_keepalive(&mut self, every: Option<Duration>) {
        if every != self.keepalive {
            self.keepalive = every;
            self.last_sent = None;
        }
    }

    fn last_handshake(&self) -> Option<Instant> {
        self.session.map(|session| session.since)
    }

    fn handshakes(&self) -> u64 {
        self.handshakes
    }
}

#[cfg(test)]
mod tests;

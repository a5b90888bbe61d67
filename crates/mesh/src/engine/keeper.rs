//! Handshakes and timers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::statistics::one;
use super::{Shared, read};
use crate::batch::Batch;
use crate::crypto::{Admission, Kind, Letter, Sources};

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often the core counts handshakes anew.
const SECOND: Duration = Duration::from_secs(1);
/// Handshakes a second, beyond which each source has a share only.
const LOAD: u32 = 200;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    sources: Sources,
    replies: Batch,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sources: Sources::new(LOAD, Instant::now()),
            replies: Batch::default(),
        }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Letter>) {
        // Timers run by the machine's clock, whatever clock was handed in for what they look at.
        let mut tick = Instant::now();
        let mut second = tick;
        while !self.shared.stopping() {
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                self.tick();
                if now >= second {
                    second = now + SECOND;
                    self.shared.core.tick();
                }
            }
            match inbox.recv_timeout(tick.saturating_duration_since(Instant::now())) {
                Ok(letter) => self.take(&letter),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tick(&mut self) {
        let peers = read(&self.shared.table).all();
        for peer in peers {
            if self.shared.stopping() {
                return;
            }
            let mut state = peer.lock();
            // Without an address, a handshake would only use itself up.
            if let Some(endpoint) = state.endpoint {
                state.tunnel.tick(&mut self.replies);
                drop(state);
                self.reply(&peer, endpoint);
            }
        }
    }

    /// Sends what there is to be sent to the peer.
    fn reply(&mut self, peer: &Peer, endpoint: std::net::SocketAddr) {
        if !self.replies.is_empty() {
            peer.count_not_sent(self.shared.wire.send(endpoint, &self.replies).failed);
            self.replies.clear();
        }
    }

    /// Takes one message of a handshake.
    fn take(&mut self, letter: &Letter) {
        let counters = &self.shared.counters;
        let source = letter.source;
        let message = letter.message();
        let kind = Kind::of(message);
        let peer = match kind {
            Some(Kind::Initiation | Kind::Response(_)) => {
                match self.shared.core.admit(source.ip(), message) {
                    Admission::Pass => {}
                    Admission::Refuse => return one(&counters.refused_handshakes),
                    Admission::Challenge(cookie) => {
                        one(&counters.challenged);
                        self.replies.push(&cookie);
                        self.shared.wire.send(source, &self.replies);
                        self.replies.clear();
                        return;
                    }
                }
                if !self.sources.allow(source.ip(), Instant::now()) {
                    return one(&counters.flooded);
                }
                match kind {
                    Some(Kind::Response(index)) => read(&self.shared.table).by_index(index),
                    _ => match self.shared.core.identify(message) {
                        Ok(key) => read(&self.shared.table).by_key(&key),
                        Err(_) => None,
                    },
                }
            }
            Some(Kind::Cookie(index)) => read(&self.shared.table).by_index(index),
            Some(Kind::Data(_)) | None => None,
        };
        let Some(peer) = peer else {
            return one(&counters.refused_handshakes);
        };
        let mut state = peer.lock();
        if state.tunnel.handshake(message, &mut self.replies).is_err() {
            drop(state);
            peer.count_rejected();
            return one(&counters.refused_handshakes);
        }
        if !matches!(kind, Some(Kind::Cookie(_))) {
            peer.heard_from(&mut state, source);
        }
        // The lock is held until all is sent: what waited goes before what comes now.
        if !self.replies.is_empty() {
            peer.count_not_sent(self.shared.wire.send(source, &self.replies).failed);
            self.replies.clear();
        }
    }
}

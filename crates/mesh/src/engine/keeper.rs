//! Handshakes and timers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::letter::Letter;
use super::paths::Prober;
use super::peer::{Peer, State};
use super::statistics::one;
use super::{Shared, lock, outbound, read};
use crate::batch::Batch;
use crate::crypto::{Admission, Kind, Sources};
use crate::relay::marked;
use crate::ways::{Change, Way, own_places};

/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often paths and relays are looked at.
const PROBE: Duration = Duration::from_millis(100);
/// How often peers among which there is a choice are asked for an answer, and for how long their last one counts.
const ASK: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(7);
/// How often the core counts handshakes anew.
const SECOND: Duration = Duration::from_secs(1);
/// Handshakes a second, beyond which each source has a share only.
const LOAD: u32 = 200;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    sources: Sources,
    replies: Batch,
    framed: Batch,
    prober: Prober,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sources: Sources::new(LOAD, Instant::now()),
            replies: Batch::default(),
            framed: Batch::default(),
            prober: Prober::default(),
        }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Letter>) {
        // Timers run by the machine's clock, whatever clock was handed in for what they look at.
        let mut tick = Instant::now();
        let mut second = tick;
        let mut probe = tick;
        let mut ask = tick;
        while !self.shared.stopping() {
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                self.tick();
                self.choose(now >= ask);
                if now >= ask {
                    ask = now + ASK;
                }
                if now >= second {
                    second = now + SECOND;
                    self.shared.core.tick();
                }
            }
            if now >= probe {
                probe = now + PROBE;
                self.probe();
            }
            match inbox.recv_timeout(probe.min(tick).saturating_duration_since(Instant::now())) {
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
            if state.way.is_none() {
                continue;
            }
            state.tunnel.tick(&mut self.replies);
            let all = state.all_ways(&self.shared, &peer, &self.replies);
            let way = state.way.clone();
            drop(state);
            let wire = &self.shared.wire;
            for way in all.iter().flatten() {
                way.send(wire, &self.replies, &mut self.framed);
            }
            if let (Some(way), None) = (way, all)
                && !self.replies.is_empty()
            {
                peer.count_not_sent(way.send(wire, &self.replies, &mut self.framed));
            }
            self.replies.clear();
        }
    }

    /// Looks who answers of those among whom there is a choice.
    fn choose(&self, ask: bool) {
        let shared = &self.shared;
        let choices = read(&shared.table).choices();
        let now = shared.clock.now();
        for peer in choices {
            let heard = peer.lock().heard;
            let answers = heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE);
            if peer.note_answers(answers) {
                tracing::info!(peer = %peer.public_key, answers, "a gateway that others stand in for");
            }
            if ask {
                outbound::probe(shared, &peer);
            }
        }
    }

    /// Looks at relays, and at the ways to peers.
    fn probe(&mut self) {
        let shared = Arc::clone(&self.shared);
        let now = shared.clock.now();
        let change = Change::look(&shared.relays, &shared.wire, now);
        let own = own_places(&lock(&shared.candidates), &shared.relays);
        let peers = read(&shared.table).probed();
        for peer in peers {
            if shared.stopping() {
                return;
            }
            self.prober.tick(&shared, &peer, change, &own);
        }
    }

    /// Sends an answer back; if it is not sure that it arrives so, over the relays too.
    fn answer(&mut self, peer: &Peer, state: &State, source: &Way) {
        if self.replies.is_empty() {
            return;
        }
        let wire = &self.shared.wire;
        peer.count_not_sent(source.send(wire, &self.replies, &mut self.framed));
        if let (Some(paths), Way::Direct(_)) = (&state.paths, source)
            && paths.ways.agent.round_trip().is_none()
            && let Some(way @ Way::Relay(..)) = &state.way
        {
            way.send(wire, &self.replies, &mut self.framed);
        }
        self.replies.clear();
    }

    /// Takes one message of a handshake.
    fn take(&mut self, letter: &Letter) {
        let counters = &self.shared.counters;
        let source = &letter.source;
        let message = letter.message();
        if marked(message) {
            if let Way::Relay(link, _) = source
                && link.take(self.shared.clock.now(), &self.shared.wire, message)
            {
                self.shared.relays.note_change();
                self.probe();
            }
            return;
        }
        let kind = Kind::of(message);
        let peer = match kind {
            Some(Kind::Initiation | Kind::Response(_)) => {
                match self.shared.core.admit(source.source(), message) {
                    Admission::Pass => {}
                    Admission::Refuse => return one(&counters.refused_handshakes),
                    Admission::Challenge(cookie) => {
                        one(&counters.challenged);
                        self.replies.push(&cookie);
                        source.send(&self.shared.wire, &self.replies, &mut self.framed);
                        self.replies.clear();
                        return;
                    }
                }
                if !self.sources.allow(source.source(), Instant::now()) {
                    return one(&counters.flooded);
                }
                match kind {
                    Some(Kind::Response(index)) => read(&self.shared.table).by_index(index),
                    _ => match self.shared.core.identify(message) {
                        Ok(key) => read(&self.shared.table).by_tunnel(&key),
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
            peer.heard_from(&self.shared, &mut state, source);
        }
        // The lock is held until all is sent: what waited goes before what comes now.
        self.answer(&peer, &state, source);
    }
}

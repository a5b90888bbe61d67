//! What the data plane asks before it lets a packet pass.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use super::answers::{Answers, Place, Seen};
use super::filter::Filter;
use super::flow::{Kind, parse};
use super::ports::ICMP;
use super::{Denial, Direction, Verdict};
use crate::flows::{Records, now_ms};
use crate::key::PublicKey;

/// Flows whose answers are remembered.
const FLOWS: usize = 32_768;

/// Decides packet by packet. It is asked from the threads that carry packets: it must not wait, and must not allocate.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Whether the packet (IP header first) passes between this node and the peer. A packet that is still to be cut into
    /// segments is asked for once, as a whole.
    fn admit(&self, peer: &PublicKey, direction: Direction, packet: &[u8], now: Instant)
    -> Verdict;
}

/// A gate that applies a [`Filter`], which may be changed at any time, and remembers what answers may come.
#[derive(Debug)]
pub struct FilterGate {
    filter: RwLock<Arc<Filter>>,
    answers: Mutex<Answers>,
    began: Instant,
}

impl FilterGate {
    /// A gate that lets nothing pass until it is given a filter.
    pub fn closed(now: Instant) -> Self {
        Self {
            filter: RwLock::default(),
            answers: Mutex::new(Answers::new(FLOWS, now_ms())),
            began: now,
        }
    }

    /// The filter in force.
    pub fn filter(&self) -> Arc<Filter> {
        let filter = self.filter.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&filter)
    }

    /// Applies another filter from now on. Flows that it would not let begin end at once.
    pub fn set(&self, filter: Filter) {
        let filter = Arc::new(filter);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *self.filter.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&filter);
        answers.retain(|peer, direction, flow| filter.rule(peer, direction, flow).ok());
    }

    /// Flows that began or ended after a number, and how many began; with 0 all that are known.
    pub fn records(&self, since: u64, now: Instant) -> Records {
        let now = self.since(now);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.records(since, now)
    }

    /// How many flows began.
    pub fn begun(&self) -> u64 {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.begun()
    }

    /// Milliseconds since this gate was made.
    fn since(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        since.as_secs() * 1000 + u64::from(since.subsec_millis())
    }
}

impl Gate for FilterGate {
    fn admit(
        &self,
        peer: &PublicKey,
        direction: Direction,
        packet: &[u8],
        now: Instant,
    ) -> Verdict {
        let Some((flow, kind, flags)) = parse(packet) else {
            return Verdict::Deny(Denial::Malformed);
        };
        let now = self.since(now);
        // In this order everywhere: a filter that is replaced leaves no answers behind.
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = self.filter.read().unwrap_or_else(PoisonError::into_inner);
        let rules = match filter.between(peer, direction, &flow) {
            Ok(rules) => rules,
            Err(denial) => return Verdict::Deny(denial),
        };
        let back = direction.reversed();
        match kind {
            // Without its first piece it is nothing.
            Kind::Piece => {
                let mut both = rules.inbound.iter().chain(rules.outbound);
                if both.any(|rule| rule.ports.touches(flow.protocol)) {
                    return Verdict::Admit;
                }
                return Verdict::Deny(Denial::Rule);
            }
            Kind::Report(about) => {
                // It is about a packet that went the other way, as the beginning or as an answer.
                let known = filter.between(peer, back, &about).is_ok()
                    && answers.renew(&Place::of(peer, back, &about), now);
                if known {
                    return Verdict::Admit;
                }
                return Verdict::Deny(Denial::Rule);
            }
            Kind::Plain | Kind::Answer => {}
        }
        let place = Place::of(peer, direction, &flow);
        let seen = Seen {
            direction,
            bytes: packet.len(),
            flags,
            now,
        };
        // Echo replies that nobody asked for are no beginning, whatever rules say; TCP may go on after a restart.
        let may_begin = kind == Kind::Plain || !is_icmp(flow.protocol);
        if may_begin && let Some(line) = rules.rule(direction, &flow) {
            let anew = kind == Kind::Plain && flow.protocol == super::ports::TCP;
            answers.remember(&place, line, anew, &seen);
            return Verdict::Admit;
        }
        // A first TCP packet answers nothing.
        let may_answer = kind == Kind::Answer || flow.protocol != super::ports::TCP;
        if may_answer && answers.answers(&place, &seen) {
            return Verdict::Admit;
        }
        // A connection that began before this gate did, as after a restart: this machine's own kernel answers in it, and a rule lets the peer
        // begin it. The peer's gate judges for itself, and nothing comes in by this.
        let may_resume = direction == Direction::Outbound
            && kind == Kind::Answer
            && flow.protocol == super::ports::TCP;
        if may_resume && let Some(line) = rules.rule(back, &flow.reversed()) {
            answers.resume(&place, line, &seen);
            return Verdict::Admit;
        }
        Verdict::Deny(Denial::Rule)
    }
}

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, ICMP | super::ports::ICMPV6)
}

//! A client's registration with a relay: what to send when, and what the answers mean. No I/O and no clock.
//!
//! ```text
//!         hello                challenge, register            registered
//!   out ─────────► asking ──────────────────────────► asking ────────────► in
//!    ▲               │ ▲                                                    │
//!    │  three unheard │ └──────────── every third of a lifetime, unknown ────┤
//!    └───────────────┴───────────────────────── goodbye ────────────────────┘
//! ```
//!
//! Who is in stays in while asking again; only when nobody answers three times, the relay counts as lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::{Frame, Nonce};
use super::proof::{Proof, random};
use crate::key::PublicKey;

/// How long an answer is waited for: first, and at last; doubling in between.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// See [`FIRST_WAIT`].
const LAST_WAIT: Duration = Duration::from_secs(8);
/// Questions without an answer after which the relay counts as lost.
const MISSES: u32 = 3;
/// How long a relay that said goodbye is left in peace.
const AFTER_GOODBYE: Duration = Duration::from_secs(2);
/// How often one may be told that a session is unknown.
const UNKNOWN_EVERY: Duration = Duration::from_secs(1);

/// How often it may be checked.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// What the answers came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// Data may be sent, with this session's number; the relay sees us there.
    In { session: u32, seen: SocketAddr },
    /// No data may be sent.
    Out,
}

/// One client at one relay over one transport.
#[derive(Debug)]
pub(crate) struct Session {
    node: PublicKey,
    ticket: Arc<[u8]>,
    proof: Proof,
    nonce: Nonce,
    /// The session there is, and until when it holds.
    current: Option<(u32, Instant)>,
    next: Instant,
    wait: Duration,
    misses: u32,
    asking: bool,
    told: Option<Instant>,
    /// When it said hello last, and how long the answer took.
    greeted: Instant,
    round_trip: Option<Duration>,
}

impl Session {
    /// Not registered; it will be.
    pub(super) fn new(node: PublicKey, proof: Proof, ticket: Arc<[u8]>, now: Instant) -> Self {
        Self {
            node,
            ticket,
            proof,
            nonce: [0; 16],
            current: None,
            next: now,
            wait: FIRST_WAIT,
            misses: 0,
            asking: false,
            told: None,
            greeted: now,
            round_trip: None,
        }
    }

    /// How long the relay's last answer took.
    pub(crate) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Takes another ticket, which is shown from now on.
    pub(crate) fn set_ticket(&mut self, ticket: Arc<[u8]>) {
        self.ticket = ticket;
    }

    /// The session's number, if there is one.
    pub(crate) fn number(&self) -> Option<u32> {
        self.current.map(|(number, _)| number)
    }

    /// Asks at once whether the relay is still there, as there is doubt.
    pub(crate) fn check(&mut self, now: Instant) {
        let recently = self
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < CHECK_EVERY);
        if !self.asking && !recently {
            self.told = Some(now);
            self.next = now;
        }
    }

    /// Begins anew: the transport is another.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.current = None;
        self.asking = false;
        self.misses = 0;
        self.wait = FIRST_WAIT;
        self.next = now;
    }

    /// Lets time pass; appends the question that is due.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<u8>) -> Change {
        if now < self.next {
            return Change::None;
        }
        let mut change = Change::None;
        if self.asking {
            self.misses = self.misses.saturating_add(1);
            self.wait = (self.wait * 2).min(LAST_WAIT);
        }
        let lost = self.misses >= MISSES || self.current.is_some_and(|(_, until)| now >= until);
        if lost && self.current.take().is_some() {
            change = Change::Out;
        }
        self.next = now + self.wait;
        let Some(fresh) = random() else {
            return change;
        };
        self.nonce.copy_from_slice(&fresh[..16]);
        self.asking = true;
        self.greeted = now;
        let hello = Frame::Hello {
            node: self.node,
            nonce: self.nonce,
        };
        hello.write(out);
        change
    }

    /// Takes a frame that came from the relay's address; appends the answer to it.
    pub(crate) fn take(&mut self, now: Instant, bytes: &[u8], out: &mut Vec<u8>) -> Change {
        match Frame::read(bytes) {
            Some(Frame::Challenge { nonce, cookie }) if self.asking && nonce == self.nonce => {
                self.round_trip = Some(now.saturating_duration_since(self.greeted));
                let register = Frame::Register {
                    node: self.node,
                    nonce,
                    cookie,
                    ticket: &self.ticket,
                    tag: [0; 16],
                };
                self.proof.seal(&register, out);
            }
            Some(Frame::Registered {
                nonce,
                session,
                lifetime,
                seen,
                ..
            }) if self.asking && nonce == self.nonce && self.proof.holds(bytes) => {
                self.current = Some((session, now + lifetime));
                self.next = now + lifetime / 3;
                self.asking = false;
                self.misses = 0;
                self.wait = FIRST_WAIT;
                return Change::In { session, seen };
            }
            Some(Frame::Unknown { session })
                if self.number() == Some(session)
                    && !self.asking
                    && self.told.is_none_or(|told| {
                        now.saturating_duration_since(told) >= UNKNOWN_EVERY
                    }) =>
            {
                self.told = Some(now);
                self.next = now;
            }
            Some(Frame::Goodbye { session }) if self.number() == Some(session) => {
                self.restart(now + AFTER_GOODBYE);
                return Change::Out;
            }
            _ => {}
        }
        Change::None
    }
}

//! What one consumer saw of one endpoint.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::distance::{Class, Distance};

/// Failures in a row after which an endpoint is put aside.
const FAILURES: u32 = 2;
/// For how long at first, and at most. Each time it is twice as long.
const FIRST: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(60);
/// After how long without a failure it is forgotten how often it was put aside.
const FORGET: Duration = Duration::from_secs(120);

/// How often who is well is probed, and how soon again who failed once.
const PROBE: Duration = Duration::from_secs(3);
const PROBE_AGAIN: Duration = Duration::from_millis(500);

/// How a connection or a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The node answers, and nobody listens there.
    #[error("nobody listens there")]
    Closed,
    /// There was no answer in time.
    #[error("there was no answer in time")]
    Silent,
    /// No way leads to the node.
    #[error("the node is not reached")]
    Unreachable,
    /// The node does not let this one in, or has no room.
    #[error("the node refuses")]
    Refused,
}

/// What an endpoint looks like to its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing was seen of it yet.
    Unknown,
    /// The last connection or probe got through.
    Well,
    /// The last one failed, or was so slow that another endpoint was first.
    Suspect,
    /// It is put aside.
    Ejected,
    /// It was put aside, and may show now that it is well again.
    Trial,
}

impl State {
    /// Whether it is out because of what was seen.
    pub(super) const fn is_out(self) -> bool {
        matches!(self, Self::Ejected | Self::Trial)
    }
}

/// What was seen of an endpoint: connections and probes, and how long they took.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    distance: Distance,
    /// In a row.
    failures: u32,
    failed: Option<(Instant, Failure)>,
    succeeded: Option<Instant>,
    overtaken: bool,
    /// Until when it is put aside.
    until: Option<Instant>,
    /// How often it was of late.
    times: u32,
}

impl Evidence {
    /// A connection or a probe got through. It measured a round trip, perhaps.
    pub fn succeeded(&mut self, now: Instant, round_trip: Option<Duration>) {
        self.failures = 0;
        self.overtaken = false;
        self.until = None;
        self.succeeded = Some(now);
        if let Some(round_trip) = round_trip {
            self.distance.measured(round_trip);
        }
    }

    /// A connection or a probe failed.
    pub fn failed(&mut self, now: Instant, why: Failure) {
        let long_ago = |(at, _): (Instant, _)| now.saturating_duration_since(at) >= FORGET;
        if self.until.is_none() && self.failed.is_some_and(long_ago) {
            self.times = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.failed = Some((now, why));
        let again = match self.until {
            // Others that began before it was put aside say nothing new.
            Some(until) => until <= now,
            None => self.failures >= FAILURES,
        };
        if again {
            self.times = self.times.saturating_add(1);
            let doubled = FIRST.saturating_mul(1 << (self.times - 1).min(16));
            self.until = Some(now + doubled.min(LONGEST));
        }
    }

    /// Another endpoint that was tried later answered first. That alone puts nobody aside.
    pub fn overtaken(&mut self) {
        self.overtaken = true;
    }

    /// What it looks like now.
    pub fn state(&self, now: Instant) -> State {
        match self.until {
            Some(until) if now < until => State::Ejected,
            Some(_) => State::Trial,
            None if self.failures > 0 || self.overtaken => State::Suspect,
            None if self.succeeded.is_some() => State::Well,
            None => State::Unknown,
        }
    }

    /// When it should be probed next; `None` for now.
    pub fn next_probe(&self, now: Instant) -> Option<Instant> {
        let last = self.last()?;
        let at = match self.state(now) {
            State::Unknown | State::Trial => return None,
            State::Ejected => self.until?,
            State::Well => last + PROBE,
            State::Suspect if self.overtaken && self.failures == 0 => return None,
            State::Suspect => last + PROBE_AGAIN,
        };
        Some(at).filter(|at| *at > now)
    }

    /// Until when it is put aside, if it is.
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Failures in a row, and when and how the last was.
    pub const fn failures(&self) -> (u32, Option<(Instant, Failure)>) {
        (self.failures, self.failed)
    }

    /// When something got through last.
    pub const fn last_success(&self) -> Option<Instant> {
        self.succeeded
    }

    /// When something was seen of it last.
    pub fn last(&self) -> Option<Instant> {
        let failed = self.failed.map(|(at, _)| at);
        self.succeeded.max(failed)
    }

    /// The shortest round trip of the last ones.
    pub fn round_trip(&self) -> Option<Duration> {
        self.distance.round_trip()
    }

    /// How far it is, if it is not this node.
    pub const fn class(&self) -> Class {
        self.distance.class()
    }
}

//! Records of flows: who talked to what, which rule let it, and how much.
//!
//! Two parts of a node keep such records: the gate of the tunnels counts packets where it remembers whose answers may come
//! ([`crate::policy::FilterGate::records`]), and what carries flows without a device counts their bytes
//! ([`crate::userspace::Userspace::records`]). Each numbers what happens, the beginnings and the ends, so that one may ask for what is
//! new since a number.
//!
//! Nothing is written anywhere: records live as long as the node, and only so many of them.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::policy::{Direction, Flow};

/// The most flows that run which are told at once: the newest.
pub const MOST_RUNNING: usize = 4096;
/// The most flows that are remembered once they ended.
pub const MOST_ENDED: usize = 1024;

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// In order, at both ends.
    Closed,
    /// It broke off.
    Reset,
    /// Policy or map do not allow it any more.
    Policy,
    /// Nothing was heard of it for long.
    Idle,
    /// There were too many, and it was silent for longer than others. It may go on.
    Displaced,
}

/// What moved in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes: of packets with their headers in tunnels, else of what programs sent.
    pub bytes: u64,
    /// Packets; one that is cut on its way counts once. None are counted where there are none.
    pub packets: u64,
}

/// A flow that runs or ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The number of its beginning.
    pub number: u64,
    /// The number of its end, and what that was.
    pub end: Option<(u64, End)>,
    /// The key of the other node's tunnels.
    pub peer: PublicKey,
    /// Who began it: this node if it is outbound.
    pub direction: Direction,
    /// From the one that began it to the one that was called. The caller's port is 0 if it is not known.
    pub flow: Flow,
    /// The line of the rule that lets it, in the text of the policy; 0 if it has none.
    pub line: u32,
    /// When it began, or was seen first, in milliseconds since 1970.
    pub began_ms: u64,
    /// When something moved last.
    pub seen_ms: u64,
    /// From this node to the other.
    pub sent: Moved,
    /// From the other node to this one.
    pub received: Moved,
}

/// What one asks for and gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// The flows, those that run first, the newest of both first.
    pub records: Vec<Record>,
    /// The number of the last that happened.
    pub cursor: u64,
    /// How many began since the start.
    pub begun: u64,
    /// How many run but are not told.
    pub beyond: u64,
    /// How many ended and are forgotten.
    pub forgotten: u64,
}

/// Flows that ended.
#[derive(Debug)]
pub(crate) struct Past {
    ended: VecDeque<Record>,
    forgotten: u64,
}

impl Default for Past {
    fn default() -> Self {
        // At once, since packets wait where it is added to.
        Self {
            ended: VecDeque::with_capacity(MOST_ENDED),
            forgotten: 0,
        }
    }
}

impl Past {
    pub(crate) fn add(&mut self, record: Record) {
        if self.ended.len() >= MOST_ENDED {
            self.ended.pop_front();
            self.forgotten += 1;
        }
        self.ended.push_back(record);
    }

    /// With those that run, what is new since a number; `cursor` is the last.
    pub(crate) fn with(
        &self,
        mut running: Vec<Record>,
        since: u64,
        cursor: u64,
        begun: u64,
    ) -> Records {
        running.sort_unstable_by_key(|record| std::cmp::Reverse(record.number));
        let beyond = running.len().saturating_sub(MOST_RUNNING);
        running.truncate(MOST_RUNNING);
        let ended = self.ended.iter().rev();
        let new = |record: &&Record| record.end.is_some_and(|(number, _)| number > since);
        running.extend(ended.take_while(new));
        Records {
            records: running,
            cursor,
            begun,
            beyond: beyond as u64,
            forgotten: self.forgotten,
        }
    }
}

/// The time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, end: Option<u64>) -> Record {
        Record {
            number,
            end: end.map(|number| (number, End::Closed)),
            peer: PublicKey::from_bytes([1; 32]),
            direction: Direction::Inbound,
            flow: Flow {
                protocol: 6,
                source: [100, 64, 0, 1].into(),
                source_port: 0,
                destination: [100, 64, 0, 2].into(),
                destination_port: 80,
            },
            line: 1,
            began_ms: 0,
            seen_ms: 0,
            sent: Moved::default(),
            received: Moved::default(),
        }
    }

    #[test]
    fn the_newest_are_told_and_the_others_counted() {
        let mut past = Past::default();
        let ended = MOST_ENDED as u64 + 10;
        for number in 0..ended {
            past.add(record(number * 2 + 1, Some(number * 2 + 2)));
        }
        let first = ended * 2;
        let running = MOST_RUNNING as u64 + 5;
        let cursor = first + running;
        let all = (1..=running).map(|number| record(first + number, None));
        let told = past.with(all.collect(), 0, cursor, ended + running);
        assert_eq!((told.beyond, told.forgotten), (5, 10));
        assert_eq!(told.records.len(), MOST_RUNNING + MOST_ENDED);
        assert_eq!(told.records[0].number, cursor);
        assert_eq!(told.records[MOST_RUNNING].number, first - 1);
        // What is new alone.
        let told = past.with(Vec::new(), first - 2, cursor, 0);
        assert_eq!(told.records, [record(first - 1, Some(first))]);
    }
}

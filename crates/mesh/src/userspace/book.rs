//! What is known of each flow that is carried.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::flow::Broken;
use crate::flows::{End, Moved, Past, Record, Records, now_ms};
use crate::key::PublicKey;
use crate::policy::{Direction, Flow};

/// What moves in a flow, counted while it does.
#[derive(Debug)]
pub(super) struct Motion {
    began: Instant,
    last_ms: AtomicU64,
    /// Away from the near socket.
    pub(super) out: AtomicU64,
    /// Towards it.
    pub(super) back: AtomicU64,
}

impl Motion {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            out: AtomicU64::new(0),
            back: AtomicU64::new(0),
        }
    }

    /// Something moved just now.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// When that was, in milliseconds since the beginning, and when that is.
    pub(super) fn last(&self) -> (u64, Instant) {
        (self.last_ms.load(Ordering::Relaxed), self.began)
    }
}

/// What is said of a flow when it begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    pub(super) peer: PublicKey,
    pub(super) direction: Direction,
    pub(super) flow: Flow,
    pub(super) line: u32,
}

#[derive(Debug)]
struct Running {
    number: u64,
    beginning: Beginning,
    line: AtomicU32,
    began_ms: u64,
    motion: Motion,
}

impl Running {
    fn record(&self, end: Option<(u64, End)>) -> Record {
        let bytes = |count: &AtomicU64| Moved {
            bytes: count.load(Ordering::Relaxed),
            packets: 0,
        };
        // The near socket is this machine's in both directions.
        Record {
            number: self.number,
            end,
            peer: self.beginning.peer,
            direction: self.beginning.direction,
            flow: self.beginning.flow,
            line: self.line.load(Ordering::Relaxed),
            began_ms: self.began_ms,
            seen_ms: self.began_ms + self.motion.last().0,
            sent: bytes(&self.motion.out),
            received: bytes(&self.motion.back),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<u64, Arc<Running>>,
    past: Past,
    turn: u64,
    begun: u64,
}

/// All flows with other nodes. How many run is bounded by those who begin them.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<State>);

impl Book {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that a flow begins. It ended when what is returned is dropped.
    pub(super) fn begin(&self, beginning: Beginning) -> Entry<'_> {
        let mut state = self.state();
        state.turn += 1;
        state.begun += 1;
        let running = Arc::new(Running {
            number: state.turn,
            line: AtomicU32::new(beginning.line),
            beginning,
            began_ms: now_ms(),
            motion: Motion::new(),
        });
        state.running.insert(running.number, Arc::clone(&running));
        Entry {
            book: self,
            running,
            end: End::Reset,
        }
    }

    /// What began or ended after a number; with 0 everything.
    pub(super) fn records(&self, since: u64) -> Records {
        let state = self.state();
        let running = state.running.values().rev();
        let new = running.take_while(|running| running.number > since);
        let new = new.map(|running| running.record(None)).collect();
        state.past.with(new, since, state.turn, state.begun)
    }
}

/// A flow that runs.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    book: &'a Book,
    running: Arc<Running>,
    end: End,
}

impl Entry<'_> {
    pub(super) fn motion(&self) -> &Motion {
        &self.running.motion
    }

    /// Another rule lets it now.
    pub(super) fn set_line(&self, line: u32) {
        self.running.line.store(line, Ordering::Relaxed);
    }

    /// How it ended.
    pub(super) fn finish(mut self, result: &Result<(), Broken>) {
        self.end = match result {
            Ok(()) => End::Closed,
            Err(Broken::Idle) => End::Idle,
            Err(Broken::Forbidden) => End::Policy,
            Err(Broken::Failed(_)) => End::Reset,
        };
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut state = self.book.state();
        state.turn += 1;
        let end = (state.turn, self.end);
        state.running.remove(&self.running.number);
        state.past.add(self.running.record(Some(end)));
    }
}

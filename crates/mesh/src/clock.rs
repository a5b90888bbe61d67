//! Time, handed in, so that tests can let minutes pass at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where the time comes from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Now. It never goes back.
    fn now(&self) -> Instant;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The machine's clock plus what it was moved on by.
#[derive(Debug, Clone, Default)]
pub struct ShiftedClock {
    ahead_ms: Arc<AtomicU64>,
}

impl ShiftedClock {
    /// A clock that is right.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time pass for all who hold this clock.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(
            u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }
}

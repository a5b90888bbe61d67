//! Where the time of preparing and starting goes.

use std::time::{Duration, Instant};

/// How long each step took, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phases(pub Vec<(String, Duration)>);

impl Phases {
    /// The sum of all steps.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|(_, duration)| *duration).sum()
    }

    /// From nanoseconds, as they travel between processes.
    pub(crate) fn from_nanoseconds(steps: Vec<(String, u64)>) -> Self {
        Self(
            steps
                .into_iter()
                .map(|(name, count)| (name, Duration::from_nanos(count)))
                .collect(),
        )
    }
}

/// Measures steps one after another.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    last: Instant,
    steps: Vec<(String, u64)>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            last: Instant::now(),
            steps: Vec::new(),
        }
    }

    /// Begins anew; steps that were not taken are forgotten.
    pub(crate) fn restart(&mut self) {
        *self = Self::start();
    }

    /// The step that ends now.
    pub(crate) fn mark(&mut self, name: &str) {
        let now = Instant::now();
        let nanoseconds = u64::try_from((now - self.last).as_nanos()).unwrap_or(u64::MAX);
        self.steps.push((name.to_owned(), nanoseconds));
        self.last = now;
    }

    /// Steps measured elsewhere, which took part of the time since the last mark.
    pub(crate) fn insert(&mut self, steps: Vec<(String, u64)>) {
        self.steps.extend(steps);
        self.last = Instant::now();
    }

    /// The steps since the last call.
    pub(crate) fn take(&mut self) -> Vec<(String, u64)> {
        self.last = Instant::now();
        std::mem::take(&mut self.steps)
    }
}

//! Where the time of starting a sandbox goes: one histogram for each phase.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A part of starting a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for one's turn.
    Queue,
    /// Taking a prepared sandbox, or preparing one if none is ready.
    Claim,
    /// Finding the layers of the root file system.
    Image,
    /// Writing to the journal, both records.
    Journal,
    /// Setting what the network may reach.
    Network,
    /// The driver, until the guest serves.
    Start,
    /// All of it.
    Total,
}

const PHASES: [(Phase, &str); 7] = [
    (Phase::Queue, "queue"),
    (Phase::Claim, "claim"),
    (Phase::Image, "image"),
    (Phase::Journal, "journal"),
    (Phase::Network, "network"),
    (Phase::Start, "start"),
    (Phase::Total, "total"),
];

/// Buckets grow by a factor of 2^(1/4), from one microsecond to over an hour: a quantile is right
/// to 19 %.
const STEPS_PER_DOUBLING: f64 = 4.0;
const BUCKETS: usize = 128;

/// The most steps of a driver that are told apart.
const STEPS_MAX: usize = 64;

struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    longest_us: AtomicU64,
}

impl Histogram {
    fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            longest_us: AtomicU64::new(0),
        }
    }

    fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = ((us.max(1) as f64).log2() * STEPS_PER_DOUBLING) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.longest_us.fetch_max(us, Relaxed);
    }

    fn summary(&self, phase: impl Into<String>) -> PhaseSummary {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let longest = Duration::from_micros(self.longest_us.load(Relaxed));
        let quantile = |part: f64| {
            let rank = (count as f64 * part).ceil() as u64;
            let mut seen = 0;
            for (at, in_bucket) in counts.iter().enumerate() {
                seen += in_bucket;
                if seen >= rank.max(1) {
                    let upper = 2f64.powf((at + 1) as f64 / STEPS_PER_DOUBLING);
                    return Duration::from_micros(upper as u64).min(longest);
                }
            }
            Duration::ZERO
        };
        PhaseSummary {
            phase: phase.into(),
            count,
            p50: quantile(0.50),
            p99: quantile(0.99),
            longest,
        }
    }
}

/// How long one phase took, over all sandboxes since the agent started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseSummary {
    /// Its name; steps of the driver are `driver: ` and what the driver calls them.
    pub phase: String,
    /// How many were measured.
    pub count: u64,
    /// The median, right to 19 %.
    pub p50: Duration,
    /// The 99th percentile, right to 19 %.
    pub p99: Duration,
    /// The longest, exact.
    pub longest: Duration,
}

impl From<PhaseSummary> for api::node::PhaseTimes {
    fn from(summary: PhaseSummary) -> Self {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            name: summary.phase,
            count: summary.count,
            p50_ms: milliseconds(summary.p50),
            p99_ms: milliseconds(summary.p99),
            max_ms: milliseconds(summary.longest),
        }
    }
}

/// Histograms of all phases, and of the driver's own steps.
pub(crate) struct Phases {
    phases: [Histogram; PHASES.len()],
    steps: Mutex<BTreeMap<String, Histogram>>,
}

impl Phases {
    pub(crate) fn new() -> Self {
        Self {
            phases: std::array::from_fn(|_| Histogram::new()),
            steps: Mutex::default(),
        }
    }

    pub(crate) fn summaries(&self) -> Vec<PhaseSummary> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = PHASES
            .iter()
            .map(|(phase, name)| self.phases[*phase as usize].summary(*name));
        let drivers = steps
            .iter()
            .map(|(name, step)| step.summary(format!("driver: {name}")));
        ours.chain(drivers).collect()
    }

    /// Adds one sandbox's times.
    pub(crate) fn record(&self, times: &Times, driver: &driver::Phases) {
        for (phase, _) in PHASES {
            self.phases[phase as usize].record(times.0[phase as usize]);
        }
        for (name, time) in &driver.0 {
            self.record_step(name, *time);
        }
    }

    /// Adds one time of a driver's step.
    pub(crate) fn record_step(&self, name: &str, time: Duration) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(step) = steps.get(name) {
            step.record(time);
        } else if steps.len() < STEPS_MAX {
            steps
                .entry(name.to_owned())
                .or_insert_with(Histogram::new)
                .record(time);
        }
    }
}

/// One sandbox's times.
#[derive(Default, Clone, Copy)]
pub(crate) struct Times([Duration; PHASES.len()]);

impl Times {
    /// Adds to a phase.
    pub(crate) fn add(&mut self, phase: Phase, time: Duration) {
        self.0[phase as usize] += time;
    }
}

impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (phase, name)) in PHASES.iter().enumerate() {
            let gap = if at == 0 { "" } else { " " };
            write!(
                formatter,
                "{gap}{name}={:.3}ms",
                self.0[*phase as usize].as_secs_f64() * 1e3
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_the_truth() {
        let histogram = Histogram::new();
        for ms in 1..=100 {
            histogram.record(Duration::from_millis(ms));
        }
        let summary = histogram.summary("total");
        let near = |time: Duration, ms: f64| (time.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.2;
        assert!(near(summary.p50, 50.0), "{summary:?}");
        assert!(near(summary.p99, 99.0), "{summary:?}");
        assert_eq!(
            (summary.count, summary.longest),
            (100, Duration::from_millis(100))
        );
    }

    #[test]
    fn extremes_do_not_overflow() {
        let histogram = Histogram::new();
        histogram.record(Duration::ZERO);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.summary("total").count, 2);
        assert_eq!(Histogram::new().summary("total").p99, Duration::ZERO);
    }
}

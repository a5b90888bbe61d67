//! How long a machine takes to come up, learnt from every time it did.

use crate::moment::Span;
use serde::{Deserialize, Serialize};

/// The most recent times are what counts: firmware and disks change.
const KEPT: usize = 32;

/// How much the configured figure counts beside what was seen: as so many boots.
const PRIOR_WEIGHT: usize = 4;

/// Learnt times from the order to wake until the node could take work, and how often it never
/// came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootTimes {
    /// What the configuration says it usually takes.
    expected: Span,
    /// What it took, the oldest first.
    seen: Vec<Span>,
    /// The same with what is configured, in order.
    sorted: Vec<Span>,
    /// How often it came up.
    came: u32,
    /// How often it did not.
    failed: u32,
}

impl BootTimes {
    /// Nothing learnt yet: it usually takes `expected`.
    pub fn expecting(expected: Span) -> Self {
        let mut times = Self {
            expected,
            seen: Vec::new(),
            sorted: Vec::new(),
            came: 0,
            failed: 0,
        };
        times.sort();
        times
    }

    /// What the configuration says.
    pub fn expected(&self) -> Span {
        self.expected
    }

    /// Takes note of how long it took, if that is known.
    pub(crate) fn learn_some(&mut self, took: Option<Span>) {
        if let Some(took) = took {
            self.learn(took);
        }
    }

    /// It came up after `span`.
    pub fn learn(&mut self, span: Span) {
        if self.seen.len() == KEPT {
            self.seen.remove(0);
        }
        self.seen.push(span);
        self.came = self.came.saturating_add(1);
        self.sort();
    }

    /// It did not come up.
    pub fn learn_failure(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }

    /// Sorts the times, with the configured figure among them as if four boots had been seen:
    /// one a quarter quicker, two as usual, one half as long again. They go as real ones come.
    fn sort(&mut self) {
        let expected = self.expected.0;
        let prior = [expected, expected * 3 / 2, expected * 3 / 4, expected];
        let weight = PRIOR_WEIGHT.saturating_sub(self.seen.len() / 4);
        let prior = prior.into_iter().take(weight).map(Span);
        self.sorted = prior.chain(self.seen.iter().copied()).collect();
        self.sorted.sort_unstable();
    }

    /// The time within which a share `quantile` of the wake-ups were done.
    pub fn quantile(&self, quantile: f64) -> Span {
        let times = &self.sorted;
        let at = (quantile.clamp(0.0, 1.0) * times.len() as f64).ceil() as usize;
        times[at.clamp(1, times.len()) - 1]
    }

    /// The usual time.
    pub fn median(&self) -> Span {
        self.quantile(0.5)
    }

    /// The chance that the machine can take work `within` so long after the order to wake.
    pub fn chance_within(&self, within: Span) -> f64 {
        let times = &self.sorted;
        let done = times.iter().filter(|time| **time <= within).count();
        let share = done as f64 / times.len() as f64;
        // As by Laplace, with one failure in a hundred assumed before anything was seen.
        let attempts = f64::from(self.came) + f64::from(self.failed);
        let comes = (f64::from(self.came) + 99.0) / (attempts + 100.0);
        share * comes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_replaces_what_was_configured() {
        let mut times = BootTimes::expecting(Span(300));
        assert_eq!(times.median(), Span(300));
        for _ in 0..16 {
            times.learn(Span(60));
        }
        assert_eq!(times.quantile(0.95), Span(60));
        assert!(times.chance_within(Span(60)) > 0.9);
        assert_eq!(times.chance_within(Span(59)), 0.0);
    }

    #[test]
    fn a_machine_that_often_fails_is_not_relied_on() {
        let mut times = BootTimes::expecting(Span(60));
        for _ in 0..200 {
            times.learn_failure();
        }
        assert!(times.chance_within(Span(600)) < 0.5);
    }

    #[test]
    fn no_more_is_kept_than_needed() {
        let mut times = BootTimes::expecting(Span(60));
        for second in 0..1000 {
            times.learn(Span(second));
        }
        assert_eq!(times.seen.len(), KEPT);
        assert_eq!(times.quantile(0.0), Span(968));
    }
}

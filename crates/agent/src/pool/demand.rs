//! How many sandboxes to prepare ahead, from recent demand.
//!
//! The pool must cover what is asked for while it refills. So demand is the most creates that fell
//! into one window of [`WINDOW`] (about the time in which a few are replaced), as a peak that
//! decays with a half-life of [`HALF_LIFE`]: a burst that came once may come again soon, and an
//! hour later it is forgotten. The pool holds [`HEADROOM`] times that, between the operator's
//! bounds.
//!
//! Time comes in as a parameter, so that this can be tested and replayed.

use crate::options::PoolOptions;
use std::{collections::VecDeque, time::Duration};

/// Creates within this time count as one burst.
const WINDOW: Duration = Duration::from_millis(250);

/// The peak halves in this time.
const HALF_LIFE: Duration = Duration::from_secs(120);

/// How much more than the peak is kept ready.
const HEADROOM: f64 = 1.25;

/// Recent demand.
#[derive(Debug, Default)]
pub(super) struct Demand {
    recent: VecDeque<Duration>,
    peak: f64,
    peak_at: Duration,
}

impl Demand {
    /// Takes one create into account. `now` is counted from any fixed moment.
    pub(super) fn record(&mut self, now: Duration, options: &PoolOptions) {
        self.recent.push_back(now);
        // More than the pool may ever hold need not be counted.
        let most = options.max.max(1) as usize;
        while self.recent.len() > most
            || self
                .recent
                .front()
                .is_some_and(|at| now.saturating_sub(*at) > WINDOW)
        {
            self.recent.pop_front();
        }
        self.peak = self.decayed(now).max(self.recent.len() as f64);
        self.peak_at = now;
    }

    fn decayed(&self, now: Duration) -> f64 {
        let elapsed = now.saturating_sub(self.peak_at).as_secs_f64();
        self.peak * 0.5f64.powf(elapsed / HALF_LIFE.as_secs_f64())
    }

    /// Whether what was asked for is long ago.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.decayed(now) < 0.5
    }

    /// How many should be ready at `now`, if `room` more sandboxes may run.
    pub(super) fn target(&self, now: Duration, options: &PoolOptions, room: u32) -> u32 {
        let wanted = (self.decayed(now) * HEADROOM).ceil() as u32;
        wanted.max(options.min).min(options.max).min(room)
    }
}

/// How many preparations may run at once, so that they yield to creates that are under way: two
/// when there are none, one while some processors are left to it, none while all are busy (then
/// creates find the pool empty and prepare for themselves, which costs the same).
pub(super) fn refills_allowed(creating: u32, processors: u32) -> u32 {
    match creating {
        0 => 2,
        few if few <= processors => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: PoolOptions = PoolOptions {
        min: 4,
        max: 100,
        grace: Duration::ZERO,
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_burst_raises_the_target_and_it_falls_slowly() {
        let mut demand = Demand::default();
        assert_eq!(demand.target(seconds(0.0), &OPTIONS, 1000), 4);
        for index in 0..40 {
            demand.record(seconds(10.0 + f64::from(index) * 0.001), &OPTIONS);
        }
        let target = |at| demand.target(seconds(at), &OPTIONS, 1000);
        assert_eq!(target(10.1), 50);
        assert_eq!(target(10.1 + 120.0), 25);
        assert_eq!(target(10.1 + 3600.0), 4);
    }

    #[test]
    fn a_steady_stream_asks_for_one_window() {
        let mut demand = Demand::default();
        for index in 0..2000 {
            demand.record(seconds(f64::from(index) * 0.01), &OPTIONS);
        }
        let target = demand.target(seconds(20.0), &OPTIONS, 1000);
        assert!((30..=34).contains(&target), "{target}");
    }

    #[test]
    fn the_bounds_hold() {
        let mut demand = Demand::default();
        for _ in 0..10_000 {
            demand.record(seconds(1.0), &OPTIONS);
        }
        assert_eq!(demand.recent.len(), 100);
        assert_eq!(demand.target(seconds(1.0), &OPTIONS, 1000), 100);
        assert_eq!(demand.target(seconds(1.0), &OPTIONS, 3), 3);
        assert_eq!(
            demand.target(
                seconds(1.0),
                &PoolOptions {
                    min: 0,
                    max: 0,
                    ..OPTIONS
                },
                3
            ),
            0
        );
    }

    #[test]
    fn refilling_yields_to_creates() {
        assert_eq!(
            [0, 1, 2, 3].map(|creating| refills_allowed(creating, 2)),
            [2, 1, 1, 0]
        );
    }
}

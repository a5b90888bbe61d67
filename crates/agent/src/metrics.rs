//! What sandboxes used over time.
//!
//! One task samples all of them. Each keeps five minutes of samples five seconds apart and an hour
//! of samples half a minute apart, so at most some 7 KB.

use api::{Bytes, Resources, node::MetricSample};
use driver::Usage;
use jiff::Timestamp;
use std::{collections::VecDeque, time::Duration};

/// Time between samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// The first sample is taken this long after the start.
pub(crate) const FIRST_AFTER: Duration = Duration::from_secs(1);

const FINE_COUNT: usize = 60;
const COARSE_INTERVAL: Duration = Duration::from_secs(30);
const COARSE_TIME: Duration = Duration::from_secs(60 * 60);

/// Samples that are remembered of a sandbox that has ended.
pub(crate) const KEPT_AFTER_END: usize = 24;

#[derive(Clone, Copy)]
struct Point {
    at: Timestamp,
    cpu_percent: f32,
    memory: u64,
    memory_cache: u64,
    disk: u64,
}

/// One sandbox's samples.
#[derive(Default)]
pub(crate) struct Series {
    fine: VecDeque<Point>,
    coarse: VecDeque<Point>,
    last: Option<(Timestamp, Duration)>,
}

impl Series {
    /// Whether a sample is due for a sandbox that runs since `started_at`.
    pub(crate) fn is_due(&self, started_at: Timestamp, now: Timestamp) -> bool {
        // Half a tick of tolerance, so that a tick that comes early does not skip a sample.
        let tolerance = Duration::from_millis(500);
        match self.last {
            None => crate::clock::until(started_at, now) >= FIRST_AFTER,
            Some((at, _)) => crate::clock::until(at, now) + tolerance >= INTERVAL,
        }
    }

    /// Adds a sample. Processor use is the mean since the one before, or since the start.
    pub(crate) fn push(&mut self, started_at: Timestamp, now: Timestamp, usage: &Usage) {
        let (since, before) = self.last.unwrap_or((started_at, Duration::ZERO));
        let elapsed = crate::clock::until(since, now).as_secs_f64();
        let used = usage.cpu_time.saturating_sub(before).as_secs_f64();
        let cpu_percent = if elapsed > 0.0 {
            (used / elapsed * 100.0) as f32
        } else {
            0.0
        };
        self.last = Some((now, usage.cpu_time));
        self.fine.push_back(Point {
            at: now,
            cpu_percent,
            memory: usage.memory,
            memory_cache: usage.memory_cache,
            disk: usage.disk,
        });
        while self.fine.len() > FINE_COUNT {
            let Some(old) = self.fine.pop_front() else {
                break;
            };
            let due = self
                .coarse
                .back()
                .is_none_or(|last| crate::clock::until(last.at, old.at) >= COARSE_INTERVAL);
            if due {
                self.coarse.push_back(old);
            }
        }
        while self
            .coarse
            .front()
            .is_some_and(|first| crate::clock::until(first.at, now) > COARSE_TIME)
        {
            self.coarse.pop_front();
        }
    }

    /// All samples, oldest first.
    pub(crate) fn samples(&self, resources: &Resources) -> Vec<MetricSample> {
        let most = f64::from(resources.vcpus) * 100.0;
        self.coarse
            .iter()
            .chain(&self.fine)
            .map(|point| MetricSample {
                at: point.at,
                vcpus: resources.vcpus,
                // A sample may catch a tick more of processor time than of real time.
                cpu_used_percent: f64::from(point.cpu_percent).min(most),
                memory_used: Bytes(point.memory),
                memory_total: resources.memory,
                memory_cache: Bytes(point.memory_cache),
                disk_used: Bytes(point.disk),
                disk_total: resources.disk,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_thins_out() {
        let start = Timestamp::UNIX_EPOCH;
        let mut series = Series::default();
        let mut now = start;
        for second in 1..=3 * 60 * 60u64 {
            now = crate::clock::after(start, Duration::from_secs(second));
            if series.is_due(start, now) {
                let cpu_time = Duration::from_secs(second);
                series.push(
                    start,
                    now,
                    &Usage {
                        cpu_time,
                        ..Usage::default()
                    },
                );
            }
        }
        let samples = series.samples(&Resources::default());
        assert!((150..200).contains(&samples.len()), "{}", samples.len());
        assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at));
        let reach = crate::clock::until(samples[0].at, now);
        assert!(
            reach > Duration::from_secs(59 * 60) && reach <= COARSE_TIME,
            "{reach:?}"
        );
        assert!(
            samples
                .iter()
                .all(|sample| (sample.cpu_used_percent - 100.0).abs() < 0.1)
        );
    }

    #[test]
    fn the_first_sample_comes_after_a_second() {
        let series = Series::default();
        let start = Timestamp::UNIX_EPOCH;
        assert!(!series.is_due(
            start,
            crate::clock::after(start, Duration::from_millis(900))
        ));
        assert!(series.is_due(
            start,
            crate::clock::after(start, Duration::from_millis(1000))
        ));
    }
}

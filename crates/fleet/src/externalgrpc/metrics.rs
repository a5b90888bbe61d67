//! How often each call was made, how it ended and how long it took.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Upper bounds of the histogram's buckets, in seconds.
const BOUNDS: [f64; 8] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0];

/// The figures of one method and one status.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    count: u64,
    seconds: f64,
    within: [u64; BOUNDS.len()],
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<(&'static str, i32), Figures>>);

impl Metrics {
    /// Counts a call that ended with this gRPC status code.
    pub(super) fn note(&self, method: &'static str, code: i32, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = all.entry((method, code)).or_default();
        let seconds = took.as_secs_f64();
        figures.count += 1;
        figures.seconds += seconds;
        for (bound, within) in BOUNDS.iter().zip(&mut figures.within) {
            *within += u64::from(seconds <= *bound);
        }
    }

    /// As Prometheus reads it.
    pub fn render(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from(
            "# HELP atoll_fleet_grpc_seconds How long calls of Cluster Autoscaler took.\n\
             # TYPE atoll_fleet_grpc_seconds histogram\n",
        );
        for ((method, code), figures) in all.iter() {
            let labels = format!("method=\"{method}\",code=\"{code}\"");
            for (bound, within) in BOUNDS.iter().zip(figures.within) {
                let _ = writeln!(
                    text,
                    "atoll_fleet_grpc_seconds_bucket{{{labels},le=\"{bound}\"}} {within}"
                );
            }
            let (count, seconds) = (figures.count, figures.seconds);
            let _ = writeln!(
                text,
                "atoll_fleet_grpc_seconds_bucket{{{labels},le=\"+Inf\"}} {count}\n\
                 atoll_fleet_grpc_seconds_sum{{{labels}}} {seconds}\n\
                 atoll_fleet_grpc_seconds_count{{{labels}}} {count}"
            );
        }
        text
    }
}

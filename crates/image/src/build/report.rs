//! How a build tells what it is doing.

use super::Job;
use api::node::{BuildEvent, LogLevel, LogLine};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often progress is told.
const INTERVAL: Duration = Duration::from_millis(100);
/// The longest log line that is passed on.
const LINE_MAX: usize = 2000;

/// Counts what a step has done; telling it is somebody else's work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a build tells what it does.
#[derive(Clone)]
pub(crate) struct Report {
    job: Arc<Job>,
}

impl Report {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self { job }
    }

    /// Begins a step; what the counter counts is told a few times a second.
    pub(crate) fn step(&self, name: impl Into<String>, total: Option<u64>) -> Counter {
        let counter = Counter::default();
        self.step_counted_by(name, total, &counter);
        counter
    }

    /// Begins a step that was under way already, as far as `counter` tells.
    pub(crate) fn step_counted_by(
        &self,
        name: impl Into<String>,
        total: Option<u64>,
        counter: &Counter,
    ) {
        self.job.emit(BuildEvent::Step {
            name: name.into(),
            total,
        });
        self.job.state().counter = Some(counter.clone());
    }

    /// Passes on a line.
    pub(crate) fn log(&self, level: LogLevel, message: impl Into<String>) {
        let mut message: String = message.into();
        if message.len() > LINE_MAX {
            let end = (0..=LINE_MAX)
                .rev()
                .find(|at| message.is_char_boundary(*at))
                .unwrap_or(0);
            message.truncate(end);
        }
        let fields = BTreeMap::new();
        self.job.emit(BuildEvent::Log(LogLine {
            at: Timestamp::now(),
            level,
            message,
            fields,
        }));
    }

    /// Tells when nobody wants the image any more.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.job.cancel
    }

    /// An error if nobody wants the image any more.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.job.cancel.is_cancelled() {
            true => Err(io::Error::other("the build was cancelled")),
            false => Ok(()),
        }
    }
}

/// Tells progress until it is dropped.
pub(super) async fn tick(job: &Job) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        job.state().flush(&job.sender);
    }
}

/// Counts what is read through it, and fails once the build is cancelled.
pub(crate) struct Watched<R> {
    inner: R,
    report: Report,
    counter: Counter,
}

impl<R> Watched<R> {
    pub(crate) fn new(inner: R, report: Report, counter: Counter) -> Self {
        Self {
            inner,
            report,
            counter,
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.report.check()?;
        let count = self.inner.read(buffer)?;
        self.counter.add(count as u64);
        Ok(count)
    }
}

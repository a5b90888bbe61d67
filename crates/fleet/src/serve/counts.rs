//! What was done so far, in numbers.

use crate::power::{PowerDriver, PowerError, Reading, Switch, transition::Outcome};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Counters since the process was started.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) on: AtomicU64,
    pub(super) off: AtomicU64,
    pub(super) force_off: AtomicU64,
    pub(super) suspend: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) never_came: AtomicU64,
    pub(super) would_not_stop: AtomicU64,
    pub(super) carries_work: AtomicU64,
    pub(super) would_not_suspend: AtomicU64,
    pub(super) went_off: AtomicU64,
    pub(super) plans: AtomicU64,
    pub(super) plan_micros: AtomicU64,
    pub(super) last_plan_micros: AtomicU64,
    pub(super) demand_failures: AtomicU64,
    pub(super) tick_failures: AtomicU64,
}

impl Counts {
    pub(super) fn planned(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.plans.fetch_add(1, Relaxed);
        self.plan_micros.fetch_add(micros, Relaxed);
        self.last_plan_micros.store(micros, Relaxed);
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Done => &self.done,
            Outcome::NeverCame => &self.never_came,
            Outcome::WouldNotStop => &self.would_not_stop,
            Outcome::CarriesWork => &self.carries_work,
            Outcome::WouldNotSuspend => &self.would_not_suspend,
            Outcome::WentOff => &self.went_off,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// A driver whose actions are counted.
pub(super) struct Counted {
    pub(super) driver: Arc<dyn PowerDriver>,
    pub(super) counts: Arc<Counts>,
}

#[async_trait::async_trait]
impl PowerDriver for Counted {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn suspends(&self) -> bool {
        self.driver.suspends()
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        let counter = match switch {
            Switch::On => &self.counts.on,
            Switch::Off => &self.counts.off,
            Switch::ForceOff => &self.counts.force_off,
            Switch::Suspend => &self.counts.suspend,
        };
        counter.fetch_add(1, Relaxed);
        let result = self.driver.switch(switch).await;
        if result.is_err() {
            self.counts.failures.fetch_add(1, Relaxed);
        }
        result
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        self.driver.read().await
    }
}

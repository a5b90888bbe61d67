//! Time, as leases need it. It comes in from outside so that tests need not wait.

use futures::future::BoxFuture;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// A clock that only goes forward, counted from some moment of its own.
pub trait Clock: Send + Sync + 'static {
    /// The time since that moment.
    fn now(&self) -> Duration;

    /// Returns once [`Clock::now`] is at least `deadline`.
    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        // A deadline too far away to be a moment is a lease that practically never ends.
        let day = Duration::from_secs(86_400);
        let wait = deadline.saturating_sub(self.now()).min(day);
        Box::pin(tokio::time::sleep(wait))
    }
}

/// A clock for tests: it stands still until it is told to advance.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<watch::Sender<Duration>>);

impl Default for ManualClock {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Duration::ZERO)))
    }
}

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.borrow()
    }

    fn sleep_until(&self, deadline: Duration) -> BoxFuture<'static, ()> {
        let mut receiver = self.0.subscribe();
        Box::pin(async move {
            if receiver.wait_for(|now| *now >= deadline).await.is_err() {
                // Nobody can advance the clock any more.
                std::future::pending::<()>().await;
            }
        })
    }
}

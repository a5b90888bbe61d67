//! The loop: it has the clock, and nothing else.

use super::fleet::{Fleet, TickError};
use crate::{
    moment::Moment,
    power::journal::{Journal, JournalError, LEASE, Leadership},
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two ticks.
const EVERY: Duration = Duration::from_secs(10);
/// Time between two looks at machines that wait for their turn to wake.
const PULSE: Duration = Duration::from_secs(1);
/// The right to act is renewed several times before it would end.
const RENEW: Duration = Duration::from_secs(LEASE.0 / 3);
/// Who stands by looks so often whether the other one is gone.
const STAND_BY: Duration = Duration::from_secs(2);

/// Looks after the fleet until `end`. `led` is told whenever this instance begins (true) or ceases
/// (false) to act.
pub async fn run(
    fleet: &mut Fleet,
    end: impl Future<Output = ()>,
    mut led: impl FnMut(&mut Fleet, bool),
) {
    let mut end = std::pin::pin!(end);
    let mut clock = Clock::default();
    loop {
        match fleet.try_lead(clock.now()).await {
            Ok(true) => {
                led(fleet, true);
                tracing::info!("this instance acts");
                let stopped = tokio::select! {
                    () = &mut end => true,
                    () = act(fleet, &mut clock) => false,
                };
                led(fleet, false);
                if stopped {
                    break;
                }
                tracing::warn!("another instance acts");
                fleet.step_down();
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot act"),
        }
        tokio::select! {
            () = &mut end => break,
            () = tokio::time::sleep(STAND_BY) => {}
        }
    }
    if let Err(error) = fleet.resign().await {
        tracing::warn!(%error, "the right to act was not given back, and ends by itself");
    }
}

/// Ticks until the right to act is lost.
async fn act(fleet: &mut Fleet, clock: &mut Clock) {
    let Some((journal, leadership)) = fleet.leadership() else {
        return;
    };
    let ticking = async {
        loop {
            let next = tokio::time::Instant::now() + EVERY;
            match fleet.tick(clock.now()).await {
                Ok(()) => {}
                Err(TickError::NotLeader) => return,
                Err(error) => {
                    fleet.shared().count_failure();
                    tracing::error!(%error, "a tick did not end");
                }
            }
            while tokio::time::Instant::now() < next {
                let mut pause = std::pin::pin!(tokio::time::sleep(PULSE));
                fleet.drive(pause.as_mut()).await;
                pause.await;
                if let Err(error) = fleet.pulse(clock.now()).await {
                    tracing::warn!(%error, "machines that wait to wake were not gone on with");
                }
            }
        }
    };
    tokio::select! {
        () = ticking => {}
        () = renew(&journal, &leadership) => {}
    }
}

/// Keeps the right to act; returns when it is lost.
async fn renew(journal: &Journal, leadership: &Leadership) {
    loop {
        tokio::time::sleep(RENEW).await;
        match journal.renew(leadership).await {
            Ok(()) => {}
            Err(JournalError::NotLeader) => return,
            Err(JournalError::Store(error)) => {
                tracing::warn!(%error, "the right to act was not renewed");
            }
        }
    }
}

/// The system's time, which for us never goes back.
#[derive(Default)]
struct Clock(Moment);

impl Clock {
    fn now(&mut self) -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = Moment(since.map_or(0, |since| since.as_secs()));
        self.0 = self.0.max(now);
        self.0
    }
}

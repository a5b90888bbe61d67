//! What the agent does now and then: read the machine's state, sample sandboxes, forget the past.

use crate::parts::Parts;
use jiff::Timestamp;
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::time::MissedTickBehavior;

/// How often sandboxes are looked at.
const TICK: Duration = Duration::from_secs(1);

/// How often the past is forgotten, in ticks.
const PRUNE_TICKS: u32 = 60;

/// Runs until the agent's background work must end.
pub(crate) async fn run(parts: Arc<Parts>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0u32;
    loop {
        tokio::select! {
            () = parts.background.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let prune = count.is_multiple_of(PRUNE_TICKS);
        count = count.wrapping_add(1);
        let work = parts.clone();
        let done = tokio::task::spawn_blocking(move || {
            work.facts.refresh();
            sample(&work);
            make_room(&work);
            if prune {
                forget(&work);
            }
        });
        if let Err(error) = done.await {
            tracing::error!("background work failed: {error}");
        }
    }
}

fn sample(parts: &Parts) {
    for sandbox in parts.registry.all_live() {
        let Some(machine) = sandbox.machine() else {
            continue;
        };
        let started_at = sandbox.view().started_at;
        let lock = || {
            sandbox
                .series
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if !lock().is_due(started_at, Timestamp::now()) {
            continue;
        }
        match machine.usage() {
            Ok(usage) => lock().push(started_at, Timestamp::now(), &usage),
            // It may be ending at this moment.
            Err(error) => {
                tracing::debug!(sandbox = %sandbox.id(), "cannot sample: {}", crate::problems::chain(&error));
            }
        }
    }
}

/// Makes room on a disk that is nearly full, by removing what can be made again.
fn make_room(parts: &Parts) {
    let (free, reserve) = (
        parts.facts.disk_free().0,
        parts.admission.limits().disk_reserve.0,
    );
    let watermark = reserve.saturating_mul(2);
    if free >= watermark {
        return;
    }
    for (key, size) in parts.states.evict(watermark - free) {
        tracing::info!(
            "the disk is nearly full: removed the {key}, {}; it is made again when it is needed",
            api::Bytes(size)
        );
    }
}

fn forget(parts: &Parts) {
    parts.registry.prune(Timestamp::now());
    if let Err(error) = parts.logs.prune(|id| parts.registry.find(id).is_some()) {
        tracing::warn!("cannot remove old logs: {error}");
    }
}

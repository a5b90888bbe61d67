//! What becomes of the sandboxes of an earlier run.
//!
//! What ran is found again, or reported to have ended; what was half made is reported so and taken
//! down; and whatever else an earlier run left on the machine is removed.

use crate::{
    journal::{Ledger, Live, Record, Rest},
    parts::Parts,
    problems,
    sandbox::{Adopted, AdoptedAs, Sandbox, Stage, spawn_adopted},
    states::StateKey,
};
use api::{
    Problem,
    node::{EndReason, OnTimeout},
};
use driver::{DriverError, Machine};
use futures::StreamExt;
use jiff::Timestamp;
use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

/// How many sandboxes are looked for at once.
const CONCURRENCY: usize = 32;

/// Goes through all that the journal knows. Returns when the machine holds nothing but what runs.
pub(crate) async fn adopt(parts: &Arc<Parts>, mut ledger: Ledger) -> Result<(), Problem> {
    let live = std::mem::take(&mut ledger.live);
    let half_made = ledger.reserved.len();
    let outcomes: Vec<_> = futures::stream::iter(live.into_values())
        .map(|live| async move {
            let outcome = decide(parts, &live).await;
            (live, outcome)
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    let mut found = Vec::new();
    let mut gone = Vec::new();
    for (live, outcome) in outcomes {
        match outcome {
            Ok(adopted) => found.push((live, adopted)),
            Err(reason) => gone.push((live, reason)),
        }
    }
    let keep: Vec<u32> = found
        .iter()
        .filter(|(_, adopted)| matches!(adopted.found, AdoptedAs::Machine { .. }))
        .map(|(live, _)| live.slot)
        .collect();

    let swept = parts
        .driver
        .sweep(&keep)
        .await
        .map_err(|error| problems::from_driver(&error))?;
    let swept_slots = parts.network.sweep(&keep).await?;
    for what in swept.iter().chain(&swept_slots) {
        tracing::info!("removed what an earlier run left: {what}");
    }

    // Only now is nothing left of those that are gone.
    for slot in &ledger.reserved {
        write(parts, Record::Released { slot: *slot }).await?;
    }
    for (live, reason) in gone {
        let (id, at) = (live.request.id.clone(), Timestamp::now());
        tracing::info!(sandbox = %id, ?reason, "ended while Atoll was not running");
        let status = Arc::new(live.past(reason.clone(), at));
        ledger.past.insert(id.clone(), status.clone());
        write(
            parts,
            Record::Ended {
                id,
                reason,
                at,
                status: Some(status),
            },
        )
        .await?;
    }
    if !found.is_empty() || half_made > 0 {
        tracing::info!(
            "{} sandboxes go on from an earlier run; {half_made} prepared ones were taken down",
            found.len()
        );
    }
    for (live, adopted) in &found {
        settle(parts, live, &adopted.found).await?;
    }
    keep_states(parts, &found).await;
    if let Some(members) = &parts.members {
        let keep: Vec<_> = found
            .iter()
            .map(|(live, _)| live.request.id.clone())
            .collect();
        members.sweep(&keep).await;
    }
    parts.registry.remember(ledger.past.into_values());
    for (live, adopted) in found {
        go_on(parts, &live, adopted);
    }
    Ok(())
}

/// Removes states of pauses and forks that nothing names any more, and pins what the others lie on.
async fn keep_states(parts: &Arc<Parts>, found: &[(Live, Adopted)]) {
    let paused: BTreeSet<&StateKey> = found
        .iter()
        .filter_map(|(_, adopted)| match &adopted.found {
            AdoptedAs::State { lease, .. } => Some(lease.key()),
            AdoptedAs::Machine { .. } => None,
        })
        .collect();
    parts.states.doom_but(|key| paused.contains(key));
    for (key, image) in parts.states.unpinned() {
        match parts.images.root(&image).await {
            Ok(root) => parts.states.pin(&key, root.pin),
            Err(problem) => tracing::warn!("the {key} lies on an image that is gone: {problem}"),
        }
    }
}

async fn write(parts: &Parts, record: Record) -> Result<(), Problem> {
    parts
        .journal
        .append(record)
        .await
        .map_err(|error| error.problem())
}

/// Whether a sandbox goes on and as what, or else why it has ended.
async fn decide(parts: &Arc<Parts>, live: &Live) -> Result<Adopted, EndReason> {
    if let (Stage::Stopping, Some(reason)) = (live.stage(), &live.stopping) {
        return Err(reason.clone());
    }
    let found = match &live.rest {
        Some(Rest {
            stage,
            state: Some(key),
            memory,
            at,
            ..
        }) => match (parts.states.lease(key), stage) {
            // Whole, so it is paused, whatever else was under way: what there may be of its machine
            // is swept.
            (Some(lease), _) => {
                let (memory, at) = (*memory, *at);
                AdoptedAs::State { lease, memory, at }
            }
            // Half made, so it runs on.
            (None, Stage::Pausing) => find_machine(parts, live, None).await?,
            (None, _) => {
                let text = "the state that it was paused in is gone from the disk";
                return Err(EndReason::Crashed(text.into()));
            }
        },
        Some(Rest {
            state: None,
            stage: Stage::Paused,
            at,
            ..
        }) => find_machine(parts, live, Some(*at)).await?,
        Some(_) => find_machine(parts, live, None).await?,
        None => {
            let ends = live.request.on_timeout == OnTimeout::Kill;
            if ends && live.machine.is_some() && live.deadline <= Timestamp::now() {
                // Its time was up while nobody looked. Nothing keeps its slot, so it is swept.
                return Err(EndReason::TimedOut);
            }
            find_machine(parts, live, None).await?
        }
    };
    // A root file system that is gone does not disturb those that have it open.
    let root = parts.images.root(&live.request.template.image).await;
    if let Err(problem) = &root {
        tracing::warn!(sandbox = %live.request.id, "its root file system cannot be pinned: {problem}");
    }
    Ok(Adopted {
        pin: root.ok().map(|root| root.pin),
        started_at: live.started_at,
        deadline: live.deadline,
        network: live.network.clone(),
        found,
    })
}

/// Takes over a sandbox's machine. `frozen_at` is since when it stands still in place; any other goes
/// on, even if the journal says that it ran: it stands still too while a snapshot or a fork is saved.
async fn find_machine(
    parts: &Arc<Parts>,
    live: &Live,
    frozen_at: Option<Timestamp>,
) -> Result<AdoptedAs, EndReason> {
    let id = &live.request.id;
    let Some(record) = &live.machine else {
        let text = "Atoll was stopped while the sandbox started";
        return Err(EndReason::FailedToStart(text.into()));
    };
    let machine: Arc<dyn Machine> = match parts.driver.adopt(record).await {
        Ok(Some(machine)) => Arc::from(machine),
        Ok(None) => {
            let text = "it ended while Atoll was not running";
            return Err(EndReason::Crashed(text.into()));
        }
        Err(error) => {
            let error = problems::chain(&error);
            tracing::error!(sandbox = %id, "cannot go on with it: {error}");
            return Err(EndReason::Crashed(format!(
                "Atoll was started again and lost it: {error}"
            )));
        }
    };
    let network = async {
        let slot = parts.network.adopt(live.slot, record.pid).await?;
        parts
            .network
            .set_internet(live.slot, live.network.internet)
            .await?;
        Ok::<_, Problem>(slot)
    };
    let slot = match network.await {
        Ok(slot) => slot,
        Err(problem) => {
            tracing::error!(sandbox = %id, "cannot take its network over: {problem}");
            let text = format!("Atoll was started again and lost its network: {problem}");
            return Err(EndReason::Crashed(text));
        }
    };
    if frozen_at.is_none() {
        match machine.thaw().await {
            // A driver that never freezes in place has nothing to thaw.
            Ok(()) | Err(DriverError::Unsupported { .. }) => {}
            Err(error) => {
                let error = problems::chain(&error);
                return Err(EndReason::Crashed(format!(
                    "Atoll was started again, and it cannot go on: {error}"
                )));
            }
        }
    }
    let lease = live.origin.as_ref();
    Ok(AdoptedAs::Machine {
        machine,
        slot,
        lease: lease.and_then(|key| parts.states.lease_adopted(key)),
        frozen_at,
    })
}

/// Writes down where a pause or a resume that was interrupted has ended.
async fn settle(parts: &Parts, live: &Live, found: &AdoptedAs) -> Result<(), Problem> {
    let id = live.request.id.clone();
    let Some(rest) = &live.rest else {
        return Ok(());
    };
    let record = match found {
        AdoptedAs::State { .. } if rest.stage != Stage::Paused => Record::Paused { id },
        AdoptedAs::Machine {
            machine,
            frozen_at: None,
            ..
        } => Record::Running {
            id,
            machine: machine.record(),
            started_at: live.started_at,
            deadline: live.deadline,
            origin: live.origin.clone(),
        },
        _ => return Ok(()),
    };
    write(parts, record).await
}

fn go_on(parts: &Arc<Parts>, live: &Live, adopted: Adopted) {
    let id = &live.request.id;
    let (sandbox, inbox) = Sandbox::new(
        live.request.clone(),
        live.control_token.clone(),
        live.started_at,
    );
    let reservation = parts.admission.reserve_adopted(&live.request.resources);
    let taken = parts
        .registry
        .insert_new(id, || Ok::<_, Infallible>(sandbox.clone()));
    if matches!(taken, Ok(None)) {
        spawn_adopted(parts, sandbox, inbox, reservation, adopted);
    }
}

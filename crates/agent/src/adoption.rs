//! What becomes of the sandboxes of an earlier run.
//!
//! What ran is found again, or reported to have ended; what was half made is reported so and taken
//! down; and whatever else an earlier run left on the machine is removed.

use crate::{
    journal::{Ledger, Live, Record},
    parts::Parts,
    problems,
    sandbox::{Adopted, Sandbox, Stage, spawn_adopted},
};
use api::{Problem, node::EndReason};
use driver::Machine;
use futures::StreamExt;
use jiff::Timestamp;
use std::{convert::Infallible, sync::Arc};

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
    let keep: Vec<u32> = found.iter().map(|(live, _)| live.slot).collect();

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
    parts.registry.remember(ledger.past.into_values());
    for (live, adopted) in found {
        go_on(parts, &live, adopted);
    }
    Ok(())
}

async fn write(parts: &Parts, record: Record) -> Result<(), Problem> {
    parts
        .journal
        .append(record)
        .await
        .map_err(|error| error.problem())
}

/// Whether a sandbox goes on, or else why it has ended.
async fn decide(parts: &Arc<Parts>, live: &Live) -> Result<Adopted, EndReason> {
    let id = &live.request.id;
    let record = match (live.stage(), &live.stopping, &live.machine) {
        (Stage::Stopping, Some(reason), _) => return Err(reason.clone()),
        (_, _, Some(record)) => record,
        _ => {
            let text = "Atoll was stopped while the sandbox started";
            return Err(EndReason::FailedToStart(text.into()));
        }
    };
    if live.deadline <= Timestamp::now() {
        // Its time was up while nobody looked. Nothing keeps its slot, so it is swept.
        return Err(EndReason::TimedOut);
    }
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
    // A root file system that is gone does not disturb those that have it open.
    let root = parts.images.root(&live.request.template.image).await;
    if let Err(problem) = &root {
        tracing::warn!(sandbox = %id, "its root file system cannot be pinned: {problem}");
    }
    Ok(Adopted {
        machine,
        slot,
        pin: root.ok().map(|root| root.pin),
        started_at: live.started_at,
        deadline: live.deadline,
        network: live.network.clone(),
    })
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

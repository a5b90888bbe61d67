//! Lets machines go on that the host's full disk has stopped.
//!
//! QEMU stops a machine whose write found no room, and keeps what was to be written. Told to go on,
//! it tries again: so nothing is lost, if only somebody tells it once there is room.

use super::{
    driver::PATIENCE,
    qmp::{Event, Qmp},
};
use serde_json::json;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches a machine until the way to it is closed.
pub(super) fn watch(qmp: &Arc<Qmp>, slot: u32) {
    let (events, qmp) = (qmp.events(), Arc::downgrade(qmp));
    tokio::spawn(follow(events, qmp, slot));
}

async fn follow(mut events: Receiver<Event>, qmp: Weak<Qmp>, slot: u32) {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop" => {
                tracing::warn!(
                    slot,
                    "a machine stands still, as there is no room on the disk"
                );
                try_again(&qmp, slot).await;
            }
            // It may be among those that were missed.
            Err(RecvError::Lagged(_)) => try_again(&qmp, slot).await,
            Ok(_) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells it to go on until it does, or stands still for another reason.
async fn try_again(qmp: &Weak<Qmp>, slot: u32) {
    let mut tried = false;
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(qmp) = qmp.upgrade() else {
            return;
        };
        let status = qmp.call("query-status", json!({}), PATIENCE).await;
        match status.as_ref().map(|status| status["status"].as_str()) {
            Ok(Some("io-error")) => {
                tried = true;
                if qmp.call("cont", json!({}), PATIENCE).await.is_err() {
                    return;
                }
            }
            Ok(_) => {
                if tried {
                    tracing::info!(
                        slot,
                        "a machine goes on, as there is room on the disk again"
                    );
                }
                return;
            }
            Err(_) => return,
        }
    }
}

//! Makes templates' states again that this host has outgrown.
//!
//! What a state's memory was booted from may be older than what this host boots now, because Atoll
//! or the kernel for guests was upgraded. Such a state is outdated: sandboxes start from it all the
//! same, while another is made. A state that this host cannot resume at all, as its processor or its
//! hypervisor is another, is made again before the first sandbox needs it; one that comes earlier
//! waits (see [`source::find`](crate::source::find)).
//!
//! Only the start of an agent changes what the host is, so all states are gone through then, one
//! after the other. What cannot be made is tried again later.

use crate::{parts::Parts, problems, templates};
use driver::SavedState;
use std::{sync::Arc, time::Duration};

/// After how long what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(3600);

/// Runs until the agent's background work must end.
pub(crate) async fn run(parts: Arc<Parts>) {
    if !parts.driver.capabilities().memory_snapshot {
        return;
    }
    loop {
        tokio::select! {
            () = parts.background.cancelled() => return,
            () = renew_all(&parts) => {}
        }
        tokio::select! {
            () = parts.background.cancelled() => return,
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn renew_all(parts: &Arc<Parts>) {
    for key in parts.states.templates() {
        // It may have gone since.
        let Some((state, about)) = parts.states.look(&key) else {
            continue;
        };
        let reasons = reasons(parts, &state);
        if reasons.is_empty() {
            continue;
        }
        tracing::info!("the {key} is made again: {}", reasons.join(", "));
        // A failure is logged where it happens, and leaves what was there.
        let _ = templates::make(parts, about.build, about.resources).await;
    }
}

/// Why a state should be made again: it cannot be resumed here, or is outdated.
pub(crate) fn reasons(parts: &Parts, state: &SavedState) -> Vec<String> {
    match parts.driver.check(state) {
        Ok(()) => parts.driver.outdated(state),
        Err(error) => vec![problems::chain(&error)],
    }
}

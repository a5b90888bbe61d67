//! Reaps: the one place that waits for children, so that nobody steals another's status.
//!
//! As the sandbox's first process the guest inherits every orphan; those are only let go.

use super::table::Table;
use rustix::process::{WaitOptions, WaitStatus, wait};
use std::{io, rc::Rc};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Starts to listen for children that end. To be called before the first one is started.
pub fn listen() -> io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps for ever.
pub async fn reap(mut children: Signal, table: Rc<Table>) {
    while children.recv().await.is_some() {
        collect(&table);
    }
}

/// Reaps all that have ended. One signal may stand for many children.
fn collect(table: &Table) {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Ok(pid) = u32::try_from(pid.as_raw_nonzero().get()) {
                    table.exited(pid, end_event(status));
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            // None has ended, or there is none.
            Ok(None) | Err(_) => return,
        }
    }
}

fn end_event(status: WaitStatus) -> api::envd::process::EndEvent {
    use api::envd::process::EndEvent;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => EndEvent::exited(code),
        (None, Some(signal)) => EndEvent::signaled(signal, libc::WCOREDUMP(status.as_raw())),
        (None, None) => EndEvent::exited(0),
    }
}

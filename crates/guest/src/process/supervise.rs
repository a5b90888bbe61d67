//! Watches over one process from its start to its end.

use super::{output::Process, table::Table};
use api::{envd::process::EndEvent, node::LogLevel};
use rustix::process::Signal;
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// A process may end while its descendants hold its output open. Output counts as drained when
/// nothing came for `QUIET`, and in any case `GRACE` after the end unless a client holds it back.
const QUIET: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_secs(1);

/// Waits for the process to end, and kills it if its deadline comes first; then hands out the end
/// when its output is drained.
pub async fn supervise(process: Rc<Process>, table: Rc<Table>, deadline: Option<Instant>) {
    let end = wait_for_exit(&process, deadline).await;
    drain(&process).await;
    let lost = process.transcript.borrow().lost();
    let pid = process.pid.to_string();
    let fields = [("pid", pid.clone()), ("status", end.status.clone())];
    process.finish(end);
    if lost > 0 {
        let message = format!("{lost} bytes of output were dropped because nobody listened");
        table
            .logs()
            .add(LogLevel::Warn, message, &[("pid", pid.clone())]);
    }
    table
        .logs()
        .add(LogLevel::Info, format!("process {pid} ended"), &fields);
    table.retire(&process);
}

async fn wait_for_exit(process: &Process, deadline: Option<Instant>) -> EndEvent {
    let mut deadline = deadline;
    loop {
        if let Some(end) = process.exit.borrow().clone() {
            return end;
        }
        match deadline {
            Some(moment) => tokio::select! {
                () = process.exited.notified() => {}
                () = tokio::time::sleep_until(moment.into()) => {
                    // Gone already is as good.
                    let _ = process.signal(Signal::KILL);
                    deadline = None;
                }
            },
            None => process.exited.notified().await,
        }
    }
}

async fn drain(process: &Process) {
    let exit = Instant::now();
    while process.readers.get() > 0 {
        let held_back = !process.transcript.borrow().has_room();
        if held_back {
            process.busy.set(Instant::now());
        }
        let since = process.busy.get().max(exit);
        if since.elapsed() >= QUIET || (exit.elapsed() >= GRACE && !held_back) {
            return;
        }
        let quiet = tokio::time::sleep_until((since + QUIET).into());
        tokio::select! {
            () = process.reader_done.notified() => {}
            () = quiet => {}
        }
    }
}

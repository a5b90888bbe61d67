//! Making little of what a snapshot would have to keep.
//!
//! What every sandbox needs first is kept: the pages of the shell that its commands are run by. So
//! the machines that share the snapshot share them too, and none has to read them from its disk. So
//! are the files that each will write its names to.

use crate::{
    accounts,
    http::{
        Guest,
        reply::{Failure, Reply, empty},
    },
    process::{
        service,
        spawn::{Streams, spawn},
    },
};
use api::envd::process::{ProcessConfig, StartRequest};
use http::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;

/// A shell that has not ended by then is left to itself.
const SHELL_PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// `POST /_atoll/settle[?keep-cache=1]`.
pub(super) async fn answer(guest: &Guest, query: &str) -> Result<Reply, Failure> {
    let keep_cache = query.split('&').any(|pair| pair == "keep-cache=1");
    let settled = tokio::task::spawn_blocking(move || settle(keep_cache)).await;
    match settled {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Failure::internal(format!("cannot settle: {error}"))),
        Err(error) => return Err(Failure::internal(format!("settling broke off: {error}"))),
    }
    if !keep_cache {
        run_shell(guest).await;
        rewrite_names(guest);
        // What was written must not wait in the memory that all the machines share.
        let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Runs a shell that does nothing, as the default user's commands are run, and waits for its end.
/// Where there is none, there is nothing to keep.
async fn run_shell(guest: &Guest) {
    let Some(user) = accounts::find_user(&guest.role().default_user) else {
        return;
    };
    let request = StartRequest {
        process: ProcessConfig {
            cmd: "/bin/bash".to_owned(),
            args: ["-l", "-c", "true"].map(str::to_owned).into(),
            ..ProcessConfig::default()
        },
        tag: None,
        stdin: Some(false),
        pty: None,
    };
    let Ok(program) = service::prepare(guest, &user, &request) else {
        return;
    };
    let running = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        let (ended, output) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let streams = Streams::Pipes {
            stdin: null.as_fd(),
            stdout: output.as_fd(),
            stderr: null.as_fd(),
        };
        spawn(&program, streams).map_err(|error| error.source)?;
        // Its end closes the last descriptor of the pipe; the guest's loop reaps it.
        drop(output);
        poll(
            &mut [PollFd::new(&ended, PollFlags::IN)],
            Some(&SHELL_PATIENCE),
        )?;
        Ok(())
    });
    // A root file system without a shell is no failure.
    let _ = running.await;
}

/// Writes the files of names once more as they are: the machines that start from here write their
/// own over them, and find in memory all that this needs of the file system.
fn rewrite_names(guest: &Guest) {
    let names = guest.machine.as_ref().map(|machine| &machine.names);
    if let Some(names) = names.and_then(|names| names.borrow().clone()) {
        // As before: a sandbox may have made them unusable.
        let _ = names.write(None);
    }
}

fn settle(keep_cache: bool) -> std::io::Result<()> {
    rustix::fs::sync();
    if keep_cache {
        return Ok(());
    }
    // SAFETY: gives free memory of the allocator back; it takes its own locks.
    unsafe { libc::malloc_trim(0) };
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    // Free pages side by side are free pages of the host, once it backs them by larger ones. Not
    // every kernel can.
    match std::fs::write("/proc/sys/vm/compact_memory", "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

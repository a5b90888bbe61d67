//! A process of this program's own that locks itself up: how it is started, told what to be, and
//! heard. What it does then is in [`super::confined`].

use super::{confined::Report, console::Complaints};
use crate::{
    DriverError,
    container::{
        packet::{self, Received},
        process,
    },
    doing,
};
use rustix::{
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
    thread::UnshareFlags,
};
use serde::Serialize;
use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// How long it may take to lock itself up.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that was started. Dropping it kills it, unless it was let go.
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) process: OwnedFd,
    /// How it ended, once it has.
    pub(crate) end: watch::Receiver<Option<String>>,
    /// What it writes to its standard error.
    pub(crate) complaints: Complaints,
    socket: AsyncFd<OwnedFd>,
    is_kept: bool,
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
        }
    }
}

impl Child {
    /// Starts `command` as the first of a pid namespace, with `variable` as all of its environment,
    /// and one end of a socket as its standard input.
    pub(crate) fn start(command: &[OsString], variable: &str) -> Result<Self, DriverError> {
        let (ours, theirs) = packet::pair().map_err(doing("make sockets"))?;
        rustix::io::ioctl_fionbio(&theirs, false).map_err(doing("make sockets"))?;
        let (errors, their_errors) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(doing("make a pipe"))?;
        let complaints = Complaints::collect(errors).map_err(doing("make a pipe"))?;
        let socket = process::watch(ours, Interest::READABLE).map_err(doing("listen to a jail"))?;
        let (pid, process) = spawn(command, variable, theirs, their_errors)?;
        let (sender, end) = watch::channel(None);
        // From here on it is killed if anything fails.
        let mut child = Self {
            pid,
            start_time: 0,
            process,
            end,
            complaints,
            socket,
            is_kept: false,
        };
        let watched = child.process.try_clone();
        reap(watched.map_err(doing("watch a process"))?, sender)?;
        child.start_time = process::start_time(pid).map_err(doing("read a process's start"))?;
        Ok(child)
    }

    /// Tells it what to be.
    pub(crate) fn tell(
        &self,
        what: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), DriverError> {
        packet::send(self.socket.get_ref(), what, descriptors).map_err(doing("describe a jail"))
    }

    /// Takes its report: how long its steps took, in nanoseconds, and what it sent with it.
    pub(crate) async fn hear(&self) -> Result<(Vec<(String, u64)>, Vec<OwnedFd>), DriverError> {
        let heard = self.socket.async_io(Interest::READABLE, |socket| {
            match packet::receive::<Report>(socket)? {
                Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            }
        });
        let heard = tokio::time::timeout(PATIENCE, heard)
            .await
            .map_err(|_| DriverError::Guest(format!("no jail within {PATIENCE:?}")))?
            .map_err(doing("listen to a jail"))?;
        match heard {
            Received::Packet(Report::Locked { phases }, descriptors) => Ok((phases, descriptors)),
            Received::Packet(Report::Failed { doing: what, error }, _) => {
                let error = io::Error::from_raw_os_error(error);
                Err(doing(format!("{what} for a machine"))(error))
            }
            Received::Nothing | Received::End => Err(DriverError::Guest(format!(
                "the jail ended early: {}",
                self.complaints.text()
            ))),
        }
    }

    /// Lets it outlive this value.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }
}

fn spawn(
    command: &[OsString],
    variable: &str,
    input: OwnedFd,
    errors: OwnedFd,
) -> Result<(u32, OwnedFd), DriverError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(DriverError::Guest(
            "there is no command for the jail".into(),
        ));
    };
    let start = || -> io::Result<(u32, OwnedFd)> {
        // SAFETY: this thread alone, which ends with this; its children get another pid namespace.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env(variable, "1")
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors))
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no pid"))?;
        Ok((child.id(), pidfd_open(pid, PidfdFlags::empty())?))
    };
    std::thread::scope(|scope| {
        scope
            .spawn(start)
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
    })
    .map_err(doing("start a jail"))
}

/// Waits for the end of a child, so that it does not stay behind as a zombie, and keeps how it
/// ended.
fn reap(process: OwnedFd, end: watch::Sender<Option<String>>) -> Result<(), DriverError> {
    let process = process::watch(process, Interest::READABLE).map_err(doing("watch a process"))?;
    tokio::spawn(async move {
        let _ = process.readable().await;
        let ended = waitid(
            WaitId::PidFd(process.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        let text = match ended {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("its machine ended with code {code}"),
                (_, Some(signal)) => format!("its machine was killed by signal {signal}"),
                _ => "its machine ended".into(),
            },
            _ => "its machine ended".into(),
        };
        end.send_replace(Some(text));
    });
    Ok(())
}

//! What a machine consists of on this host, prepared or running.

use super::{
    console::{Complaints, Console},
    driver::{Inner, blocking},
    guest::Guest,
    launch::Launched,
    qmp::Qmp,
};
use crate::{
    DriverError,
    cgroup::Group,
    container::{process, remove_group},
    doing,
};
use rustix::process::{Signal, pidfd_send_signal};
use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// How long an end may take before it is an error.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The process, sockets, groups and files of one machine.
pub(super) struct Hold {
    pub(super) inner: Arc<Inner>,
    pub(super) slot: u32,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) process: AsyncFd<OwnedFd>,
    pub(super) group: Group,
    pub(super) directory: PathBuf,
    pub(super) qmp: Qmp,
    pub(super) guest: Guest,
    console: Option<Console>,
    complaints: Complaints,
    /// How it ended; none for an adopted one, whose parent this program is not.
    end: Option<watch::Receiver<Option<String>>>,
    /// True once nothing is left.
    gone: tokio::sync::Mutex<bool>,
}

impl Hold {
    /// Of a machine that was just started.
    pub(super) fn of_launched(
        inner: Arc<Inner>,
        slot: u32,
        launched: Launched,
        group: Group,
        guest: Guest,
    ) -> Result<Self, DriverError> {
        let directory = inner.directory_of(slot);
        Ok(Self {
            inner,
            slot,
            pid: launched.pid,
            start_time: launched.start_time,
            process: process::watch(launched.process, Interest::READABLE)
                .map_err(doing("watch a process"))?,
            group,
            directory,
            qmp: launched.qmp,
            guest,
            console: Some(launched.console),
            complaints: launched.complaints,
            end: Some(launched.end),
            gone: tokio::sync::Mutex::new(false),
        })
    }

    /// Of a machine that an earlier run of this program started.
    pub(super) fn of_adopted(
        inner: Arc<Inner>,
        slot: u32,
        (pid, start_time): (u32, u64),
        process: OwnedFd,
        qmp: Qmp,
        console: Option<Console>,
    ) -> Result<Self, DriverError> {
        Ok(Self {
            directory: inner.directory_of(slot),
            group: Group::of(&inner.hierarchies, &inner.options.instance, slot),
            inner,
            slot,
            pid,
            start_time,
            process: process::watch(process, Interest::READABLE)
                .map_err(doing("watch a process"))?,
            qmp,
            guest: Guest::of_process(pid)?,
            console,
            complaints: Complaints::default(),
            end: None,
            gone: tokio::sync::Mutex::new(false),
        })
    }

    /// Whether its process lives.
    pub(super) fn is_alive(&self) -> bool {
        !process::has_ended(self.process.get_ref())
    }

    /// Waits until its guest waits.
    pub(super) async fn wait_for_guest(&self, patience: Duration) -> Result<(), DriverError> {
        let Some(console) = &self.console else {
            return Err(DriverError::Guest("its console is not there".into()));
        };
        match tokio::time::timeout(patience, console.wait_for_guest()).await {
            Ok(said) => said,
            Err(_) => Err(DriverError::Guest(format!(
                "it did not wait within {patience:?}; it last said: {}",
                console.last_lines()
            ))),
        }
    }

    /// Waits for the end of its process, and tells what is known of it.
    pub(super) async fn wait(&self) -> String {
        if let Err(error) = self.process.readable().await {
            return format!("it cannot be watched: {error}");
        }
        let mut text = match self.end.clone() {
            Some(mut end) => {
                let told = end.wait_for(Option::is_some).await;
                told.ok().and_then(|told| told.clone())
            }
            None => None,
        }
        .unwrap_or_else(|| "its machine ended".into());
        let complaints = self.complaints.text();
        if !complaints.is_empty() {
            text = format!("{text}: {complaints}");
        }
        text
    }

    /// Ends it, and removes what it had. May be called repeatedly.
    pub(super) async fn end(&self) -> Result<(), DriverError> {
        let mut gone = self.gone.lock().await;
        if *gone {
            return Ok(());
        }
        let _ = pidfd_send_signal(self.process.get_ref(), Signal::KILL);
        match tokio::time::timeout(END_PATIENCE, self.process.readable()).await {
            Ok(ready) => drop(ready.map_err(doing("wait for a process"))?),
            Err(_) => {
                return Err(doing(format!("end process {}", self.pid))(
                    std::io::Error::from(std::io::ErrorKind::TimedOut),
                ));
            }
        }
        let (inner, group, slot) = (Arc::clone(&self.inner), self.group.clone(), self.slot);
        blocking(move || {
            remove_group(&group)
                .or_else(|_| group.kill_all().and_then(|()| remove_group(&group)))
                .map_err(doing(format!("remove the control group of slot {slot}")))?;
            inner.remove_directory(slot).map(drop)
        })
        .await?;
        self.inner.let_go(self.slot);
        *gone = true;
        Ok(())
    }

    /// The same, for whoever cannot wait.
    pub(super) fn end_in_background(self) {
        let _ = pidfd_send_signal(self.process.get_ref(), Signal::KILL);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = Arc::clone(&self.inner);
            inner.begin_clearing();
            runtime.spawn(async move {
                if let Err(error) = self.end().await {
                    tracing::warn!(%error, "a machine is not gone");
                }
                inner.end_clearing();
            });
        }
        // Without a runtime the program is ending; the next start sweeps what is left.
    }
}

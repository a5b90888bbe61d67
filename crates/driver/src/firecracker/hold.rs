//! What a machine consists of on this host, prepared or running.

use super::{
    client::Client,
    driver::{Inner, blocking},
    exit,
    jail::Jail,
    launch::Launched,
};
use crate::{
    DriverError,
    cgroup::Group,
    container::{process, remove_group},
    doing,
    qemu::{
        console::{Complaints, Console},
        guest::Guest,
    },
};
use rustix::process::{Signal, pidfd_send_signal};
use std::{future::Future, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::io::{Interest, unix::AsyncFd};

/// How long an end may take before it is an error.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The process, socket, groups and files of one machine.
pub(super) struct Hold {
    pub(super) inner: Arc<Inner>,
    pub(super) slot: u32,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) process: AsyncFd<OwnedFd>,
    pub(super) group: Group,
    pub(super) jail: Jail,
    pub(super) client: Client,
    pub(super) guest: Guest,
    console: Option<Console>,
    complaints: Complaints,
    /// True once nothing is left.
    gone: tokio::sync::Mutex<bool>,
}

impl Hold {
    /// Of a machine that was just started.
    pub(super) fn of_launched(
        inner: Arc<Inner>,
        slot: u32,
        launched: Launched,
        (group, jail): (Group, Jail),
        guest: Guest,
    ) -> Self {
        Self {
            inner,
            slot,
            pid: launched.pid,
            start_time: launched.start_time,
            process: launched.process,
            group,
            jail,
            client: launched.client,
            guest,
            console: Some(launched.console),
            complaints: launched.complaints,
            gone: tokio::sync::Mutex::new(false),
        }
    }

    /// Of a machine that an earlier run of this program started. Its console has nobody who reads
    /// it any more, and Firecracker throws away what is written there.
    pub(super) fn of_adopted(
        inner: Arc<Inner>,
        slot: u32,
        (pid, start_time): (u32, u64),
        process: OwnedFd,
    ) -> Result<Self, DriverError> {
        let jail = inner.jail_of(slot);
        Ok(Self {
            group: Group::of(&inner.hierarchies, &inner.options.instance, slot),
            client: Client::new(jail.root()),
            jail,
            inner,
            slot,
            pid,
            start_time,
            process: process::watch(process, Interest::READABLE)
                .map_err(doing("watch a process"))?,
            guest: Guest::of_process(pid)?,
            console: None,
            complaints: Complaints::default(),
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
        match tokio::time::timeout(patience, self.unless_ended(console.wait_for_guest())).await {
            Ok(said) => said,
            Err(_) => Err(DriverError::Guest(format!(
                "it did not wait within {patience:?}; it last said: {}",
                console.last_lines()
            ))),
        }
    }

    /// Does something, for as long as its process lives.
    pub(super) async fn unless_ended<T>(
        &self,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        tokio::select! {
            biased;
            done = work => done,
            _ = self.process.readable() => Err(DriverError::Guest(self.wait().await)),
        }
    }

    /// Waits for the end of its process, and tells what is known of it.
    pub(super) async fn wait(&self) -> String {
        if let Err(error) = self.process.readable().await {
            return format!("it cannot be watched: {error}");
        }
        let text = exit::describe(self.process.get_ref());
        match self.complaints.text() {
            complaints if complaints.is_empty() => text,
            complaints => format!("{text}: {complaints}"),
        }
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
        let (group, jail, slot) = (self.group.clone(), self.jail.clone(), self.slot);
        blocking(move || {
            remove_group(&group)
                .or_else(|_| group.kill_all().and_then(|()| remove_group(&group)))
                .map_err(doing(format!("remove the control group of slot {slot}")))?;
            jail.remove().map(drop)
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

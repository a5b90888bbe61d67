//! What a machine consists of on this host, prepared or running, whatever its hypervisor.

use super::{
    Host,
    console::{Complaints, Console},
    exit,
    guest::Guest,
};
use crate::{
    DriverError, MachineRecord, NetworkSlot,
    blocking::blocking,
    cgroup::Group,
    container::{process, remove_group},
    directory, doing,
};
use rustix::process::{Signal, pidfd_send_signal};
use std::{future::Future, io, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// How long an end may take before it is an error.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How long an error may be told later, to tell whether its cause is that a process has ended.
const MOMENT: Duration = Duration::from_millis(100);

/// A hypervisor's process that was just started.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) descriptor: AsyncFd<OwnedFd>,
    pub(crate) console: Console,
    pub(crate) complaints: Complaints,
    /// How it ended, once it has; none if this program is not its parent.
    pub(crate) end: Option<watch::Receiver<Option<String>>>,
}

/// The process, group and files of one machine, and the way to its guest.
pub(crate) struct Held {
    pub(crate) slot: u32,
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) process: AsyncFd<OwnedFd>,
    pub(crate) group: Group,
    pub(crate) directory: PathBuf,
    pub(crate) guest: Guest,
    host: Arc<Host>,
    console: Option<Console>,
    complaints: Complaints,
    end: Option<watch::Receiver<Option<String>>>,
    /// True once nothing is left.
    gone: tokio::sync::Mutex<bool>,
}

impl Held {
    /// A machine that was just started.
    pub(crate) fn of_launched(
        host: Arc<Host>,
        slot: &NetworkSlot,
        process: Process,
        group: Group,
        directory: PathBuf,
    ) -> Result<Self, DriverError> {
        let network = slot.namespace.try_clone();
        let guest = Guest::new(network.map_err(doing("keep a network"))?);
        guest.provide().map_err(doing("enter a network"))?;
        Ok(Self {
            slot: slot.number,
            pid: process.pid,
            start_time: process.start_time,
            process: process.descriptor,
            group,
            directory,
            guest,
            host,
            console: Some(process.console),
            complaints: process.complaints,
            end: process.end,
            gone: tokio::sync::Mutex::new(false),
        })
    }

    /// A machine that an earlier run of this program started.
    pub(crate) fn of_adopted(
        host: Arc<Host>,
        record: &MachineRecord,
        process: OwnedFd,
        directory: PathBuf,
        console: Option<Console>,
    ) -> Result<Self, DriverError> {
        Ok(Self {
            slot: record.slot,
            pid: record.pid,
            start_time: record.start_time,
            process: process::watch(process, Interest::READABLE)
                .map_err(doing("watch a process"))?,
            group: host.group_of(record.slot),
            directory,
            guest: Guest::of_process(record.pid)?,
            host,
            console,
            complaints: Complaints::default(),
            end: None,
            gone: tokio::sync::Mutex::new(false),
        })
    }

    /// What to remember of it.
    pub(super) fn record(&self) -> MachineRecord {
        MachineRecord {
            slot: self.slot,
            pid: self.pid,
            start_time: self.start_time,
        }
    }

    /// Whether its process lives.
    pub(crate) fn is_alive(&self) -> bool {
        !process::has_ended(self.process.get_ref())
    }

    /// Waits until its guest waits.
    pub(crate) async fn wait_for_guest(&self, patience: Duration) -> Result<(), DriverError> {
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

    /// Does something, for as long as its process lives. If that ends meanwhile, how it ended is the
    /// error.
    pub(crate) async fn unless_ended<T>(
        &self,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let done = tokio::select! {
            biased;
            done = work => done,
            _ = self.process.readable() => Err(DriverError::Guest(self.wait().await)),
        };
        // Its sockets are closed a moment before it has ended.
        if let Err(DriverError::System { doing, source }) = &done
            && let Ok(ended) = tokio::time::timeout(MOMENT, self.wait()).await
        {
            return Err(DriverError::Guest(format!("{ended} ({doing}: {source})")));
        }
        done
    }

    /// Waits for the end of its process, and tells what is known of it.
    pub(crate) async fn wait(&self) -> String {
        if let Err(error) = self.process.readable().await {
            return format!("it cannot be watched: {error}");
        }
        let told = match self.end.clone() {
            Some(mut end) => {
                let told = end.wait_for(Option::is_some).await;
                told.ok().and_then(|told| told.clone())
            }
            None => None,
        };
        let text = told.unwrap_or_else(|| exit::describe(self.process.get_ref()));
        match self.complaints.text() {
            complaints if complaints.is_empty() => text,
            complaints => format!("{text}: {complaints}"),
        }
    }

    /// Ends it, and removes what it had. May be called repeatedly.
    pub(crate) async fn end(&self) -> Result<(), DriverError> {
        let mut gone = self.gone.lock().await;
        if *gone {
            return Ok(());
        }
        self.kill();
        match tokio::time::timeout(END_PATIENCE, self.process.readable()).await {
            Ok(ready) => drop(ready.map_err(doing("wait for a process"))?),
            Err(_) => {
                return Err(doing(format!("end process {}", self.pid))(io::Error::from(
                    io::ErrorKind::TimedOut,
                )));
            }
        }
        let (group, slot, directory) = (self.group.clone(), self.slot, self.directory.clone());
        blocking(move || {
            remove_group(&group)
                .or_else(|_| group.kill_all().and_then(|()| remove_group(&group)))
                .map_err(doing(format!("remove the control group of slot {slot}")))?;
            directory::remove(&directory).map(drop)
        })
        .await?;
        self.host.let_go(self.slot);
        *gone = true;
        Ok(())
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(self.process.get_ref(), Signal::KILL);
    }

    /// Ends a machine, for whoever cannot wait.
    pub(super) fn end_in_background(
        hold: impl std::ops::Deref<Target = Self> + Send + Sync + 'static,
    ) {
        hold.kill();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let host = Arc::clone(&hold.host);
            host.begin_clearing();
            runtime.spawn(async move {
                if let Err(error) = hold.end().await {
                    tracing::warn!(%error, "a machine is not gone");
                }
                host.end_clearing();
            });
        }
        // Without a runtime the program is ending; the next start sweeps what is left.
    }
}

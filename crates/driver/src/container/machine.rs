//! A cell, and a running sandbox in one.

use super::{
    connection::Connection,
    driver::{Inner, remove_group},
    protocol::{Answer, Request, Status},
    save,
};
use crate::{
    DriverError, Exit, Machine, MachineRecord, Phases, SaveOptions, SavedState, Usage,
    blocking::blocking, cgroup::Group, doing, layer, layer::Layer, phases::Stopwatch,
};
use rustix::process::{Signal, pidfd_send_signal};
use std::{
    fs,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OnceCell, OwnedMutexGuard},
};

/// How long an end may take before it is an error.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How long the keeper may take to tell how a process ended that is known to have ended.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// The processes, groups and files of one sandbox, prepared or running.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) inner: Arc<Inner>,
    pub(super) slot: u32,
    pub(super) pid: u32,
    start_time: u64,
    pub(super) process: AsyncFd<OwnedFd>,
    pub(super) group: Group,
    pub(super) connection: Option<Arc<Connection>>,
    /// None for an adopted sandbox: its mounts are its own.
    pub(super) layer: Mutex<Option<Layer>>,
    /// True once nothing is left. Held by whoever stops, saves or ends it.
    ended: Arc<tokio::sync::Mutex<bool>>,
}

impl Cell {
    pub(super) fn new(
        inner: Arc<Inner>,
        slot: u32,
        (pid, start_time): (u32, u64),
        process: OwnedFd,
        connection: Option<Arc<Connection>>,
    ) -> Result<Self, DriverError> {
        let group = Group::of(&inner.hierarchies, &inner.options.instance, slot);
        let process =
            super::process::watch(process, Interest::READABLE).map_err(doing("watch a process"))?;
        Ok(Self {
            inner,
            slot,
            pid,
            start_time,
            process,
            group,
            connection,
            layer: Mutex::default(),
            ended: Arc::default(),
        })
    }

    /// Waits until nobody else stops, saves or ends it; an error if nothing is left of it.
    pub(super) async fn alone(&self) -> Result<OwnedMutexGuard<bool>, DriverError> {
        let alone = Arc::clone(&self.ended).lock_owned().await;
        if *alone {
            return Err(DriverError::Guest("the sandbox has ended".into()));
        }
        Ok(alone)
    }

    /// Ends all processes, and removes what they had. May be called repeatedly.
    pub(super) async fn end(&self) -> Result<(), DriverError> {
        let mut ended = self.ended.lock().await;
        if *ended {
            return Ok(());
        }
        if self.inner.layers.is_shared(self.slot) {
            let (inner, slot) = (Arc::clone(&self.inner), self.slot);
            blocking(move || inner.shut_shared(slot)).await?;
        }
        // The first process of a pid namespace takes all others with it, and is the last to go.
        let _ = pidfd_send_signal(self.process.get_ref(), Signal::KILL);
        self.group.release_killed();
        if let Some(connection) = self.connection.as_ref().filter(|keeper| keeper.is_alive()) {
            let release = Request::Release { pid: self.pid };
            // If the keeper dies meanwhile, the process is seen below.
            if let Ok((
                Answer::Released {
                    status: Some(status),
                },
                _,
            )) = connection.ask(release, &[], END_PATIENCE).await
            {
                connection.remember(self.pid, status);
            }
        }
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
            inner.layers.forget(slot).map(drop)
        })
        .await?;
        // What remains is the loop device: nobody waits for it but shutting down.
        let layer = self
            .layer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(layer) = layer {
            self.inner.clear_away(move || layer.release());
        }
        self.inner.let_go(self.slot);
        *ended = true;
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
                    tracing::warn!(%error, "a sandbox is not gone");
                }
                inner.end_clearing();
            });
        }
        // Without a runtime the program is ending; the keeper ends the cell, and the next start
        // sweeps its group and file.
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.forget(self.pid);
        }
    }
}

/// A running sandbox.
pub(super) struct ContainerMachine {
    cell: Cell,
    phases: Phases,
    exit: OnceCell<Exit>,
}

impl ContainerMachine {
    pub(super) fn new(cell: Cell, mut phases: Stopwatch) -> Self {
        Self {
            cell,
            phases: Phases::from_nanoseconds(phases.take()),
            exit: OnceCell::new(),
        }
    }

    /// How the first process ended, as far as anybody knows.
    async fn find_exit(&self) -> Exit {
        let cell = &self.cell;
        if let Err(error) = cell.process.readable().await {
            return Exit::Ended(format!("it cannot be watched: {error}"));
        }
        let status = match &cell.connection {
            Some(connection) => connection.end_of(cell.pid, STATUS_PATIENCE).await,
            None => None,
        };
        let killed = matches!(status, None | Some(Status::Signal(libc::SIGKILL)));
        if killed && cell.group.memory_kills() > 0 {
            return Exit::OutOfMemory;
        }
        Exit::Ended(match status {
            Some(Status::Code(code)) => format!("its first process ended with code {code}"),
            Some(Status::Signal(signal)) => {
                format!("its first process was killed by signal {signal}")
            }
            None => "its first process ended".into(),
        })
    }
}

#[async_trait::async_trait]
impl Machine for ContainerMachine {
    fn record(&self) -> MachineRecord {
        let Cell {
            slot,
            pid,
            start_time,
            ..
        } = self.cell;
        MachineRecord {
            slot,
            pid,
            start_time,
        }
    }

    fn phases(&self) -> Phases {
        self.phases.clone()
    }

    async fn wait(&self) -> Exit {
        self.exit.get_or_init(|| self.find_exit()).await.clone()
    }

    fn usage(&self) -> Result<Usage, DriverError> {
        let cell = &self.cell;
        let mut usage = cell
            .group
            .usage()
            .map_err(doing(format!("read what slot {} uses", cell.slot)))?;
        let layer = cell.layer.lock().unwrap_or_else(PoisonError::into_inner);
        usage.disk = match &*layer {
            Some(layer) => layer.usage(),
            // An overlay answers for its upper layer. The path is of the kernel's making.
            None => fs::File::open(format!("/proc/{}/root", cell.pid)).and_then(layer::usage_of),
        }
        .map_err(doing(format!("read what slot {} holds", cell.slot)))?;
        Ok(usage)
    }

    async fn freeze(&self) -> Result<(), DriverError> {
        let alone = self.cell.alone().await?;
        let (group, slot) = (self.cell.group.clone(), self.cell.slot);
        blocking(move || {
            let _alone = alone;
            save::freeze(&group, slot)
        })
        .await
    }

    async fn thaw(&self) -> Result<(), DriverError> {
        let _alone = self.cell.alone().await?;
        let Cell { group, slot, .. } = &self.cell;
        group
            .thaw()
            .map_err(doing(format!("let the processes of slot {slot} go on")))
    }

    async fn save(
        &self,
        directory: &Path,
        options: SaveOptions,
    ) -> Result<SavedState, DriverError> {
        save::save(&self.cell, directory, options).await
    }

    async fn destroy(&self) -> Result<(), DriverError> {
        // The reason can only be read while the group is there.
        if super::process::has_ended(self.cell.process.get_ref()) {
            self.wait().await;
        }
        self.cell.end().await
    }
}

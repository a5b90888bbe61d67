//! A machine that is somebody's.

use super::{
    hold::Hold,
    messages::{Change, InstanceInfo},
    save,
};
use crate::{
    DriverError, Exit, Machine, MachineRecord, Phases, SaveOptions, SavedState, Usage, doing,
    phases::Stopwatch, qemu::notes::Notes,
};
use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};
use tokio::sync::OnceCell;

/// How long Firecracker may take to stop or to go on.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A running machine.
pub(super) struct FirecrackerMachine {
    pub(super) hold: Hold,
    phases: Phases,
    exit: OnceCell<Exit>,
    /// Held while the machine is stopped, saved or let go, so that those come one after another.
    pub(super) notes: tokio::sync::Mutex<Notes>,
}

impl FirecrackerMachine {
    pub(super) fn new(hold: Hold, notes: Notes, mut phases: Stopwatch) -> Self {
        Self {
            hold,
            phases: Phases::from_nanoseconds(phases.take()),
            exit: OnceCell::new(),
            notes: tokio::sync::Mutex::new(notes),
        }
    }

    async fn find_exit(&self) -> Exit {
        let text = self.hold.wait().await;
        match self.hold.group.memory_kills() {
            0 => Exit::Ended(text),
            _ => Exit::OutOfMemory,
        }
    }

    /// Whether it stands still.
    pub(super) async fn stands(&self) -> Result<bool, DriverError> {
        let about: InstanceInfo = self.hold.client.get("/", PATIENCE).await?;
        Ok(about.state == "Paused")
    }

    /// Stops it, which must run, or lets it go on, which must stand still.
    pub(super) async fn change(&self, change: Change) -> Result<(), DriverError> {
        let asked = self.hold.client.patch("/vm", &change, PATIENCE);
        self.hold.unless_ended(asked).await
    }
}

#[async_trait::async_trait]
impl Machine for FirecrackerMachine {
    fn record(&self) -> MachineRecord {
        MachineRecord {
            slot: self.hold.slot,
            pid: self.hold.pid,
            start_time: self.hold.start_time,
        }
    }

    fn phases(&self) -> Phases {
        self.phases.clone()
    }

    async fn wait(&self) -> Exit {
        self.exit.get_or_init(|| self.find_exit()).await.clone()
    }

    fn usage(&self) -> Result<Usage, DriverError> {
        let hold = &self.hold;
        let what = || format!("read what slot {} uses", hold.slot);
        let mut usage = hold.group.usage().map_err(doing(what()))?;
        usage.disk = fs::metadata(hold.jail.layer())
            .map(|about| about.blocks() * 512)
            .map_err(doing(what()))?;
        usage.processes = 1;
        Ok(usage)
    }

    async fn freeze(&self) -> Result<(), DriverError> {
        let _alone = self.notes.lock().await;
        match self.stands().await? {
            true => Ok(()),
            false => self.change(Change::PAUSE).await,
        }
    }

    async fn thaw(&self) -> Result<(), DriverError> {
        let _alone = self.notes.lock().await;
        match self.stands().await? {
            true => self.change(Change::RESUME).await,
            false => Ok(()),
        }
    }

    async fn save(
        &self,
        directory: &Path,
        options: SaveOptions,
    ) -> Result<SavedState, DriverError> {
        let mut notes = self.notes.lock().await;
        if directory.exists() {
            return Err(doing(format!("make {}", directory.display()))(
                io::Error::from(io::ErrorKind::AlreadyExists),
            ));
        }
        let stood = self.stands().await?;
        let saved = save::save(self, &mut notes, directory, options, stood).await;
        if saved.is_err() {
            let path = directory.to_owned();
            let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
            // Whichever step failed, it ends as it was.
            let stands = self.stands().await;
            if !stood
                && stands.unwrap_or(false)
                && let Err(error) = self.change(Change::RESUME).await
            {
                tracing::warn!(%error, "a machine does not go on");
            }
        }
        saved
    }

    async fn destroy(&self) -> Result<(), DriverError> {
        // The reason can only be read while the group is there.
        if !self.hold.is_alive() {
            self.wait().await;
        }
        self.hold.end().await
    }
}

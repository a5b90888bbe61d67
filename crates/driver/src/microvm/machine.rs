//! A machine that is somebody's.

use super::{Vmm, notes::Notes};
use crate::{
    DriverError, Exit, Machine, MachineRecord, Phases, SaveOptions, SavedState, Usage, doing,
    phases::Stopwatch,
};
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};
use tokio::sync::{Mutex, OnceCell};

/// A running machine.
pub(super) struct RunningMachine<V: Vmm> {
    hold: V::Hold,
    phases: Phases,
    exit: OnceCell<Exit>,
    /// Held while the machine is stopped, saved or let go, so that those come one after another.
    notes: Mutex<Notes>,
}

impl<V: Vmm> RunningMachine<V> {
    pub(super) fn new(hold: V::Hold, notes: Notes, mut phases: Stopwatch) -> Self {
        Self {
            hold,
            phases: Phases::from_nanoseconds(phases.take()),
            exit: OnceCell::new(),
            notes: Mutex::new(notes),
        }
    }

    async fn find_exit(&self) -> Exit {
        let text = self.hold.wait().await;
        match self.hold.group.memory_kills() {
            0 => Exit::Ended(text),
            _ => Exit::OutOfMemory,
        }
    }

    /// Brings it to where it was, whichever step of saving it failed.
    async fn put_back(&self, stood: bool) {
        let put_back = match (stood, V::stands(&self.hold).await) {
            (false, Ok(true)) => V::go_on(&self.hold).await,
            (true, Ok(false)) => V::stop(&self.hold).await,
            (_, Ok(_)) => Ok(()),
            (_, Err(error)) => Err(error),
        };
        if let Err(error) = put_back {
            tracing::warn!(%error, "a machine that was not saved is not as it was");
        }
    }
}

#[async_trait::async_trait]
impl<V: Vmm> Machine for RunningMachine<V> {
    fn record(&self) -> MachineRecord {
        self.hold.record()
    }

    fn phases(&self) -> Phases {
        self.phases.clone()
    }

    async fn wait(&self) -> Exit {
        self.exit.get_or_init(|| self.find_exit()).await.clone()
    }

    fn usage(&self) -> Result<Usage, DriverError> {
        let hold = &*self.hold;
        let what = || format!("read what slot {} uses", hold.slot);
        let mut usage = hold.group.usage().map_err(doing(what()))?;
        if let Some(memory) = V::own_memory(&self.hold).map_err(doing(what()))? {
            usage.memory = memory;
        }
        usage.disk = fs::metadata(hold.directory.join(V::DISK))
            .map(|about| about.blocks() * 512)
            .map_err(doing(what()))?;
        usage.processes = 1;
        Ok(usage)
    }

    async fn freeze(&self) -> Result<(), DriverError> {
        let _alone = self.notes.lock().await;
        match V::stands(&self.hold).await? {
            true => Ok(()),
            false => V::stop(&self.hold).await,
        }
    }

    async fn thaw(&self) -> Result<(), DriverError> {
        let _alone = self.notes.lock().await;
        match V::stands(&self.hold).await? {
            true => V::go_on(&self.hold).await,
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
        let stood = V::stands(&self.hold).await?;
        let saved = V::save(&self.hold, &mut notes, directory, options, stood).await;
        if saved.is_err() {
            let path = directory.to_owned();
            let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
            self.put_back(stood).await;
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

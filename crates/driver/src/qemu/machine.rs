//! A machine that is somebody's.

use super::{driver::PATIENCE, hold::Hold, notes::Notes, save};
use crate::{
    DriverError, Exit, Machine, MachineRecord, Phases, SaveOptions, SavedState, Usage, doing,
    phases::Stopwatch,
};
use serde_json::json;
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};
use tokio::sync::OnceCell;

/// A running machine.
pub(super) struct QemuMachine {
    pub(super) hold: Hold,
    pub(super) notes: Notes,
    phases: Phases,
    exit: OnceCell<Exit>,
    /// Whether it stands still. Held while that changes, so that freezing, saving and ending come
    /// one after another.
    stands: tokio::sync::Mutex<bool>,
}

impl QemuMachine {
    pub(super) fn new(hold: Hold, notes: Notes, mut phases: Stopwatch, stands: bool) -> Self {
        Self {
            hold,
            notes,
            phases: Phases::from_nanoseconds(phases.take()),
            exit: OnceCell::new(),
            stands: tokio::sync::Mutex::new(stands),
        }
    }

    async fn find_exit(&self) -> Exit {
        let text = self.hold.wait().await;
        match self.hold.group.memory_kills() {
            0 => Exit::Ended(text),
            _ => Exit::OutOfMemory,
        }
    }

    pub(super) async fn stop(&self) -> Result<(), DriverError> {
        self.hold
            .qmp
            .call("stop", json!({}), PATIENCE)
            .await
            .map(drop)
    }

    pub(super) async fn go_on(&self) -> Result<(), DriverError> {
        self.hold
            .qmp
            .call("cont", json!({}), PATIENCE)
            .await
            .map(drop)
    }
}

#[async_trait::async_trait]
impl Machine for QemuMachine {
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
        let doing_what = || format!("read what slot {} uses", hold.slot);
        let mut usage = hold.group.usage().map_err(doing(doing_what()))?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", hold.pid))
            .map_err(doing(doing_what()))?;
        // What is this machine's alone: pages of its own, and those that it has written to the file
        // that is its memory.
        usage.memory = field(&rollup, "Anonymous:").max(field(&rollup, "Private_Dirty:"));
        usage.disk = fs::metadata(hold.directory.join("disk.img"))
            .map(|about| about.blocks() * 512)
            .map_err(doing(doing_what()))?;
        usage.processes = 1;
        Ok(usage)
    }

    async fn freeze(&self) -> Result<(), DriverError> {
        let mut stands = self.stands.lock().await;
        self.stop().await?;
        *stands = true;
        Ok(())
    }

    async fn thaw(&self) -> Result<(), DriverError> {
        let mut stands = self.stands.lock().await;
        self.go_on().await?;
        *stands = false;
        Ok(())
    }

    async fn save(
        &self,
        directory: &Path,
        options: SaveOptions,
    ) -> Result<SavedState, DriverError> {
        let mut stands = self.stands.lock().await;
        if directory.exists() {
            return Err(doing(format!("make {}", directory.display()))(
                io::Error::from(io::ErrorKind::AlreadyExists),
            ));
        }
        let saved = save::save(self, directory, options, *stands).await;
        match &saved {
            Ok(_) => *stands |= !options.goes_on,
            Err(_) => {
                let path = directory.to_owned();
                let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
                if !*stands && let Err(error) = self.go_on().await {
                    tracing::warn!(%error, "a machine does not go on");
                }
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

/// A line `name: value kB` in bytes; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter_map(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .next()
        .unwrap_or(0)
        << 10
}

//! What a machine's directory says of it, for whoever adopts it.

use super::Vmm;
use crate::{
    DriverError, Origin, Plan, RootFiles, doing,
    state::{HostFacts, Relative},
};
use api::{Resources, Secret};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const FILE: &str = "machine.json";

/// What is not to be seen from the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Notes {
    /// The root file system beneath.
    pub(crate) root: RootFiles,
    /// What it may use.
    pub(crate) resources: Resources,
    /// The directory of the state whose whole memory it stands on; none if its memory is its own
    /// file.
    pub(crate) base: Option<PathBuf>,
    /// Opens its guest.
    pub(crate) control_token: Secret,
    /// What was true where it was booted, and so is of what is saved of it; none in notes of earlier
    /// versions. This program and its kernel may be newer than the machine.
    #[serde(default)]
    pub(crate) facts: Option<HostFacts>,
    #[serde(skip)]
    data_directory: PathBuf,
}

impl Notes {
    /// Of a machine that `vmm` prepares by a plan. `differs` says whether what it writes will be
    /// told apart from the memory that it starts with.
    pub(crate) fn of_plan<V: Vmm>(
        vmm: &V,
        plan: &Plan,
        differs: bool,
        control_token: Secret,
    ) -> Self {
        let resumed = match &plan.origin {
            Origin::Saved(state) => state.memory.as_ref().map(|memory| (state, memory)),
            Origin::Fresh(_) => None,
        };
        let base = resumed.filter(|_| differs).map(|(state, memory)| {
            let base = memory.base.clone();
            base.unwrap_or_else(|| state.directory.clone())
        });
        let facts = resumed.map_or_else(|| vmm.facts(), |(_, memory)| &memory.host);
        Self {
            root: plan.origin.root().clone(),
            resources: plan.resources,
            base,
            control_token,
            facts: Some(facts.clone()),
            data_directory: vmm.host().data_directory().to_owned(),
        }
    }

    /// Writes them, with paths as in [`SavedState::seal`](crate::SavedState::seal). Not durably: a
    /// machine does not outlive a crash of its host.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), DriverError> {
        let path = directory.join(FILE);
        let partial = directory.join("machine.json.partial");
        let relative = Relative::to(&self.data_directory);
        let mut written = self.clone();
        written.each_path(|path| relative.shorten(path));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec(&written)?)?;
            fs::rename(&partial, &path)
        };
        write().map_err(doing(format!("write {}", path.display())))
    }

    /// Reads them, if there are any.
    pub(crate) fn find(
        directory: &Path,
        data_directory: &Path,
    ) -> Result<Option<Self>, DriverError> {
        match directory.join(FILE).exists() {
            true => Self::read(directory, data_directory).map(Some),
            false => Ok(None),
        }
    }

    /// Reads them.
    pub(crate) fn read(directory: &Path, data_directory: &Path) -> Result<Self, DriverError> {
        let path = directory.join(FILE);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        let mut notes: Self = serde_json::from_slice(&text)
            .map_err(doing(format!("understand {}", path.display())))?;
        data_directory.clone_into(&mut notes.data_directory);
        notes.each_path(|path| *path = data_directory.join(&*path));
        Ok(notes)
    }

    fn each_path(&mut self, mut change: impl FnMut(&mut PathBuf)) {
        self.root.each_path(&mut change);
        self.base.iter_mut().for_each(change);
    }
}

//! What a machine's directory says of it, for whoever adopts it.

use crate::{DriverError, Origin, Plan, RootFiles, doing};
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
}

impl Notes {
    /// Of a machine that is prepared by a plan. `differs` says whether what it writes will be told
    /// apart from the memory that it starts with.
    pub(crate) fn of_plan(plan: &Plan, differs: bool, control_token: Secret) -> Self {
        let base = match &plan.origin {
            Origin::Saved(state) if differs => state.memory.as_ref().map(|memory| {
                let base = memory.base.clone();
                base.unwrap_or_else(|| state.directory.clone())
            }),
            _ => None,
        };
        Self {
            root: plan.origin.root().clone(),
            resources: plan.resources,
            base,
            control_token,
        }
    }

    /// Writes them. Not durably: a machine does not outlive a crash of its host.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), DriverError> {
        let path = directory.join(FILE);
        let partial = directory.join("machine.json.partial");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&partial, &path)
        };
        write().map_err(doing(format!("write {}", path.display())))
    }

    /// Reads them, if there are any.
    pub(crate) fn find(directory: &Path) -> Result<Option<Self>, DriverError> {
        match directory.join(FILE).exists() {
            true => Self::read(directory).map(Some),
            false => Ok(None),
        }
    }

    /// Reads them.
    pub(crate) fn read(directory: &Path) -> Result<Self, DriverError> {
        let path = directory.join(FILE);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        serde_json::from_slice(&text).map_err(doing(format!("understand {}", path.display())))
    }
}

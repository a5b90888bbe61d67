//! What must be known of a running sandbox to save it, also after the program was started again.

use super::driver::Inner;
use crate::{DriverError, RootFiles, doing, layer, state::Relative};
use api::Resources;
use serde::{Deserialize, Serialize};
use std::fs;

/// Lies beside the layer for as long as the sandbox lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// The root file system beneath the layer.
    pub(super) root: RootFiles,
    /// What the sandbox is allowed.
    pub(super) resources: Resources,
}

impl Notes {
    /// Writes them. They are of use only as long as the machine runs, so nothing waits for the disk.
    pub(super) fn write(&self, inner: &Inner, slot: u32) -> std::io::Result<()> {
        let relative = Relative::to(&inner.options.data_directory);
        let mut written = self.clone();
        written.root.each_path(&mut |path| relative.shorten(path));
        let text = serde_json::to_vec(&written)?;
        fs::write(inner.layers.beside(slot, layer::NOTES), text)
    }

    pub(super) fn read(inner: &Inner, slot: u32) -> Result<Self, DriverError> {
        let path = inner.layers.beside(slot, layer::NOTES);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        let mut notes: Self = serde_json::from_slice(&text)
            .map_err(doing(format!("understand {}", path.display())))?;
        let data_directory = &inner.options.data_directory;
        let found = &mut |path: &mut std::path::PathBuf| *path = data_directory.join(&*path);
        notes.root.each_path(found);
        Ok(notes)
    }
}

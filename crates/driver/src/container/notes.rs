//! What must be known of a running sandbox to save it, also after the program was started again.

use super::driver::Inner;
use crate::{DriverError, RootFiles, doing, layer};
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
        let text = serde_json::to_vec(self)?;
        fs::write(inner.layers.beside(slot, layer::NOTES), text)
    }

    pub(super) fn read(inner: &Inner, slot: u32) -> Result<Self, DriverError> {
        let path = inner.layers.beside(slot, layer::NOTES);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        serde_json::from_slice(&text).map_err(doing(format!("understand {}", path.display())))
    }
}

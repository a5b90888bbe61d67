//! Saves the disk of a running sandbox.
//!
//! Its processes stand still while the file system of its layer is written back and copied; the
//! guest need not be told, because what a container has not written yet is in this kernel's memory,
//! not in one of its own. A sandbox that will not go on needs no copy: its layer's file itself
//! becomes the state's disk, and is shut before the processes that were using it are killed.
//!
//! If this program dies halfway, a mark beside the layer says that the sandbox stands still only
//! for that, and whoever adopts it lets it go on.

use super::{driver::Inner, machine::Cell, notes::Notes};
use crate::{
    DriverError, DriverKind, SaveOptions, SavedState,
    blocking::blocking,
    cgroup::Group,
    doing, full_or,
    layer::{self, Layer},
    qemu::checksums,
};
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Arc, PoisonError},
};

/// The file of a state that holds its writable layer.
pub(super) const DISK: &str = "disk.img";

/// Saves it in `directory`, which does not exist yet.
pub(super) async fn save(
    cell: &Cell,
    directory: &Path,
    options: SaveOptions,
) -> Result<SavedState, DriverError> {
    if options.memory {
        return Err(DriverError::Unsupported {
            cause: "the driver `container` saves the disk of a sandbox, but not its memory".into(),
            remedy: "Save without memory, or use a node whose driver is qemu or firecracker".into(),
        });
    }
    // Moved into the work: it goes on even if nobody waits for it any more.
    let alone = cell.alone().await?;
    let (inner, group, slot) = (Arc::clone(&cell.inner), cell.group.clone(), cell.slot);
    let directory = directory.to_owned();
    let mounted = {
        let layer = cell.layer.lock().unwrap_or_else(PoisonError::into_inner);
        layer.as_ref().map(Layer::try_clone).transpose()
    };
    let mounted = mounted.map_err(doing("hold a layer"))?;
    blocking(move || {
        let _alone = alone;
        let layer = match mounted {
            Some(layer) => layer,
            None => inner.layers.reopen(slot)?.ok_or_else(|| {
                DriverError::Guest(format!("the layer of slot {slot} is not attached any more"))
            })?,
        };
        let notes = Notes::read(&inner, slot)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(doing(format!("make {}", directory.display())))?;
        let state = SavedState {
            directory: directory.clone(),
            driver: DriverKind::Container,
            root: notes.root,
            resources: notes.resources,
            memory: None,
            stood_still: None,
        };
        let saved = Stand::still(&inner, &group, slot, options).and_then(|stand| {
            let disk = directory.join(DISK);
            layer
                .write_back()
                .and_then(|()| layer.copy_to(&disk, !options.goes_on))
                .map_err(|error| full_or(error, format!("copy the layer of slot {slot}")))?;
            // What takes long happens when it goes on.
            let stand = match options.goes_on {
                true => stand.end().map(|()| None)?,
                false => Some(stand),
            };
            if options.lasts {
                checksums::write(&directory)
                    .map_err(|error| full_or(error, format!("write {} through", disk.display())))?;
            }
            state.seal(&inner.options.data_directory)?;
            if let Some(stand) = stand {
                stand.stay();
            }
            Ok(state)
        });
        if saved.is_err() {
            let _ = fs::remove_dir_all(&directory);
        }
        saved
    })
    .await
}

/// Lets an adopted sandbox go on that stood still only because it was being saved.
pub(super) fn recover(inner: &Inner, group: &Group, slot: u32) -> io::Result<()> {
    let mark = inner.layers.beside(slot, layer::SAVING);
    if !mark.exists() {
        return Ok(());
    }
    group.thaw()?;
    fs::remove_file(mark)
}

/// A sandbox that stands still. It goes on, if it went before, when this is dropped.
struct Stand<'a> {
    inner: &'a Inner,
    group: &'a Group,
    slot: u32,
    /// Whether it was this that stopped it.
    stopped: bool,
}

impl<'a> Stand<'a> {
    fn still(
        inner: &'a Inner,
        group: &'a Group,
        slot: u32,
        options: SaveOptions,
    ) -> Result<Self, DriverError> {
        let frozen = group
            .is_frozen()
            .map_err(doing(format!("ask whether slot {slot} is frozen")))?;
        let stand = Self {
            inner,
            group,
            slot,
            stopped: !frozen,
        };
        if !frozen {
            if options.goes_on {
                let mark = inner.layers.beside(slot, layer::SAVING);
                fs::write(&mark, "")
                    .map_err(|error| full_or(error, format!("make {}", mark.display())))?;
            }
            freeze(group, slot)?;
        }
        Ok(stand)
    }

    /// It goes on.
    fn end(mut self) -> Result<(), DriverError> {
        self.resume()
            .map_err(doing(format!("let slot {} go on", self.slot)))
    }

    /// It never goes on.
    fn stay(mut self) {
        self.stopped = false;
    }

    fn resume(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.stopped) {
            self.group.thaw()?;
            let _ = fs::remove_file(self.inner.layers.beside(self.slot, layer::SAVING));
        }
        Ok(())
    }
}

impl Drop for Stand<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.resume() {
            tracing::warn!(slot = self.slot, %error, "a sandbox that was to be saved stands still");
        }
    }
}

/// Stops all processes of a sandbox.
pub(super) fn freeze(group: &Group, slot: u32) -> Result<(), DriverError> {
    group.freeze().map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => DriverError::Unsupported {
            cause: "this machine has no control groups that can stop processes".into(),
            remedy: "Mount control groups of version 2, or the controller `freezer` of version 1"
                .into(),
        },
        _ => doing(format!("stop the processes of slot {slot}"))(error),
    })
}

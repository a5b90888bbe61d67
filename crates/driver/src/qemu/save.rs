//! Saves a running machine.
//!
//! The machine stands still only while the state of its devices is written (milliseconds), the
//! pages that it has written since it was resumed are copied, and its disk is. What takes long
//! (merging, checksums, writing through to the disk) happens when it goes on. The description is
//! sealed last: a directory without it is half made.

use super::{
    checksums,
    driver::{PATIENCE, blocking, full_or},
    hold::Hold,
    machine::QemuMachine,
    memory::{self, INDEX, Index, Live, Mapped, PAGES, WHOLE},
    notes::Notes,
    restore::DEVICES,
};
use crate::{
    DriverError, DriverKind, SaveOptions, SavedState, doing,
    sparse::{self, PAGE},
    state::SavedMemory,
};
use serde_json::json;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the guest may take to write back what it holds.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// What the machine's memory became while it stood still.
enum Kept {
    /// `memory` is whole.
    Whole,
    /// `memory.pages` and the index differ from the base.
    Difference(Index, PathBuf),
}

/// Saves it in `directory`, which does not exist. On failure the caller clears up. `stands` says
/// whether it stands still already, and then it stays so.
pub(super) async fn save(
    machine: &QemuMachine<'_>,
    directory: &Path,
    options: SaveOptions,
    stands: bool,
) -> Result<SavedState, DriverError> {
    let QemuMachine { hold, notes, .. } = machine;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(doing(format!("make {}", directory.display())))?;
    settle(machine, options.memory, stands).await?;
    let stopped = Instant::now();
    machine.stop().await?;
    let kept = stand_still(hold, notes, directory, options).await?;
    let mut stood_still = None;
    if options.goes_on && !stands {
        machine.go_on().await?;
        stood_still = Some(stopped.elapsed());
    }
    let memory = kept.map(|kept| async {
        let directory = directory.to_owned();
        blocking(move || {
            finish(kept, &directory).map_err(|error| full_or(error, "write a machine's memory"))
        })
        .await
    });
    let memory = match memory {
        Some(base) => Some(SavedMemory {
            host: notes.facts.as_ref().unwrap_or(&hold.inner.facts).clone(),
            base: base.await?,
            control_token: notes.control_token.clone(),
        }),
        None => None,
    };
    let state = SavedState {
        directory: directory.to_owned(),
        driver: DriverKind::Qemu,
        root: notes.root.clone(),
        resources: notes.resources,
        memory,
        stood_still,
    };
    let inner = Arc::clone(&hold.inner);
    blocking(move || {
        if options.lasts {
            checksums::write(&state.directory)
                .map_err(|error| full_or(error, "write a state through to the disk"))?;
        }
        state.seal(inner.host.data_directory())?;
        Ok(state)
    })
    .await
}

/// Lets the guest write back its caches if they will not be saved with its memory, and give back
/// what it does not need if its memory will be the base of many others.
async fn settle(machine: &QemuMachine<'_>, memory: bool, stands: bool) -> Result<(), DriverError> {
    let QemuMachine { hold, notes, .. } = machine;
    let token = &notes.control_token;
    match (memory, stands) {
        (false, _) => {
            machine.go_on().await?;
            hold.guest.settle(true, token, SETTLE_PATIENCE).await
        }
        (true, false) if notes.base.is_none() => {
            hold.guest.settle(false, token, SETTLE_PATIENCE).await
        }
        (true, _) => Ok(()),
    }
}

/// What must be done while the machine does not move.
async fn stand_still(
    hold: &Hold,
    notes: &Notes,
    directory: &Path,
    options: SaveOptions,
) -> Result<Option<Kept>, DriverError> {
    if options.memory {
        save_devices(hold, &directory.join(DEVICES)).await?;
    }
    let (pid, own, base) = (hold.pid, hold.directory.clone(), notes.base.clone());
    let directory = directory.to_owned();
    blocking(move || {
        let save = || -> io::Result<Option<Kept>> {
            save_disk(&own, &directory, options.goes_on)?;
            if !options.memory {
                return Ok(None);
            }
            save_memory(pid, &own, base, &directory).map(Some)
        };
        save().map_err(|error| full_or(error, "save a machine"))
    })
    .await
}

/// The state of all devices, without memory.
async fn save_devices(hold: &Hold, path: &Path) -> Result<(), DriverError> {
    // QEMU takes a descriptor from a set only if it is open exactly as it wants it.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(doing(format!("make {}", path.display())))?;
    let added = hold
        .qmp
        .call_with("add-fd", json!({}), &[file.as_fd()], PATIENCE)
        .await?;
    let set = added["fdset-id"].as_i64().unwrap_or(-1);
    let wanted = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
    let saved = hold
        .qmp
        .call("xen-save-devices-state", wanted, PATIENCE)
        .await;
    let removed = hold
        .qmp
        .call("remove-fd", json!({ "fdset-id": set }), PATIENCE)
        .await;
    saved.and(removed).map(drop)
}

fn save_disk(own: &Path, directory: &Path, goes_on: bool) -> io::Result<()> {
    let (from, to) = (own.join("disk.img"), directory.join("disk.img"));
    // A machine that never moves again needs no copy.
    if !goes_on && fs::hard_link(&from, &to).is_ok() {
        return Ok(());
    }
    sparse::copy_to(&File::open(from)?, &to).map(drop)
}

fn save_memory(pid: u32, own: &Path, base: Option<PathBuf>, directory: &Path) -> io::Result<Kept> {
    let Some(base) = base else {
        let memory = File::open(own.join(WHOLE))?;
        sparse::copy_without_zeros(&memory, &directory.join(WHOLE))?;
        return Ok(Kept::Whole);
    };
    let below = File::open(base.join(WHOLE))?;
    let live = Live::find(pid, &below.metadata()?)?;
    let mut pages = sparse::create(&directory.join(PAGES))?;
    let index = live.save_difference(&Mapped::new(&below)?, &mut pages)?;
    Ok(Kept::Difference(index, base))
}

/// Writes what can be written while the machine goes on. A difference that is large beside its base
/// becomes a whole memory, so that what is saved of it next is small again. Returns the base.
fn finish(kept: Kept, directory: &Path) -> io::Result<Option<PathBuf>> {
    let Kept::Difference(index, base) = kept else {
        return Ok(None);
    };
    let below = File::open(base.join(WHOLE))?;
    if index.stored() * PAGE * 2 <= below.metadata()?.blocks() * 512 {
        let mut file = sparse::create(&directory.join(INDEX))?;
        io::Write::write_all(&mut file, &index.encode())?;
        return Ok(Some(base));
    }
    let path = directory.join(PAGES);
    let pages = Mapped::new(&File::open(&path)?)?;
    memory::merge(&below, &index, pages.bytes(), &directory.join(WHOLE))?;
    fs::remove_file(path)?;
    Ok(None)
}

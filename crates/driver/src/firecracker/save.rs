//! Saves a running machine.
//!
//! The machine stands still while Firecracker writes the state of devices and memory, and while
//! its disk is copied. What takes long otherwise (holes for zeros, checksums, writing through to
//! the disk) happens when it goes on. The description is sealed last: a directory without it is
//! half made.

use super::{
    hold::Hold,
    memory::{self, DEVICES, DIFFERENCE, WHOLE},
    messages::{Change, Create},
};
use crate::{
    DriverError, DriverKind, SaveOptions, SavedState, blocking::blocking, doing, full_or,
    microvm::notes::Notes, qemu::checksums, sparse, state::SavedMemory,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long Firecracker may take to write a snapshot.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(120);

/// How long the guest may take to write back what it holds.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// Saves it in `directory`, which does not exist. On failure the caller clears up. `stands` says
/// whether it stands still already, and then it stays so.
pub(super) async fn save(
    hold: &Hold,
    notes: &mut Notes,
    directory: &Path,
    options: SaveOptions,
    stands: bool,
) -> Result<SavedState, DriverError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(doing(format!("make {}", directory.display())))?;
    let stands_now = settle(hold, notes, options.memory, stands).await?;
    if !stands_now {
        hold.change(Change::PAUSE).await?;
    }
    let base = notes.base.clone();
    if options.memory {
        // From here on Firecracker counts what is written anew. If anything fails, what was
        // written before is not known any more, and the next is saved whole.
        forget_base(hold, notes).await?;
        snapshot(hold, base.is_some()).await?;
    }
    copy_disk(hold, directory).await?;
    if options.goes_on && !stands {
        hold.change(Change::RESUME).await?;
    }
    if options.memory {
        keep(hold, notes, directory, base.as_deref()).await?;
        notes.base.clone_from(&base);
        note(hold, notes).await?;
    }
    let memory = options.memory.then(|| SavedMemory {
        host: notes.facts.as_ref().unwrap_or(&hold.inner.facts).clone(),
        base,
        control_token: notes.control_token.clone(),
    });
    let state = SavedState {
        directory: directory.to_owned(),
        driver: DriverKind::Firecracker,
        root: notes.root.clone(),
        resources: notes.resources,
        memory,
        stood_still: None,
    };
    let host = Arc::clone(&hold.inner.host);
    blocking(move || seal(state, options.lasts, host.data_directory())).await
}

/// Lets the guest write back its caches if they will not be saved with its memory, and give back
/// what it does not need if its memory will be the base of many others. Returns whether the machine
/// stands still then.
async fn settle(
    hold: &Hold,
    notes: &Notes,
    memory: bool,
    stands: bool,
) -> Result<bool, DriverError> {
    if memory && (stands || notes.base.is_some()) {
        return Ok(stands);
    }
    if stands {
        hold.change(Change::RESUME).await?;
    }
    let guest = &hold.guest;
    let settled = guest.settle(!memory, &notes.control_token, SETTLE_PATIENCE);
    let settled = hold.unless_ended(settled).await;
    if settled.is_err() && stands {
        hold.change(Change::PAUSE).await?;
    }
    settled.map(|()| false)
}

/// Lets Firecracker write the state of devices, and all memory or what was written since.
async fn snapshot(hold: &Hold, difference: bool) -> Result<(), DriverError> {
    let jail = hold.jail.clone();
    blocking(move || jail.make_save()).await?;
    let create = Create::new(difference);
    let client = &hold.client;
    let asked = client.put("/snapshot/create", &create, SNAPSHOT_PATIENCE);
    hold.unless_ended(asked).await
}

async fn copy_disk(hold: &Hold, directory: &Path) -> Result<(), DriverError> {
    let (from, to) = (hold.jail.layer(), directory.join("disk.img"));
    blocking(move || {
        File::open(from)
            .and_then(|disk| sparse::copy_to(&disk, &to).map(drop))
            .map_err(|error| full_or(error, "copy a machine's disk"))
    })
    .await
}

/// Takes what Firecracker wrote.
async fn keep(
    hold: &Hold,
    notes: &Notes,
    directory: &Path,
    base: Option<&Path>,
) -> Result<(), DriverError> {
    let jail = hold.jail.clone();
    let directory = directory.to_owned();
    let size = notes.resources.memory.as_mebibytes().max(1) << 20;
    let difference = base.is_some();
    blocking(move || {
        jail.take_devices(&directory.join(DEVICES))?;
        if difference {
            keep_difference(&jail, &directory, size)?;
        } else {
            jail.take_memory(&directory.join(WHOLE), size, false)?;
        }
        jail.forget_save().map_err(doing("remove a snapshot"))
    })
    .await
}

/// What differs from the base now: what did when it was loaded, and what was written since. That is
/// remembered for the next time.
fn keep_difference(
    jail: &super::jail::Jail,
    directory: &Path,
    size: u64,
) -> Result<(), DriverError> {
    let path = directory.join(DIFFERENCE);
    let full = |error| full_or(error, "keep what differs of a memory");
    let former = jail.difference();
    match File::open(&former) {
        Ok(before) => {
            sparse::copy_to(&before, &path).map_err(full)?;
            let partial = directory.join("memory.since");
            let since = jail.take_memory(&partial, size, true)?;
            memory::lay_over(&path, &since).map_err(full)?;
            fs::remove_file(&partial).map_err(full)?;
            fs::remove_file(&former).map_err(full)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            jail.take_memory(&path, size, true)?;
        }
        Err(error) => return Err(full(error)),
    }
    link_or_copy(&path, &former).map_err(full)
}

/// The same content under another name; the first is never written again.
pub(super) fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => sparse::copy_to(&File::open(from)?, to).map(drop),
    }
}

async fn forget_base(hold: &Hold, notes: &mut Notes) -> Result<(), DriverError> {
    notes.base = None;
    note(hold, notes).await
}

async fn note(hold: &Hold, notes: &Notes) -> Result<(), DriverError> {
    let (directory, noted): (PathBuf, _) = (hold.jail.path().to_owned(), notes.clone());
    blocking(move || noted.write(&directory)).await
}

/// A difference as large as half its base becomes a whole memory, so that what is saved of it next
/// is small again. Then, if it is to last, checksums, and all through to the disk.
fn seal(
    mut state: SavedState,
    lasts: bool,
    data_directory: &Path,
) -> Result<SavedState, DriverError> {
    let full = |error| full_or(error, "write a state through to the disk");
    if let Some(memory) = &mut state.memory
        && let Some(base) = memory.base.clone()
        && is_large(&state.directory, &base).map_err(full)?
    {
        memory::make_whole(&state.directory, &base).map_err(full)?;
        memory.base = None;
    }
    if lasts {
        checksums::write(&state.directory).map_err(full)?;
    }
    state.seal(data_directory)?;
    Ok(state)
}

fn is_large(directory: &Path, base: &Path) -> io::Result<bool> {
    let blocks = |path: PathBuf| fs::metadata(path).map(|about| about.blocks());
    Ok(blocks(directory.join(DIFFERENCE))? * 2 > blocks(base.join(WHOLE))?)
}

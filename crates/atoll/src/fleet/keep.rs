//! The store of a fleet, which one process uses at a time.

use crate::failure::Failure;
use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use store::{SqliteStore, Store};

/// The store's file in the data directory.
pub(super) const FILE: &str = "fleet.sqlite";

/// A store that no other process uses meanwhile.
pub(super) struct Kept {
    pub(super) store: Arc<dyn Store>,
    _lock: File,
}

/// Opens the store; `None` if another process uses it.
///
/// # Errors
/// When the file or its folder cannot be used.
pub(super) async fn open(path: &Path) -> anyhow::Result<Option<Kept>> {
    let Some(lock) = lock(path)? else {
        return Ok(None);
    };
    let store = SqliteStore::open(path)
        .await
        .with_context(|| format!("cannot use {}", path.display()))?;
    Ok(Some(Kept {
        store: Arc::new(store) as Arc<dyn Store>,
        _lock: lock,
    }))
}

/// What is said when another process uses the store.
pub(super) fn in_use(path: &Path) -> Failure {
    Failure::new(
        format!("another process uses {}", path.display()),
        "it is `atoll fleet serve`, which switches machines by itself: `atoll fleet status` shows what it does; or stop it",
    )
}

/// Locks the file beside the store's. The system lets go of it when this process ends, however it
/// does.
fn lock(path: &Path) -> anyhow::Result<Option<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    if let Some(folder) = path.parent().filter(|one| !one.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .with_context(|| format!("cannot use {}", name.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", name.display())),
    }
}

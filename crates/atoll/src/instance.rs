//! The name that everything carries which one Atoll makes on the machine, held against others.
//!
//! The name has four hexadecimal digits, which follow from the data directory's path, so one pair
//! of directories in 65,536 has the same. Two such Atolls would take each other's interfaces,
//! rules and control groups for their own leavings: the second is refused. A file of the name says
//! whose it is. It outlives a crash, because sandboxes do, and is empty of meaning once the data
//! directory that it names is gone. A restart of the machine removes all of them.

use crate::failure::Failure;
use anyhow::Context;
use rustix::fs::{FlockOperation, flock, fstat, stat};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Where the files are.
pub(crate) const FOLDER: &str = "/run/atoll";

/// The longest path that a file may hold.
const PATH_MAX: u64 = 4096;

/// A name that this process alone uses. Dropped, it may be used again, by the same data directory
/// or when that is gone.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Takes `name` for the Atoll of `data_dir`; both paths are absolute.
    ///
    /// # Errors
    /// When the name belongs to another data directory, or the file cannot be used.
    pub(crate) fn take(folder: &Path, name: &str, data_dir: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{name}.lock"));
        let context = || format!("cannot use {}", path.display());
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .with_context(context)?;
            let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => true,
                Err(rustix::io::Errno::WOULDBLOCK) => false,
                Err(error) => return Err(error).with_context(context),
            };
            // Whoever had it may have removed it meanwhile: then it keeps nobody out.
            let current = stat(&path).ok().map(|facts| (facts.st_dev, facts.st_ino));
            let opened = fstat(&file).with_context(context)?;
            if current != Some((opened.st_dev, opened.st_ino)) {
                continue;
            }
            let mut owner = Vec::new();
            Read::by_ref(&mut file)
                .take(PATH_MAX)
                .read_to_end(&mut owner)
                .with_context(context)?;
            let owner = PathBuf::from(std::ffi::OsString::from_vec(owner));
            let foreign = owner != data_dir && owner.join("lock").exists();
            if !locked || foreign {
                return Err(taken(name, &owner));
            }
            file.set_len(0).with_context(context)?;
            file.rewind().with_context(context)?;
            file.write_all(data_dir.as_os_str().as_bytes())
                .with_context(context)?;
            return Ok(Self { path, _lock: file });
        }
    }

    /// Gives the name back: nothing of this Atoll is left on the machine.
    pub(crate) fn release(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{} was not removed: {error}", self.path.display());
        }
    }
}

fn taken(name: &str, owner: &Path) -> anyhow::Error {
    Failure::new(
        format!(
            "the Atoll of {} has the same name on this machine, {name}",
            owner.display()
        ),
        "the name follows from the data directory's path: give this one another --data-dir",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory as an Atoll leaves it.
    fn data_dir(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        path
    }

    /// Two directories whose names on the machine are the same must not share them.
    #[test]
    fn a_name_belongs_to_one_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let (one, two) = (data_dir(dir.path(), "one"), data_dir(dir.path(), "two"));
        let claim = Claim::take(&folder, "0a1b", &one).unwrap();
        let refused = Claim::take(&folder, "0a1b", &two).unwrap_err().to_string();
        assert!(refused.contains(one.to_str().unwrap()), "{refused}");
        Claim::take(&folder, "0a1c", &two).unwrap().release();

        // After a crash, sandboxes of the first may go on: only it may have the name.
        drop(claim);
        Claim::take(&folder, "0a1b", &two).unwrap_err();
        let claim = Claim::take(&folder, "0a1b", &one).unwrap();
        claim.release();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        Claim::take(&folder, "0a1b", &two).unwrap();

        // What is left of a directory that is gone is nobody's.
        fs::remove_dir_all(&two).unwrap();
        Claim::take(&folder, "0a1b", &one).unwrap();
    }
}

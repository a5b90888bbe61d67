//! A state's memory as files.
//!
//! | file in a state's directory | what |
//! | --- | --- |
//! | `devices` | the state of processors and devices |
//! | `memory` | a whole memory; pages of zeros are holes |
//! | `memory.difference` | pages that differ from the base's; a hole means: as there |
//! | `memory.merged` | both together, made when it is first loaded, as Firecracker loads one file |
//!
//! A difference always lies on a whole memory, never on another difference, so chains have one
//! link: what a machine was loaded with is laid beneath what it has written since.

use crate::{DriverError, SavedState, doing, sparse};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

pub(super) const DEVICES: &str = "devices";
pub(super) const WHOLE: &str = "memory";
pub(crate) const DIFFERENCE: &str = "memory.difference";
const MERGED: &str = "memory.merged";

/// The files that a state's memory consists of, the uppermost first: where one has a hole, the next
/// counts. Blocks.
pub(super) fn files_of(state: &SavedState) -> Result<Vec<File>, DriverError> {
    let base = state
        .memory
        .as_ref()
        .and_then(|memory| memory.base.as_ref());
    let paths = match base {
        Some(base) => vec![state.directory.join(DIFFERENCE), base.join(WHOLE)],
        None => vec![state.directory.join(WHOLE)],
    };
    paths
        .iter()
        .map(|path| File::open(path).map_err(doing(format!("open {}", path.display()))))
        .collect()
}

/// The file to load a state's memory from. Blocks; makes it if need be, which costs little where
/// the file system copies by reference, and else as much as the base's memory.
pub(super) fn file_of(state: &SavedState) -> Result<PathBuf, DriverError> {
    let base = state
        .memory
        .as_ref()
        .and_then(|memory| memory.base.as_ref());
    let Some(base) = base else {
        return Ok(state.directory.join(WHOLE));
    };
    let merged = state.directory.join(MERGED);
    if merged.exists() {
        return Ok(merged);
    }
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let number = TRIES.fetch_add(1, Ordering::Relaxed);
    let partial = state
        .directory
        .join(format!("{MERGED}.{}.{number}", std::process::id()));
    let merge = || -> io::Result<()> {
        let copy = sparse::copy_to(&File::open(base.join(WHOLE))?, &partial)?;
        overlay(&File::open(state.directory.join(DIFFERENCE))?, &copy)?;
        fs::rename(&partial, &merged)
    };
    merge().map_err(|error| {
        let _ = fs::remove_file(&partial);
        doing(format!("merge {}", merged.display()))(error)
    })?;
    Ok(merged)
}

/// Turns a difference in a state's directory into a whole memory, without zeros.
pub(super) fn make_whole(directory: &Path, base: &Path) -> io::Result<()> {
    let partial = directory.join(MERGED);
    let difference = directory.join(DIFFERENCE);
    let both = sparse::copy_to(&File::open(base.join(WHOLE))?, &partial)?;
    overlay(&File::open(&difference)?, &both)?;
    sparse::copy_without_zeros(&both, &directory.join(WHOLE))?;
    fs::remove_file(partial)?;
    fs::remove_file(difference)
}

/// What differs from the base: what did when it was loaded, and then what was written since.
pub(super) fn lay_over(before: &Path, since: &File) -> io::Result<()> {
    let both = fs::OpenOptions::new().read(true).write(true).open(before)?;
    overlay(since, &both)
}

/// Writes all that is not a hole onto another file of the same size.
fn overlay(difference: &File, onto: &File) -> io::Result<()> {
    let length = onto.metadata()?.len();
    if difference.metadata()?.len() != length {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a difference of another size",
        ));
    }
    sparse::for_each_part(difference, length, |from, to| {
        sparse::copy_bytes(difference, onto, from, to)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn differences_are_laid_over_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, pages: &[(u64, u8)]| {
            let path = directory.path().join(name);
            let file = sparse::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            for (page, byte) in pages {
                file.write_all_at(&[*byte; 4096], page * 4096).unwrap();
            }
            (path, file)
        };
        let (whole, base) = file("memory", &[(0, 1), (5, 1), (9, 1)]);
        let (first_path, first) = file("first", &[(5, 2), (6, 2)]);
        // A page of zeros is one that was written, not a hole.
        let (_, second) = file("second", &[(6, 3), (9, 0)]);
        lay_over(&first_path, &second).unwrap();
        overlay(&first, &base).unwrap();
        let bytes = fs::read(&whole).unwrap();
        let pages: Vec<u8> = (0..10).map(|page| bytes[page * 4096]).collect();
        assert_eq!(pages, [1, 0, 0, 0, 0, 2, 3, 0, 0, 0]);
        let (_, short) = file("short", &[]);
        short.set_len(4096).unwrap();
        assert!(overlay(&short, &base).is_err());
    }
}

//! Directories that are this program's own.

use crate::{DriverError, doing};
use rustix::mount::{UnmountFlags, unmount};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Makes a directory, and those above it, that only its owner can enter.
pub(crate) fn make_private(directory: &Path) -> Result<(), DriverError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(doing(format!("make {}", directory.display())))
}

/// Removes a directory with all that is in it. Files that others mounted into it are only let go.
/// True if it was there.
pub(crate) fn remove(directory: &Path) -> Result<bool, DriverError> {
    let remove = || match fs::remove_dir_all(directory) {
        // What is mounted cannot be removed, and what it shows is not touched.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            for place in mounts_below(directory)? {
                unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            }
            fs::remove_dir_all(directory)
        }
        removed => removed,
    };
    match remove() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(doing(format!("remove {}", directory.display()))(error)),
    }
}

/// Mounts below a directory, the last first.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut places: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // A data directory with blanks in its name is written with escapes.
        .map(|place| PathBuf::from(place.replace("\\040", " ")))
        .filter(|place| place.starts_with(directory))
        .collect();
    places.reverse();
    Ok(places)
}

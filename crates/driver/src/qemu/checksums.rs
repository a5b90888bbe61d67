//! Checksums of a saved state's files: made when it is written, checked when it is brought in from
//! elsewhere, and never when it is started.

use super::{
    memory::{INDEX, PAGES, WHOLE},
    restore::DEVICES,
};
use crate::{DriverError, SavedState, doing, firecracker::DIFFERENCE, sparse};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

const FILE: &str = "checksums.json";
const DISK: &str = "disk.img";

/// Writes the checksums of all files that are there, and all of it through to the disk. Blocks.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    let sums = compute(directory, true)?;
    let path = directory.join(FILE);
    fs::write(&path, serde_json::to_vec_pretty(&sums)?)?;
    File::open(path)?.sync_all()
}

fn compute(directory: &Path, through: bool) -> io::Result<BTreeMap<String, String>> {
    let mut sums = BTreeMap::new();
    for name in [DISK, DEVICES, WHOLE, PAGES, INDEX, DIFFERENCE] {
        match File::open(directory.join(name)) {
            Ok(file) => {
                sums.insert(name.to_owned(), sparse::digest(&file)?);
                if through {
                    file.sync_data()?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sums)
}

/// Compares a state's files with the checksums that were made when it was saved. For states that
/// come from elsewhere; reads all of it. Blocks.
pub fn verify(state: &SavedState) -> Result<(), DriverError> {
    let directory = &state.directory;
    let read = || -> io::Result<Vec<String>> {
        let then: BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(directory.join(FILE))?)?;
        let now = compute(directory, false)?;
        Ok(then
            .iter()
            .filter(|(name, sum)| now.get(*name) != Some(sum))
            .map(|(name, _)| name.clone())
            .collect())
    };
    let changed = read().map_err(doing(format!("verify {}", directory.display())))?;
    if changed.is_empty() {
        return Ok(());
    }
    Err(DriverError::Unsupported {
        cause: format!(
            "{} is damaged: {} is not as it was saved",
            directory.display(),
            changed.join(", ")
        ),
        remedy: "Bring the state in again from where it was saved".into(),
    })
}

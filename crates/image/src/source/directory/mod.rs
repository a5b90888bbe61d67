//! `dir:PATH`: a folder, copied.
//!
//! Files are shared with the original where the file system can (reflinks), hard links and holes
//! stay what they are, sockets and devices are left out, and other file systems mounted below are
//! left empty. The layer's name is the digest of all that was copied.

mod copy;
mod walk;

use crate::{
    build::{Build, Made},
    digest::Hasher,
    error::ImageError,
    store::ImageConfig,
};
use rustix::fs::FileType;
use std::{os::unix::ffi::OsStrExt, path::Path};
use walk::{Place, Trouble, Visit, walk};

pub(super) async fn make(build: &Build, path: &Path) -> Result<Made, ImageError> {
    let step = build
        .report
        .step(format!("looking at {}", path.display()), None);
    let (source, store) = (path.to_owned(), build.store.clone());
    let (fingerprint, total) = build
        .blocking(move |report| {
            let mut survey = Survey::default();
            walk(&source, &store, report, &mut survey, &step)?;
            let total = survey.bytes;
            Ok((format!("tree {}", survey.hasher.finish()), total))
        })
        .await?;
    if let Some(image) = build.unchanged(&fingerprint) {
        return Ok(Made::Unchanged(image));
    }
    let counter = build
        .report
        .step(format!("copying {}", path.display()), Some(total));
    let (source, store) = (path.to_owned(), build.store.clone());
    let layer = build
        .blocking(move |report| copy::copy(&source, &store, report, &counter))
        .await?;
    Ok(Made::Image {
        layers: vec![layer],
        config: ImageConfig::default(),
        fingerprint,
    })
}

/// Tells whether a tree changed, without reading its files.
#[derive(Default)]
struct Survey {
    hasher: Hasher,
    bytes: u64,
}

impl Visit for Survey {
    fn enter(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let stat = &place.stat;
        self.hasher.field(place.path.as_os_str().as_bytes());
        for number in [
            stat.st_dev,
            stat.st_ino,
            u64::from(stat.st_mode),
            stat.st_size as u64,
        ] {
            self.hasher.update(&number.to_le_bytes());
        }
        // The time of change covers owner, mode, attributes and content.
        self.hasher.update(&stat.st_ctime.to_le_bytes());
        self.hasher.update(&stat.st_ctime_nsec.to_le_bytes());
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            self.bytes += stat.st_size as u64;
        }
        Ok(())
    }
}

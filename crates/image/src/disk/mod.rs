//! An image's root file system as one read-only disk, for drivers that attach disks.
//!
//! The disk is an EROFS image without compression, made once for each image out of its layers and
//! shared by all microVMs that run from it: what they read lies in the host's page cache once.
//! It goes when its image goes.
//!
//! Why EROFS and why not compressed: the default image (319 MiB of files) as each kind of disk, with
//! Debian's 6.1 kernel in a QEMU that emulates one processor; seconds of the emulator's processor
//! time, the smaller of two runs, after each start from nothing: until the guest serves; for
//! `python3 -c 'import json,http.client'` and `perl -e 1`; for reading 1,500 files of `/usr/lib`.
//!
//! | made by | seconds to make | MiB | serves | first commands | files |
//! | --- | --- | --- | --- | --- | --- |
//! | `mkfs.erofs` | 1.1 | 314 | 2.9 | 2.4 | 3.0 |
//! | `mkfs.erofs -zlz4` | 1.3 | 191 | 2.9 | 2.5 | 4.0 |
//! | `mksquashfs -noI -noD -noF -noX` | | 301 | 2.8 | 2.6 | 4.8 |
//! | `mksquashfs -comp lz4` | 0.9 | 154 | 3.3 | 2.8 | 4.8 |
//! | `mksquashfs -comp zstd` | 1.6 | 112 | 2.6 | 3.5 | 5.0 |
//! | `mkfs.ext4 -O ^has_journal -d` | 1.0 | 343 | 2.6 | 2.2 | 4.9 |

mod command;

use crate::{error::ImageError, store::ImageStore};
use api::ImageDigest;
use std::{fs, path::PathBuf};

impl ImageStore {
    /// The disk of an image, which is made if it is not there: a second or two for some hundred
    /// megabytes. Whoever asks for it meanwhile waits for the same one.
    ///
    /// Stays while the image is there or is held ([`ImageStore::root`]). Must be called within a
    /// Tokio runtime; work that was begun goes on if the caller goes away.
    pub async fn disk(&self, digest: &ImageDigest) -> Result<PathBuf, ImageError> {
        // Held, so that neither layers nor disk can go while it is made.
        let root = self.root(digest)?;
        let place = self.inner.layout.disk(digest);
        if place.is_file() {
            return Ok(place);
        }
        let guard = self.inner.locks.lock(format!("disk {digest}")).await;
        let inner = self.inner.clone();
        let made = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            if place.is_file() {
                return Ok(place);
            }
            let work = inner.layout.temporary()?;
            let file = work.path().join("disk");
            command::make(&root.layers, &file, &work.path().join("view"))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400);
            fs::set_permissions(&file, mode).map_err(ImageError::path("protect", &file))?;
            inner.layout.publish_file(&file, &place)?;
            Ok(place)
        });
        made.await
            .map_err(|error| ImageError::Internal(error.to_string()))?
    }
}

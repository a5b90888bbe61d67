//! An image's root file system as one read-only disk, for drivers that attach disks.
//!
//! The disk is an EROFS image without compression, made once for each image out of its layers and
//! shared by all microVMs that run from it: what they read lies in the host's page cache once.
//! It goes when its image goes.

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

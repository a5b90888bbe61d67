//! Where things lie below the store's directory.
//!
//! | path | what |
//! | --- | --- |
//! | `lock` | held while the store is open |
//! | `blobs/sha256/HEX` | compressed layers, verified; dropped once unpacked |
//! | `blobs/partial/HEX` | downloads that are under way or can be resumed |
//! | `layers/HEX/root` | an unpacked layer, complete; `layers/HEX/layer.json` describes it |
//! | `images/HEX.json` | an image: its layers and its configuration |
//! | `disks/HEX` | an image as one disk, for drivers that attach disks |
//! | `removed/HEX.json` | an image that was removed while sandboxes ran from it |
//! | `sources/HEX.json` | what a source was last built to, and from what state of it |
//! | `packages/` | Debian packages, kept for the next try |
//! | `temporary/` | what is being made; emptied when the store is opened |
//! | `trash/` | what is being deleted; emptied when the store is opened |
//!
//! Everything is made in `temporary/` and renamed to its place, so that what has a name is whole.

use crate::{digest::Digest, error::ImageError};
use api::ImageDigest;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// How often, and after which pause, the trash is looked at again before the store is left.
const SETTLE_TRIES: u32 = 100;
const SETTLE_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// The store's directory.
#[derive(Debug)]
pub(crate) struct Layout {
    directory: PathBuf,
    /// Whether to wait until what is made is on the disk before it gets its name.
    durable: bool,
    /// Distinguishes this run from others, whose process id may have been the same.
    run: String,
    counter: AtomicU64,
}

/// A directory in `temporary/` that is removed with this value unless it was given a name.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    trash: PathBuf,
}

impl Layout {
    pub(crate) fn create(directory: &Path, durable: bool) -> Result<Self, ImageError> {
        for part in [
            "blobs/sha256",
            "blobs/partial",
            "layers",
            "images",
            "disks",
            "removed",
            "sources",
            "packages",
            "temporary",
            "trash",
        ] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(ImageError::path("create", &path))?;
        }
        let directory = directory
            .canonicalize()
            .map_err(ImageError::path("open", directory))?;
        // Set-user-id files of images lie below: nobody but root may get at them.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&directory, mode).map_err(ImageError::path("protect", &directory))?;
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| ImageError::path("open", &directory)(error.into()))?;
        let run = format!("{:016x}", u64::from_le_bytes(random));
        Ok(Self {
            directory,
            durable,
            run,
            counter: AtomicU64::new(0),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/partial").join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.directory.join("layers")
    }

    pub(crate) fn layer(&self, name: &Digest) -> PathBuf {
        self.layers().join(name.hex())
    }

    pub(crate) fn layer_root(&self, name: &Digest) -> PathBuf {
        self.layer(name).join("root")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.directory.join("disks")
    }

    pub(crate) fn disk(&self, image: &ImageDigest) -> PathBuf {
        let hex = image.as_str().trim_start_matches("sha256:");
        self.disks().join(hex)
    }

    pub(crate) fn removed(&self) -> PathBuf {
        self.directory.join("removed")
    }

    pub(crate) fn sources(&self) -> PathBuf {
        self.directory.join("sources")
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.directory.join("blobs/partial")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    pub(crate) fn packages(&self) -> PathBuf {
        self.directory.join("packages")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.directory.join("trash")
    }

    fn temporaries(&self) -> PathBuf {
        self.directory.join("temporary")
    }

    /// A name that nobody else uses.
    fn unique(&self) -> String {
        format!(
            "{}-{}",
            self.run,
            self.counter.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// A new directory for something that is being made.
    pub(crate) fn temporary(&self) -> Result<Temporary, ImageError> {
        let name = self.unique();
        let path = self.temporaries().join(&name);
        fs::create_dir(&path).map_err(ImageError::path("create", &path))?;
        Ok(Temporary {
            path,
            trash: self.trash().join(name),
        })
    }

    /// Gives `made` the name `place`. Somebody else's equal content that has the name already
    /// stays, and `made` is dropped.
    pub(crate) fn publish(&self, made: Temporary, place: &Path) -> Result<(), ImageError> {
        if self.durable {
            // One call for thousands of files, instead of one for each.
            let directory =
                fs::File::open(&made.path).map_err(ImageError::path("open", &made.path))?;
            rustix::fs::syncfs(&directory)
                .map_err(|error| ImageError::path("write out", &made.path)(error.into()))?;
        }
        match fs::rename(&made.path, place) {
            Ok(()) => {}
            Err(_) if place.is_dir() => return Ok(()),
            Err(error) => return Err(ImageError::path("create", place)(error)),
        }
        self.sync_parent(place)
    }

    /// Gives the file `made`, in a temporary directory, the name `place`.
    pub(crate) fn publish_file(&self, made: &Path, place: &Path) -> Result<(), ImageError> {
        if self.durable {
            let written = fs::File::open(made).and_then(|file| file.sync_all());
            written.map_err(ImageError::path("write out", made))?;
        }
        fs::rename(made, place).map_err(ImageError::path("create", place))?;
        self.sync_parent(place)
    }

    /// Writes a small file as a whole or not at all.
    pub(crate) fn write(&self, place: &Path, content: &[u8]) -> Result<(), ImageError> {
        let path = self.temporaries().join(self.unique());
        let written = fs::File::create(&path).and_then(|mut file| {
            file.write_all(content)?;
            if self.durable {
                file.sync_all()
            } else {
                Ok(())
            }
        });
        let renamed = written.and_then(|()| fs::rename(&path, place));
        if renamed.is_err() {
            _ = fs::remove_file(&path);
        }
        renamed.map_err(ImageError::path("write", place))?;
        self.sync_parent(place)
    }

    fn sync_parent(&self, place: &Path) -> Result<(), ImageError> {
        match place.parent() {
            Some(parent) if self.durable => fs::File::open(parent)
                .and_then(|directory| directory.sync_all())
                .map_err(ImageError::path("write out", parent)),
            _ => Ok(()),
        }
    }

    /// Takes a directory's name away at once; [`Self::empty_trash`] then frees it.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        let target = self.trash().join(self.unique());
        match fs::rename(path, target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::path("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Puts what an earlier run left half made into the trash.
    pub(crate) fn abandon_temporaries(&self) -> Result<(), ImageError> {
        let path = self.temporaries();
        if is_empty(&path) {
            return Ok(());
        }
        self.discard(&path)?;
        fs::create_dir(&path).map_err(ImageError::path("create", &path))
    }

    /// Returns when what is in the trash is gone, whoever deletes it, or cannot be deleted.
    pub(crate) fn wait_for_trash(&self) {
        let trash = self.trash();
        // Who deletes the same may have been faster at one name, and be busy with it.
        for _ in 0..SETTLE_TRIES {
            delete_in(&trash);
            if is_empty(&trash) {
                return;
            }
            std::thread::park_timeout(SETTLE_PAUSE);
        }
    }

    /// Deletes what is in the trash, away from whoever asked.
    pub(crate) fn empty_trash(&self) {
        let trash = self.trash();
        if is_empty(&trash) {
            return;
        }
        let delete = move || delete_in(&trash);
        if let Err(error) = std::thread::Builder::new()
            .name("image-trash".into())
            .spawn(delete)
        {
            tracing::warn!(%error, "can't start a thread to delete the trash");
        }
    }
}

fn delete_in(trash: &Path) {
    for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "can't delete");
        }
    }
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn remove(path: &Path) -> std::io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        // Somebody else deletes the same trash.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed first: deleting takes long, and a name in `temporary/` means work under way.
        if fs::rename(&self.path, &self.trash).is_ok() {
            _ = remove(&self.trash);
        }
    }
}

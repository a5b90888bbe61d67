//! Removing images, and what nothing needs any more.

use super::{ImageRecord, ImageStore, Inner, LayerRecord, SourceRecord, State};
use crate::{digest::Digest, error::ImageError};
use api::{Bytes, ImageDigest};
use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// What a collection deleted, or would delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GarbageReport {
    /// Layers that no image has, and nobody holds.
    pub layers: u64,
    /// Disks of images that are gone.
    pub disks: u64,
    /// Abandoned downloads, whole or partial.
    pub downloads: u64,
    /// Debian packages that were kept for another try.
    pub packages: u64,
    /// Images that had been removed while sandboxes ran from them.
    pub images: u64,
    /// What all of it takes on the disk.
    pub bytes: Bytes,
}

impl ImageStore {
    /// Removes an image; returns how many bytes that frees.
    ///
    /// Layers that another image has stay. If the image is held, nothing is freed now (so 0) but
    /// when the last hold goes. Deleting itself happens in the background.
    pub fn remove(&self, digest: &ImageDigest) -> Result<Bytes, ImageError> {
        let inner = &self.inner;
        let mut state = inner.state();
        let record = state
            .images
            .get(digest)
            .cloned()
            .ok_or_else(|| ImageError::Unknown(digest.clone()))?;
        let name = file_name(digest);
        let path = inner.layout.images().join(&name);
        if state.pins.contains_key(digest) {
            let target = inner.layout.removed().join(&name);
            fs::rename(&path, &target).map_err(ImageError::path("remove", &path))?;
            state.images.remove(digest);
            state.removed.insert(digest.clone(), record);
            forget_sources(inner, digest);
            return Ok(Bytes(0));
        }
        fs::remove_file(&path).map_err(ImageError::path("remove", &path))?;
        state.images.remove(digest);
        forget_sources(inner, digest);
        Ok(Bytes(inner.free(&mut state, digest, &record)))
    }

    /// Deletes layers that no image has and nobody holds, disks of images that are gone, removed images that nobody holds any
    /// more, and downloads and packages older than [`super::StoreOptions::unfinished_kept`].
    ///
    /// With `dry_run` it only counts. A restarted node must first hold ([`ImageStore::root`]) what
    /// its sandboxes run from.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<GarbageReport, ImageError> {
        let inner = &self.inner;
        let mut report = GarbageReport::default();
        let mut state = inner.state();
        let abandoned: Vec<ImageDigest> = state
            .removed
            .keys()
            .filter(|digest| !state.pins.contains_key(*digest))
            .cloned()
            .collect();
        report.images = abandoned.len() as u64;
        let mut needed = state.needed_layers();
        if dry_run {
            needed = state.needed_layers_without(&abandoned);
        } else {
            for digest in &abandoned {
                state.removed.remove(digest);
                _ = fs::remove_file(inner.layout.removed().join(file_name(digest)));
            }
            if !abandoned.is_empty() {
                needed = state.needed_layers();
            }
        }
        for (name, path) in named_entries(&inner.layout.layers()) {
            if name.is_some_and(|name| needed.contains(&name)) {
                continue;
            }
            report.layers += 1;
            report.bytes.0 += layer_bytes(&path);
            if !dry_run {
                inner.layout.discard(&path)?;
            }
        }
        let (images, removed) = (&state.images, &state.removed);
        for (name, path) in named_entries(&inner.layout.disks()) {
            let image = name.and_then(|name| super::image_digest(&name));
            let needed = image.is_some_and(|image| {
                images.contains_key(&image)
                    || removed.contains_key(&image) && !abandoned.contains(&image)
            });
            if needed {
                continue;
            }
            report.disks += 1;
            report.bytes.0 += allocated(&path);
            if !dry_run {
                inner.layout.discard(&path)?;
            }
        }
        for directory in [inner.layout.partials(), inner.layout.blobs()] {
            for (name, path) in named_entries(&directory) {
                let used = name.is_some_and(|name| state.blob_uses.contains_key(&name));
                let kept = directory == inner.layout.blobs() && inner.options.keep_blobs;
                if used || kept || !is_old(&path, inner.options.unfinished_kept) {
                    continue;
                }
                report.downloads += 1;
                report.bytes.0 += fs::metadata(&path).map_or(0, |metadata| metadata.len());
                if !dry_run {
                    inner.layout.discard(&path)?;
                }
            }
        }
        for (_, path) in named_entries(&inner.layout.packages()) {
            let is_package = path.extension().is_some_and(|extension| extension == "deb");
            if is_package && is_old(&path, inner.options.unfinished_kept) {
                report.packages += 1;
                report.bytes.0 += fs::metadata(&path).map_or(0, |metadata| metadata.len());
                if !dry_run {
                    inner.layout.discard(&path)?;
                }
            }
        }
        drop(state);
        inner.layout.empty_trash();
        Ok(report)
    }

    /// Returns when all that was removed is gone from the disk. For the end, when nothing more is
    /// about to go. Blocks.
    pub fn settle(&self) {
        self.inner.layout.wait_for_trash();
    }
}

impl State {
    /// The layers that an image, a hold or a build needs.
    fn needed_layers(&self) -> HashSet<Digest> {
        self.needed_layers_without(&[])
    }

    fn needed_layers_without(&self, abandoned: &[ImageDigest]) -> HashSet<Digest> {
        let removed = self
            .removed
            .iter()
            .filter(|(digest, _)| !abandoned.contains(digest));
        let images = self
            .images
            .values()
            .chain(removed.map(|(_, record)| record));
        images
            .flat_map(|record| record.layers.iter().copied())
            .chain(self.layer_uses.keys().copied())
            .collect()
    }
}

impl Inner {
    /// Frees the layers of an image that was taken out of `state` and that nothing else needs.
    pub(super) fn free(
        &self,
        state: &mut State,
        digest: &ImageDigest,
        record: &ImageRecord,
    ) -> u64 {
        _ = fs::remove_file(self.layout.removed().join(file_name(digest)));
        let needed = state.needed_layers();
        let layers: HashSet<&Digest> = record.layers.iter().collect();
        let disk = self.layout.disk(digest);
        let mut bytes = allocated(&disk);
        if let Err(error) = self.layout.discard(&disk) {
            tracing::warn!(%error, "a disk stays until garbage is collected");
        }
        for layer in layers.into_iter().filter(|layer| !needed.contains(layer)) {
            let path = self.layout.layer(layer);
            let size = layer_bytes(&path);
            match self.layout.discard(&path) {
                Ok(()) => bytes += size,
                Err(error) => tracing::warn!(%error, "a layer stays until garbage is collected"),
            }
        }
        self.layout.empty_trash();
        bytes
    }
}

/// What a file takes on the disk; 0 if it is not there.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn file_name(digest: &ImageDigest) -> String {
    format!("{}.json", digest.as_str().trim_start_matches("sha256:"))
}

fn forget_sources(inner: &Inner, digest: &ImageDigest) {
    for (_, path) in named_entries(&inner.layout.sources()) {
        let record = fs::read(&path)
            .ok()
            .and_then(|content| serde_json::from_slice::<SourceRecord>(&content).ok());
        if record.is_none_or(|record| record.image == *digest) {
            _ = fs::remove_file(path);
        }
    }
}

/// What lies in a directory; the first is the name if it is a digest.
fn named_entries(directory: &Path) -> Vec<(Option<Digest>, std::path::PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let name = entry
                .file_name()
                .to_str()
                .and_then(|hex| format!("sha256:{hex}").parse().ok());
            (name, entry.path())
        })
        .collect()
}

fn layer_bytes(path: &Path) -> u64 {
    fs::read(path.join("layer.json"))
        .ok()
        .and_then(|content| serde_json::from_slice::<LayerRecord>(&content).ok())
        .map_or(0, |record| record.bytes)
}

/// Whether a file was last touched longer than `age` ago.
fn is_old(path: &Path, age: Duration) -> bool {
    // The time of change and not of modification: apt sets the latter to the mirror's.
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(metadata.ctime().max(0) as u64);
    SystemTime::now()
        .duration_since(changed)
        .unwrap_or_default()
        >= age
}

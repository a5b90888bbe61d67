//! Holding layers, images and downloads, so that nobody deletes them.

use super::{ImageConfig, ImageRecord, Inner, LayerRecord};
use crate::{digest::Digest, error::ImageError};
use api::{Bytes, ImageDigest};
use std::{collections::HashMap, fs, hash::Hash, path::PathBuf, sync::Arc};

/// An image's root file system. Its layers stay on disk while this value or a clone exists.
#[derive(Debug, Clone)]
pub struct RootFs {
    /// Read-only directories, uppermost first, in overlayfs's format: `lowerdir` as it is. One
    /// layer alone is a plain directory.
    pub layers: Vec<PathBuf>,
    /// How the image wants its processes to be run.
    pub config: ImageConfig,
    /// Bytes of all layers.
    pub size: Bytes,
    digest: ImageDigest,
    _pin: Arc<Pin>,
}

impl RootFs {
    pub(super) fn new(inner: Arc<Inner>, digest: ImageDigest, record: &ImageRecord) -> Self {
        Self {
            layers: record
                .layers
                .iter()
                .rev()
                .map(|name| inner.layout.layer_root(name))
                .collect(),
            config: record.config.clone(),
            size: Bytes(record.bytes),
            digest: digest.clone(),
            _pin: Arc::new(Pin { inner, digest }),
        }
    }

    /// The image.
    pub fn digest(&self) -> &ImageDigest {
        &self.digest
    }
}

struct Pin {
    inner: Arc<Inner>,
    digest: ImageDigest,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pin({})", self.digest)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if release(&mut state.pins, &self.digest)
            && let Some(record) = state.removed.remove(&self.digest)
        {
            self.inner.free(&mut state, &self.digest, &record);
        }
    }
}

/// A layer that a build holds until its image is saved.
pub(crate) struct LayerUse {
    inner: Arc<Inner>,
    name: Digest,
    bytes: u64,
}

impl LayerUse {
    pub(crate) fn name(&self) -> Digest {
        self.name
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.inner.layout.layer_root(&self.name)
    }
}

impl Drop for LayerUse {
    fn drop(&mut self) {
        release(&mut self.inner.state().layer_uses, &self.name);
    }
}

/// A download that a build holds until its layer is unpacked.
pub(crate) struct BlobUse {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for BlobUse {
    fn drop(&mut self) {
        release(&mut self.inner.state().blob_uses, &self.digest);
    }
}

impl Inner {
    /// Holds the layer `name` if it is there.
    pub(crate) fn layer(self: &Arc<Self>, name: Digest) -> Option<LayerUse> {
        let held = self.reserve_layer(name, 0);
        let content = fs::read(self.layout.layer(&name).join("layer.json")).ok()?;
        let record: LayerRecord = serde_json::from_slice(&content).ok()?;
        Some(LayerUse {
            bytes: record.bytes,
            inner: self.clone(),
            name: held.name,
        })
    }

    /// Holds the name of a layer that is about to be made.
    pub(crate) fn reserve_layer(self: &Arc<Self>, name: Digest, bytes: u64) -> LayerUse {
        *self.state().layer_uses.entry(name).or_default() += 1;
        LayerUse {
            inner: self.clone(),
            name,
            bytes,
        }
    }

    /// Holds a download.
    pub(crate) fn reserve_blob(self: &Arc<Self>, digest: Digest) -> BlobUse {
        *self.state().blob_uses.entry(digest).or_default() += 1;
        BlobUse {
            inner: self.clone(),
            digest,
        }
    }

    /// Deletes a download whose layer is unpacked, unless another build still needs it.
    pub(crate) fn drop_blob(&self, digest: &Digest) {
        let state = self.state();
        if !self.options.keep_blobs && !state.blob_uses.contains_key(digest) {
            _ = fs::remove_file(self.layout.blob(digest));
        }
    }

    /// Gives a layer that was made its name, and holds it.
    pub(crate) fn publish_layer(
        self: &Arc<Self>,
        made: super::Temporary,
        name: Digest,
        record: &LayerRecord,
    ) -> Result<LayerUse, ImageError> {
        let path = made.path().join("layer.json");
        fs::write(&path, super::to_json(record)?).map_err(ImageError::path("write", &path))?;
        let held = self.reserve_layer(name, record.bytes);
        self.layout.publish(made, &self.layout.layer(&name))?;
        Ok(held)
    }
}

/// Takes one count away; true if it was the last.
fn release<K: Hash + Eq>(counts: &mut HashMap<K, u64>, key: &K) -> bool {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => {
            counts.remove(key);
            true
        }
        None => false,
    }
}

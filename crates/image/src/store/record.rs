//! What the store remembers on disk.

use crate::digest::{Digest, Hasher};
use api::{Bytes, ImageDigest, node::BuiltImage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How an image wants its processes to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables.
    pub environment: BTreeMap<String, String>,
    /// The user, by name or number, perhaps with a group after a colon.
    pub user: Option<String>,
    /// The working directory.
    pub working_directory: Option<String>,
    /// Entry point and command.
    pub command: Vec<String>,
}

/// An unpacked layer: `layers/HEX/layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The digest of its content: of the uncompressed archive, or of the folder's tree.
    pub(crate) content: Digest,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// An image: `images/HEX.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Names of its layers' directories, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// How its processes run.
    pub(crate) config: ImageConfig,
    /// Bytes of all layers.
    pub(crate) bytes: u64,
    /// What it was built from, as users write it.
    pub(crate) source: String,
    /// When.
    pub(crate) built_at: Timestamp,
}

/// What a source was last built to: `sources/HEX.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceRecord {
    /// The source, as users write it, and whom it was built for where that matters.
    pub(crate) source: String,
    /// What told its state then: a manifest's digest, a file's time and size, a definition.
    pub(crate) fingerprint: String,
    /// The image.
    pub(crate) image: ImageDigest,
}

impl ImageRecord {
    /// The image's name: the digest of its layers and its configuration.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.field(b"atoll image 1");
        for layer in &self.layers {
            hasher.field(layer.to_string().as_bytes());
        }
        hasher.field(b"");
        for (name, value) in &self.config.environment {
            hasher.field(name.as_bytes());
            hasher.field(value.as_bytes());
        }
        hasher.field(b"");
        for text in [&self.config.user, &self.config.working_directory] {
            hasher.field(text.as_deref().unwrap_or_default().as_bytes());
        }
        for word in &self.config.command {
            hasher.field(word.as_bytes());
        }
        hasher.finish()
    }

    /// As the control plane sees it.
    pub(crate) fn built(&self, digest: ImageDigest) -> BuiltImage {
        BuiltImage {
            digest,
            size: Bytes(self.bytes),
            environment: self.config.environment.clone(),
            user: self.config.user.clone(),
            working_directory: self.config.working_directory.clone(),
            command: self.config.command.clone(),
        }
    }
}

/// A digest as the rest of Atoll writes it.
pub(crate) fn image_digest(digest: &Digest) -> Option<ImageDigest> {
    digest.to_string().parse().ok()
}

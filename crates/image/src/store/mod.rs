//! The store: what is on disk, who holds it, and what may go.
//!
//! Layers are found by name, images by digest. Three things keep a layer: an image that has it, a
//! removed image that a sandbox still runs from ([`RootFs`]), and a build under way. All three
//! are counted under one lock, so nothing is deleted between being found and being held.

mod garbage;
mod layout;
mod locks;
mod pins;
mod record;

pub use garbage::GarbageReport;
pub use pins::RootFs;
pub use record::ImageConfig;

pub(crate) use layout::{Layout, Temporary};
pub(crate) use pins::{BlobUse, LayerUse};
pub(crate) use record::{ImageRecord, LayerRecord, SourceRecord, image_digest};

use crate::{
    build::{self, Job},
    digest::Digest,
    error::ImageError,
    limits::Limits,
};
use api::{
    Bytes, ImageDigest,
    node::{BuildEvent, BuiltImage},
    template::{Requester, TemplateSource},
};
use futures::stream::BoxStream;
use jiff::Timestamp;
use locks::KeyedLocks;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// How a store is to work.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where everything lies; made if it is not there.
    pub directory: PathBuf,
    /// Builds that may run at the same time; more wait.
    pub concurrent_builds: usize,
    /// Layers that may be downloaded at the same time.
    pub concurrent_downloads: usize,
    /// Whether compressed layers are kept after they were unpacked.
    pub keep_blobs: bool,
    /// How long an unfinished download, or a Debian package, is kept for the next try.
    pub unfinished_kept: Duration,
    /// Whether to wait for the disk before something counts as made. Turn it off in tests only.
    pub durable: bool,
    /// Docker's configuration file; `None` for `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Registries (`host` or `host:port`) that are spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Bounds on what is unpacked.
    pub limits: Limits,
}

impl StoreOptions {
    /// The usual options for a store in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            concurrent_builds: 2,
            concurrent_downloads: 4,
            keep_blobs: false,
            unfinished_kept: Duration::from_secs(7 * 24 * 3600),
            durable: true,
            docker_config: None,
            insecure_registries: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageDescription {
    /// Its name.
    pub digest: ImageDigest,
    /// What it was built from, as users write it.
    pub source: String,
    /// When it was built first.
    pub built_at: Timestamp,
    /// Bytes of its layers, some of which other images may share.
    pub size: Bytes,
    /// Its layers.
    pub layers: usize,
    /// How many hold it ([`RootFs`]).
    pub pins: u64,
}

/// Builds images and keeps them. Clones share one store.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: StoreOptions,
    pub(crate) layout: Layout,
    state: Mutex<State>,
    pub(crate) jobs: Mutex<HashMap<build::JobKey, Arc<Job>>>,
    pub(crate) builds: Semaphore,
    pub(crate) downloads: Semaphore,
    pub(crate) locks: KeyedLocks,
    pub(crate) http: std::sync::OnceLock<reqwest::Client>,
    /// For builds of tenants: it reaches the internet alone.
    pub(crate) tenants_http: std::sync::OnceLock<reqwest::Client>,
    /// Keeps other processes out for as long as it is open.
    _lock: fs::File,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "store in {}", self.layout.directory().display())
    }
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageDigest, ImageRecord>,
    /// Removed, and kept until the last pin goes.
    removed: BTreeMap<ImageDigest, ImageRecord>,
    pins: HashMap<ImageDigest, u64>,
    layer_uses: HashMap<Digest, u64>,
    blob_uses: HashMap<Digest, u64>,
}

impl ImageStore {
    /// Opens the store, and makes it if it is not there.
    ///
    /// What an earlier run left half made is deleted, in the background. Reads one small file for
    /// each image and nothing else.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        let layout = Layout::create(&options.directory, options.durable)?;
        let path = layout.directory().join("lock");
        let lock = fs::File::create(&path).map_err(ImageError::path("open", &path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| ImageError::InUse(layout.directory().to_owned()))?;
        layout.abandon_temporaries()?;
        layout.empty_trash();
        let state = State {
            images: read_images(&layout, &layout.images()),
            removed: read_images(&layout, &layout.removed()),
            ..State::default()
        };
        Ok(Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                jobs: Mutex::default(),
                builds: Semaphore::new(options.concurrent_builds.max(1)),
                downloads: Semaphore::new(options.concurrent_downloads.max(1)),
                locks: KeyedLocks::default(),
                http: std::sync::OnceLock::new(),
                tenants_http: std::sync::OnceLock::new(),
                _lock: lock,
                layout,
                options,
            }),
        })
    }

    /// Builds an image, or finds that it is there and its source unchanged.
    ///
    /// The last event is `Ready` or `Failed`. Concurrent builds of one source share the work; who
    /// comes late first gets the step that is under way. When the last stream of a build is
    /// dropped, the build is cancelled; what it fetched is kept for the next try.
    ///
    /// `base` and `debian:` are built once for each definition and set of packages; see
    /// [`Self::rebuild`]. For a tenant, registries are asked without the node's credentials, and
    /// only those on the internet. Must be called within a Tokio runtime.
    pub fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> BoxStream<'static, BuildEvent> {
        build::start(&self.inner, source, requester, false)
    }

    /// Like [`Self::build`], but does the work even if the source seems unchanged.
    pub fn rebuild(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> BoxStream<'static, BuildEvent> {
        build::start(&self.inner, source, requester, true)
    }

    /// An image's root file system, held until the last clone of the result is dropped.
    ///
    /// Finds removed images too while something of them is kept, so that a restarted node can
    /// hold what its sandboxes run from before it collects garbage.
    pub fn root(&self, digest: &ImageDigest) -> Result<RootFs, ImageError> {
        let mut state = self.inner.state();
        let record = state
            .images
            .get(digest)
            .or_else(|| state.removed.get(digest))
            .cloned()
            .ok_or_else(|| ImageError::Unknown(digest.clone()))?;
        *state.pins.entry(digest.clone()).or_default() += 1;
        drop(state);
        Ok(RootFs::new(self.inner.clone(), digest.clone(), &record))
    }

    /// What is known of an image; `None` if there is none.
    pub fn get(&self, digest: &ImageDigest) -> Option<BuiltImage> {
        let state = self.inner.state();
        state
            .images
            .get(digest)
            .map(|record| record.built(digest.clone()))
    }

    /// All images.
    pub fn list(&self) -> Vec<ImageDescription> {
        let state = self.inner.state();
        state
            .images
            .iter()
            .map(|(digest, record)| ImageDescription {
                digest: digest.clone(),
                source: record.source.clone(),
                built_at: record.built_at,
                size: Bytes(record.bytes),
                layers: record.layers.len(),
                pins: state.pins.get(digest).copied().unwrap_or_default(),
            })
            .collect()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `key` was built to last, if its state is still `fingerprint` and the image is there.
    pub(crate) fn unchanged(&self, key: &str, fingerprint: &str) -> Option<BuiltImage> {
        let path = self.source_path(key);
        let record: SourceRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        if record.source != key || record.fingerprint != fingerprint {
            return None;
        }
        let state = self.state();
        let image = state.images.get(&record.image)?;
        Some(image.built(record.image.clone()))
    }

    /// Makes an image of `layers` (lowest first) of `source`, and remembers under `key` that it
    /// gave it.
    pub(crate) fn save(
        &self,
        source: &str,
        key: &str,
        fingerprint: &str,
        layers: &[LayerUse],
        config: ImageConfig,
    ) -> Result<BuiltImage, ImageError> {
        let record = ImageRecord {
            layers: layers.iter().map(|layer| layer.name()).collect(),
            config,
            bytes: layers.iter().map(|layer| layer.bytes()).sum(),
            source: source.to_owned(),
            built_at: Timestamp::now(),
        };
        let name = record.digest();
        let digest = image_digest(&name)
            .ok_or_else(|| ImageError::Internal("a digest has a wrong form".into()))?;
        let built = record.built(digest.clone());
        let mut state = self.state();
        if !state.images.contains_key(&digest) {
            let path = self.layout.images().join(format!("{}.json", name.hex()));
            self.layout.write(&path, &to_json(&record)?)?;
            // An image that comes back while sandboxes of its first life still run is one again.
            if state.removed.remove(&digest).is_some() {
                _ = fs::remove_file(self.layout.removed().join(format!("{}.json", name.hex())));
            }
            state.images.insert(digest.clone(), record);
        }
        drop(state);
        let record = SourceRecord {
            source: key.to_owned(),
            fingerprint: fingerprint.to_owned(),
            image: digest,
        };
        self.layout
            .write(&self.source_path(key), &to_json(&record)?)?;
        Ok(built)
    }

    fn source_path(&self, key: &str) -> PathBuf {
        self.layout
            .sources()
            .join(format!("{}.json", Digest::of(key.as_bytes()).hex()))
    }
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec_pretty(value).map_err(|error| ImageError::Internal(error.to_string()))
}

/// Reads the images described in `directory`; those that lost a layer are left out.
fn read_images(layout: &Layout, directory: &std::path::Path) -> BTreeMap<ImageDigest, ImageRecord> {
    let mut images = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let record = fs::read(entry.path())
            .ok()
            .and_then(|content| serde_json::from_slice::<ImageRecord>(&content).ok());
        match record {
            Some(record)
                if record
                    .layers
                    .iter()
                    .all(|layer| layout.layer(layer).is_dir()) =>
            {
                if let Some(digest) = image_digest(&record.digest()) {
                    images.insert(digest, record);
                }
            }
            _ => tracing::warn!(path = %entry.path().display(), "not a whole image; left out"),
        }
    }
    images
}

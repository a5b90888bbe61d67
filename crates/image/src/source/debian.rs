//! `debian:SUITE[+package,…]`: a minimal Debian, installed by mmdebstrap.
//!
//! mmdebstrap runs in a mount and a process namespace of its own, so that killing its first
//! process ends all of it and takes every mount along; it dies with the thread that started it.
//! Its archive goes straight into the unpacker. Packages that it downloads are kept for the next
//! try in the store's `packages/`, which is mounted over apt's cache.

use super::{
    apt_sources,
    mmdebstrap::{self, Bootstrap},
};
use crate::{
    build::{Build, Made},
    digest::Hasher,
    error::ImageError,
    store::ImageConfig,
};

/// Settled last in every Debian image: nothing of the host's stays.
const SETTLE: &str = include_str!("debian.sh");
/// Raise it when the way in which Debian images are made changes.
const VERSION: u32 = 2;

pub(super) async fn make(
    build: &Build,
    suite: &str,
    packages: &[String],
) -> Result<Made, ImageError> {
    let mut packages = packages.to_vec();
    packages.sort();
    packages.dedup();
    let definition = Definition {
        version: VERSION,
        suite: suite.to_owned(),
        packages,
        excluded: &[],
        script: String::new(),
        config: ImageConfig::default(),
    };
    bootstrap(build, definition).await
}

/// What a Debian image is made of. A changed definition makes another image.
pub(super) struct Definition {
    pub(super) version: u32,
    pub(super) suite: String,
    /// Sorted.
    pub(super) packages: Vec<String>,
    /// Patterns of files that dpkg leaves out; those beginning with `!` are kept.
    pub(super) excluded: &'static [&'static str],
    /// Run by `sh` with the root file system as `$1`, before [`SETTLE`].
    pub(super) script: String,
    pub(super) config: ImageConfig,
}

impl Definition {
    fn fingerprint(&self) -> String {
        let mut hasher = Hasher::default();
        hasher.field(&self.version.to_le_bytes());
        hasher.field(&VERSION.to_le_bytes());
        hasher.field(self.suite.as_bytes());
        hasher.field(self.packages.join(",").as_bytes());
        hasher.field(self.excluded.join(" ").as_bytes());
        hasher.field(self.script.as_bytes());
        hasher.field(SETTLE.as_bytes());
        hasher.field(format!("{:?}", self.config).as_bytes());
        format!("definition {}", hasher.finish())
    }
}

/// Makes the image of a definition, or finds it made.
pub(super) async fn bootstrap(build: &Build, definition: Definition) -> Result<Made, ImageError> {
    let fingerprint = definition.fingerprint();
    if let Some(image) = build.unchanged(&fingerprint) {
        return Ok(Made::Unchanged(image));
    }
    mmdebstrap::find().await?;
    // One at a time: apt's cache is shared.
    let guard = build.store.locks.lock("debian".into()).await;
    let Definition {
        suite,
        packages,
        excluded,
        script,
        config,
        ..
    } = definition;
    let store = build.store.clone();
    let layer = build
        .blocking(move |report| {
            let _guard = guard;
            let sources = apt_sources::of_host(&suite);
            let script = format!("#!/bin/sh\nset -eu\nroot=\"$1\"\n{script}\n{SETTLE}");
            Bootstrap {
                suite,
                packages,
                excluded,
                sources,
                script,
            }
            .run(&store, report)
        })
        .await?;
    Ok(Made::Image {
        layers: vec![layer],
        config,
        fingerprint,
    })
}

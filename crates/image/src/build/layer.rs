//! From an archive to a layer in the store.

use super::{Build, Counter, Report, Watched};
use crate::{
    archive::compression::Decompressed,
    digest::{Digest, Hasher, HashingReader},
    error::ImageError,
    store::{Inner, LayerRecord, LayerUse},
    unpack::{self, Outcome, Skipped},
};
use api::node::LogLevel;
use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

/// Opens an archive, compressed or not.
pub(crate) type Content = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

impl Build {
    /// The layer of the archive whose uncompressed digest is `diff`, over `lowers` (lowest first):
    /// the one in the store, or unpacked from `content`.
    pub(crate) async fn layer(
        &self,
        diff: Digest,
        lowers: &[LayerUse],
        counter: &Counter,
        content: Content,
    ) -> Result<LayerUse, ImageError> {
        let guard = self.store.locks.lock(format!("layer {diff}")).await;
        if let Some(layer) = self.find_layer(diff, lowers) {
            return Ok(layer);
        }
        let (store, lowers) = (self.store.clone(), Below::of(lowers));
        let counter = counter.clone();
        self.blocking(move |report| {
            // Held to the end of the work, even if nobody waits for it any more.
            let _guard = guard;
            unpack_layer(&store, report, Some(diff), &lowers, &counter, content)
        })
        .await
    }

    /// The layer with the uncompressed digest `diff` over `lowers` (lowest first), if it is there.
    pub(crate) fn find_layer(&self, diff: Digest, lowers: &[LayerUse]) -> Option<LayerUse> {
        let dependent = Below::of(lowers).name_above(diff);
        self.store
            .layer(diff)
            .or_else(|| self.store.layer(dependent))
    }

    /// Unpacks an archive that is an image by itself.
    pub(crate) async fn only_layer(
        &self,
        counter: &Counter,
        content: Content,
    ) -> Result<LayerUse, ImageError> {
        let (store, counter) = (self.store.clone(), counter.clone());
        self.blocking(move |report| {
            unpack_layer(&store, report, None, &Below::default(), &counter, content)
        })
        .await
    }
}

/// The layers below one.
#[derive(Default)]
struct Below {
    /// Lowest first.
    names: Vec<Digest>,
    /// Uppermost first.
    roots: Vec<PathBuf>,
}

impl Below {
    fn of(layers: &[LayerUse]) -> Self {
        Self {
            names: layers.iter().map(LayerUse::name).collect(),
            roots: layers.iter().rev().map(LayerUse::root).collect(),
        }
    }

    /// The name of a layer that is what it is only above these.
    fn name_above(&self, diff: Digest) -> Digest {
        let mut hasher = Hasher::default();
        hasher.field(b"atoll layer 1");
        hasher.field(diff.to_string().as_bytes());
        for name in &self.names {
            hasher.field(name.to_string().as_bytes());
        }
        hasher.finish()
    }
}

/// Unpacks an archive that is an image by itself. Blocks.
pub(crate) fn unpack_only(
    store: &Arc<Inner>,
    report: &Report,
    content: Content,
) -> Result<LayerUse, ImageError> {
    unpack_layer(
        store,
        report,
        None,
        &Below::default(),
        &Counter::default(),
        content,
    )
}

/// Unpacks an archive into the store. Blocks.
fn unpack_layer(
    store: &Arc<Inner>,
    report: &Report,
    expected: Option<Digest>,
    below: &Below,
    counter: &Counter,
    content: Content,
) -> Result<LayerUse, ImageError> {
    let made = store.layout.temporary()?;
    let root = made.path().join("root");
    std::fs::create_dir(&root).map_err(ImageError::path("create", &root))?;
    // An image whose archive says nothing about its root gets the usual one.
    let usual = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&root, usual).map_err(ImageError::path("create", &root))?;
    let unreadable = ImageError::store("can't read the archive");
    let stream = content().and_then(|stream| {
        Decompressed::new(Watched::new(stream, report.clone(), counter.clone()))
    });
    let limits = store.options.limits;
    // Headers and padding come on top of what files hold.
    let most = limits
        .bytes
        .saturating_add(limits.entries.saturating_mul(4096));
    let mut stream = HashingReader::new(stream.map_err(unreadable)?.take(most));
    let outcome = unpack::unpack(&mut stream, &root, &below.roots, limits).map_err(|error| {
        match report.check() {
            Ok(()) => error.into(),
            Err(_) => ImageError::Cancelled,
        }
    })?;
    let diff = stream
        .finish()
        .map_err(ImageError::store("can't read the archive"))?;
    if let Some(expected) = expected.filter(|expected| *expected != diff) {
        return Err(ImageError::source(
            format!("a layer's content is {diff}, but the image says {expected}"),
            "the image is damaged: pull or export it again",
        ));
    }
    tell(report, &outcome);
    let name = if outcome.depends_on_lowers {
        below.name_above(diff)
    } else {
        diff
    };
    let record = LayerRecord {
        content: diff,
        bytes: outcome.bytes,
        entries: outcome.entries,
    };
    store.publish_layer(made, name, &record)
}

fn tell(report: &Report, outcome: &Outcome) {
    tell_skipped(report, &outcome.skipped);
    if outcome.dropped_attributes > 0 {
        report.log(
            LogLevel::Info,
            format!(
                "left out {} extended attributes",
                outcome.dropped_attributes
            ),
        );
    }
}

/// Says which entries were left out.
pub(crate) fn tell_skipped(report: &Report, skipped: &Skipped) {
    if skipped.count > 0 {
        let examples = skipped.examples.join(", ");
        let count = skipped.count;
        report.log(
            LogLevel::Info,
            format!("left out {count} devices and other special files: {examples}"),
        );
    }
}

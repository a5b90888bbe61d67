//! Layers one above the other: fetched side by side, unpacked in their order.

use super::manifest::Descriptor;
use crate::{
    build::{Build, Content, Counter},
    digest::Digest,
    error::ImageError,
    store::{BlobUse, LayerUse},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{fs::File, io::Read, path::PathBuf};
use tokio::sync::oneshot;

/// A layer's archive that can be read now.
pub(super) struct Fetched {
    content: Content,
    /// Keeps a download from being deleted.
    _held: Option<BlobUse>,
}

impl Fetched {
    /// A download.
    pub(super) fn blob(path: PathBuf, held: BlobUse) -> Self {
        let content = Box::new(move || Ok(Box::new(File::open(path)?) as Box<dyn Read + Send>));
        Self {
            content,
            _held: Some(held),
        }
    }

    /// Something that lies on this machine.
    pub(super) fn local(content: Content) -> Self {
        Self {
            content,
            _held: None,
        }
    }
}

/// Gets a layer's archive; what it downloads is counted.
pub(super) type Fetch<'a> =
    dyn Fn(&Descriptor, &Counter) -> BoxFuture<'a, Result<Fetched, ImageError>> + Sync + 'a;

/// Makes the layers, lowest first: those in the store as they are, the others from what `fetch`
/// gives.
pub(super) async fn make<'a>(
    build: &'a Build,
    layers: &[(Descriptor, Digest)],
    fetch: &Fetch<'a>,
) -> Result<Vec<LayerUse>, ImageError> {
    let mut made: Vec<LayerUse> = Vec::new();
    while let Some(layer) = layers
        .get(made.len())
        .and_then(|(_, diff)| build.find_layer(*diff, &made))
    {
        made.push(layer);
    }
    // Held, so that they stay until their turn comes.
    let known: Vec<Option<LayerUse>> = layers[made.len()..]
        .iter()
        .map(|(_, diff)| build.store.layer(*diff))
        .collect();
    let missing = &layers[made.len()..];
    let wanted: Vec<&Descriptor> = missing
        .iter()
        .zip(&known)
        .filter(|(_, known)| known.is_none())
        .map(|((blob, _), _)| blob)
        .collect();
    if missing.is_empty() {
        return Ok(made);
    }
    let total: u64 = wanted.iter().map(|blob| blob.size).sum();
    let plural = |count: usize| if count == 1 { "layer" } else { "layers" };
    let count = wanted.len();
    let fetched = build
        .report
        .step(format!("pulling {count} {}", plural(count)), Some(total));
    let unpacked = Counter::default();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for known in &known {
        let (sender, receiver) = oneshot::channel();
        receivers.push(receiver);
        senders.push(known.is_none().then_some(sender));
    }
    let downloads = missing
        .iter()
        .zip(senders)
        .filter_map(|((blob, _), sender)| {
            let (download, sender) = (fetch(blob, &fetched), sender?);
            Some(async move {
                let fetched = download.await?;
                // Nobody takes it if unpacking failed, and then that is what is told.
                _ = sender.send(fetched);
                Ok::<(), ImageError>(())
            })
        });
    let mut downloads: FuturesUnordered<_> = downloads.collect();
    let download = async {
        while let Some(result) = downloads.next().await {
            result?;
        }
        build.report.step_counted_by(
            format!("unpacking {count} {}", plural(count)),
            Some(total),
            &unpacked,
        );
        Ok::<(), ImageError>(())
    };
    let unpack = async {
        for (((_, diff), known), receiver) in missing.iter().zip(known).zip(receivers) {
            let layer = match known {
                Some(layer) => layer,
                None => {
                    let Ok(Fetched { content, _held }) = receiver.await else {
                        // The download failed, and says so by itself.
                        return futures::future::pending().await;
                    };
                    build.layer(*diff, &made, &unpacked, content).await?
                }
            };
            made.push(layer);
        }
        Ok::<(), ImageError>(())
    };
    tokio::try_join!(download, unpack)?;
    Ok(made)
}

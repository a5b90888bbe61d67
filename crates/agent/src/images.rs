//! What the agent needs of the image store, as a trait, so that it can be tested without one.

use api::{
    ErrorCode, ImageDigest, Problem,
    node::BuildEvent,
    template::{Requester, TemplateSource},
};
use futures::stream::BoxStream;
use image::{GarbageReport, ImageError, ImageStore};
use std::{any::Any, path::PathBuf};

/// A root file system in use.
pub struct Root {
    /// Read-only layers, uppermost first.
    pub layers: Vec<PathBuf>,
    /// Keeps the layers from being removed for as long as it lives.
    pub pin: Box<dyn Any + Send + Sync>,
}

/// A source of root file systems.
#[async_trait::async_trait]
pub trait Images: Send + Sync + 'static {
    /// The layers of a root file system, pinned. Fails with `NotFound` if it is not on this node.
    async fn root(&self, digest: &ImageDigest) -> Result<Root, Problem>;

    /// A root file system as one read-only disk image, made if it is not there. It is kept as long
    /// as the root file system is.
    async fn disk(&self, digest: &ImageDigest) -> Result<PathBuf, Problem> {
        Err(Problem::new(
            ErrorCode::Unsupported,
            format!("there is no disk image of {digest} on this node"),
            "use the container driver",
        ))
    }

    /// Builds a root file system; see [`api::node::Node::build`].
    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem>;

    /// Removes a root file system once nothing uses it.
    async fn remove(&self, digest: &ImageDigest) -> Result<(), Problem>;

    /// Removes what no root file system and no build needs. Only to be called when all that
    /// sandboxes run from is pinned. Failures are logged: the next call tries again.
    async fn collect_garbage(&self) {}

    /// Returns when all that was removed is gone from the disk.
    async fn settle(&self) {}
}

#[async_trait::async_trait]
impl Images for ImageStore {
    async fn root(&self, digest: &ImageDigest) -> Result<Root, Problem> {
        let root = Self::root(self, digest)?;
        Ok(Root {
            layers: root.layers.clone(),
            pin: Box::new(root),
        })
    }

    async fn disk(&self, digest: &ImageDigest) -> Result<PathBuf, Problem> {
        Ok(Self::disk(self, digest).await?)
    }

    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        Ok(Self::build(self, source, requester))
    }

    async fn remove(&self, digest: &ImageDigest) -> Result<(), Problem> {
        let (store, digest) = (self.clone(), digest.clone());
        let removed = tokio::task::spawn_blocking(move || Self::remove(&store, &digest)).await;
        match removed {
            Ok(Ok(_)) => Ok(()),
            // Somebody was faster, and the outcome is the same.
            Ok(Err(ImageError::Unknown(_))) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(Problem::new(
                ErrorCode::Internal,
                format!("removing the image ended unexpectedly: {error}"),
                "try again",
            )),
        }
    }

    async fn collect_garbage(&self) {
        let store = self.clone();
        let collected = tokio::task::spawn_blocking(move || Self::collect_garbage(&store, false));
        match collected.await {
            Ok(Ok(report)) if report == GarbageReport::default() => {}
            Ok(Ok(report)) => tracing::info!(
                layers = report.layers,
                downloads = report.downloads,
                packages = report.packages,
                images = report.images,
                bytes = %report.bytes,
                "removed images' parts that nothing needs"
            ),
            Ok(Err(error)) => tracing::warn!("cannot remove what nothing needs: {error}"),
            Err(error) => tracing::error!("removing what nothing needs failed: {error}"),
        }
    }

    async fn settle(&self) {
        let store = self.clone();
        let settled = tokio::task::spawn_blocking(move || Self::settle(&store)).await;
        if let Err(error) = settled {
            tracing::error!("waiting for what was removed failed: {error}");
        }
    }
}

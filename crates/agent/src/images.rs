//! What the agent needs of the image store, as a trait, so that it can be tested without one.

use api::{ErrorCode, ImageDigest, Problem, node::BuildEvent, template::TemplateSource};
use futures::stream::BoxStream;
use image::{ImageError, ImageStore};
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

    /// Builds a root file system; see [`api::node::Node::build`].
    async fn build(
        &self,
        source: TemplateSource,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem>;

    /// Removes a root file system once nothing uses it.
    async fn remove(&self, digest: &ImageDigest) -> Result<(), Problem>;
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

    async fn build(
        &self,
        source: TemplateSource,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        Ok(Self::build(self, source))
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
}

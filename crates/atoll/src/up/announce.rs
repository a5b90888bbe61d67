//! Tells the operator how builds get on: the built-in template's with a bar, others in the log.

use crate::progress::Progress;
use agent::{Images, Root};
use api::{
    ImageDigest, Problem,
    node::BuildEvent,
    template::{Requester, TemplateSource},
};
use futures::{StreamExt, stream::BoxStream};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A source of root file systems whose builds are shown.
pub(super) struct Announced<I> {
    images: I,
    /// Whether a bar is on the screen: there is room for one.
    shown: Arc<AtomicBool>,
}

impl<I> Announced<I> {
    /// Shows the builds of `images`.
    pub(super) fn new(images: I) -> Self {
        Self {
            images,
            shown: Arc::default(),
        }
    }
}

/// What one build shows.
enum Display {
    Bar(Box<Progress>, Arc<AtomicBool>),
    Log(String),
}

impl Display {
    fn show(&mut self, event: &BuildEvent) {
        match self {
            Self::Bar(progress, _) => {
                progress.show(event);
                if let BuildEvent::Failed { cause, remedy } = event {
                    progress.line(&crate::style::harmless(&format!(
                        "not built: {cause}; {remedy}"
                    )));
                }
            }
            Self::Log(source) => match event {
                BuildEvent::Step { name, .. } => tracing::info!(source, "build: {name}"),
                BuildEvent::Ready(image) => tracing::info!(source, size = %image.size, "built"),
                BuildEvent::Failed { cause, .. } => tracing::warn!(source, "not built: {cause}"),
                BuildEvent::Progress { .. } | BuildEvent::Log(_) => {}
            },
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Self::Bar(progress, shown) = self {
            progress.finish();
            shown.store(false, Ordering::Release);
        }
    }
}

#[async_trait::async_trait]
impl<I: Images> Images for Announced<I> {
    async fn root(&self, digest: &ImageDigest) -> Result<Root, Problem> {
        self.images.root(digest).await
    }

    async fn disk(&self, digest: &ImageDigest) -> Result<PathBuf, Problem> {
        self.images.disk(digest).await
    }

    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        let base = source == TemplateSource::Base;
        let name = source.to_string();
        let stream = self.images.build(source, requester).await?;
        let mut display = if base && !self.shown.swap(true, Ordering::AcqRel) {
            Display::Bar(Box::new(Progress::new(&name)), self.shown.clone())
        } else {
            Display::Log(name)
        };
        Ok(stream.inspect(move |event| display.show(event)).boxed())
    }

    async fn remove(&self, digest: &ImageDigest) -> Result<(), Problem> {
        self.images.remove(digest).await
    }

    async fn collect_garbage(&self) {
        self.images.collect_garbage().await;
    }

    async fn settle(&self) {
        self.images.settle().await;
    }
}

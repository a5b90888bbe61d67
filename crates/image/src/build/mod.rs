//! Builds under way: who does the work, who listens, and when it is given up.
//!
//! One [`Job`] exists for each source that is being built. Streams that listen to it are counted;
//! when the last one goes, the job is cancelled. A job ends by itself with `Ready` or `Failed`.

mod layer;
mod report;

pub(crate) use layer::{Content, tell_skipped, unpack_only};
pub(crate) use report::{Counter, Report, Watched};

use crate::{
    error::ImageError,
    source,
    store::{ImageConfig, Inner, LayerUse},
};
use api::{
    node::{BuildEvent, BuiltImage},
    template::{Requester, TemplateSource},
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Events that a slow listener may be behind; then it misses log lines, never the end.
const EVENTS_BEHIND: usize = 512;

/// Which builds are the same: source, for whom, and whether it is forced.
pub(crate) type JobKey = (TemplateSource, Requester, bool);

/// One build.
pub(crate) struct Job {
    key: JobKey,
    state: Mutex<JobState>,
    sender: broadcast::Sender<BuildEvent>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct JobState {
    listeners: usize,
    /// The step under way, and how far it was last told to be.
    step: Option<BuildEvent>,
    done: u64,
    counter: Option<Counter>,
    last: Option<BuildEvent>,
}

/// What a source gave.
pub(crate) enum Made {
    /// It is what it was when it was built last.
    Unchanged(BuiltImage),
    /// An image to be saved.
    Image {
        /// Lowest first.
        layers: Vec<LayerUse>,
        /// How its processes run.
        config: ImageConfig,
        /// What tells the source's state.
        fingerprint: String,
    },
}

/// All that a source needs to make an image.
pub(crate) struct Build {
    pub(crate) store: Arc<Inner>,
    pub(crate) source: TemplateSource,
    pub(crate) requester: Requester,
    pub(crate) forced: bool,
    pub(crate) report: Report,
}

impl Build {
    /// What the source was built to last, unless the build is forced.
    pub(crate) fn unchanged(&self, fingerprint: &str) -> Option<BuiltImage> {
        if self.forced {
            return None;
        }
        self.store.unchanged(&self.key(), fingerprint)
    }

    /// What the outcome is remembered by. What an administrator pulled with the node's credentials
    /// is not a tenant's to have without asking the registry.
    fn key(&self) -> String {
        match self.requester {
            Requester::Administrator => self.source.to_string(),
            Requester::Tenant => format!("{} for tenants", self.source),
        }
    }

    async fn run(&self) -> Result<BuiltImage, ImageError> {
        let permit = self.store.builds.acquire();
        let _permit = match permit.now_or_never() {
            Some(permit) => permit,
            None => {
                self.report.step("waiting for other builds", None);
                self.store.builds.acquire().await
            }
        };
        match source::make(self).await? {
            Made::Unchanged(image) => Ok(image),
            Made::Image {
                layers,
                config,
                fingerprint,
            } => {
                let (store, source) = (self.store.clone(), self.source.to_string());
                let key = self.key();
                self.blocking(move |_| store.save(&source, &key, &fingerprint, &layers, config))
                    .await
            }
        }
    }

    /// Runs `work` on a thread that may block. It goes on if the build is cancelled, and should
    /// look at the report's token.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Report) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let report = self.report.clone();
        tokio::task::spawn_blocking(move || work(&report))
            .await
            .unwrap_or_else(|error| Err(ImageError::Internal(error.to_string())))
    }
}

/// Joins the build of `source` or starts it.
pub(crate) fn start(
    store: &Arc<Inner>,
    source: TemplateSource,
    requester: Requester,
    forced: bool,
) -> BoxStream<'static, BuildEvent> {
    // Only registries treat one requester unlike another: all else is shared.
    let requester = match source {
        TemplateSource::Registry(_) => requester,
        _ => Requester::Administrator,
    };
    let key = (source, requester, forced);
    let mut jobs = store.jobs.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(job) = jobs.get(&key) {
        return listen(store.clone(), job.clone());
    }
    let job = Arc::new(Job {
        key: key.clone(),
        state: Mutex::default(),
        sender: broadcast::Sender::new(EVENTS_BEHIND),
        cancel: CancellationToken::new(),
    });
    jobs.insert(key, job.clone());
    let stream = listen(store.clone(), job.clone());
    drop(jobs);
    tokio::spawn(run(store.clone(), job));
    stream
}

async fn run(store: Arc<Inner>, job: Arc<Job>) {
    let build = Build {
        store: store.clone(),
        source: job.key.0.clone(),
        requester: job.key.1,
        forced: job.key.2,
        report: Report::new(job.clone()),
    };
    let work = async {
        tokio::select! {
            () = job.cancel.cancelled() => Err(ImageError::Cancelled),
            () = report::tick(&job) => Err(ImageError::Cancelled),
            result = build.run() => result,
        }
    };
    let result = AssertUnwindSafe(work).catch_unwind().await;
    let last = match result.unwrap_or_else(|_| Err(ImageError::Internal("a fault".into()))) {
        Ok(image) => BuildEvent::Ready(image),
        Err(error) => {
            tracing::debug!(source = %job.key.0, %error, "a build failed");
            BuildEvent::Failed {
                cause: error.to_string(),
                remedy: error.remedy(),
            }
        }
    };
    // Out of the table first: who comes after the last event starts anew.
    forget(&store, &job);
    job.emit(last);
}

fn forget(store: &Inner, job: &Arc<Job>) {
    let mut jobs = store.jobs.lock().unwrap_or_else(PoisonError::into_inner);
    if jobs
        .get(&job.key)
        .is_some_and(|known| Arc::ptr_eq(known, job))
    {
        jobs.remove(&job.key);
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners, and remembers what late ones need.
    fn emit(&self, event: BuildEvent) {
        let mut state = self.state();
        state.flush(&self.sender);
        match &event {
            BuildEvent::Step { .. } => {
                state.step = Some(event.clone());
                state.done = 0;
            }
            BuildEvent::Ready(_) | BuildEvent::Failed { .. } => state.last = Some(event.clone()),
            _ => {}
        }
        // An error means that nobody listens now.
        _ = self.sender.send(event);
    }
}

impl JobState {
    /// Tells how far the step has come, if that changed.
    fn flush(&mut self, sender: &broadcast::Sender<BuildEvent>) {
        if let Some(done) = self.counter.as_ref().map(Counter::get)
            && done != self.done
        {
            self.done = done;
            _ = sender.send(BuildEvent::Progress { done });
        }
    }

    /// What a listener that knows nothing must be told.
    fn summary(&self) -> VecDeque<BuildEvent> {
        let mut events = VecDeque::new();
        events.extend(self.step.clone());
        if self.done > 0 {
            events.push_back(BuildEvent::Progress { done: self.done });
        }
        events.extend(self.last.clone());
        events
    }
}

struct Listener {
    store: Arc<Inner>,
    job: Arc<Job>,
    receiver: broadcast::Receiver<BuildEvent>,
    pending: VecDeque<BuildEvent>,
    ended: bool,
}

/// A stream of the job's events. The caller holds the table of jobs, so the job can't end unseen.
fn listen(store: Arc<Inner>, job: Arc<Job>) -> BoxStream<'static, BuildEvent> {
    let (receiver, pending) = {
        let mut state = job.state();
        state.listeners += 1;
        (job.sender.subscribe(), state.summary())
    };
    let listener = Listener {
        store,
        job,
        receiver,
        pending,
        ended: false,
    };
    futures::stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((event, listener))
    })
    .boxed()
}

impl Listener {
    async fn next(&mut self) -> Option<BuildEvent> {
        if self.ended {
            return None;
        }
        loop {
            let event = match self.pending.pop_front() {
                Some(event) => event,
                None => match self.receiver.recv().await {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.pending = self.job.state().summary();
                        continue;
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            self.ended = matches!(event, BuildEvent::Ready(_) | BuildEvent::Failed { .. });
            return Some(event);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The table is locked so that nobody joins a job in the moment in which it is given up.
        let mut jobs = self
            .store
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = self.job.state();
        state.listeners -= 1;
        if state.listeners == 0 && state.last.is_none() {
            self.job.cancel.cancel();
            if jobs
                .get(&self.job.key)
                .is_some_and(|known| Arc::ptr_eq(known, &self.job))
            {
                jobs.remove(&self.job.key);
            }
        }
    }
}

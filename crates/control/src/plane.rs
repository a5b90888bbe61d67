//! What every handler and every task shares.

use crate::{
    Limits,
    catalogue::{Catalogue, Collections},
    idempotency::Idempotency,
    nodes::{Nodes, within},
    records::Instance,
    templates::{Builder, reconcile::known_builds},
    usage::Usage,
};
use api::{Problem, TemplateId, rest::v1::NodeGarbage};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::task::TaskTracker;

/// How long a node may take to remove what nothing needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The control plane's state.
pub(crate) struct Plane {
    pub(crate) collections: Collections,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) instance: Instance,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) usage: Usage,
    pub(crate) idempotency: Idempotency,
    pub(crate) builder: Arc<Builder>,
    pub(crate) limits: Limits,
    pub(crate) domain: Option<String>,
    pub(crate) starts: Starts,
    pub(crate) mesh: Arc<crate::mesh::Coordinator>,
    /// Creations under way: a stop waits for them.
    pub(crate) creations: TaskTracker,
}

impl Plane {
    /// Has every node remove what nothing needs, or say what that is.
    pub(crate) async fn collect_garbage(&self, dry_run: bool) -> Result<Vec<NodeGarbage>, Problem> {
        let keep = known_builds(&self.collections).await?;
        if !dry_run {
            // What records and images there are too many of is the reconciler's.
            self.builder.wake.notify_one();
        }
        let questions = self.nodes.all().into_iter().map(|(id, node)| {
            let keep = keep.clone();
            async move {
                let answer = within(PATIENCE, node.collect_garbage(keep, dry_run)).await;
                let (garbage, error) = match answer {
                    Ok(garbage) => (garbage, None),
                    Err(problem) => (Vec::new(), Some(problem.body())),
                };
                let node = id.to_string();
                NodeGarbage {
                    node,
                    garbage,
                    error,
                }
            }
        });
        Ok(futures::future::join_all(questions).await)
    }
}

/// How often sandboxes were started from a template, and when last. In memory: counting them in
/// the store would put a write on the path of creating a sandbox.
#[derive(Default)]
pub(crate) struct Starts(Mutex<HashMap<TemplateId, (u64, Timestamp)>>);

impl Starts {
    /// Counts one more.
    pub(crate) fn count(&self, template: &TemplateId, now: Timestamp) {
        let mut starts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = starts.entry(template.clone()).or_insert((0, now));
        *start = (start.0 + 1, now);
    }

    /// How many, and when last.
    pub(crate) fn of(&self, template: &TemplateId) -> (u64, Option<Timestamp>) {
        let starts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        starts
            .get(template)
            .map_or((0, None), |(count, last)| (*count, Some(*last)))
    }

    /// A template is gone.
    pub(crate) fn forget(&self, template: &TemplateId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(template);
    }
}

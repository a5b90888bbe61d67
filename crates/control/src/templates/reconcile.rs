//! Keeps intent and what is together. It takes no input, and each step may run twice, late or
//! after a crash:
//!
//! 1. a build whose record says that it is under way, and that is not, was interrupted; of a
//!    snapshot nothing is left then;
//! 2. the template that Atoll came with exists and is built on every node;
//! 3. builds that no tag names any more are taken out of their templates;
//! 4. root file systems that nothing uses any more are removed from their nodes;
//! 5. so are states of builds that no template has any more.
//!
//! One control plane works on a store: with several, only the elected one may run this.

use super::builder::{Builder, prune};
use crate::{
    catalogue::{Catalogue, Collections},
    nodes::{Nodes, ask},
    records::{
        BASE_NAME, BASE_TEMPLATE, Build, DEFAULT_TAG, Garbage, Recipe, SYSTEM_TENANT, Template,
    },
};
use api::{
    BuildId, ErrorCode, Problem, Resources,
    rest::template::BuildStatus,
    template::{Requester, TemplateSource},
};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use store::Transaction;
use tokio_util::sync::CancellationToken;

/// It looks at least this often.
const INTERVAL: Duration = Duration::from_secs(30);

/// How long a failed build of the template that Atoll came with rests, at first and at most.
const REST: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));

/// The reconciler of templates.
pub(crate) struct Reconciler {
    pub(crate) collections: Collections,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) builder: Arc<Builder>,
    /// Whether Atoll's own template is wanted.
    pub(crate) base: bool,
    /// When this control plane was started.
    pub(crate) started: Timestamp,
}

impl Reconciler {
    /// Reconciles until it is told to stop. Run it as a task.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failures: u32 = 0;
        while !stop.is_cancelled() {
            if let Err(problem) = self.step(&mut failures).await {
                tracing::error!(%problem, "could not reconcile templates");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.builder.wake.notified() => {}
            }
        }
    }

    async fn step(&self, failures: &mut u32) -> Result<(), Problem> {
        self.notice_interrupted().await?;
        if self.base {
            self.keep_base(failures).await?;
        }
        self.prune().await?;
        self.collect_garbage().await?;
        self.collect_states().await
    }

    async fn collect_states(&self) -> Result<(), Problem> {
        let keep = known_builds(&self.collections).await?;
        for (id, node) in self.nodes.all() {
            match ask(node.collect_garbage(keep.clone(), false)).await {
                Ok(removed) => {
                    for garbage in removed.iter().filter(|garbage| garbage.removed) {
                        tracing::info!(node = %id, size = %garbage.size, "removed {}: {}",
                            garbage.what, garbage.reason);
                    }
                }
                Err(problem) => {
                    tracing::warn!(node = %id, %problem, "could not remove states");
                }
            }
        }
        Ok(())
    }

    async fn notice_interrupted(&self) -> Result<(), Problem> {
        for template in self.catalogue.templates() {
            for build in &template.builds {
                let under_way =
                    matches!(build.status, BuildStatus::Waiting | BuildStatus::Building);
                // Atoll's own template goes on where it was.
                if !under_way || template.built_in() || self.builder.is_running(&build.id) {
                    continue;
                }
                // Between its record and its task lies a moment: look at the record once more.
                let fresh = self.collections.templates.get(template.id.as_str()).await?;
                let fresh = fresh.and_then(|stored| stored.record.build(&build.id).cloned());
                let age = Timestamp::now().duration_since(build.created_at);
                let settled =
                    build.created_at < self.started || age > jiff::SignedDuration::from_secs(5);
                if settled
                    && fresh.is_some_and(|build| build.status != BuildStatus::Ready)
                    && !self.builder.is_running(&build.id)
                {
                    let of = template.snapshot_of.as_ref();
                    self.builder.give_up(&template.id, &build.id, of).await?;
                }
            }
        }
        Ok(())
    }

    async fn keep_base(&self, failures: &mut u32) -> Result<(), Problem> {
        let id = BASE_TEMPLATE.parse().map_err(internal)?;
        let Some(template) = self.catalogue.template(&id) else {
            return self.make_base().await;
        };
        let Some(build) = template.newest() else {
            return Ok(());
        };
        if self.builder.is_running(&build.id) {
            return Ok(());
        }
        let nodes = self.nodes.all();
        let missing = |build: &Build| match &build.product {
            Some(product) => nodes.iter().any(|(id, _)| !product.images.contains_key(id)),
            None => true,
        };
        match build.status {
            BuildStatus::Ready if !missing(build) => {
                *failures = 0;
            }
            BuildStatus::Error => {
                let rest = REST.0.saturating_mul(1 << (*failures).min(10)).min(REST.1);
                let rested = Timestamp::now().duration_since(build.updated_at);
                // A failure of the last run is not worth waiting for.
                if *failures == 0 || rested.unsigned_abs() >= rest {
                    *failures += 1;
                    self.builder.start(&template, build, None);
                }
            }
            _ => {
                self.builder.start(&template, build, None);
            }
        }
        Ok(())
    }

    async fn make_base(&self) -> Result<(), Problem> {
        let now = Timestamp::now();
        let build = Build {
            id: BuildId::random(&mut rand::rng()),
            status: BuildStatus::Building,
            reason: None,
            tag: DEFAULT_TAG.to_owned(),
            recipe: Recipe {
                source: TemplateSource::Base,
                requester: Requester::Administrator,
                resources: Resources::default(),
                start_command: None,
                ready_command: None,
                environment: BTreeMap::new(),
                user: Some("user".to_owned()),
                working_directory: Some("/home/user".to_owned()),
                mesh: None,
            },
            product: None,
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        let template = Template {
            id: BASE_TEMPLATE.parse().map_err(internal)?,
            tenant: SYSTEM_TENANT.parse().map_err(internal)?,
            name: BASE_NAME.to_owned(),
            public: true,
            snapshot_of: None,
            created_at: now,
            updated_at: now,
            builds: vec![build.clone()],
            tags: BTreeMap::new(),
        };
        let Collections {
            templates,
            names,
            store,
            ..
        } = &self.collections;
        let outcome = store
            .transact(Transaction {
                conditions: vec![templates.absent(BASE_TEMPLATE), names.absent(BASE_NAME)],
                then: vec![
                    templates.put(BASE_TEMPLATE, &template)?,
                    names.put(BASE_NAME, &template.id)?,
                ],
            })
            .await?;
        if outcome.committed() {
            self.catalogue.reached(outcome.revision()).await?;
            self.builder.start(&template, &build, None);
        }
        Ok(())
    }

    async fn prune(&self) -> Result<(), Problem> {
        let Collections {
            templates,
            garbage,
            store,
            ..
        } = &self.collections;
        for template in self.catalogue.templates() {
            if prune(&mut Template::clone(&template)).is_none() {
                continue;
            }
            let Some(mut stored) = templates.get(template.id.as_str()).await? else {
                continue;
            };
            let Some(removed) = prune(&mut stored.record) else {
                continue;
            };
            let transaction = Transaction {
                conditions: vec![templates.unchanged(&stored)],
                then: vec![
                    templates.put(&stored.id, &stored.record)?,
                    garbage.put(&Garbage::random_id(), &removed.garbage)?,
                ],
            };
            // Somebody else was faster: the next round sees what is left.
            let outcome = store.transact(transaction).await?;
            if outcome.committed() {
                self.catalogue.reached(outcome.revision()).await?;
                for (build, nodes) in removed.builds {
                    self.builder.remove_states(nodes.into_iter(), &build).await;
                }
            }
        }
        Ok(())
    }

    async fn collect_garbage(&self) -> Result<(), Problem> {
        let (records, revision) = self.collections.garbage.list().await?;
        if records.is_empty() {
            return Ok(());
        }
        // While something is being built nothing is removed: it may turn out to be the same.
        let Ok(_quiet) = self.builder.images.try_write() else {
            return Ok(());
        };
        // What the catalogue shows must not be older than the garbage.
        if self.catalogue.reached(revision).await.is_err() {
            return Ok(());
        }
        for record in records {
            let mut left = Garbage::default();
            for (id, image) in &record.record.images {
                let templates = self.catalogue.templates();
                let used = templates
                    .iter()
                    .flat_map(|template| template.images())
                    .any(|(node, other)| node == id && other == image);
                let Some(node) = self.nodes.get(id).filter(|_| !used) else {
                    continue;
                };
                if let Err(problem) = ask(node.remove_image(image)).await {
                    tracing::warn!(node = %id, %image, %problem, "could not remove an image");
                    left.images.push((id.clone(), image.clone()));
                }
            }
            let garbage = &self.collections.garbage;
            let then = match left.images.is_empty() {
                true => garbage.delete(&record.id),
                false if left.images.len() < record.record.images.len() => {
                    garbage.put(&record.id, &left)?
                }
                false => continue,
            };
            self.collections
                .store
                .transact(Transaction::always([then]))
                .await?;
        }
        Ok(())
    }
}

/// All builds of all templates: those in the store now, not those that the catalogue has seen so
/// far.
pub(crate) async fn known_builds(collections: &Collections) -> Result<Vec<BuildId>, Problem> {
    let (templates, _) = collections.templates.list().await?;
    let builds = templates.iter().flat_map(|stored| &stored.record.builds);
    Ok(builds.map(|build| build.id.clone()).collect())
}

fn internal(error: api::id::ParseIdError) -> Problem {
    Problem::new(ErrorCode::Internal, error.to_string(), "")
}

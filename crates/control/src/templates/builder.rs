//! Builds: each is a task that asks the nodes for a root file system and writes down what came
//! out. It goes on when whoever asked for it goes away.

use super::feed::Feed;
use crate::{
    catalogue::{Catalogue, Collections},
    error::ApiError,
    nodes::{Nodes, ask},
    records::{Build, Garbage, Product, Recipe, Tag, Template},
};
use api::{
    BuildId, Bytes, ErrorCode, ImageDigest, NodeId, Problem, Resources, SandboxId, TemplateId,
    TenantId,
    node::{BuildEvent, BuiltImage, TemplateBuild},
    rest::template::BuildStatus,
    template::TemplateSource,
};
use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use store::Transaction;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A build that tells nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(1800);

/// How many builds that failed a template remembers.
const FAILURES: usize = 5;

struct Running {
    tenant: TenantId,
    /// Whether it is a snapshot being taken: those are no builds of their tenant's.
    snapshot: bool,
    feed: Arc<Feed>,
}

/// What is under way. Builds and places are under one lock, so that no tenant gets past its limit
/// by asking several times at once.
#[derive(Default)]
struct Table {
    running: HashMap<BuildId, Running>,
    /// Places of builds whose record is being written.
    places: HashMap<TenantId, usize>,
}

impl Table {
    fn release(&mut self, tenant: &TenantId) {
        if let Some(count) = self.places.get_mut(tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.places.remove(tenant);
            }
        }
    }
}

/// A build that a tenant may begin. Dropped, it counts no more.
pub(crate) struct Place {
    builder: Arc<Builder>,
    tenant: TenantId,
    used: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            self.builder.lock().release(&self.tenant);
        }
    }
}

/// All builds under way.
pub(crate) struct Builder {
    collections: Collections,
    catalogue: Arc<Catalogue>,
    nodes: Arc<Nodes>,
    table: Mutex<Table>,
    /// Held for reading by builds, for writing while root file systems are removed: one that has
    /// just been built, and that no record names yet, must not be taken for garbage.
    pub(super) images: Arc<tokio::sync::RwLock<()>>,
    /// Wakes the reconciler.
    pub(crate) wake: tokio::sync::Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Builder {
    pub(crate) fn new(
        collections: Collections,
        catalogue: Arc<Catalogue>,
        nodes: Arc<Nodes>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            collections,
            catalogue,
            nodes,
            table: Mutex::default(),
            images: Arc::default(),
            wake: tokio::sync::Notify::new(),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Returns when no build is under way. None may be started any more.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A build under way.
    pub(crate) fn feed(&self, build: &BuildId) -> Option<Arc<Feed>> {
        let table = self.lock();
        table.running.get(build).map(|running| running.feed.clone())
    }

    /// A place for one more build of a tenant; `None` if it has `limit` of them.
    pub(crate) fn reserve(self: &Arc<Self>, tenant: &TenantId, limit: usize) -> Option<Place> {
        let mut table = self.lock();
        let running = table.running.values();
        let running = running.filter(|running| !running.snapshot && running.tenant == *tenant);
        let running = running.count();
        let places = table.places.get(tenant).copied().unwrap_or(0);
        if running + places >= limit {
            return None;
        }
        table.places.insert(tenant.clone(), places + 1);
        Some(Place {
            builder: self.clone(),
            tenant: tenant.clone(),
            used: false,
        })
    }

    /// The build that a tag of a template names, ready for a sandbox.
    pub(crate) fn usable(
        &self,
        template: &Template,
        tag: &str,
    ) -> Result<(Build, Product), ApiError> {
        if let Some(build) = template.tagged(tag)
            && let Some(product) = &build.product
        {
            return Ok((build.clone(), product.clone()));
        }
        let name = &template.name;
        let awaited = template.builds.iter().find(|build| build.tag == tag);
        let Some(build) = awaited else {
            return Err(Problem::new(
                ErrorCode::NotFound,
                format!("Template \"{name}\" has no tag \"{tag}\""),
                "list its tags with `atoll template ls`",
            )
            .into());
        };
        if build.status == BuildStatus::Error {
            let reason = build.reason.as_deref().unwrap_or("the reason is not known");
            return Err(Problem::new(
                ErrorCode::Conflict,
                format!("Template \"{name}\" could not be built: {reason}"),
                "remove the cause and build it again",
            )
            .into());
        }
        let doing = self.feed(&build.id).and_then(|feed| feed.describe());
        let doing = doing.map_or_else(String::new, |doing| format!(" ({doing})"));
        Err(ApiError::from(Problem::new(
            ErrorCode::Unavailable,
            format!("Template \"{name}\" is still being built{doing}"),
            "try again when it is ready; `atoll template ls` shows how far it is",
        ))
        .retry_after(2))
    }

    /// Begins a build whose record is in the store. Nothing happens if it is under way. What Atoll
    /// begins by itself needs no place.
    pub(crate) fn start(
        self: &Arc<Self>,
        template: &Template,
        build: &Build,
        place: Option<Place>,
    ) -> Arc<Feed> {
        let mut table = self.lock();
        if let Some(running) = table.running.get(&build.id) {
            return running.feed.clone();
        }
        let feed = Arc::new(Feed::new());
        let entry = Running {
            tenant: template.tenant.clone(),
            snapshot: false,
            feed: feed.clone(),
        };
        table.running.insert(build.id.clone(), entry);
        if let Some(mut place) = place {
            // From here on the build itself counts.
            place.used = true;
            table.release(&place.tenant);
        }
        drop(table);
        let (builder, told) = (self.clone(), feed.clone());
        let (template, name, build) = (template.id.clone(), template.name.clone(), build.clone());
        self.tasks.spawn(async move {
            let guard = builder.images.clone().read_owned().await;
            let result = builder.run(&template, &name, &build, &told).await;
            drop(guard);
            builder.lock().running.remove(&build.id);
            told.end(result);
            // Only now: what the build made superfluous can be removed.
            builder.wake.notify_one();
        });
        feed
    }

    async fn run(
        &self,
        template: &TemplateId,
        name: &str,
        build: &Build,
        feed: &Feed,
    ) -> Result<(), Problem> {
        let result = tokio::select! {
            biased;
            // What was asked for stays in the store: the next start goes on with it.
            () = self.stop.cancelled() => return Err(interrupted()),
            result = self.build(template, name, build, feed) => result,
        };
        match result {
            Ok((product, image)) => {
                self.record(template, &build.id, Ok(product)).await?;
                feed.tell(BuildEvent::Ready(image));
                Ok(())
            }
            Err(problem) => {
                tracing::warn!(%template, build = %build.id, %problem, "a build failed");
                self.record(template, &build.id, Err(problem.cause.clone()))
                    .await?;
                feed.tell(BuildEvent::Failed {
                    cause: problem.cause.clone(),
                    remedy: problem.remedy.clone(),
                });
                Err(problem)
            }
        }
    }

    /// Builds on every node that does not hold the root file system yet, one after the other.
    async fn build(
        &self,
        template: &TemplateId,
        name: &str,
        build: &Build,
        feed: &Feed,
    ) -> Result<(Product, BuiltImage), Problem> {
        let mut images = build
            .product
            .as_ref()
            .map(|product| product.images.clone())
            .unwrap_or_default();
        let mut last = None;
        for (id, node) in self.nodes.all() {
            let Recipe {
                source, requester, ..
            } = &build.recipe;
            let mut events = node.build(source.clone(), *requester).await?;
            let image = loop {
                match next(&mut events).await? {
                    Some(BuildEvent::Ready(image)) => break image,
                    Some(BuildEvent::Failed { cause, remedy }) => {
                        return Err(Problem::new(ErrorCode::InvalidArgument, cause, remedy));
                    }
                    Some(event) => feed.tell(event),
                    None => {
                        return Err(Problem::new(
                            ErrorCode::Unavailable,
                            "the node ended the build without a result",
                            "look at the node's log, and build again",
                        ));
                    }
                }
            };
            images.insert(id, image.digest.clone());
            last = Some(image);
        }
        let Some(image) = last else {
            return Err(Problem::new(
                ErrorCode::Unavailable,
                "there is no node to build on",
                "add a node",
            ));
        };
        let product = merge(&build.recipe, &image, images);
        for (id, node) in self.nodes.all() {
            let Some(image) = product.images.get(&id) else {
                continue;
            };
            let described = described(template, name, build, &product, image.clone());
            let events = node.prepare_template(described, build.recipe.resources);
            let mut events = events.await?;
            while let Some(event) = next(&mut events).await? {
                match event {
                    BuildEvent::Failed { cause, remedy } => {
                        return Err(Problem::new(ErrorCode::InvalidArgument, cause, remedy));
                    }
                    event => feed.tell(event),
                }
            }
        }
        Ok((product, image))
    }

    /// Writes down what came of a build, and what it made superfluous.
    async fn record(
        &self,
        template: &TemplateId,
        build: &BuildId,
        result: Result<Product, String>,
    ) -> Result<(), Problem> {
        self.record_as(template, build, result, None).await
    }

    async fn record_as(
        &self,
        template: &TemplateId,
        build: &BuildId,
        result: Result<Product, String>,
        resources: Option<Resources>,
    ) -> Result<(), Problem> {
        let templates = &self.collections.templates;
        loop {
            let Some(mut stored) = templates.get(template.as_str()).await? else {
                // Deleted meanwhile: what was built is garbage.
                if let Ok(product) = &result {
                    let garbage = product.garbage();
                    self.collections
                        .garbage
                        .insert(&Garbage::random_id(), &garbage)
                        .await?;
                }
                return Err(Problem::new(
                    ErrorCode::NotFound,
                    "the template was deleted during the build",
                    "",
                ));
            };
            settle(&mut stored.record, build, &result, Timestamp::now());
            let builds = &mut stored.record.builds;
            if let Some(resources) = resources
                && let Some(build) = builds.iter_mut().find(|other| other.id == *build)
            {
                build.recipe.resources = resources;
            }
            let then = vec![templates.put(template.as_str(), &stored.record)?];
            let conditions = vec![templates.unchanged(&stored)];
            let transaction = Transaction { conditions, then };
            let outcome = self.collections.store.transact(transaction).await?;
            if outcome.committed() {
                return self.catalogue.reached(outcome.revision()).await;
            }
        }
    }

    /// A snapshot is being taken whose record is about to be in the store; as long as the guard
    /// lives.
    pub(super) fn begin_snapshot(
        self: &Arc<Self>,
        build: &BuildId,
        tenant: &TenantId,
    ) -> SnapshotUnderWay {
        let running = Running {
            tenant: tenant.clone(),
            snapshot: true,
            feed: Arc::new(Feed::new()),
        };
        self.lock().running.insert(build.clone(), running);
        SnapshotUnderWay {
            builder: self.clone(),
            build: build.clone(),
        }
    }

    /// Writes down that a snapshot was taken.
    pub(super) async fn finish_snapshot(
        &self,
        template: &TemplateId,
        build: &BuildId,
        product: Product,
        resources: Resources,
    ) -> Result<(), Problem> {
        self.record_as(template, build, Ok(product), Some(resources))
            .await
    }

    /// Takes a snapshot that was not taken out of the store: nobody could use it, and if it has no
    /// name, nobody knows of it.
    pub(super) async fn forget_snapshot(
        &self,
        template: &TemplateId,
        build: &BuildId,
    ) -> Result<(), Problem> {
        let Collections {
            templates, names, ..
        } = &self.collections;
        loop {
            let Some(mut stored) = templates.get(template.as_str()).await? else {
                return Ok(());
            };
            let before = stored.record.builds.len();
            let gone = |other: &Build| other.id == *build && other.product.is_none();
            stored.record.builds.retain(|build| !gone(build));
            if stored.record.builds.len() == before {
                return Ok(());
            }
            let then = match stored.record.builds.is_empty() {
                true => vec![
                    templates.delete(template.as_str()),
                    names.delete(&stored.record.name),
                ],
                false => vec![templates.put(template.as_str(), &stored.record)?],
            };
            let conditions = vec![templates.unchanged(&stored)];
            let transaction = Transaction { conditions, then };
            let outcome = self.collections.store.transact(transaction).await?;
            if outcome.committed() {
                return self.catalogue.reached(outcome.revision()).await;
            }
        }
    }

    /// Says of a build that is not under way, though its record says so, that it was interrupted.
    pub(super) async fn give_up(
        &self,
        template: &TemplateId,
        build: &BuildId,
        snapshot_of: Option<&SandboxId>,
    ) -> Result<(), Problem> {
        let Some(sandbox) = snapshot_of else {
            return self.record(template, build, Err(interrupted().cause)).await;
        };
        self.forget_snapshot(template, build).await?;
        self.remove_states(std::iter::once(sandbox.node()), build)
            .await;
        Ok(())
    }

    /// Frees what nodes keep for a build that is gone. What fails is removed later, as garbage.
    pub(super) async fn remove_states(&self, nodes: impl Iterator<Item = NodeId>, build: &BuildId) {
        for node in nodes.filter_map(|id| self.nodes.get(&id)) {
            if let Err(problem) = ask(node.remove_state(build)).await {
                tracing::warn!(%build, %problem, "its state is removed later");
            }
        }
    }

    /// Whether a build is under way here.
    pub(super) fn is_running(&self, build: &BuildId) -> bool {
        self.lock().running.contains_key(build)
    }
}

/// A snapshot that is being taken. Dropped, it is not any more.
pub(super) struct SnapshotUnderWay {
    builder: Arc<Builder>,
    build: BuildId,
}

impl Drop for SnapshotUnderWay {
    fn drop(&mut self) {
        self.builder.lock().running.remove(&self.build);
        // A record that still says so is noticed, and what it made superfluous removed.
        self.builder.wake.notify_one();
    }
}

/// What a build says next; nothing if it has ended.
async fn next(events: &mut BoxStream<'static, BuildEvent>) -> Result<Option<BuildEvent>, Problem> {
    let event = tokio::time::timeout(SILENCE, events.next()).await;
    event.map_err(|_| {
        Problem::new(
            ErrorCode::DeadlineExceeded,
            "the build told nothing for half an hour",
            "look at the node's log, and build again",
        )
    })
}

/// A build as its sandboxes need it.
pub(crate) fn described(
    template: &TemplateId,
    name: &str,
    build: &Build,
    product: &Product,
    image: ImageDigest,
) -> TemplateBuild {
    TemplateBuild {
        template: template.clone(),
        build: build.id.clone(),
        alias: Some(name.to_owned()),
        image,
        environment: product.environment.clone(),
        start_command: build.recipe.start_command.clone(),
        ready_command: build.recipe.ready_command.clone(),
        user: product.user.clone(),
        working_directory: product.working_directory.clone(),
    }
}

fn interrupted() -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        "the build was interrupted by a stop of Atoll",
        "build it again",
    )
}

/// What a sandbox gets: the image's own configuration, and the recipe's over it.
fn merge(
    recipe: &Recipe,
    image: &BuiltImage,
    images: BTreeMap<api::NodeId, api::ImageDigest>,
) -> Product {
    let mut environment = image.environment.clone();
    environment.extend(recipe.environment.clone());
    let default_user = match recipe.source {
        TemplateSource::Base => "user",
        _ => "root",
    };
    let first = |choices: [&Option<String>; 2]| {
        choices
            .into_iter()
            .flatten()
            .find(|choice| !choice.is_empty())
            .cloned()
    };
    Product {
        images,
        size: Bytes(image.size.0),
        environment,
        user: first([&recipe.user, &image.user]).unwrap_or_else(|| default_user.to_owned()),
        working_directory: first([&recipe.working_directory, &image.working_directory])
            .unwrap_or_default(),
    }
}

/// Changes a template's record for the end of a build.
fn settle(template: &mut Template, id: &BuildId, result: &Result<Product, String>, now: Timestamp) {
    let Some(build) = template.builds.iter_mut().find(|build| build.id == *id) else {
        return;
    };
    (build.updated_at, build.finished_at) = (now, Some(now));
    match result {
        Ok(product) => {
            build.status = BuildStatus::Ready;
            build.reason = None;
            build.product = Some(product.clone());
            let tag = build.tag.clone();
            template.tags.insert(
                tag,
                Tag {
                    build: id.clone(),
                    assigned_at: now,
                },
            );
        }
        Err(reason) => {
            build.status = BuildStatus::Error;
            build.reason = Some(reason.clone());
        }
    }
    template.updated_at = now;
}

/// What was taken out of a template.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    /// Root file systems that it may have been the last to use.
    pub(super) garbage: Garbage,
    /// The builds, and the nodes that they were on.
    pub(super) builds: Vec<(BuildId, Vec<NodeId>)>,
}

impl Pruned {
    pub(super) fn add(&mut self, build: &Build) {
        let images = build.product.as_ref().map(Product::garbage);
        let images = images.unwrap_or_default().images;
        let nodes = images.iter().map(|(node, _)| node.clone()).collect();
        self.builds.push((build.id.clone(), nodes));
        self.garbage.images.extend(images);
    }
}

/// Takes out of a template what nobody can reach: ready builds without a tag, and all but the
/// last failures. `None` if there was nothing.
pub(super) fn prune(template: &mut Template) -> Option<Pruned> {
    let tagged: Vec<BuildId> = template
        .tags
        .values()
        .map(|tag| tag.build.clone())
        .collect();
    let newest = template.newest().map(|build| build.id.clone());
    let mut failures = 0;
    let mut pruned = Pruned::default();
    template.builds.retain(|build| {
        let keep = match build.status {
            BuildStatus::Waiting | BuildStatus::Building => true,
            BuildStatus::Error => {
                failures += 1;
                failures <= FAILURES
            }
            BuildStatus::Ready => false,
        };
        let keep = keep || tagged.contains(&build.id) || newest.as_ref() == Some(&build.id);
        if !keep {
            pruned.add(build);
        }
        keep
    });
    (!pruned.builds.is_empty()).then_some(pruned)
}

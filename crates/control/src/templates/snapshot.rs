//! Snapshots of sandboxes: templates whose builds start from a saved state.
//!
//! The record is written first, as a build under way, so that no state is ever without one. Of a
//! snapshot that fails, or that was under way when the program died, the record is removed: nobody
//! could use it. A state without a record is garbage.

use super::{Templates, builder::SnapshotUnderWay, view::MAX_TAGS};
use crate::{
    error::{ApiError, invalid},
    extract::number,
    names::Reference,
    nodes::within,
    records::{Build, Product, Recipe, Template},
    sandboxes::Found,
};
use api::{
    BuildId, ErrorCode, Problem, SandboxId, TemplateId,
    node::{SandboxStatus, TemplateBuild},
    rest::{
        listing::Cursor,
        state::{SnapshotInfo, SnapshotQuery},
        template::BuildStatus,
    },
    template::{Requester, TemplateSource},
};
use jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};
use store::Transaction;

/// How long a node may take to save a sandbox.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many snapshots a tenant may have, versions under one name counted as one.
const MAX_SNAPSHOTS: usize = 10_000;

/// The most snapshots on a page, and how many if the query does not say.
const MOST: i64 = 100;

/// One page of snapshots.
pub(crate) struct SnapshotPage {
    pub(crate) snapshots: Vec<SnapshotInfo>,
    pub(crate) next_token: Option<String>,
}

impl Templates {
    /// Takes a snapshot of a sandbox of this tenant. Once begun it is finished, even if the caller
    /// goes away.
    pub(crate) async fn snapshot(
        self,
        found: Found,
        name: Option<String>,
        memory: bool,
    ) -> Result<SnapshotInfo, ApiError> {
        let reference = name
            .filter(|name| !name.is_empty())
            .map(|name| Reference::parse(&name))
            .transpose()?;
        let creations = self.plane.creations.clone();
        let work = async move { self.take(found, reference, memory).await };
        match creations.spawn(work).await {
            Ok(result) => result,
            Err(_) => Err(Problem::new(
                ErrorCode::Unavailable,
                "Atoll stopped while the snapshot was taken",
                "try again when it is back",
            )
            .into()),
        }
    }

    async fn take(
        &self,
        found: Found,
        reference: Option<Reference>,
        memory: bool,
    ) -> Result<SnapshotInfo, ApiError> {
        let Found { node, status } = found;
        let builder = &self.plane.builder;
        // What the sandbox stands on must not be taken for garbage before the record names it.
        let _images = builder.images.clone().read_owned().await;
        let entered = self.enter_snapshot(&status, reference.as_ref()).await?;
        let (template, build, _under_way) = entered;
        let described = TemplateBuild {
            template: template.id.clone(),
            build: build.id.clone(),
            alias: Some(template.name.clone()),
            ..status.template.clone()
        };
        let saved = match within(PATIENCE, node.snapshot(&status.id, described, memory)).await {
            Ok(saved) => saved,
            Err(problem) => {
                builder.forget_snapshot(&template.id, &build.id).await?;
                return Err(problem.into());
            }
        };
        let product = Product {
            images: BTreeMap::from([(status.id.node(), status.template.image.clone())]),
            size: saved.size,
            environment: status.template.environment.clone(),
            user: status.template.user.clone(),
            working_directory: status.template.working_directory.clone(),
        };
        let recorded = builder
            .finish_snapshot(&template.id, &build.id, product, saved.resources)
            .await;
        if let Err(problem) = recorded {
            // Its name was deleted meanwhile, for one.
            if problem.code == ErrorCode::NotFound {
                let node = std::iter::once(status.id.node());
                builder.remove_states(node, &build.id).await;
            }
            return Err(problem.into());
        }
        Ok(info(&template, &build.tag))
    }

    async fn enter_snapshot(
        &self,
        status: &SandboxStatus,
        reference: Option<&Reference>,
    ) -> Result<(Template, Build, SnapshotUnderWay), Problem> {
        let collections = &self.plane.collections;
        let parent = self.plane.catalogue.template(&status.template.template);
        let source = parent
            .as_ref()
            .and_then(|parent| parent.build(&status.template.build))
            .map_or(TemplateSource::Base, |build| build.recipe.source.clone());
        loop {
            let now = Timestamp::now();
            let id = TemplateId::random(&mut rand::rng());
            let name = reference.map_or_else(|| id.to_string(), |wanted| wanted.name.clone());
            self.check_name(reference, &name)?;
            let build = Build {
                id: BuildId::random(&mut rand::rng()),
                status: BuildStatus::Building,
                reason: None,
                tag: reference
                    .map_or(crate::records::DEFAULT_TAG, Reference::tag)
                    .to_owned(),
                recipe: Recipe {
                    source: source.clone(),
                    requester: Requester::Tenant,
                    resources: status.resources,
                    start_command: status.template.start_command.clone(),
                    ready_command: status.template.ready_command.clone(),
                    environment: BTreeMap::new(),
                    user: None,
                    working_directory: None,
                    mesh: None,
                },
                product: None,
                created_at: now,
                updated_at: now,
                finished_at: None,
            };
            let (template, conditions, then) = match collections.names.get(&name).await? {
                None => {
                    let own = self.own();
                    let own = own.iter().filter(|own| own.snapshot_of.is_some());
                    if own.count() >= MAX_SNAPSHOTS {
                        return Err(Problem::new(
                            ErrorCode::LimitReached,
                            format!("You have {MAX_SNAPSHOTS} snapshots, which is the most"),
                            "delete snapshots that are no longer needed",
                        ));
                    }
                    let template = Template {
                        id,
                        tenant: self.tenant.clone(),
                        name: name.clone(),
                        public: false,
                        snapshot_of: Some(status.id.clone()),
                        created_at: now,
                        updated_at: now,
                        builds: vec![build.clone()],
                        tags: BTreeMap::new(),
                    };
                    let conditions = vec![collections.names.absent(&name)];
                    let then = vec![
                        collections.names.put(&name, &template.id)?,
                        collections.templates.put(template.id.as_str(), &template)?,
                    ];
                    (template, conditions, then)
                }
                Some(taken) => {
                    let stored = collections.templates.get(taken.record.as_str()).await?;
                    let Some(mut stored) = stored else { continue };
                    if stored.record.tenant != self.tenant || stored.record.snapshot_of.is_none() {
                        return Err(Problem::new(
                            ErrorCode::Conflict,
                            format!("The name \"{name}\" is taken by a template"),
                            "choose another name for the snapshot",
                        ));
                    }
                    let tags = &stored.record.tags;
                    if tags.len() >= MAX_TAGS && !tags.contains_key(&build.tag) {
                        return Err(invalid(format!("A snapshot has at most {MAX_TAGS} tags")));
                    }
                    let conditions = vec![collections.templates.unchanged(&stored)];
                    stored.record.builds.insert(0, build.clone());
                    stored.record.snapshot_of = Some(status.id.clone());
                    stored.record.updated_at = now;
                    let put = collections
                        .templates
                        .put(taken.record.as_str(), &stored.record)?;
                    (stored.record, conditions, vec![put])
                }
            };
            // Whoever sees the record must find it under way.
            let under_way = self.plane.builder.begin_snapshot(&build.id, &self.tenant);
            let transaction = Transaction { conditions, then };
            let outcome = collections.store.transact(transaction).await?;
            if outcome.committed() {
                self.plane.catalogue.reached(outcome.revision()).await?;
                return Ok((template, build, under_way));
            }
        }
    }

    fn check_name(&self, reference: Option<&Reference>, name: &str) -> Result<(), Problem> {
        let Some(reference) = reference else {
            return Ok(());
        };
        if reference.id().is_some() {
            return Err(invalid("A name cannot have the form of a template's id"));
        }
        let foreign = reference
            .namespace
            .as_ref()
            .is_some_and(|owner| owner != self.tenant.as_str());
        if foreign || name == crate::records::BASE_NAME {
            return Err(Problem::new(
                ErrorCode::PermissionDenied,
                format!("The name \"{name}\" is not yours to give"),
                "choose another name for the snapshot",
            ));
        }
        Ok(())
    }

    /// The snapshots of this tenant, newest first, a page at a time.
    pub(crate) fn snapshots(&self, query: &SnapshotQuery) -> Result<SnapshotPage, Problem> {
        let limit = number("limit", query.limit.as_deref(), MOST, 1..=MOST)?;
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let sandbox: Option<SandboxId> = match text(&query.sandbox_id) {
            None => None,
            Some(id) => match id.split('-').next().unwrap_or_default().parse() {
                Ok(id) => Some(id),
                Err(_) => {
                    return Ok(SnapshotPage {
                        snapshots: Vec::new(),
                        next_token: None,
                    });
                }
            },
        };
        let wanted = text(&query.name)
            .map(|name| Reference::parse(&name))
            .transpose()?;
        let after = text(&query.next_token)
            .map(|token| Cursor::parse(&token, false))
            .transpose()?;

        let mut found = Vec::new();
        for template in self.own() {
            let Some(of) = &template.snapshot_of else {
                continue;
            };
            if sandbox.as_ref().is_some_and(|sandbox| sandbox != of) {
                continue;
            }
            let named = |wanted: &Reference| {
                wanted.name == template.name || wanted.name == template.id.as_str()
            };
            if wanted.as_ref().is_some_and(|wanted| !named(wanted)) {
                continue;
            }
            for (tag, named) in &template.tags {
                let asked = wanted.as_ref().and_then(|wanted| wanted.tag.as_ref());
                if asked.is_none_or(|asked| asked == tag) {
                    let place = (named.assigned_at, format!("{}.{tag}", template.id));
                    found.push((place, info(&template, tag)));
                }
            }
        }
        found.sort_by(|(a, _), (b, _)| b.cmp(a));
        if let Some(after) = &after {
            let last = (after.started_at, after.id.clone());
            found.retain(|(place, _)| *place < last);
        }
        let limit = usize::try_from(limit).unwrap_or(1);
        let more = found.len() > limit;
        found.truncate(limit);
        let next_token = found.last().filter(|_| more).map(|((at, id), _)| {
            Cursor {
                started_at: *at,
                id: id.clone(),
            }
            .token(false)
        });
        Ok(SnapshotPage {
            snapshots: found.into_iter().map(|(_, info)| info).collect(),
            next_token,
        })
    }
}

fn info(template: &Template, tag: &str) -> SnapshotInfo {
    let full = format!("{}:{tag}", template.full_name());
    if template.name == template.id.as_str() {
        SnapshotInfo {
            snapshot_id: format!("{}:{tag}", template.id),
            names: Vec::new(),
        }
    } else {
        SnapshotInfo {
            snapshot_id: full.clone(),
            names: vec![full],
        }
    }
}

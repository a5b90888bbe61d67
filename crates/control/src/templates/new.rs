//! New templates, and new builds of old ones.

use super::{Feed, Subscription, Templates, builder::Pruned};
use crate::{
    error::{ApiError, invalid},
    mesh::check_template,
    names::Reference,
    records::{BASE_NAME, Build, Garbage, Recipe, Template},
    sandboxes::request::check_environment,
};
use api::{
    BuildId, Bytes, ErrorCode, Problem, Resources, TemplateId,
    rest::{template::BuildStatus, v1::NewTemplate},
    template::Requester,
};
use jiff::Timestamp;
use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};
use store::Transaction;

/// The longest start command, in bytes.
const MAX_COMMAND: usize = 64 << 10;

/// How many templates a tenant may have.
const MAX_TEMPLATES: usize = 1000;

/// The least memory of a sandbox, in MiB.
const LEAST_MEMORY: u64 = 32;

/// A build that was begun.
pub(crate) struct Begun {
    pub(crate) template: TemplateId,
    pub(crate) events: Subscription,
    /// Keeps the build's log while somebody listens.
    pub(crate) _feed: Arc<Feed>,
}

impl Templates {
    /// Begins to build a template of this tenant: a new one, or a new build of one that has the
    /// name already.
    pub(crate) async fn build(&self, request: NewTemplate) -> Result<Begun, ApiError> {
        let reference = Reference::parse(&request.name)?;
        let recipe = self.check(&request, &reference)?;
        let limit = self.plane.limits.builds;
        let place = self.plane.builder.reserve(&self.tenant, limit);
        let place = place.ok_or_else(|| {
            Problem::new(
                ErrorCode::LimitReached,
                format!("You have {limit} builds under way, which is the most"),
                "wait until one of them is done",
            )
        })?;
        let (template, build) = self.enter(&request, &reference, recipe).await?;
        let feed = self.plane.builder.start(&template, &build, Some(place));
        Ok(Begun {
            template: template.id.clone(),
            events: feed.subscribe(),
            _feed: feed,
        })
    }

    fn check(&self, request: &NewTemplate, reference: &Reference) -> Result<Recipe, Problem> {
        if reference.id().is_some() {
            return Err(invalid("A name cannot have the form of a template's id"));
        }
        // Before Atoll has made its own, or where it is told to make none, the name is free.
        if reference.name == BASE_NAME && self.requester != Requester::Administrator {
            return Err(Problem::new(
                ErrorCode::Conflict,
                format!("The name \"{BASE_NAME}\" is that of the template that Atoll comes with"),
                "choose another name",
            ));
        }
        if request.source.reads_local_files() && self.requester != Requester::Administrator {
            return Err(Problem::new(
                ErrorCode::PermissionDenied,
                "Only an admin key may build templates from the node's own files",
                "use an admin key, or a source that is not a local file",
            ));
        }
        check_environment(&request.environment)?;
        for (name, command) in [
            ("startCommand", &request.start_command),
            ("readyCommand", &request.ready_command),
        ] {
            let length = command.as_ref().map_or(0, String::len);
            if length > MAX_COMMAND {
                return Err(invalid(format!("{name} has more than {MAX_COMMAND} bytes")));
            }
        }
        for (name, text) in [
            ("user", &request.user),
            ("workingDirectory", &request.working_directory),
        ] {
            let wrong = |text: &String| text.len() > 4096 || text.contains(char::is_control);
            if text.as_ref().is_some_and(wrong) {
                return Err(invalid(format!(
                    "{name} is too long or holds a control character"
                )));
            }
        }
        check_template(request.mesh.as_ref())?;
        let most = &self.plane.limits.resources;
        let default = Resources::default();
        let amount = |name: &str, value: Option<u64>, default: u64, range: RangeInclusive<u64>| {
            let value = value.unwrap_or(default.clamp(*range.start(), *range.end()));
            if range.contains(&value) {
                return Ok(value);
            }
            Err(invalid(format!(
                "{name} is {value}: expected {} to {}",
                range.start(),
                range.end()
            )))
        };
        let vcpus = amount(
            "cpuCount",
            request.cpu_count.map(u64::from),
            u64::from(default.vcpus),
            1..=u64::from(most.vcpus),
        )?;
        let memory = amount(
            "memoryMB",
            request.memory_mb,
            default.memory.as_mebibytes(),
            LEAST_MEMORY..=most.memory.as_mebibytes(),
        )?;
        let disk = amount(
            "diskSizeMB",
            request.disk_size_mb,
            default.disk.as_mebibytes(),
            1..=most.disk.as_mebibytes(),
        )?;
        Ok(Recipe {
            source: request.source.clone(),
            requester: self.requester,
            resources: Resources {
                vcpus: u32::try_from(vcpus).unwrap_or(1),
                memory: Bytes::mebibytes(memory),
                disk: Bytes::mebibytes(disk),
            },
            start_command: request
                .start_command
                .clone()
                .filter(|command| !command.is_empty()),
            ready_command: request
                .ready_command
                .clone()
                .filter(|command| !command.is_empty()),
            environment: request.environment.clone(),
            user: request.user.clone(),
            working_directory: request.working_directory.clone(),
            mesh: request.mesh.clone(),
        })
    }

    /// Writes the build into the store.
    async fn enter(
        &self,
        request: &NewTemplate,
        reference: &Reference,
        recipe: Recipe,
    ) -> Result<(Template, Build), Problem> {
        let collections = &self.plane.collections;
        let name = &reference.name;
        let foreign = || {
            Problem::new(
                ErrorCode::PermissionDenied,
                format!("The name \"{name}\" is taken by somebody else"),
                "choose another name",
            )
        };
        if reference
            .namespace
            .as_ref()
            .is_some_and(|owner| owner != self.tenant.as_str())
        {
            return Err(foreign());
        }
        loop {
            let now = Timestamp::now();
            let build = Build {
                id: BuildId::random(&mut rand::rng()),
                status: BuildStatus::Building,
                reason: None,
                tag: reference.tag().to_owned(),
                recipe: recipe.clone(),
                product: None,
                created_at: now,
                updated_at: now,
                finished_at: None,
            };
            let (template, conditions, then) = match collections.names.get(name).await? {
                None => {
                    let own = self.own();
                    let own = own.iter().filter(|own| own.snapshot_of.is_none());
                    if own.count() >= MAX_TEMPLATES {
                        return Err(Problem::new(
                            ErrorCode::LimitReached,
                            format!("You have {MAX_TEMPLATES} templates, which is the most"),
                            "delete templates that are no longer needed",
                        ));
                    }
                    let template = Template {
                        id: TemplateId::random(&mut rand::rng()),
                        tenant: self.tenant.clone(),
                        name: name.clone(),
                        public: request.public.unwrap_or(false),
                        snapshot_of: None,
                        created_at: now,
                        updated_at: now,
                        builds: vec![build.clone()],
                        tags: BTreeMap::new(),
                    };
                    let conditions = vec![collections.names.absent(name)];
                    let then = vec![
                        collections.names.put(name, &template.id)?,
                        collections.templates.put(template.id.as_str(), &template)?,
                    ];
                    (template, conditions, then)
                }
                Some(taken) => {
                    let stored = collections.templates.get(taken.record.as_str()).await?;
                    let Some(mut stored) = stored else { continue };
                    if stored.record.tenant != self.tenant {
                        return Err(foreign());
                    }
                    if stored.record.snapshot_of.is_some() {
                        return Err(Problem::new(
                            ErrorCode::Conflict,
                            format!("The name \"{name}\" is taken by a snapshot"),
                            "choose another name, or delete the snapshot",
                        ));
                    }
                    let conditions = vec![collections.templates.unchanged(&stored)];
                    stored.record.builds.insert(0, build.clone());
                    stored.record.public = request.public.unwrap_or(stored.record.public);
                    stored.record.updated_at = now;
                    let put = collections
                        .templates
                        .put(taken.record.as_str(), &stored.record)?;
                    (stored.record, conditions, vec![put])
                }
            };
            let transaction = Transaction { conditions, then };
            let outcome = collections.store.transact(transaction).await?;
            if outcome.committed() {
                self.plane.catalogue.reached(outcome.revision()).await?;
                return Ok((template, build));
            }
        }
    }

    /// Deletes a template of this tenant, or one version of a snapshot where `text` names one of
    /// several. Its root file systems are removed when nothing else uses them.
    pub(crate) async fn delete(&self, text: &str) -> Result<(), Problem> {
        let id = self.find_own(text)?.id.clone();
        let tag = Reference::parse(text)?.tag;
        let collections = &self.plane.collections;
        loop {
            let Some(mut stored) = collections.templates.get(id.as_str()).await? else {
                return Err(super::absent(text));
            };
            let record = &mut stored.record;
            let tag = tag.as_ref().filter(|_| record.snapshot_of.is_some());
            if let Some(tag) = tag
                && record.tags.remove(tag).is_none()
            {
                return Err(super::absent(text));
            }
            let mut gone = Pruned::default();
            let kept = |build: &Build| {
                let under_way =
                    matches!(build.status, BuildStatus::Waiting | BuildStatus::Building);
                under_way || record.tags.values().any(|tag| tag.build == build.id)
            };
            record.builds.retain(|build| {
                let keep = tag.is_some() && kept(build);
                if !keep {
                    gone.add(build);
                }
                keep
            });
            let whole = record.builds.is_empty();
            record.updated_at = Timestamp::now();
            let mut then = vec![
                collections
                    .garbage
                    .put(&Garbage::random_id(), &gone.garbage)?,
            ];
            if whole {
                then.push(collections.templates.delete(id.as_str()));
                then.push(collections.names.delete(&record.name));
            } else {
                then.push(collections.templates.put(id.as_str(), record)?);
            }
            let conditions = vec![collections.templates.unchanged(&stored)];
            let transaction = Transaction { conditions, then };
            let outcome = collections.store.transact(transaction).await?;
            if outcome.committed() {
                if whole {
                    self.plane.starts.forget(&id);
                }
                let reached = self.plane.catalogue.reached(outcome.revision()).await;
                let builder = &self.plane.builder;
                builder.wake.notify_one();
                for (build, nodes) in gone.builds {
                    builder.remove_states(nodes.into_iter(), &build).await;
                }
                return reached;
            }
        }
    }

    /// Changes the record of a template of this tenant.
    pub(super) async fn change(
        &self,
        text: &str,
        mut change: impl FnMut(&mut Template) -> Result<(), Problem> + Send,
    ) -> Result<Template, Problem> {
        let id = self.find_own(text)?.id.clone();
        let templates = &self.plane.collections.templates;
        let changed = templates
            .update::<Problem>(id.as_str(), |template| {
                change(template)?;
                template.updated_at = Timestamp::now();
                Ok(())
            })
            .await?
            .ok_or_else(|| super::absent(text))?;
        // The reconciler reads the catalogue: it must see the change when it wakes.
        let reached = self.plane.catalogue.reached(changed.modified).await;
        self.plane.builder.wake.notify_one();
        reached?;
        Ok(changed.record)
    }
}

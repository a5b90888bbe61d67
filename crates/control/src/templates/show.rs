//! Templates the way clients read them.

use super::Templates;
use crate::{
    error::not_found,
    extract::number,
    records::{Build, Recipe, Template},
    sandboxes::sizes,
};
use api::{
    BuildId, Problem,
    node::LogLine,
    rest::{self, ENVD_VERSION, listing::microseconds, log::LogEntry, v1},
};

/// How many log lines of a build one answer holds at most.
const LINES: i64 = 100;

/// A log line as clients read it.
pub(crate) fn entry(line: LogLine) -> LogEntry {
    LogEntry {
        timestamp: microseconds(line.at),
        message: line.message,
        level: line.level,
        fields: line.fields,
    }
}

/// The build that a template is judged by: the one with the default tag, else the newest.
fn current(template: &Template) -> Option<&Build> {
    template
        .tagged(crate::records::DEFAULT_TAG)
        .or_else(|| template.newest())
}

impl Templates {
    /// A row of E2B's list.
    pub(crate) fn row(&self, template: &Template) -> rest::template::Template {
        let build = current(template);
        let resources = build
            .map(|build| build.recipe.resources)
            .unwrap_or_default();
        let (cpu_count, memory_mb, disk_size_mb) = sizes(&resources);
        let (spawn_count, last_spawned_at) = match self.owns(template) {
            true => self.plane.starts.of(&template.id),
            // How much others use a public template is theirs.
            false => (0, None),
        };
        rest::template::Template {
            template_id: template.id.to_string(),
            build_id: build.map_or_else(String::new, |build| build.id.to_string()),
            cpu_count,
            memory_mb,
            disk_size_mb,
            public: template.public,
            aliases: vec![template.name.clone()],
            names: vec![template.full_name()],
            created_at: microseconds(template.created_at),
            updated_at: microseconds(template.updated_at),
            created_by: None,
            last_spawned_at: last_spawned_at.map(microseconds),
            spawn_count,
            build_count: u32::try_from(template.builds.len()).unwrap_or(u32::MAX),
            envd_version: ENVD_VERSION.to_owned(),
            build_status: build.map_or(rest::template::BuildStatus::Waiting, |b| b.status),
        }
    }

    /// The same with its builds.
    pub(crate) fn with_builds(&self, template: &Template) -> rest::template::TemplateWithBuilds {
        let builds = template.builds.iter().map(|build| {
            let (cpu_count, memory_mb, disk_size_mb) = sizes(&build.recipe.resources);
            rest::template::TemplateBuild {
                build_id: build.id.to_string(),
                status: build.status,
                created_at: microseconds(build.created_at),
                updated_at: microseconds(build.updated_at),
                finished_at: build.finished_at.map(microseconds),
                cpu_count,
                memory_mb,
                disk_size_mb: Some(disk_size_mb),
                envd_version: Some(ENVD_VERSION.to_owned()),
            }
        });
        rest::template::TemplateWithBuilds {
            template: self.row(template),
            builds: builds.collect(),
        }
    }

    /// Everything about a template. Others' recipes of public templates are shown too: what is
    /// in them is in every sandbox that starts from them.
    pub(crate) fn full(&self, template: &Template) -> v1::Template {
        let tags = template
            .tags
            .iter()
            .map(|(tag, named)| (tag.clone(), named.build.to_string()));
        v1::Template {
            id: template.id.to_string(),
            names: vec![template.full_name()],
            public: template.public,
            own: self.owns(template),
            built_in: template.built_in(),
            created_at: microseconds(template.created_at),
            tags: tags.collect(),
            builds: template
                .builds
                .iter()
                .map(|build| self.build_shape(template, build))
                .collect(),
        }
    }

    fn build_shape(&self, template: &Template, build: &Build) -> v1::Build {
        let Recipe {
            source,
            resources,
            mesh,
            ..
        } = &build.recipe;
        let (cpu_count, memory_mb, disk_size_mb) = sizes(resources);
        let feed = self.plane.builder.feed(&build.id);
        let source = match source.reads_local_files() && !self.owns(template) {
            // A path on somebody's machine is nobody else's business.
            true => "a local file".to_owned(),
            false => source.to_string(),
        };
        v1::Build {
            id: build.id.to_string(),
            status: build.status,
            message: feed
                .and_then(|feed| feed.describe())
                .or_else(|| build.reason.clone()),
            source,
            cpu_count,
            memory_mb,
            disk_size_mb,
            mesh: mesh.clone(),
            size: build.product.as_ref().map(|product| product.size),
            created_at: microseconds(build.created_at),
            finished_at: build.finished_at.map(microseconds),
        }
    }

    /// How a build goes, with its log from line `offset` on.
    pub(crate) fn build_info(
        &self,
        text: &str,
        build: &str,
        offset: Option<&str>,
        limit: Option<&str>,
    ) -> Result<rest::template::TemplateBuildInfo, Problem> {
        let template = self.find(text)?;
        let found = build
            .parse::<BuildId>()
            .ok()
            .and_then(|id| template.build(&id).cloned());
        let Some(build) = found.filter(|_| self.owns(&template) || template.built_in()) else {
            return Err(not_found("The template has no such build"));
        };
        let offset = number("logsOffset", offset, 0, 0..=i64::from(i32::MAX))?;
        let limit = number("limit", limit, LINES, 1..=LINES)?;
        let lines = self
            .plane
            .builder
            .feed(&build.id)
            .map_or_else(Vec::new, |feed| feed.lines());
        let lines: Vec<LogEntry> = lines
            .into_iter()
            .skip(usize::try_from(offset).unwrap_or(0))
            .take(usize::try_from(limit).unwrap_or(0))
            .map(entry)
            .collect();
        Ok(rest::template::TemplateBuildInfo {
            template_id: template.id.to_string(),
            build_id: build.id.to_string(),
            status: build.status,
            logs: lines.iter().map(|line| line.message.clone()).collect(),
            log_entries: lines,
            reason: build.reason.map(|message| rest::template::BuildReason {
                message,
                step: None,
            }),
        })
    }
}

//! `atoll template`: what sandboxes start from.

use crate::{
    client::{connection::Connection, sandboxes::pick, templates::BuildNews},
    commands::parse_variable,
    failure::Failure,
    progress::Progress,
    signals::Signals,
    style::{self, Table},
};
use anyhow::{Context, bail};
use api::{
    Bytes,
    node::BuildEvent,
    rest::{
        sandbox::NewMeshIdentity,
        template::BuildStatus,
        v1::{NewTemplate, Template},
    },
    template::TemplateSource,
};
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// Build, list, tag and remove what sandboxes start from
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const BUILD_EXAMPLES: &str = "\
Sources:
  docker://IMAGE           an image from a registry, with the credentials of Docker's config file
  oci:PATH[:TAG]           an OCI layout: a folder or an archive of one
  dir:PATH                 a folder
  tar:PATH                 a tarball, plain or compressed with gzip or zstd
  debian:SUITE[+PACKAGES]  Debian with packages, separated by commas
  base                     the built-in template

Examples:
  atoll template build web docker://docker.io/library/nginx:1.27 --start 'nginx -g \"daemon off;\"'
  atoll template build tools debian:bookworm+git,make,gcc --memory 1GiB
  atoll template build mine dir:./rootfs -e MODE=production
  atoll template build api dir:./app --start ./serve --ready-command 'curl -sf localhost:8080'

A source that was built before is not built again. An interrupted build goes on where it was when
it is started again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a template, or a new version of it
    #[command(after_help = BUILD_EXAMPLES)]
    Build(Box<Build>),

    /// List the templates
    #[command(after_help = "Example:\n  atoll template ls --json")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// Remove templates; sandboxes that run go on
    #[command(after_help = "Example:\n  atoll template rm web tools")]
    Rm {
        /// Templates: names, ids, or the beginnings of ids
        #[arg(value_name = "TEMPLATE", required = true)]
        templates: Vec<String>,

        #[command(flatten)]
        connection: Connection,
    },

    /// Give a version of a template further tags
    #[command(after_help = "Examples:\n  atoll template tag web stable\n  \
                            atoll template tag web:stable v1 v1.2\n  \
                            atoll template tag web --remove v1")]
    Tag {
        /// The version: NAME or NAME:TAG
        #[arg(value_name = "TEMPLATE")]
        target: String,

        /// The tags
        #[arg(value_name = "TAG", required = true)]
        tags: Vec<String>,

        /// Take the tags away instead
        #[arg(long)]
        remove: bool,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Options of `template build`.
#[derive(Debug, clap::Args)]
struct Build {
    /// Name of the template, or NAME:TAG
    #[arg(value_name = "NAME")]
    name: String,

    /// Where its root file system comes from
    #[arg(value_name = "SOURCE")]
    source: TemplateSource,

    /// Most memory of a sandbox, such as 512MiB
    #[arg(long, value_name = "BYTES")]
    memory: Option<Bytes>,

    /// Processors of a sandbox
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,

    /// Most that a sandbox may write, such as 10GiB
    #[arg(long, value_name = "BYTES")]
    disk: Option<Bytes>,

    /// Command that is started in every sandbox
    #[arg(long = "start", alias = "start-command", value_name = "COMMAND")]
    start_command: Option<String>,

    /// Command that is tried after it until it succeeds: the template is ready then
    #[arg(
        long = "ready",
        visible_alias = "ready-command",
        value_name = "COMMAND"
    )]
    ready_command: Option<String>,

    /// Set a variable for every process; KEY alone takes the value from here
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = parse_variable)]
    environment: Vec<(String, String)>,

    /// User whom commands run as [default: the image's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// Folder that commands run in [default: the image's]
    #[arg(short, long = "workdir", value_name = "DIR")]
    working_directory: Option<String>,

    /// Let other tenants start sandboxes from it
    #[arg(long)]
    public: bool,

    /// Put each of its sandboxes into the mesh with these tags, separated by commas. Who creates one
    /// must be allowed to give them
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    mesh: Vec<String>,

    /// Print JSON: one object a line while it builds, the template last
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Build(options) => build(*options).await,
        Command::Ls { json, connection } => list(json, &connection).await,
        Command::Rm {
            templates,
            connection,
        } => remove(templates, &connection).await,
        Command::Tag {
            target,
            tags,
            remove,
            connection,
        } => {
            let client = connection.open()?;
            if remove {
                client.untag(&target, &tags).await?;
            } else {
                client.tag(&target, &tags).await?;
            }
            Ok(0)
        }
    }
}

async fn build(options: Build) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let client = options.connection.open()?;
    let mebibytes = |amount: Bytes| amount.0.div_ceil(1 << 20);
    let request = NewTemplate {
        name: options.name.clone(),
        source: from_here(options.source)?,
        cpu_count: options.cpus,
        memory_mb: options.memory.map(mebibytes),
        disk_size_mb: options.disk.map(mebibytes),
        start_command: options.start_command,
        ready_command: options.ready_command,
        environment: options.environment.into_iter().collect(),
        user: options.user,
        working_directory: options.working_directory,
        public: options.public.then_some(true),
        mesh: (!options.mesh.is_empty()).then(|| NewMeshIdentity {
            tags: options.mesh.into_iter().collect(),
            name: None,
        }),
    };
    let mut build = client.build(&request).await?;
    let mut progress = (!options.json).then(|| Progress::new(&options.name));
    loop {
        let news = tokio::select! {
            news = build.next() => news?,
            status = signals.stop() => return Ok(status),
        };
        match news {
            Some(BuildNews::Event(BuildEvent::Failed { cause, remedy })) => {
                drop(progress);
                let cause = style::harmless(&cause);
                return Err(Failure::new(cause, style::harmless(&remedy)))
                    .with_context(|| format!("template `{}` was not built", options.name));
            }
            Some(BuildNews::Event(event)) => match &mut progress {
                Some(progress) => progress.show(&event),
                None => style::to_stdout(&format!("{}\n", serde_json::to_string(&event)?))?,
            },
            Some(BuildNews::Template(template)) => {
                drop(progress);
                if options.json {
                    style::to_stdout(&format!("{}\n", serde_json::to_string(&template)?))?;
                } else {
                    style::to_stdout(&format!("{}\n", template.id))?;
                }
                return Ok(0);
            }
            None => bail!("the server did not say how the build ended"),
        }
    }
}

/// The source with paths that mean the same to the server, which runs in another folder.
fn from_here(source: TemplateSource) -> anyhow::Result<TemplateSource> {
    let here = |path: &Path| -> anyhow::Result<PathBuf> {
        std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
    };
    Ok(match source {
        TemplateSource::Directory(path) => TemplateSource::Directory(here(&path)?),
        TemplateSource::Tarball(path) => TemplateSource::Tarball(here(&path)?),
        TemplateSource::OciLayout { path, tag } => TemplateSource::OciLayout {
            path: here(&path)?,
            tag,
        },
        other => other,
    })
}

async fn list(json: bool, connection: &Connection) -> anyhow::Result<u8> {
    let templates = connection.open()?.templates().await?;
    if json {
        style::print_json(&templates)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "TEMPLATE", "NAMES", "STATE", "CPUS", "MEMORY", "SIZE", "SOURCE", "TAGS",
    ]);
    for template in templates {
        let tags: Vec<String> = template.tags.into_keys().collect();
        let names: Vec<&str> = template
            .names
            .iter()
            .map(|name| short(name, template.own))
            .collect();
        let mut cells = vec![template.id, names.join(" ")];
        // Builds come newest first.
        cells.extend(match template.builds.into_iter().next() {
            Some(build) => [
                word(build.status).to_owned(),
                build.cpu_count.to_string(),
                Bytes::mebibytes(build.memory_mb).to_string(),
                build.size.map(|size| size.to_string()).unwrap_or_default(),
                build.source,
            ],
            None => Default::default(),
        });
        cells.push(tags.join(" "));
        table.row(cells);
    }
    table.print()?;
    Ok(0)
}

/// A name as its owner writes it: without the owner before the slash.
fn short(name: &str, own: bool) -> &str {
    match name.rsplit_once('/') {
        Some((_, short)) if own => short,
        _ => name,
    }
}

fn word(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Waiting => "waiting",
        BuildStatus::Building => "building",
        BuildStatus::Ready => "ready",
        BuildStatus::Error => "failed",
    }
}

async fn remove(names: Vec<String>, connection: &Connection) -> anyhow::Result<u8> {
    let client = connection.open()?;
    let known = client.templates().await?;
    for name in names {
        let named = known.iter().find(|entry| {
            entry
                .names
                .iter()
                .any(|full| *full == name || short(full, entry.own) == name)
        });
        let found: &Template = match named {
            Some(entry) => entry,
            None => pick(&name, known.iter(), |entry| &entry.id).only(
                "template",
                &name,
                "atoll template ls",
            )?,
        };
        client.remove_template(&found.id).await?;
        style::to_stdout(&format!("{}\n", found.id))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_become_absolute() {
        let source = from_here("dir:./root".parse().unwrap()).unwrap();
        let TemplateSource::Directory(path) = source else {
            panic!("not a folder")
        };
        assert!(path.is_absolute());
        let image: TemplateSource = "docker://x/y".parse().unwrap();
        assert_eq!(from_here(image.clone()).unwrap(), image);
    }
}

//! `atoll create`: a sandbox that stays.

use crate::{
    client::connection::Connection,
    commands::{parse_pair, parse_seconds, parse_variable},
    style,
};
use api::{
    Bytes,
    rest::sandbox::{AutoResume, NewMeshIdentity, NewSandbox},
};

/// What a new sandbox is like.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sandbox")]
pub(crate) struct Shape {
    /// Set a variable for every process in the sandbox; KEY alone takes the value from here
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = parse_variable)]
    pub(crate) environment: Vec<(String, String)>,

    /// Label the sandbox, to find it again
    #[arg(short, long = "metadata", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) metadata: Vec<(String, String)>,

    /// Most memory that it may use, such as 512MiB or 2GiB [default: the template's]
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory: Option<Bytes>,

    /// Processors that it may use [default: the template's]
    #[arg(long, value_name = "COUNT")]
    pub(crate) cpus: Option<u32>,

    /// Keep the sandbox from reaching the internet
    #[arg(long)]
    pub(crate) no_internet: bool,

    /// Put the sandbox into the mesh with these tags, separated by commas. The mesh's policy says which
    /// tags are yours to give
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    pub(crate) mesh: Vec<String>,

    /// What to call it in the mesh: one of its tags, a hyphen and what you like [default: made up]
    #[arg(long, value_name = "NAME", requires = "mesh")]
    pub(crate) mesh_name: Option<String>,
}

impl Shape {
    /// The request for a sandbox of this shape that lives for `timeout` seconds.
    pub(crate) fn request(&self, template: &str, timeout: u64) -> NewSandbox {
        let map = |pairs: &[(String, String)]| {
            (!pairs.is_empty()).then(|| pairs.iter().cloned().collect())
        };
        NewSandbox {
            template_id: template.to_owned(),
            timeout: Some(i64::try_from(timeout).unwrap_or(i64::MAX)),
            metadata: map(&self.metadata),
            env_vars: map(&self.environment),
            allow_internet_access: self.no_internet.then_some(false),
            cpu_count: self.cpus,
            memory_mb: self.memory.map(|memory| memory.0.div_ceil(1 << 20)),
            mesh: (!self.mesh.is_empty()).then(|| NewMeshIdentity {
                tags: self.mesh.iter().cloned().collect(),
                name: self.mesh_name.clone(),
            }),
            ..NewSandbox::default()
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  atoll create base
  atoll create base --timeout 1h -m owner=ann -e DEBUG=1
  atoll create base --timeout 10m --auto-pause --auto-resume
  atoll create base --mesh ci --mesh-name ci-7
  id=$(atoll create base) && atoll exec $id -- uname -a";

/// Create a sandbox and print its id
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Template to start from: NAME, NAME:TAG or id
    #[arg(value_name = "TEMPLATE", default_value = "base")]
    template: String,

    /// How long it lives: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_seconds)]
    timeout: u64,

    #[command(flatten)]
    shape: Shape,

    /// Pause it when its time is up, instead of ending it
    #[arg(long)]
    auto_pause: bool,

    /// Wake it by the next request for it, once it is paused
    #[arg(long, requires = "auto_pause")]
    auto_resume: bool,

    /// Keep files only when it is paused so: programs end
    #[arg(long, requires = "auto_pause", conflicts_with = "auto_resume")]
    disk_only: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let request = NewSandbox {
        auto_pause: arguments.auto_pause.then_some(true),
        auto_pause_memory: arguments.disk_only.then_some(false),
        auto_resume: arguments
            .auto_resume
            .then_some(AutoResume { enabled: true }),
        ..arguments
            .shape
            .request(&arguments.template, arguments.timeout)
    };
    let sandbox = client.create(&request).await?;
    if arguments.json {
        let mut shown = serde_json::json!({
            "sandboxID": sandbox.id,
            "template": arguments.template,
            "timeout": arguments.timeout,
        });
        if let Some(mesh) = sandbox.mesh {
            shown["mesh"] = serde_json::to_value(mesh)?;
        }
        style::print_json(&shown)?;
    } else {
        style::to_stdout(&format!("{}\n", sandbox.id))?;
    }
    Ok(0)
}

//! `atoll run`: one command in a sandbox of its own.

use crate::{
    client::{Client, connection::Connection, guest::Guest, process::Command, sandboxes::Opened},
    commands::{create::Shape, parse_seconds},
    session::{self, Wiring},
    signals::Signals,
    style,
};
use api::{SandboxId, rest::sandbox::NewSandbox};
use std::{pin::pin, time::Duration};

/// How long the sandbox outlives a client that died without a word.
const LEASE: Duration = Duration::from_secs(60);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(20);
/// How long a sandbox lives on that was kept.
const KEPT: Duration = Duration::from_secs(300);
/// How long an interrupted command waits for a sandbox that is just being made, to remove it.
const CREATION_DEADLINE: Duration = Duration::from_secs(10);
/// How long removing the sandbox may take.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  atoll run base -- python3 -c 'print(6 * 7)'
  atoll run base -t                            a shell
  echo 'print(1)' | atoll run base -- python3 -
  atoll run base -e GREETING=hi -w /tmp -- sh -c 'echo $GREETING from $PWD'
  atoll run base --memory 1GiB --cpus 2 --timeout 10m -- make
  atoll run base --mesh ci -- psql -h db.mesh.internal

The sandbox ends with the command. Ctrl-C is passed on to it; the second Ctrl-C ends it at once.
The exit status is the command's own, 128 and the signal's number if a signal ended it, or 125 if
Atoll failed.";

/// Run a command in a new sandbox
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Template to start from: NAME, NAME:TAG or id
    #[arg(value_name = "TEMPLATE")]
    template: String,

    /// Command and its arguments [default with -t: a shell]
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present = "terminal"
    )]
    command: Vec<String>,

    #[command(flatten)]
    process: ProcessOptions,

    /// Leave the sandbox running afterwards, and print its id to standard error
    #[arg(long)]
    keep: bool,

    /// End the sandbox after this time, whatever the command does
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    timeout: Option<u64>,

    #[command(flatten)]
    shape: Shape,

    #[command(flatten)]
    connection: Connection,
}

/// How a process in a sandbox runs.
#[derive(Debug, clap::Args)]
pub(crate) struct ProcessOptions {
    /// Give the command a terminal
    #[arg(short, long = "terminal")]
    pub(crate) terminal: bool,

    /// Do not pass standard input on
    #[arg(short, long = "no-stdin")]
    pub(crate) no_stdin: bool,

    /// Run the command in this folder [default: the template's]
    #[arg(short, long = "workdir", value_name = "DIR")]
    pub(crate) working_directory: Option<String>,

    /// Run the command as this user [default: the template's]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
}

impl ProcessOptions {
    /// The command to start: what the words say, or a login shell if there are none.
    pub(crate) fn command(
        &self,
        words: Vec<String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Command {
        let mut words = words.into_iter();
        let program = words.next();
        let arguments = match &program {
            Some(_) => words.collect(),
            None => vec!["-l".to_owned()],
        };
        Command {
            program: program.unwrap_or_else(|| "/bin/bash".to_owned()),
            arguments,
            environment: environment.into_iter().collect(),
            working_directory: self.working_directory.clone(),
        }
    }

    /// How to connect it.
    pub(crate) fn wiring(&self) -> Wiring {
        Wiring {
            terminal: self.terminal,
            input: !self.no_stdin,
        }
    }
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let client = arguments.connection.open()?;
    let timeout = arguments.timeout.unwrap_or(LEASE.as_secs());
    let request = arguments.shape.request(&arguments.template, timeout);
    let sandbox = match create(&client, &request, &mut signals).await? {
        Ok(sandbox) => sandbox,
        Err(status) => return Ok(status),
    };
    let id = sandbox.id.clone();
    let renewal = arguments
        .timeout
        .is_none()
        .then(|| tokio::spawn(renew(client.clone(), id.clone())));
    let guest = Guest::new(client.clone(), sandbox, arguments.process.user.clone());
    let command = arguments.process.command(arguments.command, []);
    let status = session::run(&guest, command, arguments.process.wiring(), &mut signals).await;
    if let Some(renewal) = renewal {
        renewal.abort();
    }
    if arguments.keep {
        if arguments.timeout.is_none() {
            client.set_timeout(&id, KEPT.as_secs()).await?;
        }
        style::note(&format!("kept sandbox {id}"));
    } else {
        remove(&client, &id).await;
    }
    status
}

/// Creates the sandbox. Interrupted meanwhile, it waits for what was begun and removes it, so that
/// nothing is left; then the error is the exit status.
async fn create(
    client: &Client,
    request: &NewSandbox,
    signals: &mut Signals,
) -> anyhow::Result<Result<Opened, u8>> {
    let mut creation = pin!(client.create(request));
    let status = tokio::select! {
        created = &mut creation => return created.map(Ok),
        status = signals.stop() => status,
    };
    if let Ok(Ok(sandbox)) = tokio::time::timeout(CREATION_DEADLINE, creation).await {
        remove(client, &sandbox.id).await;
    }
    Ok(Err(status))
}

/// Keeps the sandbox alive for as long as this program is.
async fn renew(client: Client, id: SandboxId) {
    let mut ticks = tokio::time::interval(RENEWAL);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = client.set_timeout(&id, LEASE.as_secs()).await {
            tracing::debug!(%error, "the sandbox's time was not extended");
        }
    }
}

async fn remove(client: &Client, id: &SandboxId) {
    let left = match tokio::time::timeout(REMOVAL_DEADLINE, client.kill(id)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "no answer in time".to_owned(),
    };
    style::note(&format!("warning: sandbox {id} may still run: {left}"));
}

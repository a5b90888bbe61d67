//! `atoll exec`: a command in a sandbox that runs.

use crate::{
    client::{connection::Connection, guest::Guest},
    commands::{parse_variable, run::ProcessOptions},
    session,
    signals::Signals,
};

const EXAMPLES: &str = "\
Examples:
  atoll exec i0ab -- ps aux        an id may be shortened while it is unique
  atoll exec i0ab -t               a shell
  atoll exec i0ab -u root -- apt-get update

The exit status is the command's own, or 125 if Atoll failed.";

/// Run a command in a sandbox
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandbox: its id, or the beginning of it
    #[arg(value_name = "SANDBOX")]
    sandbox: String,

    /// Command and its arguments [default with -t: a shell]
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present = "terminal"
    )]
    command: Vec<String>,

    /// Set a variable for the command; KEY alone takes the value from here
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = parse_variable)]
    environment: Vec<(String, String)>,

    #[command(flatten)]
    process: ProcessOptions,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let client = arguments.connection.open()?;
    let id = client.resolve(&arguments.sandbox).await?;
    let sandbox = client.open(&id).await?;
    let guest = Guest::new(client, sandbox, arguments.process.user.clone());
    let command = arguments
        .process
        .command(arguments.command, arguments.environment);
    session::run(&guest, command, arguments.process.wiring(), &mut signals).await
}

//! `atoll fleet`: machines that sleep when nobody needs them.

mod ask;
mod check;
mod explain;
mod file;
mod keep;
mod power;
mod replay;
mod serve;
mod simulate;
mod status;

use crate::style;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  atoll fleet simulate --generate diurnal --machines 1000   what each policy would need in a week
  atoll fleet check --config fleet.toml                     look for mistakes in a configuration
  atoll fleet serve --config fleet.toml --dry-run           plan for real machines, and switch nothing
  atoll fleet status                                        what every machine is, and why
  atoll fleet explain m7                                    what keeps it on, and what would change that
  atoll fleet power m7 status --config fleet.toml           what controller and node say
  atoll fleet schema > fleet.schema.json                    for editors that complete and check";

/// Switch machines off that nobody needs and on again in time, and say why
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Status(status::Arguments),
    Explain(explain::Arguments),
    Replay(replay::Arguments),
    Simulate(simulate::Arguments),
    Check(check::Arguments),
    Power(power::Arguments),
    /// Print the JSON schema of the configuration
    #[command(after_help = "Example:\n  atoll fleet schema > fleet.schema.json")]
    Schema,
}

/// Does it.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Serve(arguments) => serve::execute(arguments).await,
        Command::Status(arguments) => status::execute(arguments).await,
        Command::Explain(arguments) => explain::execute(arguments).await,
        Command::Replay(arguments) => replay::execute(arguments).await,
        Command::Simulate(arguments) => simulate::execute(arguments).await,
        Command::Check(arguments) => check::execute(arguments),
        Command::Power(arguments) => power::execute(arguments).await,
        Command::Schema => {
            style::print_json(&::fleet::config::schema())?;
            Ok(0)
        }
    }
}

//! `atoll fleet`: machines that sleep when nobody needs them.

mod check;
mod file;
mod power;
mod simulate;

use crate::style;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  atoll fleet simulate --generate diurnal --machines 1000   what each policy would need in a week
  atoll fleet check --config fleet.toml                     look for mistakes in a configuration
  atoll fleet power m7 status --config fleet.toml           what controller and node say
  atoll fleet schema > fleet.schema.json                    for editors that complete and check";

/// Plan which machines are on, and see what that saves
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
        Command::Simulate(arguments) => simulate::execute(arguments).await,
        Command::Check(arguments) => check::execute(arguments),
        Command::Power(arguments) => power::execute(arguments).await,
        Command::Schema => {
            style::print_json(&::fleet::config::schema())?;
            Ok(0)
        }
    }
}

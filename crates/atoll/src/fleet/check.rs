//! `atoll fleet check`: looks for mistakes in a configuration.

use crate::style;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  atoll fleet check --config fleet.toml

Exit status: 0 if there is no mistake, else 1.";

/// Check a configuration without doing anything
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is in the file.
#[derive(Debug, Serialize)]
struct Summary {
    machines: usize,
    groups: usize,
    policy: String,
}

/// Does it.
pub(super) fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let file = super::file::read(&arguments.config)?;
    let summary = Summary {
        machines: file.machines.len(),
        groups: file.groups.len(),
        policy: file.policy.kind.to_string(),
    };
    if arguments.json {
        style::print_json(&summary)?;
    } else {
        style::note(&format!(
            "no mistakes: {} machines in {} groups under the policy {}",
            summary.machines, summary.groups, summary.policy
        ));
    }
    Ok(0)
}

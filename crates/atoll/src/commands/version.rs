//! `atoll version`.

use crate::style;

/// Print the version
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<u8> {
    let version = env!("CARGO_PKG_VERSION");
    if arguments.json {
        style::print_json(&serde_json::json!({ "version": version }))?;
    } else {
        style::to_stdout(&format!("atoll {version}\n"))?;
    }
    Ok(0)
}

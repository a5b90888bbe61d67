//! `atoll man`: the manual pages, from the same definitions as the help.

use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;

/// Write the manual pages to a folder
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder to write `atoll.1`, `atoll-run.1`, … to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Does it.
pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<u8> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(super::Arguments::command(), folder))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    Ok(0)
}

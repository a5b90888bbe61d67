//! `atoll mesh map`: the mesh as the node on this machine sees it, as a picture.

mod draw;
#[cfg(test)]
mod tests;

use super::{StateDirectory, talk::Talk};
use crate::style;
use anyhow::Context;
use std::path::PathBuf;

/// Draw the mesh as the node on this machine sees it, as SVG
///
/// Who is there, whom policy lets this node speak with, over which way and how fast, and who is not reached. A browser shows the picture in the colours, light or
/// dark, that its user prefers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh map --output mesh.svg\n  atoll mesh map | ssh me@desk 'cat >mesh.svg'"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Where to write the picture [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let status = Talk::open(&arguments.state.path()).await?.status().await?;
    let picture = draw::picture(&status);
    match arguments.output {
        Some(file) => {
            std::fs::write(&file, picture)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        None => style::to_stdout(&picture)?,
    }
    Ok(0)
}

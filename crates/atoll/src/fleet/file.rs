//! Reading a fleet's configuration.

use anyhow::Context;
use fleet::config::File;
use std::path::Path;

/// Reads and checks the file.
///
/// # Errors
/// With every mistake and its line, or when the file cannot be read.
pub(super) fn read(path: &Path) -> anyhow::Result<File> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    fleet::config::parse(&text).map_err(|error| error.problem(&name).into())
}

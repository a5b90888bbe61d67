//! This machine's Firecracker: what it is, and what it and this host can do together.

use super::{
    options::{FirecrackerOptions, MemoryBackend},
    pages,
    version::{Version, parse_first_line},
};
use crate::{
    DriverError,
    microvm::{self, unsupported},
    state::HostFacts,
};
use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

/// Whether memory is to be brought page by page, and can be.
pub(super) fn serves_pages(options: &FirecrackerOptions) -> Result<bool, DriverError> {
    if !options.huge_pages && options.memory == MemoryBackend::File {
        return Ok(false);
    }
    match pages::is_usable() {
        Ok(()) => Ok(true),
        Err(error) if options.huge_pages => Err(unsupported(
            format!("huge pages need userfaultfd, and /dev/userfaultfd cannot be used: {error}"),
            "Start Linux 6.1 or newer with CONFIG_USERFAULTFD, or set vm.unprivileged_userfaultfd to 1",
        )),
        Err(error) => {
            tracing::warn!(%error, "memory comes from files, as userfaultfd cannot be used");
            Ok(false)
        }
    }
}

/// What a program prints when it is asked.
fn ask(program: &Path, question: &str) -> io::Result<String> {
    let output = Command::new(program)
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn version_of(program: &Path) -> Result<Version, DriverError> {
    let name = program.display();
    let remedy = "Install Firecracker and its jailer from one release: \
                  https://github.com/firecracker-microvm/firecracker/releases";
    let text = ask(program, "--version").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unsupported(format!("{name} is not there"), remedy),
        _ => unsupported(format!("{name} does not start: {error}"), remedy),
    })?;
    parse_first_line(&text)
        .ok_or_else(|| unsupported(format!("{name} does not tell its version"), remedy))
}

/// The layout of a machine and of its files. A snapshot names the files of its jail: whatever calls
/// them otherwise, or changes the files of a state, raises this.
const LAYOUT: u32 = 1;

/// What snapshots are bound to: the format of their files is the version's, and what a processor
/// can is part of them, unless a template hides it.
pub(super) fn facts(options: &FirecrackerOptions, version: Version) -> HostFacts {
    let format = ask(&options.program, "--snapshot-version").unwrap_or_default();
    let format: String = format.trim().chars().take(20).collect();
    let processor = match &options.cpu_template {
        Some(template) => format!("template {template}"),
        None => microvm::host_processor(),
    };
    let huge = if options.huge_pages {
        ", huge pages"
    } else {
        ""
    };
    let program = format!("Firecracker {version}, snapshots {format}{huge}");
    HostFacts::here(program, "kvm", processor, &options.kernel, LAYOUT)
}

//! Options that only one driver understands: those of Firecracker.

use crate::failure::Failure;
use driver::{
    DriverKind,
    firecracker::{FirecrackerOptions, MemoryBackend},
};

/// Where a resumed machine's memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Memory {
    /// Its file, mapped copy-on-write: machines of one template share what they only read
    #[default]
    File,
    /// A process of Atoll's, page by page as the machine touches them (userfaultfd)
    Pages,
}

/// What `atoll up` is told about Firecracker.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Firecracker")]
pub(crate) struct FirecrackerArguments {
    /// Where the memory of a resumed machine comes from [default: file]
    #[arg(long, value_enum, value_name = "WHENCE")]
    machine_memory: Option<Memory>,

    /// Give machines memory in pages of 2 MiB from the host's pool (vm.nr_hugepages); implies
    /// `--machine-memory pages`. Templates are made again when this changes
    #[arg(long, conflicts_with = "machine_memory")]
    huge_pages: bool,

    /// CPU template that hides what processors differ in, such as T2, so that snapshots may move
    #[arg(long, value_name = "NAME")]
    cpu_template: Option<String>,

    /// Answer programs inside at 169.254.169.254 with the ids of their sandbox and template (MMDS)
    #[arg(long)]
    machine_metadata: bool,
}

impl FirecrackerArguments {
    /// Refuses what the driver that was chosen would take no notice of.
    pub(super) fn check(&self, kind: DriverKind) -> Result<(), Failure> {
        let given = [
            ("--machine-memory", self.machine_memory.is_some()),
            ("--huge-pages", self.huge_pages),
            ("--cpu-template", self.cpu_template.is_some()),
            ("--machine-metadata", self.machine_metadata),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) if kind != DriverKind::Firecracker => Err(Failure::new(
                format!("{name} is for the driver firecracker, which was not chosen"),
                format!("leave {name} out, or use --driver firecracker"),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn apply(self, options: &mut FirecrackerOptions) {
        if self.machine_memory == Some(Memory::Pages) {
            options.memory = MemoryBackend::Pages;
        }
        options.huge_pages = self.huge_pages;
        options.cpu_template = self.cpu_template;
        options.metadata = self.machine_metadata;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        firecracker: FirecrackerArguments,
    }

    fn parse(line: &str) -> FirecrackerArguments {
        let line = std::iter::once("atoll").chain(line.split_whitespace());
        Program::try_parse_from(line).unwrap().firecracker
    }

    #[test]
    fn only_firecracker_takes_them() {
        for line in [
            "--machine-memory file",
            "--huge-pages",
            "--cpu-template T2",
            "--machine-metadata",
        ] {
            let given = parse(line);
            assert!(given.check(DriverKind::Firecracker).is_ok());
            for kind in [DriverKind::Container, DriverKind::Qemu] {
                let error = given.check(kind).unwrap_err().to_string();
                assert!(error.contains(line.split(' ').next().unwrap()), "{error}");
            }
        }
        assert!(parse("").check(DriverKind::Container).is_ok());
    }
}

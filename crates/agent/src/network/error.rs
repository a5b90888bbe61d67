//! Why the network of a node could not do something.

use api::{ErrorCode, Problem};
use std::{io, net::IpAddr, path::PathBuf};

/// Why the network of a node could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The name of the instance is not four hexadecimal digits.
    #[error("`{0}` does not name an instance: expected 4 digits of 0-9 and a-f")]
    Instance(String),
    /// A name server that sandboxes cannot reach.
    #[error("sandboxes cannot use {0} as their name server")]
    NameServer(IpAddr),
    /// A program is missing.
    #[error("the program `{program}` is not installed")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The package that holds it, in Debian and most others.
        package: &'static str,
    },
    /// `nft` refused the rules, or they are not there although it accepted them.
    #[error("the firewall rules of table `{table}` could not be loaded: {cause}")]
    Rules {
        /// The table.
        table: String,
        /// What `nft` said.
        cause: String,
    },
    /// Every part of the given ranges is in use on this host.
    #[error("no block of 4096 addresses is free in {0}")]
    NoRange(String),
    /// All slots are in use.
    #[error("all {0} network slots are in use")]
    NoSlot(u32),
    /// The slot is not one that this program holds.
    #[error("network slot {0} is not in use")]
    NotClaimed(u32),
    /// The slot cannot be taken over.
    #[error("network slot {number} cannot be taken over: {cause}")]
    NotAdopted {
        /// Its number.
        number: u32,
        /// Why.
        cause: String,
    },
    /// Something took longer than it may.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// A file of the network's own cannot be understood.
    #[error("{path} is damaged: {cause}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The kernel sent something that makes no sense.
    #[error("the kernel's answer while {0} makes no sense")]
    Answer(&'static str),
    /// A system call or a request to the kernel failed.
    #[error("{doing}")]
    System {
        /// What was being done, with the path or name concerned.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// A failed system call.
    pub(super) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// The error as users see it.
    pub fn problem(&self) -> Problem {
        let cause = match self {
            Self::System { doing, source } => format!("{doing}: {source}"),
            other => other.to_string(),
        };
        let (code, remedy) = match self {
            Self::Instance(_) => (ErrorCode::InvalidArgument, String::new()),
            Self::NameServer(_) => (
                ErrorCode::InvalidArgument,
                "name a server by an IPv4 address that other machines reach too".to_owned(),
            ),
            Self::MissingProgram { package, .. } => (
                ErrorCode::Unsupported,
                format!("install the package `{package}`: apt-get install {package}"),
            ),
            Self::Rules { .. } => (
                ErrorCode::Unsupported,
                "the kernel must have nf_tables with NAT, fib and connlimit; `atoll doctor` says \
                 what is missing"
                    .to_owned(),
            ),
            Self::NoRange(_) => (
                ErrorCode::OutOfCapacity,
                "give a range that this host does not use".to_owned(),
            ),
            Self::NoSlot(_) => (
                ErrorCode::OutOfCapacity,
                "end sandboxes that are no longer needed".to_owned(),
            ),
            Self::NotClaimed(_) | Self::NotAdopted { .. } => (ErrorCode::NotFound, String::new()),
            Self::Deadline(_) => (ErrorCode::DeadlineExceeded, String::new()),
            Self::Damaged { path, .. } => (
                ErrorCode::Internal,
                format!("remove {} and start again", path.display()),
            ),
            Self::Answer(_) => (ErrorCode::Internal, String::new()),
            Self::System { source, .. } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    (ErrorCode::Unsupported, "run Atoll as root".to_owned())
                }
                Some(libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC | libc::EMFILE | libc::ENFILE) => {
                    (
                        ErrorCode::OutOfCapacity,
                        "end sandboxes that are no longer needed, or raise the host's limits"
                            .to_owned(),
                    )
                }
                _ => (ErrorCode::Internal, String::new()),
            },
        };
        Problem::new(code, cause, remedy)
    }
}

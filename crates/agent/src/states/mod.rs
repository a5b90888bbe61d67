//! States of sandboxes that are kept on the disk: paused sandboxes, snapshots, templates after
//! their start, and for a moment what forks start from.
//!
//! Each is a directory that a driver wrote (see [`driver::state`]):
//!
//! - `states/BUILD/`, with what the agent knows about it beside it in `states/BUILD.json`; or
//!   `states/BUILD.N/`, if it was made again while the one before was there: the highest `N` counts;
//! - `paused/SANDBOX.N/`, where the journal says which `N` counts;
//! - `forks/NAME/`.
//!
//! A directory without `state.json` is half made and goes at the next start; so does one of a build
//! without the file beside it, which is how a removal that must wait is remembered.
//!
//! A state is kept while it has a name (a build that was not removed, a sandbox that is paused), or
//! somebody holds a [`Lease`] because a machine runs on its files, or the memory of another state
//! lies on its own. When none of these is so any more, it goes at once.

mod garbage;
mod lease;
mod store;

pub(crate) use lease::Lease;
pub(crate) use store::States;

use api::{BuildId, Resources, SandboxId, node::TemplateBuild};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The name of a state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StateKey {
    /// What sandboxes of a build start from.
    Build {
        /// Which.
        build: BuildId,
        /// Counts how often it was made again.
        count: u32,
    },
    /// What a paused sandbox is resumed from.
    Paused {
        /// Which.
        sandbox: SandboxId,
        /// Counts its pauses, as it may still run on the one before.
        count: u32,
    },
    /// What the children of a fork start from.
    Fork(ForkName),
}

/// The name of a fork: 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ForkName(String);

impl ForkName {
    pub(crate) fn random() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()))
    }
}

impl TryFrom<String> for ForkName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(hex) {
            Ok(Self(text))
        } else {
            Err("not the name of a fork")
        }
    }
}

impl From<ForkName> for String {
    fn from(name: ForkName) -> Self {
        name.0
    }
}

/// The folders of states in the data directory.
const FOLDERS: [&str; 3] = ["states", "paused", "forks"];

impl StateKey {
    /// Its directory in the data directory.
    fn directory(&self, root: &Path) -> PathBuf {
        match self {
            Self::Build { build, count: 0 } => root.join("states").join(build.as_str()),
            Self::Build { build, count } => root.join("states").join(format!("{build}.{count}")),
            Self::Paused { sandbox, count } => {
                root.join("paused").join(format!("{sandbox}.{count}"))
            }
            Self::Fork(name) => root.join("forks").join(&name.0),
        }
    }

    /// The key of a directory; none if no state has that name.
    fn parse(folder: &str, name: &str) -> Option<Self> {
        match folder {
            "states" => {
                let (build, count) = name.split_once('.').unwrap_or((name, "0"));
                Some(Self::Build {
                    build: build.parse().ok()?,
                    count: count.parse().ok()?,
                })
            }
            "paused" => {
                let (sandbox, count) = name.split_once('.')?;
                Some(Self::Paused {
                    sandbox: sandbox.parse().ok()?,
                    count: count.parse().ok()?,
                })
            }
            _ => Some(Self::Fork(name.to_owned().try_into().ok()?)),
        }
    }
}

impl StateKey {
    /// The build that it is of.
    pub(crate) fn build(&self) -> Option<&BuildId> {
        match self {
            Self::Build { build, .. } => Some(build),
            _ => None,
        }
    }
}

impl fmt::Display for StateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build { build, .. } => write!(formatter, "state of build {build}"),
            Self::Paused { sandbox, .. } => write!(formatter, "state of paused sandbox {sandbox}"),
            Self::Fork(_) => formatter.write_str("state of a fork"),
        }
    }
}

/// Where a build's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// A template that was started once: it can be made again.
    Template,
    /// A sandbox: it cannot.
    Snapshot,
}

/// What the agent knows about a build's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) build: TemplateBuild,
    pub(crate) resources: Resources,
    pub(crate) purpose: Purpose,
    pub(crate) made_at: Timestamp,
}

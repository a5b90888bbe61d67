//! What a sandbox starts from: a template's root, or a state that was saved.
//!
//! A saved state is a directory of its own. [`SavedState`] describes it, in `state.json`; the other
//! files are the driver's. Every driver writes the writable layer as `disk.img`, a sparse file with
//! an ext4 file system, so that a state without memory can be started by any driver.
//!
//! The memory of a state may lie on that of another (its *base*): then its own file holds only the
//! pages that differ. Whoever removes states must keep bases for as long as something lies on them.

use crate::{DriverError, DriverKind, doing};
use api::{Resources, Secret};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A template's root file system, as files of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFiles {
    /// Read-only directories, uppermost first, for drivers that mount them.
    pub layers: Vec<PathBuf>,
    /// The same as one read-only disk image, for drivers that attach it; see
    /// [`Capabilities::needs_disk`](crate::Capabilities::needs_disk).
    pub disk: Option<PathBuf>,
}

/// What a sandbox starts from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The root file system and an empty writable layer.
    Fresh(RootFiles),
    /// A state that [`Machine::save`](crate::Machine::save) made.
    Saved(Arc<SavedState>),
}

impl Origin {
    /// The root file system beneath.
    pub fn root(&self) -> &RootFiles {
        match self {
            Self::Fresh(root) => root,
            Self::Saved(state) => &state.root,
        }
    }
}

/// What a sandbox is prepared for. Drivers whose capabilities say `prepares_anything` make no use
/// of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it will start from.
    pub origin: Origin,
    /// What it will be allowed.
    pub resources: Resources,
}

/// A state that a driver saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedState {
    /// Its directory; not written down, as it may be moved.
    #[serde(skip)]
    pub directory: PathBuf,
    /// Who saved it.
    pub driver: DriverKind,
    /// The root file system beneath the writable layer.
    pub root: RootFiles,
    /// What the sandbox was allowed. A state with memory can only be resumed with the same.
    pub resources: Resources,
    /// Its memory; none if only the disk was saved.
    pub memory: Option<SavedMemory>,
    /// For how long the sandbox stood still meanwhile, if the driver knows; not written down.
    #[serde(skip)]
    pub stood_still: Option<Duration>,
}

/// The memory of a saved state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedMemory {
    /// What must be the same where it is resumed.
    pub host: HostFacts,
    /// The directory of the state whose memory this one's differs from; none if it is whole.
    pub base: Option<PathBuf>,
    /// Opens the guest inside for a new identity. It is worthless once the guest has got one.
    pub control_token: Secret,
}

/// What a memory snapshot is bound to: a difference is a reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The driver's program and its version: `QEMU 7.2.22`.
    pub program: String,
    /// How instructions run: `kvm` or `tcg`.
    pub accelerator: String,
    /// Processor model and features as the guest sees them.
    pub processor: String,
    /// The guest's kernel: its release and content's digest.
    pub kernel: String,
    /// The guest program's digest.
    pub guest: String,
    /// The rate of the time stamp counter, in kilohertz, if the guest counts by the host's own; a
    /// guest that was told another would keep wrong time.
    #[serde(default)]
    pub counter_khz: Option<u64>,
}

/// Two measurements of the same counter differ by less than so many parts in a million; two hosts'
/// counters that do are the same to a guest.
const COUNTER_TOLERANCE_PPM: u64 = 300;

impl HostFacts {
    /// Why a memory snapshot made where `self` was true cannot be resumed where `here` is; nothing
    /// if it can.
    pub fn differences(&self, here: &Self) -> Vec<String> {
        let texts = [
            ("program", &self.program, &here.program),
            ("accelerator", &self.accelerator, &here.accelerator),
            ("processor", &self.processor, &here.processor),
            ("guest kernel", &self.kernel, &here.kernel),
            ("guest program", &self.guest, &here.guest),
        ]
        .into_iter()
        .filter(|(_, then, now)| then != now)
        .map(|(what, then, now)| format!("the {what} was `{then}` and is `{now}`"));
        let counters = self.counter_khz.zip(here.counter_khz);
        let counter = counters
            .filter(|(then, now)| {
                u128::from(then.abs_diff(*now)) * 1_000_000
                    > u128::from(*then) * u128::from(COUNTER_TOLERANCE_PPM)
            })
            .map(|(then, now)| {
                format!("the time stamp counter ran at {then} kHz and runs at {now} kHz")
            });
        texts.chain(counter).collect()
    }
}

/// What to save of a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Whether its memory too. Without, the guest writes back its caches first.
    pub memory: bool,
    /// Whether it goes on afterwards. If not, it stays stopped, to be destroyed.
    pub goes_on: bool,
}

impl SavedState {
    const FILE: &str = "state.json";

    /// Reads what describes the state in a directory.
    pub fn load(directory: &Path) -> Result<Self, DriverError> {
        let path = directory.join(Self::FILE);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        let state: Self = serde_json::from_slice(&text)
            .map_err(doing(format!("understand {}", path.display())))?;
        Ok(Self {
            directory: directory.to_owned(),
            ..state
        })
    }

    /// Writes what describes the state, durably and last: a directory without it is half made.
    pub fn seal(&self) -> Result<(), DriverError> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = self.directory.join(Self::FILE);
        let partial = self.directory.join("state.json.partial");
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(doing(format!("write {}", path.display())))
    }

    /// The writable layer.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.img")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_says_what_was_and_what_is() {
        let facts = HostFacts {
            program: "QEMU 7.2.22".into(),
            accelerator: "tcg".into(),
            processor: "max".into(),
            kernel: "6.1".into(),
            guest: "abc".into(),
            counter_khz: Some(2_499_998),
        };
        assert_eq!(facts.differences(&facts), [""; 0]);
        let here = HostFacts {
            accelerator: "kvm".into(),
            ..facts.clone()
        };
        assert_eq!(
            facts.differences(&here),
            ["the accelerator was `tcg` and is `kvm`"]
        );
        let counting = |khz| HostFacts {
            counter_khz: khz,
            ..facts.clone()
        };
        assert_eq!(facts.differences(&counting(Some(2_500_010))), [""; 0]);
        assert_eq!(facts.differences(&counting(None)), [""; 0]);
        assert_eq!(
            facts.differences(&counting(Some(2_600_000))),
            ["the time stamp counter ran at 2499998 kHz and runs at 2600000 kHz"]
        );
    }
}

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

impl RootFiles {
    /// Applies a change to every path.
    pub(crate) fn each_path(&mut self, change: &mut impl FnMut(&mut PathBuf)) {
        self.layers
            .iter_mut()
            .chain(&mut self.disk)
            .for_each(change);
    }
}

/// Makes paths into the data directory relative to it.
pub(crate) struct Relative([Option<PathBuf>; 2]);

impl Relative {
    /// The data directory goes by two names if a symbolic link leads to it.
    pub(crate) fn to(data_directory: &Path) -> Self {
        Self([
            Some(data_directory.to_owned()),
            data_directory.canonicalize().ok(),
        ])
    }

    /// Leaves paths to elsewhere as they are.
    pub(crate) fn shorten(&self, path: &mut PathBuf) {
        let mut names = self.0.iter().flatten();
        let below = names.find_map(|name| path.strip_prefix(name).ok().map(Path::to_owned));
        if let Some(below) = below {
            *path = below;
        }
    }
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

/// What is in a memory snapshot, and what it is bound to.
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
    /// The [`GUEST_PROTOCOL`](api::boot::GUEST_PROTOCOL) of the guest inside.
    #[serde(default = "first")]
    pub protocol: u32,
    /// How the driver arranged the machine and wrote its files. A driver counts it up when it could
    /// no longer load what it wrote before.
    #[serde(default = "first")]
    pub layout: u32,
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
    /// if it can. What it was booted from is of no account: that is in the memory.
    pub fn differences(&self, here: &Self) -> Vec<String> {
        let numbers = [self.protocol, here.protocol, self.layout, here.layout];
        let [protocol, protocol_here, layout, layout_here] =
            numbers.map(|number| number.to_string());
        let texts = compare([
            ("program", &self.program, &here.program),
            ("accelerator", &self.accelerator, &here.accelerator),
            ("processor", &self.processor, &here.processor),
            ("guest's protocol", &protocol, &protocol_here),
            ("machine's layout", &layout, &layout_here),
        ]);
        let counters = self.counter_khz.zip(here.counter_khz);
        let counter = counters
            .filter(|(then, now)| {
                u128::from(then.abs_diff(*now)) * 1_000_000
                    > u128::from(*then) * u128::from(COUNTER_TOLERANCE_PPM)
            })
            .map(|(then, now)| {
                format!("the time stamp counter ran at {then} kHz and runs at {now} kHz")
            });
        texts.into_iter().chain(counter).collect()
    }

    /// What would be newer in a memory snapshot made where `here` is true; nothing if it would be
    /// the same. It can be resumed all the same.
    pub fn outdated(&self, here: &Self) -> Vec<String> {
        compare([
            ("guest kernel", &self.kernel, &here.kernel),
            ("guest program", &self.guest, &here.guest),
        ])
    }
}

fn compare<const COUNT: usize>(facts: [(&str, &String, &String); COUNT]) -> Vec<String> {
    let differ = facts.into_iter().filter(|(_, then, now)| then != now);
    differ
        .map(|(what, then, now)| format!("the {what} was `{then}` and is `{now}`"))
        .collect()
}

/// What states were written with before these numbers were.
fn first() -> u32 {
    1
}

/// What to save of a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Whether its memory too. Without, the guest writes back its caches first.
    pub memory: bool,
    /// Whether it goes on afterwards. If not, it stays stopped, to be destroyed.
    pub goes_on: bool,
    /// Whether the state must outlive this run of the program: then all of it is written through to
    /// the disk, with checksums.
    pub lasts: bool,
}

impl SavedState {
    const FILE: &str = "state.json";

    /// Reads what describes the state in a directory. `data_directory` is the one that it was
    /// sealed for, wherever that is now.
    pub fn load(directory: &Path, data_directory: &Path) -> Result<Self, DriverError> {
        let path = directory.join(Self::FILE);
        let text = fs::read(&path).map_err(doing(format!("read {}", path.display())))?;
        let mut state: Self = serde_json::from_slice(&text)
            .map_err(doing(format!("understand {}", path.display())))?;
        state.each_path(|path| *path = data_directory.join(&*path));
        Ok(Self {
            directory: directory.to_owned(),
            ..state
        })
    }

    /// Writes what describes the state, durably and last: a directory without it is half made.
    /// Paths into `data_directory` are written relative to it, so that it may be moved or copied.
    pub fn seal(&self, data_directory: &Path) -> Result<(), DriverError> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = self.directory.join(Self::FILE);
        let partial = self.directory.join("state.json.partial");
        let relative = Relative::to(data_directory);
        let mut written = self.clone();
        written.each_path(|path| relative.shorten(path));
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec_pretty(&written)?)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(doing(format!("write {}", path.display())))
    }

    fn each_path(&mut self, mut change: impl FnMut(&mut PathBuf)) {
        self.root.each_path(&mut change);
        let base = self.memory.as_mut().and_then(|memory| memory.base.as_mut());
        base.into_iter().for_each(change);
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
            protocol: 1,
            layout: 1,
            counter_khz: Some(2_499_998),
        };
        assert_eq!(facts.differences(&facts), [""; 0]);
        assert_eq!(facts.outdated(&facts), [""; 0]);
        let newer = HostFacts {
            kernel: "6.12".into(),
            guest: "def".into(),
            ..facts.clone()
        };
        assert_eq!(facts.differences(&newer), [""; 0]);
        assert_eq!(
            facts.outdated(&newer),
            [
                "the guest kernel was `6.1` and is `6.12`",
                "the guest program was `abc` and is `def`"
            ]
        );
        let others = HostFacts {
            protocol: 2,
            layout: 3,
            ..facts.clone()
        };
        assert_eq!(
            facts.differences(&others),
            [
                "the guest's protocol was `1` and is `2`",
                "the machine's layout was `1` and is `3`"
            ]
        );
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

    fn state(data: &Path) -> SavedState {
        SavedState {
            directory: data.join("paused/one.1"),
            driver: DriverKind::Qemu,
            root: RootFiles {
                layers: vec![data.join("images/layers/aa/root"), "/elsewhere/root".into()],
                disk: Some(data.canonicalize().unwrap().join("images/disks/aa.img")),
            },
            resources: Resources::default(),
            memory: Some(SavedMemory {
                host: HostFacts {
                    program: "QEMU 7.2.22".into(),
                    accelerator: "tcg".into(),
                    processor: "max".into(),
                    kernel: "6.1".into(),
                    guest: "abc".into(),
                    protocol: 1,
                    layout: 1,
                    counter_khz: None,
                },
                base: Some(data.join("states/build")),
                control_token: Secret::new("control"),
            }),
            stood_still: None,
        }
    }

    #[test]
    fn a_state_is_found_again_where_its_data_directory_was_moved_to() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::create_dir_all(real.join("paused/one.1")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let saved = state(&link);
        saved.seal(&link).unwrap();
        let text = fs::read_to_string(saved.directory.join("state.json")).unwrap();
        assert!(!text.contains(directory.path().to_str().unwrap()), "{text}");

        let moved = directory.path().join("moved");
        fs::rename(&real, &moved).unwrap();
        let found = SavedState::load(&moved.join("paused/one.1"), &moved).unwrap();
        assert_eq!(found, state(&moved));
    }

    #[test]
    fn a_state_of_an_earlier_version_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().canonicalize().unwrap();
        let saved = state(&data);
        fs::create_dir_all(&saved.directory).unwrap();
        // It wrote absolute paths, and neither of the two numbers.
        let mut text = serde_json::to_value(&saved).unwrap();
        let host = text["memory"]["host"].as_object_mut().unwrap();
        assert!(host.remove("protocol").is_some() && host.remove("layout").is_some());
        fs::write(saved.directory.join("state.json"), text.to_string()).unwrap();
        assert_eq!(SavedState::load(&saved.directory, &data).unwrap(), saved);
    }
}

//! What the instances on one host must agree on: who has which range, and who needs forwarding.
//!
//! A folder that a restart of the machine empties holds one file for each instance and one that
//! remembers what `net.ipv4.ip_forward` was before the first of them. It is changed only under a
//! lock. An instance whose program is dead and that has no interface left is *stale*: whoever
//! starts or stops next removes its rules, its route and its file.

use super::{error::NetworkError, namespace, range::Ipv4Range};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const FORWARDING: &str = "net/ipv4/ip_forward";
/// Longest file that is read.
const FILE_LIMIT: u64 = 64 * 1024;

/// An instance that started and did not stop cleanly yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) instance: String,
    pub(super) range: Ipv4Range,
    pid: u32,
    /// Start of that process in clock ticks since boot, so that a reused pid is told apart.
    start_time: u64,
}

impl Entry {
    /// An entry for the program that asks.
    pub(super) fn of_this_program(instance: &str, range: Ipv4Range) -> Self {
        let pid = std::process::id();
        Self {
            instance: instance.to_owned(),
            range,
            pid,
            start_time: start_time(pid).unwrap_or_default(),
        }
    }

    /// Whether its program still runs.
    pub(super) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// Whether a text names an instance: four hexadecimal digits in lower case.
pub(super) fn is_instance(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 4 && text.bytes().all(digit)
}

/// When a process started, in clock ticks since boot (`/proc/PID/stat`, field 22).
fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in brackets and may hold spaces and brackets.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The folder, locked. Dropping it unlocks.
#[derive(Debug)]
pub(super) struct Registry {
    folder: PathBuf,
    _lock: File,
}

impl Registry {
    /// Waits until nobody else changes the folder, and locks it.
    pub(super) fn lock(folder: &Path) -> Result<Self, NetworkError> {
        let fail = |source: io::Error| {
            NetworkError::system(format!("opening {}", folder.display()), source)
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(fail)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join("lock"))
            .map_err(fail)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|source| fail(source.into()))?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// All entries. One that cannot be read is treated as not there.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, NetworkError> {
        let fail = |source: io::Error| {
            NetworkError::system(format!("listing {}", self.folder.display()), source)
        };
        let mut entries = Vec::new();
        for item in fs::read_dir(&self.folder).map_err(fail)? {
            let path = item.map_err(fail)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let Some(instance) = name.strip_suffix(".instance") else {
                continue;
            };
            match load::<Entry>(&path) {
                Ok(Some(entry)) if entry.instance == instance && is_instance(instance) => {
                    entries.push(entry);
                }
                _ => tracing::warn!(path = %path.display(), "passed over a damaged file"),
            }
        }
        Ok(entries)
    }

    /// Adds or replaces an entry.
    pub(super) fn put(&self, entry: &Entry) -> Result<(), NetworkError> {
        save(&self.path(&entry.instance), entry)
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&self, instance: &str) -> Result<(), NetworkError> {
        remove(&self.path(instance))
    }

    fn path(&self, instance: &str) -> PathBuf {
        self.folder.join(format!("{instance}.instance"))
    }

    /// Turns forwarding on, and remembers what was found unless an earlier instance did.
    pub(super) fn forward(&self) -> Result<(), NetworkError> {
        let memory = self.folder.join("forwarding");
        let now = namespace::get(FORWARDING)?;
        if load::<String>(&memory)?.is_none() {
            save(&memory, &now)?;
        }
        if now == "1" {
            Ok(())
        } else {
            namespace::set(FORWARDING, "1")
        }
    }

    /// Restores forwarding as it was found, if no instance is left that needs it. With
    /// `needed_by_others`, it stays on and what was found is forgotten.
    pub(super) fn restore_forwarding(&self, needed_by_others: bool) -> Result<(), NetworkError> {
        let memory = self.folder.join("forwarding");
        if !self.entries()?.is_empty() {
            return Ok(());
        }
        match load::<String>(&memory)? {
            Some(found) if found == "0" && !needed_by_others => namespace::set(FORWARDING, "0")?,
            Some(_) => {}
            None => return Ok(()),
        }
        remove(&memory)
    }
}

/// Reads a file of ours; `None` if it is not there.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetworkError> {
    let fail =
        |source: io::Error| NetworkError::system(format!("reading {}", path.display()), source);
    match fs::metadata(path) {
        Ok(status) if status.len() > FILE_LIMIT => {
            return Err(NetworkError::Damaged {
                path: path.into(),
                cause: "too long".into(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    }
    let text = fs::read(path).map_err(fail)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| NetworkError::Damaged {
            path: path.into(),
            cause: error.to_string(),
        })
}

/// Writes a file of ours in one step: after a crash it holds the old text or the new one.
pub(super) fn save(path: &Path, value: &impl Serialize) -> Result<(), NetworkError> {
    let write = || -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().map_err(|source| NetworkError::system(format!("writing {}", path.display()), source))
}

fn remove(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::system(
            format!("removing {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::lock(&folder.path().join("network")).unwrap();
        (folder, registry)
    }

    #[test]
    fn entries_come_and_go_and_tell_the_living_from_the_dead() {
        let (_folder, registry) = registry();
        let range = "10.192.0.0/20".parse().unwrap();
        let alive = Entry::of_this_program("ab12", range);
        let dead = Entry {
            start_time: 1,
            ..Entry::of_this_program("cd34", range)
        };
        registry.put(&alive).unwrap();
        registry.put(&dead).unwrap();
        let mut entries = registry.entries().unwrap();
        entries.sort_by(|one, two| one.instance.cmp(&two.instance));
        assert_eq!(entries, [alive.clone(), dead.clone()]);
        assert!(alive.is_alive() && !dead.is_alive());
        registry.remove("ab12").unwrap();
        registry.remove("ab12").unwrap();
        assert_eq!(registry.entries().unwrap(), [dead]);
    }

    #[test]
    fn a_damaged_entry_stops_nobody() {
        let (_folder, registry) = registry();
        fs::write(registry.path("ab12"), "{").unwrap();
        assert_eq!(registry.entries().unwrap(), []);
    }
}

//! The data directory of one Atoll, as far as the program itself knows it; what lies deeper belongs
//! to the rooms that made it.
//!
//! | path | what |
//! | --- | --- |
//! | `lock` | held by the Atoll that uses the directory |
//! | `api-key` | the first key, 0600 |
//! | `address` | where the running Atoll serves, for clients on this machine |
//! | `cluster-id`, `node-id` | made at the first start, kept for ever |

use crate::failure::Failure;
use anyhow::Context;
use api::{
    ClusterId, NodeId, Secret,
    key::{API_KEY_DIGITS, API_KEY_PREFIX, is_api_key},
};
use rand::Rng;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The system's data directory, of an Atoll that root started.
const SYSTEM: &str = "/var/lib/atoll";

/// Where an Atoll that this user starts keeps its data, unless told otherwise.
pub(crate) fn default_path() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        SYSTEM.into()
    } else {
        of_user()
    }
}

fn of_user() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let base = base.unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".local/share")
    });
    base.join("atoll")
}

/// Where clients look for an Atoll on this machine: the user's own, then the system's.
pub(crate) fn candidates() -> Vec<PathBuf> {
    let mut dirs = vec![default_path()];
    if dirs[0] != Path::new(SYSTEM) {
        dirs.push(SYSTEM.into());
    }
    dirs
}

/// The address that the Atoll of `dir` serves at, if it runs and may be read.
pub(crate) fn read_address(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("address")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The first key of the Atoll of `dir`, if it may be read.
pub(crate) fn read_key(dir: &Path) -> Option<Secret> {
    let text = fs::read_to_string(dir.join("api-key")).ok()?;
    let key = text.lines().next()?.trim();
    (!key.is_empty()).then(|| Secret::new(key))
}

/// A data directory that this process alone uses, until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and takes it.
    ///
    /// # Errors
    /// When it cannot be made, or another Atoll uses it.
    pub(crate) fn take(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let path = fs::canonicalize(path)
            .with_context(|| format!("cannot find the data directory {}", path.display()))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .with_context(|| format!("cannot write to the data directory {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::new(
                format!("another Atoll uses the data directory {}", path.display()),
                match read_address(&path) {
                    Some(address) => format!(
                        "it serves at {address}; stop it, or give this one another --data-dir"
                    ),
                    None => "stop it, or give this one another --data-dir".to_owned(),
                },
            )
            .into()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot lock {}", path.join("lock").display()))
            }
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The name that everything carries which this Atoll makes on the machine: four hexadecimal
    /// digits, always the same for the same directory.
    pub(crate) fn instance(&self) -> String {
        let hash = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        format!("{:02x}{:02x}", hash[0], hash[1])
    }

    /// The cluster's id, made at the first start.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn cluster_id(&self) -> anyhow::Result<ClusterId> {
        self.keep("cluster-id", || ClusterId::random(&mut rand::rng()))
    }

    /// The node's id, made at the first start.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn node_id(&self) -> anyhow::Result<NodeId> {
        self.keep("node-id", || NodeId::random(&mut rand::rng()))
    }

    fn keep<T>(&self, name: &str, make: impl FnOnce() -> T) -> anyhow::Result<T>
    where
        T: FromStr + ToString,
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let value = make();
                self.write(name, &format!("{}\n", value.to_string()))?;
                Ok(value)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes a small file, readable by its owner alone, whole or not at all.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let half = self.path.join(format!("{name}.new"));
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&half)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&half, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// The first key: from `ATOLL_API_KEY` if `given`, else the one that the directory holds, else
    /// a new one, which is written there.
    ///
    /// # Errors
    /// When the key given has not the form of one, or the file cannot be read or written.
    pub(crate) fn first_key(&self, given: Option<Secret>) -> anyhow::Result<FirstKey> {
        if let Some(key) = given {
            check_key(&key)?;
            return Ok(FirstKey {
                key,
                origin: KeyOrigin::Environment,
            });
        }
        let path = self.path.join("api-key");
        if let Some(key) = read_key(&self.path) {
            check_key(&key).with_context(|| format!("{} is damaged", path.display()))?;
            return Ok(FirstKey {
                key,
                origin: KeyOrigin::Kept(path),
            });
        }
        let bytes: [u8; API_KEY_DIGITS / 2] = rand::rng().random();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = Secret::new(format!("{API_KEY_PREFIX}{hex}"));
        self.write("api-key", &format!("{}\n", key.expose()))?;
        Ok(FirstKey {
            key,
            origin: KeyOrigin::Made(path),
        })
    }

    /// Tells clients on this machine where this Atoll serves, until it is dropped.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn publish(&self, address: &str) -> anyhow::Result<Published> {
        self.write("address", &format!("{address}\n"))?;
        Ok(Published(self.path.join("address")))
    }
}

/// An address that clients find; dropping it takes it back.
#[derive(Debug)]
pub(crate) struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The key that opens a new Atoll.
#[derive(Debug)]
pub(crate) struct FirstKey {
    pub(crate) key: Secret,
    pub(crate) origin: KeyOrigin,
}

impl FirstKey {
    /// As the control plane is told: what was made or given now opens it, and what is only kept
    /// does so until it is removed.
    pub(crate) fn for_control(&self) -> control::FirstKey {
        match self.origin {
            KeyOrigin::Environment | KeyOrigin::Made(_) => {
                control::FirstKey::Given(self.key.clone())
            }
            KeyOrigin::Kept(_) => control::FirstKey::Kept(self.key.clone()),
        }
    }
}

/// Where the first key is from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyOrigin {
    /// `ATOLL_API_KEY`.
    Environment,
    /// An earlier start wrote it there.
    Kept(PathBuf),
    /// It was made and written there now.
    Made(PathBuf),
}

/// Refuses what has not the form of a key.
fn check_key(key: &Secret) -> anyhow::Result<()> {
    if is_api_key(key.expose()) {
        return Ok(());
    }
    Err(Failure::new(
        "the API key has not the form of one: `e2b_` and 40 hexadecimal digits",
        "make one with: echo \"e2b_$(openssl rand -hex 20)\", or leave ATOLL_API_KEY unset",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_atoll_is_refused_and_told_where_the_first_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::take(&dir.path().join("data")).unwrap();
        let published = first.publish("http://127.0.0.1:3999").unwrap();
        let error = DataDir::take(first.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("another Atoll uses the data directory")
        );
        let path = first.path().to_owned();
        drop(published);
        drop(first);
        assert!(read_address(&path).is_none());
        DataDir::take(&path).unwrap();
    }

    #[test]
    fn ids_and_key_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::take(dir.path()).unwrap();
        let (cluster, node) = (data.cluster_id().unwrap(), data.node_id().unwrap());
        let made = data.first_key(None).unwrap();
        check_key(&made.key).unwrap();
        let path = data.path().join("api-key");
        assert_eq!(made.origin, KeyOrigin::Made(path.clone()));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let again = data.first_key(None).unwrap();
        assert_eq!(again.key, made.key);
        assert_eq!(again.origin, KeyOrigin::Kept(path));
        assert_eq!(
            (data.cluster_id().unwrap(), data.node_id().unwrap()),
            (cluster, node)
        );
    }

    #[test]
    fn a_key_must_have_the_form_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::take(dir.path()).unwrap();
        let good = format!("e2b_{}", "0a".repeat(20));
        let given = data.first_key(Some(Secret::new(&*good))).unwrap();
        assert_eq!(given.origin, KeyOrigin::Environment);
        assert!(!data.path().join("api-key").exists());
        // In either case, as the control plane takes it too.
        let capitals = good.replace('a', "A");
        data.first_key(Some(Secret::new(capitals))).unwrap();
        for bad in [
            "",
            "e2b_",
            "hunter2",
            "e2b_zz",
            &good[..43],
            &format!("{good}0"),
        ] {
            assert!(data.first_key(Some(Secret::new(bad))).is_err(), "{bad}");
        }
        // The message must not repeat what may be a mistyped secret.
        let error = data.first_key(Some(Secret::new("hunter2"))).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn the_instance_follows_the_directory() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = DataDir::take(one.path()).unwrap().instance();
        assert_eq!(first, DataDir::take(one.path()).unwrap().instance());
        assert_eq!(first.len(), 4);
        assert_ne!(first, DataDir::take(two.path()).unwrap().instance());
    }
}

//! What a node keeps on disk: `node.json` (who it is), `map.json` (what it knows) and `proxy` (who may use its proxy).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::rotation::{Rotation, RotationFile};
use crate::coordination::{Identity, IdentityKey, Signed, View, Voucher};
use crate::crypto::OwnKeys;
use crate::error::Error;
use crate::key::PrivateKey;
use crate::relay::RelayCertificate;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk does not do what is asked.
    #[error("cannot {step} {path}: {source}")]
    Disk {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `node.json` is something else.
    #[error("{0} is not understood")]
    Spoilt(PathBuf),
    /// Another process uses it.
    #[error("{0} is used by another `atoll mesh up`")]
    Taken(PathBuf),
    /// The token is of another mesh than the state.
    #[error("the token is of another mesh than the one that {0} belongs to")]
    OtherMesh(PathBuf),
    /// There is neither a token nor an earlier join.
    #[error("{0} holds no membership yet, and no token was given")]
    NeverJoined(PathBuf),
    /// No random numbers.
    #[error(transparent)]
    Key(#[from] Error),
}

#[derive(Serialize, Deserialize)]
struct File {
    identity: String,
    wireguard: String,
    #[serde(default)]
    rotation: RotationFile,
    coordinator: IdentityKey,
    url: String,
    epoch: u64,
    port: u16,
    #[serde(default)]
    flows_port: u16,
    #[serde(default)]
    underlay: Option<String>,
    #[serde(default)]
    certificate: Option<Certificate>,
    last_ms: u64,
    voucher: Option<Signed<Voucher>>,
    #[serde(default)]
    served: BTreeSet<String>,
}

/// A relay's certificate and its key, in base64.
#[derive(Serialize, Deserialize)]
struct Certificate {
    certificate: String,
    key: Zeroizing<String>,
}

impl Certificate {
    fn write(certificate: &RelayCertificate) -> Self {
        Self {
            certificate: STANDARD.encode(certificate.certificate()),
            key: Zeroizing::new(STANDARD.encode(certificate.key())),
        }
    }

    fn read(&self) -> Option<RelayCertificate> {
        let certificate = STANDARD.decode(&self.certificate).ok()?;
        let key = STANDARD.decode(&*self.key).ok()?;
        Some(RelayCertificate::from_der(certificate, key))
    }
}

/// A node's state on disk, held by this process alone.
#[derive(Debug)]
pub struct State {
    directory: PathBuf,
    _lock: fs::File,
    /// Who it is.
    pub identity: Identity,
    /// The first key of its tunnels.
    pub wireguard: PrivateKey,
    /// Those that took its place.
    pub rotation: Rotation,
    /// The key that the coordinator signs with.
    pub coordinator: IdentityKey,
    /// Where the coordinator answers.
    pub url: String,
    /// Of the last record that it signed.
    pub epoch: u64,
    /// The port of its tunnels; 0 until it has one.
    pub port: u16,
    /// The port of its flows; 0 until it has one.
    pub flows_port: u16,
    /// The key of its flows below QUIC, and of the relay that it may be.
    pub underlay: PrivateKey,
    /// The certificate of that relay, if it ever was one.
    pub certificate: Option<RelayCertificate>,
    /// The latest time that it gave in a request.
    pub last_ms: u64,
    /// What the coordinator vouches for, once it joined.
    pub voucher: Option<Signed<Voucher>>,
    /// The services of which it was said that this node gives them: it is not ready to until that is said again.
    pub served: BTreeSet<String>,
}

impl State {
    /// Opens a directory, and makes a new identity in it if there is none: for the mesh of this coordinator.
    ///
    /// # Errors
    /// The disk refuses, another process holds it, or it belongs to another mesh.
    pub fn open(directory: &Path, mesh: Option<(IdentityKey, &str)>) -> Result<Self, StateError> {
        let disk = |step, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Disk { step, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(disk("make", directory))?;
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(disk("open the lock in", directory))?;
        let flag = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&lock, flag).map_err(|_| StateError::Taken(directory.to_owned()))?;
        let path = directory.join("node.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(disk("read", &path)(error)),
        };
        let state = match (text, mesh) {
            (Some(text), mesh) => {
                let spoilt = || StateError::Spoilt(path.clone());
                let file: File = serde_json::from_str(&text).map_err(|_| spoilt())?;
                if mesh.is_some_and(|(coordinator, _)| coordinator != file.coordinator) {
                    return Err(StateError::OtherMesh(directory.to_owned()));
                }
                Self {
                    directory: directory.to_owned(),
                    _lock: lock,
                    identity: Identity::from_base64(&file.identity).map_err(|_| spoilt())?,
                    wireguard: file.wireguard.parse().map_err(|_| spoilt())?,
                    rotation: Rotation::from_file(&file.rotation).map_err(|_| spoilt())?,
                    coordinator: file.coordinator,
                    url: mesh.map_or(file.url, |(_, url)| url.to_owned()),
                    epoch: file.epoch,
                    port: file.port,
                    flows_port: file.flows_port,
                    underlay: match &file.underlay {
                        Some(key) => key.parse().map_err(|_| spoilt())?,
                        // Of a version that had none.
                        None => PrivateKey::generate()?,
                    },
                    certificate: file.certificate.as_ref().and_then(Certificate::read),
                    last_ms: file.last_ms,
                    voucher: file.voucher,
                    served: file.served,
                }
            }
            (None, Some((coordinator, url))) => Self {
                directory: directory.to_owned(),
                _lock: lock,
                identity: Identity::generate()?,
                wireguard: PrivateKey::generate()?,
                rotation: Rotation::default(),
                coordinator,
                url: url.to_owned(),
                epoch: 0,
                port: 0,
                flows_port: 0,
                underlay: PrivateKey::generate()?,
                certificate: None,
                last_ms: 0,
                voucher: None,
                served: BTreeSet::new(),
            },
            (None, None) => return Err(StateError::NeverJoined(directory.to_owned())),
        };
        state.save()?;
        Ok(state)
    }

    /// The keys that its tunnels answer to.
    pub(super) fn own_keys(&self) -> OwnKeys {
        self.rotation.own_keys(&self.wireguard)
    }

    /// Writes `node.json` anew.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self) -> Result<(), StateError> {
        let file = File {
            identity: self.identity.to_base64(),
            wireguard: self.wireguard.to_base64(),
            rotation: self.rotation.to_file(),
            coordinator: self.coordinator,
            url: self.url.clone(),
            epoch: self.epoch,
            port: self.port,
            flows_port: self.flows_port,
            underlay: Some(self.underlay.to_base64()),
            certificate: self.certificate.as_ref().map(Certificate::write),
            last_ms: self.last_ms,
            voucher: self.voucher.clone(),
            served: self.served.clone(),
        };
        let text = Zeroizing::new(serde_json::to_string(&file).unwrap_or_default());
        self.write("node.json", &text)
    }

    /// Writes `map.json` anew.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_map(&self, view: &View) -> Result<(), StateError> {
        self.write("map.json", &view.to_cache())
    }

    /// What the node knew last; nothing if there is no map, or a spoilt one.
    pub fn map(&self) -> View {
        let text = fs::read_to_string(self.directory.join("map.json")).unwrap_or_default();
        View::from_cache(self.coordinator, &text)
    }

    /// Where the proxy's user and password are kept.
    pub fn proxy_file(&self) -> PathBuf {
        self.directory.join("proxy")
    }

    /// The password of the proxy's user, made at the first time: `USER:PASSWORD` in a file that nobody else reads. Whoever removes the file gets
    /// another at the next start.
    ///
    /// # Errors
    /// The disk refuses, or the file says something else.
    pub fn proxy_secret(&self, user: &str) -> Result<Zeroizing<String>, StateError> {
        let path = self.proxy_file();
        match fs::read_to_string(&path).map(Zeroizing::new) {
            Ok(text) => {
                let secret = text.trim_end().strip_prefix(user);
                let secret = secret.and_then(|rest| rest.strip_prefix(':'));
                // SOCKS5 carries no more; a short one is no secret.
                let secret = secret.filter(|secret| (16..=255).contains(&secret.len()));
                let secret = secret.ok_or_else(|| StateError::Spoilt(path.clone()))?;
                // Its rights are those of a secret, whoever copied it there.
                self.write("proxy", &text)?;
                Ok(Zeroizing::new(secret.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = Zeroizing::new(Identity::generate()?.to_base64());
                self.write("proxy", &Zeroizing::new(format!("{user}:{}\n", *secret)))?;
                Ok(secret)
            }
            Err(source) => Err(StateError::Disk {
                step: "read",
                path,
                source,
            }),
        }
    }

    /// Whole or not at all, and readable for nobody else.
    fn write(&self, name: &str, text: &str) -> Result<(), StateError> {
        let path = self.directory.join(name);
        let new = self.directory.join(format!("{name}.new"));
        let written = (|| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        })();
        written.map_err(|source| StateError::Disk {
            step: "write",
            path,
            source,
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

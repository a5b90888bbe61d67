//! Join tokens.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::error::Error;
use crate::identity::{Identity, IdentityKey, Purpose, Signed};

/// What every token begins with, so that scanners for secrets find it.
const MARK: &str = "atm_";
const VERSION: u8 = 1;

/// What a machine needs for joining: where the coordinator is, which key it has, and a secret. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct Token {
    /// The public part of it.
    #[zeroize(skip)]
    pub id: String,
    /// The key that everything from the coordinator must be signed with.
    #[zeroize(skip)]
    pub coordinator: IdentityKey,
    /// Where the coordinator answers.
    #[zeroize(skip)]
    pub url: String,
    pub(super) secret: [u8; 16],
}

impl Token {
    /// A token out of its parts; `None` if they are not those of one.
    pub fn new(id: &str, coordinator: IdentityKey, url: &str, secret: [u8; 16]) -> Option<Self> {
        let valid = parse_id(id).is_some() && !url.is_empty() && url.len() <= 512;
        valid.then(|| Self {
            id: id.to_owned(),
            coordinator,
            url: url.to_owned(),
            secret,
        })
    }

    /// The whole token as text. Show it once; keep it out of logs.
    pub fn expose(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(parse_id(&self.id).unwrap_or_default());
        bytes.extend(self.secret);
        bytes.extend(self.coordinator.as_bytes());
        bytes.extend(self.url.as_bytes());
        format!("{MARK}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What the coordinator is shown: that who asks holds the token. It is good for this identity alone, so whoever reads it on its
    /// way joins nobody else with it.
    pub fn admission(&self, identity: IdentityKey) -> Signed<Admission> {
        signer(&self.secret).sign(&Admission {
            token: self.id.clone(),
            identity,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Token({}, …)", self.id)
    }
}

/// A token's word for the one who holds it, signed with a key that follows from its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The token's public part.
    pub token: String,
    /// Who holds it.
    pub identity: IdentityKey,
}

impl Purpose for Admission {
    const PURPOSE: &'static str = "admission";
}

/// The key that a token's secret stands for.
pub(super) fn signer(secret: &[u8; 16]) -> Identity {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(b"atoll mesh/1 token\0");
    context.update(secret);
    let mut seed = [0; 32];
    seed.copy_from_slice(context.finish().as_ref());
    Identity::from_seed(seed)
}

fn parse_id(id: &str) -> Option<[u8; 8]> {
    let mut bytes = [0; 8];
    if id.len() != 16 || !id.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&id[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

pub(super) fn show_id(bytes: [u8; 8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text
            .trim()
            .strip_prefix(MARK)
            .filter(|rest| rest.len() < 1024)
            .and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok())
            .ok_or(Error::Token)?;
        let (head, url) = bytes.split_at_checked(57).ok_or(Error::Token)?;
        if head[0] != VERSION {
            return Err(Error::Token);
        }
        let mut id = [0; 8];
        id.copy_from_slice(&head[1..9]);
        let mut secret = [0; 16];
        secret.copy_from_slice(&head[9..25]);
        let mut key = [0; 32];
        key.copy_from_slice(&head[25..57]);
        let url = std::str::from_utf8(url).map_err(|_| Error::Token)?;
        Self::new(&show_id(id), IdentityKey::from_bytes(key), url, secret).ok_or(Error::Token)
    }
}

/// What a token is to allow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// The tags of whoever joins with it.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Whether whoever joins with it is forgotten once he vanished.
    #[serde(default)]
    pub ephemeral: bool,
    /// Whether more than one may join with it.
    #[serde(default)]
    pub reuse: bool,
    /// How long it is good for, in seconds; a day if absent.
    #[serde(default)]
    pub valid_seconds: Option<u64>,
}

/// The sandbox that a token is for. Who joins with it has the sandbox's name, and is in the mesh for as long as the sandbox is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSeat {
    /// The sandbox's id.
    pub id: String,
    /// What it is called in the mesh.
    pub name: String,
}

/// What is kept of a token: all but the secret, of which only a public key is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// The public part of it.
    pub id: String,
    /// The public half of the key that follows from the secret.
    pub(super) key: IdentityKey,
    /// What it allows.
    #[serde(flatten)]
    pub allows: NewToken,
    /// The sandbox that it is for, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxSeat>,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How many nodes joined with it.
    pub uses: u64,
}

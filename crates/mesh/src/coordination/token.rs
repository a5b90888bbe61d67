//! Join tokens.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use super::identity::IdentityKey;
use crate::error::Error;

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

    /// What the coordinator is shown.
    pub fn secret(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Token({}, …)", self.id)
    }
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

/// What is kept of a token: all but the secret, of which only a digest is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// The public part of it.
    pub id: String,
    /// SHA-256 of the secret, which has 128 random bits.
    pub(super) digest: String,
    /// What it allows.
    #[serde(flatten)]
    pub allows: NewToken,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How many nodes joined with it.
    pub uses: u64,
}

pub(super) fn digest(secret: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret);
    URL_SAFE_NO_PAD.encode(digest)
}

/// The digest of what a joiner showed.
pub(super) fn digest_of_text(secret: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(secret.get(..64).unwrap_or(secret))
        .ok()?;
    (bytes.len() == 16).then(|| digest(&bytes))
}

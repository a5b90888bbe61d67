//! Ed25519 identities, and texts that carry a signature.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::Error;

/// The longest signed text, in bytes: a whole map of ten thousand nodes has less.
const LONGEST: usize = 32 << 20;

/// Who a node, or the coordinator, is. Written in base64 for URLs, 43 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for IdentityKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for IdentityKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut bytes = [0; 33];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(32) => {
                let mut key = [0; 32];
                key.copy_from_slice(&bytes[..32]);
                Ok(Self(key))
            }
            _ => Err(Error::Identity),
        }
    }
}

impl Serialize for IdentityKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdentityKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The secret half of an identity. It never prints, and is wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Identity {
    seed: [u8; 32],
}

impl Identity {
    /// A new one from the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self {
            seed: crate::key::random()?,
        })
    }

    /// The one that grows from this seed.
    pub const fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed }
    }

    /// The seed in base64. Keep it out of logs and arguments.
    pub fn to_base64(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.seed)
    }

    /// Reads what [`Identity::to_base64`] wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let key: IdentityKey = text.trim().parse()?;
        Ok(Self { seed: key.0 })
    }

    fn pair(&self) -> Option<Ed25519KeyPair> {
        // Every seed of 32 bytes is a key.
        Ed25519KeyPair::from_seed_unchecked(&self.seed).ok()
    }

    /// The public half.
    pub fn public(&self) -> IdentityKey {
        let mut key = [0; 32];
        if let Some(pair) = self.pair() {
            key.copy_from_slice(pair.public_key().as_ref());
        }
        IdentityKey(key)
    }

    /// Signs something for what it is meant for, and nothing else.
    pub fn sign<T: Purpose + Serialize>(&self, value: &T) -> Signed<T> {
        let body = serde_json::to_string(value).unwrap_or_default();
        let signature = self.pair().map_or_else(String::new, |pair| {
            URL_SAFE_NO_PAD.encode(pair.sign(&message::<T>(&body)))
        });
        Signed {
            body,
            signature,
            kind: PhantomData,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity(…)")
    }
}

/// What a signature is for. It is signed with the text, so that no text passes for one of another kind.
pub trait Purpose {
    /// A word that no other kind has.
    const PURPOSE: &'static str;
}

fn message<T: Purpose>(body: &str) -> Vec<u8> {
    [
        b"atoll mesh/1 ",
        T::PURPOSE.as_bytes(),
        b"\0",
        body.as_bytes(),
    ]
    .concat()
}

/// A text with a signature. What it says is only to be had from [`Signed::verify`].
#[derive(Serialize, Deserialize)]
#[serde(bound = "", deny_unknown_fields)]
pub struct Signed<T> {
    body: String,
    signature: String,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self {
            body: self.body.clone(),
            signature: self.signature.clone(),
            kind: PhantomData,
        }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body && self.signature == other.signature
    }
}

impl<T> fmt::Debug for Signed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signed({})", self.body)
    }
}

impl<T: Purpose + DeserializeOwned> Signed<T> {
    /// What it says, if `by` signed it for this purpose.
    ///
    /// # Errors
    /// Another one signed it, or it is not understood.
    pub fn verify(&self, by: &IdentityKey) -> Result<T, Error> {
        let mut signature = [0; 66];
        if self.body.len() > LONGEST {
            return Err(Error::Signature);
        }
        let length = URL_SAFE_NO_PAD
            .decode_slice(&self.signature, &mut signature)
            .map_err(|_| Error::Signature)?;
        UnparsedPublicKey::new(&ED25519, by.as_bytes())
            .verify(&message::<T>(&self.body), &signature[..length])
            .map_err(|_| Error::Signature)?;
        serde_json::from_str(&self.body).map_err(|_| Error::Signature)
    }

    /// What it says, though perhaps nobody signed it.
    pub(super) fn claimed(&self) -> Option<T> {
        serde_json::from_str(&self.body).ok()
    }

    /// What it says, if the one signed it whom it names itself.
    ///
    /// # Errors
    /// As [`Signed::verify`].
    pub fn verify_own(&self, name: impl Fn(&T) -> IdentityKey) -> Result<T, Error> {
        if self.body.len() > LONGEST {
            return Err(Error::Signature);
        }
        let claimed: T = serde_json::from_str(&self.body).map_err(|_| Error::Signature)?;
        self.verify(&name(&claimed))
    }
}

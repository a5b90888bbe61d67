//! Keys as WireGuard knows them: 32 bytes, written in base64.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::Error;

/// Decodes exactly 32 bytes.
fn decode(text: &str) -> Result<[u8; 32], Error> {
    // Some encoders leave a line end; 44 characters are 32 bytes.
    let text = text.trim();
    let mut bytes = [0; 33];
    match STANDARD.decode_slice(text, &mut bytes) {
        Ok(32) => {}
        _ => return Err(Error::Key),
    }
    let mut key = [0; 32];
    key.copy_from_slice(&bytes[..32]);
    bytes.zeroize();
    Ok(key)
}

/// Who a node is on the wire. Whoever holds the private half of it is that node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decode(text).map(Self)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The secret half of a node's key. It never prints, and is wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = random()?;
        let key = Self::from_bytes(bytes);
        bytes.zeroize();
        Ok(key)
    }

    /// The key with these bytes; the bits that X25519 fixes are set.
    pub const fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(bytes)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        crate::crypto::public_key(self)
    }

    /// The key as configuration files of WireGuard hold it. Keep it out of logs and arguments.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(…)")
    }
}

impl FromStr for PrivateKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decode(text).map(Self::from_bytes)
    }
}

/// A secret that two nodes share beside their keys, mixed into every handshake.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn generate() -> Result<Self, Error> {
        random().map(Self)
    }

    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key as configuration files of WireGuard hold it. Keep it out of logs and arguments.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PresharedKey(…)")
    }
}

impl FromStr for PresharedKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decode(text).map(Self)
    }
}

/// 32 bytes from the kernel.
pub(crate) fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("get random numbers", error)),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_text_and_do_not_print() {
        let private = PrivateKey::generate().unwrap();
        let again: PrivateKey = format!("{}\n", private.to_base64()).parse().unwrap();
        assert_eq!(private.public(), again.public());
        let public = private.public();
        assert_eq!(public, public.to_string().parse().unwrap());
        let shared = PresharedKey::generate().unwrap();
        assert_eq!(shared, shared.to_base64().parse().unwrap());
        for printed in [format!("{private:?}"), format!("{shared:?}")] {
            assert!(printed.ends_with("(…)"), "{printed}");
        }
    }

    #[test]
    fn a_public_key_is_the_one_of_rfc_7748() {
        // Alice's keys in section 6.1.
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
            .parse()
            .unwrap();
        assert_eq!(
            private.public().to_string(),
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        );
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in [
            "",
            "AAAA",
            "not a key",
            &"A".repeat(44),
            &"A".repeat(48),
            &"é".repeat(22),
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
            assert!(text.parse::<PrivateKey>().is_err(), "{text:?}");
        }
    }
}

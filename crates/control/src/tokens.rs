//! Secrets: API keys and the tokens of sandboxes.
//!
//! The form of API keys is [`api::key`]'s. Only its HMAC under a secret of this
//! installation is kept, so that neither the store's file nor the time that a look-up takes tells
//! anything about it. The tokens of a sandbox are derived from its id, so that they can be given
//! again to whoever may connect to it, without being stored anywhere.

use crate::records::Instance;
use api::{
    ErrorCode, Problem, SandboxId, Secret, TenantId,
    key::{API_KEY_DIGITS, API_KEY_PREFIX, is_api_key},
};
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use rand::RngCore;
use sha2::Sha256;

/// The digest of an API key.
pub(crate) type KeyDigest = [u8; 32];

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a digest in hexadecimal digits; `None` if it is not one.
pub(crate) fn parse_digest(text: &str) -> Option<KeyDigest> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = KeyDigest::default();
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(digest)
}

fn random_hexadecimal(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    hexadecimal(&random)
}

fn authenticate(secret: &Secret, parts: &[&[u8]]) -> KeyDigest {
    // HMAC takes keys of any length: the error cannot happen, and were it to, no key would match.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return KeyDigest::default();
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

impl Instance {
    /// The secrets of a new installation.
    pub(crate) fn random(now: Timestamp) -> Self {
        Self {
            seed: Secret::new(random_hexadecimal(32)),
            pepper: Secret::new(random_hexadecimal(32)),
            tenant: TenantId::random(&mut rand::rng()),
            created_at: now,
        }
    }

    /// The digest by which a key is known.
    pub(crate) fn digest(&self, key: &str) -> KeyDigest {
        authenticate(&self.pepper, &[key.as_bytes()])
    }

    /// The token that opens a sandbox's guest.
    pub(crate) fn access_token(&self, id: &SandboxId) -> Secret {
        let token = authenticate(&self.seed, &[b"envd-access:", id.as_str().as_bytes()]);
        Secret::new(hexadecimal(&token))
    }

    /// The token that opens a sandbox's ports where they are not public.
    pub(crate) fn traffic_token(&self, id: &SandboxId) -> Secret {
        let token = authenticate(&self.seed, &[b"traffic-access:", id.as_str().as_bytes()]);
        Secret::new(hexadecimal(&token))
    }
}

/// A new API key.
pub(crate) fn random_key() -> Secret {
    Secret::new(format!(
        "{API_KEY_PREFIX}{}",
        random_hexadecimal(API_KEY_DIGITS / 2)
    ))
}

/// A new id of a key.
pub(crate) fn random_key_id() -> String {
    format!("k{}", random_hexadecimal(8))
}

/// What may be shown of a key, to tell it from others.
pub(crate) fn key_prefix(key: &str) -> String {
    key.chars().take(API_KEY_PREFIX.len() + 6).collect()
}

/// Refuses what does not have the form of an API key.
pub(crate) fn check_key(key: &Secret) -> Result<(), Problem> {
    if is_api_key(key.expose()) {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::InvalidArgument,
        "the first API key does not have the form of one",
        format!(
            "write {API_KEY_PREFIX} and {API_KEY_DIGITS} hexadecimal digits, or set none and let \
             Atoll make one"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_by_purpose_sandbox_and_installation() {
        let id: SandboxId = "i000aaaa0000000000000".parse().unwrap();
        let other: SandboxId = "i000aaaa0000000000001".parse().unwrap();
        let (here, there) = (
            Instance::random(Timestamp::now()),
            Instance::random(Timestamp::now()),
        );
        let token = here.access_token(&id);
        assert_eq!(token, here.access_token(&id));
        assert_ne!(token, here.access_token(&other));
        assert_ne!(token, here.traffic_token(&id));
        assert_ne!(token, there.access_token(&id));
    }

    #[test]
    fn keys_have_a_form() {
        assert!(check_key(&random_key()).is_ok());
        for bad in [
            "",
            "e2b_",
            "sk_0123456789012345678901234567890123456789",
            "e2b_xyz",
        ] {
            assert!(check_key(&Secret::new(bad)).is_err(), "{bad}");
        }
        let digest = Instance::random(Timestamp::now()).digest("e2b_x");
        assert_eq!(parse_digest(&hexadecimal(&digest)), Some(digest));
        assert_eq!(parse_digest("zz"), None);
    }
}

//! Signed URLs: who has one may read or write one path, until it expires.
//!
//! A signature is `v1_` and the unpadded base64 of SHA-256 over `path:operation:user:token`, with
//! `:expiration` appended if it expires.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What a signature allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `GET /files`.
    Read,
    /// `POST /files`.
    Write,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What a signature speaks for, each as the query has it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The path, unresolved.
    pub path: &'a str,
    /// What is to be done.
    pub operation: Operation,
    /// The user's name; empty if the query has none.
    pub user: &'a str,
    /// Seconds since 1970.
    pub expiration: Option<i64>,
}

/// Why a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is not what the token makes of the claim.
    #[error("invalid signature")]
    Invalid,
    /// Its time is over.
    #[error("signature is already expired")]
    Expired,
}

/// The signature of a claim.
pub fn sign(claim: Claim<'_>, token: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        claim.path,
        ":",
        claim.operation.name(),
        ":",
        claim.user,
        ":",
        token,
    ] {
        hash.update(part);
    }
    if let Some(expiration) = claim.expiration {
        hash.update(format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(hash.finalize()))
}

/// Checks a signature, in a time that does not depend on how much of it is right.
pub fn verify(
    claim: Claim<'_>,
    token: &str,
    signature: &str,
    now: i64,
) -> Result<(), SignatureError> {
    if !equal(&sign(claim, token), signature) {
        return Err(SignatureError::Invalid);
    }
    match claim.expiration {
        Some(expiration) if expiration < now => Err(SignatureError::Expired),
        _ => Ok(()),
    }
}

/// Compares secrets in a time that depends on their lengths alone.
pub fn equal(left: &str, right: &str) -> bool {
    left.as_bytes().ct_eq(right.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim<'_> = Claim {
        path: "/a b",
        operation: Operation::Read,
        user: "",
        expiration: Some(100),
    };

    #[test]
    fn signatures_follow_the_formula() {
        let by_hand = Sha256::digest("/a b:read::token:100");
        let expected = format!("v1_{}", STANDARD_NO_PAD.encode(by_hand));
        assert_eq!(sign(CLAIM, "token"), expected);
        assert_eq!(verify(CLAIM, "token", &expected, 100), Ok(()));
        assert_eq!(
            verify(CLAIM, "token", &expected, 101),
            Err(SignatureError::Expired)
        );
    }

    #[test]
    fn a_signature_speaks_for_its_claim_alone() {
        let signature = sign(CLAIM, "token");
        let others = [
            Claim {
                path: "/a",
                ..CLAIM
            },
            Claim {
                operation: Operation::Write,
                ..CLAIM
            },
            Claim {
                user: "root",
                ..CLAIM
            },
            Claim {
                expiration: None,
                ..CLAIM
            },
            Claim {
                expiration: Some(1000),
                ..CLAIM
            },
        ];
        for other in others {
            assert_eq!(
                verify(other, "token", &signature, 0),
                Err(SignatureError::Invalid)
            );
        }
        assert_eq!(
            verify(CLAIM, "other", &signature, 0),
            Err(SignatureError::Invalid)
        );
    }
}

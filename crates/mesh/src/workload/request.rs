//! A node's side: keys, and asking for their certificates.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::identity::{IdentityKey, Purpose};

/// A node asks for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertifyRequest {
    /// Who asks.
    pub identity: IdentityKey,
    /// The service that it is for; for the node itself, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The public key: a point of P-256, uncompressed, in base64 for URLs.
    pub key: String,
    /// What shows that who asks has the private one.
    pub possession: String,
    /// The node's clock, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Purpose for CertifyRequest {
    const PURPOSE: &'static str = "certify";
}

/// What the coordinator answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Of whose request.
    pub identity: IdentityKey,
    /// The public key, as it was asked for.
    pub key: String,
    /// The SPIFFE id.
    pub id: String,
    /// The certificate, in PEM.
    pub certificate: String,
    /// The authorities' certificates, in PEM, that others are checked against.
    pub bundle: String,
    /// When it ends, in milliseconds since 1970.
    pub ends_ms: u64,
}

impl Purpose for Certificate {
    const PURPOSE: &'static str = "certificate";
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Certified {
    /// The certificate.
    pub certificate: Certificate,
    /// The private key, PKCS #8 in PEM.
    pub key: Zeroizing<String>,
}

impl std::fmt::Debug for Certified {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Certified({})", self.certificate.id)
    }
}

/// What is signed with the key to show that one has it: good for this node and this moment.
fn claim(identity: &IdentityKey, at_ms: u64) -> Vec<u8> {
    format!("atoll mesh/1 possession\0{identity} {at_ms}").into_bytes()
}

/// The key of a workload, before it has a certificate.
pub struct WorkloadKey(KeyPair);

impl WorkloadKey {
    /// A new one.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        pair.map(Self).map_err(failed)
    }

    /// What this node asks for.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn request(
        &self,
        identity: IdentityKey,
        service: Option<&str>,
        at_ms: u64,
    ) -> Result<CertifyRequest, Error> {
        let possession = self.0.sign(&claim(&identity, at_ms)).map_err(failed)?;
        Ok(CertifyRequest {
            identity,
            service: service.map(str::to_owned),
            key: URL_SAFE_NO_PAD.encode(self.0.public_key_raw()),
            possession: URL_SAFE_NO_PAD.encode(possession),
            at_ms,
        })
    }

    /// Together with what was answered.
    pub fn with(&self, certificate: Certificate) -> Certified {
        Certified {
            certificate,
            key: Zeroizing::new(self.0.serialize_pem()),
        }
    }
}

impl std::fmt::Debug for WorkloadKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("WorkloadKey(…)")
    }
}

fn failed(error: rcgen::Error) -> Error {
    Error::io("make a key", io::Error::other(error))
}

impl CertifyRequest {
    /// The point of the key, if who asks has shown that the private one is theirs.
    pub(crate) fn point(&self) -> Option<[u8; 65]> {
        let point = URL_SAFE_NO_PAD.decode(&self.key).ok()?;
        let point: [u8; 65] = point.try_into().ok()?;
        let shown = URL_SAFE_NO_PAD.decode(&self.possession).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
            .verify(&claim(&self.identity, self.at_ms), &shown)
            .ok()?;
        Some(point)
    }
}

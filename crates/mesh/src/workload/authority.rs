//! The coordinator's side: what signs certificates.

use std::io;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, date_time_ymd,
};
use zeroize::Zeroizing;

use super::{Certifiable, Certificate, EARLIER, LIFE};
use crate::error::Error;

/// How long the authority's own certificate is good for.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What it is called, with the trust domain behind.
const NAME: &str = "Atoll mesh";

/// What signs certificates: a key and a certificate that others are checked against.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A key that somebody else holds: a point of P-256, uncompressed.
struct Point([u8; 65]);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn failed(error: rcgen::Error) -> Error {
    Error::io("make a certificate", io::Error::other(error))
}

/// From a while ago until `life` from now.
fn validity(parameters: &mut CertificateParams, now_ms: u64, life: Duration) {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms);
    parameters.not_before = now - EARLIER;
    parameters.not_after = now + life;
}

fn called(name: String) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The parameters of the authority's own certificate. Their text must not change while one that was kept is good.
fn own(domain: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = called(format!("{NAME} {domain}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

impl Authority {
    /// A new one; returns what [`Authority::open`] wants, to be kept where nobody reads it.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn generate(domain: &str, now_ms: u64) -> Result<Zeroizing<String>, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut parameters = own(domain);
        validity(&mut parameters, now_ms, AUTHORITY_LIFE);
        let certificate = parameters.self_signed(&key).map_err(failed)?;
        let key = Zeroizing::new(key.serialize_pem());
        let kept = Kept {
            domain: domain.to_owned(),
            certificate: certificate.pem(),
            key: key.to_string(),
        };
        Ok(Zeroizing::new(
            serde_json::to_string(&kept).unwrap_or_default(),
        ))
    }

    /// The one that was kept.
    ///
    /// # Errors
    /// It is something else.
    pub fn open(kept: &str) -> Result<Self, Error> {
        let spoilt = || {
            let why = io::Error::other("what is kept of it is not understood");
            Error::io("open the authority", why)
        };
        let kept: Kept = serde_json::from_str(kept).map_err(|_| spoilt())?;
        let key = KeyPair::from_pem(&kept.key).map_err(|_| spoilt())?;
        Ok(Self {
            issuer: Issuer::new(own(&kept.domain), key),
            certificate: kept.certificate.clone(),
        })
    }

    /// A certificate.
    ///
    /// # Errors
    /// There are no random numbers, or a name is none.
    pub fn issue(&self, asked: &Certifiable, now_ms: u64) -> Result<Certificate, Error> {
        let holder = &asked.holder;
        let mut parameters = CertificateParams::new(holder.names()).map_err(failed)?;
        let id = holder.id().try_into().map_err(failed)?;
        parameters.subject_alt_names.push(SanType::URI(id));
        let addresses = holder.addresses.iter().copied().map(SanType::IpAddress);
        parameters.subject_alt_names.extend(addresses);
        let name = holder.service.as_ref().unwrap_or(&holder.node);
        parameters.distinguished_name = called(name.clone());
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        let mut serial: [u8; 32] = crate::key::random()?;
        // Positive, and not zero in front (RFC 5280, 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        parameters.serial_number = Some(SerialNumber::from_slice(&serial[..16]));
        validity(&mut parameters, now_ms, LIFE);
        let certificate = parameters
            .signed_by(&Point(asked.point), &self.issuer)
            .map_err(failed)?;
        let life = u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX);
        Ok(Certificate {
            identity: asked.identity,
            key: asked.key.clone(),
            id: holder.id(),
            certificate: certificate.pem(),
            bundle: self.certificate.clone(),
            ends_ms: now_ms.saturating_add(life),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authority(…)")
    }
}

/// As it is kept.
#[derive(serde::Serialize, serde::Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
struct Kept {
    domain: String,
    certificate: String,
    key: String,
}

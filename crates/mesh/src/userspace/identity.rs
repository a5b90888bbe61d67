//! TLS by which two nodes prove to each other who they are.
//!
//! Each end shows its identity's Ed25519 key as it is (a raw public key, RFC 7250) and signs the handshake with it. There are no certificates, so
//! nothing of them is to be parsed, nobody issues them and nothing in them expires. The caller takes the one key that the directory names for whom
//! it calls; the called end takes those that the directory holds. Sessions are never resumed, since a key that was taken once need not be taken again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionId, ConnectionIdGenerator, IdleTimeout, TransportConfig, VarInt};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme,
};
use zeroize::Zeroizing;

use super::congestion::BundleConfig;
use super::directory::Directory;
use crate::coordination::{Identity, IdentityKey};
use crate::error::Error;

/// What both ends speak inside, with its version.
const PROTOCOL: &[u8] = b"atoll-flows/1";
/// TLS wants a name for the other end. It is the same for all and says nothing.
pub(super) const NAME: &str = "node.mesh.internal";
/// What stands before the 32 bytes of an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410).
const PUBLIC: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// What stands before the 32 bytes of an Ed25519 seed in PKCS #8 (RFC 8410).
const PRIVATE: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Flows that one connection may carry.
const STREAMS: u32 = 1024;
/// What one flow, and all of a connection, may hold in memory that nobody has read yet: 8 MiB is 1 Gb/s at 60 ms. Several flows have room beside each other,
/// as those that wait for room of all are not woken by turns.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// What datagrams of flows may hold in memory that wait to be sent, and that nobody has looked at yet, of a connection each.
const DATAGRAMS: usize = 256 << 10;
/// After how long without a word the other end is taken for dead, and how often a word is said.
const SILENCE_MS: u32 = 20_000;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// First flights that wait for their turn, and the bytes that they may hold, each and together.
const INCOMING: usize = 256;
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_TOTAL: u64 = 2 << 20;

/// The directory in force, which changes while connections come in.
pub(super) type Current = Arc<RwLock<Arc<Directory>>>;

/// The identity that a raw public key is of.
fn identity_of(key: &[u8]) -> Option<IdentityKey> {
    let bytes = key.strip_prefix(&PUBLIC)?.try_into().ok()?;
    Some(IdentityKey::from_bytes(bytes))
}

/// Who is at the other end of a connection whose handshake is over.
pub(super) fn peer_of(connection: &quinn::Connection) -> Option<IdentityKey> {
    let shown = connection.peer_identity()?;
    let keys = shown.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    identity_of(keys.first()?)
}

/// Whose key is taken.
#[derive(Debug)]
enum Expected {
    One(IdentityKey),
    Members(Current),
}

#[derive(Debug)]
struct Verifier {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, key: &[u8]) -> Result<(), rustls::Error> {
        let identity = identity_of(key).ok_or(CertificateError::BadEncoding)?;
        let right = match &self.expected {
            Expected::One(expected) => identity == *expected,
            Expected::Members(directory) => {
                let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
                directory.by_identity(&identity).is_some() && identity != directory.own().identity
            }
        };
        if right {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

/// QUIC is never spoken over TLS 1.2.
fn too_old() -> rustls::Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::io("prepare TLS", std::io::Error::other(error))
}

/// Names of connections: any 8 bytes. Quinn's own names are checked with a secret that is lost in a restart, so that what still comes for connections of before
/// would not be answered.
#[derive(Clone)]
struct Names {
    key: Arc<ring::hmac::Key>,
    given: Arc<AtomicU64>,
}

impl ConnectionIdGenerator for Names {
    fn generate_cid(&mut self) -> ConnectionId {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let name = ring::hmac::sign(&self.key, &number.to_be_bytes());
        ConnectionId::new(&name.as_ref()[..self.cid_len()])
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// This node's identity, made ready for TLS.
pub(super) struct Credential {
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    transport: Arc<TransportConfig>,
    reset: Arc<ring::hmac::Key>,
    names: Names,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credential(…)")
    }
}

impl Credential {
    pub(super) fn new(identity: &Identity) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let text = Zeroizing::new(identity.to_base64());
        let seed = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.as_bytes()).map_err(failed)?);
        let private = Zeroizing::new([&PRIVATE[..], &seed].concat());
        let private = PrivatePkcs8KeyDer::from(private.as_slice());
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&private).map_err(failed)?;
        let public = [&PUBLIC[..], identity.public().as_bytes()].concat();
        let key = CertifiedKey::new(vec![public.into()], signer);
        // The same after a restart: what still arrives for connections of before can then be answered so that the other end knows at once
        // that they are gone (RFC 9000, section 10.3), and need not wait until they fall silent.
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &seed);
        let secret = ring::hmac::sign(&secret, b"atoll mesh/1 stateless reset");
        let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_ref());
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(STREAMS.into())
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(CONNECTION_WINDOW.into())
            .send_window(CONNECTION_WINDOW.into())
            .congestion_controller_factory(Arc::new(BundleConfig::default()))
            .datagram_receive_buffer_size(Some(DATAGRAMS))
            .datagram_send_buffer_size(DATAGRAMS)
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENCE_MS))))
            .keep_alive_interval(Some(KEEP_ALIVE));
        Ok(Self {
            key: Arc::new(key),
            provider,
            transport: Arc::new(transport),
            reset: Arc::new(reset),
            names: Names {
                key: Arc::new(ring::hmac::Key::new(
                    ring::hmac::HMAC_SHA256,
                    &crate::key::random()?,
                )),
                given: Arc::default(),
            },
        })
    }

    fn verifier(&self, expected: Expected) -> Arc<Verifier> {
        let provider = Arc::clone(&self.provider);
        Arc::new(Verifier { expected, provider })
    }

    /// For an endpoint as a whole.
    pub(super) fn endpoint(&self) -> quinn::EndpointConfig {
        let mut config = quinn::EndpointConfig::new(self.reset.clone());
        let names = self.names.clone();
        config.cid_generator(move || Box::new(names.clone()));
        // Signals, and what relays say, are told from QUIC by the bit that this would let vary (RFC 9287).
        config.grease_quic_bit(false);
        config
    }

    /// For those who connect: members of this directory, as it is at that moment.
    pub(super) fn server(&self, directory: Current) -> Result<quinn::ServerConfig, Error> {
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(self.verifier(Expected::Members(directory)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
                Arc::clone(&self.key),
            )));
        tls.alpn_protocols = vec![PROTOCOL.to_vec()];
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let crypto = QuicServerConfig::try_from(tls).map_err(failed)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::clone(&self.transport))
            .max_incoming(INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
        Ok(config)
    }

    /// To connect to this one and nobody else.
    pub(super) fn client(&self, to: IdentityKey) -> Result<quinn::ClientConfig, Error> {
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(Expected::One(to)))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                Arc::clone(&self.key),
            )));
        tls.alpn_protocols = vec![PROTOCOL.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        tls.enable_sni = false;
        let crypto = QuicClientConfig::try_from(tls).map_err(failed)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.transport));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_key_is_an_identity_and_nothing_else_is() {
        let identity = Identity::from_seed([7; 32]);
        let credential = Credential::new(&identity).unwrap();
        let shown = credential.key.cert[0].as_ref();
        assert_eq!(identity_of(shown), Some(identity.public()));
        // What is shown is what is signed with.
        let signer = credential.key.key.public_key().unwrap();
        assert_eq!(signer.as_ref(), shown);
        assert_eq!(identity_of(&shown[..43]), None);
        assert_eq!(identity_of(&[shown, &[0]].concat()), None);
        let mut other = shown.to_vec();
        other[8] ^= 1;
        assert_eq!(identity_of(&other), None);
        assert_eq!(format!("{credential:?}"), "Credential(…)");
    }
}

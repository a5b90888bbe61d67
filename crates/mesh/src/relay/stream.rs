//! Frames over TLS: one connection, at either end, without blocking.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::TlsAddress;
use super::outbox::Outbox;
use crate::error::Error;

/// Pieces that are read before others have their turn.
const READS: usize = 16;
/// What a client says whom it wants to speak with. Relays have no names.
const NAME: &str = "relay.mesh.internal";

/// A relay's certificate and its key.
pub struct RelayCertificate {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl std::fmt::Debug for RelayCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RelayCertificate(…)")
    }
}

impl Clone for RelayCertificate {
    fn clone(&self) -> Self {
        Self {
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl RelayCertificate {
    /// A new one, signed by itself.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn generate() -> Result<Self, Error> {
        let failed = |error| Error::io("make a certificate", io::Error::other(error));
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .map_err(failed)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// One that was kept: the certificate in DER, and its key in PKCS #8.
    pub fn from_der(certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
        }
    }

    /// The certificate in DER, to be kept.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its key in PKCS #8, to be kept where nobody reads it.
    pub fn key(&self) -> &[u8] {
        self.key.secret_pkcs8_der()
    }

    /// What clients know it by.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }

    /// What the relay speaks TLS with.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, Error> {
        let failed = |error| Error::io("use the relay's certificate", io::Error::other(error));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key().into())
            .map_err(failed)?;
        Ok(Arc::new(config))
    }
}

/// Where a relay listens on TLS, and as whom.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// The address; port 443 passes where nothing else does.
    pub listen: SocketAddr,
    /// The certificate.
    pub certificate: RelayCertificate,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Takes one certificate and no other.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Sha256::digest(certificate)[..] == self.fingerprint {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Begins to connect to a relay; nothing is waited for.
pub(crate) fn connect(relay: &TlsAddress, outbox: Arc<Outbox>) -> Result<Stream, Error> {
    let failed = |error| Error::io("prepare TLS", io::Error::other(error));
    let provider = provider();
    let pinned = Pinned {
        fingerprint: relay.certificate,
        algorithms: provider.signature_verification_algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    let name = ServerName::try_from(NAME)
        .map_err(|error| Error::io("prepare TLS", io::Error::other(error)))?;
    let tls = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
    let family = if relay.address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|error| Error::io("open a TCP socket", error))?;
    match rustix::net::connect(&socket, &relay.address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(Error::io("connect to the relay", error)),
    }
    Ok(Stream::new(socket.into(), tls.into(), outbox))
}

/// One connection.
pub(crate) struct Stream {
    socket: TcpStream,
    tls: Connection,
    outbox: Arc<Outbox>,
    sending: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
}

impl Stream {
    /// Over a socket that does not block.
    pub(super) fn new(socket: TcpStream, tls: Connection, outbox: Arc<Outbox>) -> Self {
        // Frames go at once; that is an optimisation, not more.
        let _ = socket.set_nodelay(true);
        Self {
            socket,
            tls,
            outbox,
            sending: Vec::new(),
            sent: 0,
            incoming: Vec::new(),
        }
    }

    /// Whether the other end proved that it speaks TLS.
    pub(crate) fn established(&self) -> bool {
        !self.tls.is_handshaking()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.tls.wants_write() || self.sent < self.sending.len() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    /// Reads what is there; `take` gets every frame.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        for _ in 0..READS {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if waits(&error) => break,
                Err(error) => return Err(error),
            }
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            let from = self.incoming.len();
            self.incoming
                .resize(from + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut self.incoming[from..])?;
            let mut at = 0;
            while let Some(frame) = first_frame(&self.incoming[at..]) {
                at += 2 + frame.len();
                take(frame);
            }
            // What is left is less than a frame, so this is bounded.
            self.incoming.drain(..at);
        }
        Ok(())
    }

    /// Writes what waits, as far as the system takes it.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        loop {
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if waits(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            if self.tls.is_handshaking() {
                return Ok(());
            }
            if self.sent == self.sending.len() {
                self.sent = 0;
                self.outbox.take(&mut self.sending);
                if self.sending.is_empty() {
                    return Ok(());
                }
            }
            self.sent += self.tls.writer().write(&self.sending[self.sent..])?;
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether to try again later. A socket that is still connecting says so in its own way.
fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOTCONN)
}

/// The frame at the front, if all of it is there.
fn first_frame(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

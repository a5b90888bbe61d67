//! Mutual TLS. The files are looked at with every new connection, so that certificates are replaced
//! without a restart; connections that are there go on.

use api::{ErrorCode, Problem};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority, as PEM. It must name the
    /// host, or the address, by which Cluster Autoscaler calls.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates, as PEM. Without it clients show none.
    pub client_ca: Option<PathBuf>,
    /// Whether the expander answers clients that show no certificate: the one inside Cluster
    /// Autoscaler has none to show. All other calls are refused to them.
    pub open_expander: bool,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file has nothing in it that is looked for.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// Certificate and key are not of each other, or not understood.
    #[error("certificate {} and key {} cannot be used together: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The clients' authorities are not understood.
    #[error("{} cannot be used as the clients' authority: {cause}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

impl From<TlsError> for Problem {
    fn from(error: TlsError) -> Self {
        let remedy = match &error {
            TlsError::Read { .. } => "give the path of a PEM file that Atoll may read",
            TlsError::Empty(_) => "put the certificate into it, as PEM",
            TlsError::Pair { .. } => "give the key that the certificate was made for",
            TlsError::ClientCa { .. } => "give the certificate of who signs Cluster Autoscaler's",
        };
        Self::new(ErrorCode::InvalidArgument, error.to_string(), remedy)
    }
}

/// What identifies the files' contents without reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Vec<Option<(SystemTime, u64)>>);

struct Current {
    config: Arc<ServerConfig>,
    stamp: Stamp,
}

/// The server's side of TLS. Clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Arc<TlsFiles>,
    current: Arc<Mutex<Current>>,
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// When they cannot be read or do not fit together.
    pub fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let stamp = Stamp::of(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self {
            files: Arc::new(files),
            current: Arc::new(Mutex::new(Current { config, stamp })),
        })
    }

    /// Shakes hands; returns whether the client showed a certificate where one is asked for.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, bool)> {
        let this = self.clone();
        let config = tokio::task::spawn_blocking(move || this.refreshed());
        let config = config.await.map_err(io::Error::other)?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().is_some();
        Ok((stream, shown || self.files.client_ca.is_none()))
    }

    /// What the files say now. If they do not fit together, as while they are being replaced, the
    /// old ones stay, and they are read again with the next connection. Blocks.
    fn refreshed(&self) -> Arc<ServerConfig> {
        let stamp = Stamp::of(&self.files);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.stamp != stamp {
            match read(&self.files) {
                Ok(config) => {
                    *current = Current {
                        config: Arc::new(config),
                        stamp,
                    };
                    tracing::info!("the new certificates for Cluster Autoscaler are in use");
                }
                Err(error) => tracing::warn!(%error, "the old certificates stay in use"),
            }
        }
        current.config.clone()
    }
}

impl Stamp {
    fn of(files: &TlsFiles) -> Self {
        let paths = [&files.certificate, &files.key];
        let paths = paths.into_iter().chain(&files.client_ca);
        Self(
            paths
                .map(|path| {
                    let meta = std::fs::metadata(path).ok()?;
                    Some((meta.modified().ok()?, inode(&meta)))
                })
                .collect(),
        )
    }
}

/// A replaced file is another one, even if both were written in the same moment.
fn inode(meta: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    meta.ino()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })?;
    if chain.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(chain)
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Read {
        path: files.key.clone(),
        source,
    })?;
    let provider = Arc::new(ring::default_provider());
    let pair = |source| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let refuse = |cause: String| TlsError::ClientCa {
                path: path.clone(),
                cause,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| refuse(error.to_string()))?;
            }
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let builder = if files.open_expander {
                builder.allow_unauthenticated()
            } else {
                builder
            };
            let verifier = builder.build();
            let verifier =
                verifier.map_err(|error: VerifierBuilderError| refuse(error.to_string()))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

//! Mutual TLS: who gets in, who does not, and how certificates are replaced.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::cluster;

use bytes::Bytes;
use cluster::{
    Cluster,
    client::{Answer, Client},
};
use fleet::externalgrpc::{Call, Settings, Tls, TlsFiles, serve, wire};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate with its key, both as PEM.
struct Pair {
    certificate: String,
    key: String,
}

fn signed(authority: &Authority, name: &str, expired: bool) -> Pair {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    Pair {
        certificate: params.signed_by(&key, authority).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// A server with its files.
struct Server {
    cluster: Cluster,
    folder: TempDir,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

fn write(folder: &TempDir, name: &str, text: &str) {
    // As those who replace certificates do: nobody ever sees half a file.
    let fresh = folder.path().join(format!("{name}.new"));
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, folder.path().join(name)).unwrap();
}

fn files(folder: &TempDir) -> TlsFiles {
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    TlsFiles {
        certificate: path("tls.crt"),
        key: path("tls.key"),
        client_ca: Some(path("ca.crt")),
        open_expander: false,
    }
}

impl Server {
    async fn new(address: &str, authority: &Authority, pair: &Pair, open: bool) -> Self {
        let cluster = Cluster::new(Settings::default(), &["s0"]).await;
        let folder = tempfile::tempdir().unwrap();
        write(&folder, "tls.crt", &pair.certificate);
        write(&folder, "tls.key", &pair.key);
        write(&folder, "ca.crt", &authority.pem());
        let tls = Tls::read(TlsFiles {
            open_expander: open,
            ..files(&folder)
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (tls, service) = (tls.unwrap(), cluster.service.clone());
        let task = tokio::spawn(serve(listener, Some(tls), service, async {
            let _ = stopped.await;
        }));
        Self {
            cluster,
            folder,
            address,
            stop: Some(stop),
            task,
        }
    }

    async fn connect(
        &self,
        trusted: &Authority,
        name: &str,
        shown: Option<&Pair>,
    ) -> Result<Client, String> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let pem = pair.certificate.as_bytes();
                let certificate = CertificateDer::from_pem_slice(pem).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                config
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        Client::new(stream).await.map_err(|error| error.to_string())
    }

    /// Connects, and asks for the groups.
    async fn ask(
        &self,
        trusted: &Authority,
        name: &str,
        shown: Option<&Pair>,
    ) -> Result<Answer, String> {
        let mut client = self.connect(trusted, name, shown).await?;
        let answer = client.call(Call::NodeGroups, &[]).await;
        answer.map_err(|error| error.to_string())
    }

    async fn end(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn only_who_shows_the_right_certificate_gets_in() {
    let (ours, theirs) = (authority(), authority());
    let server = signed(&ours, "fleet.example", false);
    let server = Server::new("127.0.0.1:0", &ours, &server, false).await;
    let name = "fleet.example";
    let right = signed(&ours, "autoscaler", false);
    let wrong = signed(&theirs, "autoscaler", false);
    let expired = signed(&ours, "autoscaler", true);

    let answer = server
        .ask(&ours, name, Some(&right))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        wire::NodeGroups::decode(answer).unwrap().node_groups.len(),
        2
    );
    for (what, shown) in [
        ("another authority", Some(&wrong)),
        ("no certificate", None),
        ("expired", Some(&expired)),
    ] {
        assert!(server.ask(&ours, name, shown).await.is_err(), "{what}");
    }
    assert!(server.ask(&theirs, name, Some(&right)).await.is_err());
    let refused = server.ask(&ours, "other.example", Some(&right)).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
    // Whoever speaks in the open is not understood.
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut open = Client::new(stream).await.unwrap();
    assert!(open.call(Call::NodeGroups, &[]).await.is_err());
    // None of it keeps others out.
    assert!(server.ask(&ours, name, Some(&right)).await.unwrap().is_ok());
    server.end().await;

    let stale = signed(&ours, name, true);
    let server = Server::new("127.0.0.1:0", &ours, &stale, false).await;
    let refused = server.ask(&ours, name, Some(&right)).await.unwrap_err();
    assert!(refused.contains("expired"), "{refused}");
    server.end().await;
}

#[tokio::test]
async fn a_literal_address_is_a_name_too() {
    let ours = authority();
    let right = signed(&ours, "autoscaler", false);
    for (listen, name) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let server = Server::new(listen, &ours, &signed(&ours, name, false), false).await;
        assert!(server.ask(&ours, name, Some(&right)).await.unwrap().is_ok());
        assert!(server.ask(&ours, "::2", Some(&right)).await.is_err());
        server.end().await;
    }
}

#[tokio::test]
async fn the_expander_may_be_open_while_the_rest_is_not() {
    let ours = authority();
    let pair = signed(&ours, "fleet.example", false);
    let server = Server::new("127.0.0.1:0", &ours, &pair, true).await;
    let mut client = server.connect(&ours, "fleet.example", None).await.unwrap();
    let answer = client.call(Call::BestOptions, &[]).await.unwrap();
    assert_eq!(answer, Ok(Bytes::new()));
    for call in Call::ALL.iter().filter(|call| !call.is_expander()) {
        let (code, _) = client.call(*call, &[]).await.unwrap().unwrap_err();
        assert_eq!(code, 16, "{call:?}");
    }
    // A wrong certificate is worse than none.
    let wrong = signed(&authority(), "autoscaler", false);
    assert!(
        server
            .ask(&ours, "fleet.example", Some(&wrong))
            .await
            .is_err()
    );
    server.end().await;
}

#[tokio::test]
async fn certificates_are_replaced_without_a_dropped_call() {
    let (old, new) = (authority(), authority());
    let name = "fleet.example";
    let server = Server::new("127.0.0.1:0", &old, &signed(&old, name, false), false).await;
    let (old_client, new_client) = (signed(&old, "a", false), signed(&new, "b", false));
    let mut before = server.connect(&old, name, Some(&old_client)).await.unwrap();
    assert!(before.call(Call::NodeGroups, &[]).await.unwrap().is_ok());

    // A call is under way while the files change.
    server.cluster.faulty.hold(true);
    let question = wire::Delta {
        delta: 1,
        id: "small".into(),
    };
    let call = tokio::spawn(async move {
        let question = question.encode_to_vec();
        let answer = before.call(Call::NodeGroupIncreaseSize, &question).await;
        (before, answer)
    });
    server.cluster.faulty.wait_until_held(1).await;
    let pair = signed(&new, name, false);
    write(&server.folder, "tls.crt", &pair.certificate);
    // Certificate and key do not fit together for a moment: the old ones stay in use.
    let between = server.ask(&old, name, Some(&old_client)).await;
    assert!(between.unwrap().is_ok());
    write(&server.folder, "tls.key", &pair.key);
    write(&server.folder, "ca.crt", &new.pem());
    assert!(
        server
            .ask(&new, name, Some(&new_client))
            .await
            .unwrap()
            .is_ok()
    );
    assert!(server.ask(&new, name, Some(&old_client)).await.is_err());

    server.cluster.faulty.hold(false);
    let (mut before, answer) = call.await.unwrap();
    assert_eq!(answer.unwrap(), Ok(Bytes::new()));
    assert!(before.call(Call::NodeGroups, &[]).await.unwrap().is_ok());

    // The server ends in order: what is under way is finished.
    server.cluster.faulty.hold(true);
    let call = tokio::spawn(async move {
        let question = wire::Delta {
            delta: -1,
            id: "small".into(),
        };
        let question = question.encode_to_vec();
        before
            .call(Call::NodeGroupDecreaseTargetSize, &question)
            .await
    });
    let faulty = server.cluster.faulty.clone();
    faulty.wait_until_held(1).await;
    let ended = tokio::spawn(server.end());
    faulty.hold(false);
    assert_eq!(call.await.unwrap().unwrap(), Ok(Bytes::new()));
    ended.await.unwrap();
}

#[test]
fn what_is_wrong_with_the_files_is_said_with_their_names() {
    let ours = authority();
    let (one, other) = (signed(&ours, "a", false), signed(&ours, "b", false));
    let folder = tempfile::tempdir().unwrap();
    let check = |expected: &str| {
        let problem = api::Problem::from(Tls::read(files(&folder)).err().unwrap());
        let text = problem.to_string();
        assert!(text.contains(expected), "{text}");
    };
    check("tls.crt");
    write(&folder, "tls.crt", "nothing");
    check("holds no certificate");
    write(&folder, "tls.crt", &one.certificate);
    check("tls.key");
    write(&folder, "tls.key", &other.key);
    write(&folder, "ca.crt", &ours.pem());
    check("cannot be used together");
    write(&folder, "tls.key", &one.key);
    write(&folder, "ca.crt", "");
    check("ca.crt");
    write(&folder, "ca.crt", &ours.pem());
    assert!(Tls::read(files(&folder)).is_ok());
}

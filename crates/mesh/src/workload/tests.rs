//! Certificates, as TLS libraries see them.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use super::*;
use crate::coordination::{Book, BookOptions, Identity, JoinRequest, NewToken, Refusal, Signed};
use crate::coordination::{Mode, NodeRecord, Plan};
use crate::key::PrivateKey;

const POLICY: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]
"#;

fn now() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    since.as_millis().try_into().unwrap()
}

struct Mesh {
    book: Book,
    authority: Authority,
}

fn write<T>(book: &mut Book, plan: Plan<T>) -> T {
    assert!(book.apply(&plan.writes));
    plan.answer
}

impl Mesh {
    fn new() -> Self {
        let mut book = Book::new(Identity::from_seed([9; 32]), BookOptions::default(), now());
        let plan = book.set_policy(POLICY).unwrap();
        write(&mut book, plan);
        let kept = Authority::generate("mesh.internal", now()).unwrap();
        // As after a restart.
        let authority = Authority::open(&kept).unwrap();
        Self { book, authority }
    }

    fn join(&mut self, name: &str, tag: &str) -> Identity {
        let allows = NewToken {
            tags: [tag.to_owned()].into(),
            ..NewToken::default()
        };
        let plan = self.book.new_token(allows, "http://192.0.2.1", now());
        let token = write(&mut self.book, plan.unwrap());
        let identity = Identity::generate().unwrap();
        let record = NodeRecord {
            identity: identity.public(),
            epoch: 1,
            name: name.to_owned(),
            wireguard: PrivateKey::generate().unwrap().public(),
            endpoints: Vec::new(),
            flows: Vec::new(),
            underlay: None,
            relay: None,
            plain: false,
            renewal: None,
            mode: Mode::Tun,
            unready: std::collections::BTreeSet::new(),
        };
        let request = JoinRequest {
            token: token.id.clone(),
            admission: token.admission(identity.public()),
            record: identity.sign(&record),
        };
        let plan = self.book.join(&request, now()).unwrap();
        write(&mut self.book, plan);
        identity
    }

    fn ask(&self, request: &Signed<CertifyRequest>) -> Result<Certificate, Refusal> {
        let asked = self.book.holder(request, now())?;
        Ok(self.authority.issue(&asked, now()).unwrap())
    }

    fn certify(&self, node: &Identity, service: Option<&str>) -> Result<Certified, Refusal> {
        let key = WorkloadKey::generate().unwrap();
        let asked = key.request(node.public(), service, now()).unwrap();
        self.ask(&node.sign(&asked)).map(|answer| key.with(answer))
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain(certified: &Certified) -> Chain {
    let certificate = CertificateDer::from_pem_slice(certified.certificate.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes());
    (vec![certificate.unwrap()], key.unwrap())
}

fn roots(certified: &Certified) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let bundle = CertificateDer::from_pem_slice(certified.certificate.bundle.as_bytes());
    roots.add(bundle.unwrap()).unwrap();
    Arc::new(roots)
}

/// A handshake in memory in which each end shows its certificate; what the one that fails says.
fn handshake(client: &Certified, server: &Certified, name: &str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificates, key) = chain(server);
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(server), Arc::clone(&provider)).build();
    let serving = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients.unwrap())
        .with_single_cert(certificates, key)?;
    let (certificates, key) = chain(client);
    let servers =
        WebPkiServerVerifier::builder_with_provider(roots(client), Arc::clone(&provider)).build();
    let asking = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_webpki_verifier(servers.unwrap())
        .with_client_auth_cert(certificates, key)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(asking), name)?);
    let mut server = Connection::from(ServerConnection::new(Arc::new(serving))?);
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
        for _ in 0..2 {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            std::mem::swap(&mut client, &mut server);
        }
    }
    Ok(())
}

#[test]
fn programs_prove_to_each_other_who_they_are() {
    let mut mesh = Mesh::new();
    let (one, two) = (mesh.join("db-1", "db"), mesh.join("app-1", "app"));
    let service = mesh.certify(&one, Some("db")).unwrap();
    let node = mesh.certify(&two, None).unwrap();
    assert_eq!(service.certificate.id, "spiffe://mesh.internal/service/db");
    assert_eq!(node.certificate.id, "spiffe://mesh.internal/node/app-1");
    for name in ["db.mesh.internal", "db-1.mesh.internal", "100.64.0.1"] {
        handshake(&node, &service, name).unwrap();
    }
    let wrong = handshake(&node, &service, "app-1.mesh.internal");
    assert!(wrong.is_err(), "a name that is another's");
    // Each is one and the other: services call each other too.
    handshake(&service, &node, "app-1.mesh.internal").unwrap();
    let elsewhere = Mesh::new();
    let stranger = Mesh {
        authority: elsewhere.authority,
        ..mesh
    };
    let stranger = stranger.certify(&two, None).unwrap();
    let refused = handshake(&stranger, &service, "db.mesh.internal");
    assert!(refused.is_err(), "another authority's");
}

#[test]
fn nobody_gets_what_is_not_theirs() {
    let mut mesh = Mesh::new();
    let (db, app) = (mesh.join("db-1", "db"), mesh.join("app-1", "app"));
    let refused = mesh.certify(&app, Some("db")).unwrap_err();
    assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
    let refused = mesh.certify(&db, Some("web")).unwrap_err();
    assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
    let stranger = Identity::generate().unwrap();
    let refused = mesh.certify(&stranger, None).unwrap_err();
    assert_eq!(refused, Refusal::Unknown("node"));

    let key = WorkloadKey::generate().unwrap();
    let asked = key.request(db.public(), Some("db"), now()).unwrap();
    assert!(mesh.ask(&db.sign(&asked)).is_ok());
    assert_eq!(mesh.ask(&app.sign(&asked)), Err(Refusal::Forged));
    // Another node shows a key that it saw.
    let seen = CertifyRequest {
        identity: app.public(),
        service: None,
        ..asked.clone()
    };
    assert_eq!(mesh.ask(&app.sign(&seen)), Err(Refusal::Forged));
    for key in ["", "AAAA", &asked.key[..80], &"A".repeat(10_000)] {
        let broken = CertifyRequest {
            key: key.to_owned(),
            ..asked.clone()
        };
        assert_eq!(mesh.ask(&db.sign(&broken)), Err(Refusal::Forged), "{key}");
    }
    let old = key.request(db.public(), None, now() - 3_600_000).unwrap();
    let refused = mesh.ask(&db.sign(&old)).unwrap_err();
    assert!(matches!(refused, Refusal::Clock(_)), "{refused:?}");

    let plan = mesh.book.revoke("db-1").unwrap();
    write(&mut mesh.book, plan);
    assert!(mesh.ask(&db.sign(&asked)).is_err(), "revoked");
}

#[test]
fn keys_are_not_shown() {
    let mesh = Mesh::new();
    let certified = Certified {
        certificate: Certificate {
            identity: mesh.book.key(),
            key: String::new(),
            id: "spiffe://mesh.internal/node/a".to_owned(),
            certificate: String::new(),
            bundle: String::new(),
            ends_ms: 0,
        },
        key: zeroize::Zeroizing::new("secret".to_owned()),
    };
    assert_eq!(
        format!("{certified:?} {:?}", mesh.authority),
        "Certified(spiffe://mesh.internal/node/a) Authority(…)"
    );
    for spoilt in ["", "{}", r#"{"domain":"a","certificate":"b","key":"c"}"#] {
        assert!(Authority::open(spoilt).is_err(), "{spoilt}");
    }
}

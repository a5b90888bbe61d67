//! TLS and HTTP/2, towards clients.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use gateway::TlsFiles;
use http::Request;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use support::{Answer, World, read_to_end, read_until, wait_for, within};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Writes a new certificate for `*.example.org` and gives it back.
fn certificate(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["*.example.org".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("certificate.pem"), cert.pem()).unwrap();
    CertificateDer::from_pem_slice(cert.pem().as_bytes()).unwrap()
}

async fn world(folder: &Path) -> World {
    let files = TlsFiles {
        certificate: folder.join("certificate.pem"),
        key: folder.join("key.pem"),
    };
    World::with(|options| options.tls = Some(files)).await
}

async fn connect(
    world: &World,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let name = ServerName::try_from("3000-i.example.org").unwrap();
    within(TlsConnector::from(Arc::new(config)).connect(name, world.connect().await)).await
}

#[tokio::test]
async fn http2_is_spoken_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path());
    let world = world(folder.path()).await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(8080).await;
    let tls = connect(&world, &trusted, &["h2", "http/1.1"])
        .await
        .unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection);

    let uri = format!("https://8080-{}.example.org/path?query", sandbox.id);
    let mut answers = Vec::new();
    for _ in 0..20 {
        let request = Request::post(&uri)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::<Bytes>::from("body"))
            .unwrap();
        let mut sender = sender.clone();
        let sent = async move { Answer::of(sender.send_request(request).await.unwrap()).await };
        answers.push(tokio::spawn(sent));
    }
    for answer in answers {
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with("POST /path?query\n"), "{answer:?}");
        let host = format!("\nhost: 8080-{}.example.org\n", sandbox.id);
        assert!(answer.body.contains(&host), "{answer:?}");
        assert!(
            answer.body.contains("\nx-forwarded-proto: https\n"),
            "{answer:?}"
        );
        assert!(answer.body.contains("\ncookie: a=1; b=2\n"), "{answer:?}");
        assert!(answer.body.ends_with("\n\nbody"), "{answer:?}");
    }
    let request = Request::get("https://api.example.org/health")
        .body(Full::default())
        .unwrap();
    let answer = Answer::of(within(sender.send_request(request)).await.unwrap()).await;
    assert_eq!(answer.body, "api /health 127.0.0.1 0");
}

#[tokio::test]
async fn one_stream_of_many_breaks_alone() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path());
    let world = world(folder.path()).await;
    let (doomed, healthy) = (world.sandbox(), world.sandbox());
    let listener = doomed.listen(8080).await;
    healthy.serve_mirror(8080).await;
    let tls = connect(&world, &trusted, &["h2"]).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = |id| {
        let uri = format!("https://8080-{id}.example.org/");
        Request::get(uri).body(Empty::<Bytes>::new()).unwrap()
    };
    let stream = tokio::spawn(sender.send_request(request(&doomed.id)));
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n";
    server.write_all(head).await.unwrap();
    let mut body = within(stream).await.unwrap().unwrap().into_body();
    within(body.frame()).await.unwrap().unwrap();
    world.end(&doomed);
    assert!(within(body.frame()).await.unwrap().is_err(), "no clean end");
    let answer = Answer::of(
        within(sender.send_request(request(&healthy.id)))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(answer.status, 200);

    // A client that gives up one stream is noticed by that stream's server.
    let listener = healthy.listen(8081).await;
    let uri = format!("https://8081-{}.example.org/", healthy.id);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let stream = tokio::spawn(sender.send_request(request));
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    stream.abort();
    assert_eq!(read_to_end(&mut server).await, "");
}

#[tokio::test]
async fn http1_is_spoken_to_those_who_prefer_it() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path());
    let world = world(folder.path()).await;
    for protocols in [&["http/1.1"][..], &[]] {
        let mut tls = connect(&world, &trusted, protocols).await.unwrap();
        tls.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut tls, "api / 127.0.0.1 0").await;
    }
    assert_eq!(
        world
            .raw(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .find("HTTP"),
        None
    );
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let old = certificate(folder.path());
    let world = world(folder.path()).await;
    connect(&world, &old, &["h2"]).await.unwrap();
    std::fs::write(folder.path().join("key.pem"), "not a key").unwrap();
    std::fs::write(folder.path().join("other"), "").unwrap();
    connect(&world, &old, &["h2"]).await.unwrap();
    let new = certificate(folder.path());
    let deadline = tokio::time::Instant::now() + support::LONG;
    while connect(&world, &new, &["h2"]).await.is_err() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the new certificate is not used"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(connect(&world, &old, &["h2"]).await.is_err());
}

#[tokio::test]
async fn http2_with_prior_knowledge_needs_no_tls() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(8080).await;
    let io = TokioIo::new(world.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://8080-{}.example.org/", sandbox.id);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = Answer::of(within(sender.send_request(request)).await.unwrap()).await;
    assert!(
        answer.body.contains("\nx-forwarded-proto: http\n"),
        "{answer:?}"
    );
    drop(sender);
    wait_for("closed", || world.metrics().connections_open == 0).await;
    // The preface, but a byte at a time and never complete, is no HTTP/1 request.
    let answer = world.raw(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");
}

//! Pulling: from a real registry, and from servers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support::{self, registry as server};

use api::node::BuildEvent;
use api::template::Requester;
use futures::StreamExt;
use image::digest::Digest;
use server::{Proxy, Registry, answer, serve};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
};
use support::{Archive, Fixture, Image, Node, gzip, image_of, look, names, noise, ready, steps};

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

fn small_image(seed: u64) -> Image {
    let layers = [
        Archive::new()
            .file("etc/one", &noise(50_000, seed))
            .file("etc/two", b"2")
            .finish(),
        Archive::new()
            .file("etc/.wh.two", b"")
            .file("three", b"3")
            .finish(),
    ];
    image_of(&layers, gzip, "+gzip")
}

fn fixture_for(address: &str) -> Fixture {
    let address = address.to_owned();
    Fixture::with(move |options| options.insecure_registries = vec![address])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once() {
    let registry = Registry::start(false).await;
    registry.push(&small_image(1), "team/app", "1.0").await;
    let fixture = fixture_for(&registry.address);
    let source = format!("docker://{}/team/app:1.0", registry.address);
    let events = fixture.events(&source).await;
    let told = steps(&events);
    assert_eq!(told[1..], ["pulling 2 layers", "unpacking 2 layers"]);
    let image = ready(events);
    let layers = fixture.layers(&image);
    assert_eq!(look(&layers[0])[Path::new("etc/two")], Node::Whiteout);
    assert_eq!(names(&layers[1]), "etc etc/one etc/two");
    assert_eq!(image.command, ["/bin/sh"]);
    assert!(
        fixture.stored("blobs/sha256").is_empty() && fixture.stored("blobs/partial").is_empty()
    );
    // Unchanged: one question, no download. Changed: only what is new.
    assert_eq!(steps(&fixture.events(&source).await).len(), 1);
    let mut layers = vec![
        Archive::new()
            .file("etc/one", &noise(50_000, 1))
            .file("etc/two", b"2"),
    ];
    layers.push(Archive::new().file("new", b"n"));
    let layers: Vec<_> = layers.into_iter().map(Archive::finish).collect();
    registry
        .push(&image_of(&layers, zstd, "+zstd"), "team/app", "1.0")
        .await;
    let events = fixture.events(&source).await;
    assert_eq!(
        steps(&events)[1..],
        ["pulling 1 layer", "unpacking 1 layer"]
    );
    assert_ne!(ready(events).digest, image.digest);
    let cause = fixture
        .fail(&format!("docker://{}/team/app:2.0", registry.address))
        .await;
    assert!(cause.contains("has no"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_variant_for_this_machine() {
    let registry = Registry::start(false).await;
    let (mine, other) = (small_image(1), small_image(2));
    registry.push(&mine, "app", "mine").await;
    registry.push(&other, "app", "other").await;
    let variant = |image: &Image, architecture: &str| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest, "size": image.blobs[&image.manifest].len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests":
        [variant(&other, "s390x"), variant(&mine, image::source::manifest::architecture())]});
    let index = serde_json::to_vec(&index).unwrap();
    registry.push_manifest("app", "all", kind, &index).await;
    let fixture = fixture_for(&registry.address);
    let base = format!("docker://{}/app", registry.address);
    let expected = fixture.build(&format!("{base}:mine")).await;
    assert_eq!(
        fixture.build(&format!("{base}:all")).await.digest,
        expected.digest
    );
    let pinned = format!("{base}@{}", Digest::of(&index));
    assert_eq!(fixture.build(&pinned).await.digest, expected.digest);
    // A digest that is known needs no registry.
    drop(registry);
    assert_eq!(fixture.events(&pinned).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_dockers_configuration() {
    let registry = Registry::start(true).await;
    registry.push(&small_image(1), "private", "latest").await;
    let fixture = fixture_for(&registry.address);
    let source = format!("docker://{}/private", registry.address);
    let cause = fixture.fail(&source).await;
    assert!(cause.contains("does not let us pull"), "{cause}");
    let configure = |auth: &str| {
        let config = format!(r#"{{"auths": {{"{}": {auth}}}}}"#, registry.address);
        fixture.write("docker.json", config.as_bytes());
    };
    configure(r#"{"auth": "dXNlcjp3cm9uZw=="}"#);
    let cause = fixture.fail(&source).await;
    assert!(
        cause.contains("does not let us pull") && !cause.contains("wrong"),
        "{cause}"
    );
    configure(r#"{"auth": "dXNlcjpzZWNyZXQ="}"#);
    fixture.build(&source).await;
}

/// A member's key must not lend the node's credentials, nor reach what is near the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_build_has_no_credentials_and_reaches_no_private_host() {
    let registry = Registry::start(true).await;
    registry.push(&small_image(1), "private", "latest").await;
    let fixture = fixture_for(&registry.address);
    let config = format!(
        r#"{{"auths": {{"{}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#,
        registry.address
    );
    fixture.write("docker.json", config.as_bytes());
    let source = format!("docker://{}/private", registry.address);
    let administrators = fixture.build(&source).await;
    let image = fixture.store.list().pop().unwrap();
    assert_eq!(
        (image.digest, image.source),
        (administrators.digest, source)
    );
    let port = registry.address.rsplit_once(':').unwrap().1;
    for host in ["127.0.0.1", "localhost"] {
        let source = format!("docker://{host}:{port}/private");
        let started = std::time::Instant::now();
        let build = fixture
            .store
            .build(source.parse().unwrap(), Requester::Tenant);
        let last = build.collect::<Vec<_>>().await.pop();
        let Some(BuildEvent::Failed { cause, remedy }) = last else {
            panic!("{source}: {last:?}");
        };
        assert!(cause.contains("private network"), "{cause}");
        assert!(remedy.contains("admin key"), "{remedy}");
        assert!(
            started.elapsed() < std::time::Duration::from_secs(1),
            "it is not tried again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_a_helper() {
    let registry = Registry::start(true).await;
    registry.push(&small_image(1), "private", "latest").await;
    let fixture = fixture_for(&registry.address);
    let asked = fixture.path("asked");
    let script = format!(
        "#!/bin/sh\ncat > '{}'\n[ \"$1\" = get ] && echo '{{\"Username\": \"user\", \"Secret\": \
         \"secret\"}}'\n",
        asked.display()
    );
    // The helper's name is made unique, because PATH belongs to the whole process.
    let name = format!("atolltest{}", std::process::id());
    let path = Path::new("/usr/local/bin").join(format!("docker-credential-{name}"));
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(r#"{{"credHelpers": {{"{}": "{name}"}}}}"#, registry.address);
    fixture.write("docker.json", config.as_bytes());
    let events = fixture
        .events(&format!("docker://{}/private", registry.address))
        .await;
    fs::remove_file(path).unwrap();
    ready(events);
    assert_eq!(fs::read_to_string(asked).unwrap(), registry.address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_stopped() {
    const SIZE: u64 = 8 << 20;
    let registry = Registry::start(false).await;
    let layers = [Archive::new()
        .file("large", &noise(SIZE as usize, 3))
        .finish()];
    registry
        .push(&image_of(&layers, gzip, "+gzip"), "app", "latest")
        .await;
    let proxy = Proxy::start(&registry.address, SIZE / 5).await;
    let fixture = fixture_for(&proxy.address);
    let source = format!("docker://{}/app", proxy.address);
    fixture.build(&source).await;
    assert!(proxy.broken.load(Ordering::SeqCst) >= 2);
    let passed = proxy.passed.load(Ordering::SeqCst);
    assert!(
        passed < SIZE + SIZE / 2,
        "{passed} bytes were needed for {SIZE}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_download_is_resumed_by_the_next_build() {
    const SIZE: u64 = 16 << 20;
    let registry = Registry::start(false).await;
    let layers = [Archive::new()
        .file("large", &noise(SIZE as usize, 4))
        .finish()];
    let image = image_of(&layers, gzip, "+gzip");
    registry.push(&image, "app", "latest").await;
    let proxy = Proxy::start(&registry.address, u64::MAX / 4).await;
    let fixture = fixture_for(&proxy.address);
    let source = format!("docker://{}/app", proxy.address);
    // A part, as a build that was given up leaves it.
    let blob = &image.blobs[&image.layers[0]];
    let name = format!("store/blobs/partial/{}", image.layers[0].hex());
    fixture.write(&name, &blob[..blob.len() / 2]);
    let mut events = fixture
        .store
        .build(source.parse().unwrap(), Requester::Administrator);
    while let Some(event) = events.next().await {
        if matches!(event, BuildEvent::Progress { done } if done >= SIZE / 2) {
            break;
        }
    }
    drop(events);
    fixture.build(&source).await;
    let passed = proxy.passed.load(Ordering::SeqCst);
    assert!(
        passed < SIZE,
        "{passed} bytes were needed for the second half of {SIZE}"
    );

    // A part that is damaged is noticed, and fetched again.
    let other = fixture_for(&registry.address);
    let mut damaged = blob[..blob.len() / 2].to_vec();
    damaged[1000] ^= 1;
    other.write(&name, &damaged);
    other
        .build(&format!("docker://{}/app", registry.address))
        .await;
}

/// What a well-behaved registry answers for `image`, without authentication.
fn answer_for(image: &Image, path: &str) -> Vec<u8> {
    let content = match path.rsplit_once('/') {
        Some((kind, "latest")) if kind.ends_with("/manifests") => image.blobs.get(&image.manifest),
        Some((_, digest)) => digest
            .parse()
            .ok()
            .and_then(|digest: Digest| image.blobs.get(&digest)),
        None => None,
    };
    match content {
        Some(content) => answer("200 OK", "", content),
        None => answer("404 Not Found", "", b""),
    }
}

fn path_of(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn a_token_is_fetched_and_never_sent_to_another_host() {
    let image = Arc::new(small_image(1));
    let elsewhere_heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let (content, heads) = (image.clone(), elsewhere_heads.clone());
    let elsewhere = serve(move |head| {
        heads.lock().unwrap().push(head.to_ascii_lowercase());
        answer_for(&content, path_of(head))
    })
    .await;
    let content = image.clone();
    let own_address: Arc<Mutex<String>> = Arc::default();
    let realm = own_address.clone();
    let registry = serve(move |head| {
        let path = path_of(head);
        let lower = head.to_ascii_lowercase();
        if path.starts_with("/token") {
            assert!(path.contains("scope=repository%3Aapp%3Apull"), "{path}");
            // user:secret
            assert!(
                lower.contains("authorization: basic dxnlcjpzzwnyzxq="),
                "{head}"
            );
            return answer("200 OK", "", br#"{"token": "ticket"}"#);
        }
        if !lower.contains("authorization: bearer ticket") {
            let realm = realm.lock().unwrap().clone();
            let header = format!(
                "www-authenticate: Bearer realm=\"http://{realm}/token\",service=\"test\",\
                 scope=\"repository:app:pull\"\r\n"
            );
            return answer("401 Unauthorized", &header, b"");
        }
        match path.contains("/blobs/") {
            true => answer(
                "307 Temporary Redirect",
                &format!("location: http://{elsewhere}{path}\r\n"),
                b"",
            ),
            false => answer_for(&content, path),
        }
    })
    .await;
    *own_address.lock().unwrap() = registry.clone();
    let fixture = fixture_for(&registry);
    let config = format!(r#"{{"auths": {{"{registry}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#);
    fixture.write("docker.json", config.as_bytes());
    fixture.build(&format!("docker://{registry}/app")).await;
    let heads = elsewhere_heads.lock().unwrap();
    assert_eq!(heads.len(), 3);
    assert!(
        heads.iter().all(|head| !head.contains("authorization")),
        "{heads:?}"
    );
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_lies_is_refused() {
    let image = Arc::new(small_image(1));
    let tries = Arc::new(Mutex::new(0));
    let (content, count) = (image.clone(), tries.clone());
    let flaky = serve(move |head| {
        let mut count = count.lock().unwrap();
        *count += 1;
        match *count {
            1 => answer("503 Service Unavailable", "retry-after: 0\r\n", b""),
            3 => Vec::new(),
            _ => answer_for(&content, path_of(head)),
        }
    })
    .await;
    fixture_for(&flaky)
        .build(&format!("docker://{flaky}/app"))
        .await;
    assert!(*tries.lock().unwrap() > 4);

    // A blob that is another, one that is longer, one that is shorter than promised.
    for lie in 0..3 {
        let content = image.clone();
        let layer = image.layers[0];
        let liar = serve(move |head| {
            let path = path_of(head);
            if !path.ends_with(&layer.to_string()) {
                return answer_for(&content, path);
            }
            let mut blob = content.blobs[&layer].clone();
            match lie {
                0 => blob[100] ^= 1,
                1 => blob.push(0),
                _ => blob.truncate(1000),
            }
            answer("200 OK", "", &blob)
        })
        .await;
        let fixture = fixture_for(&liar);
        fixture.fail(&format!("docker://{liar}/app")).await;
        assert!(fixture.stored("layers").is_empty());
        assert!(
            fixture.stored("blobs/sha256").len() <= 1,
            "only the honest layer"
        );
    }

    // A manifest that never ends, and one that is not what was asked for.
    let endless = serve(|_| answer("200 OK", "", &vec![b' '; 5 << 20])).await;
    let cause = fixture_for(&endless)
        .fail(&format!("docker://{endless}/app"))
        .await;
    assert!(cause.contains("longer than"), "{cause}");
    let wrong = serve(move |head| {
        answer_for(
            &image,
            &path_of(head).replace(&Digest::of(b"x").to_string(), "latest"),
        )
    })
    .await;
    let source = format!("docker://{wrong}/app@{}", Digest::of(b"x"));
    let cause = fixture_for(&wrong).fail(&source).await;
    assert!(cause.contains("something else"), "{cause}");
}

#[tokio::test]
async fn tls_is_asked_for_unless_a_registry_is_allowed_without() {
    let registry = serve(|_| answer("200 OK", "", b"{}")).await;
    let fixture = Fixture::new();
    let cause = fixture.fail(&format!("docker://{registry}/app")).await;
    assert!(cause.contains(&registry), "{cause}");
    let cause = fixture.fail("docker://a//b").await;
    assert!(cause.contains("not an image reference"), "{cause}");
}

//! Sources that lie on this machine, and what the store does with what they give.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use api::node::BuildEvent;
use api::template::Requester;
use futures::{StreamExt, future::join_all};
use image::{ImageError, ImageStore};
use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};
use support::{
    Archive, Fixture, Image, Node, gzip, image_of, look, names, noise, ready, steps, stored,
};

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        Archive::new()
            .directory("etc")
            .file("etc/one", b"1")
            .file("etc/two", b"2")
            .finish(),
        Archive::new()
            .directory("etc")
            .file("etc/.wh.one", b"")
            .file("etc/three", b"3")
            .finish(),
    ]
}

fn write_layout(directory: &Path, image: &Image, tags: &[&str]) {
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    for (digest, content) in &image.blobs {
        fs::write(directory.join("blobs/sha256").join(digest.hex()), content).unwrap();
    }
    let manifests: Vec<_> = tags
        .iter()
        .map(|tag| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": image.manifest, "size": image.blobs[&image.manifest].len(),
                "annotations": {"org.opencontainers.image.ref.name": tag}})
        })
        .collect();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(
        directory.join("index.json"),
        serde_json::to_vec(&index).unwrap(),
    )
    .unwrap();
    fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion": "1.0.0"}"#,
    )
    .unwrap();
}

fn archive_of(directory: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", directory).unwrap();
    builder.into_inner().unwrap()
}

fn check_two_layers(fixture: &Fixture, image: &api::node::BuiltImage) {
    let layers = fixture.layers(image);
    assert_eq!(layers.len(), 2);
    assert_eq!(look(&layers[0])[Path::new("etc/one")], Node::Whiteout);
    assert_eq!(names(&layers[0]), "etc etc/one etc/three");
    assert_eq!(names(&layers[1]), "etc etc/one etc/two");
    assert_eq!(image.environment["A"], "1");
    assert_eq!(image.user.as_deref(), Some("app"));
    assert_eq!(image.working_directory.as_deref(), Some("/srv"));
    assert_eq!(image.command, ["/bin/sh"]);
}

#[tokio::test]
async fn a_tarball_in_each_compression_is_one_plain_directory() {
    let fixture = Fixture::new();
    let plain = Archive::new()
        .file("etc/hosts", b"x")
        .file("etc/.wh.gone", b"")
        .finish();
    let mut digests = Vec::new();
    for (name, content) in [
        ("plain.tar", plain.clone()),
        ("root.tar.gz", gzip(&plain)),
        ("root.tar.zst", zstd::encode_all(&plain[..], 1).unwrap()),
    ] {
        let path = fixture.write(name, &content);
        let image = fixture.build(&format!("tar:{}", path.display())).await;
        let layers = fixture.layers(&image);
        assert_eq!(layers.len(), 1);
        assert_eq!(names(&layers[0]), "etc etc/hosts");
        digests.push(image.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "equal content is stored once");
    assert_eq!(fixture.stored("layers").len(), 1);
    assert!(fixture.stored("temporary").is_empty());
}

#[tokio::test]
async fn an_unchanged_tarball_is_not_read_again_and_a_changed_one_is() {
    let fixture = Fixture::new();
    let path = fixture.write("root.tar", &Archive::new().file("a", b"1").finish());
    let source = format!("tar:{}", path.display());
    let first = fixture.build(&source).await;
    let events = fixture.events(&source).await;
    assert_eq!(events, [BuildEvent::Ready(first.clone())]);
    let forced: Vec<_> = fixture
        .store
        .rebuild(source.parse().unwrap(), Requester::Administrator)
        .collect()
        .await;
    assert_eq!(steps(&forced).len(), 1);
    assert_eq!(ready(forced), first);
    fixture.write("root.tar", &Archive::new().file("a", b"2").finish());
    assert_ne!(fixture.build(&source).await.digest, first.digest);
}

#[tokio::test]
async fn layouts_as_folder_and_archive_give_the_same_image() {
    let fixture = Fixture::new();
    let image = image_of(&two_layers(), gzip, "+gzip");
    let folder = fixture.path("layout");
    write_layout(&folder, &image, &["1.0"]);
    let built = fixture.build(&format!("oci:{}", folder.display())).await;
    check_two_layers(&fixture, &built);
    let plain = fixture.write("layout.tar", &archive_of(&folder));
    let packed = fixture.write("layout.tar.gz", &gzip(&archive_of(&folder)));
    for path in [plain, packed] {
        let again = fixture.build(&format!("oci:{}:1.0", path.display())).await;
        assert_eq!(again.digest, built.digest);
    }
    assert_eq!(fixture.stored("layers").len(), 2);
    let cause = fixture.fail(&format!("oci:{}:2.0", folder.display())).await;
    assert!(cause.contains("there are: 1.0"), "{cause}");
    write_layout(&folder, &image, &["1.0", "1.1"]);
    let cause = fixture.fail(&format!("oci:{}", folder.display())).await;
    assert!(cause.contains("several images: 1.0, 1.1"), "{cause}");
}

#[tokio::test]
async fn what_docker_saved_is_read() {
    let fixture = Fixture::new();
    let image = image_of(&two_layers(), <[u8]>::to_vec, "");
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["app:1.0"],
        "Layers": ["l0/layer.tar", "l1/layer.tar"]}]);
    let folder = fixture.path("saved");
    for (name, content) in [
        ("manifest.json", &serde_json::to_vec(&manifest).unwrap()),
        ("config.json", &image.blobs[&image.config]),
        ("l0/layer.tar", &image.blobs[&image.layers[0]]),
        ("l1/layer.tar", &image.blobs[&image.layers[1]]),
    ] {
        fixture.write(&format!("saved/{name}"), content);
    }
    let path = fixture.write("saved.tar", &archive_of(&folder));
    let built = fixture.build(&format!("oci:{}:1.0", path.display())).await;
    check_two_layers(&fixture, &built);
}

#[tokio::test]
async fn a_layout_whose_content_is_not_what_it_says_is_refused() {
    let fixture = Fixture::new();
    let folder = fixture.path("layout");
    for blob in 0..3 {
        let image = image_of(&two_layers(), gzip, "+gzip");
        write_layout(&folder, &image, &["x"]);
        let digest = [image.layers[1], image.config, image.manifest][blob];
        let path = folder.join("blobs/sha256").join(digest.hex());
        let mut content = fs::read(&path).unwrap();
        content.push(b' ');
        fs::write(&path, content).unwrap();
        let cause = fixture.fail(&format!("oci:{}", folder.display())).await;
        assert!(cause.contains("not what its name says"), "{cause}");
    }
    // A layer that its configuration describes wrongly.
    let mut image = image_of(&two_layers(), gzip, "+gzip");
    let config = String::from_utf8(image.blobs[&image.config].clone()).unwrap();
    let diff = image::digest::Digest::of(&two_layers()[1]).to_string();
    let wrong = config.replace(&diff, &image::digest::Digest::of(b"x").to_string());
    let digest = image::digest::Digest::of(wrong.as_bytes());
    let manifest = String::from_utf8(image.blobs[&image.manifest].clone()).unwrap();
    let manifest = manifest.replace(&image.config.to_string(), &digest.to_string());
    image.blobs.insert(digest, wrong.into_bytes());
    image.manifest = image::digest::Digest::of(manifest.as_bytes());
    image.blobs.insert(image.manifest, manifest.into_bytes());
    write_layout(&folder, &image, &["x"]);
    let cause = fixture.fail(&format!("oci:{}", folder.display())).await;
    assert!(cause.contains("but the image says"), "{cause}");
    assert!(fixture.stored("temporary").is_empty());
}

#[tokio::test]
async fn a_folder_is_copied_with_all_that_it_has() {
    let fixture = Fixture::new();
    let folder = fixture.path("folder");
    fixture.write("folder/etc/passwd", b"root");
    fs::hard_link(folder.join("etc/passwd"), folder.join("etc/again")).unwrap();
    symlink("/etc/shadow", folder.join("etc/link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    xattr::set(folder.join("etc/passwd"), "user.note", b"x").unwrap();
    std::os::unix::fs::chown(folder.join("etc"), Some(7), Some(8)).unwrap();
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 32 << 20).unwrap();
    let source = format!("dir:{}", folder.display());
    let events = fixture.events(&source).await;
    let told = events
        .iter()
        .any(|event| matches!(event, BuildEvent::Log(line) if line.message.contains("socket")));
    assert!(told, "{events:?}");
    let image = ready(events);
    let root = &fixture.layers(&image)[0];
    assert_eq!(names(root), "etc etc/again etc/link etc/passwd sparse");
    let metadata = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(metadata("etc/again").ino(), metadata("etc/passwd").ino());
    assert_eq!((metadata("etc").uid(), metadata("etc").gid()), (7, 8));
    assert_eq!(
        metadata("etc").mtime(),
        fs::metadata(folder.join("etc")).unwrap().mtime()
    );
    assert_eq!(
        xattr::get(root.join("etc/passwd"), "user.note")
            .unwrap()
            .unwrap(),
        b"x"
    );
    assert!(metadata("sparse").blocks() < 64);
    assert_eq!(
        fs::read(root.join("sparse")).unwrap(),
        fs::read(folder.join("sparse")).unwrap()
    );
    // Unchanged: nothing is copied. Changed: another image.
    assert_eq!(steps(&fixture.events(&source).await).len(), 1);
    fixture.write("folder/etc/passwd", b"toor");
    assert_ne!(fixture.build(&source).await.digest, image.digest);
}

#[tokio::test]
async fn the_store_does_not_copy_itself() {
    let fixture = Fixture::new();
    fixture.write("file", b"x");
    let image = fixture
        .build(&format!("dir:{}", fixture.directory.path().display()))
        .await;
    assert_eq!(names(&fixture.layers(&image)[0]), "file store");
}

#[tokio::test]
async fn wrong_sources_say_what_to_do() {
    let fixture = Fixture::new();
    for source in [
        "tar:/does/not/exist",
        "dir:/does/not/exist",
        "oci:/does/not/exist",
        "tar:/etc",
    ] {
        let cause = fixture.fail(source).await;
        assert!(cause.contains("/"), "{cause}");
    }
    let text = fixture.write(
        "text",
        b"this is no archive at all, only text"
            .repeat(20)
            .as_slice(),
    );
    let cause = fixture.fail(&format!("tar:{}", text.display())).await;
    assert!(cause.contains("damaged at byte 0"), "{cause}");
    assert!(fixture.stored("layers").is_empty() && fixture.stored("temporary").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_builds_of_one_source_do_the_work_once() {
    let fixture = Fixture::new();
    let content = (0..40).fold(Archive::new(), |archive, at| {
        archive.file(&format!("f{at}"), &noise(200_000, at))
    });
    let path = fixture.write("root.tar.gz", &gzip(&content.finish()));
    let source = format!("tar:{}", path.display());
    let streams: Vec<_> = (0..8)
        .map(|_| {
            fixture
                .store
                .build(source.parse().unwrap(), Requester::Administrator)
                .collect::<Vec<_>>()
        })
        .collect();
    let all = join_all(streams).await;
    for events in all {
        // One build's step reaches everybody; a second build would be `Ready` at once.
        assert_eq!(steps(&events).len(), 1, "{events:?}");
        let rising = events.iter().filter_map(|event| match event {
            BuildEvent::Progress { done } => Some(*done),
            _ => None,
        });
        assert!(rising.is_sorted());
        ready(events);
    }
    assert_eq!(fixture.stored("layers").len(), 1);
}

#[tokio::test]
async fn a_dropped_build_leaves_nothing() {
    let fixture = Fixture::new();
    let content = Archive::new().file("f", &noise(3 << 20, 1)).finish();
    let path = fixture.write("root.tar.gz", &gzip(&content));
    let source = format!("tar:{}", path.display());
    for events in 0..3 {
        let stream = fixture
            .store
            .rebuild(source.parse().unwrap(), Requester::Administrator);
        stream.take(events).collect::<Vec<_>>().await;
        // The next build is not disturbed by the last one's end.
        fixture.build(&source).await;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !fixture.stored("temporary").is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            fixture.stored("temporary")
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fixture.stored("layers").len(), 1);
}

#[tokio::test]
async fn removing_frees_what_nobody_shares_or_holds() {
    let fixture = Fixture::new();
    let layers = two_layers();
    write_layout(
        &fixture.path("both"),
        &image_of(&layers, gzip, "+gzip"),
        &["x"],
    );
    write_layout(
        &fixture.path("one"),
        &image_of(&layers[..1], gzip, "+gzip"),
        &["x"],
    );
    let both = fixture
        .build(&format!("oci:{}", fixture.path("both").display()))
        .await;
    let one = fixture
        .build(&format!("oci:{}", fixture.path("one").display()))
        .await;
    assert_eq!(fixture.stored("layers").len(), 2);
    assert_eq!(fixture.store.list().len(), 2);

    let held = fixture.store.root(&both.digest).unwrap();
    assert_eq!(fixture.store.remove(&both.digest).unwrap().0, 0);
    assert!(matches!(
        fixture.store.remove(&both.digest),
        Err(ImageError::Unknown(_))
    ));
    assert!(held.layers.iter().all(|layer| layer.is_dir()));
    assert_eq!(fixture.store.collect_garbage(false).unwrap().layers, 0);
    // A held image can still be found, by a node that comes back; and its last hold frees it.
    let again = fixture.store.root(&both.digest).unwrap();
    drop(held);
    assert_eq!(fixture.stored("layers").len(), 2);
    drop(again);
    assert_eq!(fixture.stored("layers").len(), 1);
    assert!(fixture.store.root(&both.digest).is_err());

    assert_eq!(fixture.store.remove(&one.digest).unwrap().0, 2);
    assert!(fixture.stored("layers").is_empty() && fixture.stored("images").is_empty());
    // What was removed is built again, not found.
    fixture
        .build(&format!("oci:{}", fixture.path("one").display()))
        .await;
    assert_eq!(fixture.stored("layers").len(), 1);
}

#[tokio::test]
async fn a_store_that_is_opened_again_knows_its_images_and_drops_the_rest() {
    let fixture = Fixture::with(|options| options.unfinished_kept = Duration::ZERO);
    let directory = fixture.path("store");
    let path = fixture.write("root.tar", &Archive::new().file("a", b"1").finish());
    let image = fixture.build(&format!("tar:{}", path.display())).await;
    let removed_path = fixture.write("other.tar", &Archive::new().file("b", b"12").finish());
    let removed = fixture
        .build(&format!("tar:{}", removed_path.display()))
        .await;
    let pin = fixture.store.root(&removed.digest).unwrap();
    fixture.store.remove(&removed.digest).unwrap();
    std::mem::forget(pin);
    let same = ImageStore::open(support::options(&directory));
    assert!(matches!(same, Err(ImageError::InUse(_))));

    // As after a crash: half-made things, and a sandbox that still runs from a removed image. The
    // forgotten pin keeps the first store's lock, so the second store gets a copy.
    let copy = fixture.path("copy");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&directory, &copy])
        .status();
    assert!(status.unwrap().success());
    fs::create_dir_all(copy.join("temporary/1-1/root")).unwrap();
    fs::write(copy.join("temporary/1-1/root/half"), "").unwrap();
    fs::create_dir_all(copy.join(format!("layers/{}/root", "0".repeat(64)))).unwrap();
    fs::write(
        copy.join(format!("blobs/partial/{}", "1".repeat(64))),
        "half",
    )
    .unwrap();
    let mut options = support::options(&copy);
    options.unfinished_kept = Duration::ZERO;
    let store = ImageStore::open(options).unwrap();
    assert_eq!(store.list()[0].digest, image.digest);
    assert!(stored(&copy, "temporary").is_empty());
    let adopted = store.root(&removed.digest).unwrap();
    let planned = store.collect_garbage(true).unwrap();
    assert_eq!(
        (planned.layers, planned.downloads, planned.images),
        (1, 1, 0)
    );
    assert_eq!(stored(&copy, "layers").len(), 3);
    assert_eq!(store.collect_garbage(false).unwrap(), planned);
    assert_eq!(stored(&copy, "layers").len(), 2);
    assert!(adopted.layers[0].join("b").exists());
    drop(adopted);
    assert_eq!(stored(&copy, "layers").len(), 1);
}

#[tokio::test]
async fn opening_is_quick() {
    let fixture = Fixture::new();
    for at in 0..20u8 {
        let path = fixture.write("root.tar", &Archive::new().file("a", &[at]).finish());
        fixture.build(&format!("tar:{}", path.display())).await;
    }
    let directory: PathBuf = fixture.path("store");
    let Fixture {
        directory: _keep,
        store,
    } = fixture;
    drop(store);
    let started = std::time::Instant::now();
    let store = ImageStore::open(support::options(&directory)).unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(100),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(store.list().len(), 20);
}

#[tokio::test]
async fn what_was_removed_is_gone_once_it_settled() {
    let fixture = Fixture::new();
    let files = (0..500).fold(Archive::new(), |archive, number| {
        archive.file(&format!("file-{number}"), b"content")
    });
    let path = fixture.write("root.tar", &files.finish());
    let build = fixture.build(&format!("tar:{}", path.display())).await;
    fixture.store.remove(&build.digest).unwrap();
    fixture.store.settle();
    assert!(fixture.stored("trash").is_empty());
    assert!(fixture.stored("layers").is_empty());
}

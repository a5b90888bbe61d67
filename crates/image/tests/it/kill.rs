//! A program that is killed in the middle of a build leaves no half-made layer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use api::template::Requester;
use futures::StreamExt;
use image::ImageStore;
use std::{
    process::{Command, Stdio},
    time::Duration,
};
use support::{Archive, gzip, noise, options, ready, stored};

const STORE: &str = "ATOLL_TEST_STORE";

/// Run as a process of its own by the test below; does nothing otherwise.
#[tokio::test]
async fn builder_process() {
    let Ok(directory) = std::env::var(STORE) else {
        return;
    };
    let directory = std::path::Path::new(&directory);
    let store = ImageStore::open(options(&directory.join("store"))).unwrap();
    let source = format!("tar:{}", directory.join("root.tar.gz").display());
    ready(
        store
            .build(source.parse().unwrap(), Requester::Administrator)
            .collect()
            .await,
    );
}

#[tokio::test]
async fn a_killed_build_leaves_only_garbage() {
    let directory = tempfile::tempdir().unwrap();
    let archive = (0..200).fold(Archive::new(), |archive, at| {
        archive.file(&format!("d{}/f{at}", at % 7), &noise(20_000, at))
    });
    let content = archive.finish();
    std::fs::write(directory.path().join("root.tar.gz"), gzip(&content)).unwrap();
    let store = directory.path().join("store");
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::builder_process"])
            .env(STORE, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(round * 7)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let opened = ImageStore::open(options(&store)).unwrap();
        assert!(stored(&store, "temporary").is_empty());
        for layer in stored(&store, "layers") {
            let root = store.join("layers").join(layer).join("root");
            assert_eq!(
                support::look(&root).len(),
                207,
                "a layer that has a name is whole"
            );
        }
        for image in opened.list() {
            assert_eq!(opened.root(&image.digest).unwrap().layers.len(), 1);
        }
    }
    let opened = ImageStore::open(options(&store)).unwrap();
    let source = format!("tar:{}", directory.path().join("root.tar.gz").display());
    ready(
        opened
            .build(source.parse().unwrap(), Requester::Administrator)
            .collect()
            .await,
    );
}

//! Debian through mmdebstrap, from a real mirror.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use api::template::Requester;
use futures::StreamExt;
use std::{fs, path::Path, time::Duration};
use support::{Fixture, ready, steps};

/// Whether some process has `needle` in its arguments.
fn runs(needle: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(needle))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_is_installed_once_and_a_dropped_build_leaves_nothing() {
    let fixture = Fixture::new();
    let source = "debian:bookworm";
    // Given up while it downloads: the packages are kept, all else goes.
    let mut events = fixture
        .store
        .build(source.parse().unwrap(), Requester::Administrator);
    while let Some(event) = events.next().await {
        let step = steps(std::slice::from_ref(&event)).concat();
        if step.starts_with("installing") {
            break;
        }
    }
    drop(events);
    let work = fixture.path("store").join("temporary");
    let needle = work.to_str().unwrap().to_owned();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while runs(&needle) || !fixture.stored("temporary").is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "something is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&needle)
    );
    let packages = fixture.stored("packages");
    assert!(
        packages.iter().any(|name| name.starts_with("libc6_")),
        "{packages:?}"
    );
    assert!(fixture.stored("layers").is_empty());

    let events = fixture.events(source).await;
    let steps = steps(&events);
    for expected in [
        "reading package lists",
        "installing essential packages",
        "creating layer",
    ] {
        assert!(steps.iter().any(|step| step == expected), "{steps:?}");
    }
    let image = ready(events);
    let root = fixture.layers(&image)[0].clone();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert!(read("etc/os-release").contains("bookworm"));
    assert!(root.join("bin/bash").exists() && root.join("usr/bin/apt-get").exists());
    assert_eq!(read("etc/resolv.conf"), "");
    assert!(read("etc/apt/sources.list").contains("bookworm"));
    assert!(!root.join("var/cache/apt/archives/libc6").exists());
    let lists: Vec<_> = fs::read_dir(root.join("var/lib/apt/lists"))
        .unwrap()
        .flatten()
        .collect();
    assert!(
        lists
            .iter()
            .all(|entry| entry.metadata().unwrap().len() == 0 || entry.path().is_dir())
    );
    assert!(
        fs::read_dir(root.join("etc/apt/sources.list.d"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(Path::new(&root).join("usr/bin/passwd").exists());

    let again = fixture.events(source).await;
    assert_eq!(again.len(), 1, "built once");
}

#[tokio::test]
async fn a_suite_that_does_not_exist_is_told() {
    let fixture = Fixture::new();
    let cause = fixture.fail("debian:nosuchsuite").await;
    assert!(cause.contains("mmdebstrap failed"), "{cause}");
    assert!(fixture.stored("temporary").is_empty());
}

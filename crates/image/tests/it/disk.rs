//! Images as disks: mounted by the kernel, and compared with what their layers show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use futures::future::join_all;
use image::ImageError;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};
use support::{Archive, Fixture, image_of, look, names};
use tar::EntryType;

/// A disk's content, mounted until this is dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(disk: &Path) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .args([disk, place.path()])
            .status();
        assert!(mount.unwrap().success());
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn tarball() -> Vec<u8> {
    Archive::new()
        .directory("bin")
        .entry(EntryType::Regular, "bin/sudo", "", 0o4755, b"program")
        .hard_link("bin/also", "bin/sudo")
        .symlink("bin/link", "sudo")
        .records(&[("SCHILY.xattr.user.label", b"value")])
        .file("labelled", b"1")
        .finish()
}

#[tokio::test]
async fn a_disk_keeps_what_files_are() {
    let fixture = Fixture::new();
    let path = fixture.write("root.tar", &tarball());
    let image = fixture.build(&format!("tar:{}", path.display())).await;
    let layer = fixture.layers(&image).remove(0);
    let disk = fixture.store.disk(&image.digest).await.unwrap();
    let mounted = Mounted::new(&disk);
    let root = mounted.0.path();
    assert_eq!(look(root), look(&layer));
    let sudo = fs::metadata(root.join("bin/sudo")).unwrap();
    assert_eq!((sudo.nlink(), sudo.mtime()), (2, 1_000_000_000));
    assert_eq!(
        sudo.ino(),
        fs::metadata(root.join("bin/also")).unwrap().ino()
    );
    let label = xattr::get(root.join("labelled"), "user.label").unwrap();
    assert_eq!(label.as_deref(), Some(&b"value"[..]));
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o777, 0o400);
}

/// An image of two layers, of which the upper one takes a file of the lower away.
async fn layered(fixture: &Fixture) -> api::node::BuiltImage {
    let lower = Archive::new()
        .directory("etc")
        .file("etc/one", b"1")
        .file("etc/two", b"2");
    let upper = Archive::new()
        .directory("etc")
        .file("etc/.wh.one", b"")
        .file("etc/three", b"3");
    let image = image_of(&[lower.finish(), upper.finish()], support::gzip, "+gzip");
    for (digest, content) in &image.blobs {
        fixture.write(&format!("layout/blobs/sha256/{}", digest.hex()), content);
    }
    let size = image.blobs[&image.manifest].len();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": image.manifest, "size": size}]});
    fixture.write("layout/index.json", &serde_json::to_vec(&index).unwrap());
    fixture.write("layout/oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
    let path = fixture.path("layout");
    fixture.build(&format!("oci:{}", path.display())).await
}

#[tokio::test]
async fn layers_become_one_disk_that_is_made_once() {
    let fixture = Fixture::new();
    let image = layered(&fixture).await;
    assert_eq!(fixture.layers(&image).len(), 2);
    let disks = join_all((0..4).map(|_| fixture.store.disk(&image.digest))).await;
    let disks: Vec<PathBuf> = disks.into_iter().map(Result::unwrap).collect();
    assert!(disks.iter().all(|disk| *disk == disks[0]));
    let made = fs::metadata(&disks[0]).unwrap().ino();
    let mounted = Mounted::new(&disks[0]);
    assert_eq!(names(mounted.0.path()), "etc etc/three etc/two");
    fixture.store.disk(&image.digest).await.unwrap();
    assert_eq!(fs::metadata(&disks[0]).unwrap().ino(), made);
    assert!(fixture.stored("temporary").is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(fixture.directory.path().to_str().unwrap()));
}

#[tokio::test]
async fn a_disk_goes_with_its_image() {
    let fixture = Fixture::new();
    let image = layered(&fixture).await;
    let disk = fixture.store.disk(&image.digest).await.unwrap();
    let size = fs::metadata(&disk).unwrap().blocks() * 512;
    let held = fixture.store.root(&image.digest).unwrap();
    fixture.store.remove(&image.digest).unwrap();
    assert!(disk.exists(), "it is held");
    drop(held);
    assert!(!disk.exists());
    let gone = fixture.store.disk(&image.digest).await;
    assert!(matches!(gone, Err(ImageError::Unknown(_))));

    // One that lost its image in a crash.
    fixture.write(&format!("store/disks/{}", "0".repeat(64)), &[1; 4096]);
    let image = layered(&fixture).await;
    fixture.store.disk(&image.digest).await.unwrap();
    let counted = fixture.store.collect_garbage(true).unwrap();
    assert_eq!((counted.disks, counted.bytes.0), (1, 4096));
    assert_eq!(fixture.store.collect_garbage(false).unwrap(), counted);
    assert_eq!(fixture.stored("disks").len(), 1);
    let freed = fixture.store.remove(&image.digest).unwrap();
    assert!(freed.0 >= size, "{freed:?} {size}");
    assert!(fixture.stored("disks").is_empty());
}

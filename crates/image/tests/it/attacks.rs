//! Archives that try to leave their directory, or to take more than they may.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use image::{
    Limits,
    archive::{ArchiveError, compression::Decompressed},
    unpack::{Outcome, UnpackError, unpack},
};
use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use support::{Archive, Node, gzip, look, names};
use tar::EntryType;

/// A layer's directory beside something that nobody may touch.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn unpack(&self, archive: Archive) -> Result<Outcome, UnpackError> {
        self.unpack_over(archive, &[])
    }

    fn unpack_over(&self, archive: Archive, lowers: &[PathBuf]) -> Result<Outcome, UnpackError> {
        let result = unpack(
            &archive.finish()[..],
            &self.root(),
            lowers,
            Limits::default(),
        );
        assert_eq!(names(&self.directory.path().join("outside")), "secret");
        let secret = self.directory.path().join("outside/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
        result
    }
}

fn refused(result: Result<Outcome, UnpackError>, expected: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_path_that_goes_up_is_refused() {
    for path in [
        "../outside/new",
        "a/../../outside/new",
        "a/..",
        "..",
        "/../outside/new",
    ] {
        refused(Place::new().unpack(Archive::new().file(path, b"x")), "`..`");
    }
}

#[test]
fn an_absolute_path_is_below_the_root() {
    let place = Place::new();
    let outside = place.directory.path().join("outside/new");
    place
        .unpack(Archive::new().file(outside.to_str().unwrap(), b"x"))
        .unwrap();
    assert!(!outside.exists());
    assert!(
        place
            .root()
            .join(outside.strip_prefix("/").unwrap())
            .exists()
    );
}

#[test]
fn a_file_through_a_symlink_stays_below_the_root() {
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    let archive = Archive::new()
        .symlink("up", "../outside")
        .file("up/new", b"1")
        .symlink("absolute", outside.to_str().unwrap())
        .file("absolute/secret", b"overwritten")
        .symlink("chain", "up/../../../../../..")
        .file("chain/etc/new", b"2");
    place.unpack(archive).unwrap();
    assert_eq!(fs::read(place.root().join("outside/new")).unwrap(), b"1");
    let inside = place.root().join(outside.strip_prefix("/").unwrap());
    assert_eq!(fs::read(inside.join("secret")).unwrap(), b"overwritten");
    assert_eq!(fs::read(place.root().join("etc/new")).unwrap(), b"2");
}

#[test]
fn a_file_over_a_symlink_replaces_the_symlink() {
    let place = Place::new();
    let secret = place.directory.path().join("outside/secret");
    let archive = Archive::new()
        .symlink("link", secret.to_str().unwrap())
        .file("link", b"mine")
        .symlink("directory", "../outside")
        .directory("directory")
        .symlink("relative", "../outside/secret")
        .entry(EntryType::Fifo, "relative", "", 0o600, b"");
    place.unpack(archive).unwrap();
    assert_eq!(fs::read(place.root().join("link")).unwrap(), b"mine");
    assert!(
        place
            .root()
            .join("directory")
            .symlink_metadata()
            .unwrap()
            .is_dir()
    );
}

#[test]
fn symlinked_directories_within_a_layer_work() {
    let place = Place::new();
    let archive = Archive::new()
        .directory("usr")
        .directory("usr/bin")
        .symlink("bin", "usr/bin")
        .symlink("sbin", "/bin")
        .file("bin/one", b"1")
        .file("sbin/two", b"2")
        .hard_link("bin/three", "sbin/two");
    place.unpack(archive).unwrap();
    assert_eq!(
        names(&place.root()),
        "bin sbin usr usr/bin usr/bin/one usr/bin/three usr/bin/two"
    );
}

#[test]
fn a_symlink_loop_is_refused() {
    let archive = Archive::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", b"");
    refused(Place::new().unpack(archive), "symbolic links");
}

#[test]
fn a_hard_link_never_leads_out() {
    let place = Place::new();
    let secret = place.directory.path().join("outside/secret");
    refused(
        place.unpack(Archive::new().hard_link("x", "../outside/secret")),
        "`..`",
    );
    refused(
        place.unpack(Archive::new().hard_link("x", secret.to_str().unwrap())),
        "hard link",
    );
    let through = Archive::new()
        .symlink("up", "../outside")
        .hard_link("x", "up/secret");
    refused(place.unpack(through), "hard link");
    // A link to a symbolic link is one to the link itself.
    let place = Place::new();
    let archive = Archive::new()
        .symlink("link", secret.to_str().unwrap())
        .hard_link("again", "link");
    place.unpack(archive).unwrap();
    assert!(
        place
            .root()
            .join("again")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    for target in ["", "/", ".", "missing", "missing/file"] {
        refused(
            Place::new().unpack(Archive::new().hard_link("x", target)),
            "hard link",
        );
    }
    let directory = Archive::new().directory("d").hard_link("x", "d");
    refused(Place::new().unpack(directory), "hard link");
    // The name is cleared before it is linked: then there is nothing to link to.
    let own = Archive::new().file("d/f", b"1").hard_link("d", "d/f");
    refused(Place::new().unpack(own), "hard link");
    let same = Archive::new().file("f", b"1").hard_link("f", "f");
    Place::new().unpack(same).unwrap();
}

#[test]
fn devices_are_left_out_and_told() {
    let place = Place::new();
    let archive = Archive::new()
        .entry(EntryType::Char, "dev/mem", "", 0o666, b"")
        .entry(EntryType::Block, "dev/sda", "", 0o666, b"")
        .file("dev/x", b"");
    let outcome = place.unpack(archive).unwrap();
    assert_eq!(outcome.skipped.count, 2);
    assert_eq!(outcome.skipped.examples, ["dev/mem", "dev/sda"]);
    assert_eq!(names(&place.root()), "dev dev/x");
}

#[test]
fn whiteouts_name_only_their_own_directory() {
    let lower = Place::new();
    lower.unpack(Archive::new().file("etc/hosts", b"")).unwrap();
    let place = Place::new();
    let archive = Archive::new()
        .entry(EntryType::Regular, ".wh...", "", 0, b"")
        .entry(EntryType::Regular, ".wh..", "", 0, b"")
        .entry(EntryType::Regular, ".wh.", "", 0, b"")
        .entry(EntryType::Regular, "etc/.wh.hosts", "", 0, b"")
        .symlink("up", "../outside")
        .entry(EntryType::Regular, "up/.wh.secret", "", 0, b"");
    let outcome = place.unpack_over(archive, &[lower.root()]).unwrap();
    assert_eq!(outcome.skipped.count, 3);
    let nodes = look(&place.root());
    assert_eq!(nodes[Path::new("etc/hosts")], Node::Whiteout);
    // There is nothing below that it could hide.
    assert!(!nodes.contains_key(Path::new("outside/secret")));
    refused(
        place.unpack_over(Archive::new().file("../.wh.outside", b""), &[lower.root()]),
        "`..`",
    );
}

#[test]
fn whiteouts_and_entries_of_one_layer_meet_in_any_order() {
    let lower = Place::new();
    lower
        .unpack(Archive::new().file("d/low", b"").file("f", b""))
        .unwrap();
    let check = |archive: Archive| {
        let place = Place::new();
        place.unpack_over(archive, &[lower.root()]).unwrap();
        look(&place.root())
    };
    let opaque = Node::Directory {
        mode: 0o755,
        opaque: true,
    };
    let before = check(
        Archive::new()
            .file(".wh.d", b"")
            .directory("d")
            .file("d/new", b""),
    );
    assert_eq!(before[Path::new("d")], opaque);
    let after = check(
        Archive::new()
            .directory("d")
            .file("d/new", b"")
            .file(".wh.d", b""),
    );
    assert_eq!(after[Path::new("d")], opaque);
    assert!(after.contains_key(Path::new("d/new")));
    let marked = check(Archive::new().directory("d").file("d/.wh..wh..opq", b""));
    assert_eq!(marked[Path::new("d")], opaque);
    let implied = check(Archive::new().file(".wh.d", b"").file("d/new", b""));
    assert_eq!(implied[Path::new("d")], opaque);
    let file = check(Archive::new().file("f", b"new").file(".wh.f", b""));
    assert!(matches!(&file[Path::new("f")], Node::File { content, .. } if content == b"new"));
}

#[test]
fn what_hides_a_link_of_a_lower_layer_ends_what_went_through_it() {
    let lower = Place::new();
    lower.unpack(Archive::new().symlink("d", "..")).unwrap();
    let check = |archive: Archive, expected: &str| {
        let place = Place::new();
        place.unpack_over(archive, &[lower.root()]).unwrap();
        assert_eq!(names(&place.root()), expected);
    };
    // Each has a first entry that goes through the link and hides it, and a second that finds it
    // hidden.
    let opaque = Archive::new().file("d/.wh..wh..opq", b"");
    check(opaque.file("d/x", b""), "d d/x");
    let gone = Archive::new().file("d/.wh.d", b"");
    check(gone.file("d/x", b""), "d d/x");
    let replaced = Archive::new().directory("d/d");
    check(replaced.directory("d/x"), "d d/x");
}

#[test]
fn directories_that_a_layer_leaves_out_are_those_below() {
    let lower = Place::new();
    let archive = Archive::new()
        .entry(EntryType::Directory, "tmp", "", 0o1777, b"")
        .directory("usr")
        .directory("usr/bin")
        .symlink("bin", "usr/bin");
    lower.unpack(archive).unwrap();
    let place = Place::new();
    let archive = Archive::new().file("tmp/x", b"").file("bin/y", b"");
    let outcome = place.unpack_over(archive, &[lower.root()]).unwrap();
    assert!(outcome.depends_on_lowers);
    let nodes = look(&place.root());
    assert_eq!(
        nodes[Path::new("tmp")],
        Node::Directory {
            mode: 0o1777,
            opaque: false
        }
    );
    assert!(nodes.contains_key(Path::new("usr/bin/y")) && !nodes.contains_key(Path::new("bin")));
}

#[test]
fn a_file_becomes_a_directory_and_back() {
    let place = Place::new();
    let archive = Archive::new()
        .file("a", b"1")
        .directory("a")
        .file("a/b/c", b"2")
        .file("twice", b"long content")
        .file("twice", b"x")
        .file("a", b"3")
        .directory("d")
        .entry(EntryType::Directory, "d", "", 0o700, b"");
    place.unpack(archive).unwrap();
    let nodes = look(&place.root());
    assert_eq!(names(&place.root()), "a d twice");
    assert_eq!(
        nodes[Path::new("twice")],
        Node::File {
            content: b"x".into(),
            mode: 0o644
        }
    );
    assert_eq!(
        nodes[Path::new("d")],
        Node::Directory {
            mode: 0o700,
            opaque: false
        }
    );
    refused(
        Place::new().unpack(Archive::new().file("a", b"").file("a/b", b"")),
        "not a directory",
    );
}

#[test]
fn limits_hold() {
    let limits = Limits {
        entries: 10,
        bytes: 1 << 20,
        depth: 8,
        ..Limits::default()
    };
    let check = |archive: Archive, expected: &str| {
        let place = Place::new();
        let compressed = gzip(&archive.finish());
        let stream = Decompressed::new(&compressed[..]).unwrap();
        refused(unpack(stream, &place.root(), &[], limits), expected);
    };
    let many = (0..11).fold(Archive::new(), |archive, at| {
        archive.file(&format!("f{at}"), b"")
    });
    check(many, "more than 10 entries");
    check(
        Archive::new().file("bomb", &vec![0; 2 << 20]),
        "more than 1048576 bytes",
    );
    check(
        Archive::new().file("a/b/c/d/e/f/g/h/i/j", b""),
        "directories within each other",
    );
    // A sparse file says that it is large with no data at all.
    let sparse = Archive::new()
        .records(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", b"1099511627776"),
            ("GNU.sparse.map", b"0,0"),
        ])
        .file("sparse", b"");
    check(sparse, "more than 1048576 bytes");
    // Depth through symbolic links counts as well.
    let deep = Archive::new()
        .file("a/b/c/d/x", b"")
        .symlink("s", "a/b/c/d")
        .file("s/e/f/g/h/i/j", b"");
    check(deep, "directories within each other");
}

#[test]
fn what_is_allowed_is_kept() {
    let place = Place::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Archive::new()
        .records(&[
            ("SCHILY.xattr.user.note", b"kept\0too"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("mtime", b"1234567890.5"),
            ("uid", b"1234"),
            ("gid", b"2345"),
        ])
        .entry(EntryType::Regular, "file", "", 0o4755, b"data");
    let outcome = place.unpack(archive).unwrap();
    assert_eq!(outcome.dropped_attributes, 2);
    let path = place.root().join("file");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o4755);
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345));
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_234_567_890, 500_000_000)
    );
    assert_eq!(
        xattr::get(&path, "user.note").unwrap().unwrap(),
        b"kept\0too"
    );
    assert_eq!(
        xattr::get(&path, "security.capability").unwrap().unwrap(),
        capability
    );
    assert_eq!(xattr::get(&path, "trusted.overlay.opaque").unwrap(), None);
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let mut content = vec![0; 8 << 20];
    content[5 << 20] = 1;
    let archive = Archive::new().file("zeros", &content).records(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"8388608"),
        ("GNU.sparse.name", b"sparse"),
    ]);
    let mut map = b"1\n5242880\n1\n".to_vec();
    map.resize(512, 0);
    map.push(1);
    place
        .unpack(archive.file("GNUSparseFile.0/sparse", &map))
        .unwrap();
    for name in ["zeros", "sparse"] {
        let path = place.root().join(name);
        assert_eq!(fs::read(&path).unwrap(), content, "{name}");
        assert!(fs::metadata(&path).unwrap().blocks() < 64, "{name}");
    }
}

#[test]
fn a_damaged_archive_is_an_error_wherever_it_is_damaged() {
    let archive = Archive::new()
        .file("a", &[7; 3000])
        .symlink("b", "a")
        .finish();
    for at in (0..archive.len()).step_by(97) {
        let place = Place::new();
        let mut damaged = archive.clone();
        damaged[at] ^= 0xff;
        _ = unpack(&damaged[..], &place.root(), &[], Limits::default());
        _ = unpack(&archive[..at], &place.root(), &[], Limits::default());
    }
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let error = unpack(Broken, &Place::new().root(), &[], Limits::default()).unwrap_err();
    assert!(matches!(error, UnpackError::Archive(ArchiveError::Read(_))));
}

//! With the distribution's real kernel, where one can be had.

use super::*;
use std::sync::OnceLock;

/// One download for all tests.
fn found() -> Option<&'static (tempfile::TempDir, Kernel)> {
    static FOUND: OnceLock<Option<(tempfile::TempDir, Kernel)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let directory = tempfile::tempdir_in("/var/tmp").ok()?;
        match Kernel::find(directory.path(), None, |_| {}) {
            Ok(kernel) => Some((directory, kernel)),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    });
    found.as_ref()
}

#[test]
fn the_packages_kernel_is_unpacked_once() {
    let Some((directory, kernel)) = found() else {
        return;
    };
    assert!(kernel.release.ends_with("cloud-amd64"), "{kernel:?}");
    let image = fs::read(&kernel.image).unwrap();
    assert!(image.starts_with(elf::MAGIC));
    assert_eq!(payload::release(&image).as_ref(), Some(&kernel.release));
    assert!(
        kernel
            .notes
            .iter()
            .any(|note| note.contains("virtio_blk.ko")),
        "{kernel:?}"
    );
    let again = Kernel::find(directory.path(), None, |what| panic!("{what}")).unwrap();
    assert_eq!(&again, kernel);
    // Nothing of the package is left beside it.
    let left = fs::read_dir(directory.path().join("kernel"))
        .unwrap()
        .count();
    assert_eq!(left, 1);
}

#[test]
fn a_kernel_that_was_named_is_used() {
    let Some((_, kernel)) = found() else {
        return;
    };
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let named = Kernel::find(directory.path(), Some(&kernel.image), |_| {}).unwrap();
    assert_eq!(named.release, kernel.release);
    assert!(
        named
            .notes
            .first()
            .unwrap()
            .contains(kernel.image.to_str().unwrap())
    );
}

#[test]
fn the_check_says_which_and_why() {
    let Some((directory, kernel)) = found() else {
        return;
    };
    let found = check(directory.path(), None);
    assert!(found.detail.contains(&kernel.release), "{found:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let ahead = check(elsewhere.path(), None);
    assert!(ahead.detail.contains("will be downloaded"), "{ahead:?}");
    let named = check(elsewhere.path(), Some(&kernel.image));
    assert!(named.detail.contains("not known"), "{named:?}");
    let wrong = check(elsewhere.path(), Some(Path::new("/etc/passwd")));
    assert!(wrong.detail.contains("no Linux kernel"), "{wrong:?}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn nonsense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinuz");
    for content in [&b""[..], b"\x7fELF", &[0; 4096], b"\x1f\x8b"] {
        fs::write(&path, content).unwrap();
        let error = Kernel::find(directory.path(), Some(&path), |_| {}).unwrap_err();
        assert!(matches!(error, DriverError::Unsupported { .. }), "{error}");
    }
}

#[test]
fn the_archive_is_what_cpio_reads() {
    let modules = [("a.ko".to_owned(), b"content".to_vec())];
    let archive = initramfs::write(b"program", "a.ko\n", &modules);
    assert!(archive.starts_with(b"070701") && archive.len().is_multiple_of(4));
    let text = String::from_utf8_lossy(&archive);
    for name in [
        "init\0",
        "modules/order\0",
        "modules/a.ko\0",
        "TRAILER!!!\0",
    ] {
        assert!(text.contains(name), "{name}");
    }
    assert!(text.contains("\x00program\x00"));
}

//! With the distribution's real kernel, where one can be had.

use super::*;

/// One test, as the package is downloaded and unpacked for it.
#[test]
fn the_packages_kernel_is_found() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let kernel = match Kernel::find(directory.path(), None, |_| {}) {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    it_is_unpacked_once(directory.path(), &kernel);
    it_is_used_if_it_is_named(&kernel);
    the_check_says_which_and_why(directory.path(), &kernel);
}

fn it_is_unpacked_once(directory: &Path, kernel: &Kernel) {
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
    let again = Kernel::find(directory, None, |what| panic!("{what}")).unwrap();
    assert_eq!(&again, kernel);
    // Nothing of the package is left beside it.
    let left = fs::read_dir(directory.join("kernel")).unwrap().count();
    assert_eq!(left, 1);
}

fn it_is_used_if_it_is_named(kernel: &Kernel) {
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

fn the_check_says_which_and_why(directory: &Path, kernel: &Kernel) {
    let found = check(directory, None);
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

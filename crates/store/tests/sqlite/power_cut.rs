//! What is left after the machine lost its power: a file system of its own is cut off from its disk,
//! so that all that the kernel had not written is gone (ext4's own means of testing this).

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use store::{Operation, SqliteStore, Store, Transaction};
use tempfile::TempDir;

/// `EXT4_IOC_SHUTDOWN`, in `fs/ext4/ext4.h` of Linux.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Nothing more is written, not even the file system's own log.
const AT_ONCE: u32 = 2;

/// A disk of a few megabytes.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let disk = Self { folder };
        std::fs::create_dir(disk.root()).unwrap();
        disk.mount();
        disk
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn mount(&self) {
        let image = self.folder.path().join("image");
        let command = &mut Command::new("mount");
        run(command.arg("-o").arg("loop").arg(image).arg(self.root()));
    }

    async fn open(&self) -> SqliteStore {
        let path = self.root().join("store.sqlite");
        SqliteStore::open(path).await.unwrap()
    }

    /// The power goes, and comes back.
    fn cut(&self, store: SqliteStore) {
        shut_down(&self.root());
        drop(store);
        self.unmount();
        self.mount();
    }

    /// The store's threads end a moment after it was dropped, and have its files open until then.
    fn unmount(&self) {
        let begun = std::time::Instant::now();
        loop {
            let output = Command::new("umount").arg(self.root()).output().unwrap();
            if output.status.success() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{output:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // If a check failed the store may still be open: the mount goes when that is closed.
        let unmounted = Command::new("umount").arg("-l").arg(self.root()).output();
        drop(unmounted);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn shut_down(root: &Path) {
    let root = File::open(root).unwrap();
    // SAFETY: the request reads the number that it is given, and the descriptor is open.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &AT_ONCE) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn put(key: &str) -> Transaction {
    Transaction::always([Operation::put(key, "1")])
}

async fn there(store: &SqliteStore, key: &str) -> bool {
    store.get(key).await.unwrap().is_some()
}

#[tokio::test]
async fn what_waited_for_the_disk_is_there_with_all_that_came_before() {
    let disk = Disk::new();
    let store = disk.open().await;
    store.transact(put("first")).await.unwrap();
    store.transact_soon(put("soon")).await.unwrap();
    store.transact(put("second")).await.unwrap();
    store.transact_soon(put("late")).await.unwrap();
    store.transact_soon(put("later")).await.unwrap();
    disk.cut(store);
    let store = disk.open().await;
    for key in ["first", "soon", "second"] {
        assert!(there(&store, key).await, "{key}");
    }
    // The disk may have had it, but never without what came before it.
    assert!(!there(&store, "later").await || there(&store, "late").await);
    store.transact(put("after")).await.unwrap();
    drop(store);
    disk.unmount();
}

#[tokio::test]
async fn what_did_not_wait_for_the_disk_is_there_a_moment_later() {
    let disk = Disk::new();
    let mut store = disk.open().await;
    // A busy disk takes longer: whatever it takes is less than the kernel waits by itself.
    for seconds in [1, 2, 4, 8] {
        let key = format!("after-{seconds}");
        store.transact_soon(put(&key)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        disk.cut(store);
        store = disk.open().await;
        if there(&store, &key).await {
            drop(store);
            disk.unmount();
            return;
        }
    }
    panic!("it does not reach the disk");
}

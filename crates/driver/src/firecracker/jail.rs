//! A machine's directory, and in it the one that Firecracker sees as its root.
//!
//! ```text
//! DATA/jails/firecracker/SLOT/          for this program alone
//!   machine.json  console.log  layer.img  difference
//!   root/                               belongs to the machine's user
//!     firecracker  dev/  api.socket     made by jailer and Firecracker
//!     kernel  initramfs  root.img  layer.img  memory  devices     shown
//!     pages.socket                      where pages are asked for, if they are served
//!     save/                             where snapshots are written
//! ```
//!
//! Files are shown as hard links, or where those cannot be, as bind mounts. Firecracker may write
//! in its root; so what comes from there is never trusted to be what it was, and links are not
//! followed.

use crate::{DriverError, directory, doing, sparse};
use rustix::{
    fs::{Mode, OFlags},
    mount::mount_bind,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// The most that the state of devices may hold.
const MOST_DEVICES: u64 = 64 << 20;

/// Where snapshots are written, in the root.
const SAVE: &str = "save";

/// The directory of one machine.
#[derive(Debug, Clone)]
pub(super) struct Jail {
    path: PathBuf,
    user: u32,
}

impl Jail {
    /// The writable disk's name in the directory.
    pub(super) const LAYER: &str = "layer.img";

    /// The one at a path, whether or not it is there; `user` is who owns what is inside.
    pub(super) fn at(path: PathBuf, user: u32) -> Self {
        Self { path, user }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Who owns what is inside.
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    pub(super) fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// The writable disk.
    pub(super) fn layer(&self) -> PathBuf {
        self.path.join(Self::LAYER)
    }

    /// By what the memory that was loaded differs from that of its base.
    pub(super) fn difference(&self) -> PathBuf {
        self.path.join("difference")
    }

    /// Makes it, empty. What was there is removed.
    pub(super) fn make(&self) -> Result<(), DriverError> {
        directory::remove(&self.path)?;
        let root = self.root();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(doing(format!("make {}", root.display())))
    }

    /// Lets Firecracker read a file, under the name that messages know.
    pub(super) fn show(&self, file: &Path, name: &str) -> Result<(), DriverError> {
        let target = self.root().join(name.trim_start_matches('/'));
        let show = || -> io::Result<()> {
            // Of the directories above, only this program can pass.
            let mode = fs::metadata(file)?.permissions().mode();
            if mode & 0o004 == 0 {
                fs::set_permissions(file, fs::Permissions::from_mode(mode | 0o004))?;
            }
            if fs::hard_link(file, &target).is_ok() {
                return Ok(());
            }
            // On another file system, or with as many links as it can have.
            File::create(&target)?;
            Ok(mount_bind(file, &target)?)
        };
        show().map_err(doing(format!("show {} to a machine", file.display())))
    }

    /// Lets Firecracker write the disk.
    pub(super) fn show_layer(&self, name: &str) -> Result<(), DriverError> {
        let layer = self.layer();
        let show = || -> io::Result<()> {
            chown(&layer, Some(self.user), Some(self.user))?;
            fs::hard_link(&layer, self.root().join(name.trim_start_matches('/')))
        };
        show().map_err(doing(format!("show {} to a machine", layer.display())))
    }

    /// An empty directory for a snapshot.
    pub(super) fn make_save(&self) -> Result<(), DriverError> {
        let path = self.root().join(SAVE);
        let make = || -> io::Result<()> {
            self.forget_save()?;
            fs::DirBuilder::new().mode(0o700).create(&path)?;
            std::os::unix::fs::lchown(&path, Some(self.user), Some(self.user))
        };
        make().map_err(doing(format!("make {}", path.display())))
    }

    /// Removes what of a snapshot is left.
    pub(super) fn forget_save(&self) -> io::Result<()> {
        let path = self.root().join(SAVE);
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The state of devices that was saved.
    pub(super) fn take_devices(&self, target: &Path) -> Result<File, DriverError> {
        self.open_saved("devices", |length| (1..=MOST_DEVICES).contains(&length))
            .and_then(|file| sparse::copy_to(&file, target))
            .map_err(doing("take the state of devices"))
    }

    /// The memory that was saved, `size` bytes long: whole, then with holes for zeros; or a
    /// difference, which keeps the zeros that were written.
    ///
    /// It is a copy: Firecracker still has open what it wrote.
    pub(super) fn take_memory(
        &self,
        target: &Path,
        size: u64,
        difference: bool,
    ) -> Result<File, DriverError> {
        self.open_saved("memory", |length| length == size)
            .and_then(|file| match difference {
                true => sparse::copy_to(&file, target),
                false => sparse::copy_without_zeros(&file, target),
            })
            .map_err(doing("take the memory"))
    }

    fn open_saved(&self, name: &str, fits: impl Fn(u64) -> bool) -> io::Result<File> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let save = rustix::fs::open(self.root().join(SAVE), flags, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&save, name, flags, Mode::empty())?);
        let about = file.metadata()?;
        if !about.is_file() || about.uid() != self.user || !fits(about.len()) {
            return Err(io::Error::other("it is not what was asked for"));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_shown_can_be_read_and_is_removed_with_the_jail() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "content").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let jail = Jail::at(folder.path().join("jail"), 4242);
        jail.make().unwrap();
        jail.show(&file, "/shown").unwrap();
        assert_eq!(fs::read(jail.root().join("shown")).unwrap(), b"content");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o604);
        // Another file system cannot be linked from.
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::write(other.path().join("far"), "far").unwrap();
        jail.show(&other.path().join("far"), "/far").unwrap();
        assert_eq!(fs::read(jail.root().join("far")).unwrap(), b"far");
        assert!(directory::remove(&jail.path).unwrap());
        assert!(!directory::remove(&jail.path).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"content");
        assert_eq!(fs::read(other.path().join("far")).unwrap(), b"far");
    }

    #[test]
    fn links_and_strangers_files_are_not_taken_for_a_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let jail = Jail::at(folder.path().join("jail"), 4242);
        jail.make().unwrap();
        jail.make_save().unwrap();
        let target = folder.path().join("target");
        let save = jail.root().join(SAVE);
        symlink("/etc/passwd", save.join("devices")).unwrap();
        assert!(jail.take_devices(&target).is_err());
        fs::write(save.join("memory"), [0; 4096]).unwrap();
        assert!(
            jail.take_memory(&target, 4096, false).is_err(),
            "it is root's"
        );
        chown(save.join("memory"), Some(4242), Some(4242)).unwrap();
        assert!(
            jail.take_memory(&target, 8192, false).is_err(),
            "it is too short"
        );
        assert!(!target.exists());
        let taken = jail.take_memory(&target, 4096, false).unwrap();
        assert_eq!(taken.metadata().unwrap().blocks(), 0);
        // The whole directory may be replaced, too.
        jail.forget_save().unwrap();
        symlink("/etc", &save).unwrap();
        assert!(jail.take_devices(&folder.path().join("other")).is_err());
        jail.forget_save().unwrap();
        assert!(Path::new("/etc").exists());
        directory::remove(&jail.path).unwrap();
    }
}

//! Layers that become the disk of a saved state, and the way back.

use super::{Layer, Layers, loop_device, mount, remove};
use crate::{DriverError, doing, sparse};
use api::Bytes;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

/// Where ext4 says that it is one (`s_magic`).
const MAGIC_AT: u64 = 1024 + 0x38;
const MAGIC: [u8; 2] = [0x53, 0xef];

/// What a volatile overlay leaves in its working directory. An overlay that finds it there refuses
/// to be mounted, as after a crash nobody could tell what had reached the disk; here that is known,
/// because the file system below was written back before it was copied.
const VOLATILE: [(&str, &str, AtFlags); 3] = [
    ("work/work/incompat/volatile", "dirty", AtFlags::empty()),
    ("work/work/incompat", "volatile", AtFlags::REMOVEDIR),
    ("work/work", "incompat", AtFlags::REMOVEDIR),
];

impl Layers {
    /// A layer for a slot that begins with what a saved state's disk holds. Its size is the disk's.
    ///
    /// The kernel of this machine mounts the disk. One that a microVM wrote is what its root made
    /// of it: see `SECURITY.md` on that.
    pub fn restore(&self, slot: u32, disk: &Path) -> Result<Layer, DriverError> {
        let image = self.image(slot);
        remove(&image)?;
        let make = || -> io::Result<Layer> {
            let file = sparse::copy_to(&File::open(disk)?, &image)?;
            let size = Bytes(file.metadata()?.len());
            let device = loop_device::attach(&file)?;
            let layer = Layer {
                mount: mount(&device.path)?,
                device: device.number,
                image: image.clone(),
                size,
            };
            layer.forgive()?;
            Ok(layer)
        };
        make().map_err(|source| {
            let _ = fs::remove_file(&image);
            match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => DriverError::Exhausted {
                    what: "disk",
                    cause: source.to_string(),
                },
                _ => doing(format!("take the disk {} as a layer", disk.display()))(source),
            }
        })
    }

    /// The layer of a sandbox that runs already. None if it is attached no more.
    pub fn reopen(&self, slot: u32) -> Result<Option<Layer>, DriverError> {
        let image = self.image(slot);
        let Some(device) = loop_device::number_of(&image) else {
            return Ok(None);
        };
        let open = || -> io::Result<Layer> {
            Ok(Layer {
                size: Bytes(fs::metadata(&image)?.len()),
                // The same file system once more, not another one.
                mount: mount(&loop_device::path(device))?,
                image: image.clone(),
                device,
            })
        };
        let opened = open().map_err(doing(format!("open layer {}", image.display())));
        opened.map(Some)
    }

    /// Whether a slot's layer is at the same time the disk of a saved state, and so must not change
    /// any more.
    pub fn is_shared(&self, slot: u32) -> bool {
        fs::metadata(self.image(slot)).is_ok_and(|about| about.nlink() > 1)
    }
}

impl Layer {
    /// Writes what is only in memory to its file, not further. Complete only while nobody writes.
    pub fn write_back(&self) -> io::Result<()> {
        self.forgive()?;
        let directory = self.open_within(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(rustix::fs::syncfs(&directory)?)
    }

    /// Makes its file, as last written back, the file at `path`, where nothing may be. With
    /// `changes_no_more` it may be the very same file.
    pub fn copy_to(&self, path: &Path, changes_no_more: bool) -> io::Result<()> {
        if changes_no_more && fs::hard_link(&self.image, path).is_ok() {
            return Ok(());
        }
        sparse::copy_to(&File::open(&self.image)?, path).map(drop)
    }

    /// Whether what it has in `upper` is a program there that its users' privileges change with.
    pub(crate) fn has_set_user_id(&self, paths: &[&str]) -> bool {
        self.open_within("upper", OFlags::PATH | OFlags::DIRECTORY)
            .is_ok_and(|upper| has_set_user_id(&upper, paths))
    }

    /// Removes the mark of a volatile overlay.
    fn forgive(&self) -> io::Result<()> {
        for (directory, name, kind) in VOLATILE {
            let opened = match self.open_within(directory, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            match rustix::fs::unlinkat(&opened, name, kind) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether below a directory one of these paths is a program with the set-user-id bit. Links are
/// followed within the directory.
pub(crate) fn has_set_user_id(directory: impl AsFd, paths: &[&str]) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    paths.iter().any(|path| {
        rustix::fs::openat2(
            &directory,
            *path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
        .and_then(|file| {
            rustix::fs::statx(
                &file,
                "",
                AtFlags::EMPTY_PATH,
                StatxFlags::TYPE | StatxFlags::MODE,
            )
        })
        .is_ok_and(|about| {
            let mode = about.stx_mode.into();
            FileType::from_raw_mode(mode) == FileType::RegularFile
                && Mode::from_raw_mode(mode).contains(Mode::SUID)
        })
    })
}

/// Why a file cannot be a layer; nothing if it looks like one.
pub(crate) fn complaint(disk: &Path) -> Option<String> {
    let look = || -> io::Result<bool> {
        let mut magic = [0; 2];
        File::open(disk)?.read_exact_at(&mut magic, MAGIC_AT)?;
        Ok(magic == MAGIC)
    };
    match look() {
        Ok(true) => None,
        Ok(false) => Some(format!("{} holds no ext4 file system", disk.display())),
        Err(error) => Some(format!("{} cannot be read: {error}", disk.display())),
    }
}

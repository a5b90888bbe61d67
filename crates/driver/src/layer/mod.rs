//! Writable layers: what a sandbox writes, and how much it may.
//!
//! A layer is a sparse image file with an ext4 file system, attached to a loop device and mounted.
//! That is a hard limit on disk use on any host (no quota support is needed), and the same file
//! that a microVM takes as its disk. Making a file system takes long; so one of each size is made
//! once (*pristine*), and a layer is the few hundred kilobytes of it that are not holes.
//!
//! The mount is detached: it is in nobody's mount table, and is gone when the last descriptor and
//! the last overlay above it are gone. The loop device then clears itself.
//!
//! Inside are `upper` and `work`, the directories that an overlay takes.

mod loop_device;
mod pristine;
mod saved;

use crate::{DriverError, doing};
use api::Bytes;
use pristine::Pristine;
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
    },
};
use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use loop_device::attached_below;
pub(crate) use saved::{complaint, has_set_user_id};

/// What may lie beside a layer: what its sandbox was made of, and the mark of one that stands still
/// only while it is saved.
pub(crate) const NOTES: &str = "json";
pub(crate) const SAVING: &str = "saving";
const BESIDE: [&str; 2] = [NOTES, SAVING];

/// The writable layers of an instance. All calls block.
#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    pristine: Mutex<HashMap<Bytes, Arc<Pristine>>>,
}

/// One writable layer, mounted. Dropping it unmounts it and leaves the file.
#[derive(Debug)]
pub struct Layer {
    image: PathBuf,
    size: Bytes,
    mount: OwnedFd,
    device: u32,
}

impl Layers {
    /// Layers are files in `directory`, which is made if it is not there.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, DriverError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(doing(format!("make {}", directory.display())))?;
        // Loop devices are found by the path that the kernel shows.
        let directory = directory
            .canonicalize()
            .map_err(doing(format!("find {}", directory.display())))?;
        Ok(Self {
            directory,
            pristine: Mutex::default(),
        })
    }

    /// Makes the pristine file system of a size, so that creating layers of it is quick. The only
    /// call that starts an external program (`mkfs.ext4`), and only the first time.
    pub fn format(&self, size: Bytes) -> Result<(), DriverError> {
        self.pristine(size).map(drop)
    }

    fn pristine(&self, size: Bytes) -> Result<Arc<Pristine>, DriverError> {
        // Held while formatting: whoever wants the same size waits and then finds it.
        let mut known = self.pristine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&size) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(Pristine::open_or_format(&self.directory, size)?);
        known.insert(size, Arc::clone(&made));
        Ok(made)
    }

    fn image(&self, slot: u32) -> PathBuf {
        self.directory.join(format!("{slot}.img"))
    }

    /// A fresh layer for a slot. One that was there before is forgotten: whoever still has it
    /// mounted keeps it, under no name.
    pub fn create(&self, slot: u32, size: Bytes) -> Result<Layer, DriverError> {
        let pristine = self.pristine(size)?;
        let image = self.image(slot);
        remove(&image)?;
        let layer = pristine
            .make_room(&image)
            .and_then(|file| loop_device::attach(&file))
            .and_then(|device| {
                // Through the device and not before it is attached: attaching waits until the disk
                // has what the file holds, and removing what the disk has waits again, on hosts
                // whose file system tells the disk of every freed block. Like this, the layer of a
                // sandbox that lives for seconds never gets there.
                pristine.copy_to(&device.open)?;
                Ok(Layer {
                    mount: mount(&device.path)?,
                    device: device.number,
                    image: image.clone(),
                    size,
                })
            });
        layer.map_err(|source| {
            let _ = fs::remove_file(&image);
            match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => DriverError::Exhausted {
                    what: "disk",
                    cause: source.to_string(),
                },
                _ => doing(format!("make layer {}", image.display()))(source),
            }
        })
    }

    /// A fresh layer as a file at `path`, where nothing may be, for a machine that takes it as its
    /// disk.
    pub(crate) fn create_image(&self, path: &Path, size: Bytes) -> Result<fs::File, DriverError> {
        let pristine = self.pristine(size)?;
        let make = || -> io::Result<fs::File> {
            let file = pristine.make_room(path)?;
            pristine.copy_to(&file)?;
            Ok(file)
        };
        make().map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => DriverError::Exhausted {
                what: "disk",
                cause: source.to_string(),
            },
            _ => doing(format!("make layer {}", path.display()))(source),
        })
    }

    /// Removes the file of a slot's layer, whether or not it is mounted somewhere, and what lies
    /// beside it. True if there was one.
    pub fn forget(&self, slot: u32) -> Result<bool, DriverError> {
        // The image last: slots are found by it.
        for extension in BESIDE {
            remove(&self.beside(slot, extension))?;
        }
        remove(&self.image(slot))
    }

    /// The path of a small file that lives as long as a slot's layer; `extension` is one of
    /// [`BESIDE`].
    pub(crate) fn beside(&self, slot: u32, extension: &str) -> PathBuf {
        self.image(slot).with_extension(extension)
    }

    /// Slots that have a file.
    pub fn slots(&self) -> Result<Vec<u32>, DriverError> {
        let entries = fs::read_dir(&self.directory)
            .map_err(doing(format!("read {}", self.directory.display())))?;
        Ok(entries
            .filter_map(|entry| {
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".img")?
                    .parse()
                    .ok()
            })
            .collect())
    }

    /// Detaches loop devices whose files belong to this instance and to no slot in `keep`. One
    /// that is still mounted is detached when that ends. Returns their paths.
    pub fn detach_stale(&self, keep: &[u32]) -> Vec<PathBuf> {
        let kept: Vec<PathBuf> = keep.iter().map(|slot| self.image(*slot)).collect();
        loop_device::attached_below(&self.directory)
            .into_iter()
            .filter(|(_, file)| !kept.contains(file))
            .filter(|(device, _)| loop_device::detach(device).is_ok())
            .map(|(device, _)| device)
            .collect()
    }

    /// Loop devices that are attached to files of this instance.
    pub fn attached(&self) -> usize {
        loop_device::attached_below(&self.directory).len()
    }
}

impl Layer {
    /// The most that it may hold.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// Its block device, as control groups name it.
    pub fn device(&self) -> String {
        format!("{}:{}", loop_device::MAJOR, self.device)
    }

    /// Another detached mount of it, whose ids can be mapped.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        match open_tree(&self.mount, "", flags) {
            // Before Linux 6.15 a detached mount has no clones; mounting twice comes to the same.
            Err(Errno::INVAL) => mount(&loop_device::path(self.device)),
            other => Ok(other?),
        }
    }

    /// Writes `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`, in place of what is there. Only
    /// while nobody but the caller can write to the layer. What it holds need not be trusted: no
    /// link is followed, and what cannot be written is left as it is.
    pub fn write_names(
        &self,
        host_name: &str,
        name_servers: &[IpAddr],
        search: Option<&str>,
    ) -> io::Result<()> {
        let hosts = format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             127.0.1.1\t{host_name}\n"
        );
        let servers = name_servers.iter();
        let servers = servers.map(|server| format!("nameserver {server}\n"));
        let search = search.map(|domain| format!("search {domain}\n"));
        let resolv: String = servers.chain(search).collect();
        let etc = match self.open_within("upper/etc", OFlags::RDONLY | OFlags::DIRECTORY) {
            // Who removed or replaced it wants none of this.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        for (name, text) in [
            ("hostname", &format!("{host_name}\n")),
            ("hosts", &hosts),
            ("resolv.conf", &resolv),
        ] {
            match rustix::fs::unlinkat(&etc, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => continue,
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&etc, name, flags, Mode::from_raw_mode(0o644))?;
            let file = fs::File::from(file);
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            file.write_all_at(text.as_bytes(), 0)?;
        }
        Ok(())
    }

    /// Opens something in it, through no link.
    fn open_within(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(
            &self.mount,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            within,
        )
    }

    /// The same mount once more.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            image: self.image.clone(),
            size: self.size,
            mount: self.mount.try_clone()?,
            device: self.device,
        })
    }

    /// Bytes that it holds.
    pub fn usage(&self) -> io::Result<u64> {
        usage_of(&self.mount)
    }

    /// Unmounts it without writing back what is still only in memory, and removes its file. The
    /// loop device goes when the last user does; that may take some milliseconds, in this call.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.image);
        self.release();
    }

    /// Unmounts it without writing back what is still only in memory. Whoever else has it mounted
    /// cannot use it any more.
    pub fn release(self) {
        // The mount is a handle to a path; control operations want an open directory.
        if let Ok(directory) = self.open_within(".", OFlags::RDONLY | OFlags::DIRECTORY) {
            loop_device::shut_down(&directory);
        }
    }
}

/// Bytes used in the file system that a descriptor is on.
pub fn usage_of(directory: impl AsFd) -> io::Result<u64> {
    let about = rustix::fs::fstatvfs(directory)?;
    Ok((about.f_blocks.saturating_sub(about.f_bfree)) * about.f_frsize)
}

/// The file system on a block device as a detached mount.
fn mount(device: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    // Else the kernel begins to write all inode tables in the background.
    fsconfig_set_flag(context.as_fd(), "noinit_itable")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn remove(path: &Path) -> Result<bool, DriverError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(doing(format!("remove {}", path.display()))(error)),
    }
}

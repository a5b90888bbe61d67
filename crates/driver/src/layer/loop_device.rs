//! Loop devices: a file as a block device.

use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The major number of loop devices.
pub(super) const MAJOR: u32 = 7;

// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

// linux/ext4.h: stop all writing, drop what is not yet on disk.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// Others may take the device between asking for a free one and taking it.
const TRIES: usize = 256;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An attached device. It clears itself when this is dropped and nothing is mounted from it.
pub(super) struct Device {
    pub(super) path: PathBuf,
    pub(super) number: u32,
    pub(super) open: File,
}

/// Attaches a file to a free device.
pub(super) fn attach(file: &File) -> io::Result<Device> {
    let control = open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
        let path = path(number);
        let device = open(&path)?;
        match configure(&device, file) {
            Ok(()) => {
                return Ok(Device {
                    path,
                    number,
                    open: File::from(device),
                });
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The path of a device.
pub(super) fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn configure(device: &OwnedFd, file: &File) -> io::Result<()> {
    // SAFETY: all fields are numbers, for which zero means the default.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.block_size = 4096;
    // Not with direct I/O: what a short-lived sandbox writes need never reach the disk. What is
    // cached twice counts as its memory, and is given up before anything else.
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: the kernel reads a structure of this layout, which lives through the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Detaches a device now, or when its last user is gone.
pub(super) fn detach(device: &Path) -> io::Result<()> {
    let device = open(device)?;
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes an ext4 file system refuse further writes and forget what is not written yet.
pub(super) fn shut_down(directory: &OwnedFd) {
    let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the kernel reads one number, which lives through the call. Failure only means that
    // unmounting writes what nobody will read.
    unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
}

/// The number of the device that a file is attached to, which must still have this path.
pub(super) fn number_of(file: &Path) -> Option<u32> {
    let numbers = fs::read_dir("/sys/block").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_prefix("loop")?.parse::<u32>().ok()
    });
    let attached = |number: &u32| {
        let shown = format!("/sys/block/loop{number}/loop/backing_file");
        fs::read_to_string(shown).is_ok_and(|text| Path::new(text.trim_end_matches('\n')) == file)
    };
    { numbers }.find(attached)
}

/// Attached devices whose file is in a directory, or was before it was removed.
pub fn attached_below(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    devices
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            if !name.starts_with("loop") {
                return None;
            }
            let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
            let file = file.trim_end();
            let file = PathBuf::from(file.strip_suffix(" (deleted)").unwrap_or(file));
            file.starts_with(directory)
                .then(|| (Path::new("/dev").join(name), file))
        })
        .collect()
}

fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path.as_ref(),
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

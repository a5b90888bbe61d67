//! The process that locks itself up and becomes QEMU.
//!
//! It is this program again, in a hidden mode, so that nothing of a large process with many threads
//! is forked. Its standard input is a socket: one packet says what the jail is, with descriptors;
//! one packet comes back with what [`super::opener`] listens on. Then it executes QEMU, which finds
//! itself
//!
//! - as the first process of a pid namespace (its parent saw to that), in mount, IPC and UTS
//!   namespaces of its own, in the network of its slot, and in its control groups;
//! - in a root file system that is read-only and holds QEMU, its libraries, its firmware, a kernel
//!   and nothing else: no `/proc`, no `/dev`;
//! - as a user who owns nothing, without capabilities and without a way to any;
//! - with the descriptors that it needs, and no others.

use super::{
    arguments::{FIRST_DESCRIPTOR, TAP},
    opener, runtime,
};
use crate::{
    microvm::confined::{self, Failure, during},
    slot::machine,
};
use rustix::{
    fs::{Mode, OFlags},
    mount::{
        MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind,
        mount_change, unmount,
    },
    thread::{LinkNameSpaceType, UnshareFlags},
};
use serde::{Deserialize, Serialize};
use std::{
    env,
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

/// Set, with any value, in the environment of a process that is to become QEMU.
pub(super) const VARIABLE: &str = "ATOLL_JAIL";

/// What the jail is like. With it travel the network namespace, and then the descriptors that QEMU
/// finds from [`FIRST_DESCRIPTOR`] on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Jail {
    /// An empty directory, on which the jail's root file system is mounted for nobody else to see.
    pub(super) root: PathBuf,
    /// Files to show: where they are, and where inside.
    pub(super) files: Vec<(PathBuf, PathBuf)>,
    /// The files through which control groups are joined.
    pub(super) groups: Vec<PathBuf>,
    /// User and group.
    pub(super) user: u32,
    /// The tap device in the slot's network.
    pub(super) tap: String,
    /// QEMU, as a path inside.
    pub(super) program: PathBuf,
    /// Its arguments, without its name.
    pub(super) arguments: Vec<String>,
}

/// Becomes QEMU in a jail if this process was started for that; else returns at once. Call it first
/// thing in `main`, before any thread is started.
pub fn run_if_asked() {
    if env::var_os(VARIABLE).is_none() {
        return;
    }
    confined::run(lock_up)
}

fn lock_up(socket: &OwnedFd) -> Result<std::convert::Infallible, Failure> {
    let (jail, mut descriptors) = confined::be_told::<Jail>(socket)?;
    let mut phases = crate::phases::Stopwatch::start();
    let network = confined::next(&mut descriptors, "network")?;
    let mut kept: Vec<OwnedFd> = descriptors.collect();
    confined::leave_parent(&jail.groups)?;
    phases.mark("control groups");
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(during("enter the network"))?;
    kept.push(open_tap(&jail.tap).map_err(during(format!("open the tap device {}", jail.tap)))?);
    // What cannot be known beforehand need not be asked for: the first packet finds its way at once.
    remember_neighbour(&jail.tap).map_err(during("name the machine's hardware address"))?;
    phases.mark("network");
    // SAFETY: this process has one thread.
    unsafe {
        rustix::thread::unshare_unsafe(
            UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS,
        )
    }
    .map_err(during("make namespaces"))?;
    let _ = rustix::system::sethostname(b"machine");
    build_root(&jail).map_err(during("build the jail's root"))?;
    phases.mark("root file system");
    arrange(kept).map_err(during("arrange descriptors"))?;
    drop(network);
    confined::give_up_rights(jail.user).map_err(during("give up rights"))?;

    let program = c_string(jail.program.into_os_string())?;
    let arguments: Vec<CString> = std::iter::once(Ok(program.clone()))
        .chain(jail.arguments.into_iter().map(|text| c_string(text.into())))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<_> = arguments.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null()];
    let listener = opener::install().map_err(during("install the filter"))?;
    phases.mark("rights");
    confined::report(socket, phases.take(), &[listener.as_fd()])?;
    drop(listener);
    // SAFETY: both arrays end with a null pointer, and their texts outlive the call.
    unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    Err(("execute QEMU".into(), io::Error::last_os_error()))
}

fn c_string(text: OsString) -> Result<CString, Failure> {
    CString::new(text.into_vec()).map_err(during("read an argument"))
}

/// A zeroed request that names an interface.
fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn open_tap(name: &str) -> io::Result<OwnedFd> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = request_for(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is complete and outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}

fn remember_neighbour(interface: &str) -> io::Result<()> {
    // SAFETY: an ordinary socket that is owned from here; all zeros is a valid request.
    let (socket, mut request) = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        (
            OwnedFd::from_raw_fd(socket),
            std::mem::zeroed::<libc::arpreq>(),
        )
    };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(machine::ADDRESS).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are socket addresses of the same size.
    request.arp_pa = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    request.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (place, byte) in request.arp_ha.sa_data.iter_mut().zip(machine::MAC) {
        *place = byte as libc::c_char;
    }
    request.arp_flags = libc::ATF_PERM | libc::ATF_COM;
    for (place, byte) in request.arp_dev.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: the request is complete and outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSARP, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Mounts a small root file system and leaves all others.
fn build_root(jail: &Jail) -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(
        "tmpfs",
        &jail.root,
        "tmpfs",
        flags,
        c"size=1m,nr_inodes=1k,mode=755",
    )?;
    for (source, inside) in &jail.files {
        let target = jail.root.join(inside.strip_prefix("/").unwrap_or(inside));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(&target)?;
        mount_bind(source, &target)?;
    }
    runtime::set_read_only(&jail.root, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    rustix::process::chdir(&jail.root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir(Path::new("/"))?;
    Ok(())
}

/// Gives descriptors their numbers, and closes all others when QEMU is executed.
fn arrange(kept: Vec<OwnedFd>) -> io::Result<()> {
    if FIRST_DESCRIPTOR + kept.len() as i32 - 1 != TAP {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // First all out of the way, then each to its place.
    let mut aside = Vec::new();
    for descriptor in kept {
        aside.push(rustix::io::fcntl_dupfd_cloexec(&descriptor, 80)?);
    }
    // SAFETY: marks only; nothing is closed before `exec`.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    for (number, descriptor) in (FIRST_DESCRIPTOR..).zip(&aside) {
        // SAFETY: whatever has this number is nobody's in this process, which ends by `exec`; the
        // new descriptor is QEMU's.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

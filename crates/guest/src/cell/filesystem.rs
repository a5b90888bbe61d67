//! What the sandbox sees of file systems.
//!
//! [`prepare`] leaves the process on a *stage*: a tiny file system that holds nothing but `dev`,
//! `proc`, `sys` and an empty `root`. [`enter`] puts the sandbox's root on `root`, moves the three
//! over, and steps in. Moving is cheap; making the three is not, and so it is done beforehand.
//!
//! The paths that are hidden or read-only are those of the OCI runtimes' default configuration:
//! what the kernel shows there is the host's, and some of it can be written by root.

use super::{CellError, Doing};
use api::boot::CgroupView;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
    },
    process::{chdir, fchdir, pivot_root},
};
use std::os::fd::{AsFd, OwnedFd};

/// Device nodes that a program may expect; taken from the host one by one.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that a program may expect in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Hidden: they tell of the host, or reach its hardware.
const HIDDEN: [&str; 13] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/kernel/debug",
];

/// Shown, but read-only even where the kernel would let root of the sandbox write.
const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];

const STRICT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Builds the stage on the current directory, which must be empty, and lets go of the host's
/// file systems. `sysfs` is a detached mount of the sandbox's `/sys`; without it there is none.
pub(super) fn prepare(sysfs: Option<OwnedFd>, cgroups: &CgroupView) -> Result<(), CellError> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .doing("keep mounts private")?;
    let stage = file_system("tmpfs", &[("size", "64k"), ("mode", "755")], STRICT)?;
    attach(&stage, ".")?;
    fchdir(&stage).doing("step on the stage")?;
    for name in ["dev", "proc", "sys", "root"] {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).doing("furnish the stage")?;
    }
    build_devices()?;
    // Before the host's file systems go: the kernel lets a user namespace mount /proc only while
    // it still sees one that is whole.
    attach(&file_system("proc", &[], STRICT)?, "proc")?;
    limit_namespaces()?;
    if let Some(sysfs) = sysfs {
        attach(&sysfs, "sys")?;
        show_cgroups(cgroups)?;
    }
    for path in HIDDEN {
        hide(path)?;
    }
    for path in READ_ONLY {
        make_read_only(path)?;
    }
    let null = rustix::fs::open("dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing("open /dev/null")?;
    pivot_root(".", ".").doing("leave the host's root")?;
    unmount(".", UnmountFlags::DETACH).doing("let go of the host's file systems")?;
    chdir("/").doing("step on the stage")?;
    rustix::stdio::dup2_stdin(&null).doing("detach standard input")?;
    rustix::stdio::dup2_stdout(&null).doing("detach standard output")?;
    rustix::stdio::dup2_stderr(&null).doing("detach standard error")?;
    Ok(())
}

/// Puts `root`, a detached mount, in the place of the stage.
pub(super) fn enter(root: OwnedFd) -> Result<(), CellError> {
    attach(&root, "root")?;
    fchdir(&root).doing("step into the root file system")?;
    for name in ["proc", "sys", "dev"] {
        let place = mount_point(&root, name)?;
        match move_mount(
            CWD,
            format!("/{name}"),
            &place,
            "",
            MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        ) {
            // There is no /sys if the driver could not give one.
            Err(Errno::INVAL) if name == "sys" => {}
            other => other.doing("bring /proc, /sys and /dev along")?,
        }
    }
    pivot_root(".", ".").doing("enter the root file system")?;
    unmount(".", UnmountFlags::DETACH).doing("leave the stage")?;
    chdir("/").doing("enter the root file system")
}

/// The directory `name` of a root file system that may be hostile: never through a link.
fn mount_point(root: &OwnedFd, name: &str) -> Result<OwnedFd, CellError> {
    let open = || {
        rustix::fs::openat2(
            root,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    };
    let found = match open() {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))
                .doing("make /proc, /sys and /dev")?;
            open()
        }
        other => other,
    };
    found.map_err(|error| CellError::Root(format!("/{name} is not a directory ({error})")))
}

/// `/dev`: a few nodes taken from the host, terminals and shared memory of its own.
fn build_devices() -> Result<(), CellError> {
    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("size", "64k"), ("nr_inodes", "256"), ("mode", "755")];
    attach(&file_system("tmpfs", &options, nosuid)?, "dev")?;
    for name in DEVICES {
        let node = open_tree(
            CWD,
            format!("/dev/{name}"),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .doing("take a device from the host")?;
        let place = format!("dev/{name}");
        rustix::fs::open(
            &place,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o666),
        )
        .doing("make a place for a device")?;
        attach(&node, &place)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlink(target, format!("dev/{name}")).doing("make links in /dev")?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdir(format!("dev/{name}"), Mode::from_raw_mode(0o755))
            .doing("make directories in /dev")?;
    }
    let terminals = file_system(
        "devpts",
        &[
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    attach(&terminals, "dev/pts")?;
    // What is written here counts as the sandbox's memory, so its size needs no tight limit.
    attach(
        &file_system("tmpfs", &[("mode", "1777"), ("size", "50%")], STRICT)?,
        "dev/shm",
    )?;
    // Optional in the kernel, and hardly used.
    if let Ok(queues) = file_system("mqueue", &[], STRICT) {
        attach(&queues, "dev/mqueue")?;
    }
    Ok(())
}

/// Shows the sandbox's own control groups read-only, so that language runtimes see their limits.
fn show_cgroups(view: &CgroupView) -> Result<(), CellError> {
    let strict = STRICT | MountAttrFlags::MOUNT_ATTR_RDONLY;
    match view {
        CgroupView::Hidden => {}
        CgroupView::Unified => {
            attach(&file_system("cgroup2", &[], strict)?, "sys/fs/cgroup")?;
        }
        CgroupView::Legacy { hierarchies } => {
            let options = [("size", "64k"), ("mode", "755")];
            let folder = file_system("tmpfs", &options, STRICT)?;
            attach(&folder, "sys/fs/cgroup")?;
            for name in hierarchies {
                let place = format!("sys/fs/cgroup/{name}");
                rustix::fs::mkdir(&place, Mode::from_raw_mode(0o755))
                    .doing("make a place for a control group hierarchy")?;
                let flags: Vec<(&str, &str)> = name.split(',').map(|flag| (flag, "")).collect();
                attach(&file_system("cgroup", &flags, strict)?, &place)?;
            }
            set_read_only(&folder)?;
        }
    }
    Ok(())
}

/// No user namespaces below this one: a second line behind the system call filter.
fn limit_namespaces() -> Result<(), CellError> {
    match rustix::fs::open(
        "proc/sys/user/max_user_namespaces",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(limit) => {
            rustix::io::write(&limit, b"0").doing("forbid nested user namespaces")?;
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).doing("forbid nested user namespaces"),
    }
}

/// Covers a file with `/dev/null`, a directory with an empty read-only one.
fn hide(path: &str) -> Result<(), CellError> {
    let about = match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(about) => about,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).doing("look at what is to be hidden"),
    };
    let cover = if FileType::from_raw_mode(about.stx_mode.into()) == FileType::Directory {
        file_system(
            "tmpfs",
            &[("size", "4k"), ("mode", "555")],
            STRICT | MountAttrFlags::MOUNT_ATTR_RDONLY,
        )?
    } else {
        open_tree(
            CWD,
            "dev/null",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .doing("take /dev/null")?
    };
    attach(&cover, path)
}

/// Lays a read-only view of a path over itself.
fn make_read_only(path: &str) -> Result<(), CellError> {
    let view = match open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    ) {
        Ok(view) => view,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).doing("take a view of /proc"),
    };
    set_read_only(&view)?;
    attach(&view, path)
}

fn set_read_only(mount: &OwnedFd) -> Result<(), CellError> {
    use std::os::fd::AsRawFd;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path an empty C string, and the structure lives through
    // the call and has the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error()).doing("make part of /proc read-only")
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A new file system as a detached mount. An option without a value is a flag.
fn file_system(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, CellError> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            if value.is_empty() {
                fsconfig_set_flag(context.as_fd(), *key)?;
            } else {
                fsconfig_set_string(context.as_fd(), *key, *value)?;
            }
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().doing(&format!("mount {kind}"))
}

fn attach(mount: &OwnedFd, place: &str) -> Result<(), CellError> {
    move_mount(
        mount,
        "",
        CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing(&format!("mount on {place}"))
}

//! The root file system of a cell: shared read-only layers below, its own layer on top.
//!
//! On disk all files belong to the users 0 to 65535 that they have inside. Mounts that map ids
//! (Linux 5.12; as layers of an overlay 5.19) make them the cell's range, so that a layer can be
//! shared by cells with different ranges.

use super::super::protocol::Failure;
use rustix::{
    fs::{CWD, StatVfsMountFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
        open_tree, unmount,
    },
    thread::{capabilities, set_capabilities},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

/// The most layers; the kernel's own limit is 500.
const MOST_LAYERS: usize = 128;

/// Makes a detached mount show its files as belonging to the users of a namespace, and read-only
/// if asked.
pub(super) fn map_ids(mount: &OwnedFd, users: &OwnedFd, read_only: bool) -> Result<(), Failure> {
    let mut attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    if read_only {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    // SAFETY: the descriptors are open, the path is an empty C string, and the structure lives
    // through the call and has the size that is passed.
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
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Err(Failure::Unsupported {
            cause: "the file system of the data directory cannot map user ids".into(),
            remedy: "Put the data directory on ext4, xfs, btrfs or tmpfs".into(),
        });
    }
    Err(Failure::system("map user ids of a mount", error))
}

/// Does something with the file system identity of another user, all capabilities kept.
///
/// An overlay acts on its layers as whoever mounted it. On mounts that map ids that must be a user
/// who is mapped, or nothing can be made there; what root of the cell may do is decided before the
/// overlay acts, by its own identity.
fn acting_as<T>(
    user: u32,
    action: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let capabilities = capabilities(None)?;
    let act_as = |user: u32| -> rustix::io::Result<()> {
        // SAFETY: both take a number, and affect this thread alone. They answer what was before,
        // never an error.
        unsafe {
            libc::syscall(libc::SYS_setfsgid, user);
            libc::syscall(libc::SYS_setfsuid, user);
        }
        // Changing from root to another took some of the capabilities away.
        set_capabilities(None, capabilities)
    };
    act_as(user)?;
    let result = action();
    act_as(0)?;
    result
}

/// The root file system as a detached mount. `layer` is the mount of the writable layer with the
/// directories `upper` and `work`, already mapped; `first_id` is the host's number for root inside.
pub(super) fn lay(
    layers: &[PathBuf],
    layer: &OwnedFd,
    users: &OwnedFd,
    first_id: u32,
) -> Result<OwnedFd, Failure> {
    if layers.is_empty() || layers.len() > MOST_LAYERS {
        return Err(Failure::Unsupported {
            cause: format!("a root file system of {} layers", layers.len()),
            remedy: format!("Build the template with 1 to {MOST_LAYERS} layers"),
        });
    }
    let mut lowers = Vec::with_capacity(layers.len());
    for path in layers {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let lower = open_tree(CWD, path, flags)
            .map_err(|error| Failure::system(format!("open layer {}", path.display()), error))?;
        map_ids(&lower, users, true)?;
        lowers.push(lower);
    }
    let by_descriptor = |mount: &OwnedFd| format!("/proc/self/fd/{}", mount.as_raw_fd());
    let paths: Vec<String> = lowers.iter().map(by_descriptor).collect();
    acting_as(first_id, || match overlay(&paths, &by_descriptor(layer)) {
        // Before Linux 6.15 an overlay does not take layers that are mounted nowhere.
        Err(Errno::INVAL) => lay_attached(&lowers, layer),
        other => other,
    })
    .map_err(|error| Failure::system("lay the root file system", error))
}

/// The same for older kernels: mounts everything on the stage for as long as it takes.
fn lay_attached(lowers: &[OwnedFd], layer: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let shelf = {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?
    };
    move_mount(
        &shelf,
        "",
        CWD,
        ".",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    let attach = |mount: &OwnedFd, name: &str| -> rustix::io::Result<String> {
        rustix::fs::mkdirat(&shelf, name, rustix::fs::Mode::RWXU)?;
        move_mount(
            mount,
            "",
            &shelf,
            name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(format!("/proc/self/fd/{}/{name}", shelf.as_raw_fd()))
    };
    let laid = lowers
        .iter()
        .enumerate()
        .map(|(number, lower)| attach(lower, &format!("l{number}")))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|paths| overlay(&paths, &attach(layer, "layer")?));
    // The overlay keeps its own references.
    unmount(
        format!("/proc/self/fd/{}", shelf.as_raw_fd()),
        UnmountFlags::DETACH,
    )?;
    laid
}

fn overlay(lowers: &[String], layer: &str) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    let set = |key: &str, value: &str| fsconfig_set_string(context, key, value);
    set("source", "atoll")?;
    // One option a layer since Linux 6.7; before, all in one, which may not exceed 255 bytes.
    if lowers.len() == 1 {
        set("lowerdir", &lowers[0])?;
    } else {
        for (number, lower) in lowers.iter().enumerate() {
            match set("lowerdir+", lower) {
                Err(Errno::INVAL) if number == 0 => {
                    set("lowerdir", &lowers.join(":"))?;
                    break;
                }
                other => other?,
            }
        }
    }
    set("upperdir", &format!("{layer}/upper"))?;
    set("workdir", &format!("{layer}/work"))?;
    // Without it, renaming a directory of a lower layer fails with EXDEV.
    set("redirect_dir", "on")?;
    set("index", "off")?;
    set("metacopy", "off")?;
    // The layer does not outlive the sandbox's machine, so nothing need wait for the disk.
    fsconfig_set_flag(context, "volatile")?;
    fsconfig_create(context)?;
    let root = fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    // If something about the upper layer does not please it, an overlay is read-only in silence.
    if rustix::fs::fstatvfs(&root)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY)
    {
        return Err(Errno::ROFS);
    }
    Ok(root)
}

//! From the initial file system to the sandbox's own.
//!
//! The root is an overlay: below, the template's disk, read-only and shared by all its sandboxes;
//! above, a disk of the sandbox's own. Which is which, the kernel tells: one cannot be written.
//! Hypervisors number disks as they please.

use super::{Doing, MachineError};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_move, unmount},
    process::{chdir, chroot},
};
use std::{
    ffi::CString,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

const LOWER: &str = "/lower";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";

const STRICT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Links that a program may expect in `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), MachineError> {
    let doing = || format!("mount {source} ({kind}) on {target}");
    let options = CString::new(options).doing(doing())?;
    mount(source, target, kind, flags, options.as_c_str()).doing(doing())
}

fn make_directory(path: &str, mode: u32) -> Result<(), MachineError> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).doing(format!("make {path}")),
    }
}

/// Mounts `/proc`, `/sys` and `/dev`.
pub(super) fn mount_kernel_views() -> Result<(), MachineError> {
    for (kind, target, flags) in [
        ("proc", "/proc", STRICT),
        ("sysfs", "/sys", STRICT),
        ("devtmpfs", "/dev", MountFlags::NOSUID),
    ] {
        make_directory(target, 0o755)?;
        attach(kind, target, kind, flags, "")?;
    }
    Ok(())
}

/// Finds the disks, lays one over the other, and makes that the root of this process and all to
/// come, furnished as programs expect.
pub(super) fn enter_root() -> Result<(), MachineError> {
    let (lower, layer) = find_disks()?;
    for path in [LOWER, LAYER, ROOT] {
        make_directory(path, 0o755)?;
    }
    let kind = kind_of(&lower)?;
    attach(
        &lower,
        LOWER,
        kind,
        MountFlags::RDONLY | MountFlags::NODEV,
        "",
    )?;
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    // Else the kernel begins to write all inode tables in the background; and to read all bitmaps,
    // which older kernels neither do nor know how to leave.
    let lazy = "noinit_itable,no_prefetch_block_bitmaps";
    attach(&layer, LAYER, "ext4", flags, lazy)
        .or_else(|_| attach(&layer, LAYER, "ext4", flags, "noinit_itable"))?;
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    make_directory(&upper, 0o755)?;
    make_directory(&work, 0o755)?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    attach("overlay", ROOT, "overlay", MountFlags::empty(), &options)?;
    // The overlay holds both by itself.
    for path in [LOWER, LAYER] {
        unmount(path, UnmountFlags::DETACH).doing(format!("hide {path}"))?;
    }
    discard_initial()?;
    chdir(ROOT).doing("enter the root file system")?;
    mount_move(".", "/").doing("move the root file system")?;
    chroot(".").doing("enter the root file system")?;
    chdir("/").doing("enter the root file system")?;
    furnish()
}

/// The disk that cannot be written and the one that can.
fn find_disks() -> Result<(String, String), MachineError> {
    let (mut lower, mut layer) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/sys/block")
        .doing("look for disks")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("vd") {
            continue;
        }
        let path = entry.path().join("ro");
        let text = fs::read_to_string(&path).doing(format!("read {}", path.display()))?;
        if text.trim() == "1" {
            &mut lower
        } else {
            &mut layer
        }
        .push(format!("/dev/{name}"));
    }
    match (&lower[..], &layer[..]) {
        ([lower], [layer]) => Ok((lower.clone(), layer.clone())),
        _ => {
            let text = format!(
                "there are {} read-only and {} writable disks instead of one each",
                lower.len(),
                layer.len()
            );
            Err(MachineError::new("find the disks", io::Error::other(text)))
        }
    }
}

/// The kind of file system on a disk, by its magic number.
fn kind_of(device: &str) -> Result<&'static str, MachineError> {
    let mut start = [0; 4096];
    let mut read = || {
        let mut file = fs::File::open(device)?;
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut start)
    };
    read().doing(format!("read {device}"))?;
    kind_by_magic(&start).ok_or_else(|| {
        let text = "it holds neither EROFS nor squashfs nor ext4";
        MachineError::new(format!("use {device}"), io::Error::other(text))
    })
}

fn kind_by_magic(start: &[u8]) -> Option<&'static str> {
    if start.get(1024..1028)? == 0xE0F5_E1E2u32.to_le_bytes() {
        Some("erofs")
    } else if start.get(..4)? == b"hsqs" {
        Some("squashfs")
    } else if start.get(1080..1082)? == 0xEF53u16.to_le_bytes() {
        Some("ext4")
    } else {
        None
    }
}

/// Removes what the initial file system holds: it is memory that nobody can reach any more.
fn discard_initial() -> Result<(), MachineError> {
    for path in ["/proc", "/sys", "/dev"] {
        unmount(path, UnmountFlags::DETACH).doing(format!("leave {path}"))?;
    }
    match fs::remove_dir_all("/modules") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing("remove the modules' files")
        }
        // The program itself stays in memory for as long as it runs.
        _ => fs::remove_file("/init").doing("remove /init"),
    }
}

fn furnish() -> Result<(), MachineError> {
    mount_kernel_views()?;
    make_directory("/run", 0o755)?;
    if !Path::new("/tmp").exists() {
        make_directory("/tmp", 0o777)?;
        let mode = Mode::from_raw_mode(0o1777);
        rustix::fs::chmod("/tmp", mode).doing("open /tmp to all")?;
    }
    for (path, mode) in [
        ("/dev/pts", 0o755),
        ("/dev/shm", 0o777),
        ("/dev/mqueue", 0o755),
    ] {
        make_directory(path, mode)?;
    }
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        quiet,
        "mode=620,ptmxmode=666,gid=5",
    )?;
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    attach("tmpfs", "/dev/shm", "tmpfs", shared, "mode=1777")?;
    attach("mqueue", "/dev/mqueue", "mqueue", STRICT, "")?;
    // A kernel need not have control groups; nothing here depends on them.
    let _ = attach("cgroup2", "/sys/fs/cgroup", "cgroup2", STRICT, "");
    for (path, target) in LINKS {
        match rustix::fs::symlink(target, path) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(format!("link {path}")),
        }
    }
    Ok(())
}

/// Points the standard streams at `/dev/null`: processes must not hold the console.
pub(super) fn detach_streams() -> Result<(), MachineError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).doing("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).doing("detach standard input")?;
    rustix::stdio::dup2_stdout(&null).doing("detach standard output")?;
    rustix::stdio::dup2_stderr(&null).doing("detach standard error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_known_by_its_magic() {
        let mut start = [0; 4096];
        assert_eq!(kind_by_magic(&start), None);
        start[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        assert_eq!(kind_by_magic(&start), Some("ext4"));
        start[..4].copy_from_slice(b"hsqs");
        assert_eq!(kind_by_magic(&start), Some("squashfs"));
        start[1024..1028].copy_from_slice(&[0xE2, 0xE1, 0xF5, 0xE0]);
        assert_eq!(kind_by_magic(&start), Some("erofs"));
        assert_eq!(kind_by_magic(&start[..1000]), None);
    }
}

//! What of this machine's QEMU a jail must show: the program, its libraries, its firmware.
//!
//! Found once, by asking the dynamic loader, which does not run the program for that.

use super::accelerator::Accelerator;
use crate::{DriverError, doing};
use rustix::mount::MountAttrFlags;
use std::{
    collections::BTreeSet,
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PROGRAM: &str = "qemu-system-x86_64";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Where distributions put QEMU's modules, and the one that translation is in where it is a module.
const MODULE_FOLDERS: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/local/lib/qemu",
];
const TRANSLATOR: &str = "accel-tcg-x86_64.so";

/// Where firmware is, and what a microVM may want of it.
const FIRMWARE_FOLDERS: [&str; 4] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-firmware",
    "/usr/local/share/qemu",
];
const FIRMWARE: [&str; 5] = [
    "qboot.rom",
    "bios-microvm.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
    "kvmvapic.bin",
];

/// This machine's QEMU.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    pub(super) program: PathBuf,
    /// As snapshots remember it: `QEMU 7.2.22`.
    pub(super) version: String,
    /// Everything that it needs; the same place inside a jail as outside.
    pub(super) files: Vec<PathBuf>,
}

impl Runtime {
    /// Looks for it; `program` if it is not where programs are. Starts it once, for its version.
    /// Blocks.
    pub(super) fn find(
        program: Option<&Path>,
        accelerator: Accelerator,
    ) -> Result<Self, DriverError> {
        let absent = |cause: String| DriverError::Unsupported {
            cause,
            remedy: "Install QEMU for x86: apt-get install qemu-system-x86".into(),
        };
        let program = match program {
            Some(program) => program.to_owned(),
            None => crate::probe::find_program(PROGRAM)
                .ok_or_else(|| absent(format!("`{PROGRAM}` is not installed")))?,
        };
        let version = run(Command::new(&program).arg("--version"))
            .ok()
            .and_then(|text| parse_version(&text))
            .ok_or_else(|| absent(format!("{} does not tell its version", program.display())))?;

        let mut files = BTreeSet::from([program.clone()]);
        files.extend(libraries(&program)?);
        if accelerator == Accelerator::Tcg
            && let Some(module) = find(&MODULE_FOLDERS, TRANSLATOR)
        {
            files.extend(libraries(&module)?);
            files.insert(module);
        }
        let cache = PathBuf::from("/etc/ld.so.cache");
        files.extend(cache.exists().then_some(cache));
        let firmware: Vec<PathBuf> = FIRMWARE
            .iter()
            .filter_map(|name| find(&FIRMWARE_FOLDERS, name))
            .collect();
        if firmware.is_empty() {
            return Err(absent("QEMU's firmware for microVMs is not there".into()));
        }
        files.extend(firmware);
        Ok(Self {
            program,
            version,
            files: files.into_iter().collect(),
        })
    }
}

impl Runtime {
    /// Whether its translator loses the race with another processor that writes to the code which it is
    /// translating: it did until version 8.1, which locks the page first. What is stale stays in use for
    /// ever; a booting kernel that patched itself was seen to fall into the same breakpoint without end.
    pub(super) fn has_stale_code(&self) -> bool {
        let number = self.version.trim_start_matches("QEMU ");
        let mut parts = number
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) < (Some(8), Some(1))
    }
}

fn find(folders: &[&str], name: &str) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

fn run(command: &mut Command) -> Result<String, DriverError> {
    let output = command
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(doing(format!("run {:?}", command.get_program())))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The libraries that a program or a module is loaded with, and the loader.
fn libraries(of: &Path) -> Result<Vec<PathBuf>, DriverError> {
    let text = run(Command::new(LOADER).arg("--list").arg(of))?;
    let found = parse_libraries(&text);
    if found.is_empty() {
        return Err(doing(format!("find the libraries of {}", of.display()))(
            io::Error::other("the dynamic loader lists none"),
        ));
    }
    Ok(found)
}

fn parse_libraries(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            let path = path.split(" (").next()?.trim();
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .chain([PathBuf::from(LOADER)])
        .collect()
}

fn parse_version(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let version = line.split("version ").nth(1)?.split(' ').next()?;
    let looks_right = version.starts_with(|first: char| first.is_ascii_digit());
    looks_right.then(|| format!("QEMU {version}"))
}

/// Sets attributes of a mount and of all beneath it (`mount_setattr(2)`).
pub(super) fn set_read_only(root: &Path, attributes: MountAttrFlags) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes {
        set: u64::from(attributes.bits()),
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let root = CString::new(root.as_os_str().as_bytes())?;
    // SAFETY: path and structure outlive the call, and the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            root.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_without_the_distribution() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n";
        assert_eq!(parse_version(text).as_deref(), Some("QEMU 7.2.22"));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn old_translators_are_known() {
        let of = |version: &str| Runtime {
            program: PathBuf::new(),
            version: format!("QEMU {version}"),
            files: Vec::new(),
        };
        for (version, stale) in [
            ("7.2.22", true),
            ("8.0.5", true),
            ("8.1.0", false),
            ("10.0.2", false),
        ] {
            assert_eq!(of(version).has_stale_code(), stale, "{version}");
        }
    }

    #[test]
    fn libraries_are_read_from_the_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                    \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse_libraries(text);
        assert!(found.contains(&"/lib/x86_64-linux-gnu/libz.so.1".into()));
        assert!(found.contains(&LOADER.into()));
        assert!(!found.iter().any(|path| path.ends_with("linux-vdso.so.1")));
    }
}

//! A formatted, empty file system, and copies of it.

use crate::{DriverError, doing};
use api::Bytes;
use rustix::fs::SeekFrom;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Raised when the file system is made differently, so that old ones are not taken.
const EDITION: u32 = 1;

/// A file system smaller than this has no room for its own tables.
const SMALLEST: Bytes = Bytes::mebibytes(16);

/// What of an empty file system is not a hole, in memory: a few hundred kilobytes.
#[derive(Debug)]
pub(super) struct Pristine {
    size: Bytes,
    parts: Vec<(u64, Vec<u8>)>,
}

impl Pristine {
    /// Takes the one in `directory`, or makes it.
    pub(super) fn open_or_format(directory: &Path, size: Bytes) -> Result<Self, DriverError> {
        if size < SMALLEST {
            return Err(DriverError::Unsupported {
                cause: format!("a writable layer of {size}"),
                remedy: format!("Ask for at least {SMALLEST}"),
            });
        }
        let path = directory.join(format!("pristine-{EDITION}-{}.ext4", size.0));
        if !path.exists() {
            format(directory, &path, size)?;
        }
        let file = File::open(&path).map_err(doing(format!("open {}", path.display())))?;
        let parts = read_parts(&file).map_err(doing(format!("read {}", path.display())))?;
        Ok(Self { size, parts })
    }

    /// A file at `path`, where nothing may be, that has the size and is one hole.
    pub(super) fn make_room(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(self.size.0)?;
        Ok(file)
    }

    /// Writes the file system to a device of its size that holds nothing but zeros.
    pub(super) fn copy_to(&self, device: &File) -> io::Result<()> {
        for (offset, part) in &self.parts {
            device.write_all_at(part, *offset)?;
        }
        Ok(())
    }
}

/// All parts of a sparse file that are not holes.
fn read_parts(file: &File) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut from = 0;
    loop {
        let begin = match rustix::fs::seek(file, SeekFrom::Data(from)) {
            Ok(begin) => begin,
            // No data behind this offset.
            Err(rustix::io::Errno::NXIO) => return Ok(parts),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(begin))?;
        let mut part = vec![0; usize::try_from(end - begin).map_err(io::Error::other)?];
        file.read_exact_at(&mut part, begin)?;
        // Tools write zeros where a hole would do.
        for (number, block) in part.chunks(4096).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let offset = begin + number as u64 * 4096;
            match parts.last_mut() {
                Some((at, before)) if *at + before.len() as u64 == offset => {
                    before.extend_from_slice(block);
                }
                _ => parts.push((offset, block.to_vec())),
            }
        }
        from = end;
    }
}

/// Makes a file system under a temporary name, so that a half-made one is never taken.
fn format(directory: &Path, path: &Path, size: Bytes) -> Result<(), DriverError> {
    let skeleton = Scratch(directory.join(format!("skeleton-{}", std::process::id())));
    let image = Scratch(directory.join(format!("formatting-{}", std::process::id())));
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(skeleton.0.join("upper/etc"))?;
        fs::create_dir_all(skeleton.0.join("work"))?;
        for name in ["", "upper", "upper/etc", "work"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(skeleton.0.join(name), mode)?;
        }
        let _ = fs::remove_file(&image.0);
        File::create(&image.0)?.set_len(size.0)
    };
    prepare().map_err(doing(format!("make {}", image.0.display())))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "atoll"])
        // No journal: after a crash of the machine no sandbox is left that could want it.
        .args([
            "-O",
            "^has_journal,^resize_inode",
            "-E",
            "lazy_itable_init=1,nodiscard,root_owner=0:0",
        ])
        .arg("-d")
        .arg(&skeleton.0)
        .arg(&image.0)
        .env_remove("MKE2FS_CONFIG")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DriverError::Unsupported {
                cause: "`mkfs.ext4` is not installed".into(),
                remedy: "Install the package e2fsprogs".into(),
            },
            _ => doing("start mkfs.ext4")(source),
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let text: String = text.trim().chars().take(500).collect();
        return Err(doing("format a writable layer")(io::Error::other(text)));
    }
    fs::rename(&image.0, path).map_err(doing(format!("make {}", path.display())))
}

/// A file or directory that goes when the work on it ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

//! The kernel of microVMs: where it comes from, whether it fits, and how it is started.
//!
//! It is a file that the user names, or else the distribution's package for virtual machines,
//! unpacked and never installed. Either way it is turned once into what hypervisors take: an ELF
//! image, which they load without the kernel having to unpack itself (under emulation that is most
//! of a second; Firecracker takes nothing else), and an initial file system that holds the guest's
//! program and the few modules that it needs to find its disks.
//!
//! Start reading at [`Kernel::find`]. Parsers of what comes from outside are without I/O:
//! [`elf`], [`payload`], [`config`].

mod clock;
mod command_line;
pub mod config;
pub mod elf;
mod initramfs;
mod lz4;
mod modules;
mod package;
pub mod payload;

pub use clock::time_stamp_khz;
pub use command_line::{Hypervisor, command_line};

use crate::{DriverError, GUEST, doing};
use api::finding::Finding;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A kernel that microVMs can be started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What it calls itself: `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The uncompressed ELF image.
    pub image: PathBuf,
    /// The initial file system: the guest's program and modules.
    pub initramfs: PathBuf,
    /// Names the content of image and modules, in hexadecimal.
    pub digest: String,
    /// Names the content of the guest's program, in hexadecimal.
    pub guest_digest: String,
    /// Where it comes from and why it fits, a sentence each.
    pub notes: Vec<String>,
}

/// What is written beside an unpacked kernel, last: a directory without it is half made.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    release: String,
    digest: String,
    origin: String,
    /// The digest of the file that it was made from; none for the package.
    given: Option<String>,
    notes: Vec<String>,
}

const RECORD: &str = "kernel.json";
const IMAGE: &str = "vmlinux";
const MODULES: &str = "modules";

/// Where a kernel is to be unpacked from.
struct Parts {
    image: Vec<u8>,
    config: Option<String>,
    /// `lib/modules/RELEASE`; none for a kernel that has everything built in.
    modules: Option<PathBuf>,
    origin: String,
    given: Option<String>,
}

impl Kernel {
    /// Finds the kernel: the file `given` (an ELF `vmlinux` or a bzImage `vmlinuz`, with
    /// `config-RELEASE` beside it and `lib/modules/RELEASE` beside its folder, where there are
    /// any); else what was unpacked in `data_dir` before; else the distribution's package, which
    /// is downloaded. `progress` is told what takes its time. Blocks.
    ///
    /// The first call for a kernel takes a second or more, later ones some milliseconds. Only one
    /// process may work in `data_dir`.
    pub fn find(
        data_dir: &Path,
        given: Option<&Path>,
        mut progress: impl FnMut(&str),
    ) -> Result<Self, DriverError> {
        let folder = data_dir.join("kernel");
        fs::create_dir_all(&folder).map_err(doing(format!("make {}", folder.display())))?;
        remove_partial(&folder);
        let file = given.map(Given::read).transpose()?;
        let wanted = file.as_ref().map(|file| file.digest.as_str());
        let found = unpacked(&folder)
            .into_iter()
            .find(|(_, record)| record.given.as_deref() == wanted);
        let (directory, record) = match (found, file) {
            (Some(found), _) => found,
            (None, Some(file)) => {
                progress("unpacking the guest's kernel");
                unpack(&folder, file.parts())?
            }
            (None, None) => {
                let package = package::fetch(&folder, &mut progress)?;
                progress("unpacking the guest's kernel");
                unpack(&folder, package.parts()?)?
            }
        };
        let guest_digest = digest(&[GUEST]);
        let initramfs = initramfs(&directory, &guest_digest)?;
        let mut notes = vec![record.origin];
        notes.extend(record.notes);
        Ok(Self {
            release: record.release,
            image: directory.join(IMAGE),
            initramfs,
            digest: record.digest,
            guest_digest,
            notes,
        })
    }
}

/// What `doctor` tells of the kernel that [`Kernel::find`] would give: which one, and why it fits
/// or does not. Downloads and writes nothing; asks `apt-cache` if none was unpacked yet.
pub fn check(data_dir: &Path, given: Option<&Path>) -> Finding {
    const NAME: &str = "guest kernel";
    let told = || -> Result<String, DriverError> {
        let file = given.map(Given::read).transpose()?;
        let wanted = file.as_ref().map(|file| file.digest.as_str());
        let mut known = unpacked(&data_dir.join("kernel")).into_iter();
        if let Some((_, record)) = known.find(|(_, record)| record.given.as_deref() == wanted) {
            let notes = record.notes.join("; ");
            return Ok(format!("{}: {}; {notes}", record.release, record.origin));
        }
        match file {
            Some(file) => {
                let parts = file.parts();
                let release = check_parts(&parts)?;
                Ok(format!("{release}: {}; {}", parts.origin, fitness(&parts)))
            }
            None => {
                let (name, version) = package::look()?;
                Ok(format!(
                    "{name} {version} will be downloaded for the first microVM"
                ))
            }
        }
    };
    match told() {
        Ok(text) => Finding::ok(NAME, text),
        // Sandboxes can do without microVMs, but a file that was named is wanted.
        Err(DriverError::Unsupported { cause, remedy }) if given.is_none() => {
            Finding::warning(NAME, cause, remedy)
        }
        Err(DriverError::Unsupported { cause, remedy }) => Finding::missing(NAME, cause, remedy),
        Err(error) => {
            let source = std::error::Error::source(&error);
            let why = source.map_or_else(String::new, |source| format!(": {source}"));
            Finding::missing(
                NAME,
                format!("{error}{why}"),
                "Name a file that can be read",
            )
        }
    }
}

/// The release, or why it cannot be used.
fn check_parts(parts: &Parts) -> Result<String, DriverError> {
    let release = payload::release(&parts.image).ok_or_else(|| unfit("it is no Linux kernel"))?;
    let missing = parts
        .config
        .as_deref()
        .map(|text| config::Config::parse(text).missing());
    match missing {
        Some(missing) if !missing.is_empty() => Err(unfit(&missing.join("; "))),
        _ => Ok(release),
    }
}

fn fitness(parts: &Parts) -> &'static str {
    match parts.config {
        Some(_) => "its configuration has all that microVMs need",
        None => "its configuration is not known; the first start will tell",
    }
}

/// A file that the user named.
struct Given {
    path: PathBuf,
    content: Vec<u8>,
    digest: String,
}

impl Given {
    fn read(path: &Path) -> Result<Self, DriverError> {
        let content = fs::read(path).map_err(doing(format!("read {}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            digest: digest(&[&content]),
            content,
        })
    }

    fn parts(self) -> Parts {
        let release = payload::release(&self.content);
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let config = release
            .as_ref()
            .and_then(|release| fs::read_to_string(folder.join(format!("config-{release}"))).ok());
        let modules = release.as_ref().and_then(|release| {
            let tail = Path::new("lib/modules").join(release);
            let places = [folder.join("..").join(&tail), Path::new("/").join(&tail)];
            places.into_iter().find(|place| place.is_dir())
        });
        Parts {
            origin: format!("the kernel is {}", self.path.display()),
            image: self.content,
            config,
            modules,
            given: Some(self.digest),
        }
    }
}

fn unpacked(folder: &Path) -> Vec<(PathBuf, Record)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let records = entries.filter_map(|entry| {
        let text = fs::read(entry.path().join(RECORD)).ok()?;
        Some((entry.path(), serde_json::from_slice(&text).ok()?))
    });
    records.collect()
}

/// Removes what an earlier run left half made.
fn remove_partial(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

const PARTIAL: &str = "partial-";

fn unpack(folder: &Path, parts: Parts) -> Result<(PathBuf, Record), DriverError> {
    let release = check_parts(&parts)?;
    let image = payload::extract(&parts.image).map_err(|error| unfit(&error.to_string()))?;
    let modules = match &parts.modules {
        Some(directory) => modules::gather(directory)?,
        None => Vec::new(),
    };
    let mut notes = vec![fitness(&parts).to_owned()];
    let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    notes.push(match names.len() {
        0 => "it is started without modules".to_owned(),
        _ => format!("the guest loads {}", names.join(", ")),
    });
    let mut contents = vec![&image[..]];
    contents.extend(modules.iter().map(|module| &module.content[..]));
    let record = Record {
        digest: digest(&contents),
        release,
        origin: parts.origin,
        given: parts.given,
        notes,
    };
    let partial = folder.join(format!("{PARTIAL}{}", std::process::id()));
    let name: String = record.digest.chars().take(16).collect();
    let directory = folder.join(name);
    let write = || -> io::Result<()> {
        fs::create_dir_all(partial.join(MODULES))?;
        fs::write(partial.join(IMAGE), &image)?;
        let mut order = String::new();
        for module in &modules {
            fs::write(partial.join(MODULES).join(&module.name), &module.content)?;
            order.push_str(&module.name);
            order.push('\n');
        }
        fs::write(partial.join(MODULES).join("order"), order)?;
        fs::write(partial.join(RECORD), serde_json::to_vec_pretty(&record)?)?;
        rustix::fs::syncfs(fs::File::open(&partial)?)?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&partial, &directory)
    };
    write().map_err(doing(format!("unpack a kernel in {}", folder.display())))?;
    remove_partial(folder);
    Ok((directory, record))
}

/// The initial file system for this guest program; made if it is not there.
fn initramfs(directory: &Path, guest_digest: &str) -> Result<PathBuf, DriverError> {
    let short: String = guest_digest.chars().take(16).collect();
    let path = directory.join(format!("initramfs-{short}.cpio"));
    if path.is_file() {
        return Ok(path);
    }
    let make = || -> io::Result<()> {
        for entry in fs::read_dir(directory)?.flatten() {
            // Of an earlier guest program.
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with("initramfs-")
            {
                fs::remove_file(entry.path())?;
            }
        }
        let folder = directory.join(MODULES);
        let order = fs::read_to_string(folder.join("order"))?;
        let mut modules = Vec::new();
        for name in order.lines() {
            modules.push((name.to_owned(), fs::read(folder.join(name))?));
        }
        let partial = path.with_extension("partial");
        fs::write(&partial, initramfs::write(GUEST, &order, &modules))?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &path)
    };
    make().map_err(doing(format!("write {}", path.display())))?;
    Ok(path)
}

fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn unfit(why: &str) -> DriverError {
    DriverError::Unsupported {
        cause: format!("the guest's kernel cannot be used: {why}"),
        remedy: "name another kernel, or leave it to the distribution's package \
                 `linux-image-cloud-amd64`"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;

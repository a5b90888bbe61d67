//! A directory that is being filled, and the layers below it: resolving paths without leaving.
//!
//! Every look-up goes through `openat2(2)` relative to the root's descriptor. Symbolic links that
//! the layer itself made are followed by hand, part by part, with `/` and `..` ending at the root.

use super::{Fault, path::NAME_MAX};
use crate::limits::{LimitExceeded, Limits};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

/// The most symbolic links followed for one path, as in the kernel.
const LINKS_MAX: usize = 40;
/// The extended attribute by which overlayfs knows that a directory hides all below it.
pub const OPAQUE: &str = "trusted.overlay.opaque";

/// A directory inside a root, by its real path: no part of it is a symbolic link.
pub struct Place {
    /// The directory, opened with `O_PATH`.
    pub directory: OwnedFd,
    /// Relative to the root.
    pub path: PathBuf,
}

/// Opens `path` below `root`, which must be made of real names; no symbolic link is followed.
pub fn open_real(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// Opens a directory of the host by its path.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What `name` in `directory` is, without following it; `None` if there is nothing.
pub fn look(directory: impl AsFd, name: &OsStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The type of file that `stat` tells.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether this is how overlayfs marks a name as gone: a character device 0:0.
pub fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The layers below the one that is being unpacked, uppermost first.
pub struct Lowers(Vec<OwnedFd>);

/// What the layers below have at a path.
pub enum Below {
    /// Nothing, or something that is hidden.
    Nothing,
    /// A directory, opened with `O_PATH`.
    Directory(OwnedFd),
    /// A symbolic link with this target.
    Symlink(OsString),
    /// A file of another type.
    Other,
}

impl Lowers {
    /// Opens the layers at `paths`, uppermost first.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Errno> {
        paths
            .iter()
            .map(|path| open_root(path))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What the layers, laid over each other, have at the real path `path`.
    pub fn find(&self, path: &Path) -> Result<Below, Errno> {
        for layer in &self.0 {
            match open_real(layer, path, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => {
                    let stat = rustix::fs::fstat(&found)?;
                    return Ok(match kind(&stat) {
                        FileType::Directory => Below::Directory(found),
                        FileType::Symlink => {
                            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                            Below::Symlink(OsString::from_vec(target.into_bytes()))
                        }
                        _ if is_whiteout(&stat) => Below::Nothing,
                        _ => Below::Other,
                    });
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    if hides(layer, path)? {
                        return Ok(Below::Nothing);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Below::Nothing)
    }
}

/// Whether something in `layer` above `path` hides what lower layers have there.
fn hides(layer: &OwnedFd, path: &Path) -> Result<bool, Errno> {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
    parents.reverse();
    for parent in parents {
        match open_real(layer, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => {
                let mut value = [0u8; 4];
                match rustix::fs::fgetxattr(&directory, OPAQUE, &mut value) {
                    Ok(length) if value[..length] == *b"y" => return Ok(true),
                    _ => {}
                }
            }
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A directory that is being filled.
pub struct Tree {
    /// The root.
    pub root: OwnedFd,
    lowers: Lowers,
    limits: Limits,
    /// The last parent that was resolved, as it was asked for.
    cached: Option<(PathBuf, Place)>,
    /// Whether `cached` may lead elsewhere now.
    stale: bool,
    /// Whether something was taken from the layers below: then the result holds only above them.
    pub took_from_below: bool,
    /// Directories that were made although the archive had not named them (yet).
    pub implied: Vec<PathBuf>,
}

impl Tree {
    /// A tree rooted at the directory `root`, over `lowers`.
    pub fn new(root: &Path, lowers: Lowers, limits: Limits) -> Result<Self, Errno> {
        Ok(Self {
            root: open_root(root)?,
            lowers,
            limits,
            cached: None,
            stale: false,
            took_from_below: false,
            implied: Vec::new(),
        })
    }

    /// Must be called when a directory was replaced or removed: the next [`Self::parent`] looks
    /// anew.
    pub fn forget(&mut self) {
        self.stale = true;
    }

    /// What the last [`Self::parent`] returned.
    pub fn current(&self) -> Result<&Place, Fault> {
        match &self.cached {
            Some((_, place)) => Ok(place),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// The directory `path`, which is made with its parents if it is not there.
    pub fn parent(&mut self, path: &Path) -> Result<&Place, Fault> {
        let known = matches!(&self.cached, Some((known, _)) if known == path);
        if self.stale || !known {
            let place = match self.open_place(path) {
                Ok(place) => place,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path, true)?,
                Err(error) => return Err(error.into()),
            };
            // Whatever is put somewhere may hide a symbolic link of the layers below or take the
            // place of one here, so a place that was reached through one is looked up each time.
            self.stale = place.path != path;
            self.cached = Some((path.to_owned(), place));
        }
        self.current()
    }

    /// The directory `path` if it is there.
    pub fn existing(&mut self, path: &Path) -> Result<Place, Fault> {
        match self.open_place(path) {
            Ok(place) => Ok(place),
            Err(Errno::NOTDIR | Errno::LOOP) => self.walk(path, false),
            Err(error) => Err(error.into()),
        }
    }

    fn open_place(&self, path: &Path) -> Result<Place, Errno> {
        let directory = open_real(&self.root, path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Place {
            directory,
            path: path.to_owned(),
        })
    }

    /// Hides all that the layers below have.
    ///
    /// Name by name, because overlayfs takes no notice of an opaque root.
    pub fn hide_all(&mut self) -> Result<(), Errno> {
        self.took_from_below = true;
        for layer in &self.lowers.0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            for entry in rustix::fs::Dir::read_from(open_real(layer, Path::new(""), flags)?)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                match look(&self.root, name)? {
                    None => {
                        let mode = Mode::from_raw_mode(0o600);
                        let device = FileType::CharacterDevice;
                        rustix::fs::mknodat(&self.root, name, device, mode, 0)?;
                    }
                    Some(stat) if kind(&stat) == FileType::Directory => {
                        set_opaque(&self.open_place(Path::new(name))?)?;
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// What the layers below have at the real path `path`, as far as this one does not hide it.
    fn below(&self, path: &Path) -> Result<Below, Errno> {
        match hides(&self.root, path)? {
            true => Ok(Below::Nothing),
            false => self.lowers.find(path),
        }
    }

    /// Whether what lies at the real path `path` would be laid over a directory's content below.
    pub fn is_merged(&mut self, path: &Path) -> Result<bool, Errno> {
        if hides(&self.root, path)? {
            return Ok(false);
        }
        let merged = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                matches!(self.lowers.find(parent)?, Below::Directory(_))
            }
            _ => true,
        };
        self.took_from_below |= !merged;
        Ok(merged)
    }

    /// Goes to `path` part by part, through symbolic links.
    fn walk(&mut self, path: &Path, make: bool) -> Result<Place, Fault> {
        let mut here = self.open_place(Path::new(""))?;
        let mut parts: VecDeque<OsString> = names(path);
        let mut links = 0;
        while let Some(part) = parts.pop_front() {
            if part == ".." {
                here.path.pop();
                here = self.open_place(&here.path)?;
                continue;
            }
            let next = here.path.join(&part);
            if next.as_os_str().len() > self.limits.path || part.len() > NAME_MAX {
                return Err(Fault::Path(super::path::PathError::TooLong));
            }
            if next.components().count() > self.limits.depth {
                let limit = self.limits.depth as u64;
                return Err(LimitExceeded {
                    what: "directories within each other",
                    limit,
                }
                .into());
            }
            let target = match look(&here.directory, &part)? {
                Some(stat) if kind(&stat) == FileType::Directory => {
                    here = self.open_place(&next)?;
                    continue;
                }
                Some(stat) if kind(&stat) == FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&here.directory, &part, Vec::new())?;
                    OsString::from_vec(target.into_bytes())
                }
                Some(stat) if is_whiteout(&stat) && make => {
                    rustix::fs::unlinkat(&here.directory, &part, AtFlags::empty())?;
                    self.make_directory(&here, &part, None)?;
                    let made = self.open_place(&next)?;
                    set_opaque(&made)?;
                    self.implied.push(next);
                    here = made;
                    continue;
                }
                Some(_) => return Err(Fault::NotADirectory),
                None if !make => return Err(Errno::NOENT.into()),
                None => match self.below(&next)? {
                    Below::Symlink(target) => {
                        self.took_from_below = true;
                        target
                    }
                    below => {
                        let model = match below {
                            Below::Directory(model) => Some(model),
                            _ => None,
                        };
                        self.make_directory(&here, &part, model)?;
                        here = self.open_place(&next)?;
                        self.implied.push(next);
                        continue;
                    }
                },
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            if target.as_bytes().starts_with(b"/") {
                here = self.open_place(Path::new(""))?;
            }
            for part in names(Path::new(&target)).into_iter().rev() {
                parts.push_front(part);
            }
        }
        Ok(here)
    }

    /// Makes a directory that the archive did not name, like `model` of the layers below.
    fn make_directory(
        &mut self,
        place: &Place,
        name: &OsStr,
        model: Option<OwnedFd>,
    ) -> Result<(), Fault> {
        rustix::fs::mkdirat(&place.directory, name, Mode::from_raw_mode(0o755))?;
        let made = rustix::fs::openat(
            &place.directory,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The process's umask must not decide what an image looks like.
        let mut mode = 0o755;
        if let Some(model) = model {
            self.took_from_below = true;
            let stat = rustix::fs::fstat(&model)?;
            mode = stat.st_mode & 0o7777;
            super::metadata::set_owner(&made, stat.st_uid, stat.st_gid)?;
        }
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
        Ok(())
    }
}

/// Marks a directory as hiding all that lower layers have in it.
///
/// Marks inside it that single names are gone say nothing any more, and go.
pub fn set_opaque(place: &Place) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = open_real(&place.directory, Path::new(""), flags)?;
    rustix::fs::fsetxattr(&directory, OPAQUE, b"y", rustix::fs::XattrFlags::empty())?;
    remove_whiteouts(&directory)
}

/// Recurses at most as deep as the limit that held when the directories were made.
fn remove_whiteouts(directory: &OwnedFd) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        match entry.file_type() {
            FileType::Directory if name != "." && name != ".." => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                remove_whiteouts(&open_real(directory, Path::new(name), flags)?)?;
            }
            FileType::CharacterDevice | FileType::Unknown
                if look(directory, name)?.is_some_and(|stat| is_whiteout(&stat)) =>
            {
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

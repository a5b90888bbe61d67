//! The walk over a folder: by descriptors, so that nothing that changes meanwhile leads it astray.

use crate::{
    build::{Counter, Report},
    error::ImageError,
    limits::Limits,
    store::Inner,
};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// What is done with each entry of a tree.
pub(super) trait Visit {
    /// Sees an entry that is not a directory, or a directory before its content.
    fn enter(&mut self, place: &Place<'_>) -> Result<(), Trouble>;
    /// Sees a directory after its content.
    fn leave(&mut self, _place: &Place<'_>) -> Result<(), Trouble> {
        Ok(())
    }
}

/// An entry of the tree.
pub(super) struct Place<'a> {
    /// The directory that it is in.
    pub(super) parent: &'a OwnedFd,
    /// Its name in there.
    pub(super) name: &'a OsStr,
    /// Its path below the root; empty for the root.
    pub(super) path: &'a Path,
    pub(super) stat: Stat,
}

/// Why a tree can't be copied.
pub(super) enum Trouble {
    /// It changed meanwhile.
    Changed,
    System(io::Error),
    Other(ImageError),
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Self::Changed,
            error => Self::System(error.into()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

struct Walk<'a> {
    limits: Limits,
    device: u64,
    /// The store itself, which may lie inside the tree.
    store: (u64, u64),
    report: &'a Report,
    counter: &'a Counter,
    entries: u64,
}

/// Shows every entry below `source` to `visit`, names in order.
pub(super) fn walk(
    source: &Path,
    store: &Inner,
    report: &Report,
    visit: &mut dyn Visit,
    counter: &Counter,
) -> Result<(), ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, source, flags, Mode::empty()).map_err(|error| {
        ImageError::source(
            format!(
                "can't read the folder `{}`: {}",
                source.display(),
                io::Error::from(error)
            ),
            "check the path; it is read on the node, by the user that Atoll runs as",
        )
    })?;
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    let own = rustix::fs::stat(store.layout.directory())
        .map_err(|error| ImageError::path("read", store.layout.directory())(error.into()))?;
    let stat =
        rustix::fs::fstat(&root).map_err(|error| ImageError::path("read", source)(error.into()))?;
    let mut walk = Walk {
        limits: store.options.limits,
        device: stat.st_dev,
        store: identity(own),
        report,
        counter,
        entries: 0,
    };
    let mut at = PathBuf::new();
    let result = walk.directory(&root, OsStr::new("."), &mut at, stat, visit, 0);
    result.map_err(|trouble| match trouble {
        Trouble::Changed => ImageError::source(
            format!("`{}` changed while it was read", source.join(&at).display()),
            "build again when nothing writes to the folder",
        ),
        Trouble::System(error) => ImageError::path("copy", &source.join(&at))(error),
        Trouble::Other(error) => error,
    })
}

impl Walk<'_> {
    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &mut PathBuf,
        stat: Stat,
        visit: &mut dyn Visit,
        depth: usize,
    ) -> Result<(), Trouble> {
        let too_many = |what: &str, limit: u64| {
            Trouble::Other(ImageError::source(
                format!("the folder has more than {limit} {what}"),
                "choose a smaller folder",
            ))
        };
        if depth > self.limits.depth {
            return Err(too_many(
                "directories within each other",
                self.limits.depth as u64,
            ));
        }
        visit.enter(&Place {
            parent,
            name,
            path,
            stat,
        })?;
        let foreign = stat.st_dev != self.device;
        if !foreign && (stat.st_dev, stat.st_ino) != self.store {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            names.sort();
            for name in names {
                self.report
                    .check()
                    .map_err(|_| Trouble::Other(ImageError::Cancelled))?;
                self.entries += 1;
                self.counter.add(1);
                if self.entries > self.limits.entries {
                    return Err(too_many("entries", self.limits.entries));
                }
                path.push(&name);
                let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        self.directory(&directory, &name, path, stat, visit, depth + 1)?;
                    }
                    _ => visit.enter(&Place {
                        parent: &directory,
                        name: &name,
                        path,
                        stat,
                    })?,
                }
                path.pop();
            }
        }
        visit.leave(&Place {
            parent,
            name,
            path,
            stat,
        })
    }
}

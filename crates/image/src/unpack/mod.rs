//! From a tar archive to a directory that overlayfs takes as a layer. No path leaves it.
//!
//! Archives are hostile. Names are parsed ([`path`]), then resolved below the layer's root by the
//! kernel ([`tree`]); the last part of a name is never followed. Devices are left out, attributes
//! that steer overlayfs or the host's policy are dropped, and everything is counted against
//! [`Limits`].
//!
//! Whiteouts (OCI image specification) become what overlayfs reads: a character device 0:0, and
//! `trusted.overlay.opaque` on directories. In the lowest layer they hide nothing and are dropped.
//!
//! A layer is unpacked by itself, so that its directory can serve every image that has it. Only a
//! layer that leaves out directories which it writes into needs to look at those below (for the
//! directory's owner and mode, or because it is a symbolic link there); the outcome says so.

pub mod metadata;
pub mod path;
pub mod tree;

use crate::{
    archive::{ArchiveError, ArchiveReader, Entry, EntryKind, Segment},
    limits::{LimitExceeded, Limits},
};
use path::{EntryPath, NameMeaning, PathError, meaning};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Mode, OFlags, XattrFlags},
    io::Errno,
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};
use tree::{Lowers, Place, Tree, is_whiteout, kind, look, open_real};

/// Pieces in which data is copied, and the unit in which zeros become holes.
const PIECE: usize = 256 << 10;
const PAGE: usize = 4 << 10;

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its name.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A part of its path is a file.
    #[error("a part of its path is not a directory")]
    NotADirectory,
    /// It is a hard link to something that is not a file of the same layer.
    #[error("it is a hard link to `{0}`, which is not a file of the same layer")]
    LinkTarget(String),
    /// Its owner is no number that Linux takes.
    #[error("its owner or group is not a number that Linux takes")]
    Owner,
    /// There is too much of something.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The machine could not do it.
    #[error(transparent)]
    System(io::Error),
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry is refused.
    #[error("`{path}` can't be unpacked: {fault}")]
    Entry {
        /// Its name in the archive.
        path: String,
        /// What is wrong with it.
        #[source]
        fault: Fault,
    },
    /// The layer's own directory can't be used.
    #[error("the layer's directory can't be used: {0}")]
    Root(#[source] io::Error),
}

/// What unpacking came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Entries unpacked.
    pub entries: u64,
    /// Bytes of files, holes included.
    pub bytes: u64,
    /// Device nodes and unknown entries that were left out; the first few names.
    pub skipped: Skipped,
    /// Extended attributes that were dropped.
    pub dropped_attributes: u64,
    /// Whether the result depends on the layers below, or on there being none.
    pub depends_on_lowers: bool,
}

/// Entries that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first few.
    pub examples: Vec<String>,
}

impl Skipped {
    pub(crate) fn add(&mut self, path: &Path) {
        self.count += 1;
        if self.examples.len() < 5 {
            self.examples.push(path.display().to_string());
        }
    }
}

/// Unpacks the archive `archive` (uncompressed) into the empty directory `root`.
///
/// `lowers` are the layers below, uppermost first; none for the lowest layer. On an error the
/// directory holds a part, and is for the caller to remove.
pub fn unpack(
    archive: impl Read,
    root: &Path,
    lowers: &[PathBuf],
    limits: Limits,
) -> Result<Outcome, UnpackError> {
    let refuse = |error: Errno| UnpackError::Root(error.into());
    let mut unpacker = Unpacker {
        tree: Tree::new(root, Lowers::open(lowers).map_err(refuse)?, limits).map_err(refuse)?,
        lowest: lowers.is_empty(),
        limits,
        outcome: Outcome::default(),
        directory_times: Vec::new(),
        buffer: vec![0; PIECE],
    };
    let mut archive = ArchiveReader::new(archive);
    while let Some(entry) = archive.next()? {
        unpacker
            .add(&entry, &mut archive)
            .map_err(|fault| UnpackError::Entry {
                path: String::from_utf8_lossy(&entry.path[..entry.path.len().min(300)])
                    .into_owned(),
                fault,
            })?;
    }
    // What follows the end mark is part of the stream whose digest is checked.
    let mut rest = archive.into_inner().take(limits.bytes);
    io::copy(&mut rest, &mut io::sink()).map_err(ArchiveError::Read)?;
    Ok(unpacker.finish())
}

struct Unpacker {
    tree: Tree,
    lowest: bool,
    limits: Limits,
    outcome: Outcome,
    /// Set at the end, because adding a file to a directory changes its time.
    directory_times: Vec<(PathBuf, (i64, u32))>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn add(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Fault> {
        self.outcome.entries += 1;
        if self.outcome.entries > self.limits.entries {
            return Err(LimitExceeded {
                what: "entries",
                limit: self.limits.entries,
            }
            .into());
        }
        let path = EntryPath::parse(&entry.path, self.limits.path)?;
        let Some((parent, name)) = path.split() else {
            if entry.kind == EntryKind::Directory {
                let root = open_real(&self.tree.root, Path::new(""), OFlags::RDONLY)?;
                self.dress(&root, entry)?;
                self.directory_times.push((PathBuf::new(), entry.mtime));
            }
            return Ok(());
        };
        match meaning(name) {
            NameMeaning::Plain => {}
            NameMeaning::Reserved => {
                self.outcome.skipped.add(path.as_path());
                return Ok(());
            }
            _ if self.lowest => {
                self.outcome.depends_on_lowers = true;
                return Ok(());
            }
            NameMeaning::Opaque => {
                let place = self.tree.parent(parent)?;
                if place.path.as_os_str().is_empty() {
                    self.tree.hide_all()?;
                } else {
                    tree::set_opaque(place)?;
                }
                return Ok(());
            }
            NameMeaning::Whiteout(hidden) => return self.white_out(parent, hidden),
        }
        if matches!(entry.kind, EntryKind::Device | EntryKind::Other(_)) {
            self.outcome.skipped.add(path.as_path());
            return Ok(());
        }
        match entry.kind {
            EntryKind::Directory => self.add_directory(parent, name, entry),
            EntryKind::HardLink => self.add_hard_link(parent, name, entry),
            EntryKind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(Fault::Path(PathError::Nul));
                }
                let place = clear(&mut self.tree, parent, name)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &place.directory, name)?;
                dress_by_name(place, name, entry, false)
            }
            EntryKind::Fifo => {
                let place = clear(&mut self.tree, parent, name)?;
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(&place.directory, name, FileType::Fifo, mode, 0)?;
                dress_by_name(place, name, entry, true)
            }
            _ => self.add_file(parent, name, entry, data),
        }
    }

    /// Marks `hidden` as gone from the layers below.
    ///
    /// Only where there is a directory below: in one that nothing is merged with, overlayfs would
    /// list the mark as a file.
    fn white_out(&mut self, parent: &Path, hidden: &OsStr) -> Result<(), Fault> {
        let place = self.tree.parent(parent)?;
        let path = place.path.join(hidden);
        match look(&place.directory, hidden)? {
            None => {
                let directory = place.directory.try_clone().map_err(Fault::System)?;
                if self.tree.is_merged(&path)? {
                    let mode = Mode::from_raw_mode(0o600);
                    rustix::fs::mknodat(&directory, hidden, FileType::CharacterDevice, mode, 0)?;
                }
            }
            // A whiteout is about the layers below; the layer's own directory stays, and hides.
            Some(stat) if kind(&stat) == FileType::Directory => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let directory = open_real(&self.tree.root, &path, flags)?;
                tree::set_opaque(&Place { directory, path })?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn add_directory(&mut self, parent: &Path, name: &OsStr, entry: &Entry) -> Result<(), Fault> {
        let place = self.tree.parent(parent)?;
        let path = place.path.join(name);
        let depth = path.components().count();
        if path.as_os_str().len() > self.limits.path {
            return Err(PathError::TooLong.into());
        }
        if depth > self.limits.depth {
            let limit = self.limits.depth as u64;
            return Err(LimitExceeded {
                what: "directories within each other",
                limit,
            }
            .into());
        }
        let there = look(&place.directory, name)?;
        let is_directory = |stat: &rustix::fs::Stat| kind(stat) == FileType::Directory;
        let keeps = there.as_ref().is_some_and(is_directory);
        if !keeps {
            let place = clear(&mut self.tree, parent, name)?;
            rustix::fs::mkdirat(&place.directory, name, Mode::from_raw_mode(0o700))?;
        }
        let directory = open_real(&self.tree.root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        // What was there before, a whiteout or a file, had hidden what lies below.
        if there.is_some() && !keeps && !self.lowest {
            rustix::fs::fsetxattr(&directory, tree::OPAQUE, b"y", XattrFlags::empty())?;
        }
        self.dress(&directory, entry)?;
        self.directory_times.push((path, entry.mtime));
        Ok(())
    }

    fn add_hard_link(&mut self, parent: &Path, name: &OsStr, entry: &Entry) -> Result<(), Fault> {
        let refuse = || {
            let shown = &entry.link[..entry.link.len().min(300)];
            Fault::LinkTarget(String::from_utf8_lossy(shown).into_owned())
        };
        let target = EntryPath::parse(&entry.link, self.limits.path)?;
        let (target_parent, target_name) = target.split().ok_or_else(refuse)?;
        let from = match self.tree.existing(target_parent) {
            Ok(place) => place,
            Err(Fault::System(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refuse());
            }
            Err(fault) => return Err(fault),
        };
        let stat = look(&from.directory, target_name)?.ok_or_else(refuse)?;
        if kind(&stat) == FileType::Directory || is_whiteout(&stat) {
            return Err(refuse());
        }
        let place = self.tree.parent(parent)?;
        if let Some(there) = look(&place.directory, name)?
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        let place = clear(&mut self.tree, parent, name)?;
        // Clearing the name may have removed the directory in which the target was.
        match rustix::fs::linkat(
            &from.directory,
            target_name,
            &place.directory,
            name,
            AtFlags::empty(),
        ) {
            Err(Errno::NOENT) => Err(refuse()),
            result => Ok(result?),
        }
    }

    fn add_file(
        &mut self,
        parent: &Path,
        name: &OsStr,
        entry: &Entry,
        data: &mut impl Read,
    ) -> Result<(), Fault> {
        self.outcome.bytes = self.outcome.bytes.saturating_add(entry.size);
        if self.outcome.bytes > self.limits.bytes {
            return Err(LimitExceeded {
                what: "bytes",
                limit: self.limits.bytes,
            }
            .into());
        }
        let place = clear(&mut self.tree, parent, name)?;
        let file = File::from(rustix::fs::openat(
            &place.directory,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?);
        let whole = [Segment {
            offset: 0,
            length: entry.size,
        }];
        for segment in entry.sparse.as_deref().unwrap_or(&whole) {
            self.write(&file, *segment, data)?;
        }
        file.set_len(entry.size)?;
        let file = OwnedFd::from(file);
        self.dress(&file, entry)?;
        rustix::fs::futimens(&file, &metadata::times(entry.mtime))?;
        Ok(())
    }

    /// Copies a segment; whole pages of zeros are left out and so become holes.
    fn write(&mut self, file: &File, segment: Segment, data: &mut impl Read) -> Result<(), Fault> {
        let mut offset = segment.offset;
        let mut left = segment.length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let piece = &mut self.buffer[..wanted];
            data.read_exact(piece)?;
            write_without_zeros(file, piece, offset)?;
            offset += wanted as u64;
            left -= wanted as u64;
        }
        Ok(())
    }

    /// Sets owner, mode and attributes, in this order: a change of owner clears set-user-id and
    /// file capabilities.
    fn dress(&mut self, file: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
        let (Some(uid), Some(gid)) = (metadata::id(entry.uid), metadata::id(entry.gid)) else {
            return Err(Fault::Owner);
        };
        metadata::set_owner(file, uid, gid)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        for (name, value) in &entry.xattrs {
            if !metadata::is_kept(name, value) {
                self.outcome.dropped_attributes += 1;
                continue;
            }
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // The file system has none, or no room for this one.
                Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::RANGE) => {
                    self.outcome.dropped_attributes += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        for (path, mtime) in self.directory_times.iter().rev() {
            // A directory that a later entry replaced has no time to set.
            if let Ok(directory) =
                open_real(&self.tree.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
            {
                _ = rustix::fs::futimens(&directory, &metadata::times(*mtime));
            }
        }
        // Directories that the archive never named get a time that does not depend on the clock.
        let named: std::collections::HashSet<&PathBuf> =
            self.directory_times.iter().map(|(path, _)| path).collect();
        for path in self
            .tree
            .implied
            .iter()
            .filter(|path| !named.contains(path))
        {
            if let Ok(directory) =
                open_real(&self.tree.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
            {
                _ = rustix::fs::futimens(&directory, &metadata::times((0, 0)));
            }
        }
        self.outcome.depends_on_lowers |= self.tree.took_from_below;
        self.outcome
    }
}

/// Makes sure that `name` in `parent` is free, and returns the parent.
fn clear<'a>(tree: &'a mut Tree, parent: &Path, name: &OsStr) -> Result<&'a Place, Fault> {
    let place = tree.parent(parent)?;
    match look(&place.directory, name)? {
        None => {}
        Some(stat) if kind(&stat) == FileType::Directory => {
            remove_tree(&place.directory, name)?;
            tree.forget();
        }
        Some(_) => rustix::fs::unlinkat(&place.directory, name, AtFlags::empty())?,
    }
    tree.current()
}

/// Removes a directory and all in it. It is at most as deep as [`Limits::depth`].
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> Result<(), Fault> {
    let directory = rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut entries = rustix::fs::Dir::read_from(&directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(&directory, name)?,
            result => result?,
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Sets owner, mode and time of what can't be opened without side effects.
fn dress_by_name(place: &Place, name: &OsStr, entry: &Entry, has_mode: bool) -> Result<(), Fault> {
    use rustix::fs::{Gid, Uid, chmodat, chownat, utimensat};
    let (Some(uid), Some(gid)) = (metadata::id(entry.uid), metadata::id(entry.gid)) else {
        return Err(Fault::Owner);
    };
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(&place.directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if has_mode {
        // Just made here and not a symbolic link, so nothing is followed.
        chmodat(
            &place.directory,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )?;
    }
    let times = metadata::times(entry.mtime);
    utimensat(&place.directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Writes `piece` at `offset`, leaving out its whole pages of zeros.
pub(crate) fn write_without_zeros(file: &File, piece: &[u8], offset: u64) -> io::Result<()> {
    let mut start = 0;
    let mut at = 0;
    while at < piece.len() {
        let end = (at + PAGE).min(piece.len());
        if end - at == PAGE && is_zero(&piece[at..end]) {
            if start < at {
                file.write_all_at(&piece[start..at], offset + start as u64)?;
            }
            start = end;
        }
        at = end;
    }
    if start < piece.len() {
        file.write_all_at(&piece[start..], offset + start as u64)?;
    }
    Ok(())
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compared in words: most pages differ in the first.
    bytes
        .chunks(8)
        .all(|word| word.iter().all(|byte| *byte == 0))
}

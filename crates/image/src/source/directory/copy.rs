//! Copying a folder into a layer, and computing the layer's name meanwhile.

use super::walk::{Place, Trouble, Visit, walk};
use crate::{
    build::{Counter, Report, tell_skipped},
    digest::{Digest, Hasher},
    error::ImageError,
    limits::Limits,
    store::{Inner, LayerRecord, LayerUse},
    unpack::{Skipped, is_zero, metadata, write_without_zeros},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid, XattrFlags},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

const PIECE: usize = 256 << 10;
const PAGE: usize = 4 << 10;

/// Copies a tree into a new layer. Blocks.
pub(super) fn copy(
    source: &Path,
    store: &Arc<Inner>,
    report: &Report,
    counter: &Counter,
) -> Result<LayerUse, ImageError> {
    let made = store.layout.temporary()?;
    let root = made.path().join("root");
    std::fs::create_dir(&root).map_err(ImageError::path("create", &root))?;
    let target = crate::unpack::tree::open_root(&root)
        .map_err(|error| ImageError::path("open", &root)(error.into()))?;
    let mut copier = Copier {
        root: target,
        counter,
        limits: store.options.limits,
        hasher: Hasher::default(),
        links: HashMap::new(),
        skipped: Skipped::default(),
        bytes: 0,
        entries: 0,
        reflinks: true,
        buffer: vec![0; PIECE],
    };
    copier.hasher.field(b"atoll tree 1");
    walk(source, store, report, &mut copier, &Counter::default())?;
    tell_skipped(report, &copier.skipped);
    let name: Digest = copier.hasher.finish();
    let record = LayerRecord {
        content: name,
        bytes: copier.bytes,
        entries: copier.entries,
    };
    store.publish_layer(made, name, &record)
}

struct Copier<'a> {
    root: OwnedFd,
    counter: &'a Counter,
    limits: Limits,
    hasher: Hasher,
    /// Where a file with several names was copied to first.
    links: HashMap<(u64, u64), PathBuf>,
    skipped: Skipped,
    bytes: u64,
    entries: u64,
    reflinks: bool,
    buffer: Vec<u8>,
}

impl Visit for Copier<'_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let kind = FileType::from_raw_mode(place.stat.st_mode);
        if !matches!(
            kind,
            FileType::Directory | FileType::RegularFile | FileType::Symlink | FileType::Fifo
        ) {
            self.skipped.add(place.path);
            return Ok(());
        }
        self.entries += 1;
        self.describe(place);
        if kind == FileType::Directory {
            if !place.path.as_os_str().is_empty() {
                rustix::fs::mkdirat(&self.root, place.path, Mode::from_raw_mode(0o700))?;
            }
            return Ok(());
        }
        let identity = (place.stat.st_dev, place.stat.st_ino);
        if place.stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity) {
                self.hasher.field(first.as_os_str().as_bytes());
                rustix::fs::linkat(&self.root, first, &self.root, place.path, AtFlags::empty())?;
                return Ok(());
            }
            self.links.insert(identity, place.path.to_owned());
        }
        match kind {
            FileType::RegularFile => self.file(place),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(place.parent, place.name, Vec::new())?;
                self.hasher.field(target.as_bytes());
                rustix::fs::symlinkat(target, &self.root, place.path)?;
                self.dress_by_name(place, false)
            }
            _ => {
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(&self.root, place.path, FileType::Fifo, mode, 0)?;
                self.dress_by_name(place, true)
            }
        }
    }

    fn leave(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::openat(place.parent, place.name, flags, Mode::empty())?;
        let path = match place.path.as_os_str().is_empty() {
            true => Path::new("."),
            false => place.path,
        };
        let target = rustix::fs::openat(&self.root, path, flags, Mode::empty())?;
        self.dress(&source, &target, &place.stat)
    }
}

impl Copier<'_> {
    /// Adds what an entry is to the digest.
    fn describe(&mut self, place: &Place<'_>) {
        let stat = &place.stat;
        self.hasher.field(place.path.as_os_str().as_bytes());
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.hasher.update(&number.to_le_bytes());
        }
        self.hasher.update(&stat.st_mtime.to_le_bytes());
        self.hasher.update(&stat.st_mtime_nsec.to_le_bytes());
    }

    fn file(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = File::from(rustix::fs::openat(
            place.parent,
            place.name,
            flags,
            Mode::empty(),
        )?);
        let before = rustix::fs::fstat(&source)?;
        if !is_same(&before, &place.stat) {
            return Err(Trouble::Changed);
        }
        let size = before.st_size as u64;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(Trouble::Other(ImageError::source(
                format!("the folder has more than {} bytes", self.limits.bytes),
                "choose a smaller folder",
            )));
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let target = File::from(rustix::fs::openat(&self.root, place.path, flags, mode)?);
        let shared = self.reflinks && rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        // A file system that can't do it once can't do it at all.
        self.reflinks = shared || size == 0 && self.reflinks;
        self.content(&source, (!shared).then_some(&target), size)?;
        target.set_len(size)?;
        if !is_same(&rustix::fs::fstat(&source)?, &before) {
            return Err(Trouble::Changed);
        }
        self.dress(source.as_fd(), target.as_fd(), &before)
    }

    /// Reads a file's data, skipping its holes: into the digest, and into `target` if given.
    fn content(&mut self, source: &File, target: Option<&File>, size: u64) -> Result<(), Trouble> {
        self.hasher.update(&size.to_le_bytes());
        let mut position = 0;
        while position < size {
            let start = match rustix::fs::seek(source, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // A file system without holes: all is data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
                Err(error) => return Err(error.into()),
            };
            let end = match rustix::fs::seek(source, SeekFrom::Hole(start)) {
                Ok(end) => end.min(size),
                Err(_) => size,
            };
            // From a page's start, so that the digest does not depend on where holes begin.
            let mut at = start - start % PAGE as u64;
            while at < end {
                let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let piece = &mut self.buffer[..wanted];
                source
                    .read_exact_at(piece, at)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => Trouble::Changed,
                        _ => Trouble::System(error),
                    })?;
                for (index, page) in piece.chunks(PAGE).enumerate() {
                    if !is_zero(page) {
                        self.hasher
                            .update(&(at + (index * PAGE) as u64).to_le_bytes());
                        self.hasher.field(page);
                    }
                }
                if let Some(target) = target {
                    write_without_zeros(target, piece, at)?;
                }
                at += wanted as u64;
            }
            position = end;
        }
        self.hasher.field(b"end");
        self.counter.add(size);
        Ok(())
    }

    /// Copies owner, mode, attributes and times.
    fn dress(&mut self, source: impl AsFd, target: impl AsFd, stat: &Stat) -> Result<(), Trouble> {
        let (source, target) = (source.as_fd(), target.as_fd());
        metadata::set_owner(target, stat.st_uid, stat.st_gid)?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for name in list_attributes(source)? {
            let mut value = vec![0u8; 64 << 10];
            let Ok(length) = rustix::fs::fgetxattr(source, name.as_slice(), &mut value) else {
                continue;
            };
            let value = &value[..length];
            if metadata::is_kept(&name, value)
                && rustix::fs::fsetxattr(target, name.as_slice(), value, XattrFlags::empty())
                    .is_ok()
            {
                self.hasher.field(&name);
                self.hasher.field(value);
            }
        }
        rustix::fs::futimens(target, &metadata::times(mtime(stat)))?;
        Ok(())
    }

    fn dress_by_name(&self, place: &Place<'_>, has_mode: bool) -> Result<(), Trouble> {
        use rustix::fs::{chmodat, chownat, utimensat};
        let (stat, path) = (&place.stat, place.path);
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        chownat(
            &self.root,
            path,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if has_mode {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            chmodat(&self.root, path, mode, AtFlags::empty())?;
        }
        let times = metadata::times(mtime(stat));
        utimensat(&self.root, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

fn mtime(stat: &Stat) -> (i64, u32) {
    (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
    )
}

/// Whether nothing wrote to a file between two looks at it.
fn is_same(one: &Stat, other: &Stat) -> bool {
    let state = |stat: &Stat| {
        (
            stat.st_dev,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_ctime,
            stat.st_ctime_nsec,
        )
    };
    state(one) == state(other)
}

fn list_attributes(file: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::flistxattr(file, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}

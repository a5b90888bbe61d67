//! What a machine's pages hold: a memory file, perhaps beneath what differs from it.

use crate::sparse::{PAGE, for_each_part};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// One file, mapped, and where it has content.
struct Layer {
    address: *const u8,
    length: usize,
    /// From and to, in ascending order, on whole pages.
    parts: Vec<(u64, u64)>,
}

impl Layer {
    fn new(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        if length == 0 || bytes % PAGE != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a memory of an odd size",
            ));
        }
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for_each_part(file, bytes, |from, to| {
            parts.push((from / PAGE * PAGE, to.next_multiple_of(PAGE)));
            Ok(())
        })?;
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(Self {
            address: address.cast_const().cast(),
            length,
            parts,
        })
    }

    /// Whether there is content at an offset, and up to where it is so.
    fn content_at(&self, offset: u64) -> (bool, u64) {
        let next = self.parts.partition_point(|(_, to)| *to <= offset);
        match self.parts.get(next) {
            Some((from, to)) if *from <= offset => (true, *to),
            Some((from, _)) => (false, *from),
            None => (false, self.length as u64),
        }
    }

    fn bytes(&self, from: u64, to: u64) -> &[u8] {
        let (from, to) = (from as usize, (to as usize).min(self.length));
        // SAFETY: mapped for reading for as long as this value lives. The files of saved states
        // never change.
        let all = unsafe { std::slice::from_raw_parts(self.address, self.length) };
        all.get(from..to).unwrap_or_default()
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows it any more.
        let _ = unsafe { munmap(self.address.cast_mut().cast(), self.length) };
    }
}

/// What some pages side by side hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Zeros, so many bytes of them.
    Zeros(u64),
}

impl Content<'_> {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(length) => *length,
        }
    }
}

/// All of a machine's memory, as it was saved.
pub(super) struct Source {
    /// The uppermost first; all of the same length.
    layers: Vec<Layer>,
    length: u64,
}

impl Source {
    /// From memory files, the uppermost first: where one has a hole, the next counts.
    pub(super) fn new(files: impl IntoIterator<Item = OwnedFd>) -> io::Result<Self> {
        let layers = files
            .into_iter()
            .map(|file| Layer::new(&File::from(file)))
            .collect::<io::Result<Vec<_>>>()?;
        let length = layers.first().map_or(0, |layer| layer.length);
        if length == 0 || layers.iter().any(|layer| layer.length != length) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "memories of different sizes",
            ));
        }
        Ok(Self {
            layers,
            length: length as u64,
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What pages hold from one offset on, up to another at most: as much as is of one kind. Both
    /// are on whole pages, and `from` is less than `to`.
    pub(super) fn content(&self, from: u64, to: u64) -> Content<'_> {
        let mut end = to.min(self.length);
        for layer in &self.layers {
            let (is_there, until) = layer.content_at(from);
            end = end.min(until);
            if is_there {
                return Content::Bytes(layer.bytes(from, end));
            }
        }
        Content::Zeros(end.saturating_sub(from))
    }

    /// Writes what pages hold from an offset on over a buffer.
    pub(super) fn read(&self, from: u64, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = from + done as u64;
            let content = self.content(at, from + buffer.len() as u64);
            let length = content.length() as usize;
            let Some(part) = buffer.get_mut(done..done + length).filter(|_| length > 0) else {
                return;
            };
            match content {
                Content::Bytes(bytes) => part.copy_from_slice(bytes),
                Content::Zeros(_) => part.fill(0),
            }
            done += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparse;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_differs_lies_over_what_it_differs_from() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, pages: &[(u64, u8)]| {
            let file = sparse::create(&directory.path().join(name)).unwrap();
            file.set_len(1 << 20).unwrap();
            for (page, byte) in pages {
                file.write_all_at(&[*byte; 4096], page * PAGE).unwrap();
            }
            OwnedFd::from(file)
        };
        let base = file("base", &[(1, 1), (2, 1), (3, 1)]);
        // A page of zeros is content.
        let difference = file("difference", &[(2, 0), (5, 2)]);
        let source = Source::new([difference, base]).unwrap();
        let whole = |page: u64| source.content(page * PAGE, 1 << 20);
        assert_eq!(whole(0), Content::Zeros(PAGE));
        assert_eq!(whole(1), Content::Bytes(&[1; 4096]));
        assert_eq!(whole(2), Content::Bytes(&[0; 4096]));
        assert_eq!(whole(3), Content::Bytes(&[1; 4096]));
        assert_eq!(whole(4), Content::Zeros(PAGE));
        assert_eq!(whole(5), Content::Bytes(&[2; 4096]));
        assert_eq!(whole(6), Content::Zeros((1 << 20) - 6 * PAGE));
        let mut all = vec![9; 8 * 4096];
        source.read(0, &mut all);
        let bytes: Vec<u8> = all.chunks(4096).map(|page| page[0]).collect();
        assert_eq!(bytes, [0, 1, 0, 1, 0, 2, 0, 0]);
        let short = file("short", &[]);
        File::from(short.try_clone().unwrap())
            .set_len(4096)
            .unwrap();
        assert!(Source::new([short, file("other", &[])]).is_err());
        assert!(Source::new([]).is_err());
    }
}

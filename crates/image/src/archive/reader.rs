//! The walk over an archive's entries.

use super::{
    ArchiveError,
    header::{BLOCK, Header, parse_gnu_sparse, parse_gnu_sparse_more, parse_header},
    pax::{Extended, SEGMENTS_MAX, decimal, parse_extended},
};
use std::io::{self, Read};

pub use super::header::Segment;

/// The longest name that an archive may give in a long-name entry.
const NAME_MAX: u64 = 16 << 10;
/// The most extended records of one entry, in bytes.
const EXTENDED_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name for an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
    /// Something that no root file system needs.
    Other(u8),
}

/// One entry of an archive, with long names and extended records applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as the archive gives it: hostile.
    pub path: Vec<u8>,
    /// The link's target, as the archive gives it: hostile.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// The file's size when unpacked.
    pub size: u64,
    /// Extended attributes by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data lies in a sparse file, ascending and within `size`; `None` if the file is
    /// not sparse.
    pub sparse: Option<Vec<Segment>>,
}

/// Reads an archive's entries one after the other.
///
/// [`ArchiveReader::next`] gives an entry; reading from the reader then gives its stored data:
/// the file's bytes, or for a sparse file its segments one after the other.
pub struct ArchiveReader<R> {
    inner: R,
    position: u64,
    data_left: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// A reader of the archive that `inner` gives, uncompressed.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            position: 0,
            data_left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// How many bytes of the archive were read so far: after [`Self::next`], where the entry's
    /// data begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream below, to read what follows the archive's end.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; `None` at the archive's end. What was not read of the last one is skipped.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip(self.data_left + self.padding)?;
            (self.data_left, self.padding) = (0, 0);
            if self.ended {
                return Ok(None);
            }
            let at = self.position;
            let mut block = [0; BLOCK];
            let header = match self.read_block(&mut block)? {
                true => parse_header(&block).map_err(|what| ArchiveError::Damaged { at, what })?,
                false => None,
            };
            let Some(header) = header else {
                self.ended = true;
                return Ok(None);
            };
            let damaged = |what| ArchiveError::Damaged { at, what };
            match header.flag {
                b'L' => long_name = Some(self.read_text(header.size)?),
                b'K' => long_link = Some(self.read_text(header.size)?),
                b'x' => {
                    let data = self.read_all(header.size, EXTENDED_MAX, "an extended header")?;
                    extended = parse_extended(&data).map_err(damaged)?;
                }
                // Defaults for all entries that follow. What publishers put here (a comment with
                // a commit's name) is of no use for a root file system.
                b'g' => _ = self.read_all(header.size, EXTENDED_MAX, "an extended header")?,
                _ => {
                    let entry = self.entry(header, &block, extended, long_name, long_link, at)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: Header,
        block: &[u8; BLOCK],
        extended: Extended,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        at: u64,
    ) -> Result<Entry, ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        let mut path = extended.path.or(long_name).unwrap_or(header.path);
        let kind = match header.flag {
            b'0' | b'7' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | b'7' | 0 | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' | b'4' => EntryKind::Device,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Other(other),
        };
        let stored = match kind {
            EntryKind::File | EntryKind::Other(_) => extended.size.unwrap_or(header.size),
            // The size field of these says nothing about data.
            _ => 0,
        };
        if stored > i64::MAX as u64 {
            return Err(damaged("its size is impossible"));
        }
        self.data_left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let mut size = stored;
        let mut sparse = None;
        if header.flag == b'S' {
            let (mut map, mut more, full) = parse_gnu_sparse(block).map_err(damaged)?;
            while more {
                let mut block = [0; BLOCK];
                if !self.read_block(&mut block)? {
                    return Err(ArchiveError::CutShort);
                }
                let (segments, again) = parse_gnu_sparse_more(&block).map_err(damaged)?;
                map.extend(segments);
                more = again;
                if map.len() > SEGMENTS_MAX {
                    return Err(damaged("its sparse map is too long"));
                }
            }
            (size, sparse) = (full, Some(map));
        } else if let Some(records) = extended.sparse
            && kind == EntryKind::File
        {
            size = records.size.ok_or(damaged("a sparse file has no size"))?;
            path = records.name.unwrap_or(path);
            let map = match records.map_in_data {
                true => self.read_map(at)?,
                false => records.map,
            };
            sparse = Some(map);
        }
        if let Some(map) = &sparse {
            let mut end = 0;
            for segment in map {
                if segment.offset < end {
                    return Err(damaged("its sparse map is not ascending"));
                }
                end = segment.offset.saturating_add(segment.length);
            }
            let total: u64 = map
                .iter()
                .fold(0, |sum, segment| segment.length.saturating_add(sum));
            if end > size || total > self.data_left || size > i64::MAX as u64 {
                return Err(damaged("its sparse map does not fit"));
            }
        }
        Ok(Entry {
            path,
            link: extended.link.or(long_link).unwrap_or(header.link),
            kind,
            mode: header.mode,
            uid: extended.uid.unwrap_or(header.uid),
            gid: extended.gid.unwrap_or(header.gid),
            mtime: extended.mtime.unwrap_or((header.mtime, 0)),
            size,
            xattrs: extended.xattrs,
            sparse,
        })
    }

    /// The map at the start of a sparse file's data: decimal lines, filled up to a block.
    fn read_map(&mut self, at: u64) -> Result<Vec<Segment>, ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        let mut buffer: Vec<u8> = Vec::new();
        let mut consumed = 0;
        let mut number = |reader: &mut Self| -> Result<u64, ArchiveError> {
            loop {
                let rest = &buffer[consumed..];
                if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let value = decimal(&rest[..end])
                        .ok_or(damaged("its sparse map is not made of numbers"))?;
                    consumed += end + 1;
                    return Ok(value);
                }
                if rest.len() > 32 || reader.data_left < BLOCK as u64 {
                    return Err(damaged("its sparse map is cut short"));
                }
                buffer.drain(..consumed);
                consumed = 0;
                let mut block = [0; BLOCK];
                reader.read_exact(&mut block)?;
                buffer.extend_from_slice(&block);
            }
        };
        let count = number(self)?;
        if count > SEGMENTS_MAX as u64 {
            return Err(damaged("its sparse map is too long"));
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push(Segment {
                offset: number(self)?,
                length: number(self)?,
            });
        }
        Ok(map)
    }

    fn read_text(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.read_all(size, NAME_MAX, "a name")?;
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    fn read_all(
        &mut self,
        size: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        if size > limit {
            return Err(ArchiveError::TooLong { what, limit });
        }
        self.data_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data)?;
        Ok(data)
    }

    /// Fills `block`; false if the stream ends exactly before it.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ArchiveError::CutShort),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    fn skip(&mut self, count: u64) -> Result<(), ArchiveError> {
        let skipped = io::copy(&mut (&mut self.inner).take(count), &mut io::sink())?;
        self.position += skipped;
        if skipped < count {
            return Err(ArchiveError::CutShort);
        }
        Ok(())
    }
}

impl<R: Read> Read for ArchiveReader<R> {
    /// Reads the entry's stored data; an archive that ends within it is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                ArchiveError::CutShort,
            ));
        }
        self.data_left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
        let mut reader = ArchiveReader::new(archive);
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            found.push((entry, data));
        }
        Ok(found)
    }

    fn archive_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn long_names_and_data_are_read() {
        let name = "directory/".repeat(40) + "file";
        let read = entries(&archive_of(&[("a", b"one"), (&name, &[7; 1000])])).unwrap();
        assert_eq!(read[0].1, b"one");
        assert_eq!(read[1].0.path, name.as_bytes());
        assert_eq!(read[1].1, [7; 1000]);
    }

    #[test]
    fn an_archive_that_is_cut_short_is_refused_wherever_it_is_cut() {
        let archive = archive_of(&[("a", &[1; 700])]);
        for cut in [100, 512, 800, 1300] {
            let result = entries(&archive[..cut]);
            assert!(result.is_err(), "cut at {cut}");
        }
        assert_eq!(entries(&archive[..1536]).unwrap().len(), 1);
    }

    #[test]
    fn an_endless_name_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = entries(header.as_bytes()).unwrap_err();
        assert!(
            matches!(
                error,
                ArchiveError::TooLong {
                    limit: NAME_MAX,
                    ..
                }
            ),
            "{error}"
        );
    }
}

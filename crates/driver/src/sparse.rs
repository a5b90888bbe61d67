//! Copies of sparse files that stay sparse.

use rustix::{
    fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek},
    io::Errno,
};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// What counts as one page, and as the smallest hole.
pub(crate) const PAGE: u64 = 4096;

/// How much is read at once.
const PART: usize = 1 << 20;

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (before, middle, after) = {
        // SAFETY: any bytes are a valid number.
        unsafe { bytes.align_to::<u128>() }
    };
    before.iter().chain(after).all(|byte| *byte == 0) && middle.iter().all(|part| *part == 0)
}

/// A new file, for reading and writing, that only its owner may open.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes a file like another: by reference where the file system can, else part by part, leaving
/// holes where there are holes. Returns it open for reading and writing.
pub(crate) fn copy_to(source: &File, path: &Path) -> io::Result<File> {
    let copy = create(path)?;
    if ioctl_ficlone(&copy, source).is_ok() {
        return Ok(copy);
    }
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    for_each_part(source, length, |begin, end| {
        let (mut from, mut to) = (begin, begin);
        while from < end {
            let want = usize::try_from(end - from).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut from), &copy, Some(&mut to), want) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // Between some file systems the kernel does not copy.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return copy_bytes(source, &copy, from, end);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })?;
    Ok(copy)
}

/// Writes a part of a file to the same place of another.
pub(crate) fn copy_bytes(source: &File, copy: &File, mut from: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0u8; PART];
    while from < end {
        let length = usize::try_from(end - from).map_or(PART, |left| left.min(PART));
        source.read_exact_at(&mut buffer[..length], from)?;
        copy.write_all_at(&buffer[..length], from)?;
        from += length as u64;
    }
    Ok(())
}

/// The same, with holes also where a page holds nothing but zeros.
pub(crate) fn copy_without_zeros(source: &File, path: &Path) -> io::Result<File> {
    let copy = create(path)?;
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    for_each_content(source, length, |at, content| copy.write_all_at(content, at))?;
    Ok(copy)
}

/// Makes a part of a file a hole.
pub(crate) fn punch(file: &File, at: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, at, length)?)
}

/// A digest of a file's length and content. Holes and zeros are the same to it.
pub(crate) fn digest(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut digest = Sha256::new();
    digest.update(length.to_le_bytes());
    for_each_content(file, length, |at, content| {
        for (content, number) in content.chunks(PAGE as usize).zip(at / PAGE..) {
            digest.update(number.to_le_bytes());
            digest.update(content);
        }
        Ok(())
    })?;
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Calls for each part that is not a hole, with where it begins and ends.
pub(crate) fn for_each_part(
    file: &File,
    length: u64,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut from = 0;
    while from < length {
        let begin = match seek(file, SeekFrom::Data(from)) {
            Ok(begin) => begin,
            // No data behind this offset.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(begin))?.min(length);
        each(begin, end)?;
        from = end;
    }
    Ok(())
}

/// Calls for each run of pages that are neither holes nor zeros, with its offset and content.
fn for_each_content(
    file: &File,
    length: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0u8; PART];
    for_each_part(file, length, |begin, end| {
        let mut at = begin / PAGE * PAGE;
        while at < end {
            let part = usize::try_from(end - at).map_or(PART, |left| left.min(PART));
            let part = &mut buffer[..part];
            file.read_exact_at(part, at)?;
            let mut offset = at;
            let pages: Vec<&[u8]> = part.chunks(PAGE as usize).collect();
            for run in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                let bytes: usize = run.iter().map(|page| page.len()).sum();
                if run.first().is_some_and(|page| !is_zero(page)) {
                    let from = (offset - at) as usize;
                    each(offset, &part[from..from + bytes])?;
                }
                offset += bytes as u64;
            }
            at += part.len() as u64;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copies_stay_sparse_and_zeros_become_holes() {
        let directory = tempfile::tempdir().unwrap();
        let source = create(&directory.path().join("source")).unwrap();
        source.set_len(100 << 20).unwrap();
        source.write_all_at(&[1; 8192], 5 << 20).unwrap();
        source.write_all_at(&[0; 1 << 20], 50 << 20).unwrap();
        source.write_all_at(b"end", (100 << 20) - 3).unwrap();
        let copy = copy_to(&source, &directory.path().join("copy")).unwrap();
        let tight = copy_without_zeros(&source, &directory.path().join("tight")).unwrap();
        for file in [&copy, &tight] {
            assert_eq!(file.metadata().unwrap().len(), 100 << 20);
            assert_eq!(digest(file).unwrap(), digest(&source).unwrap());
            let mut end = [0; 3];
            file.read_exact_at(&mut end, (100 << 20) - 3).unwrap();
            assert_eq!(&end, b"end");
        }
        assert!(copy.metadata().unwrap().blocks() * 512 <= 2 << 20);
        assert!(tight.metadata().unwrap().blocks() * 512 <= 64 << 10);
        source.write_all_at(b"x", 50 << 20).unwrap();
        assert_ne!(digest(&copy).unwrap(), digest(&source).unwrap());
        punch(&source, 50 << 20, PAGE).unwrap();
        assert_eq!(digest(&copy).unwrap(), digest(&source).unwrap());
    }
}

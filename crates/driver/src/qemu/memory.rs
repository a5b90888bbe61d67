//! A machine's memory, as pages of a process and as files.
//!
//! A *whole* memory is a sparse file, as large as the memory, in which pages of zeros are holes.
//! Machines that are resumed map it privately: a page that one of them writes becomes its own, and
//! the kernel tells which those are. So what differs from the file (a *difference*) is found
//! without asking QEMU, and without comparing what was never written.
//!
//! | file in a state's directory | what |
//! | --- | --- |
//! | `memory` | a whole memory |
//! | `memory.pages` | the pages of a difference, one after another |
//! | `memory.index` | where they belong, and which pages are zero: see [`Index`] |

use crate::sparse::{self, PAGE, is_zero};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

/// A whole memory.
pub(super) const WHOLE: &str = "memory";
/// The pages of a difference.
pub(super) const PAGES: &str = "memory.pages";
/// Where they belong.
pub(super) const INDEX: &str = "memory.index";

/// How many pages are moved between processes at once.
const BATCH: usize = 256;

/// A part of a memory file, as a process has it mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    address: u64,
    /// In the file.
    offset: u64,
    length: u64,
}

/// Pages side by side, counted from the memory's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
    /// Whether they hold zeros only, and are not in the file.
    pub(super) zero: bool,
}

/// What a difference consists of, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) runs: Vec<Run>,
}

impl Index {
    const MAGIC: &'static [u8; 8] = b"atollmp1";

    fn push(&mut self, page: u32, zero: bool) {
        match self.runs.last_mut() {
            Some(run) if run.zero == zero && run.first + run.count == page => run.count += 1,
            _ => self.runs.push(Run {
                first: page,
                count: 1,
                zero,
            }),
        }
    }

    /// Pages that are in the file.
    pub(super) fn stored(&self) -> u64 {
        self.runs
            .iter()
            .filter(|run| !run.zero)
            .map(|run| u64::from(run.count))
            .sum()
    }

    /// As bytes: a magic, then for each run first and count, the latter with its highest bit set if
    /// the pages are zero; all little-endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::MAGIC.to_vec();
        for run in &self.runs {
            bytes.extend(run.first.to_le_bytes());
            bytes.extend((run.count | u32::from(run.zero) << 31).to_le_bytes());
        }
        bytes
    }

    /// From bytes; `pages` is the size of the memory, which no run may leave.
    pub(super) fn decode(bytes: &[u8], pages: u64) -> io::Result<Self> {
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "the index of pages is damaged");
        let rest = bytes.strip_prefix(Self::MAGIC).ok_or_else(odd)?;
        let mut runs = Vec::with_capacity(rest.len() / 8);
        let mut end = 0;
        for entry in rest.chunks(8) {
            let (first, count) = match entry {
                [a, b, c, d, e, f, g, h] => (
                    u32::from_le_bytes([*a, *b, *c, *d]),
                    u32::from_le_bytes([*e, *f, *g, *h]),
                ),
                _ => return Err(odd()),
            };
            let run = Run {
                first,
                count: count & !(1 << 31),
                zero: count >> 31 == 1,
            };
            let next = u64::from(run.first) + u64::from(run.count);
            if run.count == 0 || u64::from(run.first) < end || next > pages {
                return Err(odd());
            }
            end = next;
            runs.push(run);
        }
        Ok(Self { runs })
    }
}

/// A file in memory, for reading.
pub(super) struct Mapped {
    address: *mut std::ffi::c_void,
    length: usize,
}

// SAFETY: the mapping is private to this value and only ever read.
unsafe impl Send for Mapped {}

impl Mapped {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Self {
                address: std::ptr::null_mut(),
                length,
            });
        }
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
        Ok(Self { address, length })
    }

    /// The content. The file must not shrink meanwhile; the files of saved states never change.
    pub(super) fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: mapped for reading for as long as this value lives.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `new`, and nothing borrows it any more.
            let _ = unsafe { munmap(self.address, self.length) };
        }
    }
}

/// The memory of a running machine.
pub(super) struct Live {
    pid: u32,
    mappings: Vec<Mapping>,
}

impl Live {
    /// Finds where the process has `file` mapped. It must be mapped whole.
    pub(super) fn find(pid: u32, file: &fs::Metadata) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mappings = parse_maps(&text, file.ino());
        let mapped: u64 = mappings.iter().map(|mapping| mapping.length).sum();
        if mapped != file.len() || page_size() as u64 != PAGE {
            return Err(io::Error::other("the machine's memory is not where it was"));
        }
        Ok(Self { pid, mappings })
    }

    /// Pages that the machine has written since it was resumed.
    fn own_pages(&self) -> io::Result<Vec<u32>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const OF_FILE: u64 = 1 << 61;
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut pages = Vec::new();
        let mut buffer = vec![0u8; 128 << 10];
        for mapping in &self.mappings {
            let count = mapping.length / PAGE;
            let mut done = 0;
            while done < count {
                let part = (count - done).min(buffer.len() as u64 / 8) as usize;
                let part = &mut buffer[..part * 8];
                pagemap.read_exact_at(part, (mapping.address / PAGE + done) * 8)?;
                for (entry, page) in part.chunks_exact(8).zip(mapping.offset / PAGE + done..) {
                    let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                    if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                        pages.push(u32::try_from(page).map_err(io::Error::other)?);
                    }
                }
                done += part.len() as u64 / 8;
            }
        }
        pages.sort_unstable();
        Ok(pages)
    }

    /// Where pages are in the process, as far as they lie side by side there.
    fn spans(&self, first: u32, count: u32) -> Vec<(u64, usize)> {
        let (mut from, to) = (
            u64::from(first) * PAGE,
            (u64::from(first) + u64::from(count)) * PAGE,
        );
        let mut spans = Vec::new();
        let mut mappings = self.mappings.clone();
        mappings.sort_unstable_by_key(|mapping| mapping.offset);
        for mapping in mappings {
            let end = mapping.offset + mapping.length;
            if from >= mapping.offset && from < end {
                let until = to.min(end);
                spans.push((
                    mapping.address + from - mapping.offset,
                    (until - from) as usize,
                ));
                from = until;
            }
            if from >= to {
                break;
            }
        }
        spans
    }

    /// Writes what differs from `base` to `pages`, and returns where it belongs.
    pub(super) fn save_difference(&self, base: &Mapped, pages: &mut File) -> io::Result<Index> {
        let own = self.own_pages()?;
        let base = base.bytes();
        let mut index = Index::default();
        let mut buffer = vec![0u8; BATCH * PAGE as usize];
        let mut kept: Vec<u8> = Vec::with_capacity(buffer.len());
        for batch in own.chunks(BATCH) {
            let buffer = &mut buffer[..batch.len() * PAGE as usize];
            self.read(batch, buffer)?;
            for (page, content) in batch.iter().zip(buffer.chunks_exact(PAGE as usize)) {
                let at = *page as usize * PAGE as usize;
                let before = base.get(at..at + PAGE as usize).unwrap_or_default();
                if before == content {
                    continue;
                }
                let zero = is_zero(content);
                index.push(*page, zero);
                if !zero {
                    kept.extend_from_slice(content);
                }
            }
            pages.write_all(&kept)?;
            kept.clear();
        }
        Ok(index)
    }

    fn read(&self, pages: &[u32], buffer: &mut [u8]) -> io::Result<()> {
        let remote: Vec<_> = runs(pages)
            .flat_map(|(first, count)| self.spans(first, count))
            .collect();
        self.transfer(
            &remote,
            buffer.as_mut_ptr(),
            buffer.len(),
            libc::process_vm_readv,
        )
    }

    /// Puts a difference into the machine's memory. It must stand still.
    pub(super) fn apply(&self, index: &Index, pages: &[u8]) -> io::Result<()> {
        let zeros = vec![0u8; BATCH * PAGE as usize];
        let mut pages = pages;
        // Neighbours in the file that are not neighbours in memory go in one call.
        let mut gathered: Vec<(u64, usize)> = Vec::new();
        let mut length = 0;
        for run in &index.runs {
            let mut first = run.first;
            let mut left = run.count;
            while left > 0 {
                let count = left.min(BATCH as u32);
                let bytes = count as usize * PAGE as usize;
                let spans = self.spans(first, count);
                if run.zero {
                    self.write(&spans, &zeros[..bytes])?;
                } else {
                    gathered.extend(spans);
                    length += bytes;
                    if gathered.len() >= BATCH || length >= zeros.len() {
                        let (part, rest) = split(pages, length)?;
                        self.write(&gathered, part)?;
                        (pages, length) = (rest, 0);
                        gathered.clear();
                    }
                }
                first += count;
                left -= count;
            }
        }
        let (part, _) = split(pages, length)?;
        self.write(&gathered, part)
    }

    fn write(&self, remote: &[(u64, usize)], content: &[u8]) -> io::Result<()> {
        let start = content.as_ptr().cast_mut();
        self.transfer(remote, start, content.len(), libc::process_vm_writev)
    }

    /// Moves bytes between `local` and the remote spans, which together are as long.
    fn transfer(
        &self,
        remote: &[(u64, usize)],
        local: *mut u8,
        length: usize,
        call: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> libc::ssize_t,
    ) -> io::Result<()> {
        if remote.iter().map(|(_, length)| length).sum::<usize>() != length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut at = 0;
        // The kernel takes 1024 at once.
        for part in remote.chunks(1024) {
            let bytes: usize = part.iter().map(|(_, length)| length).sum();
            let local = libc::iovec {
                iov_base: local.wrapping_add(at).cast(),
                iov_len: bytes,
            };
            let part: Vec<_> = part
                .iter()
                .map(|(address, length)| libc::iovec {
                    iov_base: *address as *mut libc::c_void,
                    iov_len: *length,
                })
                .collect();
            // SAFETY: the local bytes are valid for the whole length (checked above), for writing
            // where the call writes them; the remote ones are the kernel's to check.
            let moved = unsafe {
                call(
                    self.pid as libc::pid_t,
                    &raw const local,
                    1,
                    part.as_ptr(),
                    part.len() as libc::c_ulong,
                    0,
                )
            };
            match usize::try_from(moved) {
                Err(_) => return Err(io::Error::last_os_error()),
                Ok(moved) if moved != bytes => {
                    return Err(io::Error::other("a part of the memory is not there"));
                }
                Ok(_) => at += bytes,
            }
        }
        Ok(())
    }
}

fn split(bytes: &[u8], at: usize) -> io::Result<(&[u8], &[u8])> {
    bytes
        .split_at_checked(at)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "saved pages are missing"))
}

/// Ascending numbers as first ones and counts of those side by side.
fn runs(pages: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
    pages
        .chunk_by(|one, next| one + 1 == *next)
        .filter_map(|run| Some((*run.first()?, run.len() as u32)))
}

/// The mappings of a file in the text of `/proc/PID/maps` (`proc_pid_maps(5)`).
fn parse_maps(text: &str, inode: u64) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (from, to) = fields.next()?.split_once('-')?;
            let _rights = fields.next()?;
            let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
            let _device = fields.next()?;
            let found: u64 = fields.next()?.parse().ok()?;
            let address = u64::from_str_radix(from, 16).ok()?;
            let end = u64::from_str_radix(to, 16).ok()?;
            (found == inode).then_some(Mapping {
                address,
                offset,
                length: end.checked_sub(address)?,
            })
        })
        .collect()
}

/// Makes a whole memory at `path` from a base and what differs.
pub(super) fn merge(base: &File, index: &Index, pages: &[u8], path: &Path) -> io::Result<()> {
    let whole = sparse::copy_to(base, path)?;
    let mut pages = pages;
    for run in &index.runs {
        let (at, length) = (u64::from(run.first) * PAGE, u64::from(run.count) * PAGE);
        if run.zero {
            sparse::punch(&whole, at, length)?;
        } else {
            let (part, rest) = split(pages, length as usize)?;
            whole.write_all_at(part, at)?;
            pages = rest;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn an_index_is_read_as_it_was_written_and_refused_if_damaged() {
        let mut index = Index::default();
        for (page, zero) in [(1, false), (2, false), (3, true), (9, true), (10, true)] {
            index.push(page, zero);
        }
        assert_eq!((index.runs.len(), index.stored()), (3, 2));
        let bytes = index.encode();
        assert_eq!(Index::decode(&bytes, 11).unwrap(), index);
        assert!(Index::decode(&bytes, 10).is_err(), "beyond the end");
        assert!(Index::decode(&bytes[..bytes.len() - 1], 11).is_err());
        assert!(Index::decode(b"something", 11).is_err());
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes[8..]);
        assert!(Index::decode(&twice, 11).is_err(), "not ascending");
    }

    #[test]
    fn mappings_are_found_by_their_file() {
        let text = "7f00-7f10 rw-p 00000000 fe:00 77 /memory\n\
                    7f20-7f30 rw-p 00000010 fe:00 77 /memory\n\
                    8000-9000 rw-p 00000000 00:00 0 [heap]\n";
        let found = parse_maps(text, 77);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].address, found[1].offset), (0x7f20, 0x10));
    }

    /// A process that maps a file as QEMU does, writes pages of it, and waits.
    struct Writer(Child);

    impl Writer {
        fn new(file: &Path, script: &str) -> Self {
            let program = format!(
                "import mmap,sys\nf=open(sys.argv[1],'rb')\n\
                 m=mmap.mmap(f.fileno(),0,flags=mmap.MAP_PRIVATE,prot=mmap.PROT_READ|mmap.PROT_WRITE)\n\
                 P=4096\n{script}\nprint('ready',flush=True)\n\
                 [print(m[int(l)*P:int(l)*P+P].hex(),flush=True) for l in sys.stdin]\n"
            );
            let mut child = Command::new("python3")
                .args(["-c", &program])
                .arg(file)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut writer = Self::line(&mut child);
            assert_eq!(writer.trim(), "ready");
            writer.clear();
            Self(child)
        }

        fn line(child: &mut Child) -> String {
            use std::io::Read;
            let out = child.stdout.as_mut().unwrap();
            let mut line = Vec::new();
            let mut byte = [0];
            while out.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            String::from_utf8(line).unwrap()
        }

        fn page(&mut self, number: u32) -> Vec<u8> {
            writeln!(self.0.stdin.as_mut().unwrap(), "{number}").unwrap();
            let text = Self::line(&mut self.0);
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        }
    }

    impl Drop for Writer {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn what_was_written_is_found_and_can_be_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let base = File::create_new(&path).unwrap();
        base.set_len(1000 * PAGE).unwrap();
        base.write_all_at(&[7; 4096 * 10], 20 * PAGE).unwrap();
        let about = base.metadata().unwrap();
        // Written: another content, zeros over something, the same again, zeros over zeros, many.
        let writer = Writer::new(
            &path,
            "m[3*P:4*P]=b'a'*P\nm[21*P:22*P]=b'\\0'*P\nm[22*P:23*P]=b'\\7'*P\n\
             m[500*P:501*P]=b'\\0'*P\nm[600*P:900*P]=b'b'*(300*P)\n_=m[25*P]",
        );
        let live = Live::find(writer.0.id(), &about).unwrap();
        let open = File::open(&path).unwrap();
        let mapped = Mapped::new(&open).unwrap();
        let saved = directory.path().join("pages");
        let mut pages = File::create_new(&saved).unwrap();
        let index = live.save_difference(&mapped, &mut pages).unwrap();
        let run = |first, count, zero| Run { first, count, zero };
        assert_eq!(
            index.runs,
            [run(3, 1, false), run(21, 1, true), run(600, 300, false)]
        );
        let pages = fs::read(&saved).unwrap();
        assert_eq!(pages.len() as u64, 301 * PAGE);

        let mut other = Writer::new(&path, "");
        let live = Live::find(other.0.id(), &about).unwrap();
        live.apply(&index, &pages).unwrap();
        for (page, byte) in [
            (3, b'a'),
            (21, 0),
            (22, 7),
            (600, b'b'),
            (899, b'b'),
            (900, 0),
        ] {
            assert!(
                other.page(page).iter().all(|got| *got == byte),
                "page {page}"
            );
        }
        // Pages that were put there are found again.
        let again = File::create_new(directory.path().join("again")).unwrap();
        assert_eq!(
            live.save_difference(&mapped, &mut again.try_clone().unwrap())
                .unwrap(),
            index
        );

        let whole = directory.path().join("whole");
        merge(&open, &index, &pages, &whole).unwrap();
        let whole = fs::read(whole).unwrap();
        for (page, byte) in [(3, b'a'), (20, 7), (21, 0), (750, b'b'), (999, 0)] {
            let at = page * PAGE as usize;
            assert!(
                whole[at..at + 4096].iter().all(|got| *got == byte),
                "page {page}"
            );
        }
        assert!(
            live.apply(&index, &pages[..4096]).is_err(),
            "pages are missing"
        );
    }
}

//! Memory that somebody else brings, as Firecracker has it: registered with a userfaultfd that is
//! sent to whoever listens.

use super::Lie;
use rustix::{
    fs::{Mode, OFlags},
    io::IoSlice,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use serde_json::json;
use std::{
    io,
    mem::MaybeUninit,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

const NEW: libc::Ioctl = 0xAA00;
const API: libc::Ioctl = 0xC018_AA3F_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;
const EVENT_REMOVE: u64 = 1 << 3;
const MISSING: u64 = 1;

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

const READERS: u64 = 4;
const ROUNDS: u32 = 50;

/// Two regions, as a machine has them with a hole in between.
pub(super) struct Memory {
    regions: [*mut u8; 2],
    /// Of each.
    length: usize,
    _descriptor: OwnedFd,
}

// SAFETY: plain memory, behind the machine's lock; who shares it touches different pages.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

impl Memory {
    /// As large as a machine's, in pages of a size, brought by who listens at `path`.
    pub(super) fn new(bytes: u64, page: usize, path: &str, lie: Option<Lie>) -> io::Result<Self> {
        let length = usize::try_from(bytes / 2).unwrap();
        let descriptor = open()?;
        let regions = [map(length)?, map(length)?];
        let mut said = Vec::new();
        let told = match lie {
            Some(Lie::More) => 2 * length,
            _ => length,
        };
        for (number, region) in regions.iter().enumerate() {
            let mut register = [*region as u64, length as u64, MISSING, 0];
            control(&descriptor, REGISTER, register.as_mut_ptr())?;
            said.push(json!({
                "base_host_virt_addr": *region as u64,
                "size": told,
                "offset": number * length,
                "page_size": page,
                "page_size_kib": page,
            }));
        }
        let stream = UnixStream::connect(path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sent = [match lie {
            Some(Lie::AnotherDescriptor) => stream.as_fd(),
            _ => descriptor.as_fd(),
        }];
        if !matches!(lie, Some(Lie::NoDescriptor)) {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sent)));
        }
        let text = match lie {
            Some(Lie::Nonsense) => json!([{ "where": "here" }]).to_string(),
            _ => serde_json::Value::from(said).to_string(),
        };
        let text = [IoSlice::new(text.as_bytes())];
        sendmsg(&stream, &text, &mut ancillary, SendFlags::empty())?;
        Ok(Self {
            regions,
            length,
            _descriptor: descriptor,
        })
    }

    fn at(&self, page: u64) -> *mut u8 {
        let offset = usize::try_from(page).unwrap() * PAGE;
        assert!(offset < 2 * self.length);
        // SAFETY: within the region.
        unsafe { self.regions[offset / self.length].add(offset % self.length) }
    }

    /// The last byte of a page; waits for it.
    pub(super) fn read(&self, page: u64) -> u8 {
        // SAFETY: mapped for as long as this value.
        unsafe { self.at(page).add(PAGE - 1).read_volatile() }
    }

    pub(super) fn write(&self, page: u64, byte: u8) {
        // SAFETY: mapped, for writing, for as long as this value.
        unsafe { self.at(page).write_bytes(byte, PAGE) };
    }

    /// Touches all pages by several threads at once, while another gives some back, again and again.
    /// Panics if one does not hold what it should.
    pub(super) fn stress(&self, given_back: Range<u64>, expected: &(dyn Fn(u64) -> u8 + Sync)) {
        let pages = (2 * self.length / PAGE) as u64;
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let given_back = given_back.clone();
                scope.spawn(move || {
                    for number in 0..pages {
                        // Each in an order of its own.
                        let page = (number * (2 * reader + 1) * 37 + reader) % pages;
                        if !given_back.contains(&page) {
                            assert_eq!(self.read(page), expected(page), "page {page}");
                        }
                    }
                });
            }
            for round in 0..ROUNDS {
                for page in given_back.clone() {
                    self.remove(page);
                    assert_eq!(self.read(page), 0, "page {page}, given back {round} times");
                    self.write(page, 1);
                }
            }
        });
    }

    /// Gives a page back, as the balloon does.
    pub(super) fn remove(&self, page: u64) {
        // SAFETY: nothing borrows the page.
        let done = unsafe { libc::madvise(self.at(page).cast(), PAGE, libc::MADV_DONTNEED) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
}

fn open() -> io::Result<OwnedFd> {
    // Where the jailer puts it.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/userfaultfd", flags, Mode::empty())?;
    // SAFETY: takes flags, and returns a new descriptor or an error.
    let descriptor = unsafe {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let made = libc::ioctl(device.as_raw_fd(), NEW, flags);
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(made)
    };
    let mut api = [0xAA, EVENT_REMOVE, 0];
    control(&descriptor, API, api.as_mut_ptr())?;
    Ok(descriptor)
}

/// Memory that begins where a huge page could.
fn map(length: usize) -> io::Result<*mut u8> {
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length + HUGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let address: *mut u8 = address.cast();
    // SAFETY: stays within what was mapped.
    Ok(unsafe { address.add(address.align_offset(HUGE)) })
}

fn control(descriptor: &OwnedFd, request: libc::Ioctl, argument: *mut u64) -> io::Result<()> {
    // SAFETY: each request gets an array of as many numbers as its structure has.
    match unsafe { libc::ioctl(descriptor.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! Fresh randomness for a machine that may have been copied.
//!
//! A memory snapshot holds the state of the kernel's generator: two machines resumed from it would
//! draw the same numbers. See random(4) for the two requests.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// What a claim has to bring at least: the size of the generator's key.
pub(super) const LEAST: usize = 32;
const MOST: usize = 256;

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
const RESEED: libc::c_ulong = 0x5207;

/// `struct rand_pool_info`, with room for all that is taken.
#[repr(C)]
struct PoolInfo {
    /// In bits.
    entropy_count: libc::c_int,
    buffer_size: libc::c_int,
    buffer: [u8; MOST],
}

/// Mixes `bytes` into the kernel's pool, counts them as random, and makes the generator take a new
/// key from it at once.
pub(super) fn mix(bytes: &[u8]) -> io::Result<()> {
    let bytes = bytes.get(..MOST).unwrap_or(bytes);
    let mut pool = PoolInfo {
        entropy_count: bytes.len() as libc::c_int * 8,
        buffer_size: bytes.len() as libc::c_int,
        buffer: [0; MOST],
    };
    for (place, byte) in pool.buffer.iter_mut().zip(bytes) {
        *place = *byte;
    }
    let device = File::open("/dev/urandom")?;
    // SAFETY: the structure has the layout that random(4) describes, and its stated size is within
    // the buffer; the second request takes no argument.
    let results = unsafe {
        [
            libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool),
            libc::ioctl(device.as_raw_fd(), RESEED, 0),
        ]
    };
    pool.buffer.fill(0);
    if results == [0, 0] {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

//! The guest's program, embedded.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::{fs::File, io, io::Write, os::fd::OwnedFd};

/// The static executable `atoll-guest`, built together with this crate.
pub static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/atoll-guest"));

/// The guest's program in memory, sealed: executed from here, nobody can write to it, not even
/// root inside a sandbox through `/proc/self/exe`.
pub(crate) fn sealed() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag and make all of them executable.
    let memory = memfd_create("atoll-guest", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("atoll-guest", flags))?;
    let mut file = File::from(memory);
    file.write_all(GUEST)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

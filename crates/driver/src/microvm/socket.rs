//! Unix sockets by the names of their files in a machine's directory.
//!
//! An address may have 108 bytes at most, a path more; so the directory is opened, and named by
//! its descriptor.

use rustix::{
    fs::{Mode, OFlags},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_socket,
        listen as listen_on, socket_with,
    },
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

/// How many may wait to be let in.
const WAITING: i32 = 4;

/// A connected socket that does not block.
pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let open = open(directory)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_socket(&socket, &address(&open, name)?)?;
    Ok(socket)
}

/// A listening socket, whose file must not be there yet.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let open = open(directory)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address(&open, name)?)?;
    listen_on(&socket, WAITING)?;
    Ok(socket)
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn address(directory: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    Ok(SocketAddrUnix::new(path)?)
}

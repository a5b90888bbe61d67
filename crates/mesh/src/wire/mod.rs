//! The outside: UDP sockets that take and give many datagrams at once.
//!
//! One system call sends datagrams of equal length as one (`UDP_SEGMENT`, Linux 4.18) and receives those that came together as
//! one (`UDP_GRO`, Linux 5.0). Where a kernel, a device or a path cannot do that, the same datagrams go one by one.
//! Datagrams may be fragmented on the way (they are sent without "do not fragment"), so an MTU that is set too large
//! costs speed and not the connection.

mod address;
mod receive;
mod send;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) use receive::Receiver;
#[cfg(test)]
use send::Sent;

use crate::error::Error;
use crate::namespace::Namespace;

/// After how many datagrams that went alone it is tried again to send them as one: paths change, and differ.
const RETRY_AFTER: usize = 4096;
/// How often a port that is free for both families is looked for.
const PORT_ATTEMPTS: usize = 16;

/// Which sockets to open.
#[derive(Debug, Clone, Copy)]
pub struct WireOptions {
    /// The port, for both families; 0 for any.
    pub port: u16,
    /// Whether to use IPv4.
    pub ipv4: bool,
    /// Whether to use IPv6; left away where the kernel has none.
    pub ipv6: bool,
    /// Whether to send and receive many datagrams as one where that works.
    pub offload: bool,
    /// What the kernel is asked to keep for us in each direction, in bytes. Less loses bursts, more makes everything wait
    /// behind them.
    pub buffer: u32,
}

impl Default for WireOptions {
    fn default() -> Self {
        Self {
            port: 0,
            ipv4: true,
            ipv6: true,
            offload: true,
            buffer: 2 << 20,
        }
    }
}

/// The sockets.
#[derive(Debug)]
pub struct Wire {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
    namespace: Option<Namespace>,
}

/// One socket, and what turned out not to work with it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    segments: AtomicBool,
    /// Datagrams of this length or more do not go out as one.
    too_long: AtomicUsize,
    /// How many were not tried for that reason since the last attempt.
    spared: AtomicUsize,
}

impl Wire {
    /// Opens the sockets in the given network namespace, or in that of the calling thread.
    ///
    /// # Errors
    /// The port is taken, or no family is left.
    pub fn bind(options: &WireOptions, namespace: Option<&Namespace>) -> Result<Self, Error> {
        match namespace {
            Some(namespace) => {
                let mut wire = namespace.within(|| Self::bind_here(options))?;
                wire.namespace = Some(namespace.again()?);
                Ok(wire)
            }
            None => Self::bind_here(options),
        }
    }

    fn bind_here(options: &WireOptions) -> Result<Self, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Self::bind_once(options) {
                // Some port was free for IPv4 and not for IPv6.
                Err(Error::System { source, .. })
                    if options.port == 0
                        && source.kind() == io::ErrorKind::AddrInUse
                        && attempt < PORT_ATTEMPTS => {}
                result => return result,
            }
        }
    }

    fn bind_once(options: &WireOptions) -> Result<Self, Error> {
        let mut port = options.port;
        let mut v4 = None;
        if options.ipv4 {
            let socket = Socket::open((Ipv4Addr::UNSPECIFIED, port).into(), options)?;
            port = socket.port()?;
            v4 = Some(socket);
        }
        let mut v6 = None;
        if options.ipv6 {
            match Socket::open((Ipv6Addr::UNSPECIFIED, port).into(), options) {
                Ok(socket) => {
                    port = socket.port()?;
                    v6 = Some(socket);
                }
                Err(Error::System { source, .. })
                    if v4.is_some()
                        && matches!(
                            source.raw_os_error(),
                            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                        ) => {}
                Err(error) => return Err(error),
            }
        }
        if v4.is_none() && v6.is_none() {
            return Err(Error::io("open a UDP socket", io::ErrorKind::Unsupported));
        }
        Ok(Self {
            v4,
            v6,
            port,
            namespace: None,
        })
    }

    /// The port that peers send to.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The namespace that the sockets are in, if it is not that of who made them.
    pub(crate) const fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// The sockets there are.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }

    /// The socket that reaches the address, and the address as that socket wants it.
    fn towards(&self, destination: SocketAddr) -> Option<(&Socket, SocketAddr)> {
        let destination = match destination {
            SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
                Some(mapped) => (mapped, address.port()).into(),
                None => destination,
            },
            SocketAddr::V4(_) => destination,
        };
        let socket = if destination.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        Some((socket.as_ref()?, destination))
    }
}

impl Socket {
    fn open(address: SocketAddr, options: &WireOptions) -> Result<Self, Error> {
        let v4 = address.is_ipv4();
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers are passed; the result is checked.
        let fd = unsafe { libc::socket(family, kind, 0) };
        if fd < 0 {
            return Err(Error::last("open a UDP socket"));
        }
        // SAFETY: the kernel just gave this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self {
            fd,
            segments: AtomicBool::new(options.offload),
            too_long: AtomicUsize::new(usize::MAX),
            spared: AtomicUsize::new(0),
        };
        if v4 {
            socket.set(
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            );
        } else {
            if !socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1) {
                return Err(Error::last("keep IPv4 and IPv6 apart"));
            }
            socket.set(
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            );
        }
        let buffer = libc::c_int::try_from(options.buffer).unwrap_or(libc::c_int::MAX);
        for (force, plain) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            // Beyond the system's limit only with CAP_NET_ADMIN.
            if !socket.set(libc::SOL_SOCKET, force, buffer) {
                socket.set(libc::SOL_SOCKET, plain, buffer);
            }
        }
        if options.offload {
            // Without it, each datagram comes alone.
            socket.set(libc::IPPROTO_UDP, libc::UDP_GRO, 1);
            // A kernel that does not know this one would send what was joined as one datagram.
            let known = socket.set(libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0);
            socket.segments.store(known, Ordering::Relaxed);
        }
        let name = address::Name::of(address);
        // SAFETY: the pointer and the length are those of `name`, which outlives the call.
        let bound = unsafe { libc::bind(socket.fd.as_raw_fd(), name.as_ptr(), name.length()) };
        if bound < 0 {
            return Err(Error::last("take the UDP port"));
        }
        Ok(socket)
    }

    /// Sets an option; whether that worked.
    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> bool {
        // SAFETY: the pointer is to an int that outlives the call, and the length is an int's.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        result == 0
    }

    fn port(&self) -> Result<u16, Error> {
        let address = rustix::net::getsockname(&self.fd)
            .map_err(|error| Error::io("read the UDP socket's port", error))?;
        let address = SocketAddr::try_from(address)
            .map_err(|error| Error::io("read the UDP socket's port", error))?;
        Ok(address.port())
    }

    /// Whether datagrams of this length may be sent as one.
    fn joins(&self, length: usize) -> bool {
        if !self.segments.load(Ordering::Relaxed) {
            return false;
        }
        if length < self.too_long.load(Ordering::Relaxed) {
            return true;
        }
        if self.spared.fetch_add(1, Ordering::Relaxed) >= RETRY_AFTER {
            self.too_long.store(usize::MAX, Ordering::Relaxed);
            self.spared.store(0, Ordering::Relaxed);
        }
        false
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether something can be sent there at all.
pub(crate) fn reachable(address: SocketAddr) -> bool {
    let ip = match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    ip && address.port() != 0
}

#[cfg(test)]
mod tests;

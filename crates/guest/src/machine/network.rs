//! The machine's network: its one device, an address, a route.

use super::{Doing, MachineError, command_line::CommandLine};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

const DEVICE: &str = "eth0";
const LOOPBACK: &str = "lo";

/// As in a container: anybody may open low ports and ping, and there is no IPv6 to the outside.
const SETTINGS: [(&str, &str); 3] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/eth0/disable_ipv6", "1"),
];

/// Gives both devices what they need. `/proc` and `/sys` are mounted.
pub(super) fn configure(line: &CommandLine) -> Result<(), MachineError> {
    for (name, value) in SETTINGS {
        match fs::write(format!("/proc/sys/{name}"), value) {
            // A kernel without IPv6, for one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.doing(format!("set {name}"))?,
        }
    }
    let socket = Interfaces::open().doing("open a socket")?;
    socket.raise(LOOPBACK).doing("raise the loopback device")?;
    if let Some(mtu) = line.mtu {
        let mtu = libc::c_int::from(mtu);
        socket
            .set(DEVICE, libc::SIOCSIFMTU, |request| {
                request.ifr_ifru.ifru_mtu = mtu
            })
            .doing(format!("set the MTU of {DEVICE}"))?;
    }
    let bits = u32::from(line.prefix);
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    for (what, number, address) in [
        ("address", libc::SIOCSIFADDR, line.address),
        ("network mask", libc::SIOCSIFNETMASK, Ipv4Addr::from(mask)),
    ] {
        socket
            .set(DEVICE, number, |request| {
                request.ifr_ifru.ifru_addr = socket_address(address);
            })
            .doing(format!("set the {what} of {DEVICE}"))?;
    }
    socket.raise(DEVICE).doing(format!("raise {DEVICE}"))?;
    socket.route(line.gateway).doing("set the default route")
}

struct Interfaces(OwnedFd);

impl Interfaces {
    fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            flags,
            None,
        )?))
    }

    /// One request of netdevice(7) about a device.
    fn set(
        &self,
        device: &str,
        number: libc::c_ulong,
        fill: impl FnOnce(&mut libc::ifreq),
    ) -> io::Result<libc::ifreq> {
        // SAFETY: all zeros is a value of this structure of numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = device.bytes().take(libc::IFNAMSIZ - 1);
        for (place, byte) in request.ifr_name.iter_mut().zip(name) {
            *place = byte as libc::c_char;
        }
        fill(&mut request);
        self.control(number, &raw mut request)?;
        Ok(request)
    }

    fn raise(&self, device: &str) -> io::Result<()> {
        let up = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.set(device, libc::SIOCSIFFLAGS, |request| {
            request.ifr_ifru.ifru_flags = up;
        })
        .map(drop)
    }

    fn route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all zeros is a value of this structure of numbers and a null pointer.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.control(libc::SIOCADDRT, &raw mut route)
    }

    fn control<T>(&self, number: libc::c_ulong, argument: *mut T) -> io::Result<()> {
        // SAFETY: the callers pass the structure that the request's number calls for.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number, argument) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// As the kernel takes it: `sockaddr_in` in the room of a `sockaddr`.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (place, byte) in data.iter_mut().skip(2).zip(address.octets()) {
        *place = byte as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

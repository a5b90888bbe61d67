//! Addresses, routes and the MTU of an interface, over netlink (RFC 3549, `include/uapi/linux/rtnetlink.h`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::Error;
use crate::prefix::Prefix;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const REQUEST_AND_ACK: u16 = 5;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const INTERFACE_UP: u32 = 1;

/// A netlink socket of the calling thread's network namespace.
pub(crate) struct Links(OwnedFd);

impl Links {
    /// Opens it.
    pub(crate) fn open() -> Result<Self, Error> {
        // SAFETY: no pointers are passed; the result is checked.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if fd < 0 {
            return Err(Error::last("open a netlink socket"));
        }
        // SAFETY: the kernel just gave this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sets the MTU and the queue's length in packets, and switches the interface on.
    pub(crate) fn bring_up(&self, index: u32, mtu: u16, queue: u32) -> Result<(), Error> {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&INTERFACE_UP.to_ne_bytes());
        body[12..16].copy_from_slice(&INTERFACE_UP.to_ne_bytes());
        attribute(&mut body, IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        attribute(&mut body, IFLA_TXQLEN, &queue.to_ne_bytes());
        self.request("switch the interface on", RTM_NEWLINK, 0, &body)
    }

    /// Gives the interface an address; what else is in the range is reached through it.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, length: u8) -> Result<(), Error> {
        let step = "add an address to the interface";
        let body = address_of(index, address, length);
        self.request(step, RTM_NEWADDR, CREATE | REPLACE, &body)
    }

    /// Takes an address from the interface.
    pub(crate) fn remove_address(
        &self,
        index: u32,
        address: IpAddr,
        length: u8,
    ) -> Result<(), Error> {
        let step = "take an address from the interface";
        let body = address_of(index, address, length);
        self.request(step, RTM_DELADDR, 0, &body)
    }

    /// Sends a range of addresses through the interface.
    pub(crate) fn add_route(&self, index: u32, range: Prefix) -> Result<(), Error> {
        let (kind, flags) = (RTM_NEWROUTE, CREATE | REPLACE);
        self.route(
            "add a route through the interface",
            kind,
            flags,
            index,
            range,
        )
    }

    /// The same, if nobody routes the range yet.
    pub(crate) fn add_new_route(&self, index: u32, range: Prefix) -> Result<(), Error> {
        let (kind, flags) = (RTM_NEWROUTE, CREATE | EXCLUSIVE);
        self.route(
            "add a route through the interface",
            kind,
            flags,
            index,
            range,
        )
    }

    /// Takes a route through the interface away.
    pub(crate) fn remove_route(&self, index: u32, range: Prefix) -> Result<(), Error> {
        let step = "remove a route through the interface";
        self.route(step, RTM_DELROUTE, 0, index, range)
    }

    fn route(
        &self,
        step: &'static str,
        kind: u16,
        flags: u16,
        index: u32,
        range: Prefix,
    ) -> Result<(), Error> {
        // Table main, protocol static, scope universe (or link, as IPv4 has it without a gateway), type unicast.
        let scope = if range.address().is_ipv4() { 253 } else { 0 };
        let mut body = vec![
            family(range.address()),
            range.length(),
            0,
            0,
            254,
            4,
            scope,
            1,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, RTA_DST, &octets(range.address()));
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.request(step, kind, flags, &body)
    }

    /// Sends one request and waits for its answer, which the kernel gives at once.
    fn request(&self, step: &'static str, kind: u16, flags: u16, body: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | REQUEST_AND_ACK).to_ne_bytes());
        message.extend_from_slice(&1u32.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        let fd = self.0.as_raw_fd();
        // SAFETY: the pointer and the length are those of `message`, which outlives the call.
        let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(Error::last(step));
        }
        let mut answer = [0u8; 4096];
        // SAFETY: the pointer and the length are those of `answer`, which outlives the call.
        let received = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
        if received < 0 {
            return Err(Error::last(step));
        }
        let answer = &answer[..received as usize];
        let kind = answer
            .get(4..6)
            .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let code = answer
            .get(HEADER..HEADER + 4)
            .map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        match (kind, code) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(code)) => Err(Error::io(
                step,
                io::Error::from_raw_os_error(code.saturating_neg()),
            )),
            _ => Err(Error::io(step, io::Error::from(io::ErrorKind::InvalidData))),
        }
    }
}

/// `struct ifaddrmsg` and what belongs to it.
fn address_of(index: u32, address: IpAddr, length: u8) -> Vec<u8> {
    let mut body = vec![family(address), length, IFA_F_NODAD, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &octets(address));
    attribute(&mut body, IFA_ADDRESS, &octets(address));
    body
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Appends an attribute, padded to four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

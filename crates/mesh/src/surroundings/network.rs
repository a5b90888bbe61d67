//! Addresses and routes of this machine, and word of their changes, over netlink (RFC 3549, `include/uapi/linux/rtnetlink.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A request for all there is.
const REQUEST_ALL: u16 = 0x301;

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Not good for beginning anything: given up soon, not tried yet, tried in vain, or one of those that change every day.
const UNFIT: u32 = 0x20 | 0x40 | 0x08 | 0x01;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const TABLE_MAIN: u8 = 254;
const UNICAST: u8 = 1;
/// Addresses and routes of both families.
const GROUPS: u32 = 0x10 | 0x100 | 0x40 | 0x400;

/// The router that leads to everywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Router {
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// The address by which it knows this machine.
    pub(super) own: Ipv4Addr,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// Addresses that others may reach, IPv4 first, each family in order: those of interfaces that lead to everywhere, if there are any. Others are
    /// those of sandboxes and containers, which come and go, and lead to nobody else.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) router: Option<Router>,
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let flags = flags | SocketFlags::CLOEXEC;
    // The protocol without a number is `NETLINK_ROUTE`.
    Ok(socket_with(family, kind, flags, None)?)
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

/// The messages in what was read: their kinds and bodies.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.get(..4).and_then(number), short(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else {
            break;
        };
        all.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The attribute of this kind, after what stands before all of them.
fn attribute(body: &[u8], before: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(before..)?;
    loop {
        let length = usize::from(short(rest, 0)?);
        let value = rest.get(4..length)?;
        if short(rest, 2)? == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Asks for all of a kind; what is answered.
fn dump(kind: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let socket = open(SocketFlags::empty())?;
    // The kernel answers at once.
    sockopt::set_socket_timeout(
        &socket,
        sockopt::Timeout::Recv,
        Some(Duration::from_secs(1)),
    )?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ALL.to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(body);
    send(&socket, &message, SendFlags::empty())?;
    let mut all = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
        for (kind, body) in messages(buffer.get(..length).unwrap_or_default()) {
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => return Err(io::ErrorKind::InvalidData.into()),
                kind => all.push((kind, body.to_vec())),
            }
        }
    }
}

/// The address that a message is about, if others may reach it, and its interface.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    const BEFORE: usize = 8;
    let (family, flags, scope) = (*body.first()?, *body.get(2)?, *body.get(3)?);
    let flags = match attribute(body, BEFORE, IFA_FLAGS).and_then(number) {
        Some(flags) => flags,
        None => u32::from(flags),
    };
    // A second address of IPv4 has the flag that a passing one of IPv6 has.
    let v4 = i32::from(family) == libc::AF_INET;
    let unfit = if v4 { UNFIT & !1 } else { UNFIT };
    if scope != 0 || flags & unfit != 0 {
        return None;
    }
    let octets = attribute(body, BEFORE, IFA_LOCAL);
    let octets = octets.or_else(|| attribute(body, BEFORE, IFA_ADDRESS))?;
    let address = match v4 {
        true => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        false => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
    };
    let link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let fit = !address.is_loopback() && !address.is_unspecified() && !link;
    let interface = body.get(4..8).and_then(number)?;
    fit.then_some((interface, address))
}

/// A route to everywhere; the least is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    rank: u32,
    interface: u32,
    /// The router, if it has one of IPv4.
    router: Option<Ipv4Addr>,
}

/// The route that a message is about, if it leads to everywhere.
fn route(body: &[u8]) -> Option<Route> {
    const BEFORE: usize = 12;
    let everywhere = *body.get(1)? == 0 && *body.get(4)? == TABLE_MAIN && *body.get(7)? == UNICAST;
    let octets = attribute(body, BEFORE, RTA_GATEWAY);
    let octets = octets.and_then(|octets| <[u8; 4]>::try_from(octets).ok());
    let rank = attribute(body, BEFORE, RTA_PRIORITY).and_then(number);
    let route = Route {
        rank: rank.unwrap_or(0),
        interface: attribute(body, BEFORE, RTA_OIF).and_then(number)?,
        router: octets.map(Ipv4Addr::from),
    };
    everywhere.then_some(route)
}

/// All routes of a family to everywhere.
fn routes(family: i32) -> io::Result<Vec<Route>> {
    let mut body = [0; 12];
    body[0] = family as u8;
    let all = dump(RTM_GETROUTE, &body)?;
    let all = all.iter().filter(|(kind, _)| *kind == RTM_NEWROUTE);
    Ok(all.filter_map(|(_, body)| route(body)).collect())
}

/// This machine's address towards another; nothing is sent for that.
fn towards(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((address, 1)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(own) => Some(own),
        IpAddr::V6(_) => None,
    }
}

impl Network {
    /// What there is now, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn look() -> io::Result<Self> {
        let all = dump(RTM_GETADDR, &[0; 8])?;
        let all = all.iter().filter(|(kind, _)| *kind == RTM_NEWADDR);
        let all: Vec<_> = all.filter_map(|(_, body)| address(body)).collect();
        let v4 = routes(libc::AF_INET)?;
        // A kernel without IPv6 has no such routes.
        let v6 = routes(libc::AF_INET6).unwrap_or_default();
        let leads = |interface: u32| {
            v4.iter()
                .chain(&v6)
                .any(|route| route.interface == interface)
        };
        let led = all.iter().any(|(interface, _)| leads(*interface));
        let reached = all
            .iter()
            .filter(|(interface, _)| !led || leads(*interface));
        let mut addresses: Vec<_> = reached.map(|(_, address)| *address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let best = v4.iter().filter(|route| route.router.is_some()).min();
        let router = best.and_then(|route| {
            let address = route.router?;
            let own = towards(address)?;
            Some(Router { address, own })
        });
        Ok(Self { addresses, router })
    }

    /// Whether ways that began here before may be gone.
    pub(super) fn moved_from(&self, before: &Self) -> bool {
        let stays = |address: &IpAddr| self.addresses.contains(address);
        self.router != before.router || !before.addresses.iter().all(stays)
    }
}

/// Word of changes.
#[derive(Debug)]
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Listens from now on, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub(super) fn open() -> io::Result<Self> {
        let socket = open(SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // SAFETY: the socket is owned by what is returned, which does not let it out.
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits for the next.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|socket| {
                let mut buffer = [0; 4096];
                match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                    Ok(_) => Ok(()),
                    // There were more than fit: that is a change too.
                    Err(rustix::io::Errno::NOBUFS) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            });
            match read {
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    /// Forgets what was said so far.
    pub(super) fn drain(&self) {
        let mut buffer = [0; 4096];
        while recv(self.0.get_ref(), &mut buffer[..], RecvFlags::empty()).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_a_move_and_what_is_new_is_none() {
        let router = |last| Router {
            address: [192, 0, 2, last].into(),
            own: [192, 0, 2, 7].into(),
        };
        let network = |addresses: &[u8], last| Network {
            addresses: addresses
                .iter()
                .map(|last| IpAddr::from([192, 0, 2, *last]))
                .collect(),
            router: Some(router(last)),
        };
        let before = network(&[7], 1);
        assert!(!network(&[7], 1).moved_from(&before));
        assert!(!network(&[7, 8], 1).moved_from(&before));
        assert!(network(&[8], 1).moved_from(&before));
        assert!(network(&[7], 2).moved_from(&before));
    }

    #[test]
    fn messages_that_are_cut_are_read_as_far_as_they_go() {
        let mut bytes = vec![20, 0, 0, 0, 20, 0];
        bytes.resize(20, 0);
        let two = [bytes.clone(), bytes.clone()].concat();
        assert_eq!(messages(&two).len(), 2);
        for cut in 0..two.len() {
            assert_eq!(messages(&two[..cut]).len(), cut / 20);
        }
        // A length of nothing does not hold anybody up.
        assert!(messages(&[0; 64]).is_empty());
        assert_eq!(attribute(&[0; 64], 8, 1), None);
    }
}

//! What is asked of the kernel about interfaces, addresses and routes
//! (`include/uapi/linux/rtnetlink.h`, `if_link.h`).

use super::{
    error::NetworkError,
    netlink::{Batch, Body, CREATE, EXCLUSIVE, REPLACE, Socket, attributes, u32_at},
    range::Ipv4Range,
};
use rustix::fd::{AsRawFd, BorrowedFd};
use std::{net::Ipv4Addr, path::Path};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
/// Group of messages that tell of changes of interfaces.
pub(super) const RTMGRP_LINK: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RTPROT_STATIC: u8 = 4;
/// Marks the routes that Atoll made (an unassigned value of `rtm_protocol`).
const RTPROT_ATOLL: u8 = 0xa7;
/// Behind every other route to the same addresses.
const LAST_PRIORITY: u32 = u32::MAX - 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Length of the prefix of the two addresses of a pair.
const PAIR: u8 = 31;
/// Bytes of `ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Bytes of `ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Bytes of `rtmsg`.
const ROUTE_HEADER: usize = 12;

/// A hardware address.
pub(super) type HardwareAddress = [u8; 6];

/// One end of a pair.
#[derive(Debug)]
pub(super) struct End<'a> {
    /// Name of the interface.
    pub(super) name: &'a str,
    /// Its hardware address. Given explicitly, so that neither udev nor the kernel chooses another.
    pub(super) hardware: HardwareAddress,
    /// Its address.
    pub(super) address: Ipv4Addr,
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The interface group that rules go by.
    pub(super) group: u32,
    /// The index of the other end, in the other end's namespace.
    pub(super) peer: Option<u32>,
    /// The longest packet, in bytes.
    pub(super) mtu: u32,
}

fn link_header(index: u32, flags: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// Makes a pair, `inner` directly in `namespace`.
pub(super) fn create_pair(
    socket: &mut Socket,
    outer: &End<'_>,
    inner: &End<'_>,
    namespace: BorrowedFd<'_>,
    group: u32,
    mtu: u32,
) -> Result<(), NetworkError> {
    let common = |body: &mut Body<'_>, end: &End<'_>| {
        body.fixed(&link_header(0, 0));
        body.text(IFLA_IFNAME, end.name);
        body.attribute(IFLA_ADDRESS, &end.hardware);
        body.number(IFLA_MTU, mtu);
        // One queue: the kernel would make one for each processor, and objects in sysfs for each.
        body.number(IFLA_NUM_TX_QUEUES, 1);
        body.number(IFLA_NUM_RX_QUEUES, 1);
    };
    let mut batch = Batch::default();
    batch.push(
        "making a veth pair",
        RTM_NEWLINK,
        CREATE | EXCLUSIVE,
        |body| {
            common(body, outer);
            body.number(IFLA_GROUP, group);
            body.attributes(IFLA_LINKINFO, |body| {
                body.text(IFLA_INFO_KIND, "veth");
                body.attributes(IFLA_INFO_DATA, |body| {
                    body.attributes(VETH_INFO_PEER, |body| {
                        common(body, inner);
                        body.number(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                    });
                });
            });
        },
    );
    socket.execute(batch)
}

/// Sets up the host's end: strict about sources, no redirects, no IPv6 address; then up.
pub(super) fn raise_outer(
    socket: &mut Socket,
    outer: &End<'_>,
    inner: &End<'_>,
) -> Result<(), NetworkError> {
    // `IPV4_DEVCONF_*` of `include/uapi/linux/ip.h`: forwarding, proxy_arp, accept_redirects,
    // send_redirects, rp_filter, accept_source_route, arp_ignore, accept_local, route_localnet.
    const SETTINGS: [(u16, u32); 9] = [
        (1, 1),
        (3, 0),
        (4, 0),
        (6, 0),
        (8, 1),
        (9, 0),
        (19, 1),
        (23, 0),
        (26, 0),
    ];
    let index = present_index(socket, outer.name)?;
    let mut batch = Batch::default();
    push_address(&mut batch, index, outer.address, PAIR);
    batch.push(
        "setting up the host's end of a veth pair",
        RTM_NEWLINK,
        0,
        |body| {
            body.fixed(&link_header(index, 0));
            body.attributes(IFLA_AF_SPEC, |body| {
                body.attributes(u16::from(AF_INET), |body| {
                    body.attributes(IFLA_INET_CONF, |body| {
                        for (setting, value) in SETTINGS {
                            body.number(setting, value);
                        }
                    });
                });
                if has_ipv6() {
                    body.attributes(u16::from(AF_INET6), |body| {
                        body.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                    });
                }
            });
        },
    );
    push_up(&mut batch, index);
    push_neighbour(&mut batch, index, inner);
    socket.execute(batch)
}

/// Gives the sandbox's end its address and its default route, and raises it and `lo`. To be called
/// before [`raise_outer`], on a socket in the sandbox's namespace.
pub(super) fn raise_inner(
    socket: &mut Socket,
    inner: &End<'_>,
    outer: &End<'_>,
) -> Result<(), NetworkError> {
    let loopback = present_index(socket, "lo")?;
    let index = present_index(socket, inner.name)?;
    let mut batch = Batch::default();
    push_up(&mut batch, loopback);
    push_address(&mut batch, index, inner.address, PAIR);
    push_up(&mut batch, index);
    push_neighbour(&mut batch, index, outer);
    batch.push(
        "adding the default route of a sandbox",
        RTM_NEWROUTE,
        CREATE | EXCLUSIVE,
        |body| {
            body.fixed(&route_header(0, RTPROT_STATIC, RTN_UNICAST));
            body.attribute(RTA_GATEWAY, &outer.address.octets());
            body.number(RTA_OIF, index);
        },
    );
    socket.execute(batch)
}

/// Sets up a tap device, behind which `behind` sits, on a socket in its namespace.
pub(super) fn raise_tap(
    socket: &mut Socket,
    tap: &End<'_>,
    behind: &End<'_>,
    prefix: u8,
    mtu: u32,
) -> Result<(), NetworkError> {
    let index = present_index(socket, tap.name)?;
    let mut batch = Batch::default();
    batch.push("setting up a tap device", RTM_NEWLINK, 0, |body| {
        body.fixed(&link_header(index, 0));
        body.attribute(IFLA_ADDRESS, &tap.hardware);
        body.number(IFLA_MTU, mtu);
    });
    push_address(&mut batch, index, tap.address, prefix);
    push_up(&mut batch, index);
    push_neighbour(&mut batch, index, behind);
    socket.execute(batch)
}

/// Whether a message tells that an interface of this name can send.
pub(super) fn tells_up(kind: u16, body: &[u8], name: &str) -> bool {
    let (mut same, mut up) = (false, false);
    for (kind, value) in attributes(body.get(LINK_HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => same = text(value) == name,
            IFLA_OPERSTATE => up = value == [IF_OPER_UP],
            _ => {}
        }
    }
    kind == RTM_NEWLINK && same && up
}

fn present_index(socket: &Socket, name: &str) -> Result<u32, NetworkError> {
    socket
        .index(name)?
        .ok_or(NetworkError::Answer("looking for a new interface"))
}

fn push_up(batch: &mut Batch, index: u32) {
    batch.push("raising an interface", RTM_NEWLINK, 0, |body| {
        body.fixed(&link_header(index, IFF_UP));
    });
}

fn push_address(batch: &mut Batch, index: u32, address: Ipv4Addr, prefix: u8) {
    batch.push(
        "giving an interface its address",
        RTM_NEWADDR,
        CREATE | EXCLUSIVE,
        |body| {
            let mut header = [0; ADDRESS_HEADER];
            (header[0], header[1]) = (AF_INET, prefix);
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            body.fixed(&header);
            body.attribute(IFA_LOCAL, &address.octets());
            body.attribute(IFA_ADDRESS, &address.octets());
        },
    );
}

/// A fixed neighbour saves the first packet its ARP round trip, cannot be forged from inside, and
/// does not count towards `gc_thresh3`, which 1024 sandboxes would reach.
fn push_neighbour(batch: &mut Batch, index: u32, end: &End<'_>) {
    batch.push(
        "naming an interface's neighbour",
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        |body| {
            let mut header = [0; 12];
            header[0] = AF_INET;
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
            body.fixed(&header);
            body.attribute(NDA_DST, &end.address.octets());
            body.attribute(NDA_LLADDR, &end.hardware);
        },
    );
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Moves an interface to another group. False if there is no such interface.
pub(super) fn set_group(socket: &mut Socket, name: &str, group: u32) -> Result<bool, NetworkError> {
    let mut batch = Batch::default();
    batch.push(
        "moving an interface to another group",
        RTM_NEWLINK,
        0,
        |body| {
            body.fixed(&link_header(0, 0));
            body.text(IFLA_IFNAME, name);
            body.number(IFLA_GROUP, group);
        },
    );
    found(socket.execute(batch))
}

/// Deletes an interface, and with it the other end. False if there is none of that name.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<bool, NetworkError> {
    let mut batch = Batch::default();
    batch.push("deleting an interface", RTM_DELLINK, 0, |body| {
        body.fixed(&link_header(0, 0));
        body.text(IFLA_IFNAME, name);
    });
    found(socket.execute(batch))
}

/// Deletes all interfaces of a group, which costs the kernel's grace period once and not once for
/// each. False if there are none.
pub(super) fn delete_group(socket: &mut Socket, group: u32) -> Result<bool, NetworkError> {
    let mut batch = Batch::default();
    batch.push("deleting interfaces", RTM_DELLINK, 0, |body| {
        body.fixed(&link_header(0, 0));
        body.number(IFLA_GROUP, group);
    });
    found(socket.execute(batch))
}

fn found(outcome: Result<(), NetworkError>) -> Result<bool, NetworkError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(NetworkError::System { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ESRCH)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// All interfaces of the socket's namespace.
pub(super) fn links(socket: &mut Socket) -> Result<Vec<Link>, NetworkError> {
    let bodies = socket.dump("listing interfaces", RTM_GETLINK, &[0; LINK_HEADER])?;
    Ok(bodies.iter().filter_map(|body| read_link(body)).collect())
}

fn read_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        group: 0,
        peer: None,
        mtu: 0,
    };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_GROUP => link.group = u32_at(value, 0)?,
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A use that something on this host makes of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupied {
    pub(super) range: Ipv4Range,
    /// The interface concerned, if any.
    pub(super) interface: Option<u32>,
    /// Whether Atoll made this route to hold a range.
    pub(super) reservation: bool,
}

/// The addresses that the host has or knows a way to; default routes left out.
pub(super) fn occupied(socket: &mut Socket) -> Result<Vec<Occupied>, NetworkError> {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = AF_INET;
    let addresses = socket.dump("listing addresses", RTM_GETADDR, &header)?;
    let mut header = [0; ROUTE_HEADER];
    header[0] = AF_INET;
    let routes = socket.dump("listing routes", RTM_GETROUTE, &header)?;
    let addresses = addresses.iter().filter_map(|body| read_address(body));
    Ok(addresses
        .chain(routes.iter().filter_map(|body| read_route(body)))
        .collect())
}

fn read_address(body: &[u8]) -> Option<Occupied> {
    if body.first() != Some(&AF_INET) {
        return None;
    }
    let prefix = *body.get(1)?;
    let address = ipv4(body.get(ADDRESS_HEADER..)?, IFA_ADDRESS)?;
    Some(Occupied {
        range: Ipv4Range::containing(address, prefix),
        interface: u32_at(body, 4),
        reservation: false,
    })
}

fn read_route(body: &[u8]) -> Option<Occupied> {
    let (family, prefix, protocol) = (*body.first()?, *body.get(1)?, *body.get(5)?);
    if family != AF_INET || prefix == 0 {
        return None;
    }
    let rest = body.get(ROUTE_HEADER..)?;
    let interface = attributes(rest)
        .find(|(kind, _)| *kind == RTA_OIF)
        .and_then(|(_, value)| u32_at(value, 0));
    Some(Occupied {
        range: Ipv4Range::containing(ipv4(rest, RTA_DST)?, prefix),
        interface,
        reservation: protocol == RTPROT_ATOLL,
    })
}

fn ipv4(bytes: &[u8], wanted: u16) -> Option<Ipv4Addr> {
    let (_, value) = attributes(bytes).find(|(kind, _)| *kind == wanted)?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}

/// The index of the interface that the default route of the main table leads to.
pub(super) fn uplink(socket: &mut Socket) -> Result<Option<u32>, NetworkError> {
    let mut header = [0; ROUTE_HEADER];
    header[0] = AF_INET;
    let routes = socket.dump("listing routes", RTM_GETROUTE, &header)?;
    Ok(routes
        .iter()
        .filter(|body| {
            body.get(..8).is_some_and(|header| {
                header[0] == AF_INET
                    && header[1] == 0
                    && header[4] == RT_TABLE_MAIN
                    && header[7] == RTN_UNICAST
            })
        })
        .find_map(|body| {
            attributes(body.get(ROUTE_HEADER..)?)
                .find(|(kind, _)| *kind == RTA_OIF)
                .and_then(|(_, value)| u32_at(value, 0))
        }))
}

fn route_header(prefix: u8, protocol: u8, kind: u8) -> [u8; ROUTE_HEADER] {
    [
        AF_INET,
        prefix,
        0,
        0,
        RT_TABLE_MAIN,
        protocol,
        RT_SCOPE_UNIVERSE,
        kind,
        0,
        0,
        0,
        0,
    ]
}

/// Holds a range for this host: whoever connects to an address in it that no slot has gets an
/// error at once, instead of being sent to the host's own default route; and others see the range
/// is taken.
pub(super) fn reserve(socket: &mut Socket, range: Ipv4Range) -> Result<(), NetworkError> {
    let mut batch = Batch::default();
    batch.push(
        "reserving a range",
        RTM_NEWROUTE,
        CREATE | REPLACE,
        |body| {
            write_reservation(body, range);
        },
    );
    socket.execute(batch)
}

/// Undoes [`reserve`]. False if nothing was reserved.
pub(super) fn unreserve(socket: &mut Socket, range: Ipv4Range) -> Result<bool, NetworkError> {
    let mut batch = Batch::default();
    batch.push("giving a range back", RTM_DELROUTE, 0, |body| {
        write_reservation(body, range)
    });
    found(socket.execute(batch))
}

fn write_reservation(body: &mut Body<'_>, range: Ipv4Range) {
    body.fixed(&route_header(range.prefix(), RTPROT_ATOLL, RTN_UNREACHABLE));
    body.attribute(RTA_DST, &range.first().octets());
    body.number(RTA_PRIORITY, LAST_PRIORITY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_seen_with_its_range() {
        let mut socket = Socket::route(0).unwrap();
        let links = links(&mut socket).unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((loopback.index, loopback.peer), (1, None));
        let occupied = occupied(&mut socket).unwrap();
        assert!(occupied.iter().any(|entry| {
            entry.range == "127.0.0.0/8".parse().unwrap() && entry.interface == Some(1)
        }));
    }

    #[test]
    fn truncated_messages_are_passed_over() {
        for length in 0..16 {
            let bytes = vec![AF_INET; length];
            assert_eq!(read_address(&bytes), None);
            assert_eq!(read_route(&bytes), None);
            assert!(!tells_up(RTM_NEWLINK, &bytes, ""));
        }
    }
}

//! What a machine routes by itself, and whether it forwards.

use std::net::Ipv4Addr;

use super::bounds;
use crate::prefix::Prefix;

/// The routes of the calling thread's network namespace (`Documentation/filesystems/proc.rst`, `fib_route_seq_show`).
const ROUTES: &str = "/proc/thread-self/net/route";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Of a route that is in force.
const UP: u32 = 1;

/// A route of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub range: Prefix,
    /// Through which interface.
    pub interface: String,
}

/// The routes of this machine's main table, but those through the device `except`.
///
/// # Errors
/// They cannot be read.
pub fn routes(except: Option<&str>) -> std::io::Result<Vec<Route>> {
    let text = std::fs::read_to_string(ROUTES)?;
    let mut routes = parse(&text);
    routes.retain(|route| Some(&*route.interface) != except);
    Ok(routes)
}

/// Reads the kernel's table: addresses are numbers in the machine's byte order.
pub fn parse(text: &str) -> Vec<Route> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let interface = fields.next()?;
        let destination = u32::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
        let mask = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let address = Ipv4Addr::from(destination.to_ne_bytes());
        let mask = u32::from_be_bytes(mask.to_ne_bytes());
        let length = u8::try_from(mask.leading_ones()).ok()?;
        (flags & UP != 0).then(|| Route {
            range: Prefix::new(address.into(), length),
            interface: interface.to_owned(),
        })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// The route that a range would take something away from: one that overlaps with it. Default routes lead to what nobody else has.
pub fn conflict(range: Prefix, routes: &[Route]) -> Option<&Route> {
    let (first, last) = bounds(range)?;
    routes.iter().find(|route| {
        // Half of everything is how VPNs write a default route.
        route.range.length() > 1
            && bounds(route.range).is_some_and(|(from, to)| from <= last && first <= to)
    })
}

/// Whether this machine forwards packets of IPv4 between its interfaces.
pub fn forwards() -> bool {
    std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "1")
}

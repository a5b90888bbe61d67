//! Protocols and ports as rules name them.

use std::fmt;
use std::str::FromStr;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// A protocol with a range of ports: `tcp/5432`, `udp/8000-8100`, `tcp/*`, `icmp`, `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The protocol's number; any if absent. ICMP stands for that of IPv6 too.
    protocol: Option<u8>,
    low: u16,
    high: u16,
}

/// Ports, and the rule that lets them be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The ports.
    pub ports: Ports,
    /// The rule's line in the text of the policy; 0 if it has none.
    pub line: u32,
}

impl From<Ports> for Allowance {
    fn from(ports: Ports) -> Self {
        Self { ports, line: 0 }
    }
}

impl Ports {
    /// Whether a packet to this port is meant.
    pub const fn contains(&self, protocol: u8, port: u16) -> bool {
        let same = match self.protocol {
            None => true,
            Some(ICMP) => matches!(protocol, ICMP | ICMPV6),
            Some(mine) => mine == protocol,
        };
        // ICMP has no ports.
        let free = self.protocol.is_none() || matches!(protocol, ICMP | ICMPV6);
        same && (free || (self.low <= port && port <= self.high))
    }

    /// Whether some packet of the protocol is meant.
    pub(super) const fn touches(&self, protocol: u8) -> bool {
        self.contains(protocol, self.low)
    }

    /// The only protocol and port, if there is just one.
    pub(crate) fn single(&self) -> Option<(&'static str, u16)> {
        let protocol = match self.protocol? {
            TCP => "tcp",
            UDP => "udp",
            _ => return None,
        };
        (self.low == self.high).then_some((protocol, self.low))
    }

    /// Whether it is about ports at all: ICMP has none.
    pub(crate) const fn has_ports(&self) -> bool {
        !matches!(self.protocol, Some(ICMP))
    }

    /// The protocol's number and the lowest port, for a test of a policy.
    pub(super) fn sample(&self) -> Option<(u8, u16)> {
        (self.low == self.high || self.protocol == Some(ICMP)).then_some((self.protocol?, self.low))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            None => return formatter.write_str("*"),
            Some(TCP) => "tcp",
            Some(UDP) => "udp",
            Some(_) => return formatter.write_str("icmp"),
        };
        match (self.low, self.high) {
            (0, u16::MAX) => write!(formatter, "{name}/*"),
            (low, high) if low == high => write!(formatter, "{name}/{low}"),
            (low, high) => write!(formatter, "{name}/{low}-{high}"),
        }
    }
}

impl FromStr for Ports {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let all = |protocol| Self {
            protocol,
            low: 0,
            high: u16::MAX,
        };
        let (protocol, ports) = match text.split_once('/') {
            None if text == "*" => return Ok(all(None)),
            None if text == "icmp" => return Ok(all(Some(ICMP))),
            Some(("tcp", ports)) => (TCP, ports),
            Some(("udp", ports)) => (UDP, ports),
            _ => return Err(()),
        };
        if ports == "*" {
            return Ok(all(Some(protocol)));
        }
        let port = |text: &str| -> Result<u16, ()> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse()
                .ok()
                .filter(|port| digits && *port > 0)
                .ok_or(())
        };
        let (low, high) = match ports.split_once('-') {
            Some((low, high)) => (port(low)?, port(high)?),
            None => (port(ports)?, port(ports)?),
        };
        (low <= high)
            .then_some(Self {
                protocol: Some(protocol),
                low,
                high,
            })
            .ok_or(())
    }
}

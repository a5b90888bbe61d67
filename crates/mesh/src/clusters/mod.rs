//! Clusters: networks of others behind nodes of the mesh, for instance the pods and services of a Kubernetes cluster.
//!
//! A cluster is a set of ranges of IPv4 addresses (`inside`) that one or more nodes, its gateways, lead to. The policy names both. Others
//! reach it at the same addresses, or if these are taken, at a range of the same size (`outside`): the gateway translates one to one, so it remembers nothing.
//!
//! [`overlap`] finds ranges that cannot be told apart, and offers free ones. [`translate`] rewrites packets. [`machine`] reads what a machine routes by
//! itself, which a cluster never takes away. All three decide without I/O, but for the reading.

pub mod machine;
pub mod overlap;
#[cfg(test)]
mod tests;
pub mod translate;

use std::net::{IpAddr, Ipv4Addr};

pub use overlap::{Holder, Overlap, overlaps};
pub use translate::Translation;

use crate::prefix::Prefix;

/// The most clusters that a policy may describe.
pub const MOST_CLUSTERS: usize = 1_000;
/// The most ranges that one may have.
pub const MOST_RANGES: usize = 16;
/// The shortest prefix of a range.
pub const SHORTEST: u8 = 8;

/// A range of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The addresses in the cluster's own network.
    pub inside: Prefix,
    /// The addresses at which the mesh reaches them; as many.
    pub outside: Prefix,
}

impl Range {
    /// Whether the two are not the same.
    pub fn translated(&self) -> bool {
        self.inside != self.outside
    }
}

/// A cluster as the policy describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// What rules call it.
    pub name: String,
    /// The line in the policy's text.
    pub line: usize,
    /// Its ranges.
    pub ranges: Vec<Range>,
}

impl Cluster {
    /// Whether the mesh reaches this address in the cluster.
    pub fn contains(&self, address: IpAddr) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|range| range.outside.contains(address))
    }
}

/// The first and the last address of a range of IPv4; `None` for one of IPv6.
pub(crate) fn bounds(range: Prefix) -> Option<(u32, u32)> {
    let IpAddr::V4(first) = range.address() else {
        return None;
    };
    let first = first.to_bits();
    let hosts = u32::MAX.checked_shr(range.length().into()).unwrap_or(0);
    Some((first, first | hosts))
}

/// The range of this length that begins there.
pub(crate) fn range_at(first: u32, length: u8) -> Prefix {
    Prefix::new(Ipv4Addr::from_bits(first).into(), length)
}

//! Address ranges, and the table that finds the longest range an address lies in.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::error::Error;

/// A range of addresses in CIDR notation, bits beyond its length being zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The range of this length that holds the address; lengths beyond the address's are cut to it.
    pub fn new(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                let address = Ipv4Addr::from_bits(address.to_bits() & mask);
                Self {
                    address: address.into(),
                    length,
                }
            }
            IpAddr::V6(address) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let address = Ipv6Addr::from_bits(address.to_bits() & mask);
                Self {
                    address: address.into(),
                    length,
                }
            }
        }
    }

    /// The range's first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.length) == *self
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self::new(address, u8::MAX)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Prefix {
    type Err = Error;

    /// `10.1.2.3/16` is read as `10.1.0.0/16`, as WireGuard's tools do; an address alone is a range of one.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = || Error::Prefix(text.chars().take(64).collect());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => {
                if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(refuse());
                }
                (address, length.parse().map_err(|_| refuse())?)
            }
            None => (text, if text.contains(':') { 128 } else { 32 }),
        };
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        if length > if address.is_ipv4() { 32 } else { 128 } {
            return Err(refuse());
        }
        Ok(Self::new(address, length))
    }
}

/// Which value an address belongs to: that of the longest range it lies in.
///
/// A look-up tries each length that occurs, the longest first. Meshes use two or three lengths, so this beats a
/// tree, and it is easy to see that it is right.
#[derive(Debug)]
pub(crate) struct Routes<T> {
    ranges: HashMap<Prefix, T>,
    v4: Vec<(u8, usize)>,
    v6: Vec<(u8, usize)>,
}

impl<T> Routes<T> {
    /// A table without ranges.
    pub(crate) fn new() -> Self {
        Self {
            ranges: HashMap::new(),
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }

    /// Gives the range to a value; returns the value that had it.
    pub(crate) fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let before = self.ranges.insert(prefix, value);
        if before.is_none() {
            let lengths = self.lengths(prefix);
            // The longest first.
            match lengths.binary_search_by(|(length, _)| prefix.length.cmp(length)) {
                Ok(at) => lengths[at].1 += 1,
                Err(at) => lengths.insert(at, (prefix.length, 1)),
            }
        }
        before
    }

    /// Removes the range; returns the value that had it.
    pub(crate) fn remove(&mut self, prefix: Prefix) -> Option<T> {
        let before = self.ranges.remove(&prefix)?;
        let lengths = self.lengths(prefix);
        if let Ok(at) = lengths.binary_search_by(|(length, _)| prefix.length.cmp(length)) {
            lengths[at].1 -= 1;
            if lengths[at].1 == 0 {
                lengths.remove(at);
            }
        }
        Some(before)
    }

    /// Who has exactly this range.
    pub(crate) fn get(&self, prefix: Prefix) -> Option<&T> {
        self.ranges.get(&prefix)
    }

    /// All that have ranges.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.ranges.values()
    }

    /// Whom the address belongs to.
    pub(crate) fn find(&self, address: IpAddr) -> Option<&T> {
        let lengths = if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        lengths
            .iter()
            .find_map(|(length, _)| self.ranges.get(&Prefix::new(address, *length)))
    }

    fn lengths(&mut self, prefix: Prefix) -> &mut Vec<(u8, usize)> {
        if prefix.address.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for (text, written) in [
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1/64", "fd00::/64"),
            ("::/0", "::/0"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), written);
        }
        for text in [
            "",
            "/",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "a",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    /// Few distinct bits, so that ranges nest and collide.
    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (0u32..16, 0u8..=32).prop_map(|(bits, length)| {
            Prefix::new(Ipv4Addr::from_bits(bits << 28 | bits << 2).into(), length)
        });
        let v6 = (0u128..16, 0u8..=128).prop_map(|(bits, length)| {
            Prefix::new(Ipv6Addr::from_bits(bits << 124 | bits << 60).into(), length)
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        /// The table says what going through all ranges says.
        #[test]
        fn the_longest_range_wins(
            steps in proptest::collection::vec((any::<bool>(), prefix(), 0u8..4), 0..60),
            probes in proptest::collection::vec(prefix(), 1..20),
        ) {
            let mut table = Routes::new();
            let mut plain: Vec<(Prefix, u8)> = Vec::new();
            for (add, range, value) in steps {
                plain.retain(|(there, _)| *there != range);
                if add {
                    plain.push((range, value));
                    table.insert(range, value);
                } else {
                    table.remove(range);
                }
            }
            for probe in probes {
                let address = probe.address();
                let expected = plain
                    .iter()
                    .filter(|(range, _)| range.contains(address))
                    .max_by_key(|(range, _)| range.length())
                    .map(|(_, value)| value);
                prop_assert_eq!(table.find(address), expected);
            }
        }
    }
}

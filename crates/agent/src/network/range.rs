//! Blocks of IPv4 addresses, and the choice of one that the host does not use.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// A block of IPv4 addresses in CIDR notation (RFC 4632), host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Range {
    start: u32,
    prefix: u8,
}

/// Why a text is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of IPv4 addresses: write it like 10.192.0.0/10")]
pub struct ParseRangeError(String);

impl Ipv4Range {
    /// The range of `prefix` bits that `address` lies in; a prefix above 32 counts as 32.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            start: address.to_bits() & mask(prefix),
            prefix,
        }
    }

    /// Its first address.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.start)
    }

    /// How many leading bits are fixed.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address that lies `offset` addresses after the first, if it is in the range.
    pub fn address(self, offset: u32) -> Option<Ipv4Addr> {
        let inside = u64::from(offset) < 1_u64 << (32 - self.prefix);
        inside.then(|| Ipv4Addr::from_bits(self.start + offset))
    }

    /// Whether the address lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.start
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.start & mask(prefix) == other.start & mask(prefix)
    }

    /// The parts of `prefix` bits that the range consists of, `offset` of them passed over first
    /// and then taken up at the end.
    fn parts(self, prefix: u8, offset: u32) -> impl Iterator<Item = Self> {
        let count = if prefix < self.prefix {
            0
        } else {
            1_u64 << (prefix - self.prefix)
        };
        let size = 1_u64 << (32 - prefix);
        (0..count).map(move |number| {
            let number = (number + u64::from(offset)) % count;
            // Stays within the range, so within 32 bits.
            Self {
                start: self.start + (number * size) as u32,
                prefix,
            }
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// The first part of `prefix` bits of `ranges` that overlaps nothing in `taken`.
///
/// The search starts `seed` parts into each range, so that instances on different hosts seldom
/// choose the same and a log tells them apart.
pub(super) fn choose(
    ranges: &[Ipv4Range],
    prefix: u8,
    taken: &[Ipv4Range],
    seed: u32,
) -> Option<Ipv4Range> {
    ranges
        .iter()
        .flat_map(|range| range.parts(prefix, seed))
        .find(|part| !taken.iter().any(|other| other.overlaps(*part)))
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first(), self.prefix)
    }
}

impl FromStr for Ipv4Range {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseRangeError(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        let range = Self::containing(address, prefix);
        if prefix > 32 || range.first() != address {
            Err(refuse())
        } else {
            Ok(range)
        }
    }
}

impl TryFrom<String> for Ipv4Range {
    type Error = ParseRangeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv4Range> for String {
    fn from(range: Ipv4Range) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Range {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_round_trip_and_refuse_host_bits() {
        for text in ["0.0.0.0/0", "10.192.0.0/10", "10.1.2.3/32"] {
            assert_eq!(range(text).to_string(), text);
        }
        for text in [
            "10.0.0.1/8",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/0",
            "10.0.0.0/-1",
        ] {
            assert!(text.parse::<Ipv4Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        let check = |one: &str, two: &str, expected| {
            assert_eq!(range(one).overlaps(range(two)), expected, "{one} {two}");
            assert_eq!(range(two).overlaps(range(one)), expected, "{two} {one}");
        };
        check("10.0.0.0/8", "10.192.16.0/20", true);
        check("10.192.0.0/20", "10.192.16.0/20", false);
        check("0.0.0.0/0", "192.0.2.1/32", true);
        check("10.0.0.0/31", "10.0.0.2/31", false);
    }

    #[test]
    fn the_choice_avoids_what_is_taken_and_wraps_around() {
        let pool = [range("10.192.0.0/18")];
        let taken = [range("10.192.0.0/20"), range("10.192.32.5/32")];
        assert_eq!(choose(&pool, 20, &taken, 0), Some(range("10.192.16.0/20")));
        assert_eq!(choose(&pool, 20, &taken, 2), Some(range("10.192.48.0/20")));
        assert_eq!(choose(&pool, 20, &taken, 7), Some(range("10.192.48.0/20")));
        assert_eq!(choose(&pool, 20, &[range("10.0.0.0/8")], 0), None);
        let two = [range("10.192.0.0/18"), range("198.18.0.0/15")];
        assert_eq!(
            choose(&two, 20, &[range("10.0.0.0/8")], 0),
            Some(range("198.18.0.0/20"))
        );
        assert_eq!(choose(&[range("10.0.0.0/24")], 20, &[], 0), None);
    }

    #[test]
    fn addresses_stay_inside() {
        let block = range("10.192.16.0/20");
        assert_eq!(block.address(4095), Some(Ipv4Addr::new(10, 192, 31, 255)));
        assert_eq!(block.address(4096), None);
        assert!(block.contains(Ipv4Addr::new(10, 192, 31, 255)));
        assert!(!block.contains(Ipv4Addr::new(10, 192, 32, 0)));
    }
}

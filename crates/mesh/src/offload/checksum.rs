//! The internet checksum (RFC 1071).

use std::net::IpAddr;

use crate::packet::Addresses;

/// A sum under way; it is folded at the end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place of what is summed.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        // The sum does not depend on the byte order as long as the result is swapped once (RFC 1071, 2.B), so whole words
        // are added as they lie in memory. Their halves are summed apart, so no carry is lost, and the compiler uses
        // vectors. 2^32 words would overflow; a packet has 2^13.
        let (mut low, mut high) = (0u64, 0u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_le_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]);
            low += word & 0xffff_ffff;
            high += word >> 32;
        }
        let mut rest = [0; 8];
        rest[..words.remainder().len()].copy_from_slice(words.remainder());
        let rest = u64::from_le_bytes(rest);
        let sum =
            u64::from(fold(low)) + u64::from(fold(high)) + (rest & 0xffff_ffff) + (rest >> 32);
        Self(self.0 + u64::from(fold(sum).swap_bytes()))
    }

    /// Adds the pseudo-header of TCP and UDP.
    pub(crate) fn pseudo_header(self, addresses: &Addresses, protocol: u8, length: usize) -> Self {
        let both = match (addresses.source, addresses.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.bytes(&source.octets()).bytes(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.bytes(&source.octets()).bytes(&destination.octets())
            }
            // One packet has addresses of one family.
            _ => self,
        };
        Self(both.0 + u64::from(protocol) + length as u64)
    }

    /// The sum, not inverted: what the kernel expects in a checksum that is still to be made.
    pub(crate) fn partial(self) -> u16 {
        fold(self.0)
    }

    /// The checksum.
    pub(crate) fn finish(self) -> u16 {
        !fold(self.0)
    }

    /// Whether the sum over something with its checksum is right.
    pub(crate) fn holds(self) -> bool {
        fold(self.0) == 0xffff
    }
}

/// Adds the carries until there are none.
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.finish(), !0xddf2);
    }

    proptest! {
        /// The same as adding numbers of 16 bits one after the other.
        #[test]
        fn as_the_textbook_has_it(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut expected = 0;
            for pair in bytes.chunks(2) {
                expected += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
                expected = (expected & 0xffff) + (expected >> 16);
            }
            let sum = Sum::default().bytes(&bytes).partial();
            // Zero and all ones are the same number here.
            prop_assert_eq!(u64::from(sum) % 0xffff, expected % 0xffff);
            prop_assert_eq!(sum == 0, bytes.iter().all(|byte| *byte == 0));
        }
    }
}

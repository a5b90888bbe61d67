//! How datagrams of flows stand in QUIC.
//!
//! ```text
//! in a datagram (RFC 9221):          number of the flow's stream (RFC 9000, section 16), what the program sent
//! on the stream, if it is too long:  length (16 bits), what the program sent
//! ```
//!
//! The stream is the one on which the flow was asked for, so a number means something within one connection only, and only while that stream is open:
//! nobody else can name a flow.

/// The longest that UDP carries over IPv4.
pub(in crate::userspace) const LONGEST: usize = 65_507;

/// The number that stands before a flow's datagrams.
pub(super) fn number(stream: quinn::StreamId) -> u64 {
    quinn::VarInt::from(stream).into_inner()
}

/// A datagram of a flow; `number` is less than 2⁶².
pub(super) fn write(number: u64, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + contents.len());
    match number {
        0..0x40 => bytes.push(number as u8),
        0x40..0x4000 => bytes.extend((number as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => bytes.extend((number as u32 | 0x8000_0000).to_be_bytes()),
        _ => bytes.extend((number | 0xc000_0000_0000_0000).to_be_bytes()),
    }
    bytes.extend_from_slice(contents);
    bytes
}

/// Takes a datagram apart: the flow's number, and what the program sent. `None` if it is none.
pub(in crate::userspace) fn read(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let first = *datagram.first()?;
    let (number, contents) = datagram.split_at_checked(1 << (first >> 6))?;
    let start = u64::from(first & 0x3f);
    let rest = number.iter().skip(1);
    let number = rest.fold(start, |number, byte| number << 8 | u64::from(*byte));
    Some((number, contents))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_stand_as_quic_writes_them() {
        // RFC 9000, appendix A.1.
        for (number, bytes) in [
            (37, &[0x25][..]),
            (15_293, &[0x7b, 0xbd]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (
                151_288_809_941_952_652,
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
            ),
        ] {
            assert_eq!(write(number, b""), bytes);
            assert_eq!(read(bytes), Some((number, &[][..])));
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0x40]), None);
    }

    proptest! {
        #[test]
        fn datagrams_survive(number in 0_u64..1 << 62, contents: Vec<u8>) {
            let bytes = write(number, &contents);
            prop_assert_eq!(read(&bytes), Some((number, &contents[..])));
        }

        #[test]
        fn anything_is_read_or_refused(bytes: Vec<u8>) {
            if let Some((number, contents)) = read(&bytes) {
                prop_assert!(number < 1 << 62);
                prop_assert!(bytes.ends_with(contents));
            }
        }
    }
}

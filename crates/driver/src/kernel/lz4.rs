//! LZ4 as the kernel's build writes it: the *legacy* frame, a row of independent blocks.
//!
//! Specification: the LZ4 project's `lz4_Block_format.md`, and the legacy frame in
//! `lz4_Frame_format.md`.

pub(super) const MAGIC: [u8; 4] = 0x184C_2102u32.to_le_bytes();

/// Unpacks a legacy frame, to at most `limit` bytes; `None` if it is damaged or longer.
///
/// What follows the last whole block is ignored: a kernel appends its unpacked size.
pub(super) fn decompress(frame: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut rest = frame.strip_prefix(&MAGIC)?;
    let mut output = Vec::new();
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        let Some((block, tail)) = tail.split_at_checked(size).filter(|_| size > 0) else {
            break;
        };
        decompress_block(block, &mut output, limit)?;
        rest = tail;
    }
    Some(output)
}

fn decompress_block(block: &[u8], output: &mut Vec<u8>, limit: usize) -> Option<()> {
    let start = output.len();
    let mut input = block.iter();
    loop {
        let token = *input.next()?;
        let literals = length(usize::from(token >> 4), &mut input)?;
        let (copied, tail) = input.as_slice().split_at_checked(literals)?;
        if output.len() + copied.len() > limit {
            return None;
        }
        output.extend_from_slice(copied);
        input = tail.iter();
        // The last sequence has literals only.
        let Some(low) = input.next() else {
            return Some(());
        };
        let distance = usize::from(u16::from_le_bytes([*low, *input.next()?]));
        let count = length(usize::from(token & 15), &mut input)? + 4;
        let mut from = output.len().checked_sub(distance)?;
        if distance == 0 || from < start || output.len() + count > limit {
            return None;
        }
        // Source and target may overlap: then what was just written repeats.
        let mut left = count;
        while left > 0 {
            let step = left.min(output.len() - from);
            output.extend_from_within(from..from + step);
            from += step;
            left -= step;
        }
    }
}

/// A length of which 15 says that more follows, in bytes of which 255 says so again.
fn length(short: usize, input: &mut std::slice::Iter<'_, u8>) -> Option<usize> {
    let mut total = short;
    if short == 15 {
        loop {
            let byte = *input.next()?;
            total = total.checked_add(usize::from(byte))?;
            if byte != 255 {
                break;
            }
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(block: &[u8]) -> Vec<u8> {
        let size = (block.len() as u32).to_le_bytes();
        [&MAGIC[..], &size, block, &[9, 0, 0, 0]].concat()
    }

    #[test]
    fn literals_and_matches_are_unpacked() {
        // "ab", then 9 bytes from 2 back, then "c".
        let block = [0x25, b'a', b'b', 2, 0, 0x10, b'c'];
        assert_eq!(decompress(&frame(&block), 100).unwrap(), b"abababababac");
    }

    #[test]
    fn damage_is_refused() {
        for block in [
            &[0x25, b'a'][..],
            // Reaches before the beginning.
            &[0x15, b'a', 2, 0, 0x10, b'c'],
            &[0x15, b'a', 0, 0, 0x10, b'c'],
            &[0xf0, 255, 255],
        ] {
            assert_eq!(decompress(&frame(block), 100), None, "{block:?}");
        }
        let block = [0x25, b'a', b'b', 2, 0, 0x10, b'c'];
        assert_eq!(decompress(&frame(&block), 5), None);
        assert_eq!(decompress(b"nonsense", 100), None);
    }
}

//! What the targets share: one input taken apart into several texts.

/// Divides the fields of an input. Seeds are written with it, so that they stay readable.
const DIVIDER: char = '\n';

/// Takes an input apart into `COUNT` texts; the last holds the rest, those that lack are empty.
pub fn texts<const COUNT: usize>(data: &[u8]) -> Option<[&str; COUNT]> {
    let mut rest = std::str::from_utf8(data).ok()?;
    let mut texts = [""; COUNT];
    let (last, first) = texts.split_last_mut()?;
    for place in first {
        (*place, rest) = rest.split_once(DIVIDER).unwrap_or((rest, ""));
    }
    *last = rest;
    Some(texts)
}

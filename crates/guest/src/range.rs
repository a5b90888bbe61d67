//! The `Range` header (RFC 9110, section 14).

/// What part of a file is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All of it.
    Whole,
    /// From `start` up to and without `end`; never empty.
    Part {
        /// The first byte's offset.
        start: u64,
        /// The offset after the last byte.
        end: u64,
    },
    /// Nothing of what was asked for exists.
    Unsatisfiable,
}

/// Reads the header for a file of `size` bytes. What is malformed, in another unit than bytes, or
/// asks for several parts selects the whole, which the standard allows.
pub fn parse(header: &str, size: u64) -> Selection {
    let Some((unit, ranges)) = header.split_once('=') else {
        return Selection::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    let Some((first, last)) = ranges.trim().split_once('-') else {
        return Selection::Whole;
    };
    let number = |text: &str| {
        let text = text.trim();
        // `parse` would take a sign.
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    match (first.trim().is_empty(), last.trim().is_empty()) {
        (true, true) => Selection::Whole,
        (true, false) => match number(last) {
            Some(0) => Selection::Unsatisfiable,
            Some(_) if size == 0 => Selection::Unsatisfiable,
            Some(length) => Selection::Part {
                start: size.saturating_sub(length),
                end: size,
            },
            None => Selection::Whole,
        },
        (false, _) => {
            let Some(start) = number(first) else {
                return Selection::Whole;
            };
            let end = if last.trim().is_empty() {
                size
            } else {
                match number(last) {
                    Some(last) if last < start => return Selection::Whole,
                    Some(last) => last.saturating_add(1).min(size),
                    None => return Selection::Whole,
                }
            };
            if start >= size {
                Selection::Unsatisfiable
            } else {
                Selection::Part { start, end }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_select_what_the_standard_says() {
        let part = |start, end| Selection::Part { start, end };
        for (header, selection) in [
            ("bytes=0-4", part(0, 5)),
            ("bytes=5-", part(5, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-30", part(0, 10)),
            ("Bytes = 9-100", part(9, 10)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=4-2", Selection::Whole),
            ("bytes=0-1,4-5", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("bytes=0-18446744073709551615", part(0, 10)),
            ("bytes=99999999999999999999-", Selection::Whole),
        ] {
            assert_eq!(parse(header, 10), selection, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Selection::Unsatisfiable);
    }
}

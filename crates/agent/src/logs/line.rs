//! One numbered line of a log: what the guest sends and what the file holds.

use api::node::LogLine;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longer messages are cut.
const MESSAGE_MAX: usize = 16 << 10;

/// More fields are dropped, and longer ones cut.
const FIELDS_MAX: usize = 16;
const FIELD_NAME_MAX: usize = 64;
const FIELD_VALUE_MAX: usize = 512;

/// A line with its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NumberedLine {
    /// Counts up from 1, with gaps where the guest's ring overflowed.
    pub(super) seq: u64,
    pub(super) line: LogLine,
}

impl NumberedLine {
    /// Reads a line from a guest and cuts it to size; `None` if it is not one. Lines from the
    /// future are moved to `now`.
    pub(super) fn from_guest(text: &[u8], now: Timestamp) -> Option<Self> {
        let mut numbered: Self = serde_json::from_slice(text).ok()?;
        let line = &mut numbered.line;
        line.at = line.at.min(now);
        cut(&mut line.message, MESSAGE_MAX);
        if !line.fields.is_empty() {
            line.fields = std::mem::take(&mut line.fields)
                .into_iter()
                .take(FIELDS_MAX)
                .map(|(mut name, mut value)| {
                    cut(&mut name, FIELD_NAME_MAX);
                    cut(&mut value, FIELD_VALUE_MAX);
                    (name, value)
                })
                .collect();
        }
        Some(numbered)
    }
}

/// Shortens a text to at most `most` bytes, at a character's edge.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let edge = (0..=most)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(edge);
    }
}

/// Puts chunks of bytes together to lines, and drops those that are too long.
pub(super) struct LineSplitter {
    partial: Vec<u8>,
    longest: usize,
    skipping: bool,
}

impl LineSplitter {
    pub(super) fn new(longest: usize) -> Self {
        Self {
            partial: Vec::new(),
            longest,
            skipping: false,
        }
    }

    /// Takes a chunk, and hands each whole line in it to `each`, without its line feed.
    pub(super) fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = chunk.split_at(end);
            chunk = &tail[1..];
            if self.skipping {
                self.skipping = false;
            } else if self.partial.is_empty() {
                if head.len() <= self.longest {
                    each(head);
                }
            } else {
                if self.partial.len() + head.len() <= self.longest {
                    self.partial.extend_from_slice(head);
                    each(&self.partial);
                }
                // An idle sandbox holds no memory here.
                self.partial = Vec::new();
            }
        }
        if self.skipping {
            return;
        }
        if self.partial.len() + chunk.len() > self.longest {
            self.partial = Vec::new();
            self.skipping = true;
        } else {
            self.partial.extend_from_slice(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]], longest: usize) -> Vec<Vec<u8>> {
        let mut splitter = LineSplitter::new(longest);
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line.to_vec()));
            assert!(splitter.partial.len() <= longest);
        }
        lines
    }

    #[test]
    fn lines_that_are_too_long_are_dropped_and_the_next_is_found() {
        let lines = split(&[b"ab\nabcdef", b"ghi\ncd\nabc", b"de", b"f\nx\n"], 5);
        assert_eq!(lines, [b"ab".to_vec(), b"cd".to_vec(), b"x".to_vec()]);
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(text in "[ab\n]{0,60}", sizes in proptest::collection::vec(1usize..7, 60)) {
            let bytes = text.as_bytes();
            let mut chunks = Vec::new();
            let mut rest = bytes;
            for size in sizes {
                let (head, tail) = rest.split_at(size.min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            chunks.push(rest);
            prop_assert_eq!(split(&chunks, 8), split(&[bytes], 8));
        }

        #[test]
        fn no_bytes_from_a_guest_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = NumberedLine::from_guest(&bytes, Timestamp::UNIX_EPOCH);
        }
    }

    #[test]
    fn what_a_guest_says_is_cut_to_size() {
        let fields: std::collections::BTreeMap<_, _> = (0..100)
            .map(|n| (format!("{n}{}", "k".repeat(100)), "ü".repeat(1000)))
            .collect();
        let text = serde_json::json!({
            "seq": 3,
            "line": { "at": "9999-01-01T00:00:00Z", "level": "warn",
                      "message": "é".repeat(20_000), "fields": fields },
        });
        let now = Timestamp::UNIX_EPOCH;
        let line = NumberedLine::from_guest(text.to_string().as_bytes(), now).unwrap();
        assert!(line.line.message.len() <= MESSAGE_MAX);
        assert_eq!(line.line.fields.len(), FIELDS_MAX);
        assert!(
            line.line
                .fields
                .iter()
                .all(|(name, value)| name.len() <= 64 && value.len() <= 512)
        );
        assert_eq!(line.line.at, now);
    }
}

//! Where in the file a value is.

use std::fmt;
use toml::de::{DeTable, DeValue};

/// A step on the way to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Into a table.
    Key(&'a str),
    /// Into a list.
    At(usize),
}

/// The line of a byte, from 1.
pub(super) fn line_of(text: &str, byte: usize) -> usize {
    let before = text.get(..byte).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// The line of the value that is reached by these steps, or of what comes nearest.
pub(super) fn line(text: &str, steps: &[Step<'_>]) -> usize {
    let Ok(table) = DeTable::parse(text) else {
        return 1;
    };
    let mut at = 0;
    let mut here: Option<&DeValue<'_>> = None;
    for (depth, step) in steps.iter().enumerate() {
        let next = match (step, here) {
            (Step::Key(key), None) if depth == 0 => table.get_ref().get(*key),
            (Step::Key(key), Some(DeValue::Table(inner))) => inner.get(*key),
            (Step::At(index), Some(DeValue::Array(list))) => list.get(*index),
            _ => None,
        };
        let Some(value) = next else {
            break;
        };
        at = value.span().start;
        here = Some(value.get_ref());
    }
    line_of(text, at)
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => formatter.write_str(key),
            Self::At(index) => write!(formatter, "[{index}]"),
        }
    }
}

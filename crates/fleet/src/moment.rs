//! Time as plans see it: whole seconds. A plan never asks for the time; it is told.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr};

/// A moment, in seconds since 1970 (UTC).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// So much later.
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// So much earlier.
    #[must_use]
    pub const fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// How long ago `earlier` was; nothing if it is yet to come.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time, in whole seconds. It reads `90s`, `10m`, `2h`, `1d`, `1h30m` or a number of
/// seconds, and is written as a number of seconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Span(#[schemars(with = "SpanText")] pub u64);

/// How a length of time may be written in a file.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it only describes the file to readers of the schema"
)]
enum SpanText {
    /// Seconds.
    Seconds(u64),
    /// Numbers with units, such as `10m` or `1h30m`.
    Text(String),
}

impl Span {
    /// None at all.
    pub const ZERO: Self = Self(0);

    /// So many minutes.
    pub const fn minutes(count: u64) -> Self {
        Self(count * 60)
    }

    /// So many hours.
    pub const fn hours(count: u64) -> Self {
        Self(count * 3600)
    }

    /// In hours.
    pub fn as_hours(self) -> f64 {
        self.0 as f64 / 3600.0
    }

    /// The difference, at least nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes, seconds) = (
            self.0 / 86_400,
            self.0 / 3600 % 24,
            self.0 / 60 % 60,
            self.0 % 60,
        );
        let mut parts = Vec::new();
        for (count, unit) in [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")] {
            if count > 0 {
                parts.push(format!("{count} {unit}"));
            }
        }
        if parts.is_empty() {
            parts.push("0 s".to_owned());
        }
        parts.truncate(2);
        formatter.write_str(&parts.join(" "))
    }
}

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a length of time: write 90s, 10m, 2h, 1d or 1h30m")]
pub struct ParseSpanError(String);

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseSpanError(text.to_owned());
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(refuse());
        }
        let mut total = 0_u64;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let count: u64 = rest[..digits].parse().map_err(|_| refuse())?;
            let mut characters = rest[digits..].chars();
            let factor = match characters.next() {
                None | Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3600,
                Some('d') => 86_400,
                Some(_) => return Err(refuse()),
            };
            total = count
                .checked_mul(factor)
                .and_then(|seconds| total.checked_add(seconds))
                .ok_or_else(refuse)?;
            rest = characters.as_str();
        }
        Ok(Self(total))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Span;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a length of time such as \"10m\", or seconds")
            }

            fn visit_u64<E>(self, value: u64) -> Result<Span, E> {
                Ok(Span(value))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Span, E> {
                u64::try_from(value)
                    .map(Span)
                    .map_err(|_| E::custom("a length of time cannot be negative"))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Span, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_printed() {
        for (text, seconds, printed) in [
            ("90", 90, "1 min 30 s"),
            ("1h30m", 5400, "1 h 30 min"),
            ("2d", 172_800, "2 d"),
            ("0s", 0, "0 s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span, Span(seconds));
            assert_eq!(span.to_string(), printed);
        }
        for bad in ["", "m", "5x", "-1", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}

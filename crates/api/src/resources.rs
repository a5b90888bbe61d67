//! Amounts: bytes, processors, disk.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An amount of memory or disk, in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `count` mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// `count` gibibytes.
    pub const fn gibibytes(count: u64) -> Self {
        Self(count << 30)
    }

    /// Whole mebibytes, rounded down.
    pub const fn as_mebibytes(self) -> u64 {
        self.0 >> 20
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 || value.fract() == 0.0 {
            write!(formatter, "{value:.0} {}", UNITS[unit])
        } else {
            write!(formatter, "{value:.1} {}", UNITS[unit])
        }
    }
}

/// Why a text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount: write a whole number and a unit, such as 512MiB, 2GiB or 1048576")]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseBytesError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refuse())?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(refuse()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(refuse)
    }
}

/// What one sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processors, whole.
    pub vcpus: u32,
    /// Memory, including the page cache of the sandbox's own files.
    pub memory: Bytes,
    /// The most that the writable layer may hold.
    pub disk: Bytes,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            vcpus: 2,
            memory: Bytes::mebibytes(512),
            disk: Bytes::gibibytes(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_round_trip() {
        for (text, bytes) in [("512MiB", 512 << 20), ("2 g", 2 << 30), ("17", 17)] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        }
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert!("12 parsecs".parse::<Bytes>().is_err());
        assert!("99999999999T".parse::<Bytes>().is_err());
    }
}

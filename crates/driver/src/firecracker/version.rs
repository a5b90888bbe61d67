//! Versions of Firecracker, and what each can.

use crate::DriverError;
use std::{fmt, str::FromStr};

/// The oldest version that the driver speaks to.
pub const OLDEST: Version = Version(1, 10, 0);

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Refuses what is too old, with the remedy.
    pub(super) fn check(self) -> Result<Self, DriverError> {
        if self >= OLDEST {
            return Ok(self);
        }
        Err(DriverError::Unsupported {
            cause: format!("Firecracker {self} is older than {OLDEST}"),
            remedy: format!("Install Firecracker and jailer {OLDEST} or newer, of one release"),
        })
    }

    /// Whether loading can name another tap than the one that the snapshot was made with.
    pub(super) fn overrides_network(self) -> bool {
        self >= Self(1, 12, 0)
    }

    /// Whether loading says `track_dirty_pages`; older ones say `enable_diff_snapshots`.
    pub(super) fn says_track_dirty_pages(self) -> bool {
        self >= Self(1, 13, 0)
    }

    /// Whether loading can advance the guest's clock by the time that it stood still.
    pub(super) fn advances_clock(self) -> bool {
        self >= Self(1, 16, 0)
    }

    /// Whether the balloon tells the host of pages that the guest has freed.
    pub(super) fn reports_free_pages(self) -> bool {
        self >= Self(1, 14, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = ();

    /// From `1.12.0`, `v1.12.0` or `1.13.0-dev`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok);
        match (next(), next()) {
            (Some(major), Some(minor)) => Ok(Self(major, minor, next().unwrap_or(0))),
            _ => Err(()),
        }
    }
}

/// From what `--version` prints first: `Firecracker v1.12.0`.
pub(super) fn parse_first_line(text: &str) -> Option<Version> {
    text.lines().next()?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!("v1.12.1".parse(), Ok(Version(1, 12, 1)));
        assert_eq!("1.13.0-dev".parse(), Ok(Version(1, 13, 0)));
        assert_eq!("1.14".parse(), Ok(Version(1, 14, 0)));
        for odd in ["", "v", "one", "1", "1..2"] {
            assert_eq!(odd.parse::<Version>(), Err(()), "{odd}");
        }
        assert!(Version(1, 10, 0) > Version(1, 9, 9));
        let text = "Firecracker v1.10.1\n\nSupported snapshot data format versions: 4.0.0\n";
        assert_eq!(parse_first_line(text), Some(Version(1, 10, 1)));
    }

    #[test]
    fn one_that_is_too_old_is_refused_with_the_remedy() {
        match Version(1, 9, 3).check() {
            Err(DriverError::Unsupported { cause, remedy }) => {
                assert!(cause.contains("1.9.3"), "{cause}");
                assert!(remedy.contains("1.10.0"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
    }
}

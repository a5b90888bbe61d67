//! Moments and durations, without overflow.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// The moment `duration` after `start`; the last moment there is if that is beyond it.
pub(crate) fn after(start: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| start.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// How long it is from `start` until `end`; zero if that is over.
pub(crate) fn until(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overflows() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(after(now, Duration::MAX), Timestamp::MAX);
        assert_eq!(
            until(now, after(now, Duration::from_secs(5))),
            Duration::from_secs(5)
        );
        assert_eq!(until(Timestamp::MAX, now), Duration::ZERO);
    }
}

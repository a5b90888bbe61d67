//! How far an endpoint is: classes of measured round trips.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Round trips below this are within a site: one data centre, or neighbouring ones, with what a tunnel in user space adds.
const SITE: Duration = Duration::from_millis(3);
/// Round trips below this are within a region: some two thousand kilometres of fibre there and back, and the tunnel.
const REGION: Duration = Duration::from_millis(30);
/// Measurements that count; the shortest of them is the distance, as all else is waiting somewhere.
const SAMPLES: usize = 8;

/// How far an endpoint is, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It is this node.
    Here,
    /// Its round trip is below 3 ms.
    Site,
    /// It is below 30 ms.
    Region,
    /// It is longer, or not known yet.
    Far,
}

impl std::fmt::Display for Class {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Here => "here",
            Self::Site => "site",
            Self::Region => "region",
            Self::Far => "far",
        })
    }
}

/// What was measured of one endpoint's distance.
#[derive(Debug, Clone, Default)]
pub(super) struct Distance {
    samples: [Option<Duration>; SAMPLES],
    next: usize,
    class: Option<Class>,
}

impl Distance {
    /// A round trip took so long.
    pub(super) fn measured(&mut self, round_trip: Duration) {
        self.samples[self.next % SAMPLES] = Some(round_trip);
        self.next = (self.next + 1) % SAMPLES;
        if let Some(now) = self.round_trip() {
            self.class = Some(class(now, self.class));
        }
    }

    /// The shortest of the last ones.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.samples.iter().flatten().min().copied()
    }

    pub(super) const fn class(&self) -> Class {
        match self.class {
            Some(class) => class,
            None => Class::Far,
        }
    }
}

/// The class of a round trip. One that is near a limit stays what it was: a class is left for a farther one only a quarter beyond the limit.
fn class(round_trip: Duration, before: Option<Class>) -> Class {
    let within = |limit: Duration, class: Class| {
        let stays = before.is_some_and(|before| before <= class);
        round_trip < if stays { limit * 5 / 4 } else { limit }
    };
    if within(SITE, Class::Site) {
        Class::Site
    } else if within(REGION, Class::Region) {
        Class::Region
    } else {
        Class::Far
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_kept_near_its_limit() {
        let ms = |tenths: u64| Duration::from_micros(tenths * 100);
        for (round_trip, before, expected) in [
            (29, None, Class::Site),
            (30, None, Class::Region),
            (36, Some(Class::Site), Class::Site),
            (38, Some(Class::Site), Class::Region),
            (36, Some(Class::Region), Class::Region),
            (299, None, Class::Region),
            (300, None, Class::Far),
            (370, Some(Class::Region), Class::Region),
            (370, Some(Class::Site), Class::Region),
            (370, Some(Class::Far), Class::Far),
            (376, Some(Class::Region), Class::Far),
        ] {
            assert_eq!(
                class(ms(round_trip), before),
                expected,
                "{round_trip} {before:?}"
            );
        }
    }

    #[test]
    fn the_shortest_of_the_last_counts() {
        let mut distance = Distance::default();
        assert_eq!(
            (distance.round_trip(), distance.class()),
            (None, Class::Far)
        );
        for ms in [40, 2, 90, 90, 90, 90, 90, 90] {
            distance.measured(Duration::from_millis(ms));
        }
        assert_eq!(distance.round_trip(), Some(Duration::from_millis(2)));
        assert_eq!(distance.class(), Class::Site);
        // It moved away.
        for _ in 0..2 {
            distance.measured(Duration::from_millis(90));
        }
        assert_eq!(distance.round_trip(), Some(Duration::from_millis(90)));
        assert_eq!(distance.class(), Class::Far);
    }
}

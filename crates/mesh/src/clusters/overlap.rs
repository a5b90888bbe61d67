//! Ranges that cannot be told apart, and free ones to take instead.
//!
//! Who comes later in the policy's text gives way. What is offered depends on the cluster's name and range before anything else, so offers do not
//! move when other clusters come and go; and once it is written into the policy, it is in force for good.

use std::collections::BTreeMap;
use std::fmt;

use super::{Cluster, bounds, range_at};
use crate::prefix::Prefix;

/// Ranges that are never a cluster's: what they are, and the range.
const RESERVED: [(&str, [u8; 4], u8); 8] = [
    ("\"this network\" (RFC 791)", [0, 0, 0, 0], 8),
    ("the mesh's own addresses", [100, 64, 0, 0], 10),
    ("loopback addresses", [127, 0, 0, 0], 8),
    ("link-local addresses", [169, 254, 0, 0], 16),
    ("addresses of protocols (RFC 6890)", [192, 0, 0, 0], 24),
    ("benchmarks (RFC 2544)", [198, 18, 0, 0], 15),
    ("multicast addresses", [224, 0, 0, 0], 4),
    ("reserved addresses", [240, 0, 0, 0], 4),
];

/// Where offers are looked for, in this order: private ranges (RFC 1918), those first that are used least.
const POOLS: [([u8; 4], u8); 5] = [
    ([10, 192, 0, 0], 10),
    ([10, 128, 0, 0], 9),
    ([10, 0, 0, 0], 8),
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
];

/// Who has a range already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A cluster, by its name.
    Cluster(String),
    /// Nobody may: what the range is for.
    Reserved(&'static str),
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(formatter, "cluster {name:?}"),
            Self::Reserved(what) => formatter.write_str(what),
        }
    }
}

/// A cluster that cannot be reached at its ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The cluster that gives way.
    pub cluster: String,
    /// Its line in the policy's text.
    pub line: usize,
    /// Its range.
    pub range: Prefix,
    /// Who has addresses of that.
    pub holder: Holder,
    /// Which.
    pub other: Prefix,
    /// What to write as the cluster's `as`; `None` if there are no free ranges of that size.
    pub offer: Option<Vec<Prefix>>,
}

impl Overlap {
    /// What is wrong.
    pub fn cause(&self) -> String {
        let Self {
            cluster,
            range,
            holder,
            other,
            ..
        } = self;
        format!("{range} of cluster {cluster:?} overlaps with {other} of {holder}")
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        match &self.offer {
            Some(offer) => format!(
                "reach it at other addresses, one to one: in [clusters.{}] write as = {}",
                self.cluster,
                list(offer)
            ),
            None => "there is no free private range of that size: write smaller ranges".to_owned(),
        }
    }
}

/// Ranges as the policy writes them.
pub fn list(ranges: &[Prefix]) -> String {
    let all: Vec<_> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
    format!("[{}]", all.join(", "))
}

/// Ranges that do not overlap, each with its holder, by their first address.
#[derive(Debug, Clone, Default)]
struct Taken(BTreeMap<u32, (u32, Holder, Prefix)>);

impl Taken {
    fn reserved() -> Self {
        let mut taken = Self::default();
        for (what, first, length) in RESERVED {
            let range = range_at(u32::from_be_bytes(first), length);
            taken.add(range, Holder::Reserved(what));
        }
        taken
    }

    /// Who has addresses from `first` to `last`.
    fn find(&self, first: u32, last: u32) -> Option<&(u32, Holder, Prefix)> {
        let (_, before) = self.0.range(..=last).next_back()?;
        (before.0 >= first).then_some(before)
    }

    /// Adds a range; two ranges are nested or apart, and the larger one stays.
    fn add(&mut self, range: Prefix, holder: Holder) {
        let Some((first, last)) = bounds(range) else {
            return;
        };
        if let Some((end, ..)) = self.find(first, last)
            && *end >= last
        {
            return;
        }
        let within: Vec<_> = self.0.range(first..=last).map(|(at, _)| *at).collect();
        for at in within {
            self.0.remove(&at);
        }
        self.0.insert(first, (last, holder, range));
    }

    /// A free range of this length, the first after a place that follows from `wish`.
    fn free(&self, length: u8, wish: u64) -> Option<Prefix> {
        let size = 1_u64 << (32 - u32::from(length));
        POOLS.iter().find_map(|(first, pool)| {
            let slots = 1_u64.checked_shl(u32::from(length.checked_sub(*pool)?))?;
            let first = u64::from(u32::from_be_bytes(*first));
            let end = first + slots * size;
            let begin = first + wish % slots * size;
            let search = |mut at: u64, end: u64| {
                while at < end {
                    let bits = u32::try_from(at).ok()?;
                    let last = u32::try_from(at + size - 1).ok()?;
                    match self.find(bits, last) {
                        None => return Some(range_at(bits, length)),
                        // Past what is there, to where a range of this size may begin.
                        Some((taken, ..)) => at = (u64::from(*taken) + 1).next_multiple_of(size),
                    }
                }
                None
            };
            search(begin, end).or_else(|| search(first, begin))
        })
    }
}

/// Where in a pool a range of a cluster would like to be (FNV-1a, 64 bits).
fn wish(cluster: &str, inside: Prefix) -> u64 {
    let text = format!("{cluster} {inside}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    // The lower bits are the worse ones.
    hash >> 24
}

/// Everything that cannot be told apart, with what to do about it: the first for each cluster. `clusters` are in the order of the text.
pub fn overlaps(clusters: &[Cluster]) -> Vec<Overlap> {
    let mut settled = Taken::reserved();
    let mut found = Vec::new();
    for cluster in clusters {
        let mut own = Taken::default();
        let mut trouble = None;
        for range in &cluster.ranges {
            let Some((first, last)) = bounds(range.outside) else {
                continue;
            };
            let other = settled.find(first, last);
            if let Some((_, holder, other)) = other.or_else(|| own.find(first, last)) {
                trouble = Some((range.outside, holder.clone(), *other));
                break;
            }
            own.add(range.outside, Holder::Cluster(cluster.name.clone()));
        }
        match trouble {
            None => {
                for range in &cluster.ranges {
                    settled.add(range.outside, Holder::Cluster(cluster.name.clone()));
                }
            }
            Some((range, holder, other)) => found.push((cluster, range, holder, other)),
        }
    }
    // What is offered is nobody's inside either: that cluster's gateways could not reach it.
    let mut taken = settled.clone();
    for cluster in clusters {
        for range in &cluster.ranges {
            taken.add(range.inside, Holder::Cluster(cluster.name.clone()));
        }
    }
    found
        .into_iter()
        .map(|(cluster, range, holder, other)| Overlap {
            cluster: cluster.name.clone(),
            line: cluster.line,
            range,
            holder,
            other,
            offer: offer(cluster, &mut settled, &mut taken),
        })
        .collect()
}

/// Ranges at which a cluster can be reached: its own where nobody else has them.
fn offer(cluster: &Cluster, settled: &mut Taken, taken: &mut Taken) -> Option<Vec<Prefix>> {
    let holder = || Holder::Cluster(cluster.name.clone());
    let mut offer = Vec::new();
    for range in &cluster.ranges {
        let own = bounds(range.outside);
        let free = own.is_some_and(|(first, last)| settled.find(first, last).is_none());
        let chosen = match free {
            true => range.outside,
            false => taken.free(range.inside.length(), wish(&cluster.name, range.inside))?,
        };
        settled.add(chosen, holder());
        taken.add(chosen, holder());
        offer.push(chosen);
    }
    Some(offer)
}

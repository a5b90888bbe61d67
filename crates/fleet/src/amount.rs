//! How much of each resource: processors, memory, accelerators, places for workloads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many kinds of resource an [`Amount`] counts.
pub const RESOURCES: usize = 4;

/// A kind of resource.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processors.
    Cpu,
    /// Memory.
    Memory,
    /// Accelerators.
    Gpu,
    /// Places for workloads: how many a machine takes at once.
    Places,
}

impl Resource {
    /// All kinds, in the order in which [`Amount`] holds them.
    pub const ALL: [Self; RESOURCES] = [Self::Cpu, Self::Memory, Self::Gpu, Self::Places];
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Gpu => "gpu",
            Self::Places => "places",
        })
    }
}

/// An amount of every resource: what a machine has, or what a workload asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Amount {
    /// Processors, in thousandths.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Accelerators.
    pub gpus: u64,
    /// Places for workloads; a workload takes one.
    pub places: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self::new(0, 0, 0, 0);

    /// An amount of each, in the order of [`Resource::ALL`].
    pub const fn new(cpu_millis: u64, memory_bytes: u64, gpus: u64, places: u64) -> Self {
        Self {
            cpu_millis,
            memory_bytes,
            gpus,
            places,
        }
    }

    /// What one workload asks for: thousandths of a processor and mebibytes, and one place.
    pub const fn workload(cpu_millis: u64, memory_mebibytes: u64) -> Self {
        Self::new(cpu_millis, memory_mebibytes << 20, 0, 1)
    }

    /// How much of one resource.
    pub const fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::Gpu => self.gpus,
            Resource::Places => self.places,
        }
    }

    /// The same with another amount of one resource.
    #[must_use]
    pub const fn with(mut self, resource: Resource, value: u64) -> Self {
        match resource {
            Resource::Cpu => self.cpu_millis = value,
            Resource::Memory => self.memory_bytes = value,
            Resource::Gpu => self.gpus = value,
            Resource::Places => self.places = value,
        }
        self
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_millis: with(self.cpu_millis, other.cpu_millis),
            memory_bytes: with(self.memory_bytes, other.memory_bytes),
            gpus: with(self.gpus, other.gpus),
            places: with(self.places, other.places),
        }
    }

    /// The sum, bounded by what the type holds.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// The difference, at least nothing of each.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        self.zip(other, u64::min)
    }

    /// Each multiplied, rounded up.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        let scale = |value: u64| (value as f64 * factor.max(0.0)).ceil() as u64;
        Self {
            cpu_millis: scale(self.cpu_millis),
            memory_bytes: scale(self.memory_bytes),
            gpus: scale(self.gpus),
            places: scale(self.places),
        }
    }

    /// Each multiplied by a whole number.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        self.zip(Self::new(count, count, count, count), u64::saturating_mul)
    }

    /// Whether all of it is within `room`.
    pub const fn fits(&self, room: &Self) -> bool {
        self.cpu_millis <= room.cpu_millis
            && self.memory_bytes <= room.memory_bytes
            && self.gpus <= room.gpus
            && self.places <= room.places
    }

    /// Whether it is nothing at all.
    pub const fn is_zero(&self) -> bool {
        self.cpu_millis == 0 && self.memory_bytes == 0 && self.gpus == 0 && self.places == 0
    }

    /// How often `unit` fits, resource by resource; resources that `unit` does not ask for do not
    /// count. Very often if it asks for nothing.
    pub fn holds(&self, unit: &Self) -> u64 {
        let mut count = u64::MAX;
        for resource in Resource::ALL {
            if let Some(times) = self.of(resource).checked_div(unit.of(resource)) {
                count = count.min(times);
            }
        }
        count
    }

    /// The largest share of `whole` that any resource takes, 0 to 1 and beyond. A resource that
    /// `whole` does not have does not count. Places do not count: they are a limit, no load.
    pub fn share_of(&self, whole: &Self) -> f64 {
        [Resource::Cpu, Resource::Memory, Resource::Gpu]
            .into_iter()
            .filter(|resource| whole.of(*resource) > 0)
            .map(|resource| self.of(resource) as f64 / whole.of(resource) as f64)
            .fold(0.0, f64::max)
    }
}

impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(iterator: I) -> Self {
        iterator.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.cpu_millis > 0 {
            parts.push(format!("{} cpu", self.cpu_millis as f64 / 1000.0));
        }
        if self.memory_bytes > 0 {
            parts.push(format!("{} memory", api::Bytes(self.memory_bytes)));
        }
        if self.gpus > 0 {
            parts.push(format!("{} gpu", self.gpus));
        }
        if self.places > 0 && parts.is_empty() {
            parts.push(format!("{} places", self.places));
        }
        if parts.is_empty() {
            parts.push("nothing".to_owned());
        }
        formatter.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_printed_as_people_say_it() {
        assert_eq!(
            Amount::workload(1500, 512).to_string(),
            "1.5 cpu, 512 MiB memory"
        );
        assert_eq!(Amount::ZERO.to_string(), "nothing");
    }

    #[test]
    fn what_is_not_asked_for_does_not_limit() {
        let room = Amount::new(4000, 8 << 30, 0, 110);
        assert_eq!(room.holds(&Amount::workload(1000, 1024)), 4);
        assert_eq!(room.holds(&Amount::ZERO), u64::MAX);
        assert!((Amount::workload(1000, 4096).share_of(&room) - 0.5).abs() < 1e-9);
    }
}

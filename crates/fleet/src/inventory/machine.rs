//! A machine, its group, and the state that its power is in.

use crate::{amount::Amount, boot::BootTimes, moment::Moment, moment::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// A machine's place in its inventory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct MachineIndex(pub u32);

/// A group's place in its inventory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct GroupIndex(pub u32);

impl MachineIndex {
    /// As an index of slices.
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

impl GroupIndex {
    /// As an index of slices.
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

/// Whether Atoll may switch a machine off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It is never switched off.
    Base,
    /// It is on while it is needed.
    #[default]
    Auto,
}

/// What a machine's power is, as far as it is known for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Switched off.
    Off,
    /// Asleep with its memory kept; it wakes quickly.
    Suspended,
    /// Told to wake, and not there yet.
    Waking,
    /// On.
    On,
    /// Told to switch off or to suspend, and not done yet.
    Stopping,
}

impl fmt::Display for Power {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "off",
            Self::Suspended => "suspended",
            Self::Waking => "waking",
            Self::On => "on",
            Self::Stopping => "stopping",
        })
    }
}

/// What a machine draws from the wall, in watts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watts {
    /// Switched off: its management controller still draws something.
    pub off: f64,
    /// Suspended; absent if it cannot suspend.
    #[serde(default)]
    pub suspended: Option<f64>,
    /// On, without load.
    pub idle: f64,
    /// Under full load.
    pub peak: f64,
}

impl Watts {
    /// A guess for a machine of which nothing was measured: a fixed share for fans, disks and
    /// power supplies, and a share for each processor; idle draws 60 per cent of peak.
    pub fn guess(capacity: &Amount) -> Self {
        let peak = 100.0 + 8.0 * capacity.cpu_millis as f64 / 1000.0;
        Self {
            off: 5.0,
            suspended: None,
            idle: 0.6 * peak,
            peak,
        }
    }

    /// While it boots or stops: all processors are busy some of the time.
    pub fn in_transition(&self) -> f64 {
        (self.idle + self.peak) / 2.0
    }

    /// On, with a share of its processors busy.
    pub fn loaded(&self, share: f64) -> f64 {
        self.idle + (self.peak - self.idle) * share.clamp(0.0, 1.0)
    }
}

/// Something about a machine that keeps workloads away which do not tolerate it.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// What it is about.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// A machine as the planner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name, unique in the inventory.
    pub name: String,
    /// The group that it belongs to.
    pub group: GroupIndex,
    /// Whether it may be switched off.
    pub role: Role,
    /// What it has for workloads.
    pub capacity: Amount,
    /// What workloads may ask for by name.
    pub labels: BTreeMap<String, String>,
    /// What keeps workloads away.
    pub taints: Vec<Taint>,
    /// What it draws.
    pub watts: Watts,
    /// How long it takes to wake when it is off.
    pub boot: BootTimes,
    /// How long it takes to wake when it is suspended.
    pub resume: BootTimes,
    /// How long it takes to switch off.
    pub shutdown: Span,
    /// What its power is.
    pub power: Power,
    /// Since when.
    pub since: Moment,
    /// Whether its node was seen, not only its management controller.
    pub seen: bool,
    /// Whether its node says that it is ready.
    pub ready: bool,
    /// Whether it takes no new workloads because it is to be switched off.
    pub draining: bool,
    /// Whether somebody asked for it to be left on.
    pub hold: bool,
    /// Not woken again before then, as it did not come up.
    pub quarantined_until: Option<Moment>,
}

impl Machine {
    /// A machine that is switched on, ready and empty, with guessed watts, and boots in five
    /// minutes.
    pub fn new(name: impl Into<String>, group: GroupIndex, capacity: Amount) -> Self {
        Self {
            name: name.into(),
            group,
            role: Role::Auto,
            capacity,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            watts: Watts::guess(&capacity),
            boot: BootTimes::expecting(Span(300)),
            resume: BootTimes::expecting(Span(20)),
            shutdown: Span(60),
            power: Power::On,
            since: Moment(0),
            seen: true,
            ready: true,
            draining: false,
            hold: false,
            quarantined_until: None,
        }
    }

    /// Whether workloads can be put on it now.
    pub fn takes_work(&self) -> bool {
        self.power == Power::On && self.ready && self.seen && !self.draining
    }

    /// Whether it draws next to nothing.
    pub fn asleep(&self) -> bool {
        matches!(self.power, Power::Off | Power::Suspended)
    }

    /// Watt-hours that a whole cycle costs on top of being off: stopping and booting again.
    pub fn cycle_watt_hours(&self) -> f64 {
        let span = Span(self.boot.median().0 + self.shutdown.0);
        (self.watts.in_transition() - self.watts.off).max(0.0) * span.as_hours()
    }
}

/// Machines that are alike in what may be done with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name, unique in the inventory.
    pub name: String,
    /// How many of its machines stay on at the least.
    pub min: u32,
    /// How many may be on at the most.
    pub max: u32,
    /// Whether its machines are switched on and off only all together.
    pub atomic: bool,
}

impl Group {
    /// A group of any number of machines.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            min: 0,
            max: u32::MAX,
            atomic: false,
        }
    }
}

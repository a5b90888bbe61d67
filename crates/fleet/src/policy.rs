//! What the operator wants of the planner.

use crate::{amount::Amount, moment::Span, tariff::Tariff};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which policy decides.
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
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ours: weighs what sleeping saves against what it costs, with a forecast.
    #[default]
    Atoll,
    /// By load alone: off below 18 per cent, on above 70, after ten minutes.
    Threshold,
    /// As Kubernetes' Cluster Autoscaler decides with its defaults.
    ClusterAutoscaler,
    /// As Karpenter's consolidation decides with its defaults.
    Karpenter,
    /// By the clock, as kube-green does.
    Clock,
    /// Everything is always on.
    AlwaysOn,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Self; 6] = [
        Self::Atoll,
        Self::Threshold,
        Self::ClusterAutoscaler,
        Self::Karpenter,
        Self::Clock,
        Self::AlwaysOn,
    ];

    /// Its name, as it is written in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Atoll => "atoll",
            Self::Threshold => "threshold",
            Self::ClusterAutoscaler => "cluster-autoscaler",
            Self::Karpenter => "karpenter",
            Self::Clock => "clock",
            Self::AlwaysOn => "always-on",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!(
                "there is no policy `{text}`: write one of {}",
                names.join(", ")
            )
        })
    }
}

/// How the planner decides. Every figure has a default that suits machines which boot within
/// minutes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Which policy decides.
    pub kind: Kind,
    /// How long a machine must have been unneeded before it is drained or switched off.
    pub debounce: Span,
    /// How long after machines were woken nothing is switched off.
    pub cooldown_after_wake: Span,
    /// How long a machine may be on without being ready before it counts as lost.
    pub unready_after: Span,
    /// Whether machines that are lost are switched off.
    pub scale_down_unready: bool,
    /// How soon a machine that could not be emptied is looked at again.
    pub recheck: Span,
    /// The share of forecasts that demand stays below, for which room is held ready.
    pub reserve_quantile: f64,
    /// Room that is held ready in every group that has work, as a share of what is in use.
    pub reserve_share: f64,
    /// What is held ready for a forecast is never more than this share of what is in use: where
    /// demand comes in bursts, nothing that could be held ready would be enough.
    pub reserve_most: f64,
    /// How likely it may be that wake-ups which somebody waits for come too late, before one more
    /// machine is woken to be safe.
    pub late_chance: f64,
    /// What moving one workload counts, in watt-hours.
    pub move_watt_hours: f64,
    /// What one power cycle counts beyond its energy, for wear and risk, in watt-hours.
    pub wear_watt_hours: f64,
    /// The longest time over which savings by a move are counted.
    pub horizon: Span,
    /// How many machines of a group may be drained or switched off in one plan.
    pub max_power_offs: u32,
    /// How many machines a plan tries to empty, so that it is made in time.
    pub tries: u32,
    /// Whether workloads with local state may be moved.
    pub move_local_state: bool,
    /// What must stay awake in the whole fleet.
    pub minimum: Amount,
    /// Figures of the policy `threshold`.
    pub threshold: Threshold,
    /// Figures of the policy `clock`.
    pub clock: Clock,
    /// What energy costs and emits.
    pub tariff: Tariff,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            kind: Kind::Atoll,
            debounce: Span::minutes(1),
            cooldown_after_wake: Span::ZERO,
            unready_after: Span::minutes(20),
            scale_down_unready: true,
            recheck: Span::minutes(1),
            reserve_quantile: 0.9,
            reserve_share: 0.0,
            reserve_most: 0.05,
            late_chance: 0.05,
            move_watt_hours: 1.0,
            wear_watt_hours: 5.0,
            horizon: Span::hours(4),
            max_power_offs: 250,
            tries: 256,
            move_local_state: false,
            minimum: Amount::ZERO,
            threshold: Threshold::default(),
            clock: Clock::default(),
            tariff: Tariff::default(),
        }
    }
}

impl Policy {
    /// The defaults of another policy.
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }
}

/// Figures of the policy that looks at load alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Threshold {
    /// A machine with a lower load than this share is switched off.
    pub min_load: f64,
    /// A group with a higher load than this share gets one more machine.
    pub max_load: f64,
    /// For how long it must have been so.
    pub debounce: Span,
}

impl Default for Threshold {
    fn default() -> Self {
        Self {
            min_load: 0.18,
            max_load: 0.70,
            debounce: Span::minutes(10),
        }
    }
}

/// Figures of the policy that goes by the clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clock {
    /// The local hour at which machines wake on working days.
    pub wake_hour: u8,
    /// The local hour at which they sleep.
    pub sleep_hour: u8,
    /// The share of each group that stays on at night and on Saturday and Sunday.
    pub night_share: f64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            wake_hour: 8,
            sleep_hour: 20,
            night_share: 0.5,
        }
    }
}

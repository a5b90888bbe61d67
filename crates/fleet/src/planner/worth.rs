//! Whether a machine's sleep pays, and how deep it should be.

use super::draft::Draft;
use crate::{
    inventory::{Machine, MachineIndex},
    moment::Span,
};

/// How deep a machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Suspended.
    Light,
    /// Off.
    Deep,
}

/// What a power cycle costs and what sleeping saves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Worth {
    /// How deep the sleep is.
    pub(crate) depth: Depth,
    /// Watt-hours that the cycle and the moves count.
    pub(crate) cost: f64,
    /// Watts that sleeping saves, weighted by what energy counts at this moment.
    pub(crate) saved_watts: f64,
}

impl Worth {
    /// For how long the machine must not be needed, so that its sleep pays.
    pub(crate) fn pays_from(&self) -> Span {
        if self.saved_watts <= 0.0 {
            return Span(u64::MAX);
        }
        Span((self.cost / self.saved_watts * 3600.0).ceil() as u64)
    }

    /// What sleeping for so long saves, without what it costs, in watt-hours.
    pub(crate) fn saved(&self, span: Span) -> f64 {
        self.saved_watts * span.as_hours()
    }
}

/// Suspending a machine, if it can be, or switching it off: whichever pays sooner, unless it is
/// expected not to be needed for so long that the other is better.
pub(crate) fn of(
    draft: &Draft<'_>,
    index: MachineIndex,
    moves: usize,
    expected: Option<Span>,
) -> Worth {
    let policy = draft.policy();
    let machine = draft.inventory().machine(index);
    let weight = policy.tariff.weight(draft.situation.now);
    let moved = policy.move_watt_hours * moves as f64;
    let deep = Worth {
        depth: Depth::Deep,
        cost: machine.cycle_watt_hours() + policy.wear_watt_hours + moved,
        saved_watts: (machine.watts.idle - machine.watts.off) * weight,
    };
    let Some(suspended) = machine.watts.suspended else {
        return deep;
    };
    let light = Worth {
        depth: Depth::Light,
        cost: resume_watt_hours(machine, suspended) + moved,
        saved_watts: (machine.watts.idle - suspended) * weight,
    };
    let gain = |worth: &Worth, span: Span| worth.saved(span) - worth.cost;
    match expected {
        Some(span) if gain(&deep, span) > gain(&light, span) => deep,
        Some(_) => light,
        None if deep.pays_from() <= light.pays_from() => deep,
        None => light,
    }
}

/// For how long a suspended machine must sleep on, so that switching it off pays.
pub(crate) fn deeper_pays_from(machine: &Machine, wear_watt_hours: f64) -> Option<Span> {
    let suspended = machine.watts.suspended?;
    let saved = suspended - machine.watts.off;
    if saved <= 0.0 {
        return None;
    }
    // It has to wake either way, now to be switched off or later: only the cycle comes on top.
    let cost = machine.cycle_watt_hours() + wear_watt_hours;
    Some(Span((cost / saved * 3600.0).ceil() as u64))
}

/// Watt-hours that suspending and resuming take on top of being suspended.
fn resume_watt_hours(machine: &Machine, suspended: f64) -> f64 {
    let span = Span(2 * machine.resume.median().0);
    (machine.watts.in_transition() - suspended).max(0.0) * span.as_hours()
}

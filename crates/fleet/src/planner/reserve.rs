//! How much room is left in each group, how much is to be held ready, and for how long a machine
//! will not be needed.

use super::draft::Draft;
use crate::{
    amount::Amount,
    inventory::{GroupIndex, MachineIndex, WorkloadIndex},
    moment::Span,
};
use std::{cell::OnceCell, collections::BTreeMap};

/// How far ahead demand is looked at.
const AHEAD: Span = Span::hours(12);
/// In steps of this length.
const STEP: Span = Span::minutes(10);
/// The expectation of how long nobody needs a machine is a middle one: both mistakes cost.
const MIDDLE: f64 = 0.5;

/// What a group has to spare and must hold ready.
#[derive(Debug, Clone)]
pub(crate) struct Reserve {
    /// A typical workload of each group: room that is too small for one is of no use.
    units: Vec<Amount>,
    /// What is to be held ready in each group.
    pub(crate) wanted: Vec<Amount>,
    /// By how much demand will have grown at most, step by step.
    growth: Vec<OnceCell<Vec<Amount>>>,
}

impl Reserve {
    pub(crate) fn of(draft: &Draft<'_>) -> Self {
        let inventory = draft.inventory();
        let groups = inventory.groups().len();
        let mut used = vec![Amount::ZERO; groups];
        let mut counts = vec![0_u64; groups];
        let mut slowest = vec![Span::ZERO; groups];
        for (index, machine) in inventory.enumerate() {
            let group = machine.group.at();
            used[group] = used[group].plus(inventory.used(index));
            counts[group] += inventory.carried(index).len() as u64;
            slowest[group] = slowest[group].max(machine.boot.quantile(0.9));
        }
        let mean = |amount: Amount, count: u64| {
            if count == 0 {
                Amount::ZERO
            } else {
                amount.scaled(1.0 / count as f64)
            }
        };
        let anywhere = mean(used.iter().copied().sum(), counts.iter().sum());
        let units: Vec<Amount> = (0..groups)
            .map(|at| {
                if counts[at] > 0 {
                    mean(used[at], counts[at])
                } else {
                    anywhere
                }
            })
            .collect();
        let policy = draft.policy();
        let wanted = (0..groups)
            .map(|at| {
                let ahead = Span(slowest[at].0 + 60);
                let growth = draft.situation.forecast.map_or(Amount::ZERO, |forecast| {
                    let group = GroupIndex(at as u32);
                    forecast.growth(group, draft.situation.now, ahead, policy.reserve_quantile)
                });
                let most = used[at].scaled(policy.reserve_most);
                growth.min(most).max(used[at].scaled(policy.reserve_share))
            })
            .collect();
        Self {
            units,
            wanted,
            growth: vec![OnceCell::new(); groups],
        }
    }

    /// A typical workload of a group.
    pub(crate) fn unit(&self, group: GroupIndex) -> Amount {
        self.units[group.at()]
    }

    /// How much of the room is of use to typical workloads.
    pub(crate) fn usable(&self, group: GroupIndex, room: Amount) -> Amount {
        let unit = self.units[group.at()];
        if unit.is_zero() {
            return room;
        }
        unit.times(room.holds(&unit)).min(room)
    }

    /// What every group has to spare on machines that are open.
    pub(crate) fn spare(&self, draft: &Draft<'_>) -> Vec<Amount> {
        let mut spare = vec![Amount::ZERO; self.units.len()];
        for (index, machine) in draft.inventory().enumerate() {
            if draft.rooms.tier(index).is_some() {
                let group = machine.group;
                let usable = self.usable(group, draft.rooms.free(index));
                spare[group.at()] = spare[group.at()].plus(usable);
            }
        }
        spare
    }

    /// What one machine contributes to what its group has to spare.
    pub(crate) fn share(&self, draft: &Draft<'_>, machine: MachineIndex) -> Amount {
        if draft.rooms.tier(machine).is_none() {
            return Amount::ZERO;
        }
        let group = draft.inventory().machine(machine).group;
        self.usable(group, draft.rooms.free(machine))
    }

    /// What every group has to spare after a machine was emptied: its group had `left` without it,
    /// and the machines that took its workloads have less.
    pub(crate) fn after(
        &self,
        draft: &Draft<'_>,
        mut spare: Vec<Amount>,
        group: GroupIndex,
        left: Amount,
        moves: &[(WorkloadIndex, MachineIndex)],
    ) -> Vec<Amount> {
        spare[group.at()] = left;
        let inventory = draft.inventory();
        let mut received: BTreeMap<MachineIndex, Amount> = BTreeMap::new();
        for (workload, target) in moves {
            if let Some(one) = inventory.workload(*workload) {
                let sum = received.entry(*target).or_default();
                *sum = sum.plus(one.request);
            }
        }
        for (target, amount) in received {
            let group = inventory.machine(target).group;
            let free = draft.rooms.free(target);
            let (before, now) = (
                self.usable(group, free.plus(amount)),
                self.usable(group, free),
            );
            spare[group.at()] = spare[group.at()].minus(before).plus(now);
        }
        spare
    }

    /// For how long `spare` is expected to be enough for the group; `None` if nothing is known.
    pub(crate) fn lasts(
        &self,
        draft: &Draft<'_>,
        group: GroupIndex,
        spare: Amount,
    ) -> Option<Span> {
        let forecast = draft.situation.forecast?;
        let growth = self.growth[group.at()].get_or_init(|| {
            let mut most = Amount::ZERO;
            let steps = 1..=AHEAD.0 / STEP.0;
            steps
                .map(|step| {
                    let ahead = Span(step * STEP.0);
                    let at = forecast.growth(group, draft.situation.now, ahead, MIDDLE);
                    most = most.max(at);
                    most
                })
                .collect()
        });
        let steps = growth.partition_point(|grown| relevant(*grown, spare));
        Some(Span(steps as u64 * STEP.0))
    }

    /// The same, but `None` also if nobody has learnt yet when demand comes and goes: enough to let a
    /// machine sleep, as it can be woken, but not to choose how deep.
    pub(crate) fn foreseen(
        &self,
        draft: &Draft<'_>,
        group: GroupIndex,
        expected: Option<Span>,
    ) -> Option<Span> {
        let forecast = draft.situation.forecast?;
        expected.filter(|_| forecast.foresees(group, Span::hours(1)))
    }
}

/// Whether `spare` is enough for `grown`. Places are a limit of machines, not a demand.
fn relevant(grown: Amount, spare: Amount) -> bool {
    Amount { places: 0, ..grown }.fits(&spare)
}

/// Whether `spare` covers what is to be held ready.
pub(crate) fn covers(spare: Amount, wanted: Amount) -> bool {
    relevant(wanted, spare)
}

//! By the clock: all machines on working days, a share of them at night and on Saturday and
//! Sunday. Whatever waits meanwhile waits until the morning.

use crate::{
    inventory::{GroupIndex, MachineIndex, Power},
    moment::{Moment, Span},
    planner::{
        draft::Draft,
        plan::{Action, Decision},
        reason::{Reason, Would},
        waiting, waking,
    },
    policy::Policy,
};

pub(crate) fn plan(draft: &mut Draft<'_>) {
    let left = waiting::place(draft);
    waking::note_unplaced(draft, left);
    waking::wake_minimum(draft);
    let day = is_day(draft.policy(), draft.situation.now);
    let candidates = super::candidates(draft);
    for at in 0..draft.inventory().groups().len() {
        let group = GroupIndex(at as u32);
        let inventory = draft.inventory();
        let held = inventory.enumerate().filter(|(index, one)| {
            one.group == group
                && !candidates.contains(index)
                && (!one.asleep() || draft.is_decided(*index))
                && one.power != Power::Stopping
        });
        let target = target(draft, group, day).saturating_sub(held.count());
        let mut on: Vec<MachineIndex> = candidates
            .iter()
            .copied()
            .filter(|one| draft.inventory().machine(*one).group == group)
            .collect();
        on.sort_by(|one, two| super::load(draft, *two).total_cmp(&super::load(draft, *one)));
        for machine in on.iter().copied().take(target) {
            let draining = draft.inventory().machine(machine).draining;
            let action = if draining {
                Action::Undrain
            } else {
                Action::Keep
            };
            let would = Would::wait(until_change(draft.policy(), draft.situation.now));
            let decision = Decision::act(action, Reason::Schedule).unless(would);
            draft.decide(machine, decision);
        }
        for machine in on.iter().copied().skip(target) {
            leave(draft, machine);
        }
        let asleep = waking::preferred(draft, Some(group));
        for machine in asleep.into_iter().take(target.saturating_sub(on.len())) {
            waking::wake(draft, machine, Reason::Schedule);
        }
    }
}

/// How many machines of a group are on now, besides those that are held anyway.
fn target(draft: &Draft<'_>, group: GroupIndex, day: bool) -> usize {
    let share = if day {
        1.0
    } else {
        draft.policy().clock.night_share
    };
    let machines = draft.inventory().machines().iter();
    let count = machines.filter(|one| one.group == group).count();
    let max = draft.inventory().group(group).max as usize;
    ((count as f64 * share).ceil() as usize).min(max)
}

/// A machine that is not wanted sleeps once it is empty.
fn leave(draft: &mut Draft<'_>, machine: MachineIndex) {
    if draft.inventory().carried(machine).is_empty() {
        super::sleep(draft, machine, &[]);
        return;
    }
    draft.rooms.close(machine);
    let draining = draft.inventory().machine(machine).draining;
    let action = if draining {
        Action::Keep
    } else {
        Action::Drain
    };
    draft.decide(machine, Decision::act(action, Reason::Schedule));
}

/// Whether machines are to be awake: on working days between two hours.
fn is_day(policy: &Policy, now: Moment) -> bool {
    let local = policy.tariff.local(now);
    // The first of January 1970 was a Thursday.
    let weekday = (local / 86_400 + 3) % 7;
    let hour = local / 3600 % 24;
    let clock = &policy.clock;
    weekday < 5 && (u64::from(clock.wake_hour)..u64::from(clock.sleep_hour)).contains(&hour)
}

/// How long until the clock says something else.
fn until_change(policy: &Policy, now: Moment) -> Span {
    let day = is_day(policy, now);
    let first = Moment((now.0 / 3600 + 1) * 3600);
    let hours = (0..24 * 7).map(|hour| first.plus(Span::hours(hour)));
    let mut changes = hours.filter(|at| is_day(policy, *at) != day);
    changes.next().map_or(Span::ZERO, |at| at.since(now))
}

//! The inventory as the planner sees it: what is configured, what is known, what was seen and what is
//! asked for, put together. Pure.

use super::{
    known::Known,
    look::Seen,
    source::{Asked, Demand},
};
use crate::{
    inventory::{Inventory, MachineIndex, Power, SetIndex, Workload},
    moment::{Moment, Span},
    power::{
        Reading,
        transition::{Intent, Wanted},
    },
};
use std::collections::HashMap;

/// What a machine's power is, and since when if that differs from now. What was wanted and has not
/// ended comes first, then its node, then its controller; who says nothing changes nothing.
pub(super) fn power(
    known: &Known,
    intent: Option<&Intent>,
    seen: Option<&Seen>,
    now: Moment,
) -> (Power, Moment) {
    let under_way = intent.filter(|one| one.outcome.is_none());
    let answers = seen.is_some_and(|one| one.answers);
    match under_way.map(|one| (one.wanted, one.since)) {
        Some((Wanted::Off | Wanted::Suspended, since)) => return (Power::Stopping, since),
        Some((Wanted::On, since)) if !answers => return (Power::Waking, since),
        _ => {}
    }
    let Some(seen) = seen else {
        // A way that ended without anybody looking: the machine is where it was to go.
        let power = match known.power {
            Power::Waking => Power::On,
            Power::Stopping if known.asleep => Power::Suspended,
            Power::Stopping => Power::Off,
            other => other,
        };
        return (power, now);
    };
    let power = match (seen.answers, seen.reading) {
        (true, _) => Power::On,
        (false, Some(Reading::On)) => Power::On,
        (false, Some(Reading::Changing)) => known.power,
        (false, Some(Reading::Suspended)) => Power::Suspended,
        (false, Some(Reading::Off)) => Power::Off,
        // Where there is no way to ask, the node alone tells, and what we did with it.
        (false, Some(Reading::Unknown)) if known.asleep => Power::Suspended,
        (false, Some(Reading::Unknown)) => Power::Off,
        // Neither node nor controller answer: nothing says that it has changed.
        (false, None) => match known.power {
            Power::On => Power::On,
            _ if known.asleep => Power::Suspended,
            _ => Power::Off,
        },
    };
    (power, now)
}

/// A controller that says for so long that a machine is off, whenever it is asked, is believed.
const BELIEVED: Span = Span::minutes(10);

/// Notes in `known` what was seen of a machine. That its node has answered is forgotten when we switched
/// it off, or when somebody else did and all agree for a while: a controller that says `off` once may
/// not make anybody believe that a silent node never carried work.
pub(super) fn note(known: &mut Known, intent: Option<&Intent>, seen: Option<&Seen>, now: Moment) {
    let (power, since) = power(known, intent, seen, now);
    match seen.map(|one| (one.answers, one.reading)) {
        Some((false, Some(Reading::Off))) => {
            let off_since = *known.off_since.get_or_insert(now);
            known.answered &= now.since(off_since) < BELIEVED;
        }
        Some(_) => known.off_since = None,
        None => {}
    }
    if matches!(power, Power::Off | Power::Suspended) {
        known.draining = false;
    }
    if known.asleep && power == Power::On && intent.is_none_or(|one| one.outcome.is_some()) {
        // Nobody woke it, as far as we know: it would sleep badly again.
        known.suspension_failed(now);
    }
    known.asleep = match power {
        Power::Suspended => true,
        Power::On | Power::Off => false,
        Power::Waking | Power::Stopping => known.asleep,
    };
    known.answered |= seen.is_some_and(|one| one.answers);
    known.enter(power, since);
}

/// Since when workloads wait or run, by their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Since(HashMap<String, Moment>);

impl Since {
    /// Notes who is there, and forgets who is not.
    pub(super) fn note(&mut self, asked: &[Asked], now: Moment) {
        let mut next = HashMap::with_capacity(asked.len());
        for one in asked {
            let since = self.0.get(&one.name).copied().unwrap_or(now);
            next.insert(one.name.clone(), since);
        }
        self.0 = next;
    }

    fn of(&self, name: &str, now: Moment) -> Moment {
        self.0.get(name).copied().unwrap_or(now)
    }
}

/// All that an inventory is put together from.
pub(super) struct Parts<'a> {
    pub(super) base: &'a Inventory,
    pub(super) known: &'a [Known],
    /// Whether a driver can suspend them.
    pub(super) suspends: &'a [bool],
    pub(super) seen: &'a [Option<Seen>],
    pub(super) demand: &'a Demand,
    pub(super) since: &'a Since,
}

/// Puts the inventory together.
pub(super) fn assemble(parts: &Parts<'_>, now: Moment) -> Inventory {
    let mut inventory = parts.base.clone();
    let mut indices: HashMap<String, MachineIndex> = HashMap::new();
    for (at, known) in parts.known.iter().enumerate() {
        let index = MachineIndex(at as u32);
        let machine = inventory.machine_mut(index);
        let answers = parts.seen[at].is_some_and(|one| one.answers);
        let facts = parts.demand.nodes.get(&machine.name);
        (machine.power, machine.since) = (known.power, known.since);
        machine.seen = known.answered;
        machine.ready = answers && facts.is_none_or(|one| one.ready);
        machine.hold = facts.is_some_and(|one| one.hold);
        machine.draining = known.draining;
        machine.quarantined_until = known.quarantined_until;
        machine.boot = known.boot.clone();
        machine.resume = known.resume.clone();
        // Nothing is planned that nobody can do, or that has just failed.
        let suspends = parts.suspends[at] && known.no_suspension_until.is_none_or(|at| at <= now);
        if !suspends && machine.power != Power::Suspended {
            machine.watts.suspended = None;
        }
        indices.insert(machine.name.clone(), index);
    }
    let mut sets: HashMap<&str, SetIndex> = HashMap::new();
    for set in &parts.demand.sets {
        let index = inventory.add_set(set.clone());
        sets.insert(&set.name, index);
    }
    for asked in &parts.demand.workloads {
        let machine = match &asked.machine {
            Some(name) => match indices.get(name) {
                Some(index) => Some(*index),
                // It runs where nothing is ours to plan.
                None => continue,
            },
            None => None,
        };
        let mut workload = Workload::new(asked.name.clone(), asked.request);
        workload.machine = machine;
        workload.since = parts.since.of(&asked.name, now);
        workload.set = asked
            .set
            .as_deref()
            .and_then(|name| sets.get(name))
            .copied();
        workload.moving = asked.moving;
        inventory.add_workload(workload);
    }
    inventory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{boot::BootTimes, moment::Span};

    const NOW: Moment = Moment(1000);

    fn check(
        before: Power,
        wanted: Option<Wanted>,
        seen: Option<(bool, Option<Reading>)>,
        after: Power,
    ) {
        let mut known = Known::new(BootTimes::expecting(Span(60)), Moment(0));
        known.power = before;
        let intent = wanted.map(|wanted| Intent::new(wanted, Moment(900)));
        let seen = seen.map(|(answers, reading)| Seen { answers, reading });
        let (power, _) = power(&known, intent.as_ref(), seen.as_ref(), NOW);
        assert_eq!(power, after, "{before} {wanted:?} {seen:?}");
    }

    #[test]
    fn what_is_wanted_comes_first_then_the_node_then_the_controller() {
        use Reading::{Changing, Off, On, Unknown};
        check(
            Power::Off,
            Some(Wanted::On),
            Some((false, Some(On))),
            Power::Waking,
        );
        check(
            Power::Waking,
            Some(Wanted::On),
            Some((true, None)),
            Power::On,
        );
        check(
            Power::On,
            Some(Wanted::Off),
            Some((true, None)),
            Power::Stopping,
        );
        check(Power::Off, None, Some((true, None)), Power::On);
        check(Power::On, None, Some((false, Some(Off))), Power::Off);
        check(Power::Off, None, Some((false, Some(On))), Power::On);
        check(Power::On, None, Some((false, Some(Changing))), Power::On);
        check(Power::On, None, Some((false, Some(Unknown))), Power::Off);
        // Silence changes nothing.
        check(Power::On, None, Some((false, None)), Power::On);
        check(Power::Off, None, Some((false, None)), Power::Off);
        check(Power::On, None, None, Power::On);
        check(Power::Waking, None, None, Power::On);
    }

    #[test]
    fn that_a_node_has_answered_is_forgotten_when_its_machine_is_surely_off() {
        let mut known = Known::new(BootTimes::expecting(Span(60)), Moment(0));
        let on = Seen {
            answers: true,
            reading: None,
        };
        note(&mut known, None, Some(&on), NOW);
        assert!(known.answered && known.power == Power::On);
        let silent = Seen {
            answers: false,
            reading: Some(Reading::On),
        };
        note(&mut known, None, Some(&silent), NOW);
        assert!(known.answered, "it was there, and is lost");
        let off = Seen {
            answers: false,
            reading: Some(Reading::Off),
        };
        note(&mut known, None, Some(&off), NOW);
        assert!(known.answered && known.power == Power::Off, "said once");
        note(&mut known, None, Some(&silent), NOW.plus(Span(300)));
        assert!(known.answered && known.power == Power::On, "and taken back");
        for minute in 0..10 {
            let now = NOW.plus(Span::minutes(10 + minute));
            note(&mut known, None, Some(&off), now);
            assert!(known.answered);
        }
        note(&mut known, None, Some(&off), NOW.plus(Span::minutes(20)));
        assert!(!known.answered, "somebody has switched it off");
    }
}

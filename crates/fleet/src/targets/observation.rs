//! What was seen of machines, and what that changes in the ledger.

use super::{
    Book,
    ledger::{Failure, FailureClass, Ledger, Phase},
};
use crate::{
    inventory::Power,
    moment::Moment,
    power::transition::{Intent, Outcome, Wanted},
};
use std::collections::BTreeMap;

/// Sending an action failed so often in a row that the controller says no.
const REFUSALS: u32 = 3;
/// The same, where a fallback was tried in between.
const ATTEMPTS: u32 = 6;

/// What was seen of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub machine: String,
    /// What its power is.
    pub power: Power,
    /// Whether its node answers. Only that makes a machine run.
    pub node: bool,
    /// What the power executor does with it, from its journal: how a failure is learnt of.
    pub intent: Option<Intent>,
}

/// What changed by what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Machines that came up as promised.
    pub came: Vec<String>,
    /// Machines that are on though nobody asked for them; they count from now on.
    pub adopted: Vec<String>,
    /// Machines that went off by themselves; they are to be woken again.
    pub fell: Vec<String>,
    /// Machines that were given back and are off.
    pub gone: Vec<String>,
    /// Machines that cannot be woken, and why.
    pub failed: Vec<(String, String)>,
}

impl Observed {
    /// Whether there is anything.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// The ledgers that change, and what that means. What each machine's power is, is noted at once.
pub(super) fn observe(
    book: &mut Book,
    seen: &[Seen],
    now: Moment,
) -> (Vec<(usize, Ledger)>, Observed) {
    let mut observed = Observed::default();
    let mut changed: BTreeMap<usize, Ledger> = BTreeMap::new();
    let mut powers = book.powers.as_ref().clone();
    for one in seen {
        let Some(index) = book.catalogue.named(&one.machine) else {
            continue;
        };
        powers[index.at()] = Some(one.power);
        let group = book.catalogue.machine(index).machine.group.at();
        let current = changed.get(&group);
        let ledger = current.unwrap_or(&book.groups[group].ledger);
        let member = ledger.member(&one.machine);
        let Some(step) = step(member.map(|member| (member.phase, member.since)), one) else {
            continue;
        };
        if step == Step::Failed
            && member.is_some_and(|member| member.failure == failure_of(one.intent.as_ref()))
        {
            continue;
        }
        let ledger = changed
            .entry(group)
            .or_insert_with(|| Ledger::clone(&book.groups[group].ledger));
        take(ledger, &mut observed, step, one, now);
    }
    book.powers = std::sync::Arc::new(powers);
    (changed.into_iter().collect(), observed)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Adopted,
    Came,
    Failed,
    Fell,
    Gone,
}

/// What happens to a machine that is in this phase since then.
fn step(member: Option<(Phase, Moment)>, seen: &Seen) -> Option<Step> {
    let up = seen.node && seen.power != Power::Stopping;
    let down = !seen.node && matches!(seen.power, Power::Off | Power::Suspended);
    match member {
        None if up => Some(Step::Adopted),
        None => None,
        Some((Phase::Creating, _)) if up => Some(Step::Came),
        Some((Phase::Creating, since)) => {
            let about = seen.intent.as_ref().filter(|one| one.since >= since);
            failure_of(about).map(|_| Step::Failed)
        }
        Some((Phase::Running, _)) => down.then_some(Step::Fell),
        Some((Phase::Deleting | Phase::Returning, _)) => {
            // It may still come up as long as somebody is told to wake it.
            let waking = seen
                .intent
                .as_ref()
                .is_some_and(|one| one.wanted == Wanted::On && one.outcome.is_none());
            (down && !waking).then_some(Step::Gone)
        }
    }
}

fn take(ledger: &mut Ledger, observed: &mut Observed, step: Step, seen: &Seen, now: Moment) {
    let name = &seen.machine;
    match step {
        Step::Adopted => {
            ledger.enter(name, Phase::Running, now);
            observed.adopted.push(name.clone());
        }
        Step::Came => {
            ledger.enter(name, Phase::Running, now);
            ledger.recovered(name);
            observed.came.push(name.clone());
        }
        Step::Fell => {
            ledger.enter(name, Phase::Creating, now);
            observed.fell.push(name.clone());
        }
        Step::Gone => {
            ledger.went_off(name, now);
            observed.gone.push(name.clone());
        }
        Step::Failed => {
            if let Some(failure) = failure_of(seen.intent.as_ref()) {
                let message = failure.message.clone();
                observed.failed.push((name.clone(), message));
                ledger.failed(name, failure, now);
            }
        }
    }
}

/// Why a machine cannot be woken, if it cannot.
fn failure_of(intent: Option<&Intent>) -> Option<Failure> {
    let intent = intent.filter(|one| one.wanted == Wanted::On)?;
    let last = intent.last_error.as_deref();
    if intent.outcome == Some(Outcome::NeverCame) {
        let because = last.map_or_else(String::new, |error| format!("; the last error: {error}"));
        return Some(Failure {
            class: FailureClass::Other,
            code: "NeverCameUp".to_owned(),
            message: format!("it was told to switch on, and its node never answered{because}"),
        });
    }
    let refused = intent.failures >= REFUSALS || intent.attempts >= ATTEMPTS;
    let error = last.filter(|_| refused && intent.outcome.is_none())?;
    Some(Failure {
        class: FailureClass::Other,
        code: "PowerControlFailed".to_owned(),
        message: format!("it cannot be switched on: {error}"),
    })
}

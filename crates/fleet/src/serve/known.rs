//! What is known of machines and demand, and outlives the process.

use crate::{
    boot::BootTimes,
    forecast::{Forecast, GroupForecast},
    inventory::{GroupIndex, Inventory, Power},
    moment::{Moment, Span},
    planner::{Lasting, Memory},
    power::transition::{Intent, Outcome, Wanted},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};
use store::{Collection, Condition, MAX_OPERATIONS, Operation, Store, StoreError, Transaction};

const MACHINES: &str = "fleet/machines";
const FORECASTS: &str = "fleet/forecast";
const PLANNER: &str = "fleet/planner";
/// The one record of what the planner remembers besides machines.
const MEMORY: &str = "memory";
/// That somebody planned is written down so often.
const SAY_SO: Span = Span::minutes(1);
/// If nobody planned for so long, what the planner remembers counts no more.
const FORGOTTEN: Span = Span::hours(1);

/// A machine that did not come up is left alone for so long, twice as long each time.
const QUARANTINE: Span = Span::minutes(10);
const DOUBLINGS: u32 = 6;
/// A machine that could not be switched off is tried again after this time at the latest.
const REFUSED: Span = Span::minutes(10);
/// Forecasts of more bytes are not kept in one value of the store.
const LARGEST: usize = 900 << 10;

/// What is known of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    /// What its power is.
    pub(super) power: Power,
    /// Since when.
    pub(super) since: Moment,
    /// Whether its node has answered since it was switched on.
    pub(super) answered: bool,
    /// Whether it takes no new work as it is to be switched off.
    pub(super) draining: bool,
    /// Whether we keep work away from its node.
    pub(super) closed: bool,
    /// Not woken before then.
    pub(super) quarantined_until: Option<Moment>,
    /// How often in a row it did not come up.
    pub(super) missed: u32,
    /// Not switched off before then, as it refused.
    pub(super) refused_until: Option<Moment>,
    /// How long it takes to wake.
    pub(super) boot: BootTimes,
    /// The last intent whose end was taken note of.
    pub(super) settled: Option<(Wanted, Moment)>,
    /// Since when its controller has said that it is off, each time that it was asked, with its node
    /// silent all the time.
    #[serde(default, skip_serializing)]
    pub(super) off_since: Option<Moment>,
    /// How long it takes to wake when it is suspended; as configured if nothing was learnt.
    #[serde(default = "usual_resume")]
    pub(super) resume: BootTimes,
    /// Whether we suspended it, and nobody has seen it awake since.
    #[serde(default)]
    pub(super) asleep: bool,
    /// Not suspended again before then, as it went wrong.
    #[serde(default)]
    pub(super) no_suspension_until: Option<Moment>,
    /// How often in a row that went wrong.
    #[serde(default)]
    pub(super) bad_suspensions: u32,
    /// What the planner remembers of it.
    #[serde(default)]
    pub(super) lasting: Lasting,
}

fn usual_resume() -> BootTimes {
    BootTimes::expecting(Span(20))
}

impl Known {
    /// Nothing is known yet.
    pub(super) fn new(boot: BootTimes, now: Moment) -> Self {
        Self {
            power: Power::Off,
            since: now,
            answered: false,
            draining: false,
            closed: false,
            quarantined_until: None,
            missed: 0,
            refused_until: None,
            boot,
            settled: None,
            off_since: None,
            resume: usual_resume(),
            asleep: false,
            no_suspension_until: None,
            bad_suspensions: 0,
            lasting: Lasting::default(),
        }
    }

    /// Takes note of how an intent ended, and returns it the first time. `watched` is whether
    /// somebody looked all the time, so that how long it took is known.
    pub(super) fn settle(
        &mut self,
        intent: &Intent,
        watched: bool,
        recheck: Span,
        now: Moment,
    ) -> Option<Outcome> {
        let (outcome, mark) = (intent.outcome?, (intent.wanted, intent.since));
        if self.settled == Some(mark) {
            return None;
        }
        self.settled = Some(mark);
        match (outcome, intent.wanted) {
            (Outcome::Done, Wanted::On) => {
                self.answered = true;
                self.missed = 0;
                self.quarantined_until = None;
                // A machine that was on already says nothing about boots.
                let took = Some(now.since(intent.since));
                let took = took.filter(|_| watched && intent.sent.is_some());
                match (intent.asleep, intent.resumed) {
                    (true, Some(true)) => self.has_resumed(took),
                    // Its driver could tell that it was suspended, if nobody can tell its boots apart.
                    (true, None) if intent.boot_id.is_none() => self.has_resumed(took),
                    (true, None) => {}
                    (true, Some(false)) => {
                        self.suspension_failed(now);
                        self.boot.learn_some(took);
                    }
                    (false, _) => self.boot.learn_some(took),
                }
                self.asleep = false;
            }
            (Outcome::Done, Wanted::Suspended) => {
                self.asleep = intent.sent.is_some();
                self.refused_until = None;
                self.answered &= intent.sent.is_none();
            }
            (Outcome::WentOff, _) => {
                self.suspension_failed(now);
                self.answered &= intent.sent.is_none();
            }
            (Outcome::WouldNotSuspend, _) => self.suspension_failed(now),
            (Outcome::Done, Wanted::Off) => {
                self.refused_until = None;
                self.asleep = false;
                // It was we who switched it off: what it carried before is gone.
                self.answered &= intent.sent.is_none();
            }
            (Outcome::NeverCame, _) => {
                match intent.asleep {
                    true => {
                        self.asleep = false;
                        self.suspension_failed(now);
                    }
                    false => self.boot.learn_failure(),
                }
                let doublings = self.missed.min(DOUBLINGS);
                self.missed = self.missed.saturating_add(1);
                self.quarantined_until = Some(now.plus(Span(QUARANTINE.0 << doublings)));
            }
            (Outcome::CarriesWork, _) => self.refused_until = Some(now.plus(recheck)),
            (Outcome::WouldNotStop, _) => self.refused_until = Some(now.plus(REFUSED)),
        }
        Some(outcome)
    }

    /// It was suspended, and came back as it was.
    fn has_resumed(&mut self, took: Option<Span>) {
        (self.bad_suspensions, self.no_suspension_until) = (0, None);
        self.resume.learn_some(took);
    }

    /// It could not be suspended, or did not stay so, or lost its memory: it is switched off instead for a
    /// while, longer each time.
    pub(super) fn suspension_failed(&mut self, now: Moment) {
        let doublings = self.bad_suspensions.min(DOUBLINGS);
        self.bad_suspensions = self.bad_suspensions.saturating_add(1);
        self.no_suspension_until = Some(now.plus(Span(QUARANTINE.0 << doublings)));
    }

    /// Notes what its power is now.
    pub(super) fn enter(&mut self, power: Power, since: Moment) {
        if self.power != power {
            (self.power, self.since) = (power, since);
        }
    }
}

/// What the planner remembers besides machines, and when it planned last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    at: Moment,
    /// When a machine was woken last.
    woken: Option<Moment>,
    /// Since when groups have had more load than the policy allows, by their names.
    loaded_since: HashMap<String, Moment>,
}

/// What is known of all machines, in their order, as it is in the store.
pub(super) struct Knowledge {
    store: Arc<dyn Store>,
    records: Collection<Known>,
    forecasts: Collection<GroupForecast>,
    planner: Collection<Kept>,
    written: Vec<Option<Known>>,
    kept: Kept,
}

impl Knowledge {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            records: Collection::new(store.clone(), MACHINES),
            forecasts: Collection::new(store.clone(), FORECASTS),
            planner: Collection::new(store.clone(), PLANNER),
            store,
            written: Vec::new(),
            kept: Kept::default(),
        }
    }

    /// Reads what is known of these machines.
    pub(super) async fn load(
        &mut self,
        fleet: &Inventory,
        now: Moment,
    ) -> Result<Vec<Known>, StoreError> {
        let (stored, _) = self.records.list().await?;
        let mut found: HashMap<String, Known> =
            stored.into_iter().map(|one| (one.id, one.record)).collect();
        let machines = fleet.machines().iter();
        let written = machines.map(|one| (one, found.remove(&one.name)));
        let mut all = Vec::new();
        self.written.clear();
        for (machine, stored) in written {
            self.written.push(stored.clone());
            let mut known = stored.unwrap_or_else(|| Known::new(machine.boot.clone(), now));
            if known.boot.expected() != machine.boot.expected() {
                known.boot = machine.boot.clone();
            }
            if known.resume.expected() != machine.resume.expected() {
                known.resume = machine.resume.clone();
            }
            all.push(known);
        }
        Ok(all)
    }

    /// Writes what has changed, as long as `leader` holds; returns whether it does.
    pub(super) async fn save(
        &mut self,
        leader: &Condition,
        fleet: &Inventory,
        known: &[Known],
    ) -> Result<bool, StoreError> {
        let mut changed: Vec<(usize, Operation)> = Vec::new();
        for (at, (machine, one)) in fleet.machines().iter().zip(known).enumerate() {
            if self.written.get(at).and_then(Option::as_ref) != Some(one) {
                changed.push((at, self.records.put(&machine.name, one)?));
            }
        }
        for some in changed.chunks(MAX_OPERATIONS) {
            let operations: Vec<Operation> = some.iter().map(|(_, one)| one.clone()).collect();
            let transaction = Transaction {
                conditions: vec![leader.clone()],
                then: operations,
            };
            if !self.store.transact(transaction).await?.committed() {
                return Ok(false);
            }
            for (at, _) in some {
                self.written[*at] = Some(known[*at].clone());
            }
        }
        Ok(true)
    }

    /// Reads what the planner remembered. The time in which nobody planned does not count: what was
    /// so for five minutes before it has been so for five minutes.
    pub(super) async fn load_memory(
        &mut self,
        fleet: &Inventory,
        known: &mut [Known],
        now: Moment,
    ) -> Result<Memory, StoreError> {
        self.kept = match self.planner.get(MEMORY).await {
            Ok(stored) => stored.map(|one| one.record).unwrap_or_default(),
            Err(StoreError::Record { .. }) => Kept::default(),
            Err(error) => return Err(error),
        };
        let away = now.since(self.kept.at);
        // It may have been said a minute before the last plan was made.
        let missed = Span(SAY_SO.0 * 2);
        let later = |since: Option<Moment>| {
            let since = since.filter(|_| away < FORGOTTEN)?;
            Some(if away > missed {
                since.plus(away)
            } else {
                since
            })
        };
        for one in known.iter_mut() {
            one.lasting.unneeded_since = later(one.lasting.unneeded_since);
            one.lasting.unready_since = later(one.lasting.unready_since);
        }
        let groups = fleet.groups().iter();
        let loaded = groups.map(|group| later(self.kept.loaded_since.get(&group.name).copied()));
        let lasting = known.iter().map(|one| one.lasting);
        Ok(Memory::lasting_on(
            lasting,
            now,
            self.kept.woken,
            loaded.collect(),
        ))
    }

    /// Writes what the planner remembers besides machines, if it has changed or was not written for a
    /// while.
    pub(super) async fn save_memory(
        &mut self,
        leader: &Condition,
        fleet: &Inventory,
        memory: &Memory,
        now: Moment,
    ) -> Result<(), StoreError> {
        let groups = fleet.groups().iter().zip(memory.loaded_since());
        let kept = Kept {
            at: self.kept.at,
            woken: memory.woken(),
            loaded_since: groups
                .filter_map(|(group, since)| Some((group.name.clone(), (*since)?)))
                .collect(),
        };
        if kept == self.kept && now.since(kept.at) < SAY_SO {
            return Ok(());
        }
        let kept = Kept { at: now, ..kept };
        let transaction = Transaction {
            conditions: vec![leader.clone()],
            then: vec![self.planner.put(MEMORY, &kept)?],
        };
        if self.store.transact(transaction).await?.committed() {
            self.kept = kept;
        }
        Ok(())
    }

    /// Reads what was learnt of demand, group by group.
    pub(super) async fn load_forecast(&self, fleet: &Inventory) -> Result<Forecast, StoreError> {
        let mut groups = Vec::new();
        for group in fleet.groups() {
            let stored = self.forecasts.get(&group.name).await;
            groups.push(match stored {
                Ok(stored) => stored.map(|one| one.record).unwrap_or_default(),
                // What another version wrote is learnt anew.
                Err(StoreError::Record { .. }) => GroupForecast::default(),
                Err(error) => return Err(error),
            });
        }
        Ok(Forecast::of(groups))
    }

    /// Writes what was learnt of demand, and lets the store forget what it was before.
    pub(super) async fn save_forecast(
        &self,
        leader: &Condition,
        fleet: &Inventory,
        forecast: &Forecast,
    ) -> Result<(), StoreError> {
        for (at, group) in fleet.groups().iter().enumerate() {
            let learnt = forecast.group(GroupIndex(at as u32));
            let put = self.forecasts.put(&group.name, &learnt)?;
            if let Operation::Put { value, .. } = &put
                && value.len() > LARGEST
            {
                continue;
            }
            let transaction = Transaction {
                conditions: vec![leader.clone()],
                then: vec![put],
            };
            self.store.transact(transaction).await?;
        }
        let revision = self.store.revision().await?;
        match self.store.compact(revision).await {
            Err(StoreError::Compacted { .. }) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(wanted: Wanted, outcome: Outcome) -> Intent {
        let mut intent = Intent::new(wanted, Moment(100));
        intent.sent = Some(Moment(100));
        intent.outcome = Some(outcome);
        intent
    }

    #[test]
    fn a_machine_that_never_comes_up_is_left_alone_for_longer_each_time() {
        let mut known = Known::new(BootTimes::expecting(Span(60)), Moment(0));
        let mut spans = Vec::new();
        for at in [1_000_u64, 10_000, 100_000] {
            let mut intent = ended(Wanted::On, Outcome::NeverCame);
            intent.since = Moment(at);
            known.settle(&intent, true, Span(60), Moment(at + 840));
            // The same end once more changes nothing.
            known.settle(&intent, true, Span(60), Moment(at + 900));
            let until = known.quarantined_until.unwrap();
            spans.push(until.since(Moment(at + 840)).0 / 60);
        }
        assert_eq!(spans, [10, 20, 40]);
        let mut intent = ended(Wanted::On, Outcome::Done);
        intent.since = Moment(200_000);
        known.settle(&intent, true, Span(60), Moment(200_050));
        assert_eq!((known.missed, known.quarantined_until), (0, None));
    }

    #[test]
    fn only_boots_that_were_watched_are_learnt_from() {
        let boot = BootTimes::expecting(Span(60));
        let mut known = Known::new(boot.clone(), Moment(0));
        known.settle(
            &ended(Wanted::On, Outcome::Done),
            false,
            Span(60),
            Moment(9_000),
        );
        assert_eq!(known.boot, boot);
        let mut again = ended(Wanted::On, Outcome::Done);
        again.since = Moment(10_000);
        known.settle(&again, true, Span(60), Moment(10_042));
        assert_ne!(known.boot, boot);
    }
}

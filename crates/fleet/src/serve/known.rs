//! What is known of machines and demand, and outlives the process.

use crate::{
    boot::BootTimes,
    forecast::{Forecast, GroupForecast},
    inventory::{GroupIndex, Inventory, Power},
    moment::{Moment, Span},
    power::transition::{Intent, Outcome, Wanted},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};
use store::{Collection, Condition, MAX_OPERATIONS, Operation, Store, StoreError, Transaction};

const MACHINES: &str = "fleet/machines";
const FORECASTS: &str = "fleet/forecast";

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
                self.missed = 0;
                self.quarantined_until = None;
                // A machine that was on already says nothing about boots.
                if watched && intent.sent.is_some() {
                    self.boot.learn(now.since(intent.since));
                }
            }
            (Outcome::Done, Wanted::Off) => self.refused_until = None,
            (Outcome::NeverCame, _) => {
                self.boot.learn_failure();
                let doublings = self.missed.min(DOUBLINGS);
                self.missed = self.missed.saturating_add(1);
                self.quarantined_until = Some(now.plus(Span(QUARANTINE.0 << doublings)));
            }
            (Outcome::CarriesWork, _) => self.refused_until = Some(now.plus(recheck)),
            (Outcome::WouldNotStop, _) => self.refused_until = Some(now.plus(REFUSED)),
        }
        Some(outcome)
    }

    /// Notes what its power is now.
    pub(super) fn enter(&mut self, power: Power, since: Moment) {
        if self.power != power {
            (self.power, self.since) = (power, since);
        }
    }
}

/// What is known of all machines, in their order, as it is in the store.
pub(super) struct Knowledge {
    store: Arc<dyn Store>,
    records: Collection<Known>,
    forecasts: Collection<GroupForecast>,
    written: Vec<Option<Known>>,
}

impl Knowledge {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            records: Collection::new(store.clone(), MACHINES),
            forecasts: Collection::new(store.clone(), FORECASTS),
            store,
            written: Vec::new(),
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

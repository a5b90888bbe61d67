//! What only the instance has that acts, and the parts of its tick.

use super::{
    assemble::Since,
    counts::Counts,
    fleet::{TickError, Unit},
    hands::Hands,
    known::{Knowledge, Known},
    look::{self, Target},
    record::{self, Recorder},
    rules,
    source::{Demand, Source, SourceError},
};
use crate::{
    explain::History,
    forecast::{Forecast, Outlook},
    inventory::{Inventory, MachineIndex, Moving, Power},
    moment::{Moment, Span},
    planner::{Memory, Plan, Situation, plan},
    policy::Policy,
    power::{
        Reading,
        journal::{Journal, Leadership},
        transition::Intent,
    },
    targets::{self, Targets},
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use store::{Store, StoreError};

/// Demand is read within this time, or not at all.
const READING: Duration = Duration::from_secs(20);
/// The controller of a machine that is off is asked again after this time, whether it answered or not.
const ASK_SLEEPERS: Span = Span(60);
/// The controller of a machine that is on is asked so often whether it is still there.
const CHECK: Span = Span::minutes(10);
/// No more of those are asked in one tick.
const CHECKS: usize = 16;
/// What was learnt of demand is written down so often.
const KEEP_FORECAST: Span = Span::minutes(15);
/// What is too old is forgotten so often.
const PRUNE: Span = Span::hours(1);

/// What only the one who acts has.
pub(super) struct Acting {
    pub(super) leadership: Leadership,
    pub(super) hands: Hands,
    pub(super) known: Vec<Known>,
    pub(super) knowledge: Knowledge,
    pub(super) forecast: Arc<Forecast>,
    pub(super) memory: Memory,
    pub(super) history: History,
    pub(super) recorder: Recorder,
    pub(super) since: Since,
    pub(super) demand: Demand,
    pub(super) demand_read: Option<Moment>,
    pub(super) targets: Option<Targets>,
    pub(super) last: Option<Moment>,
    pub(super) asked: Vec<Option<(Moment, Reading)>>,
    pub(super) controllers: Vec<Controller>,
    pub(super) forecast_kept: Moment,
    pub(super) pruned: Option<Moment>,
    pub(super) turn: usize,
}

/// What is known of a machine's controller.
#[derive(Debug, Clone, Default)]
pub(super) struct Controller {
    /// When it was asked last.
    pub(super) asked: Option<Moment>,
    /// Since when something is wrong with it, and what.
    pub(super) ails: Option<(Moment, String)>,
}

impl Acting {
    /// Completes what was seen by what controllers of sleeping machines said a while ago, and notes
    /// how the controllers are.
    pub(super) fn remember(
        &mut self,
        looked: Vec<Option<look::Looked>>,
        units: &[Unit],
        targets: &[Target],
        now: Moment,
    ) -> Vec<Option<look::Seen>> {
        let mut all = Vec::with_capacity(looked.len());
        for (at, one) in looked.into_iter().enumerate() {
            let Some(look::Looked {
                mut seen,
                controller,
            }) = one
            else {
                all.push(None);
                continue;
            };
            match seen.reading {
                Some(reading) => self.asked[at] = Some((now, reading)),
                None if targets[at].driver.is_none() && !seen.answers => {
                    seen.reading = self.asked[at].map(|(_, reading)| reading);
                }
                // It did not answer, or need not say more than the node.
                None => self.asked[at] = None,
            }
            if let Some(result) = controller {
                let known = &mut self.controllers[at];
                known.asked = Some(now);
                let before = known.ails.take();
                known.ails = result.err().map(|error| {
                    if before.is_none() {
                        let machine = &units[at].switchable.name;
                        tracing::warn!(machine, error, "something is wrong with its controller");
                    }
                    (before.map_or(now, |(since, _)| since), error)
                });
            }
            all.push(Some(seen));
        }
        all
    }

    pub(super) fn note_demand(
        &mut self,
        demand: Result<Demand, SourceError>,
        moves: bool,
        counts: &Counts,
        now: Moment,
    ) -> Result<(), SourceError> {
        match demand {
            Ok(mut demand) => {
                for one in demand.workloads.iter_mut().filter(|_| !moves) {
                    // What nobody can move stays until it is done.
                    if one.moving == Moving::Free {
                        one.moving = Moving::OnCompletion;
                    }
                }
                self.since.note(&demand.workloads, now);
                self.demand = demand;
                self.demand_read = Some(now);
                Ok(())
            }
            Err(error) => {
                counts.demand_failures.fetch_add(1, Relaxed);
                Err(error)
            }
        }
    }

    /// Plans on a thread of its own, as that takes a while for many machines.
    pub(super) async fn plan(
        &mut self,
        inventory: &Arc<Inventory>,
        policy: &Arc<Policy>,
        foreign: &[bool],
        now: Moment,
    ) -> Result<Plan, TickError> {
        let (inventory, policy) = (inventory.clone(), policy.clone());
        let (forecast, memory) = (self.forecast.clone(), self.memory.clone());
        let foreign = foreign.to_vec();
        let planned = tokio::task::spawn_blocking(move || {
            let masked = rules::mask(&inventory, &foreign);
            let situation = Situation {
                inventory: &masked,
                forecast: Some(forecast.as_ref() as &dyn Outlook),
                policy: &policy,
                now,
            };
            plan(situation, &memory)
        });
        let (plan, memory) = planned.await.map_err(|_| TickError::Planner)?;
        self.memory = memory;
        for (at, known) in self.known.iter_mut().enumerate() {
            known.lasting = self.memory.lasting(MachineIndex(at as u32));
        }
        Ok(plan)
    }

    /// Writes down now and then what was learnt, and forgets what is too old.
    pub(super) async fn keep_house(
        &mut self,
        held: &store::Condition,
        base: &Inventory,
        store: &Arc<dyn Store>,
        now: Moment,
    ) -> Result<(), TickError> {
        self.knowledge
            .save_memory(held, base, &self.memory, now)
            .await?;
        if now.since(self.forecast_kept) >= KEEP_FORECAST {
            self.knowledge
                .save_forecast(held, base, &self.forecast)
                .await?;
            self.forecast_kept = now;
        }
        if self.pruned.is_none_or(|at| now.since(at) >= PRUNE) {
            self.history.prune(now).await?;
            record::prune(store, now).await?;
            self.pruned = Some(now);
        }
        Ok(())
    }
}

/// Whom to look at, and whose controller to ask: those that sleep are asked now and then, and those that
/// are on, some in each tick, whether they would do what they are told.
pub(super) fn look_at(
    units: &[Unit],
    known: &[Known],
    asked: &[Option<(Moment, Reading)>],
    controllers: &[Controller],
    now: Moment,
) -> Vec<Target> {
    let mut checks = 0;
    let all = units.iter().enumerate();
    all.map(|(at, unit)| {
        let ago = controllers[at].asked.map(|when| now.since(when));
        let sleeps = |reading| matches!(reading, Reading::Off | Reading::Suspended);
        let sure = asked[at].is_none_or(|(_, reading)| sleeps(reading));
        let lately = sure && ago.is_some_and(|ago| ago < ASK_SLEEPERS);
        let asleep = matches!(known[at].power, Power::Off | Power::Suspended);
        let due = known[at].power == Power::On && ago.is_none_or(|ago| ago >= CHECK);
        let check = due && checks < CHECKS;
        checks += usize::from(check);
        let driver = unit.switchable.drivers.first();
        Target {
            node: unit.node.clone(),
            driver: driver.filter(|_| !(lately && asleep)).cloned(),
            given: unit.node.is_none() && unit.switchable.drivers.is_empty(),
            check,
        }
    })
    .collect()
}

/// What is wrong with controllers, for people. While it is tried to switch a machine, that says it.
pub(super) fn ailments<'a>(
    units: &'a [Unit],
    controllers: &'a [Controller],
    now: Moment,
) -> impl Iterator<Item = (&'a str, String)> {
    units
        .iter()
        .zip(controllers)
        .filter_map(move |(unit, one)| {
            let (since, error) = one.ails.as_ref()?;
            let ago = now.since(*since);
            let long = match ago {
                Span::ZERO => String::new(),
                _ => format!(" for {ago}"),
            };
            Some((
                unit.switchable.name.as_str(),
                format!("its controller{long}: {error}"),
            ))
        })
}

pub(super) async fn read(source: &dyn Source) -> Result<Demand, SourceError> {
    let timed_out = || SourceError(format!("no answer within {} s", READING.as_secs()));
    tokio::time::timeout(READING, source.read())
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}

pub(super) async fn intents(journal: &Journal) -> Result<HashMap<String, Intent>, StoreError> {
    let all = journal.all().await?.into_iter();
    Ok(all.map(|one| (one.id, one.record)).collect())
}

/// What is wanted of each machine and has not ended.
pub(super) async fn intents_under_way(
    journal: &Journal,
    units: &[Unit],
) -> Result<Vec<Option<Intent>>, StoreError> {
    let mut all = intents(journal).await?;
    let open = units.iter().map(|unit| {
        let intent = all.remove(&unit.switchable.name)?;
        intent.outcome.is_none().then_some(intent)
    });
    Ok(open.collect())
}

/// What Cluster Autoscaler's promises learn from.
pub(super) fn sights(
    inventory: &Inventory,
    seen: &[Option<look::Seen>],
    intents: &HashMap<String, Intent>,
) -> Vec<targets::Seen> {
    let looked = inventory.machines().iter().zip(seen);
    looked
        .map(|(machine, seen)| targets::Seen {
            machine: machine.name.clone(),
            power: machine.power,
            node: seen.is_some_and(|one| one.answers),
            intent: intents.get(&machine.name).cloned(),
        })
        .collect()
}

/// Learns demand: what runs in each group, and what waits, which counts where most machines are.
pub(super) fn observe_demand(forecast: &mut Arc<Forecast>, inventory: &Inventory, now: Moment) {
    let mut demand = vec![crate::amount::Amount::ZERO; inventory.groups().len()];
    let mut machines = vec![0_usize; demand.len()];
    for (index, machine) in inventory.enumerate() {
        let group = machine.group.at();
        demand[group] = demand[group].plus(inventory.used(index));
        machines[group] += 1;
    }
    let largest = machines
        .iter()
        .enumerate()
        .max_by_key(|(at, count)| (**count, usize::MAX - at));
    if let Some((at, _)) = largest {
        let waiting = inventory.waiting();
        let requests = waiting.filter_map(|index| Some(inventory.workload(index)?.request));
        demand[at] = demand[at].plus(requests.sum());
    }
    Arc::make_mut(forecast).observe_demand(&demand, now);
}

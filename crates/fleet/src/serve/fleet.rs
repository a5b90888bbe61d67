//! A fleet that is looked after: one tick after the other.

use super::{
    assemble::{self, Parts, Since},
    counts::{Counted, Counts},
    hands::Hands,
    known::{Knowledge, Known},
    look::{self, CarefulLook, Target},
    record::{self, Recorder},
    routes::Shared,
    rules,
    source::{Demand, Source, SourceError},
    view::{DemandStatus, GroupStatus, Standing, UnderWay, View},
};
use crate::{
    config::File,
    explain::History,
    forecast::{Forecast, Outlook},
    inventory::{GroupIndex, Inventory, Moving, Power},
    moment::{Moment, Span},
    planner::{Memory, Plan, Situation, plan},
    policy::Policy,
    power::{
        Reading,
        drivers::open,
        executor::{Executor, Stagger, Switchable},
        journal::{Journal, JournalError, Leadership},
        transition::{Intent, Patience},
    },
    targets::{self, Catalogue, TargetError, Targets},
};
use api::Problem;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use store::{Store, StoreError};

/// Demand is read within this time, or not at all.
const READING: Duration = Duration::from_secs(20);
/// A machine that is off is asked again after this time.
const ASK_SLEEPERS: Span = Span(60);
/// What was learnt of demand is written down so often.
const KEEP_FORECAST: Span = Span::hours(1);
/// What is too old is forgotten so often.
const PRUNE: Span = Span::hours(1);
/// Whoever did not look for so long does not know how long something took.
const WATCHED: Span = Span(60);
/// How long a tick waits for what it set going; the rest goes on after it.
const SETTLE: Duration = Duration::from_secs(5);

/// All that a fleet needs.
pub struct Setup {
    /// The configuration.
    pub file: File,
    /// Where everything is kept that outlives the process.
    pub store: Arc<dyn Store>,
    /// Where demand is read.
    pub source: Arc<dyn Source>,
    /// How patient one is with machines.
    pub patience: Patience,
    /// Whether nothing is switched, and only what would be done is written down.
    pub dry_run: bool,
}

/// Why a tick did not end.
#[derive(Debug, thiserror::Error)]
pub enum TickError {
    /// Another instance acts.
    #[error("another instance of Atoll acts for this fleet")]
    NotLeader,
    /// The store failed.
    #[error("what must be kept could not be read or written: {0}")]
    Store(#[from] StoreError),
    /// The planner failed, which is a fault of Atoll's.
    #[error("the planner failed")]
    Planner,
}

impl From<JournalError> for TickError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::NotLeader => Self::NotLeader,
            JournalError::Store(error) => Self::Store(error),
        }
    }
}

/// A machine, with what is needed to look at it and to switch it.
pub(super) struct Unit {
    pub(super) switchable: Switchable,
    /// Whether its node has answered since it was switched on.
    answered: Arc<AtomicBool>,
    node: Option<String>,
}

/// A fleet. Only one instance of those that share a store acts; see [`Fleet::try_lead`].
pub struct Fleet {
    units: Vec<Unit>,
    base: Inventory,
    policy: Arc<Policy>,
    /// Which groups Cluster Autoscaler plans.
    foreign: Vec<bool>,
    catalogue: Option<Catalogue>,
    wakes_per_second: f64,
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    journal: Journal,
    patience: Patience,
    dry_run: bool,
    shared: Arc<Shared>,
    acting: Option<Acting>,
}

/// What only the one who acts has.
struct Acting {
    leadership: Leadership,
    hands: Hands,
    known: Vec<Known>,
    knowledge: Knowledge,
    forecast: Arc<Forecast>,
    memory: Memory,
    history: History,
    recorder: Recorder,
    since: Since,
    demand: Demand,
    demand_read: Option<Moment>,
    targets: Option<Targets>,
    last: Option<Moment>,
    asked: Vec<Option<(Moment, Reading)>>,
    forecast_kept: Moment,
    pruned: Option<Moment>,
    turn: usize,
}

impl Fleet {
    /// A fleet as it is configured. Secrets of drivers are read now; nothing is switched yet.
    ///
    /// # Errors
    /// When a driver cannot be made.
    pub fn open(setup: Setup) -> Result<Self, Problem> {
        let counts = Arc::new(Counts::default());
        let mut units = Vec::new();
        for entry in &setup.file.machines {
            let mut drivers = Vec::new();
            for power in entry.power.iter().chain(&entry.fallback) {
                let driver = Counted {
                    driver: open(power)?,
                    counts: counts.clone(),
                };
                drivers.push(Arc::new(driver) as Arc<dyn crate::power::PowerDriver>);
            }
            let answered = Arc::new(AtomicBool::new(false));
            let look = CarefulLook {
                name: entry.name.clone(),
                node: entry.node.clone(),
                source: setup.source.clone(),
                answered: answered.clone(),
            };
            units.push(Unit {
                switchable: Switchable {
                    name: entry.name.clone(),
                    drivers,
                    look: Arc::new(look),
                },
                answered,
                node: entry.node.as_ref().map(|node| node.address.clone()),
            });
        }
        let base = setup.file.inventory(Moment(0));
        let foreign: Vec<bool> = setup
            .file
            .groups
            .iter()
            .map(|group| group.cluster_autoscaler)
            .collect();
        let catalogue = match foreign.contains(&true) {
            true => Some(Catalogue::of(&only_foreign(&setup.file))?),
            false => None,
        };
        let shared = Arc::new(Shared::new(setup.store.clone(), counts, &setup.file, &base));
        let fleet = Self {
            units,
            base,
            policy: Arc::new(setup.file.policy),
            foreign,
            catalogue,
            wakes_per_second: setup.file.wakes_per_second,
            journal: Journal::new(setup.store.clone()),
            source: setup.source,
            store: setup.store,
            patience: setup.patience,
            dry_run: setup.dry_run,
            shared,
            acting: None,
        };
        fleet.publish_standing(Standing::Starting);
        Ok(fleet)
    }

    /// What the API shows of it.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// What Cluster Autoscaler was promised, while this instance acts and a group is planned by it.
    pub fn targets(&self) -> Option<Targets> {
        self.acting.as_ref()?.targets.clone()
    }

    /// Becomes the one who acts, if nobody is; returns whether this instance acts. What was learnt,
    /// wanted and promised before is read.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn try_lead(&mut self, now: Moment) -> Result<bool, TickError> {
        if self.acting.is_some() {
            return Ok(true);
        }
        let Some(leadership) = self.journal.lead().await? else {
            self.publish_standing(Standing::StandingBy);
            return Ok(false);
        };
        match self.begin(leadership.clone(), now).await {
            Ok(acting) => {
                self.acting = Some(acting);
                Ok(true)
            }
            Err(error) => {
                self.journal.resign(leadership).await?;
                Err(error)
            }
        }
    }

    async fn begin(&self, leadership: Leadership, now: Moment) -> Result<Acting, TickError> {
        let mut knowledge = Knowledge::new(self.store.clone());
        let known = knowledge.load(&self.base, now).await?;
        let forecast = knowledge.load_forecast(&self.base).await?;
        let executor = Executor::new(
            self.journal.clone(),
            leadership.clone(),
            self.patience,
            Stagger::per_second(self.wakes_per_second),
        );
        let targets = match &self.catalogue {
            Some(catalogue) => {
                let opened =
                    Targets::open(self.store.clone(), leadership.clone(), catalogue.clone()).await;
                Some(opened.map_err(of_targets)?)
            }
            None => None,
        };
        Ok(Acting {
            leadership,
            hands: Hands::new(executor, self.units.len()),
            known,
            knowledge,
            forecast: Arc::new(forecast),
            memory: Memory::default(),
            history: History::new(self.store.clone()),
            recorder: Recorder::new(self.store.clone()),
            since: Since::default(),
            demand: Demand::default(),
            demand_read: None,
            targets,
            last: None,
            asked: vec![None; self.units.len()],
            forecast_kept: now,
            pruned: None,
            turn: 0,
        })
    }

    /// The right to act, if this instance has it: [`Fleet::keep`] it.
    pub fn leadership(&self) -> Option<(Journal, Leadership)> {
        let acting = self.acting.as_ref()?;
        Some((self.journal.clone(), acting.leadership.clone()))
    }

    /// Stops acting, without giving anything back: what is under way goes on with the next who acts.
    pub fn step_down(&mut self) {
        self.acting = None;
        self.publish_standing(Standing::StandingBy);
    }

    /// Gives the right to act back, so that another instance need not wait for it to end.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn resign(&mut self) -> Result<(), TickError> {
        if let Some(acting) = self.acting.take() {
            let held = acting.leadership.held();
            let kept = acting
                .knowledge
                .save_forecast(&held, &self.base, &acting.forecast);
            let kept = kept.await;
            self.journal.resign(acting.leadership).await?;
            kept?;
        }
        self.publish_standing(Standing::StandingBy);
        Ok(())
    }

    /// Looks, plans, and does what the plan says.
    ///
    /// # Errors
    /// [`TickError::NotLeader`] if another instance acts, or when the store fails. Nothing is lost
    /// then: the next tick, of whomever, goes on.
    pub async fn tick(&mut self, now: Moment) -> Result<(), TickError> {
        let Some(acting) = &mut self.acting else {
            return Err(TickError::NotLeader);
        };
        self.journal.renew(&acting.leadership).await?;
        let held = acting.leadership.held();
        let mut trouble: Vec<String> = Vec::new();

        let targets = look_at(&self.units, &acting.known, &acting.asked, now);
        let (seen, demand, intents) = tokio::join!(
            look::look(&targets, acting.turn),
            read(self.source.as_ref()),
            intents(&self.journal),
        );
        let intents = intents?;
        acting.turn = acting.turn.wrapping_add(97);
        let seen = acting.remember(seen, &targets, now);
        let demand =
            acting.note_demand(demand, self.source.moves_work(), self.shared.counts(), now);

        let watched = acting.last.is_some_and(|last| now.since(last) <= WATCHED);
        for (at, unit) in self.units.iter().enumerate() {
            let known = &mut acting.known[at];
            let intent = intents.get(&unit.switchable.name);
            if let Some(intent) = intent
                && let Some(outcome) = known.settle(intent, watched, self.policy.recheck, now)
            {
                self.shared.counts().ended(outcome);
                tracing::info!(machine = %unit.switchable.name, wanted = ?intent.wanted, ?outcome, "done");
            }
            assemble::note(known, intent, seen[at].as_ref(), now);
            unit.answered.store(known.answered, Relaxed);
        }
        let parts = Parts {
            base: &self.base,
            known: &acting.known,
            seen: &seen,
            demand: &acting.demand,
            since: &acting.since,
        };
        let inventory = Arc::new(assemble::assemble(&parts, now));

        if let Some(targets) = &acting.targets {
            let sights = sights(&inventory, &seen, &intents);
            if let Err(error) = targets.observe(sights, now).await {
                match of_targets(error) {
                    TickError::NotLeader => return Err(TickError::NotLeader),
                    other => trouble.push(other.to_string()),
                }
            }
        }

        let started = Instant::now();
        let mut plan = match &demand {
            Ok(()) => {
                observe_demand(&mut acting.forecast, &inventory, now);
                acting
                    .plan(&inventory, &self.policy, &self.foreign, now)
                    .await?
            }
            Err(error) => {
                trouble.push(format!("demand: {error}"));
                rules::standstill(&inventory, now)
            }
        };
        self.shared.counts().planned(started.elapsed());
        let wanted = acting
            .targets
            .as_ref()
            .map(Targets::wanted)
            .unwrap_or_default();
        rules::overrule(
            &mut plan,
            &inventory,
            &acting.known,
            &self.foreign,
            &wanted,
            now,
        );

        acting.history.note(&inventory, &plan).await?;
        if demand.is_ok() {
            let asked = &acting.demand.workloads;
            acting.recorder.note(&held, &inventory, asked, now).await?;
        }
        if !self.dry_run {
            let marked = Hands::mark(&mut acting.known, &plan);
            if !acting
                .knowledge
                .save(&held, &self.base, &acting.known)
                .await?
            {
                return Err(TickError::NotLeader);
            }
            let source = self.source.as_ref();
            let carried = acting
                .hands
                .carry_out(&inventory, &plan, &marked, source, now)
                .await?;
            for at in carried.opened {
                acting.known[at].closed = false;
            }
            trouble.extend(carried.trouble);
            let open = intents_under_way(&self.journal, &self.units).await?;
            acting.hands.start(&self.units, &open, now);
            acting.hands.drive(tokio::time::sleep(SETTLE)).await;
        } else if !acting
            .knowledge
            .save(&held, &self.base, &acting.known)
            .await?
        {
            return Err(TickError::NotLeader);
        }
        acting
            .keep_house(&held, &self.base, &self.store, now)
            .await?;
        acting.last = Some(now);
        self.publish(&inventory, &plan, &intents, trouble, now);
        Ok(())
    }

    /// Goes on with machines that wait for their turn to wake: call it about every second, as only
    /// so many may draw their inrush current together.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn pulse(&mut self, now: Moment) -> Result<(), TickError> {
        let Some(acting) = self.acting.as_mut().filter(|_| !self.dry_run) else {
            return Ok(());
        };
        if acting.hands.has_waiting() {
            let mut open = intents_under_way(&self.journal, &self.units).await?;
            for one in &mut open {
                *one = one.take().filter(|intent| intent.sent.is_none());
            }
            let most = (self.wakes_per_second.ceil() as usize).max(1);
            acting.hands.start_some(&self.units, &open, most, now);
        }
        Ok(())
    }

    /// Lets what is under way go on until `end`.
    pub async fn drive(&mut self, end: impl Future<Output = ()>) {
        match &mut self.acting {
            Some(acting) => acting.hands.drive(end).await,
            None => end.await,
        }
    }

    fn publish_standing(&self, standing: Standing) {
        let mut view = View::default();
        view.status.standing = standing;
        view.status.dry_run = self.dry_run;
        view.status.policy = self.policy.kind.to_string();
        view.status.demand.source = self.source.name().to_owned();
        self.shared.publish(view);
    }

    fn publish(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        intents: &HashMap<String, Intent>,
        trouble: Vec<String>,
        now: Moment,
    ) {
        let Some(acting) = &self.acting else { return };
        let mut view = View::default();
        let status = &mut view.status;
        (status.standing, status.dry_run) = (Standing::Acting, self.dry_run);
        (status.policy, status.at) = (self.policy.kind.to_string(), Some(now));
        status.demand = DemandStatus {
            source: self.source.name().to_owned(),
            read_at: acting.demand_read,
            error: trouble
                .iter()
                .find_map(|one| one.strip_prefix("demand: "))
                .map(str::to_owned),
        };
        let mut open: Vec<(&String, &Intent)> = intents
            .iter()
            .filter(|(name, one)| one.outcome.is_none() && self.base.find(name).is_some())
            .collect();
        open.sort_unstable_by_key(|(name, _)| *name);
        status.under_way = open
            .into_iter()
            .map(|(machine, intent)| UnderWay {
                machine: machine.clone(),
                wanted: intent.wanted,
                since: intent.since,
                attempts: intent.attempts,
                last_error: intent.last_error.clone(),
            })
            .collect();
        let groups = inventory.groups().iter().enumerate();
        status.groups = groups
            .map(|(at, group)| {
                let of_group = inventory
                    .machines()
                    .iter()
                    .filter(|one| one.group.at() == at);
                let awake = of_group
                    .clone()
                    .filter(|one| matches!(one.power, Power::On | Power::Waking));
                GroupStatus {
                    name: group.name.clone(),
                    cluster_autoscaler: self.foreign[at],
                    awake: awake.count() as u64,
                    machines: of_group.count() as u64,
                    forecast_used: acting
                        .forecast
                        .is_trusted(GroupIndex(at as u32), Span::minutes(10)),
                }
            })
            .collect();
        status.trouble = trouble;
        view.show(inventory, plan, now);
        self.shared.publish(view);
    }
}

impl Acting {
    /// Completes what was seen by what controllers of sleeping machines said a while ago.
    fn remember(
        &mut self,
        mut seen: Vec<Option<look::Seen>>,
        targets: &[Target],
        now: Moment,
    ) -> Vec<Option<look::Seen>> {
        for (at, one) in seen.iter_mut().enumerate() {
            let Some(one) = one else { continue };
            match one.reading {
                Some(reading) => self.asked[at] = Some((now, reading)),
                None if targets[at].driver.is_none() && !one.answers => {
                    one.reading = self.asked[at].map(|(_, reading)| reading);
                }
                None => {}
            }
        }
        seen
    }

    fn note_demand(
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
    async fn plan(
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
        Ok(plan)
    }

    /// Writes down now and then what was learnt, and forgets what is too old.
    async fn keep_house(
        &mut self,
        held: &store::Condition,
        base: &Inventory,
        store: &Arc<dyn Store>,
        now: Moment,
    ) -> Result<(), TickError> {
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

/// The configuration without the groups that we plan ourselves.
fn only_foreign(file: &File) -> File {
    let mut foreign = file.clone();
    foreign.groups.retain(|group| group.cluster_autoscaler);
    let kept: Vec<String> = foreign
        .groups
        .iter()
        .map(|group| group.name.clone())
        .collect();
    foreign
        .machines
        .retain(|machine| kept.contains(&machine.group));
    foreign
}

fn of_targets(error: TargetError) -> TickError {
    match error {
        TargetError::Store(error) => TickError::Store(error),
        _ => TickError::NotLeader,
    }
}

/// Whom to look at, and whose controller to ask: those that sleep are asked now and then.
fn look_at(
    units: &[Unit],
    known: &[Known],
    asked: &[Option<(Moment, Reading)>],
    now: Moment,
) -> Vec<Target> {
    let all = units.iter().enumerate();
    all.map(|(at, unit)| {
        let lately = asked[at].is_some_and(|(when, reading)| {
            reading == Reading::Off && now.since(when) < ASK_SLEEPERS
        });
        let asleep = known[at].power == Power::Off;
        let driver = unit.switchable.drivers.first();
        Target {
            node: unit.node.clone(),
            driver: driver.filter(|_| !(lately && asleep)).cloned(),
        }
    })
    .collect()
}

async fn read(source: &dyn Source) -> Result<Demand, SourceError> {
    let timed_out = || SourceError(format!("no answer within {} s", READING.as_secs()));
    tokio::time::timeout(READING, source.read())
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}

async fn intents(journal: &Journal) -> Result<HashMap<String, Intent>, StoreError> {
    let all = journal.all().await?.into_iter();
    Ok(all.map(|one| (one.id, one.record)).collect())
}

/// What is wanted of each machine and has not ended.
async fn intents_under_way(
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
fn sights(
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
fn observe_demand(forecast: &mut Arc<Forecast>, inventory: &Inventory, now: Moment) {
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

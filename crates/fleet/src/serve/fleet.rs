//! A fleet that is looked after: one tick after the other.

use super::{
    acting::{self, Acting, Controller},
    assemble::{self, Parts, Since},
    counts::{Counted, Counts},
    hands::Hands,
    known::Knowledge,
    look::{self, CarefulLook},
    record::Recorder,
    routes::Shared,
    rules,
    source::{Demand, Source},
    view::{DemandStatus, GroupStatus, Standing, UnderWay, View},
};
use crate::{
    config::File,
    explain::History,
    inventory::{GroupIndex, Inventory, Power},
    moment::{Moment, Span},
    planner::Plan,
    policy::Policy,
    power::{
        drivers::open,
        executor::{Executor, Stagger, Switchable},
        journal::{Journal, JournalError, Leadership},
        transition::{Intent, Outcome, Patience},
    },
    targets::{Catalogue, TargetError, Targets},
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

/// Whoever did not look for so long does not know how long something took.
const WATCHED: Span = Span(60);
/// No more controllers with which something is wrong are named in the status.
const MOST_NAMED: u64 = 20;
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
    pub(super) answered: Arc<AtomicBool>,
    pub(super) node: Option<String>,
}

/// A fleet. Only one instance of those that share a store acts; see [`Fleet::try_lead`].
pub struct Fleet {
    units: Vec<Unit>,
    /// Which machines a driver can suspend.
    suspends: Vec<bool>,
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
    /// What the last tick complained of.
    trouble: Vec<String>,
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
        let first = |unit: &Unit| unit.switchable.drivers.first().cloned();
        let suspends = |unit: &Unit| first(unit).is_some_and(|driver| driver.suspends());
        let fleet = Self {
            suspends: units.iter().map(suspends).collect(),
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
            trouble: Vec::new(),
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
        let mut known = knowledge.load(&self.base, now).await?;
        let memory = knowledge.load_memory(&self.base, &mut known, now).await?;
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
            memory,
            history: History::new(self.store.clone()),
            recorder: Recorder::new(self.store.clone()),
            since: Since::default(),
            demand: Demand::default(),
            demand_read: None,
            targets,
            last: None,
            asked: vec![None; self.units.len()],
            controllers: vec![Controller::default(); self.units.len()],
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

        let targets = acting::look_at(
            &self.units,
            &acting.known,
            &acting.asked,
            &acting.controllers,
            now,
        );
        let (looked, demand, intents) = tokio::join!(
            look::look(&targets, acting.turn),
            acting::read(self.source.as_ref()),
            acting::intents(&self.journal),
        );
        let intents = intents?;
        acting.turn = acting.turn.wrapping_add(97);
        let seen = acting.remember(looked, &self.units, &targets, now);
        let demand =
            acting.note_demand(demand, self.source.moves_work(), self.shared.counts(), now);

        let watched = acting.last.is_some_and(|last| now.since(last) <= WATCHED);
        for (at, unit) in self.units.iter().enumerate() {
            let known = &mut acting.known[at];
            // Whoever looked last before something was sent may have seen more.
            known.answered |= unit.answered.load(Relaxed);
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
            suspends: &self.suspends,
            seen: &seen,
            demand: &acting.demand,
            since: &acting.since,
        };
        let inventory = Arc::new(assemble::assemble(&parts, now));

        if let Some(targets) = &acting.targets {
            let sights = acting::sights(&inventory, &seen, &intents);
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
                acting::observe_demand(&mut acting.forecast, &inventory, now);
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
            trouble.extend(Hands::forget_sleepers(&inventory, &self.foreign, source).await);
            trouble.extend(Hands::mark_sleepers(&inventory, &self.foreign, source, now).await);
            let open = acting::intents_under_way(&self.journal, &self.units).await?;
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
        // Once, and not with every tick for as long as it lasts.
        for one in trouble.iter().filter(|one| !self.trouble.contains(one)) {
            tracing::warn!("{one}");
        }
        self.trouble.clone_from(&trouble);
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
            let mut open = acting::intents_under_way(&self.journal, &self.units).await?;
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
        view.troubles = intents
            .iter()
            .filter(|(_, one)| match one.outcome {
                Some(Outcome::NeverCame | Outcome::WouldNotStop) => true,
                Some(Outcome::WouldNotSuspend | Outcome::WentOff) => true,
                Some(Outcome::Done) => one.resumed == Some(false),
                Some(Outcome::CarriesWork) | None => false,
            })
            .filter_map(|(name, one)| Some((name.clone(), one.last_error.clone()?)))
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
        for (machine, ailment) in acting::ailments(&self.units, &acting.controllers, now) {
            status.controllers_failing += 1;
            if status.controllers_failing <= MOST_NAMED {
                status.trouble.push(format!("{machine}: {ailment}"));
            }
            let known = view.troubles.entry(machine.to_owned());
            known.or_insert(ailment);
        }
        if let Some(more) = status
            .controllers_failing
            .checked_sub(MOST_NAMED)
            .filter(|more| *more > 0)
        {
            let more = format!(
                "{more} more controllers: `atoll fleet explain` says what is wrong with each"
            );
            status.trouble.push(more);
        }
        view.show(inventory, plan, now);
        self.shared.publish(view);
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

//! A model of Cluster Autoscaler's loop against the service, over random histories in which machines
//! fail, people press buttons, the store loses answers and either process dies.
//!
//! `HISTORIES=20000` runs more of them; a failure names its seed, and `SEED=…` begins with that one.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::cluster;

use bytes::Bytes;
use cluster::{
    START, catalogue, fake,
    faulty::{Fault, Faulty},
    id, lead, node, open_store,
};
use fleet::{
    externalgrpc::{Call, Service, Settings, wire},
    inventory::Power,
    moment::{Moment, Span},
    power::{
        journal::Leadership,
        transition::{Intent, Outcome, Wanted},
    },
    targets::{Phase, Seen, Targets, Wish},
};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use store::{Operation, Range, Store, Transaction};
use tonic::{Code, Status};

const GROUPS: [(&str, usize, usize, usize); 2] = [("small", 1, 4, 4), ("large", 0, 2, 2)];
/// Cluster Autoscaler waits so long for nodes.
const PROVISION: Span = Span::minutes(15);

/// Reproducible chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Booting(Moment),
    On,
    Stopping(Moment),
}

/// A machine, and what the power executor does with it.
struct Metal {
    name: String,
    group: &'static str,
    state: State,
    broken: bool,
    intent: Option<Intent>,
}

impl Metal {
    fn tick(&mut self, now: Moment) {
        match self.state {
            State::Booting(until) if until <= now && !self.broken => self.state = State::On,
            State::Stopping(until) if until <= now => self.state = State::Off,
            _ => {}
        }
        let (on, off) = (self.state == State::On, self.state == State::Off);
        if let Some(intent) = self.intent.as_mut().filter(|one| one.outcome.is_none()) {
            match intent.wanted {
                Wanted::On if on => intent.outcome = Some(Outcome::Done),
                Wanted::Off if off => intent.outcome = Some(Outcome::Done),
                Wanted::On if now.since(intent.since) >= Span::minutes(14) => {
                    intent.outcome = Some(Outcome::NeverCame);
                    self.state = State::Off;
                }
                _ => {}
            }
        }
    }

    fn carry_out(&mut self, wish: Wish, now: Moment, chance: &mut Chance) {
        let wanted = match wish {
            Wish::On => Wanted::On,
            Wish::GivenBack => Wanted::Off,
        };
        let goes_on = self
            .intent
            .as_ref()
            .is_some_and(|one| one.wanted == wanted && one.outcome.is_none());
        let there = match wish {
            Wish::On => matches!(self.state, State::On | State::Stopping(_)),
            Wish::GivenBack => matches!(self.state, State::Stopping(_)),
        };
        if goes_on || there {
            return;
        }
        self.intent = Some(Intent::new(wanted, now));
        match (wish, self.state) {
            (Wish::On, State::Off) => {
                self.state = State::Booting(now.plus(Span(30 + chance.below(400))));
            }
            (Wish::GivenBack, State::On | State::Booting(_)) => {
                self.state = State::Stopping(now.plus(Span(10 + chance.below(120))));
            }
            _ => {}
        }
        self.tick(now);
    }

    fn seen(&self) -> Seen {
        Seen {
            machine: self.name.clone(),
            power: match self.state {
                State::Off => Power::Off,
                State::Booting(_) => Power::Waking,
                State::On => Power::On,
                State::Stopping(_) => Power::Stopping,
            },
            node: self.state == State::On,
            intent: self.intent.clone(),
        }
    }
}

/// What Cluster Autoscaler remembers of a group.
#[derive(Default)]
struct Memory {
    desired: usize,
    unregistered: BTreeMap<String, Moment>,
    mismatch: Option<Moment>,
}

struct World {
    chance: Chance,
    store: Arc<dyn Store>,
    faulty: Arc<Faulty>,
    leadership: Leadership,
    targets: Targets,
    service: Service,
    clock: Arc<AtomicU64>,
    metals: Vec<Metal>,
    memory: BTreeMap<&'static str, Memory>,
    calm: bool,
    trouble: bool,
    /// How often what was accepted, and how often the store failed.
    accepted: BTreeMap<&'static str, usize>,
}

impl World {
    async fn new(seed: u64, faulty: &Arc<Faulty>, leadership: &Leadership) -> Self {
        let mut chance = Chance(seed);
        let store: Arc<dyn Store> = faulty.clone();
        let targets = Targets::open(store.clone(), leadership.clone(), catalogue());
        let targets = targets.await.unwrap();
        let clock = Arc::new(AtomicU64::new(START));
        let mut metals = Vec::new();
        for listed in targets.snapshot().catalogue().machines() {
            let group = GROUPS[listed.machine.group.at()].0;
            let on = listed.machine.name == "s0" || chance.happens(40);
            metals.push(Metal {
                name: listed.machine.name.clone(),
                group,
                state: if on { State::On } else { State::Off },
                broken: chance.happens(10),
                intent: None,
            });
        }
        let service = service(&targets, &clock);
        Self {
            chance,
            store,
            faulty: faulty.clone(),
            leadership: leadership.clone(),
            targets,
            service,
            clock,
            metals,
            memory: GROUPS.map(|one| (one.0, Memory::default())).into(),
            calm: false,
            trouble: false,
            accepted: BTreeMap::new(),
        }
    }

    fn now(&self) -> Moment {
        Moment(self.clock.load(Ordering::Relaxed))
    }

    async fn reopen(&mut self) {
        let targets = Targets::open(self.store.clone(), self.leadership.clone(), catalogue());
        self.targets = targets.await.unwrap();
        self.service = service(&self.targets, &self.clock);
    }

    fn strike(&mut self) -> Option<Fault> {
        if self.calm || !self.chance.happens(6) {
            return None;
        }
        let fault = if self.chance.happens(50) {
            Fault::Before
        } else {
            Fault::After
        };
        self.faulty.strike(fault);
        Some(fault)
    }

    /// After a fault: the process may die of it.
    async fn suffer(&mut self, fault: Option<Fault>) -> Option<Fault> {
        let fault = fault.filter(|_| !self.faulty.calm())?;
        if self.chance.happens(50) {
            self.reopen().await;
        }
        self.trouble = true;
        Some(fault)
    }

    async fn ask<A: Message + Default>(&self, call: Call, question: &impl Message) -> A {
        cluster::ask(&self.service, call, question).await.unwrap()
    }

    async fn target(&self, group: &str) -> usize {
        let answer: wire::TargetSize = self.ask(Call::NodeGroupTargetSize, &id(group)).await;
        usize::try_from(answer.target_size).unwrap()
    }

    fn wishes(&self) -> BTreeMap<String, Wish> {
        let wanted = self.targets.wanted().into_iter();
        wanted.map(|one| (one.machine, one.wish)).collect()
    }

    /// Machines whose nodes are there, by what is promised.
    fn running(&self, group: &str) -> BTreeSet<String> {
        let snapshot = self.targets.snapshot();
        let group = snapshot.group(group).unwrap();
        let running = group.instances().filter(|one| one.phase == Phase::Running);
        running.map(|one| one.machine.to_owned()).collect()
    }

    /// A call that changes the target by so much, if it is accepted. It is all or nothing, also
    /// when the store fails, and asking for the same again is harmless if `again`.
    async fn change(
        &mut self,
        call: Call,
        group: &str,
        question: &impl Message,
        by: isize,
        again: bool,
    ) -> Result<(), Status> {
        let before = self.target(group).await;
        let after = before.checked_add_signed(by).unwrap();
        let message = Bytes::from(question.encode_to_vec());
        let fault = self.strike();
        let answer = self.service.call(call, message.clone()).await;
        let expected = match (self.suffer(fault).await, &answer) {
            (Some(Fault::Before), _) | (None, Err(_)) => before,
            (Some(Fault::After), _) | (None, Ok(_)) => after,
        };
        assert_eq!(self.target(group).await, expected, "{call:?} by {by}");
        let what = if answer.is_ok() {
            call.name()
        } else {
            "refused"
        };
        *self.accepted.entry(what).or_default() += 1;
        if again && answer.is_ok() {
            self.service.call(call, message).await.unwrap();
            assert_eq!(self.target(group).await, after, "{call:?} again");
        }
        answer.map(drop)
    }

    async fn delete(&mut self, group: &'static str, nodes: Vec<wire::Node>) -> Result<(), Status> {
        let by = -(nodes.len() as isize);
        let again = self.chance.happens(30);
        let question = wire::DeleteNodes {
            nodes,
            id: group.to_owned(),
        };
        self.change(Call::NodeGroupDeleteNodes, group, &question, by, again)
            .await
    }

    /// One round: machines, whoever serves the fleet, and Cluster Autoscaler.
    async fn round(&mut self, span: Span) {
        self.clock.fetch_add(span.0, Ordering::Relaxed);
        let now = self.now();
        for metal in &mut self.metals {
            metal.tick(now);
            if !self.calm && metal.state == State::On && self.chance.happens(1) {
                metal.state = State::Off;
            }
            if !self.calm && metal.state == State::Off && self.chance.happens(1) {
                metal.state = State::On;
            }
        }
        if self.calm || !self.chance.happens(10) {
            let wishes = self.wishes();
            for metal in &mut self.metals {
                // Base machines are on whatever anybody wants.
                let base = (metal.name == "s0").then_some(&Wish::On);
                if let Some(wish) = base.or(wishes.get(&metal.name)) {
                    metal.carry_out(*wish, now, &mut self.chance);
                }
            }
        }
        if self.calm || !self.chance.happens(10) {
            let seen = self.metals.iter().map(Metal::seen).collect();
            let fault = self.strike();
            let noted = self.targets.observe(seen, now).await;
            assert_eq!(self.suffer(fault).await.is_some(), noted.is_err());
        }
        if !self.calm && self.chance.happens(5) {
            self.reopen().await;
        }
        if !self.calm && self.chance.happens(5) {
            let memory = self.memory.values_mut();
            memory.for_each(|one| (one.unregistered.clear(), one.mismatch = None).0);
        }
        if self.calm || !self.chance.happens(5) {
            self.autoscale(now).await;
        }
        self.check().await;
    }

    async fn autoscale(&mut self, now: Moment) {
        let refreshed = self.service.call(Call::Refresh, Bytes::new()).await;
        if let Err(status) = refreshed {
            assert_eq!(status.code(), Code::Unavailable);
            return;
        }
        let groups: wire::NodeGroups = self.ask(Call::NodeGroups, &wire::Empty {}).await;
        assert_eq!(groups.node_groups.len(), GROUPS.len());
        for metal in self.metals.iter().filter(|one| one.state == State::On) {
            let question = wire::ForNode {
                node: Some(node(&metal.name)),
            };
            let answer: wire::GroupOfNode = self.ask(Call::NodeGroupForNode, &question).await;
            assert_eq!(answer.node_group.unwrap().id, metal.group);
        }
        for (group, min, max, _) in GROUPS {
            let defaults = wire::OptionsQuestion {
                id: group.to_owned(),
                defaults: Some(Vec::new()),
            };
            let options = self
                .service
                .call(Call::NodeGroupGetOptions, defaults.encode_to_vec().into());
            assert_eq!(options.await.unwrap_err().code(), Code::Unimplemented);
            self.clean_up(group, min, now).await;
            self.fix_size(group, now).await;
            self.scale(group, min, max).await;
            if !self.calm {
                self.misbehave(group).await;
            }
        }
    }

    /// Gives back what never registered, and what could not be created.
    async fn clean_up(&mut self, group: &'static str, min: usize, now: Moment) {
        let answer: wire::Instances = self.ask(Call::NodeGroupNodes, &id(group)).await;
        let name = |one: &wire::Instance| one.id.rsplit('/').next().unwrap().to_owned();
        let mut unregistered = BTreeSet::new();
        let mut errors = Vec::new();
        for instance in &answer.instances {
            let status = instance.status.as_ref().unwrap();
            if status.instance_state == wire::CREATING && status.error_info.is_some() {
                errors.push(name(instance));
            } else if status.instance_state != wire::DELETING {
                let metal = self.metals.iter().find(|one| one.name == name(instance));
                if metal.unwrap().state != State::On {
                    unregistered.insert(name(instance));
                }
            }
        }
        let memory = self.memory.get_mut(group).unwrap();
        memory
            .unregistered
            .retain(|one, _| unregistered.contains(one));
        for one in unregistered {
            memory.unregistered.entry(one).or_insert(now);
        }
        let overdue = memory.unregistered.iter();
        let overdue = overdue.filter(|(_, since)| now.since(**since) > PROVISION);
        let overdue: Vec<String> = overdue.map(|(name, _)| name.clone()).collect();
        for name in overdue {
            if self.target(group).await > min {
                let _ = self.delete(group, vec![fake(&name, "unregistered")]).await;
            }
        }
        let nodes: Vec<_> = errors
            .iter()
            .map(|name| fake(name, "create-error"))
            .collect();
        if !nodes.is_empty() {
            let answer = self.delete(group, nodes).await;
            assert!(answer.is_ok() || self.trouble, "{answer:?}");
        }
    }

    /// Takes promises back when nodes are missing for too long.
    async fn fix_size(&mut self, group: &'static str, now: Moment) {
        let target = self.target(group).await;
        let here = |one: &&Metal| one.group == group && one.state == State::On;
        let registered = self.metals.iter().filter(here).count();
        let memory = self.memory.get_mut(group).unwrap();
        if registered >= target {
            memory.mismatch = None;
            return;
        }
        let since = *memory.mismatch.get_or_insert(now);
        if now.since(since) <= PROVISION {
            return;
        }
        let running = self.running(group);
        let delta = registered as i32 - target as i32;
        let question = wire::Delta {
            delta,
            id: group.to_owned(),
        };
        let call = Call::NodeGroupDecreaseTargetSize;
        let answer = self
            .change(call, group, &question, delta as isize, false)
            .await;
        assert_eq!(
            self.running(group),
            running,
            "machines that are there are left alone"
        );
        if answer.is_ok() {
            self.memory.get_mut(group).unwrap().mismatch = None;
        }
    }

    async fn scale(&mut self, group: &'static str, min: usize, max: usize) {
        if !self.calm && self.chance.happens(30) {
            let desired = min + self.chance.below((max - min + 1) as u64) as usize;
            self.memory.get_mut(group).unwrap().desired = desired;
        }
        let target = self.target(group).await;
        let desired = self.memory[group].desired.max(min);
        if desired > target {
            let delta = desired - target;
            let question = wire::Delta {
                delta: delta as i32,
                id: group.to_owned(),
            };
            let call = Call::NodeGroupIncreaseSize;
            let answer = self
                .change(call, group, &question, delta as isize, false)
                .await;
            if let Err(status) = answer {
                let known = [Code::ResourceExhausted, Code::Internal, Code::Unavailable];
                assert!(known.contains(&status.code()), "{status}");
            }
        } else if desired < target {
            let mut idle: Vec<String> = self.running(group).into_iter().collect();
            idle.retain(|name| name != "s0");
            if !idle.is_empty() {
                let chosen = self.chance.below(idle.len() as u64) as usize;
                let answer = self.delete(group, vec![node(&idle[chosen])]).await;
                assert!(answer.is_ok() || self.trouble, "{answer:?}");
            }
        }
    }

    /// Asks for what must be refused.
    async fn misbehave(&mut self, group: &'static str) {
        self.faulty.calm();
        let before = (self.target("small").await, self.target("large").await);
        let delta = |delta| wire::Delta {
            delta,
            id: group.to_owned(),
        };
        let (id, nodes) = (group.to_owned(), vec![node("s0")]);
        let base = wire::DeleteNodes { nodes, id };
        let refusals = [
            (Call::NodeGroupIncreaseSize, delta(0).encode_to_vec()),
            (Call::NodeGroupIncreaseSize, delta(7).encode_to_vec()),
            (Call::NodeGroupDecreaseTargetSize, delta(1).encode_to_vec()),
            (Call::NodeGroupDecreaseTargetSize, delta(-7).encode_to_vec()),
            (Call::NodeGroupDeleteNodes, base.encode_to_vec()),
        ];
        // A base machine that is not there is no longer promised; any other is kept.
        let there = group != "small" || self.running(group).contains("s0");
        let count = if there { 5 } else { 4 };
        let (call, message) = refusals[self.chance.below(count) as usize].clone();
        assert!(self.service.call(call, message.into()).await.is_err());
        let after = (self.target("small").await, self.target("large").await);
        assert_eq!(before, after);
    }

    /// What always holds.
    async fn check(&mut self) {
        let wishes = self.wishes();
        assert_ne!(
            wishes.get("s0"),
            Some(&Wish::GivenBack),
            "base machines stay"
        );
        for (group, _, _, machines) in GROUPS {
            let answer: wire::Instances = self.ask(Call::NodeGroupNodes, &id(group)).await;
            let counts = |one: &&wire::Instance| {
                one.status.as_ref().unwrap().instance_state != wire::DELETING
            };
            let target = self.target(group).await;
            let snapshot = self.targets.snapshot();
            let view = snapshot.group(group).unwrap();
            let returning = view.instances().filter(|one| one.phase == Phase::Returning);
            let counted = answer.instances.iter().filter(counts).count();
            assert_eq!(counted + returning.count(), target);
            assert!(target <= machines);
            for instance in &answer.instances {
                let name = instance.id.strip_prefix("metal://rack/").unwrap();
                assert!(wishes.contains_key(name), "what sleeps is not listed");
            }
        }
        if self.chance.happens(10) {
            let wanted = self.targets.wanted();
            let again = Targets::open(self.store.clone(), self.leadership.clone(), catalogue());
            assert_eq!(
                again.await.unwrap().wanted(),
                wanted,
                "memory and store are one"
            );
        }
    }

    /// Whether everything is as Cluster Autoscaler wants it, and nothing is on its way.
    fn at_rest(&self) -> bool {
        let wishes = self.wishes();
        let machines = self.metals.iter().all(|metal| {
            let on = metal.state == State::On;
            (on || metal.state == State::Off) && wishes.get(&metal.name) == on.then_some(&Wish::On)
        });
        let snapshot = self.targets.snapshot();
        let targets = GROUPS.iter().all(|(name, min, ..)| {
            let desired = self.memory[name].desired.max(*min);
            snapshot.group(name).map(|one| one.target()) == Some(desired)
        });
        machines && targets
    }

    /// Nothing happens any more, and all machines work: everything comes to an end.
    async fn settle(&mut self) {
        self.calm = true;
        self.trouble = false;
        for metal in &mut self.metals {
            metal.broken = false;
        }
        // Longer than Cluster Autoscaler waits for anything: what has not moved by then does not.
        let enough = PROVISION.0 / 120 + 3;
        let mut quiet = 0;
        for _ in 0..70 {
            self.round(Span::minutes(2)).await;
            quiet = if self.at_rest() { quiet + 1 } else { 0 };
            if quiet == enough {
                break;
            }
        }
        let wishes = self.wishes();
        for metal in &self.metals {
            let on = metal.state == State::On;
            let wish = wishes.get(&metal.name);
            assert_eq!(
                wish,
                on.then_some(&Wish::On),
                "{} is {:?}",
                metal.name,
                metal.state
            );
        }
        for (group, min, ..) in GROUPS {
            let desired = self.memory[group].desired.max(min);
            assert_eq!(self.target(group).await, desired, "{group}");
        }
    }
}

fn service(targets: &Targets, clock: &Arc<AtomicU64>) -> Service {
    let clock = clock.clone();
    let clock = Arc::new(move || Moment(clock.load(Ordering::Relaxed)));
    Service::with_clock(targets.clone(), Settings::default(), clock)
}

async fn forget(store: &Arc<Faulty>) {
    let page = store
        .range(Range::new("fleet/targets/", 100))
        .await
        .unwrap();
    let keys = page.entries.into_iter().map(|one| one.key);
    let gone: Vec<Operation> = keys.map(Operation::delete).collect();
    if !gone.is_empty() {
        store.transact(Transaction::always(gone)).await.unwrap();
    }
}

fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Names the history in which a check failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the history of SEED={}", self.0);
        }
    }
}

/// How many histories there are in all, in parts that can run at the same time.
const HISTORIES: u64 = 1000;
const PARTS: u64 = 4;

#[tokio::test]
async fn whatever_happens_promises_are_kept_and_told_truly() {
    check(0).await;
}

#[tokio::test]
async fn whatever_else_happens_promises_are_kept_and_told_truly() {
    check(1).await;
}

#[tokio::test]
async fn in_other_histories_promises_are_kept_and_told_truly() {
    check(2).await;
}

#[tokio::test]
async fn in_all_other_histories_promises_are_kept_and_told_truly() {
    check(3).await;
}

/// The seeds of one part.
fn seeds(part: u64) -> std::ops::Range<u64> {
    if let Some(seed) = given("SEED") {
        // One part does it all then.
        return if part == 0 { seed..seed + 100 } else { 0..0 };
    }
    let each = given("HISTORIES").unwrap_or(HISTORIES).div_ceil(PARTS);
    part * each..(part + 1) * each
}

async fn check(part: u64) {
    let seeds = seeds(part);
    if seeds.is_empty() {
        return;
    }
    let folder = cluster::folder();
    let faulty = Faulty::new(open_store(&folder).await);
    let store: Arc<dyn Store> = faulty.clone();
    let leadership = lead(&store).await;
    let enough = seeds.end - seeds.start;
    let mut accepted: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds {
        let _named = Named(seed);
        forget(&faulty).await;
        let mut world = World::new(seed, &faulty, &leadership).await;
        for _ in 0..40 {
            world.round(Span(60)).await;
        }
        faulty.calm();
        world.settle().await;
        for (what, count) in world.accepted {
            *accepted.entry(what).or_default() += count;
        }
    }
    // Histories in which nothing happens would show nothing.
    for call in [Call::NodeGroupIncreaseSize, Call::NodeGroupDeleteNodes] {
        assert!(accepted[call.name()] as u64 >= enough, "{accepted:?}");
    }
    let decreased = accepted[Call::NodeGroupDecreaseTargetSize.name()];
    assert!(decreased as u64 * 20 >= enough, "{accepted:?}");
}

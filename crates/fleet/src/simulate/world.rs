//! The world that a policy decides about.

use super::{chance::Chance, report::Row, trace::Trace};
use crate::{
    amount::Amount,
    forecast::{Forecast, Outlook},
    inventory::{Inventory, MachineIndex, Power, Workload, WorkloadIndex},
    moment::{Moment, Span},
    planner::{Action, Memory, Plan, Situation, plan},
    policy::{Kind, Policy},
};
use std::{cmp::Reverse, collections::BinaryHeap};

/// How a simulation is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How far the clock moves at once.
    pub step: Span,
    /// When it begins.
    pub start: Moment,
    /// For how long it runs; requests that arrive later are left out.
    pub length: Span,
    /// Boot times are drawn with this seed, the same for every policy.
    pub seed: u64,
    /// The deviation of boot times, as a share of the usual one.
    pub boot_deviation: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            step: Span::minutes(1),
            start: Moment(0),
            length: Span::hours(24 * 7),
            seed: 1,
            boot_deviation: 0.15,
        }
    }
}

/// No boot is longer than so many usual ones.
const LONGEST_BOOT: f64 = 1.6;
/// None is shorter.
const SHORTEST_BOOT: f64 = 0.6;

struct World {
    inventory: Inventory,
    options: Options,
    /// Machines that will be something else, and when.
    changes: BinaryHeap<Reverse<(Moment, MachineIndex, u8)>>,
    /// Workloads that end, and when.
    ends: BinaryHeap<Reverse<(Moment, WorkloadIndex)>>,
    durations: Vec<Span>,
    wakes: Vec<u32>,
    waits: Vec<u32>,
    row: Row,
}

const OFF: u8 = 0;
const SUSPENDED: u8 = 1;
const ON: u8 = 2;
/// It is on, and was suspended before.
const RESUMED: u8 = 3;

/// Runs a trace on a fleet under a policy. All machines are on in the beginning, and nothing is
/// known about demand yet.
pub fn simulate(inventory: &Inventory, trace: &Trace, policy: &Policy, options: Options) -> Row {
    let mut world = World {
        inventory: inventory.clone(),
        options,
        changes: BinaryHeap::new(),
        ends: BinaryHeap::new(),
        durations: Vec::new(),
        wakes: vec![0; inventory.machines().len()],
        waits: Vec::new(),
        row: Row::new(policy.kind.name()),
    };
    let mut forecast = (policy.kind == Kind::Atoll).then(Forecast::default);
    let mut memory = Memory::default();
    let end = options.start.plus(options.length);
    let mut next = trace
        .requests()
        .partition_point(|one| one.arrival < options.start);
    let mut now = options.start;
    while now < end {
        world.let_happen(now);
        while let Some(request) = trace.requests().get(next).filter(|one| one.arrival <= now) {
            next += 1;
            let mut workload = Workload::new(String::new(), request.amount);
            workload.moving = request.moving;
            workload.since = now;
            let index = world.inventory.add_workload(workload);
            if world.durations.len() <= index.at() {
                world.durations.resize(index.at() + 1, Span::ZERO);
            }
            world.durations[index.at()] = request.duration;
            world.row.requests += 1;
        }
        if let Some(forecast) = &mut forecast {
            world.observe(forecast, now);
        }
        let situation = Situation {
            inventory: &world.inventory,
            forecast: forecast.as_ref().map(|one| one as &dyn Outlook),
            policy,
            now,
        };
        let (decided, remembered) = plan(situation, &memory);
        memory = remembered;
        world.carry_out(&decided, now);
        // What the step that begins now draws.
        let next = now.plus(options.step);
        world
            .row
            .measure(&world.inventory, &policy.tariff, now, next);
        now = next;
    }
    world.finish(end)
}

impl World {
    /// Boots and shut-downs that are done, and workloads that end.
    fn let_happen(&mut self, now: Moment) {
        while let Some(Reverse((at, index, what))) = self.changes.peek().copied() {
            if at > now {
                break;
            }
            self.changes.pop();
            let machine = self.inventory.machine_mut(index);
            let took = at.since(machine.since);
            machine.power = match what {
                OFF => Power::Off,
                SUSPENDED => Power::Suspended,
                woken => {
                    match woken {
                        RESUMED => machine.resume.learn(took),
                        _ => machine.boot.learn(took),
                    }
                    (machine.ready, machine.seen) = (true, true);
                    Power::On
                }
            };
            machine.since = at;
            machine.draining = false;
        }
        while let Some(Reverse((at, index))) = self.ends.peek().copied() {
            if at > now {
                break;
            }
            self.ends.pop();
            self.inventory.remove(index);
        }
    }

    /// What is asked for, group by group; what waits is counted where most machines are.
    fn observe(&self, forecast: &mut Forecast, now: Moment) {
        let mut demand = vec![Amount::ZERO; self.inventory.groups().len()];
        for (index, machine) in self.inventory.enumerate() {
            let group = &mut demand[machine.group.at()];
            *group = group.plus(self.inventory.used(index));
        }
        if let Some(first) = demand.first_mut() {
            let waiting = self.inventory.waiting();
            let requests =
                waiting.filter_map(|index| Some(self.inventory.workload(index)?.request));
            *first = first.plus(requests.sum());
        }
        forecast.observe_demand(&demand, now);
    }

    fn carry_out(&mut self, plan: &Plan, now: Moment) {
        for one in &plan.placements {
            let since = self.inventory.workload(one.workload).map(|w| w.since);
            let wait = now.since(since.unwrap_or(now));
            self.waits.push(wait.0 as u32);
            self.inventory.place(one.workload, one.machine);
            let end = now.plus(self.durations[one.workload.at()]);
            self.ends.push(Reverse((end, one.workload)));
        }
        for one in &plan.moves {
            self.inventory.place(one.workload, one.machine);
            self.row.moves += 1;
        }
        for (index, action) in plan.actions() {
            self.act(index, action, now);
        }
    }

    fn act(&mut self, index: MachineIndex, action: Action, now: Moment) {
        let carries = !self.inventory.carried(index).is_empty();
        let took = self.boot_time(index);
        let machine = self.inventory.machine_mut(index);
        match action {
            Action::Keep => {}
            Action::Drain => machine.draining = true,
            Action::Undrain => machine.draining = false,
            Action::Wake => {
                let light = machine.power == Power::Suspended;
                let span = if light { machine.resume.median() } else { took };
                (machine.power, machine.since) = (Power::Waking, now);
                self.row.longest_boot = self.row.longest_boot.max(span);
                let what = if light { RESUMED } else { ON };
                self.changes.push(Reverse((now.plus(span), index, what)));
                self.wakes[index.at()] += 1;
            }
            Action::PowerOff | Action::Suspend if carries => self.row.work_lost += 1,
            Action::PowerOff | Action::Suspend => {
                let deep = action == Action::PowerOff;
                let span = match (deep, machine.power) {
                    // It wakes first, so that its system ends as it should.
                    (true, Power::Suspended) => {
                        Span(machine.shutdown.0 + machine.resume.median().0)
                    }
                    (true, _) => machine.shutdown,
                    (false, _) => Span(10),
                };
                let what = if deep { OFF } else { SUSPENDED };
                (machine.power, machine.since) = (Power::Stopping, now);
                machine.draining = false;
                self.row.cycles += 1;
                self.changes.push(Reverse((now.plus(span), index, what)));
            }
        }
    }

    /// How long the machine's next boot takes: the same for every policy.
    fn boot_time(&self, index: MachineIndex) -> Span {
        let seed =
            self.options.seed ^ (u64::from(index.0) << 32) ^ u64::from(self.wakes[index.at()]);
        let mut chance = Chance::new(seed);
        let factor = 1.0 + self.options.boot_deviation * chance.normal();
        // What is drawn around is what the configuration says, not what was learnt.
        let usual = self.inventory.machine(index).boot.expected().0 as f64;
        Span((usual * factor.clamp(SHORTEST_BOOT, LONGEST_BOOT)) as u64)
    }

    fn finish(mut self, end: Moment) -> Row {
        for index in self.inventory.waiting().collect::<Vec<_>>() {
            if let Some(workload) = self.inventory.workload(index) {
                self.waits.push(end.since(workload.since).0 as u32);
                self.row.unserved += 1;
            }
        }
        self.row.count_waits(&mut self.waits);
        self.row
    }
}

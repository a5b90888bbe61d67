//! A small fleet to try the planner on.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses a part of it"
)]

use fleet::{
    amount::Amount,
    counterfactual::{carry_out, holds},
    forecast::Outlook,
    inventory::{
        Group, GroupIndex, Inventory, Machine, MachineIndex, Moving, Workload, WorkloadIndex,
    },
    moment::{Moment, Span},
    planner::{Decision, Memory, Plan, Situation, plan},
    policy::Policy,
};

/// Demand that grows by the same amount whenever it is asked for.
pub struct Growing(pub Amount);

impl Outlook for Growing {
    fn growth(&self, _: GroupIndex, _: Moment, _: Span, _: f64) -> Amount {
        self.0
    }
}

/// Demand that grows after some time.
pub struct GrowingAfter(pub Span, pub Amount);

impl Outlook for GrowingAfter {
    fn growth(&self, _: GroupIndex, _: Moment, ahead: Span, _: f64) -> Amount {
        if ahead >= self.0 {
            self.1
        } else {
            Amount::ZERO
        }
    }
}

/// A fleet, a policy and a clock.
pub struct Fixture {
    pub inventory: Inventory,
    pub policy: Policy,
    pub forecast: Option<Box<dyn Outlook>>,
    pub memory: Memory,
    pub now: Moment,
    pub group: GroupIndex,
}

pub fn machine(name: &str, group: GroupIndex, processors: u64) -> Machine {
    let capacity = Amount::new(processors * 1000, processors << 32, 0, 110);
    Machine::new(name, group, capacity)
}

impl Fixture {
    /// Machines with so many processors each, switched on.
    pub fn new(processors: &[u64]) -> Self {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("pool"));
        for (at, count) in processors.iter().enumerate() {
            inventory.add_machine(machine(&format!("m{at}"), group, *count));
        }
        Self {
            inventory,
            policy: Policy {
                reserve_most: 10.0,
                ..Policy::default()
            },
            forecast: None,
            memory: Memory::default(),
            now: Moment(1_000_000),
            group,
        }
    }

    pub fn machine(&mut self, at: u32) -> &mut Machine {
        self.inventory.machine_mut(MachineIndex(at))
    }

    /// A workload that asks for so many processors, and for as much memory as goes with them.
    pub fn workload(&mut self, millis: u64, machine: Option<u32>, moving: Moving) -> WorkloadIndex {
        let memory = millis * 4096 / 1000 * 9 / 10;
        let mut workload = Workload::new("w", Amount::workload(millis, memory));
        workload.machine = machine.map(MachineIndex);
        workload.moving = moving;
        self.inventory.add_workload(workload)
    }

    pub fn situation(&self) -> Situation<'_> {
        Situation {
            inventory: &self.inventory,
            forecast: self.forecast.as_deref(),
            policy: &self.policy,
            now: self.now,
        }
    }

    /// Plans without doing anything.
    pub fn plan(&mut self) -> Plan {
        let (plan, memory) = plan(self.situation(), &self.memory);
        self.memory = memory;
        plan
    }

    /// Plans and does what the plan says, for so long.
    pub fn run(&mut self, span: Span) -> Plan {
        let end = self.now.plus(span);
        loop {
            let plan = self.plan();
            carry_out(&mut self.inventory, &plan, self.now);
            if self.now >= end {
                return plan;
            }
            self.now = self.now.plus(Span(30));
        }
    }

    /// What is decided about a machine, and whether what would change it does so.
    pub fn decide(&mut self, at: u32) -> Decision {
        let before = self.memory.clone();
        let plan = self.plan();
        let decision = *plan.decision(MachineIndex(at));
        if let Some(would) = &decision.would {
            let held = holds(self.situation(), &before, MachineIndex(at), would);
            assert!(
                held,
                "it does not hold that {would:?} changes {:?}",
                decision.reason
            );
        }
        decision
    }
}

//! What the API says, as it was after the last tick.

use crate::{
    amount::Amount,
    explain::Record,
    inventory::{Group, Inventory, Machine, MachineIndex, Power, Role, WorkloadIndex},
    moment::{Moment, Span},
    planner::{Action, Plan},
    policy::Policy,
    power::transition::Wanted,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

use super::record::Segment;

/// Whether this instance acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It was started, and has not looked around yet.
    #[default]
    Starting,
    /// It acts.
    Acting,
    /// Another instance acts. This one takes over when that is gone.
    StandingBy,
}

/// How the fleet is: `GET /v1/fleet/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether this instance acts.
    pub standing: Standing,
    /// Whether it only says what it would do.
    pub dry_run: bool,
    /// The policy that decides.
    pub policy: String,
    /// When it looked last; none if it has not.
    pub at: Option<Moment>,
    /// How many machines are in each state of power.
    pub machines: BTreeMap<String, u64>,
    /// What all machines draw, by what is known of them.
    pub watts: f64,
    /// How many workloads run on machines of the fleet, and how many wait.
    pub running: u64,
    /// How many wait.
    pub waiting: u64,
    /// Where demand is read.
    pub demand: DemandStatus,
    /// What is being done with machines.
    pub under_way: Vec<UnderWay>,
    /// Groups and their forecasts.
    pub groups: Vec<GroupStatus>,
    /// With how many machines' controllers something is wrong, whether they are needed now or not.
    #[serde(default)]
    pub controllers_failing: u64,
    /// What went wrong in the last tick, and what is wrong with controllers, for people.
    pub trouble: Vec<String>,
}

/// Where demand is read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DemandStatus {
    /// What kind of source it is.
    pub source: String,
    /// When it was read last.
    pub read_at: Option<Moment>,
    /// Why it could not be read, if so.
    pub error: Option<String>,
}

/// A machine that is being switched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnderWay {
    /// Its name.
    pub machine: String,
    /// What is wanted.
    pub wanted: Wanted,
    /// Since when.
    pub since: Moment,
    /// How often something was sent.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Whether Cluster Autoscaler plans it.
    pub cluster_autoscaler: bool,
    /// Machines that are on or on their way.
    pub awake: u64,
    /// All machines.
    pub machines: u64,
    /// Whether its forecast has proven better than none.
    pub forecast_used: bool,
}

/// A machine: `GET /v1/fleet/machines`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Whether it may be switched off.
    pub role: Role,
    /// What its power is.
    pub power: Power,
    /// Since when.
    pub since: Moment,
    /// Whether its node takes work.
    pub ready: bool,
    /// Whether it takes no new work.
    pub draining: bool,
    /// What it has for workloads.
    pub capacity: Amount,
    /// What its workloads ask for.
    pub used: Amount,
    /// How many there are.
    pub workloads: u64,
    /// What it draws, by what is known of it, in watts.
    pub watts: f64,
    /// How long it usually takes to boot, as learnt.
    pub boot: Span,
    /// In nineteen of twenty cases it takes no longer.
    pub boot_p95: Span,
    /// What is done with it.
    pub action: Action,
    /// Why, in one word.
    pub reason: String,
}

/// Why a machine is as it is: `GET /v1/fleet/machines/{name}/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The machine's name.
    pub machine: String,
    /// The moment that was asked about.
    pub at: Moment,
    /// What its power is; absent where the question is about the past.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// What is done with it.
    pub action: Action,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence; it names what blocks.
    pub because: String,
    /// What would change it.
    pub would: Option<String>,
    /// Since when this is decided.
    pub since: Moment,
    /// What is being done with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<UnderWay>,
    /// What went wrong when it was switched last, if it did not get where it was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether nothing of this is carried out.
    pub dry_run: bool,
}

/// The last plan: `GET /v1/fleet/plan`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// When it was made; none if none was.
    pub at: Option<Moment>,
    /// Whether nothing of it is carried out.
    pub dry_run: bool,
    /// Machines to which something is done.
    pub actions: Vec<Record>,
    /// How many decisions have each reason.
    pub reasons: BTreeMap<String, u64>,
    /// Workloads that find room on machines that are on.
    pub placements: Vec<Place>,
    /// Workloads that wait for machines which wake.
    pub promises: Vec<Place>,
    /// Workloads that move.
    pub moves: Vec<Place>,
    /// Workloads without any place, with the machine that lacks least and what it lacks.
    pub unplaced: Vec<NoPlace>,
}

/// A workload and its machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The workload.
    pub workload: String,
    /// The machine.
    pub machine: String,
}

/// A workload without a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NoPlace {
    /// The workload.
    pub workload: String,
    /// The machine that lacks least.
    pub nearest: Option<String>,
    /// What it lacks, for people.
    pub lacks: Option<String>,
}

/// What was written down of a period, and all that is needed to run it again:
/// `GET /v1/fleet/record`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The groups as they are configured.
    pub groups: Vec<Group>,
    /// The machines as they are configured.
    pub machines: Vec<Machine>,
    /// The policy that is configured.
    pub policy: Policy,
    /// What happened, the oldest first, from the last whole picture before the period on.
    pub segments: Vec<Segment>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) status: Status,
    pub(super) machines: Vec<MachineView>,
    pub(super) decisions: Vec<Record>,
    pub(super) plan: PlanView,
    /// What went wrong with machines that did not get where they were to go, by their names.
    pub(super) troubles: HashMap<String, String>,
}

/// No more workloads than this are named in a plan's lists.
const MOST_NAMED: usize = 1_000;

impl View {
    /// Shows machines and plan.
    pub(super) fn show(&mut self, inventory: &Inventory, plan: &Plan, now: Moment) {
        let mut by_power: BTreeMap<String, u64> = BTreeMap::new();
        for power in [
            Power::On,
            Power::Off,
            Power::Suspended,
            Power::Waking,
            Power::Stopping,
        ] {
            by_power.insert(power.to_string(), 0);
        }
        let (mut watts, mut running) = (0.0, 0);
        self.machines.clear();
        self.decisions.clear();
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        for (index, machine) in inventory.enumerate() {
            let decision = plan.decision(index);
            *by_power.entry(machine.power.to_string()).or_default() += 1;
            *reasons
                .entry(decision.reason.name().to_owned())
                .or_default() += 1;
            watts += inventory.watts(index);
            running += inventory.carried(index).len() as u64;
            self.machines.push(MachineView {
                name: machine.name.clone(),
                group: inventory.group(machine.group).name.clone(),
                role: machine.role,
                power: machine.power,
                since: machine.since,
                ready: machine.ready,
                draining: machine.draining,
                capacity: machine.capacity,
                used: inventory.used(index),
                workloads: inventory.carried(index).len() as u64,
                watts: inventory.watts(index),
                boot: machine.boot.median(),
                boot_p95: machine.boot.quantile(0.95),
                action: decision.action,
                reason: decision.reason.name().to_owned(),
            });
            self.decisions
                .push(Record::of(inventory, index, decision, now));
        }
        let status = &mut self.status;
        (status.machines, status.watts) = (by_power, watts);
        (status.running, status.waiting) = (running, inventory.waiting_count() as u64);
        self.plan = PlanView {
            at: Some(plan.at),
            dry_run: status.dry_run,
            actions: plan
                .actions()
                .map(|(index, _)| self.decisions[index.at()].clone())
                .collect(),
            reasons,
            placements: places(inventory, &plan.placements),
            promises: places(inventory, &plan.promises),
            moves: places(inventory, &plan.moves),
            unplaced: unplaced(inventory, plan),
        };
    }

    /// The place of a machine in every list.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.machines.iter().position(|one| one.name == name)
    }
}

fn workload(inventory: &Inventory, index: WorkloadIndex) -> String {
    let found = inventory.workload(index);
    found.map(|one| one.name.clone()).unwrap_or_default()
}

fn machine(inventory: &Inventory, index: MachineIndex) -> String {
    inventory.machine(index).name.clone()
}

fn places(inventory: &Inventory, all: &[crate::planner::Placement]) -> Vec<Place> {
    let named = all.iter().take(MOST_NAMED).map(|one| Place {
        workload: workload(inventory, one.workload),
        machine: machine(inventory, one.machine),
    });
    named.collect()
}

fn unplaced(inventory: &Inventory, plan: &Plan) -> Vec<NoPlace> {
    let named = plan.unplaced.iter().take(MOST_NAMED).map(|one| NoPlace {
        workload: workload(inventory, one.workload),
        nearest: one.nearest.map(|(index, _)| machine(inventory, index)),
        lacks: one.nearest.map(|(_, lacks)| lacks.to_string()),
    });
    named.collect()
}

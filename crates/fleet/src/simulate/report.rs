//! What a simulation found: one row for each policy, and how it compares.

use super::{
    oracle::oracle,
    trace::Trace,
    world::{Options, simulate},
};
use crate::{
    inventory::{Inventory, Power},
    moment::{Moment, Span},
    policy::Policy,
    tariff::Tariff,
};
use serde::Serialize;

/// The fleet at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// When.
    pub at: Moment,
    /// Processors that are asked for, whether they have a place or wait.
    pub demand_cpu: f64,
    /// Processors of machines that are on.
    pub awake_cpu: f64,
    /// What the whole fleet draws.
    pub watts: f64,
    /// Machines that are on.
    pub machines_on: u32,
}

/// What one policy did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The policy.
    pub policy: String,
    /// Energy, in kilowatt-hours.
    pub energy_kwh: f64,
    /// Cost, in the currency of the tariff.
    pub cost: f64,
    /// Carbon, in kilograms of CO₂ equivalent.
    pub carbon_kg: f64,
    /// How often a machine was switched off or suspended.
    pub cycles: u64,
    /// How often a workload was moved.
    pub moves: u64,
    /// How many requests arrived.
    pub requests: u64,
    /// How many of them waited at all.
    pub waited: u64,
    /// How long those who waited did so on average, in seconds.
    pub mean_wait_seconds: f64,
    /// Of all requests, 99 in 100 waited no longer than this.
    pub p99_wait: Span,
    /// The longest wait.
    pub longest_wait: Span,
    /// How many requests had no place in the end.
    pub unserved: u64,
    /// How often a machine would have been switched off under its work. Always 0, or there is a
    /// bug.
    pub work_lost: u64,
    /// The longest boot.
    pub longest_boot: Span,
    /// Minute by minute.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn new(policy: &str) -> Self {
        Self {
            policy: policy.to_owned(),
            energy_kwh: 0.0,
            cost: 0.0,
            carbon_kg: 0.0,
            cycles: 0,
            moves: 0,
            requests: 0,
            waited: 0,
            mean_wait_seconds: 0.0,
            p99_wait: Span::ZERO,
            longest_wait: Span::ZERO,
            unserved: 0,
            work_lost: 0,
            longest_boot: Span::ZERO,
            samples: Vec::new(),
        }
    }

    /// Adds what a fleet that is like this draws between two moments.
    pub(crate) fn measure(
        &mut self,
        inventory: &Inventory,
        tariff: &Tariff,
        from: Moment,
        until: Moment,
    ) {
        let (mut watts, mut awake, mut used, mut on) = (0.0, 0, 0, 0);
        for (index, machine) in inventory.enumerate() {
            watts += inventory.watts(index);
            if machine.power == Power::On {
                awake += machine.capacity.cpu_millis;
                used += inventory.used(index).cpu_millis;
                on += 1;
            }
        }
        let waiting = inventory.waiting();
        let waiting: u64 = waiting
            .filter_map(|index| Some(inventory.workload(index)?.request.cpu_millis))
            .sum();
        let mut at = from;
        // Prices change with the hour.
        while at < until {
            let next = Moment((at.0 / 3600 + 1) * 3600).min(until);
            let kilowatt_hours = watts * next.since(at).as_hours() / 1000.0;
            self.energy_kwh += kilowatt_hours;
            self.cost += kilowatt_hours * tariff.price(at);
            self.carbon_kg += kilowatt_hours * tariff.carbon(at) / 1000.0;
            at = next;
        }
        if until > from {
            self.samples.push(Sample {
                at: from,
                demand_cpu: (used + waiting) as f64 / 1000.0,
                awake_cpu: awake as f64 / 1000.0,
                watts,
                machines_on: on,
            });
        }
    }

    pub(crate) fn count_waits(&mut self, waits: &mut [u32]) {
        waits.sort_unstable();
        let first = waits.partition_point(|wait| *wait == 0);
        let waited = &waits[first..];
        self.waited = waited.len() as u64;
        let sum: u64 = waited.iter().map(|wait| u64::from(*wait)).sum();
        self.mean_wait_seconds = sum as f64 / waited.len().max(1) as f64;
        let at = (waits.len() * 99 / 100).min(waits.len().saturating_sub(1));
        let span = |wait: Option<&u32>| Span(wait.copied().unwrap_or(0).into());
        self.p99_wait = span(waits.get(at));
        self.longest_wait = span(waits.last());
    }
}

/// Several policies on the same fleet and trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// One row for each policy, and one for an oracle that knows the future.
    pub rows: Vec<Row>,
    /// No policy, even one that moves everything at any moment and whose machines boot in no time,
    /// needs less: in kilowatt-hours.
    pub bound_kwh: f64,
}

/// Runs the trace under each policy, each on a thread of its own, and beside them an oracle.
pub fn compare(
    inventory: &Inventory,
    trace: &Trace,
    policies: &[Policy],
    options: Options,
) -> Comparison {
    let tariff = policies.first().map(|policy| policy.tariff.clone());
    let tariff = tariff.unwrap_or_default();
    std::thread::scope(|scope| {
        let runs: Vec<_> = policies
            .iter()
            .map(|policy| scope.spawn(move || simulate(inventory, trace, policy, options)))
            .collect();
        let (row, bound_kwh) = oracle(inventory, trace, &tariff, options);
        let mut rows = Vec::with_capacity(policies.len() + 1);
        for run in runs {
            match run.join() {
                Ok(row) => rows.push(row),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        rows.push(row);
        Comparison { rows, bound_kwh }
    })
}

impl Comparison {
    /// The row of this name.
    pub fn row(&self, policy: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.policy == policy)
    }

    /// A policy's energy, relative to the oracle's.
    pub fn of_oracle(&self, row: &Row) -> f64 {
        let oracle = self.row("oracle").map_or(0.0, |row| row.energy_kwh);
        if oracle > 0.0 {
            row.energy_kwh / oracle
        } else {
            1.0
        }
    }
}

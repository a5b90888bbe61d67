//! What somebody would do who knows all that is to come: when each request arrives and ends, and
//! how long each boot takes.
//!
//! It puts each request where the machine has to stay on the least longer for it (the rule
//! *minimum extension* of interval scheduling with bounded parallelism), keeps machines on over
//! gaps that are too short for a power cycle to pay, and wakes them so early that nobody waits. It
//! moves nothing. It is no lower bound: somebody who moves workloads may need less. The lower bound
//! beside it is one, for everybody.
//!
//! [`knowing_arrivals`] is the same without knowing when requests end: what that knowledge is worth
//! is the difference.

use super::{
    report::{Row, Sample},
    trace::{Request, Trace},
    world::Options,
};
use crate::{
    amount::{Amount, Resource},
    inventory::{Inventory, Machine, Role},
    moment::{Moment, Span},
    tariff::Tariff,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// What is known of the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// When requests arrive and end.
    All,
    /// When they arrive.
    Arrivals,
}

/// A machine with the times at which it carries work.
struct Carrier<'a> {
    machine: &'a Machine,
    free: Amount,
    /// When the last of what it carries ends.
    until: Moment,
    running: u32,
    /// From when to when it carried something.
    busy: Vec<(Moment, Moment)>,
    /// When its use changes, and by how much.
    load: Vec<(Moment, i64)>,
}

/// What the oracle needs, and the lower bound in kilowatt-hours.
pub fn oracle(
    inventory: &Inventory,
    trace: &Trace,
    tariff: &Tariff,
    options: Options,
) -> (Row, f64) {
    let row = run(inventory, trace, tariff, options, Known::All);
    (row, bound(inventory, trace, options))
}

/// What somebody needs who knows when requests arrive, how long boots take and whether a power cycle
/// will have paid, but not when requests end. Each goes where most run, which keeps a machine on
/// the least longer if nothing tells how long a request still runs.
pub fn knowing_arrivals(
    inventory: &Inventory,
    trace: &Trace,
    tariff: &Tariff,
    options: Options,
) -> Row {
    run(inventory, trace, tariff, options, Known::Arrivals)
}

fn run(
    inventory: &Inventory,
    trace: &Trace,
    tariff: &Tariff,
    options: Options,
    known: Known,
) -> Row {
    let mut carriers: Vec<Carrier<'_>> = inventory
        .machines()
        .iter()
        .map(|machine| Carrier {
            machine,
            free: machine.capacity,
            until: options.start,
            running: 0,
            busy: Vec::new(),
            load: Vec::new(),
        })
        .collect();
    // Those that are on anyhow, then those that need least.
    carriers.sort_by(|one, two| {
        let key = |machine: &Machine| {
            let draw = machine.watts.idle / machine.capacity.cpu_millis.max(1) as f64;
            (machine.role != Role::Base, draw)
        };
        let (first, second) = (key(one.machine), key(two.machine));
        first.0.cmp(&second.0).then(first.1.total_cmp(&second.1))
    });
    let mut row = Row::new(match known {
        Known::All => "oracle",
        Known::Arrivals => "knowing arrivals",
    });
    let mut waits = assign(&mut carriers, trace, options, known, &mut row);
    let steps = (options.length.0 / options.step.0.max(1)) as usize;
    let mut watts = vec![0.0_f64; steps];
    let mut on = vec![0_u32; steps];
    let mut awake = vec![0.0_f64; steps];
    let mut demand = vec![0.0_f64; steps];
    for carrier in &carriers {
        let spans = on_spans(carrier, options, &mut row);
        draw(carrier, &spans, options, &mut watts, &mut on, &mut awake);
        use_of(carrier, options, &mut watts, &mut demand);
    }
    let hours = options.step.as_hours();
    for step in 0..steps {
        let at = options.start.plus(Span(step as u64 * options.step.0));
        let kilowatt_hours = watts[step] * hours / 1000.0;
        row.energy_kwh += kilowatt_hours;
        row.cost += kilowatt_hours * tariff.price(at);
        row.carbon_kg += kilowatt_hours * tariff.carbon(at) / 1000.0;
        row.samples.push(Sample {
            at,
            demand_cpu: demand[step],
            awake_cpu: awake[step],
            watts: watts[step],
            machines_on: on[step],
        });
    }
    row.count_waits(&mut waits);
    row
}

/// Gives each request its machine; returns how long each waited, in seconds.
fn assign(
    carriers: &mut [Carrier<'_>],
    trace: &Trace,
    options: Options,
    known: Known,
    row: &mut Row,
) -> Vec<u32> {
    let end = options.start.plus(options.length);
    let mut waits = Vec::new();
    let mut ends: BinaryHeap<Reverse<(Moment, usize, [u64; 4])>> = BinaryHeap::new();
    let mut queue: VecDeque<Request> = VecDeque::new();
    let release = |carriers: &mut [Carrier<'_>],
                   ends: &mut BinaryHeap<Reverse<(Moment, usize, [u64; 4])>>,
                   now: Moment| {
        while let Some(Reverse((at, carrier, amount))) = ends.peek().copied() {
            if at > now {
                break;
            }
            ends.pop();
            let one = &mut carriers[carrier];
            let [cpu, memory, gpus, places] = amount;
            one.free = one.free.plus(Amount::new(cpu, memory, gpus, places));
            one.running -= 1;
            one.load.push((at, -(cpu as i64)));
        }
    };
    let place = |carriers: &mut [Carrier<'_>],
                 ends: &mut BinaryHeap<Reverse<(Moment, usize, [u64; 4])>>,
                 request: &Request,
                 now: Moment| {
        let until = now.plus(request.duration);
        let Some(at) = choose(carriers, request, now, until, known) else {
            return false;
        };
        let one = &mut carriers[at];
        one.free = one.free.minus(request.amount);
        one.running += 1;
        one.load.push((now, request.amount.cpu_millis as i64));
        match one.busy.last_mut() {
            Some(last) if last.1 >= now => last.1 = last.1.max(until),
            _ => one.busy.push((now, until)),
        }
        one.until = one.until.max(until);
        let amount = Resource::ALL.map(|resource| request.amount.of(resource));
        ends.push(Reverse((until, at, amount)));
        true
    };
    for request in trace.requests() {
        if request.arrival < options.start || request.arrival >= end {
            continue;
        }
        row.requests += 1;
        // Those who wait for the fleet to have room at all come first.
        while let Some(first) = queue.front().copied() {
            let Some(Reverse((at, ..))) = ends.peek().copied() else {
                break;
            };
            if at > request.arrival {
                break;
            }
            release(carriers, &mut ends, at);
            if place(carriers, &mut ends, &first, at) {
                waits.push(at.since(first.arrival).0 as u32);
                queue.pop_front();
            }
        }
        release(carriers, &mut ends, request.arrival);
        if queue.is_empty() && place(carriers, &mut ends, request, request.arrival) {
            waits.push(0);
        } else {
            queue.push_back(*request);
        }
    }
    row.unserved = queue.len() as u64;
    waits
}

/// The machine that has to stay on the least longer; among equals the fullest. A machine that
/// carries nothing comes after all that do, those that were used last first.
fn choose(
    carriers: &[Carrier<'_>],
    request: &Request,
    now: Moment,
    until: Moment,
    known: Known,
) -> Option<usize> {
    let mut best: Option<((bool, u64, u64), usize)> = None;
    for (at, one) in carriers.iter().enumerate() {
        if !request.amount.fits(&one.free) {
            continue;
        }
        let always_on = one.machine.role == Role::Base;
        let idle = one.running == 0 && !always_on;
        let longer = if always_on {
            0
        } else if idle {
            now.since(one.until).0
        } else if known == Known::Arrivals {
            u64::from(u32::MAX - one.running)
        } else {
            until.since(one.until).0
        };
        let key = (idle, longer, one.free.cpu_millis);
        if best.is_none_or(|(least, _)| key < least) {
            best = Some((key, at));
        }
    }
    best.map(|(_, at)| at)
}

/// From when to when a machine is on: while it is busy, and over gaps for which a power cycle does
/// not pay.
fn on_spans(carrier: &Carrier<'_>, options: Options, row: &mut Row) -> Vec<(Moment, Moment)> {
    let end = options.start.plus(options.length);
    if carrier.machine.role == Role::Base {
        return vec![(options.start, end)];
    }
    let machine = carrier.machine;
    let switching = Span(machine.boot.expected().0 + machine.shutdown.0);
    let saved = machine.watts.idle - machine.watts.off;
    let pays = if saved > 0.0 {
        Span((machine.cycle_watt_hours() / saved * 3600.0) as u64).max(switching)
    } else {
        options.length
    };
    let mut spans: Vec<(Moment, Moment)> = Vec::new();
    for (from, until) in &carrier.busy {
        let until = (*until).min(end);
        match spans.last_mut() {
            Some(last) if from.since(last.1) <= pays => last.1 = until.max(last.1),
            _ => spans.push((*from, until)),
        }
    }
    row.cycles += spans.len() as u64;
    spans
}

/// Adds what a machine draws without load, and while it boots and stops.
fn draw(
    carrier: &Carrier<'_>,
    spans: &[(Moment, Moment)],
    options: Options,
    watts: &mut [f64],
    on: &mut [u32],
    awake: &mut [f64],
) {
    let machine = carrier.machine;
    for step in watts.iter_mut() {
        *step += machine.watts.off;
    }
    let boot = machine.boot.expected();
    let capacity = machine.capacity.cpu_millis as f64 / 1000.0;
    for (from, until) in spans {
        spread(
            options,
            *from,
            *until,
            watts,
            machine.watts.idle - machine.watts.off,
        );
        spread(options, *from, *until, awake, capacity);
        if machine.role != Role::Base {
            let more = machine.watts.in_transition() - machine.watts.off;
            spread(options, from.minus(boot), *from, watts, more);
            spread(options, *until, until.plus(machine.shutdown), watts, more);
        }
        let (first, last) = (step_of(options, *from), step_of(options, *until));
        for step in on.iter_mut().take(last).skip(first) {
            *step += 1;
        }
    }
}

/// Adds what a machine draws for its load.
fn use_of(carrier: &Carrier<'_>, options: Options, watts: &mut [f64], demand: &mut [f64]) {
    let machine = carrier.machine;
    let capacity = machine.capacity.cpu_millis.max(1) as f64;
    let mut load = carrier.load.clone();
    load.sort_unstable();
    let end = options.start.plus(options.length);
    let mut used = 0_i64;
    for (at, (from, change)) in load.iter().enumerate() {
        used += change;
        let until = load.get(at + 1).map_or(end, |one| one.0);
        let cpu = used as f64;
        let more = (machine.watts.peak - machine.watts.idle) * cpu / capacity;
        spread(options, *from, until, watts, more);
        spread(options, *from, until, demand, cpu / 1000.0);
    }
}

fn step_of(options: Options, at: Moment) -> usize {
    (at.since(options.start).0 / options.step.0.max(1)) as usize
}

/// Adds a figure to all steps between two moments, by the share of each that lies between them.
fn spread(options: Options, from: Moment, until: Moment, steps: &mut [f64], value: f64) {
    let length = options.step.0.max(1);
    let (from, until) = (from.since(options.start).0, until.since(options.start).0);
    let mut at = from;
    while at < until {
        let step = (at / length) as usize;
        let next = ((at / length + 1) * length).min(until);
        let Some(place) = steps.get_mut(step) else {
            return;
        };
        *place += value * (next - at) as f64 / length as f64;
        at = next;
    }
}

/// The least that anybody needs: at every moment the machines that need least for what is asked
/// for, in parts, and no boots.
fn bound(inventory: &Inventory, trace: &Trace, options: Options) -> f64 {
    let end = options.start.plus(options.length);
    let mut changes: Vec<(Moment, i64, i64)> = Vec::new();
    for request in trace.requests() {
        if request.arrival >= options.start && request.arrival < end {
            let (cpu, memory) = (
                request.amount.cpu_millis as i64,
                request.amount.memory_bytes as i64,
            );
            changes.push((request.arrival, cpu, memory));
            changes.push((request.arrival.plus(request.duration), -cpu, -memory));
        }
    }
    changes.sort_unstable();
    let machines = inventory.machines();
    let fixed: f64 = machines
        .iter()
        .map(|one| match one.role {
            Role::Base => one.watts.idle,
            Role::Auto => one
                .watts
                .suspended
                .unwrap_or(one.watts.off)
                .min(one.watts.off),
        })
        .sum();
    let by = [Resource::Cpu, Resource::Memory].map(|resource| Ladder::of(machines, resource));
    // What a processor under load draws at the least.
    let dynamic = machines
        .iter()
        .map(|one| (one.watts.peak - one.watts.idle) / one.capacity.cpu_millis.max(1) as f64)
        .fold(f64::MAX, f64::min)
        .max(0.0);
    let (mut cpu, mut memory, mut total) = (0_i64, 0_i64, 0.0);
    let mut at = options.start;
    for change in changes.iter().chain([&(end, 0, 0)]) {
        let next = change.0.min(end);
        let (used_cpu, used_memory) = (cpu.max(0) as f64, memory.max(0) as f64);
        let idle = by[0].watts(used_cpu).max(by[1].watts(used_memory));
        total += (fixed + idle + used_cpu * dynamic) * next.since(at).as_hours();
        at = next;
        cpu += change.1;
        memory += change.2;
        if at >= end {
            break;
        }
    }
    total / 1000.0
}

/// Idle watts by how much of one resource is used, machines in parts, the best first.
struct Ladder {
    steps: Vec<(f64, f64)>,
}

impl Ladder {
    fn of(machines: &[Machine], resource: Resource) -> Self {
        let mut offers: Vec<(f64, f64)> = machines
            .iter()
            .map(|one| {
                let watts = match one.role {
                    Role::Base => 0.0,
                    Role::Auto => one.watts.idle - one.watts.off,
                };
                (watts, one.capacity.of(resource) as f64)
            })
            .filter(|(_, amount)| *amount > 0.0)
            .collect();
        offers.sort_by(|one, two| (one.0 / one.1).total_cmp(&(two.0 / two.1)));
        let (mut watts, mut amount) = (0.0, 0.0);
        let mut steps = vec![(0.0, 0.0)];
        for offer in offers {
            watts += offer.0;
            amount += offer.1;
            steps.push((amount, watts));
        }
        Self { steps }
    }

    fn watts(&self, used: f64) -> f64 {
        let at = self.steps.partition_point(|step| step.0 < used);
        if at == 0 {
            return 0.0;
        }
        let Some(above) = self.steps.get(at) else {
            return self.steps.last().map_or(0.0, |step| step.1);
        };
        let below = self.steps[at - 1];
        below.1 + (above.1 - below.1) * (used - below.0) / (above.0 - below.0)
    }
}

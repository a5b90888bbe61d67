//! A period that was, run again under other policies: what each would have needed, beside what was.

use crate::{
    amount::Amount,
    inventory::{Inventory, MachineIndex, Moving, Power, Workload, WorkloadIndex},
    moment::{Moment, Span},
    policy::Policy,
    serve::{
        Recorded,
        record::{Event, Segment},
    },
    simulate::{Comparison, Options, Request, Row, Trace, compare},
};
use std::collections::HashMap;

/// The row of what really was has this name.
pub const RECORDED: &str = "recorded";

/// Why a period cannot be run again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Nothing was written down.
    #[error("nothing was written down in this period; what happens is kept for 30 days")]
    Nothing,
}

/// Runs a period again under each policy. The first row is what was, by what is known of the
/// machines' watts.
///
/// # Errors
/// When nothing was written down in the period.
pub fn replay(
    recorded: &Recorded,
    from: Moment,
    until: Moment,
    policies: &[Policy],
) -> Result<Comparison, ReplayError> {
    let first = recorded.segments.iter().find(|one| one.whole);
    let begun = first.map(|one| one.at).ok_or(ReplayError::Nothing)?;
    let options = Options {
        start: from.max(begun),
        length: until.since(from.max(begun)),
        ..Options::default()
    };
    if options.length == Span::ZERO {
        return Err(ReplayError::Nothing);
    }
    let mut past = Past::new(recorded);
    past.run(recorded, options);
    let Past {
        row, trace, start, ..
    } = past;
    let mut comparison = compare(&start, &Trace::new(trace), policies, options);
    comparison.rows.insert(0, row);
    Ok(comparison)
}

/// The same with the parts of each whole picture in one.
fn join(segments: &[Segment]) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::new();
    for segment in segments {
        match joined.last_mut() {
            Some(last) if last.whole && !segment.whole && last.at == segment.at => {
                last.events.extend(segment.events.iter().cloned());
            }
            _ => joined.push(segment.clone()),
        }
    }
    joined
}

/// Goes through what was written down.
struct Past {
    inventory: Inventory,
    /// As it was when the period began, without workloads.
    start: Inventory,
    workloads: HashMap<String, (WorkloadIndex, usize)>,
    /// The requests of the period; those without an end run to the end.
    trace: Vec<Request>,
    /// When each of them was placed.
    placed: Vec<Option<Moment>>,
    row: Row,
    prices: Policy,
}

impl Past {
    fn new(recorded: &Recorded) -> Self {
        let mut inventory = Inventory::default();
        for group in &recorded.groups {
            inventory.add_group(group.clone());
        }
        for machine in &recorded.machines {
            inventory.add_machine(machine.clone());
        }
        Self {
            start: inventory.clone(),
            inventory,
            workloads: HashMap::new(),
            trace: Vec::new(),
            placed: Vec::new(),
            row: Row::new(RECORDED),
            prices: recorded.policy.clone(),
        }
    }

    fn run(&mut self, recorded: &Recorded, options: Options) {
        let end = options.start.plus(options.length);
        let mut now = options.start;
        let segments = join(&recorded.segments);
        let mut segments = segments.iter().peekable();
        while let Some(segment) = segments.next_if(|one| one.at <= now) {
            self.note(segment, segment.at, now);
        }
        self.begin(now);
        for segment in segments {
            let at = segment.at.min(end);
            self.measure(now, at);
            now = at;
            if segment.at >= end {
                break;
            }
            self.note(segment, now, options.start);
        }
        self.measure(now, end);
        self.finish(end);
    }

    fn note(&mut self, segment: &Segment, at: Moment, start: Moment) {
        if segment.whole {
            self.end_all_but(&segment.events, at, start);
        }
        for event in &segment.events {
            self.apply(event, at, start);
        }
    }

    /// A whole picture: who is not named in it has ended meanwhile.
    fn end_all_but(&mut self, events: &[Event], now: Moment, start: Moment) {
        let named: std::collections::HashSet<&str> = events
            .iter()
            .filter_map(|event| match event {
                Event::Asked { workload, .. } => Some(workload.as_str()),
                _ => None,
            })
            .collect();
        let gone: Vec<String> = self
            .workloads
            .keys()
            .filter(|name| !named.contains(name.as_str()))
            .cloned()
            .collect();
        for workload in gone {
            self.apply(&Event::Done { workload }, now, start);
        }
    }

    /// The period begins: machines are on or off, and all that runs is asked for now.
    fn begin(&mut self, now: Moment) {
        for at in 0..self.start.machines().len() as u32 {
            let index = MachineIndex(at);
            let power = match self.inventory.machine(index).power {
                Power::On | Power::Waking => Power::On,
                _ => Power::Off,
            };
            for inventory in [&mut self.start, &mut self.inventory] {
                let machine = inventory.machine_mut(index);
                (machine.since, machine.watts.suspended) = (now, None);
            }
            let machine = self.start.machine_mut(index);
            (machine.power, machine.ready) = (power, power == Power::On);
            machine.seen = machine.ready;
        }
    }

    fn apply(&mut self, event: &Event, at: Moment, start: Moment) {
        match event {
            Event::Power { machine, power } => {
                if let Some(index) = self.inventory.find(machine) {
                    let one = self.inventory.machine_mut(index);
                    let slept = matches!(power, Power::Stopping)
                        || *power == Power::Off && one.power == Power::On;
                    if at > start && slept && one.power != *power {
                        self.row.cycles += 1;
                    }
                    one.power = *power;
                }
            }
            Event::Asked {
                workload,
                request,
                moving,
                machine,
            } => {
                if !self.workloads.contains_key(workload) {
                    self.ask(workload, *request, *moving, at.max(start));
                }
                if let Some(machine) = machine {
                    self.place(workload, machine, at.max(start));
                }
            }
            Event::Placed { workload, machine } => self.place(workload, machine, at.max(start)),
            Event::Done { workload } => {
                if let Some((index, request)) = self.workloads.remove(workload) {
                    self.inventory.remove(index);
                    let one = &mut self.trace[request];
                    let began = self.placed[request].unwrap_or(at);
                    one.duration = Span(at.max(start).since(began).0.max(1));
                    // Whoever gave up waiting asked for nothing that could be served.
                    if self.placed[request].is_none() {
                        one.duration = Span(1);
                    }
                    if at <= start {
                        one.amount = Amount::ZERO;
                    }
                }
            }
        }
    }

    fn ask(&mut self, name: &str, request: Amount, moving: Moving, at: Moment) {
        let mut workload = Workload::new(name, request);
        (workload.moving, workload.since) = (moving, at);
        let index = self.inventory.add_workload(workload);
        self.workloads
            .insert(name.to_owned(), (index, self.trace.len()));
        self.trace.push(Request {
            arrival: at,
            duration: Span(u64::from(u32::MAX)),
            amount: request,
            moving,
        });
        self.placed.push(None);
    }

    fn place(&mut self, name: &str, machine: &str, at: Moment) {
        let Some((index, request)) = self.workloads.get(name).copied() else {
            return;
        };
        if let Some(machine) = self.inventory.find(machine) {
            if self.placed[request].is_some() {
                self.row.moves += 1;
            }
            self.inventory.place(index, machine);
            self.placed[request].get_or_insert(at);
        }
    }

    fn measure(&mut self, from: Moment, until: Moment) {
        let tariff = &self.prices.tariff;
        self.row.measure(&self.inventory, tariff, from, until);
    }

    fn finish(&mut self, end: Moment) {
        let mut waits = Vec::new();
        for (one, placed) in self.trace.iter().zip(&self.placed) {
            if one.amount.is_zero() {
                continue;
            }
            self.row.requests += 1;
            match placed {
                Some(at) => waits.push(at.since(one.arrival).0 as u32),
                None => {
                    waits.push(end.since(one.arrival).0 as u32);
                    self.row.unserved += 1;
                }
            }
        }
        self.trace.retain(|one| !one.amount.is_zero());
        self.row.count_waits(&mut waits);
    }
}

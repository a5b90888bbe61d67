//! Made-up weeks: what is asked for over the day, in bursts, or in batches.

use super::{
    chance::Chance,
    trace::{Request, Trace},
};
use crate::{
    amount::{Amount, Resource},
    inventory::{Inventory, Moving},
    moment::{Moment, Span},
};
use std::str::FromStr;

/// The shape of a made-up week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// More by day than by night, less on Saturday and Sunday.
    Diurnal,
    /// Little, and at any time suddenly much.
    Bursty,
    /// Long jobs that arrive together in the evening.
    Batch,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Diurnal, Self::Bursty, Self::Batch];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Diurnal => "diurnal",
            Self::Bursty => "bursty",
            Self::Batch => "batch",
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|one| one.name() == text);
        found.ok_or_else(|| format!("`{text}` is not diurnal, bursty or batch"))
    }
}

/// At the height of the week so much of the fleet is asked for.
const PEAK: f64 = 0.7;
/// Requests are made up minute by minute.
const MINUTE: u64 = 60;

/// A week for this fleet. Sizes follow its machines: most requests are small, some take a quarter
/// of a machine.
pub fn generate(
    shape: Shape,
    inventory: &Inventory,
    start: Moment,
    span: Span,
    seed: u64,
) -> Trace {
    let mut chance = Chance::new(seed ^ shape.name().len() as u64);
    let capacity: Amount = inventory.machines().iter().map(|one| one.capacity).sum();
    let mut machine = Amount::ZERO;
    if let Some(one) = inventory.machines().first() {
        machine = one.capacity;
    }
    let mut requests = Vec::new();
    let mut bursts = Bursts::default();
    // What is asked for is steered by what runs: requests end after their mean length.
    let mean = mean_length(shape);
    for minute in 0..span.0 / MINUTE {
        let now = Moment(start.0 + minute * MINUTE);
        let level = match shape {
            Shape::Diurnal => diurnal(now),
            Shape::Bursty => bursts.level(now, &mut chance),
            Shape::Batch => batch(now),
        };
        let wanted = capacity.cpu_millis as f64 * PEAK * level;
        // In equilibrium as much arrives as ends.
        let mut arriving = wanted * MINUTE as f64 / mean * (0.7 + 0.6 * chance.share());
        while arriving > 0.0 {
            let request = one(shape, now, &machine, mean, &mut chance);
            let size = request.amount.cpu_millis as f64;
            if size > arriving && chance.share() > arriving / size {
                break;
            }
            arriving -= size;
            requests.push(request);
        }
    }
    Trace::new(requests)
}

/// How long requests run on average, in seconds.
const fn mean_length(shape: Shape) -> f64 {
    match shape {
        Shape::Diurnal => 7_200.0,
        Shape::Bursty => 1_800.0,
        Shape::Batch => 10_800.0,
    }
}

fn one(shape: Shape, now: Moment, machine: &Amount, mean: f64, chance: &mut Chance) -> Request {
    // A 32nd of a machine, a 16th, an eighth, a quarter.
    let part = [5, 5, 5, 4, 4, 3, 3, 2][chance.below(8) as usize];
    let cpu_millis = (machine.of(Resource::Cpu) >> part).max(1);
    // Some ask for more memory than their share, some for less.
    let memory = (machine.of(Resource::Memory) >> part) as f64 * (0.5 + 0.7 * chance.share());
    let moving = match shape {
        Shape::Batch => Moving::OnCompletion,
        Shape::Diurnal | Shape::Bursty if chance.below(5) == 0 => Moving::OnCompletion,
        Shape::Diurnal | Shape::Bursty => Moving::Free,
    };
    Request {
        arrival: now.plus(Span(chance.below(MINUTE))),
        duration: Span(chance.exponential(mean).clamp(60.0, mean * 6.0) as u64),
        amount: Amount::workload(cpu_millis, (memory as u64) >> 20),
        moving,
    }
}

/// From a quarter at night to all in the afternoon; three fifths of that on Saturday and Sunday.
fn diurnal(now: Moment) -> f64 {
    let hour = (now.0 % 86_400) as f64 / 3600.0;
    let wave = (1.0 - ((hour - 3.0) / 24.0 * std::f64::consts::TAU).cos()) / 2.0;
    let weekend = (now.0 / 86_400 + 3) % 7 >= 5;
    (0.25 + 0.75 * wave) * if weekend { 0.6 } else { 1.0 }
}

/// A little all the time, and most of it between six and eight in the evening.
fn batch(now: Moment) -> f64 {
    let hour = now.0 / 3600 % 24;
    match hour {
        18 | 19 => 1.6,
        20..24 => 0.3,
        _ => 0.05,
    }
}

/// Bursts that come at any time.
#[derive(Debug, Default)]
struct Bursts {
    until: Moment,
    height: f64,
}

impl Bursts {
    fn level(&mut self, now: Moment, chance: &mut Chance) -> f64 {
        const QUIET: f64 = 0.15;
        if now < self.until {
            return QUIET + self.height;
        }
        // Every three hours on average.
        if chance.below(180) == 0 {
            self.until = now.plus(Span::minutes(15 + chance.below(60)));
            self.height = 0.2 + 0.6 * chance.share();
        }
        QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Group, Machine};

    #[test]
    fn the_same_seed_makes_the_same_week() {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("g"));
        for at in 0..20 {
            let capacity = Amount::new(64_000, 256 << 30, 0, 250);
            inventory.add_machine(Machine::new(format!("m{at}"), group, capacity));
        }
        for shape in Shape::ALL {
            let make = |seed| generate(shape, &inventory, Moment(0), Span::hours(48), seed);
            assert_eq!(make(1), make(1));
            assert_ne!(make(1), make(2));
            assert!(make(1).requests().len() > 200, "{shape:?}");
            assert_eq!(shape.name().parse(), Ok(shape));
        }
    }
}

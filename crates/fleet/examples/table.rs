//! Prints the comparison of policies: `table SHAPE MACHINES DAYS`.
#![allow(
    clippy::unwrap_used,
    reason = "an example may stop at a wrong argument"
)]

use fleet::{
    moment::{Moment, Span},
    policy::{Kind, Policy},
    simulate::{Options, Shape, compare, generate, plot, uniform_fleet},
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let shape: Shape = arguments.next().unwrap().parse().unwrap();
    let machines: u32 = arguments.next().unwrap().parse().unwrap();
    let days: u64 = arguments.next().unwrap().parse().unwrap();
    let only = arguments.next();
    let inventory = uniform_fleet(machines);
    let options = Options {
        start: Moment(4 * 86_400),
        length: Span::hours(24 * days),
        ..Options::default()
    };
    let trace = generate(shape, &inventory, options.start, options.length, 1);
    let policies: Vec<Policy> = Kind::ALL
        .into_iter()
        .filter(|kind| only.as_deref().is_none_or(|name| name == kind.name()))
        .map(|kind| {
            let mut p = Policy::of(kind);
            let v = |n: &str| std::env::var(n).ok().map(|x| x.parse::<f64>().unwrap());
            if let Some(x) = v("Q") {
                p.reserve_quantile = x;
            }
            if let Some(x) = v("D") {
                p.debounce = Span(x as u64);
            }
            if let Some(x) = v("M") {
                p.move_watt_hours = x;
            }
            if let Some(x) = v("W") {
                p.wear_watt_hours = x;
            }
            if let Some(x) = v("T") {
                p.tries = x as u32;
            }
            if let Some(x) = v("R") {
                p.recheck = Span(x as u64);
            }
            if let Some(x) = v("L") {
                p.late_chance = x;
            }
            p
        })
        .collect();
    println!("{} requests", trace.requests().len());
    let mut rows = Vec::new();
    for policy in &policies {
        let start = std::time::Instant::now();
        let row = fleet::simulate::simulate(&inventory, &trace, policy, options);
        eprintln!("{} {:?}", row.policy, start.elapsed());
        rows.push(row);
    }
    let start = std::time::Instant::now();
    let mut comparison = compare(&inventory, &trace, &[], options);
    eprintln!("oracle {:?}", start.elapsed());
    rows.append(&mut comparison.rows);
    comparison.rows = rows;
    println!("bound {:.0} kWh", comparison.bound_kwh);
    for row in &comparison.rows {
        let sum = |f: fn(&fleet::simulate::Sample) -> f64| row.samples.iter().map(f).sum::<f64>();
        println!("fill {:.3} ", sum(|s| s.demand_cpu) / sum(|s| s.awake_cpu));
        println!(
            "{:20} {:9.0} kWh {:6.1}% of oracle {:5} cycles {:6} moves {:6} waited mean {:5.0}s p99 {} longest {} unserved {} lost {} boot {}",
            row.policy,
            row.energy_kwh,
            comparison.of_oracle(row) * 100.0,
            row.cycles,
            row.moves,
            row.waited,
            row.mean_wait_seconds,
            row.p99_wait,
            row.longest_wait,
            row.unserved,
            row.work_lost,
            row.longest_boot
        );
    }
    std::fs::write("/tmp/fleet-plot.svg", plot(&comparison)).unwrap();
}

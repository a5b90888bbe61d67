//! `atoll fleet simulate`: what each policy would need on the same fleet for the same requests.

use crate::style::{self, Table};
use anyhow::Context;
use fleet::{
    inventory::Inventory,
    moment::{Moment, Span},
    policy::{Kind, Policy},
    simulate::{Comparison, Options, Row, Shape, Trace, compare, generate, plot, uniform_fleet},
};
use std::{fmt, path::PathBuf};

const EXAMPLES: &str = "\
Examples:
  atoll fleet simulate --machines 1000 --generate diurnal
  atoll fleet simulate --inventory fleet.toml --trace requests.csv --plot week.svg
  atoll fleet simulate --machines 100 --generate bursty --policy atoll --policy karpenter --json

A trace has lines of arrival_seconds,duration_seconds,cpu_millis,memory_mebibytes,moving, where
moving is free, on_completion, local_state or never. The policies of others are models of their
published defaults. `oracle` knows the future and moves nothing; nothing at all needs less than
the bound, which also moves everything at any moment and boots in no time.";

/// Simulate a fleet under several policies, side by side
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The fleet: a configuration, of which addresses and secrets are not used
    #[arg(long, value_name = "FILE", required_unless_present = "machines")]
    inventory: Option<PathBuf>,

    /// Or so many equal machines with 64 processors and 256 GiB
    #[arg(long, value_name = "COUNT", conflicts_with = "inventory",
          value_parser = clap::value_parser!(u32).range(1..=20_000))]
    machines: Option<u32>,

    /// The requests, as comma-separated values
    #[arg(long, value_name = "FILE", required_unless_present = "generate")]
    trace: Option<PathBuf>,

    /// Or a made-up week: diurnal, bursty or batch
    #[arg(long, value_name = "SHAPE", conflicts_with = "trace")]
    generate: Option<Shape>,

    /// How many days to make up
    #[arg(long, value_name = "DAYS", default_value_t = 7, conflicts_with = "trace",
          value_parser = clap::value_parser!(u64).range(1..=366))]
    days: u64,

    /// A policy to simulate; all of them if left out
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<Kind>,

    /// What chance begins with: the same seed gives the same week and the same boots
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Draw load, capacity and power over time into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A Monday, as weeks begin with one: the fifth of January 1970.
const MONDAY: Moment = Moment(4 * 86_400);

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let compared = tokio::task::spawn_blocking(move || {
        let comparison = simulate(&arguments)?;
        anyhow::Ok((arguments, comparison))
    });
    let (arguments, comparison) = compared.await??;
    if let Some(path) = &arguments.plot {
        std::fs::write(path, plot(&comparison))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if arguments.json {
        style::print_json(&comparison)?;
    } else {
        print(&comparison)?;
    }
    Ok(0)
}

fn simulate(arguments: &Arguments) -> anyhow::Result<Comparison> {
    let (mut inventory, policy) = fleet(arguments)?;
    let mut options = Options {
        start: MONDAY,
        length: Span::hours(24 * arguments.days),
        seed: arguments.seed,
        ..Options::default()
    };
    let trace = match (&arguments.trace, arguments.generate) {
        (Some(path), _) => {
            let name = path.display();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            let trace = Trace::parse(&text).with_context(|| format!("cannot use {name}"))?;
            options.start = trace.start();
            options.length = Span(trace.end().since(trace.start()).0 + 3600);
            trace
        }
        (None, shape) => generate(
            shape.unwrap_or(Shape::Diurnal),
            &inventory,
            options.start,
            options.length,
            options.seed,
        ),
    };
    // Every policy begins with everything on.
    for at in 0..inventory.machines().len() as u32 {
        let machine = inventory.machine_mut(fleet::inventory::MachineIndex(at));
        machine.power = fleet::inventory::Power::On;
        (machine.ready, machine.seen) = (true, true);
    }
    let kinds = match arguments.policies.as_slice() {
        [] => Kind::ALL.to_vec(),
        some => some.to_vec(),
    };
    let policies: Vec<Policy> = kinds
        .into_iter()
        .map(|kind| Policy {
            kind,
            ..policy.clone()
        })
        .collect();
    Ok(compare(&inventory, &trace, &policies, options))
}

fn fleet(arguments: &Arguments) -> anyhow::Result<(Inventory, Policy)> {
    match (&arguments.inventory, arguments.machines) {
        (Some(path), _) => {
            let file = super::file::read(path)?;
            Ok((file.inventory(Moment(0)), file.policy))
        }
        (None, count) => Ok((uniform_fleet(count.unwrap_or(100)), Policy::default())),
    }
}

/// Prints one row for each policy.
pub(super) fn print(comparison: &Comparison) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "POLICY",
        "ENERGY",
        "OF ORACLE",
        "COST",
        "CO2E",
        "CYCLES",
        "MOVES",
        "WAITED",
        "MEAN WAIT",
        "LONGEST",
        "UNSERVED",
    ]);
    for row in &comparison.rows {
        table.row(cells(comparison, row));
    }
    table.print()?;
    let requests = comparison.rows.first().map_or(0, |row| row.requests);
    style::note(&format!(
        "{requests} requests; nothing needs less than {:.0} kWh",
        comparison.bound_kwh
    ));
    Ok(())
}

fn cells(comparison: &Comparison, row: &Row) -> Vec<String> {
    let share = row.waited as f64 / row.requests.max(1) as f64;
    let text = |value: &dyn fmt::Display| value.to_string();
    vec![
        row.policy.clone(),
        format!("{:.0} kWh", row.energy_kwh),
        format!("{:.1} %", comparison.of_oracle(row) * 100.0),
        format!("{:.2}", row.cost),
        format!("{:.0} kg", row.carbon_kg),
        text(&row.cycles),
        text(&row.moves),
        format!("{:.1} %", share * 100.0),
        format!("{:.0} s", row.mean_wait_seconds),
        text(&row.longest_wait),
        text(&row.unserved),
    ]
}

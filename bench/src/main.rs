//! Measures Atoll side by side with its peers, in one run, and prints one table.
//!
//! Every row is one scenario: what was run, how often, the median and the 99th percentile, and the
//! peer's figures from the same run. The same is written to `bench/out/SCENARIO.json`. A row whose
//! target is missed is marked; the exit code tells whether any was.
//!
//! Start reading at [`main`], then `scenarios`.

#![forbid(unsafe_code)]

mod api;
mod host;
mod machines;
mod monitor;
mod program;
mod report;
mod scenarios;

use clap::Parser;
use std::path::PathBuf;

/// Measures Atoll side by side with its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The program to measure.
    #[arg(long, default_value = "target/release/atoll")]
    atoll: PathBuf,
    /// A data directory that may be used; its `base` template is built if it has none.
    #[arg(long, default_value = "target/atoll-bench")]
    data_dir: PathBuf,
    /// Where the results go, one JSON file a scenario.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    /// Samples of the scenarios that are about one sandbox.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Only the scenarios whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Flags passed on to `atoll up`.
    #[arg(last = true)]
    up: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)?;
    let wanted = |name: &str| {
        arguments
            .only
            .as_deref()
            .is_none_or(|only| name.contains(only))
    };
    let mut report = report::Report::new(&arguments.out);
    if wanted("start-up") {
        report.add(
            scenarios::start_up(&arguments.atoll, &arguments.data_dir, &arguments.up).await?,
        )?;
    }
    let atoll = program::Atoll::start(&arguments.atoll, &arguments.data_dir, &arguments.up).await?;
    atoll.wait_for_base().await?;
    if wanted("idle-memory") {
        report.add(scenarios::idle_memory(&atoll).await?)?;
    }
    if wanted("create-to-first-result") {
        report.add(scenarios::create_to_first_result(&atoll, arguments.samples).await?)?;
    }
    if wanted("hundred-at-once") {
        report.add(scenarios::hundred_at_once(&atoll).await?)?;
    }
    if wanted("idle-sandbox") {
        report.add(scenarios::idle_sandbox(&atoll).await?)?;
    }
    atoll.stop().await?;
    let machines = ["machine-restore", "machine-idle", "machine-fork"];
    if machines.iter().any(|name| wanted(name)) {
        measure_machines(&arguments, &wanted, &mut report).await?;
    }
    report.print();
    anyhow::ensure!(
        report.all_met(),
        "a target was missed: see the rows marked MISSED"
    );
    Ok(())
}

/// The scenarios of microVMs, with a data directory of their own.
async fn measure_machines(
    arguments: &Arguments,
    wanted: &impl Fn(&str) -> bool,
    report: &mut report::Report,
) -> anyhow::Result<()> {
    let data_dir = machines::data_dir(&arguments.data_dir)?;
    if wanted("machine-restore") {
        report.add(machines::restore(&arguments.atoll, &data_dir, &arguments.up).await?)?;
    }
    let atoll =
        program::Atoll::start_with("qemu", &arguments.atoll, &data_dir, &arguments.up).await?;
    atoll.wait_for_base().await?;
    if wanted("machine-idle") {
        report.add(machines::idle(&atoll).await?)?;
    }
    if wanted("machine-fork") {
        report.add(machines::fork(&atoll).await?)?;
    }
    atoll.stop().await
}

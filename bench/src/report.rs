//! Samples, percentiles, the table and the files.

use crate::host;
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Measurements of one thing, in one unit.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Samples {
    pub(crate) label: String,
    pub(crate) unit: &'static str,
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Samples {
    /// Summarises; percentiles are the nearest-rank ones.
    pub(crate) fn new(label: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = (share * values.len() as f64).ceil() as usize;
            values
                .get(at.saturating_sub(1))
                .copied()
                .unwrap_or(f64::NAN)
        };
        Self {
            label: label.into(),
            unit,
            count: values.len(),
            p50: rank(0.50),
            p99: rank(0.99),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// A target and whether it was met.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) text: String,
    pub(crate) met: bool,
}

/// One scenario's outcome.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: &'static str,
    pub(crate) command: String,
    pub(crate) ours: Samples,
    /// Where the time goes, and other figures of ours.
    pub(crate) details: Vec<Samples>,
    pub(crate) peers: Vec<Samples>,
    pub(crate) targets: Vec<Target>,
}

#[derive(Serialize)]
struct File<'a> {
    machine: host::Machine,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// All outcomes of a run.
pub(crate) struct Report {
    folder: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            outcomes: Vec::new(),
        }
    }

    /// Keeps an outcome and writes its file.
    pub(crate) fn add(&mut self, outcome: Outcome) -> Result<()> {
        let path = self.folder.join(format!("{}.json", outcome.scenario));
        let file = File {
            machine: host::Machine::here(),
            outcome: &outcome,
        };
        std::fs::write(path, serde_json::to_vec_pretty(&file)?)?;
        self.outcomes.push(outcome);
        Ok(())
    }

    /// Prints the table to stdout.
    pub(crate) fn print(&self) {
        println!("{}", host::Machine::here());
        println!(
            "{:<26} {:<44} {:>6} {:>10} {:>10} {:>10}",
            "scenario", "what", "n", "p50", "p99", "max"
        );
        for outcome in &self.outcomes {
            let rows = std::iter::once(&outcome.ours)
                .chain(&outcome.details)
                .chain(&outcome.peers);
            for (at, row) in rows.enumerate() {
                let name = if at == 0 { outcome.scenario } else { "" };
                println!(
                    "{name:<26} {:<44} {:>6} {:>10} {:>10} {:>10}",
                    row.label,
                    row.count,
                    format!("{:.2} {}", row.p50, row.unit),
                    format!("{:.2} {}", row.p99, row.unit),
                    format!("{:.2} {}", row.max, row.unit),
                );
            }
            for target in &outcome.targets {
                let mark = if target.met { "met" } else { "MISSED" };
                println!("{:<26}   target: {} — {mark}", "", target.text);
            }
        }
    }

    /// Whether every target was met.
    pub(crate) fn all_met(&self) -> bool {
        self.outcomes
            .iter()
            .flat_map(|outcome| &outcome.targets)
            .all(|target| target.met)
    }
}

//! The fleet's configuration: one file, checked as a whole before anything is done with it.

mod check;
mod demand;
mod file;
mod place;
mod secret;

pub(crate) use check::parse_mac;
pub use demand::DemandEntry;
pub use file::{Capacity, File, GroupEntry, MachineEntry, Memory, NodeEntry, PowerEntry, Traits};
pub use secret::SecretSource;

use crate::{
    amount::Amount,
    boot::BootTimes,
    externalgrpc::GroupOptions,
    inventory::{Group, Inventory, Machine, Power, Watts},
    moment::{Moment, Span},
};
use api::{ErrorCode, Problem};
use std::{collections::BTreeMap, fmt};

/// The largest file, in bytes.
const LARGEST: usize = 64 << 20;

/// One mistake in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub cause: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "line {}: {}; {}",
            self.line, self.cause, self.remedy
        )
    }
}

/// All mistakes that were found, the first in the file first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the fleet's configuration has {} {}", mistakes.len(), if mistakes.len() == 1 { "mistake" } else { "mistakes" })]
pub struct ConfigError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

impl ConfigError {
    /// As users see it: the first few mistakes in full.
    pub fn problem(&self, file: &str) -> Problem {
        const SHOWN: usize = 5;
        let shown = self.mistakes.iter().take(SHOWN);
        let mut causes: Vec<String> = shown
            .map(|one| format!("{file}:{}: {}", one.line, one.cause))
            .collect();
        if self.mistakes.len() > SHOWN {
            causes.push(format!("and {} more", self.mistakes.len() - SHOWN));
        }
        let remedy = self.mistakes.first().map(|one| one.remedy.clone());
        Problem::new(
            ErrorCode::InvalidArgument,
            causes.join("\n"),
            remedy.unwrap_or_default(),
        )
    }
}

/// Reads a configuration and checks all of it.
///
/// # Errors
/// With every mistake that was found, its line and what to write instead.
pub fn parse(text: &str) -> Result<File, ConfigError> {
    if text.len() > LARGEST {
        return Err(ConfigError {
            mistakes: vec![Mistake {
                line: 1,
                cause: format!("the file is larger than {} MiB", LARGEST >> 20),
                remedy: "split the fleet".to_owned(),
            }],
        });
    }
    let file: File = toml::from_str(text).map_err(|error| ConfigError {
        mistakes: vec![misread(text, &error)],
    })?;
    let mistakes = check::check(text, &file);
    if mistakes.is_empty() {
        Ok(file)
    } else {
        Err(ConfigError { mistakes })
    }
}

/// What the parser says, in its place. It is not asked to print the file's own lines: a secret may
/// have been written there.
fn misread(text: &str, error: &toml::de::Error) -> Mistake {
    let start = error.span().map_or(0, |span| span.start);
    let cause = error.message().lines().collect::<Vec<_>>().join(" ");
    let remedy = if cause.contains("unknown field") {
        "correct the name, or remove it"
    } else if cause.contains("missing field") {
        "add it"
    } else if cause.contains("invalid type") || cause.contains("secret") {
        "write it in the form that is expected"
    } else {
        "see what `atoll fleet schema` prints"
    };
    Mistake {
        line: place::line_of(text, start),
        cause,
        remedy: remedy.to_owned(),
    }
}

/// The JSON schema of the file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
}

impl File {
    /// The inventory with every machine switched off, as nothing is known about them yet.
    pub fn inventory(&self, now: Moment) -> Inventory {
        let mut inventory = Inventory::default();
        let mut groups = std::collections::HashMap::new();
        for entry in &self.groups {
            let group = Group {
                name: entry.name.clone(),
                min: entry.min,
                max: entry.max.unwrap_or(u32::MAX),
                atomic: entry.atomic,
            };
            groups.insert(entry.name.as_str(), (inventory.add_group(group), entry));
        }
        for entry in &self.machines {
            // Only what was checked comes here: every machine's group exists.
            let Some((group, common)) = groups.get(entry.group.as_str()) else {
                continue;
            };
            let all = entry.traits().over(common.traits());
            let capacity = all.capacity.map_or(Amount::ZERO, |one| one.amount());
            let mut machine = Machine::new(entry.name.clone(), *group, capacity);
            machine.role = entry.role;
            machine.labels = all.labels;
            machine.taints = all.taints;
            machine.watts = all.watts.unwrap_or_else(|| Watts::guess(&capacity));
            machine.boot = BootTimes::expecting(all.boot.unwrap_or(Span(300)));
            machine.resume = BootTimes::expecting(all.resume.unwrap_or(Span(20)));
            machine.shutdown = all.shutdown.unwrap_or(Span(60));
            machine.since = now;
            (machine.power, machine.seen, machine.ready) = (Power::Off, false, false);
            inventory.add_machine(machine);
        }
        inventory
    }

    /// How groups are scaled by Cluster Autoscaler, by their names, where that differs from its own
    /// options.
    pub fn options(&self) -> BTreeMap<String, GroupOptions> {
        let groups = self.groups.iter();
        groups
            .filter(|group| group.options != GroupOptions::default())
            .map(|group| (group.name.clone(), group.options))
            .collect()
    }
}

impl MachineEntry {
    /// What its node's `spec.providerID` is.
    pub fn provider_id(&self) -> String {
        let given = self.provider_id.clone();
        given.unwrap_or_else(|| format!("atoll://{}", self.name))
    }
}

impl Traits {
    /// These, with what they leave out from those of the group. Labels and taints add up.
    fn over(self, common: Self) -> Self {
        let mut labels = common.labels;
        labels.extend(self.labels);
        let mut taints = common.taints;
        taints.extend(self.taints);
        Self {
            capacity: self.capacity.or(common.capacity),
            labels,
            taints,
            watts: self.watts.or(common.watts),
            boot: self.boot.or(common.boot),
            resume: self.resume.or(common.resume),
            shutdown: self.shutdown.or(common.shutdown),
        }
    }
}

impl Capacity {
    /// As the planner counts.
    pub fn amount(&self) -> Amount {
        let millis = (self.cpu * 1000.0).round() as u64;
        Amount::new(millis, self.memory.0.0, self.gpus, self.places)
    }
}

#[cfg(test)]
mod tests;

//! `atoll fleet status`: what every machine is, and what is done with it.

use super::ask::{Connection, now};
use crate::style::{self, Table};
use fleet::{
    planner::Action,
    power::transition::Wanted,
    serve::{MachineView, Standing, Status},
};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  atoll fleet status
  atoll fleet status --json | jq '.machines[] | select(.power == \"on\") | .name'
  atoll fleet explain m7            why one of them is as it is";

/// Show machines, what is decided about them, and what is under way
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Serialize)]
struct All {
    #[serde(flatten)]
    status: Status,
    /// Each machine; `machines` itself counts them by their power.
    #[serde(rename = "each")]
    machines: Vec<MachineView>,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let asker = arguments.connection.open()?;
    let status: Status = asker.get(&["status"], &[]).await?;
    let machines: Vec<MachineView> = match status.standing {
        Standing::Acting if status.at.is_some() => asker.get(&["machines"], &[]).await?,
        _ => Vec::new(),
    };
    if arguments.json {
        style::print_json(&All { status, machines })?;
        return Ok(0);
    }
    let now = now();
    let mut table = Table::new(&[
        "MACHINE",
        "GROUP",
        "POWER",
        "FOR",
        "WORKLOADS",
        "CPU",
        "WATTS",
        "DECISION",
        "REASON",
    ]);
    for one in machines {
        let decision = match one.action {
            Action::Keep => "-".to_owned(),
            action => action.to_string(),
        };
        table.row([
            one.name,
            one.group,
            one.power.to_string(),
            now.since(one.since).to_string(),
            one.workloads.to_string(),
            format!(
                "{}/{}",
                one.used.cpu_millis as f64 / 1000.0,
                one.capacity.cpu_millis / 1000
            ),
            format!("{:.0}", one.watts),
            decision,
            one.reason,
        ]);
    }
    table.print()?;
    summarise(&status);
    Ok(0)
}

/// What is not about one machine, in a few lines.
fn summarise(status: &Status) {
    let mut first = match status.standing {
        Standing::Acting if status.dry_run => "a dry run: nothing is switched".to_owned(),
        Standing::Acting => format!("acting under the policy {}", status.policy),
        Standing::StandingBy => "standing by, as another instance acts".to_owned(),
        Standing::Starting => "has not looked around yet".to_owned(),
    };
    if status.at.is_some() {
        first.push_str(&format!(
            "; {:.0} W; {} workloads run, {} wait",
            status.watts, status.running, status.waiting
        ));
    }
    style::note(&first);
    for one in &status.under_way {
        let wanted = match one.wanted {
            Wanted::On => "on",
            Wanted::Off => "off",
            Wanted::Suspended => "suspended",
        };
        let error = one.last_error.as_ref();
        let error = error.map_or_else(String::new, |error| format!("; {error}"));
        style::note(&style::harmless(&format!(
            "{}: is being switched {wanted} for {}, {} attempts{error}",
            one.machine,
            now().since(one.since),
            one.attempts
        )));
    }
    for trouble in &status.trouble {
        style::note(&style::harmless(&format!("trouble: {trouble}")));
    }
}

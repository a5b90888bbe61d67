//! `atoll fleet explain`: why a machine is as it is.

use super::ask::{Connection, When, now, show};
use crate::style;
use fleet::serve::Explanation;

const EXAMPLES: &str = "\
Examples:
  atoll fleet explain m7                              why it is as it is now
  atoll fleet explain m7 --at 2026-05-01T03:00:00Z    why it was as it was then
  atoll fleet explain m7 --at 2h                      two hours ago

Decisions are kept for 30 days. The reasons carry the names that Kubernetes' Cluster Autoscaler
uses, where it has one.";

/// Say why a machine is on or off, what blocks it, and what would change that
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The machine's name
    #[arg(value_name = "NODE")]
    machine: String,

    /// When: a time such as 2026-05-01T12:00:00Z, or 2h for two hours ago; now if left out
    #[arg(long, value_name = "TIME")]
    at: Option<When>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let asker = arguments.connection.open()?;
    let at = arguments.at.map(|when| ("at", when.0.0.to_string()));
    let query: Vec<(&str, String)> = at.into_iter().collect();
    let path = ["machines", arguments.machine.as_str(), "explain"];
    let said: Explanation = asker.get(&path, &query).await?;
    if arguments.json {
        style::print_json(&said)?;
    } else {
        style::to_stdout(&words(&said))?;
    }
    Ok(0)
}

/// The explanation as people read it.
fn words(said: &Explanation) -> String {
    let mut lines = Vec::new();
    let power = said
        .power
        .map_or_else(String::new, |one| format!(" is {one}"));
    let then = match said.power {
        Some(_) => String::new(),
        None => format!(" at {}", show(said.at)),
    };
    lines.push(format!("{}{power}{then}", said.machine));
    let would = if said.dry_run {
        " (a dry run: it is not done)"
    } else {
        ""
    };
    lines.push(format!("  decision  {}{would}", said.action));
    lines.push(format!("  reason    {}: {}", said.reason, said.because));
    if let Some(would) = &said.would {
        lines.push(format!("  otherwise {would}"));
    }
    let end = if said.power.is_some() { now() } else { said.at };
    lines.push(format!(
        "  since     {} ({})",
        show(said.since),
        end.since(said.since)
    ));
    if let Some(one) = &said.under_way {
        let error = one.last_error.as_deref().unwrap_or("no error");
        lines.push(format!(
            "  under way wanted {:?} for {}, {} attempts, {error}",
            one.wanted,
            now().since(one.since),
            one.attempts
        ));
    }
    if let Some(trouble) = &said.trouble {
        lines.push(format!("  trouble   {trouble}"));
    }
    let lines: Vec<String> = lines.iter().map(|line| style::harmless(line)).collect();
    format!("{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet::{inventory::Power, moment::Moment, planner::Action};

    #[test]
    fn an_explanation_is_read_from_top_to_bottom() {
        let at = Moment(1_777_636_800);
        let mut said = Explanation {
            machine: "m7".to_owned(),
            at,
            power: None,
            action: Action::Keep,
            reason: "BlockedByPod".to_owned(),
            because: "workload db (2 cpu) must not be moved".to_owned(),
            would: Some("would sleep in 5 min if workload db might be moved".to_owned()),
            since: at.minus(fleet::moment::Span::hours(2)),
            under_way: None,
            trouble: None,
            dry_run: false,
        };
        assert_eq!(
            words(&said),
            "m7 at 2026-05-01T12:00:00Z\n  decision  keep\n  reason    BlockedByPod: workload db (2 cpu) must not be \
             moved\n  otherwise would sleep in 5 min if workload db might be moved\n  since     \
             2026-05-01T10:00:00Z (2 h)\n"
        );
        said.power = Some(Power::On);
        said.trouble = Some("no answer within 10 s".to_owned());
        assert!(words(&said).starts_with("m7 is on\n"));
        assert!(words(&said).ends_with("  trouble   no answer within 10 s\n"));
    }
}

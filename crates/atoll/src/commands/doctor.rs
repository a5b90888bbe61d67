//! `atoll doctor`: what this machine can do.

use crate::{
    data_dir, doctor, failure,
    style::{self, Paint, Stream},
};
use api::finding::{Finding, FindingStatus};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  sudo atoll doctor
  atoll doctor --json | jq -r '.findings[] | select(.status == \"missing\") | .remedy'

Exit status: 0 if sandboxes can run here, else 1.";

/// Show what this machine can do, and what to do about what it cannot
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Data directory that `atoll up` would use
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let data_dir = arguments.data_dir.unwrap_or_else(data_dir::default_path);
    let findings = doctor::examine(&data_dir).await;
    let able = doctor::can_run(&findings);
    if arguments.json {
        style::print_json(&serde_json::json!({ "sandboxes": able, "findings": findings }))?;
    } else {
        style::to_stdout(&render(&findings, able, Paint::of(Stream::Output)))?;
    }
    Ok(if able { 0 } else { failure::FAILED })
}

fn render(findings: &[Finding], able: bool, paint: Paint) -> String {
    let mut text = String::new();
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    for finding in findings {
        let word = match finding.status {
            FindingStatus::Ok => paint.good("ok     "),
            FindingStatus::Warning => paint.warning("warning"),
            FindingStatus::Missing => paint.error("MISSING"),
        };
        text.push_str(&format!(
            "{word}  {:width$}  {}",
            finding.name, finding.detail
        ));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("; to do: {}", finding.remedy));
        }
        text.push('\n');
    }
    text.push_str(if able {
        "sandboxes run here, with the driver `container`\n"
    } else {
        "sandboxes cannot run here until what is MISSING is there\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each_and_no_need_of_colour() {
        let findings = [
            Finding::ok("root", "running as root"),
            Finding::missing("nft", "no", "install it"),
        ];
        assert_eq!(
            render(&findings, false, Paint::plain()),
            "ok       root  running as root\n\
             MISSING  nft   no; to do: install it\n\
             sandboxes cannot run here until what is MISSING is there\n"
        );
    }
}

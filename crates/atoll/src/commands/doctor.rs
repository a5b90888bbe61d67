//! `atoll doctor`: what this machine can do.

use crate::{
    data_dir,
    doctor::{Check, Verdict, checks, machine::Machine},
    failure,
    style::{self, Paint, Stream},
};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  sudo atoll doctor
  atoll doctor --json | jq -r '.checks[] | select(.verdict == \"fail\") | .remedy'

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
pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<u8> {
    let data_dir = arguments
        .data_dir
        .clone()
        .unwrap_or_else(data_dir::default_path);
    let checks = checks::judge(&Machine::inspect(&data_dir));
    let able = checks::can_run(&checks);
    if arguments.json {
        style::print_json(&serde_json::json!({ "sandboxes": able, "checks": checks }))?;
    } else {
        style::to_stdout(&render(&checks, able, Paint::of(Stream::Output)))?;
    }
    Ok(if able { 0 } else { failure::FAILED })
}

fn render(checks: &[Check], able: bool, paint: Paint) -> String {
    let mut text = String::new();
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    for check in checks {
        let word = match check.verdict {
            Verdict::Ok => paint.good("ok  "),
            Verdict::Note => "note".to_owned(),
            Verdict::Warn => paint.warning("warn"),
            Verdict::Fail => paint.error("FAIL"),
        };
        text.push_str(&format!("{word}  {:width$}  {}", check.name, check.found));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("; to do: {remedy}"));
        }
        text.push('\n');
    }
    text.push_str(if able {
        "sandboxes run here with the driver `container`\n"
    } else {
        "sandboxes cannot run here until every FAIL is settled\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each_and_no_need_of_colour() {
        let check = |name, verdict, remedy: Option<&str>| Check {
            name,
            verdict,
            found: "something".into(),
            remedy: remedy.map(String::from),
        };
        let checks = [
            check("user", Verdict::Ok, None),
            check("kernel", Verdict::Fail, Some("update it")),
        ];
        assert_eq!(
            render(&checks, false, Paint::plain()),
            "ok    user    something\n\
             FAIL  kernel  something; to do: update it\n\
             sandboxes cannot run here until every FAIL is settled\n"
        );
    }
}

//! `atoll doctor`: what this machine can do.

use crate::{
    data_dir,
    doctor::{self, Change},
    failure,
    style::{self, Paint, Stream},
    up::driver,
};
use ::driver::kvm::Kvm;
use api::finding::{Finding, FindingStatus};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  sudo atoll doctor
  sudo atoll doctor --fix --dry-run
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

    /// Change what a command can change, and say what was done: KSM, swap, kernel parameters, the
    /// unit's limit of open files
    #[arg(long)]
    fix: bool,

    /// With --fix: only show the commands
    #[arg(long, requires = "fix")]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let data_dir = arguments.data_dir.unwrap_or_else(data_dir::default_path);
    let mut report = doctor::examine(&data_dir).await;
    let mut changes = Vec::new();
    if arguments.fix {
        let advice = std::mem::take(&mut report.advice);
        let dry = arguments.dry_run;
        let fix = move || (doctor::fix(&advice, Path::new("/"), dry), advice);
        let (done, advice) = tokio::task::spawn_blocking(fix).await?;
        changes = done;
        report = match dry {
            true => doctor::Report { advice, ..report },
            false => doctor::examine(&data_dir).await,
        };
    }
    let able = report.able();
    let chosen = tokio::task::spawn_blocking(|| driver::choose(driver::Choice::Auto)).await?;
    if arguments.json {
        let findings: Vec<_> = report.findings().collect();
        let mut answer = serde_json::json!({
            "sandboxes": able,
            "driver": chosen.kind,
            "kvm": describe(&report.kvm),
            "mesh": report.mesh,
            "findings": findings,
        });
        if arguments.fix {
            answer["fixes"] = serde_json::json!(changes);
        }
        style::print_json(&answer)?;
    } else {
        let paint = Paint::of(Stream::Output);
        let mut text = list(&changes, arguments.dry_run, paint);
        text.push_str(&render(
            report.findings(),
            able.then_some(&*chosen.reason),
            paint,
        ));
        style::to_stdout(&text)?;
    }
    Ok(if able { 0 } else { failure::FAILED })
}

/// For programs: `usable`, `unusable` or `absent`, and why.
fn describe(kvm: &Kvm) -> serde_json::Value {
    match kvm {
        Kvm::Usable => serde_json::json!({ "state": "usable" }),
        Kvm::Unusable(reason) => serde_json::json!({ "state": "unusable", "reason": reason }),
        Kvm::Absent => {
            serde_json::json!({ "state": "absent", "reason": "there is no /dev/kvm" })
        }
    }
}

/// What was changed, or would be, a command a line.
fn list(changes: &[Change], dry: bool, paint: Paint) -> String {
    let mut text = String::new();
    for change in changes {
        let word = match (&change.error, dry) {
            (Some(_), _) => paint.error("failed "),
            (None, true) => paint.warning("would  "),
            (None, false) => paint.good("fixed  "),
        };
        for command in &change.commands {
            text.push_str(&format!("{word}  {}: {command}\n", change.name));
        }
        if let Some(error) = &change.error {
            text.push_str(&format!("         {error}\n"));
        }
    }
    if changes.iter().any(|change| change.done) {
        text.push_str("         kernel parameters and swap are as they were after the next boot\n");
    }
    text
}

/// What was found, and by which driver sandboxes run if they can.
fn render<'a>(
    findings: impl Iterator<Item = &'a Finding> + Clone,
    driver: Option<&str>,
    paint: Paint,
) -> String {
    let mut text = String::new();
    let width = findings
        .clone()
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
    match driver {
        Some(reason) => text.push_str(&format!("sandboxes run here: {reason}\n")),
        None => text.push_str("sandboxes cannot run here until what is MISSING is there\n"),
    }
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
            render(findings.iter(), None, Paint::plain()),
            "ok       root  running as root\n\
             MISSING  nft   no; to do: install it\n\
             sandboxes cannot run here until what is MISSING is there\n"
        );
        let reason = "driver container: the kernel is shared";
        let text = render(findings[..1].iter(), Some(reason), Paint::plain());
        assert!(text.ends_with("sandboxes run here: driver container: the kernel is shared\n"));
    }

    #[test]
    fn changes_are_told_command_by_command() {
        let change = |error: Option<&str>| Change {
            name: "KSM".into(),
            commands: vec!["one".into(), "two".into()],
            done: error.is_none(),
            error: error.map(String::from),
        };
        assert_eq!(
            list(&[change(None)], false, Paint::plain()),
            "fixed    KSM: one\nfixed    KSM: two\n         \
             kernel parameters and swap are as they were after the next boot\n"
        );
        assert_eq!(
            list(&[change(Some("no"))], false, Paint::plain()),
            "failed   KSM: one\nfailed   KSM: two\n         no\n"
        );
    }
}

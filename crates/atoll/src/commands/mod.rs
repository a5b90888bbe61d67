//! The commands: one file each, with its options, its help and what it does.

mod completions;
mod copy;
mod create;
mod doctor;
mod exec;
mod fork;
mod gc;
mod key;
mod list;
mod logs;
mod manual;
mod node;
mod pause;
mod remove;
mod resume;
mod run;
mod snapshot;
mod template;
mod version;

use crate::{fleet, mesh, up};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  atoll doctor                              what this machine can do
  sudo atoll up                             start Atoll on this machine
  atoll run base -- python3 -c 'print(1)'   run a command in a new sandbox
  atoll run base -t                         a shell in a new sandbox
  atoll template build web docker://nginx   make a template from an image
  atoll pause i0ab && atoll resume i0ab     keep a sandbox for later
  atoll fork i0ab --count 5                 five copies of a sandbox that runs

Exit status:
  0    done
  1    it failed; standard error says why and what to do
  2    the command line is not understood
  125  `run` and `exec`: Atoll failed; any other status is the command's own
  130  ended by Ctrl-C";

/// Runs untrusted code in sandboxes that start in milliseconds
#[derive(Debug, Parser)]
#[command(
    name = "atoll",
    version,
    about,
    after_help = EXAMPLES,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(Box<up::Arguments>),
    Run(run::Arguments),
    Create(create::Arguments),
    #[command(visible_alias = "list")]
    Ls(list::Arguments),
    Exec(exec::Arguments),
    Cp(copy::Arguments),
    Logs(logs::Arguments),
    #[command(visible_alias = "kill")]
    Rm(remove::Arguments),
    Pause(pause::Arguments),
    Resume(resume::Arguments),
    Fork(fork::Arguments),
    Snapshot(snapshot::Arguments),
    Template(template::Arguments),
    Doctor(doctor::Arguments),
    Key(key::Arguments),
    Node(node::Arguments),
    Fleet(fleet::Arguments),
    Mesh(mesh::Arguments),
    Gc(gc::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(manual::Arguments),
    Version(version::Arguments),
}

impl Command {
    /// Whether a failure of the command must be told apart from one of the command inside.
    pub(crate) fn runs_another(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Exec(_))
    }

    /// Does it; returns the exit status.
    ///
    /// # Errors
    /// Whatever went wrong, for [`crate::failure::report`].
    pub(crate) async fn execute(self) -> anyhow::Result<u8> {
        match self {
            Self::Up(arguments) => up::execute(*arguments).await,
            Self::Run(arguments) => run::execute(arguments).await,
            Self::Create(arguments) => create::execute(arguments).await,
            Self::Ls(arguments) => list::execute(arguments).await,
            Self::Exec(arguments) => exec::execute(arguments).await,
            Self::Cp(arguments) => copy::execute(arguments).await,
            Self::Logs(arguments) => logs::execute(arguments).await,
            Self::Rm(arguments) => remove::execute(arguments).await,
            Self::Pause(arguments) => pause::execute(arguments).await,
            Self::Resume(arguments) => resume::execute(arguments).await,
            Self::Fork(arguments) => fork::execute(arguments).await,
            Self::Snapshot(arguments) => snapshot::execute(arguments).await,
            Self::Gc(arguments) => gc::execute(arguments).await,
            Self::Template(arguments) => template::execute(arguments).await,
            Self::Doctor(arguments) => doctor::execute(arguments).await,
            Self::Key(arguments) => key::execute(arguments).await,
            Self::Node(arguments) => node::execute(arguments).await,
            Self::Fleet(arguments) => fleet::execute(arguments).await,
            Self::Mesh(arguments) => mesh::execute(arguments).await,
            Self::Completions(arguments) => completions::execute(&arguments),
            Self::Man(arguments) => manual::execute(&arguments),
            Self::Version(arguments) => version::execute(&arguments),
        }
    }
}

/// `KEY=VALUE`, as options write it.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// A variable for a process: `KEY=VALUE`, or `KEY` for the value that it has here.
fn parse_variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') || text.is_empty() {
        return parse_pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text} is not set here: write {text}=VALUE")),
    }
}

/// A duration in whole seconds: `90`, `90s`, `15m`, `2h`, `1d`.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let refuse =
        || "write a number of seconds, or a number with s, m, h or d, above zero".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(refuse()),
    };
    number
        .checked_mul(factor)
        .filter(|seconds| *seconds > 0)
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_are_understood() {
        assert_eq!(parse_seconds("90"), Ok(90));
        assert_eq!(parse_seconds("2h"), Ok(7200));
        for bad in [
            "",
            "0",
            "-1",
            "5x",
            "h",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_keep_all_after_the_first_sign() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_pair("a="), Ok(("a".into(), String::new())));
        assert!(parse_pair("=b").is_err());
        assert!(parse_variable("SURELY_NOT_SET_ANYWHERE").is_err());
    }
}

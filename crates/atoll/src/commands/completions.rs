//! `atoll completions`: lets a shell complete Atoll's commands.

use crate::style;
use clap::CommandFactory;
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  atoll completions bash > /etc/bash_completion.d/atoll
  atoll completions zsh > \"${fpath[1]}/_atoll\"
  atoll completions fish > ~/.config/fish/completions/atoll.fish";

/// Print a script that lets a shell complete Atoll's commands
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Shell to print it for
    shell: Shell,
}

/// Does it.
pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "atoll", &mut script);
    style::to_stdout(&String::from_utf8(script)?)?;
    Ok(0)
}

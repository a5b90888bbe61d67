//! `atoll rm`: ends sandboxes.

use crate::{client::connection::Connection, failure, style};

const EXAMPLES: &str = "\
Examples:
  atoll rm i0ab i7xy     ids may be shortened while they are unique
  atoll rm --all";

/// End sandboxes, with all that is in them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandboxes: their ids, or the beginnings of them
    #[arg(
        value_name = "SANDBOX",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    sandboxes: Vec<String>,

    /// All sandboxes
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it. One that cannot be removed does not keep the others.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let names = if arguments.all {
        client
            .sandboxes()
            .await?
            .into_iter()
            .map(|sandbox| sandbox.sandbox_id)
            .collect()
    } else {
        arguments.sandboxes
    };
    let mut status = 0;
    for name in names {
        let removed = async {
            let id = client.resolve(&name).await?;
            if client.kill(&id).await? || arguments.all {
                return style::to_stdout(&format!("{id}\n"));
            }
            Err(failure::Failure::new(
                format!("there is no sandbox `{id}`"),
                "`atoll ls` shows those that run",
            )
            .into())
        };
        if let Err(error) = removed.await {
            failure::report(&error);
            status = failure::FAILED;
        }
    }
    Ok(status)
}

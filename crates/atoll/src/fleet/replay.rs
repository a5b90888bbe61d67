//! `atoll fleet replay`: what another policy would have needed.

use super::ask::{Connection, When, show};
use crate::{failure::Failure, style};
use fleet::{
    policy::{Kind, Policy},
    serve::Recorded,
};

const EXAMPLES: &str = "\
Examples:
  atoll fleet replay --from 24h --policy threshold
  atoll fleet replay --from 2026-05-01T00:00:00Z --to 2026-05-08T00:00:00Z --policy always-on

`atoll fleet serve` writes down what was asked for and which machines were on, for 30 days.
`recorded` is what was, by the watts of the configuration; the other policies are simulated on the
same requests, with boot times as configured. `oracle` knows the future.";

/// Run a past period again under other policies
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// When the period begins: a time such as 2026-05-01T12:00:00Z, or 24h for a day ago
    #[arg(long, value_name = "TIME")]
    from: When,

    /// When it ends
    #[arg(long, value_name = "TIME", default_value = "now")]
    to: When,

    /// A policy to run it under; may be given several times [default: the one that is configured]
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<Kind>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let (from, to) = (arguments.from.0, arguments.to.0);
    if to <= from {
        return Err(Failure::new(
            format!(
                "the period ends at {} and begins at {}",
                show(to),
                show(from)
            ),
            "write --from 24h for the last day",
        )
        .into());
    }
    let asker = arguments.connection.open()?;
    let query = [("from", from.0.to_string()), ("until", to.0.to_string())];
    let recorded: Recorded = asker.get(&["record"], &query).await?;
    let kinds = match arguments.policies.as_slice() {
        [] => vec![recorded.policy.kind],
        some => some.to_vec(),
    };
    let policies: Vec<Policy> = kinds
        .into_iter()
        .map(|kind| Policy {
            kind,
            ..recorded.policy.clone()
        })
        .collect();
    let compared =
        tokio::task::spawn_blocking(move || fleet::replay::replay(&recorded, from, to, &policies));
    let compared = compared.await?.map_err(|error| {
        Failure::new(
            error.to_string(),
            "name a period in which `atoll fleet serve` ran",
        )
    })?;
    if arguments.json {
        style::print_json(&compared)?;
    } else {
        super::simulate::print(&compared)?;
    }
    Ok(0)
}

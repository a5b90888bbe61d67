//! `atoll mesh rotate`: another key for the tunnels of the node on this machine.

use super::{
    StateDirectory,
    talk::{Question, Talk},
};
use crate::{failure::Failure, style};
use mesh::node::RotationPhase;
use std::time::Duration;

/// How long to wait until the new key is announced: the node looks once a second.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// Give the node's tunnels another key, now; connections go on
///
/// The new key is told to the others, and takes the old one's place once all who speak with this node use it, or after ten
/// minutes. The old one is answered to for ten minutes more. A node does this by itself once a week, unless it may speak
/// with WireGuard peers or nodes of older versions, who cannot be told: they need a new configuration or version then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  atoll mesh rotate\n  atoll mesh status --json | jq .rotation")]
pub(super) struct Arguments {
    /// Go on though some cannot be told
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    state: StateDirectory,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut talk = Talk::open(&arguments.state.path()).await?;
    let before = talk.status().await?.rotation.ok_or_else(|| {
        Failure::new(
            "this node has no network device, and so no tunnels",
            "what it speaks has new keys with each connection",
        )
    })?;
    if before.phase != RotationPhase::Settled {
        let cause = "another key is on its way already";
        let remedy = "`atoll mesh status` shows how far it is";
        return Err(Failure::new(cause, remedy).into());
    }
    if !before.unable.is_empty() {
        let names = style::harmless(&before.unable.join(", "));
        let cause = format!("{names} cannot be told of another key");
        if !arguments.force {
            let remedy = "with --force they are cut off in 20 minutes, until they have a new configuration (`atoll mesh peer config`) or version";
            return Err(Failure::new(cause, remedy).into());
        }
        style::note(&cause);
    }
    talk.ask(&Question::Rotate).await?;
    let announced = async {
        loop {
            match talk.status().await?.rotation {
                Some(now) if now.phase != RotationPhase::Settled => return anyhow::Ok(now),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    match tokio::time::timeout(PATIENCE, announced).await {
        Ok(now) => {
            now?;
            style::note("another key is announced; `atoll mesh status` shows when it is in use");
            Ok(0)
        }
        Err(_) => Err(Failure::new("no other key is announced", "see the node's log").into()),
    }
}

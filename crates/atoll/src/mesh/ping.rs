//! `atoll mesh ping`: how far another node is.

use super::{
    StateDirectory,
    status::milliseconds,
    talk::{Answer, Question, Talk},
};
use crate::{failure::Failure, style};
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// How long one answer may take: a first handshake, and what is lost of it.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often it is looked whether there is one.
const LOOK: Duration = Duration::from_millis(100);
/// How long probes have before what is known of them is believed.
const SETTLE: Duration = Duration::from_millis(500);

/// Measure the way to another node, inside its tunnel or connection
///
/// Policy need not allow ICMP: engines ask each other.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh ping db-2\n  atoll mesh ping db-2 --count 1 --json\n\n\
                        Exit status: 0 if the last was answered, else 1."
)]
pub(super) struct Arguments {
    /// Its name as `atoll mesh peers` shows it
    #[arg(value_name = "NODE")]
    node: String,

    /// How often
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,

    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON, a line for each
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    node: String,
    round_trip_us: Option<u64>,
    endpoint: Option<SocketAddr>,
    relay: Option<String>,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut talk = Talk::open(&arguments.state.path()).await?;
    let name = arguments
        .node
        .split('.')
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut answered = false;
    for _ in 0..arguments.count {
        let measured = measure(&mut talk, &name).await?;
        answered = measured.round_trip_us.is_some();
        let line = if arguments.json {
            serde_json::to_string(&measured)?
        } else {
            let at = measured.endpoint.map(|at| at.to_string());
            let relay = measured
                .relay
                .as_ref()
                .map(|relay| format!("relay {relay}"));
            match (measured.round_trip_us, relay.or(at)) {
                (Some(time), Some(by)) => format!("{name}: {} by {by}", milliseconds(time)),
                (Some(time), None) => format!("{name}: {}", milliseconds(time)),
                (None, _) => format!("{name}: no answer"),
            }
        };
        style::to_stdout(&format!("{line}\n"))?;
    }
    if answered {
        return Ok(0);
    }
    Err(Failure::new(
        format!("{name} does not answer"),
        "see `atoll mesh peers` and `atoll mesh netcheck`: is it up, and is there a way or a relay?",
    )
    .into())
}

async fn measure(talk: &mut Talk, name: &str) -> anyhow::Result<Measured> {
    let began = Instant::now();
    loop {
        let node = name.to_owned();
        let flows = match talk.ask(&Question::Probe { node }).await? {
            Answer::Measured { round_trip_us } => Some(Some(round_trip_us)),
            Answer::Silent => Some(None),
            // A tunnel, which knows in a moment.
            _ => None,
        };
        if flows.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        let status = talk.status().await?;
        let peer = status.peers.into_iter().find(|peer| peer.name == name);
        let known = peer.as_ref().and_then(|peer| peer.round_trip_us);
        let time = flows.unwrap_or(known);
        let waited = began.elapsed();
        if flows.is_some() || (time.is_some() && waited >= SETTLE) || waited >= PATIENCE {
            return Ok(Measured {
                node: name.to_owned(),
                round_trip_us: time,
                endpoint: peer.as_ref().and_then(|peer| peer.endpoint),
                relay: peer.and_then(|peer| peer.relay),
            });
        }
    }
}

//! `atoll mesh flows`: who talks to whom.

use super::{StateDirectory, status::milliseconds, talk::Talk};
use crate::{
    signals::Signals,
    style::{self, Table},
};
use mesh::{
    flows::End,
    node::{Began, FlowSummary, FlowsCursor, Way},
};
use serde::Serialize;
use std::{
    io::{ErrorKind, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often it is asked for what is new.
const PAUSE: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  atoll mesh flows
  atoll mesh flows --json | jq '.[] | select(.ended == null) | {peer, destination_port, sent}'
  atoll mesh flows --follow | jq 'select(.event == \"ended\")'

RULE is the line of the rule in the policy that lets the flow, see `atoll mesh policy show`. Bytes
in a tunnel are those of packets with their headers; without, those that programs sent. OVER and
ROUND TRIP are those to the other node at this moment.";

/// Show who talks to whom: the flows that run, and the last that ended
///
/// The node counts them for both ends of what its policy lets pass, in tunnels and without. Of each kind it keeps
/// the last 1024 that ended, and shows at most 4096 that run.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Print JSON, a line for each flow that begins or ends from now on
    #[arg(long)]
    follow: bool,
}

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    #[serde(flatten)]
    flow: &'a FlowSummary,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut talk = Talk::open(&arguments.state.path()).await?;
    if arguments.follow {
        return follow(&mut talk).await;
    }
    let status = talk.flows((0, 0)).await?;
    if arguments.json {
        style::print_json(&status.flows)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "NODE",
        "PROTOCOL",
        "FROM",
        "TO",
        "RULE",
        "STATE",
        "AGE",
        "SENT",
        "RECEIVED",
        "OVER",
        "ROUND TRIP",
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_millis();
    for flow in &status.flows {
        table.row(row(flow, now));
    }
    table.print()?;
    for (number, what) in [
        (status.beyond, "more run"),
        (status.forgotten, "more ended and are forgotten"),
    ] {
        if number > 0 {
            style::note(&format!("{number} {what}"));
        }
    }
    Ok(0)
}

fn row(flow: &FlowSummary, now_ms: u128) -> [String; 11] {
    let missing = || "-".to_owned();
    let place = |address, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let way = match flow.way {
        Way::Tunnel => "tunnel",
        Way::Flows => "flows",
    };
    let over = match (&flow.relay, flow.endpoint) {
        (Some(relay), _) => format!("{way}, relay {relay}"),
        (None, Some(at)) => format!("{way}, {at}"),
        (None, None) => way.to_owned(),
    };
    let state = match flow.ended {
        None => "runs",
        Some(End::Closed) => "closed",
        Some(End::Reset) => "reset",
        Some(End::Policy) => "forbidden",
        Some(End::Idle) => "idle",
        Some(End::Displaced) => "displaced",
    };
    let began = match flow.began {
        Began::Here => "here",
        Began::There => "there",
    };
    let seconds = now_ms.saturating_sub(u128::from(flow.began_ms)) / 1000;
    [
        flow.peer.clone().unwrap_or_else(|| flow.key.clone()),
        flow.protocol.clone(),
        format!("{} ({began})", place(flow.source, flow.source_port)),
        place(flow.destination, flow.destination_port),
        flow.rule_line
            .map_or_else(missing, |line| format!("line {line}")),
        state.to_owned(),
        format!("{seconds} s"),
        flow.sent.to_string(),
        flow.received.to_string(),
        over,
        flow.round_trip_us.map_or_else(missing, milliseconds),
    ]
}

/// The number of what a flow's numbers are compared with.
const fn mine(cursor: FlowsCursor, way: Way) -> u64 {
    match way {
        Way::Tunnel => cursor.0,
        Way::Flows => cursor.1,
    }
}

/// Tells what begins and ends, in that order, until it is told to stop or the node is gone.
async fn follow(talk: &mut Talk) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    // What happened before is no news.
    let mut cursor = talk.flows((u64::MAX, u64::MAX)).await?.cursor;
    let mut ticks = tokio::time::interval(PAUSE);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = signals.stop() => return Ok(0),
        }
        let status = talk.flows(cursor).await?;
        let mut events: Vec<_> = status
            .flows
            .iter()
            .flat_map(|flow| {
                let (began, ended) = flow.turns;
                let began = (began > mine(cursor, flow.way)).then_some((began, "began"));
                let ended = ended.map(|ended| (ended, "ended"));
                [began, ended]
                    .into_iter()
                    .flatten()
                    .map(move |(turn, event)| (turn, Event { event, flow }))
            })
            .collect();
        events.sort_by_key(|(turn, _)| *turn);
        for (_, event) in events {
            let line = format!("{}\n", serde_json::to_string(&event)?);
            let mut out = std::io::stdout().lock();
            match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                // Who listened is gone.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
                other => other?,
            }
        }
        cursor = status.cursor;
    }
}

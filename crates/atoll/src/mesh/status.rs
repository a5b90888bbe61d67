//! `atoll mesh status` and `atoll mesh peers`: what the node on this machine sees.

use super::{StateDirectory, talk::Talk};
use crate::style::{self, Table};
use mesh::node::{NodeStatus, PeerSummary};
use std::net::IpAddr;

/// Show the node on this machine
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh status\n  atoll mesh status --json | jq -r '.peers[] | select(.allowed) | .name'"
)]
pub(super) struct StatusArguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON, with all peers
    #[arg(long)]
    json: bool,
}

/// List the other nodes as this one sees them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh peers\n  atoll mesh peers --json | jq -r '.[] | select(.allowed) | .name'"
)]
pub(super) struct PeersArguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn first(addresses: &[IpAddr]) -> String {
    addresses
        .first()
        .map_or_else(String::new, ToString::to_string)
}

fn joined<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(" ")
}

/// Microseconds as milliseconds.
pub(super) fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

/// Shows the node.
pub(super) async fn execute(arguments: StatusArguments) -> anyhow::Result<u8> {
    let status = Talk::open(&arguments.state.path()).await?.status().await?;
    if arguments.json {
        style::print_json(&status)?;
    } else {
        show(&status)?;
    }
    Ok(0)
}

fn show(status: &NodeStatus) -> anyhow::Result<()> {
    let coordinator = match &status.trouble {
        _ if status.connected => "answers".to_owned(),
        Some(trouble) => format!("does not answer: {}", style::harmless(trouble)),
        None => "was not asked yet".to_owned(),
    };
    let services = status.services.iter().map(|(name, ready)| {
        let ready = if *ready { "ready" } else { "not ready" };
        format!("{name} ({ready})")
    });
    let held = status.denied_outbound + status.denied_inbound;
    let allowed = status.peers.iter().filter(|peer| peer.allowed).count();
    for (name, value) in [
        ("name", format!("{}.{}", status.name, status.domain)),
        ("addresses", joined(&status.addresses)),
        ("tags", status.tags.join(" ")),
        (
            "device",
            format!("{}, udp {}", status.interface, status.port),
        ),
        ("names at", joined(&status.dns)),
        ("coordinator", coordinator),
        ("services", services.collect::<Vec<_>>().join(" ")),
        (
            "peers",
            format!("{allowed} of {} may be spoken to", status.peers.len()),
        ),
        ("held back", format!("{held} packets, by policy")),
    ] {
        style::to_stdout(&format!("{name:<12} {value}\n"))?;
    }
    Ok(())
}

/// Lists the others.
pub(super) async fn peers(arguments: PeersArguments) -> anyhow::Result<u8> {
    let status = Talk::open(&arguments.state.path()).await?.status().await?;
    if arguments.json {
        style::print_json(&status.peers)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "NODE",
        "ADDRESS",
        "TAGS",
        "TUNNEL",
        "ENDPOINT",
        "ROUND TRIP",
        "RECEIVED",
        "SENT",
    ]);
    let missing = || "-".to_owned();
    for peer in &status.peers {
        table.row([
            peer.name.clone(),
            first(&peer.addresses),
            peer.tags.join(","),
            tunnel(peer),
            peer.endpoint.map_or_else(missing, |at| at.to_string()),
            peer.round_trip_us.map_or_else(missing, milliseconds),
            peer.received.to_string(),
            peer.sent.to_string(),
        ]);
    }
    table.print()?;
    Ok(0)
}

fn tunnel(peer: &PeerSummary) -> String {
    match (peer.allowed, peer.handshake_seconds) {
        (false, _) => "forbidden".to_owned(),
        (true, None) => "idle".to_owned(),
        (true, Some(seconds)) => format!("up, {seconds} s"),
    }
}

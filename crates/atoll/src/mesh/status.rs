//! `atoll mesh status` and `atoll mesh peers`: what the node on this machine sees.

use super::{StateDirectory, metrics, talk::Talk};
use crate::style::{self, Table};
use mesh::node::{ClusterSummary, NodeStatus, PeerSummary, RotationPhase, Way};
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
    #[arg(long, conflicts_with = "metrics")]
    json: bool,

    /// Print counters as text for Prometheus
    #[arg(long)]
    metrics: bool,
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
    } else if arguments.metrics {
        style::to_stdout(&metrics::text(&status))?;
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
        ("mode", mode(status)),
        ("key", key(status)),
        ("services at", status.home.to_string()),
        ("names at", joined(&status.dns)),
        ("proxy at", proxy(status)),
        ("doors", doors(status)),
        ("coordinator", coordinator),
        ("relays", relays(status)),
        ("relay", relaying(status)),
        ("services", services.collect::<Vec<_>>().join(" ")),
        (
            "peers",
            format!("{allowed} of {} may be spoken to", status.peers.len()),
        ),
        (
            "held back",
            format!("{held} packets, {} flows", status.refused),
        ),
    ] {
        style::to_stdout(&format!("{name:<12} {value}\n"))?;
    }
    for cluster in &status.clusters {
        style::to_stdout(&format!("{:<12} {}\n", "cluster", clusters(cluster)))?;
    }
    Ok(())
}

/// The key of the tunnels, and how far an exchange is.
fn key(status: &NodeStatus) -> String {
    let Some(rotation) = &status.rotation else {
        return String::new();
    };
    let phase = match rotation.phase {
        RotationPhase::Settled => "",
        RotationPhase::Announced => ", another is announced",
        RotationPhase::Exchanged => ", new",
    };
    format!("{}{phase}", rotation.key)
}

/// A cluster in one line, with what is in the way.
fn clusters(cluster: &ClusterSummary) -> String {
    let ranges = joined(cluster.ranges.iter().map(|(_, outside)| outside));
    let state = match (&cluster.by, cluster.here, cluster.allowed) {
        (_, true, _) => "behind this node".to_owned(),
        (Some(by), ..) => format!("by {by}"),
        (None, _, true) => "not reached".to_owned(),
        (None, ..) => "forbidden".to_owned(),
    };
    let troubles = cluster.troubles.iter();
    let troubles: String = troubles.map(|trouble| format!("; {trouble}")).collect();
    style::harmless(&format!("{} {ranges} {state}{troubles}", cluster.name))
}

fn mode(status: &NodeStatus) -> String {
    let tunnels = match (&status.interface, status.port) {
        (Some(device), Some(port)) => format!(", device {device}, tunnels udp {port}"),
        _ => String::new(),
    };
    format!("{}{tunnels}, flows udp {}", status.mode, status.flows_port)
}

fn relays(status: &NodeStatus) -> String {
    let relays = status.relays.iter().map(|relay| {
        let over = match (relay.udp, relay.tls) {
            (true, _) => "udp",
            (false, true) => "tls",
            (false, false) => "away",
        };
        match relay.seen.filter(|_| relay.udp) {
            Some(seen) => format!("{} ({over}, sees us at {seen})", relay.name),
            None => format!("{} ({over})", relay.name),
        }
    });
    relays.collect::<Vec<_>>().join(", ")
}

fn relaying(status: &NodeStatus) -> String {
    let Some(relay) = &status.relaying else {
        return String::new();
    };
    let mut text = format!("udp {}", joined(&relay.udp));
    if !relay.tls.is_empty() {
        text.push_str(&format!(", tls {}", joined(&relay.tls)));
    }
    text.push_str(&format!(
        "; {} clients, {} datagrams, {} bytes",
        relay.clients, relay.packets, relay.bytes
    ));
    if !relay.taken {
        text.push_str("; NOT USED: the policy does not name this node in `relays`");
    }
    if let Some(trouble) = &relay.trouble {
        text.push_str(&format!("; {}", style::harmless(trouble)));
    }
    text
}

fn proxy(status: &NodeStatus) -> String {
    match &status.proxy_file {
        Some(file) => format!(
            "{}, user and password in {}",
            joined(&status.proxies),
            style::harmless(&file.to_string_lossy())
        ),
        None => String::new(),
    }
}

fn doors(status: &NodeStatus) -> String {
    let open = match status.udp_doors.len() {
        0 => format!("{} open", status.doors.len()),
        udp => format!("{} open, {udp} for UDP", status.doors.len()),
    };
    match status.stuck.first() {
        Some((at, why)) => format!(
            "{open}; {} cannot be opened: {at}: {}",
            status.stuck.len(),
            style::harmless(why)
        ),
        None => open,
    }
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
        "MODE",
        "WAY",
        "OVER",
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
            peer.mode.to_string(),
            way(peer),
            over(peer).unwrap_or_else(missing),
            peer.round_trip_us.map_or_else(missing, milliseconds),
            peer.received.to_string(),
            peer.sent.to_string(),
        ]);
    }
    table.print()?;
    Ok(0)
}

/// The address or the relay by which it is reached.
pub(super) fn over(peer: &PeerSummary) -> Option<String> {
    let relay = peer.relay.as_ref().map(|relay| format!("relay {relay}"));
    relay.or_else(|| peer.endpoint.map(|at| at.to_string()))
}

fn way(peer: &PeerSummary) -> String {
    let seconds = peer.handshake_seconds.unwrap_or_default();
    match (peer.allowed, peer.way) {
        (false, _) => "forbidden".to_owned(),
        (true, _) if peer.unreachable.is_some() => "none: it carries no flows".to_owned(),
        (true, None) => "idle".to_owned(),
        (true, Some(Way::Tunnel)) => format!("tunnel, {seconds} s"),
        (true, Some(Way::Flows)) => format!("flows, {seconds} s"),
    }
}

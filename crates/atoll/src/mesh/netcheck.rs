//! `atoll mesh netcheck`: what the network of this machine lets through.

use super::{
    StateDirectory,
    status::{milliseconds, over},
    talk::Talk,
};
use crate::style::{self, Table};
use mesh::MappedPort;
use mesh::node::{NodeStatus, RelaySummary};
use serde::Serialize;
use std::net::{SocketAddr, UdpSocket};

/// Show what this machine's network lets through: UDP, what its NAT does, the relays
///
/// It is what the node on this machine sees from its relays; with none there is nothing to see it by.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh netcheck\n  atoll mesh netcheck --json | jq -r .nat"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a NAT does to this machine, as relays see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Nat {
    /// There is none: relays see an address that this machine has.
    None,
    /// One port for all destinations (RFC 4787, section 4.1): direct ways get through.
    EndpointIndependent,
    /// Another port for each: direct ways only to those who can be reached.
    EndpointDependent,
    /// Too few relays see this machine.
    Unknown,
}

impl Nat {
    fn text(self) -> &'static str {
        match self {
            Self::None => "none: relays see an address that this machine has",
            Self::EndpointIndependent => "one port for all destinations: direct ways get through",
            Self::EndpointDependent => {
                "another port for each destination: direct ways only to those who can be reached"
            }
            Self::Unknown => "unknown: two relays that are reached by UDP would show it",
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether UDP gets through to a relay; absent if there is none to try it with.
    udp: Option<bool>,
    nat: Nat,
    seen: Vec<SocketAddr>,
    relays: Vec<RelaySummary>,
    /// Whether the router is asked to forward ports, and those that it does.
    port_mapping: bool,
    mapped: Vec<MappedPort>,
    /// Nodes that are reached directly, and over relays.
    direct: usize,
    relayed: usize,
}

fn nat(seen: &[SocketAddr], ours: impl Fn(&SocketAddr) -> bool) -> Nat {
    match seen {
        [] => Nat::Unknown,
        all if all.iter().all(&ours) => Nat::None,
        [_] => Nat::Unknown,
        // Families have mappings of their own.
        [first, rest @ ..] => {
            let same = |at: &&SocketAddr| at.is_ipv4() == first.is_ipv4();
            let rest: Vec<_> = rest.iter().filter(same).collect();
            match rest.iter().all(|at| *at == first) {
                _ if rest.is_empty() => Nat::Unknown,
                true => Nat::EndpointIndependent,
                false => Nat::EndpointDependent,
            }
        }
    }
}

fn report(status: NodeStatus) -> Report {
    let by_udp = |relay: &&RelaySummary| relay.udp;
    let seen = status.relays.iter().filter(by_udp);
    let seen: Vec<_> = seen.filter_map(|relay| relay.seen).collect();
    let ours = |at: &SocketAddr| UdpSocket::bind((at.ip(), 0)).is_ok();
    let counted = |relayed: bool| {
        let reached = status.peers.iter().filter(|peer| over(peer).is_some());
        reached
            .filter(|peer| peer.relay.is_some() == relayed)
            .count()
    };
    Report {
        udp: (!status.relays.is_empty()).then_some(!seen.is_empty()),
        nat: nat(&seen, ours),
        direct: counted(false),
        relayed: counted(true),
        seen,
        relays: status.relays,
        port_mapping: status.port_mapping,
        mapped: status.mapped,
    }
}

/// What the router forwards, for people.
fn forwarded(report: &Report) -> String {
    let mapped = report.mapped.iter();
    let mapped: Vec<_> = mapped
        .map(|mapped| format!("{} to port {} ({})", mapped.outside, mapped.port, mapped.by))
        .collect();
    match report.port_mapping {
        false => "not asked for (--no-port-mapping)".to_owned(),
        true if mapped.is_empty() => {
            "nothing: no router answers by PCP, NAT-PMP or UPnP".to_owned()
        }
        true => mapped.join(", "),
    }
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let status = Talk::open(&arguments.state.path()).await?.status().await?;
    let report = report(status);
    if arguments.json {
        style::print_json(&report)?;
        return Ok(0);
    }
    let udp = match report.udp {
        Some(true) => "gets through",
        Some(false) => "does not get through to any relay",
        None => "unknown: policy names no relay to try it with",
    };
    let seen: Vec<_> = report.seen.iter().map(ToString::to_string).collect();
    for (name, value) in [
        ("udp", udp.to_owned()),
        ("nat", report.nat.text().to_owned()),
        ("seen as", seen.join(" ")),
        ("forwarded", forwarded(&report)),
        (
            "reached",
            format!("{} directly, {} over relays", report.direct, report.relayed),
        ),
    ] {
        style::to_stdout(&format!("{name:<9} {value}\n"))?;
    }
    let mut table = Table::new(&["RELAY", "OVER", "ROUND TRIP", "SEES US AT"]);
    for relay in &report.relays {
        let carried = match (relay.udp, relay.tls) {
            (true, _) => "udp",
            (false, true) => "tls",
            (false, false) => "away",
        };
        let missing = || "-".to_owned();
        table.row([
            relay.name.clone(),
            carried.to_owned(),
            relay.round_trip_us.map_or_else(missing, milliseconds),
            relay.seen.map_or_else(missing, |at| at.to_string()),
        ]);
    }
    if !report.relays.is_empty() {
        table.print()?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_relays_see_tells_what_the_nat_does() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (one, same) = (at("203.0.1.2:700"), at("203.0.1.2:700"));
        let (other, v6) = (at("203.0.1.2:701"), at("[2001:db8::1]:700"));
        let never = |_: &SocketAddr| false;
        for (seen, expected) in [
            (vec![], Nat::Unknown),
            (vec![one], Nat::Unknown),
            (vec![one, v6], Nat::Unknown),
            (vec![one, same], Nat::EndpointIndependent),
            (vec![one, same, other], Nat::EndpointDependent),
            (vec![one, v6, other], Nat::EndpointDependent),
        ] {
            assert_eq!(nat(&seen, never), expected, "{seen:?}");
            if !seen.is_empty() {
                assert_eq!(nat(&seen, |_| true), Nat::None);
            }
        }
    }
}

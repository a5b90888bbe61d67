//! `atoll mesh services`: the services, and how this node sees those who give them.

use super::{StateDirectory, status::milliseconds, talk::Talk};
use crate::style::{self, Table};
use mesh::{
    node::{ServiceEndpoint, ServicePort, ServiceSummary},
    services::{Reason, State},
};

const EXAMPLES: &str = "\
Examples:
  atoll mesh services
  atoll mesh services --json | jq -r '.[] | \"\\(.name) \\(.address)\"'
  atoll mesh services --json | jq '.[].ports[] | select(.panic)'

A service has one address, the same on all nodes; without a network device it is 127.127.x.y instead
of 100.127.x.y. Its name leads there where all its ports are single ones and policy lets this node
use them, else to its nodes, as `all.NAME` always does.

CLASS is how far an endpoint is: here, site (a round trip below 3 ms), region (below 30 ms), or far.
Endpoints are listed in the order in which they would be tried now. HEALTH is what this node saw in
connections and in probes, which it makes while a service is in use; PANIC means that most endpoints
look ill, so all are used.";

/// Show the services, their addresses, and the endpoints as this node sees them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let services = Talk::open(&arguments.state.path())
        .await?
        .services()
        .await?;
    if arguments.json {
        style::print_json(&services)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "SERVICE",
        "ADDRESS",
        "PORT",
        "ENDPOINT",
        "CLASS",
        "ROUND TRIP",
        "HEALTH",
        "REASON",
    ]);
    for service in &services {
        for row in rows(service) {
            table.row(row);
        }
    }
    table.print()?;
    Ok(0)
}

fn missing() -> String {
    "-".to_owned()
}

fn rows(service: &ServiceSummary) -> Vec<[String; 8]> {
    let address = service
        .address
        .map_or_else(missing, |address| address.to_string());
    let row = |port: String, cells: [String; 5]| {
        let [endpoint, class, round_trip, health, reason] = cells;
        let (name, address) = (service.name.clone(), address.clone());
        [
            name, address, port, endpoint, class, round_trip, health, reason,
        ]
    };
    let nothing = |reason: &str| {
        [
            missing(),
            missing(),
            missing(),
            missing(),
            reason.to_owned(),
        ]
    };
    let mut rows = Vec::new();
    for port in &service.ports {
        let name = format!("{}/{}", port.protocol, port.port);
        if port.endpoints.is_empty() {
            rows.push(row(name, nothing("policy lets this node use none")));
            continue;
        }
        for endpoint in &port.endpoints {
            rows.push(row(name.clone(), cells(port, endpoint)));
        }
    }
    if service.ranges {
        rows.push(row("ranges".to_owned(), nothing("reached at its nodes")));
    }
    rows
}

fn cells(port: &ServicePort, endpoint: &ServiceEndpoint) -> [String; 5] {
    [
        endpoint.node.clone(),
        endpoint.class.to_string(),
        endpoint.round_trip_us.map_or_else(missing, milliseconds),
        health(endpoint),
        reason(port, endpoint),
    ]
}

fn health(endpoint: &ServiceEndpoint) -> String {
    let failed = || match endpoint.failure {
        Some(failure) => format!(", {} failed: {failure}", endpoint.failures),
        None => String::new(),
    };
    match endpoint.health {
        _ if !endpoint.ready => "not ready".to_owned(),
        State::Unknown => "unknown".to_owned(),
        State::Well => "well".to_owned(),
        State::Suspect if endpoint.failures == 0 => "slow".to_owned(),
        State::Suspect => format!("suspect{}", failed()),
        State::Ejected => {
            let seconds = endpoint.aside_seconds.unwrap_or_default();
            format!("put aside for {seconds} s{}", failed())
        }
        State::Trial => format!("on trial{}", failed()),
    }
}

fn reason(port: &ServicePort, endpoint: &ServiceEndpoint) -> String {
    let text = match endpoint.reason {
        Reason::Nearest => "nearest",
        Reason::Spill => "too few nearer ones are well",
        Reason::Farther => "nearer ones go first",
        Reason::Suspect => "others of its class go first",
        Reason::Trial => "may show that it is well again",
        Reason::Panic => "PANIC: most look ill, all are used",
        Reason::NoneReady => "none says that it is ready",
        Reason::Ejected => "only if all else fails",
        Reason::NotReady => "it says that it is not ready",
    };
    match port.door {
        true => text.to_owned(),
        false => format!("{text}; no door here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::services::{Class, Failure};

    #[test]
    fn each_endpoint_is_a_row_with_its_health_and_the_reason() {
        let endpoint = |node: &str, health, reason| ServiceEndpoint {
            node: node.to_owned(),
            ready: reason != Reason::NotReady,
            class: Class::Site,
            round_trip_us: Some(1250),
            health,
            failures: u32::from(health == State::Ejected) * 3,
            failure: (health == State::Ejected).then_some(Failure::Closed),
            aside_seconds: (health == State::Ejected).then_some(7),
            reason,
        };
        let mut service = ServiceSummary {
            name: "db".to_owned(),
            address: Some([100, 127, 0, 1].into()),
            named: true,
            ports: vec![ServicePort {
                protocol: "tcp".to_owned(),
                port: 5432,
                door: true,
                used_seconds: Some(1),
                panic: false,
                endpoints: vec![
                    endpoint("db-1", State::Well, Reason::Nearest),
                    endpoint("db-2", State::Ejected, Reason::Ejected),
                    endpoint("db-3", State::Unknown, Reason::NotReady),
                ],
            }],
            ranges: true,
        };
        let text = |service: &ServiceSummary| -> Vec<String> {
            rows(service).iter().map(|row| row.join(" | ")).collect()
        };
        assert_eq!(
            text(&service),
            [
                "db | 100.127.0.1 | tcp/5432 | db-1 | site | 1.25 ms | well | nearest",
                "db | 100.127.0.1 | tcp/5432 | db-2 | site | 1.25 ms | put aside for 7 s, 3 failed: nobody listens there | only if all else fails",
                "db | 100.127.0.1 | tcp/5432 | db-3 | site | 1.25 ms | not ready | it says that it is not ready",
                "db | 100.127.0.1 | ranges | - | - | - | - | reached at its nodes",
            ]
        );
        service.ports[0].endpoints.clear();
        service.address = None;
        assert_eq!(
            text(&service)[0],
            "db | - | tcp/5432 | - | - | - | - | policy lets this node use none"
        );
    }
}

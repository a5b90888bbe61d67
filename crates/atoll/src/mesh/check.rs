//! `atoll mesh check`: whether clusters can be told apart, from each other and from what machines route by themselves.

use super::{StateDirectory, talk::Talk};
use crate::{
    failure::Failure,
    style::{self, Table},
};
use anyhow::Context;
use mesh::{
    clusters::{Cluster, Overlap, machine, overlaps},
    node::{ClusterSummary, NodeStatus},
    policy::Policy,
};
use serde::Serialize;
use std::path::PathBuf;

/// Look for clusters whose addresses overlap
///
/// With FILE: the clusters of that policy among each other, with the mesh's own addresses and, on a node, with what its machine routes by
/// itself. Without: the clusters of the policy in force, as the node on this machine reaches them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh check policy.toml\n  atoll mesh check --json | jq -r '.clusters[].troubles[]'\n\n\
                  Exit status: 0 if nothing is in the way, else 1."
)]
pub(super) struct Arguments {
    /// The policy
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    state: StateDirectory,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Two ranges that overlap.
#[derive(Debug, Serialize)]
struct Found {
    line: usize,
    cluster: String,
    range: String,
    with: String,
    other: String,
    /// What to write as the cluster's `as`.
    offer: Option<Vec<String>>,
    cause: String,
    remedy: String,
}

impl From<&Overlap> for Found {
    fn from(overlap: &Overlap) -> Self {
        let offer = overlap.offer.as_ref();
        Self {
            line: overlap.line,
            cluster: overlap.cluster.clone(),
            range: overlap.range.to_string(),
            with: overlap.holder.to_string(),
            other: overlap.other.to_string(),
            offer: offer.map(|offer| offer.iter().map(ToString::to_string).collect()),
            cause: overlap.cause(),
            remedy: overlap.remedy(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    clusters: Vec<ClusterSummary>,
    overlaps: Vec<Found>,
}

impl Report {
    fn holds(&self) -> bool {
        let mut clusters = self.clusters.iter();
        self.overlaps.is_empty() && clusters.all(|cluster| cluster.troubles.is_empty())
    }
}

/// A cluster of a policy that is not in force.
fn planned(
    cluster: &Cluster,
    node: Option<&NodeStatus>,
    routes: &[machine::Route],
) -> ClusterSummary {
    let known = node.and_then(|node| {
        let mut clusters = node.clusters.iter();
        clusters.find(|known| known.name == cluster.name)
    });
    let here = known.is_some_and(|known| known.here);
    let mut troubles = Vec::new();
    for range in cluster.ranges.iter().filter(|_| !here) {
        if let Some(route) = machine::conflict(range.outside, routes) {
            troubles.push(format!(
                "{} would not be reached from this node: its machine routes {} through {} by itself",
                range.outside, route.range, route.interface
            ));
        }
    }
    ClusterSummary {
        name: cluster.name.clone(),
        ranges: cluster
            .ranges
            .iter()
            .map(|range| (range.inside.to_string(), range.outside.to_string()))
            .collect(),
        here,
        gateways: known.map_or_else(Vec::new, |known| known.gateways.clone()),
        by: None,
        allowed: known.is_some_and(|known| known.allowed),
        troubles,
    }
}

/// What there is to say of a policy's text, on this node if there is one.
fn plan(
    text: &str,
    node: Option<&NodeStatus>,
    routes: &[machine::Route],
) -> Result<Report, Vec<mesh::policy::Mistake>> {
    let clusters = Policy::clusters_in(text)?;
    Ok(Report {
        overlaps: overlaps(&clusters).iter().map(Found::from).collect(),
        clusters: clusters
            .iter()
            .map(|cluster| planned(cluster, node, routes))
            .collect(),
    })
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let talk = Talk::open(&arguments.state.path()).await;
    let node = match (talk, &arguments.file) {
        (Ok(mut talk), _) => Some(talk.status().await?),
        (Err(error), None) => return Err(error),
        (Err(_), Some(_)) => None,
    };
    let report = match (&arguments.file, node) {
        (Some(file), node) => {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            let routes = match &node {
                Some(node) => machine::routes(node.interface.as_deref())
                    .context("cannot read this machine's routes")?,
                None => Vec::new(),
            };
            plan(&text, node.as_ref(), &routes).map_err(|mistakes| {
                let first = mistakes.first().map(ToString::to_string);
                Failure::new(
                    format!("{}: {}", file.display(), first.unwrap_or_default()),
                    "`atoll mesh policy test` shows all mistakes",
                )
            })?
        }
        (None, node) => Report {
            clusters: node.map_or_else(Vec::new, |node| node.clusters),
            overlaps: Vec::new(),
        },
    };
    if arguments.json {
        style::print_json(&report)?;
    } else {
        show(&report, arguments.file.as_deref())?;
    }
    Ok(u8::from(!report.holds()))
}

fn show(report: &Report, file: Option<&std::path::Path>) -> anyhow::Result<()> {
    let mut table = Table::new(&["CLUSTER", "IN ITS NETWORK", "IN THE MESH", "GATEWAYS"]);
    for cluster in &report.clusters {
        let mut gateways = cluster.gateways.clone();
        if cluster.here {
            gateways.push("this node".to_owned());
        }
        for (inside, outside) in &cluster.ranges {
            table.row([
                cluster.name.clone(),
                inside.clone(),
                outside.clone(),
                gateways.join(","),
            ]);
        }
    }
    table.print()?;
    for found in &report.overlaps {
        let place = file.map(|file| format!("{}:", file.display()));
        let place = place.unwrap_or_default();
        let Found {
            line,
            cause,
            remedy,
            ..
        } = found;
        style::to_stderr(&style::harmless(&format!(
            "{place}{line}: {cause}; {remedy}"
        )));
        style::to_stderr("\n");
    }
    for cluster in &report.clusters {
        for trouble in &cluster.troubles {
            style::to_stderr(&style::harmless(&format!("{}: {trouble}", cluster.name)));
            style::to_stderr("\n");
        }
    }
    if report.holds() {
        style::note("nothing is in the way");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
[clusters.paris]
nodes = [\"tag:paris-gw\"]
ranges = [\"10.42.0.0/16\"]

[clusters.lyon]
nodes = [\"tag:lyon-gw\"]
ranges = [\"10.42.0.0/16\"]
";

    #[test]
    fn overlaps_are_told_with_an_offer_and_routes_with_their_interface() {
        let routes = [machine::Route {
            range: "10.0.0.0/8".parse().unwrap(),
            interface: "vpn".to_owned(),
        }];
        let report = plan(POLICY, None, &routes).unwrap();
        assert!(!report.holds());
        assert_eq!(report.overlaps.len(), 1);
        let json = serde_json::to_value(&report).unwrap();
        let found = &json["overlaps"][0];
        assert_eq!(found["line"], 6);
        assert_eq!(found["with"], "cluster \"paris\"");
        let offer = found["offer"][0].as_str().unwrap();
        assert_eq!(
            report.clusters[0].troubles,
            [
                "10.42.0.0/16 would not be reached from this node: its machine routes 10.0.0.0/8 through vpn by itself"
            ]
        );
        // What is offered holds.
        let pasted = format!("{POLICY}as = [\"{offer}\"]\n");
        assert!(plan(&pasted, None, &[]).unwrap().holds());
        assert!(plan("[clusters.a]\n", None, &[]).is_err());
    }
}

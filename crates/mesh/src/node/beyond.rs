//! Clusters behind nodes, as one node sees them: whom to send to, which ranges its own machine leaves it, what is in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Node;
use super::current::Current;
use crate::clusters::machine::{self, Route, conflict};
use crate::clusters::{Range, Translation};
use crate::engine::Engine;
use crate::key::PublicKey;
use crate::prefix::Prefix;

/// A cluster, and this node's part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beyond {
    pub(super) name: String,
    pub(super) ranges: Vec<Range>,
    /// Nodes with a device that lead there, but this one, the first to be used first.
    pub(super) gateways: Vec<(String, PublicKey)>,
    /// How many lead there that have no device.
    pub(super) unable: usize,
    /// Whether this node leads there.
    pub(super) here: bool,
    /// Whether policy lets anything pass between this node, or what is behind it, and the cluster.
    pub(super) allowed: bool,
}

/// A cluster as `atoll mesh status` and `atoll mesh check` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSummary {
    /// What rules call it.
    pub name: String,
    /// Its ranges: in its own network, and where the mesh reaches them.
    pub ranges: Vec<(String, String)>,
    /// Whether this node leads there.
    pub here: bool,
    /// The other nodes that lead there, in the order in which they are used.
    pub gateways: Vec<String>,
    /// The one that is sent to now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether policy lets this node speak with it.
    pub allowed: bool,
    /// What is in the way, with what to do about it.
    pub troubles: Vec<String>,
}

/// Which ranges lead to gateways, and which cannot and why.
#[derive(Debug, Default)]
struct Ranges {
    used: BTreeSet<Prefix>,
    refused: BTreeMap<Prefix, String>,
}

/// The routes to clusters that this node put on its device.
#[derive(Debug, Default)]
pub(super) struct Routing(Mutex<Ranges>);

impl Routing {
    fn lock(&self) -> MutexGuard<'_, Ranges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ranges that lead to gateways.
    pub(super) fn used(&self) -> BTreeSet<Prefix> {
        self.lock().used.clone()
    }

    /// Makes the device's routes and the engine's translation those that follow from a view. What the machine routes by itself stays its own.
    pub(super) fn follow(&self, engine: &Engine, now: &Current) {
        let device = engine.device();
        let reached = now.beyond.iter().filter(|beyond| beyond.reached());
        let wanted: BTreeSet<_> = reached
            .flat_map(|beyond| beyond.ranges.iter().map(|range| range.outside))
            .collect();
        let routes = if wanted.is_empty() {
            Ok(Vec::new())
        } else {
            machine::routes(Some(device.name()))
        };
        let mut ranges = self.lock();
        ranges.refused.clear();
        for range in std::mem::take(&mut ranges.used) {
            let kept = wanted.contains(&range) && refusal(range, &routes).is_none();
            if kept {
                ranges.used.insert(range);
            } else if let Err(error) = device.unroute(range) {
                tracing::debug!(%range, "a route was gone already: {error}");
            }
        }
        for range in wanted {
            if ranges.used.contains(&range) {
                continue;
            }
            let why = refusal(range, &routes);
            match why.or_else(|| device.route(range).err().map(|error| error.to_string())) {
                None => {
                    ranges.used.insert(range);
                }
                Some(why) => {
                    tracing::warn!(%range, "a cluster's range is not reached: {why}");
                    ranges.refused.insert(range, why);
                }
            }
        }
        drop(ranges);
        let here = now.beyond.iter().filter(|beyond| beyond.here);
        engine.set_translation(Translation::new(here.flat_map(|beyond| &beyond.ranges)));
    }

    /// Takes all routes away.
    pub(super) fn close(&self, engine: &Engine) {
        for range in std::mem::take(&mut self.lock().used) {
            if let Err(error) = engine.device().unroute(range) {
                tracing::debug!(%range, "a route was gone already: {error}");
            }
        }
    }
}

/// Why a range cannot be led to gateways on a machine with these routes.
fn refusal(range: Prefix, routes: &std::io::Result<Vec<Route>>) -> Option<String> {
    match routes {
        Ok(routes) => conflict(range, routes).map(|route| {
            format!(
                "this machine routes {} through {} by itself, which stays so",
                route.range, route.interface
            )
        }),
        Err(error) => Some(format!("this machine's routes cannot be read: {error}")),
    }
}

impl Beyond {
    /// Whether this node sends there.
    fn reached(&self) -> bool {
        self.allowed && !self.here && !self.gateways.is_empty()
    }

    fn troubles(&self, device: bool, refused: &BTreeMap<Prefix, String>) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.here {
            if !device {
                troubles.push(
                    "this node should lead there and has no network device: run it with one, see `atoll doctor`"
                        .to_owned(),
                );
            } else if !machine::forwards() {
                troubles.push(
                    "this machine does not forward packets: sysctl -w net.ipv4.ip_forward=1"
                        .to_owned(),
                );
            }
            return troubles;
        }
        if !self.allowed {
            return troubles;
        }
        if !device {
            troubles.push(
                "this node has no network device, and clusters are reached by packets: see `atoll doctor`"
                    .to_owned(),
            );
            return troubles;
        }
        if self.gateways.is_empty() {
            troubles.push(match self.unable {
                0 => "no node of the mesh leads there: see `nodes` of the cluster in the policy"
                    .to_owned(),
                some => format!("{some} node(s) lead there, and none has a network device"),
            });
        }
        for range in &self.ranges {
            if let Some(why) = refused.get(&range.outside) {
                let mut trouble = format!("{} is not reached: {why}", range.outside);
                if !range.translated() {
                    trouble.push_str("; reach the cluster at other addresses: `as` in the policy");
                }
                troubles.push(trouble);
            }
        }
        troubles
    }
}

impl Node {
    /// The clusters that the policy describes, as this node sees them.
    pub(super) fn clusters(&self, current: &Current) -> Vec<ClusterSummary> {
        let engine = self.carriers.engine();
        let routing = self.carriers.routing().lock();
        let show = |beyond: &Beyond| {
            let first = beyond
                .ranges
                .iter()
                .find(|range| routing.used.contains(&range.outside));
            let by = first.and_then(|range| engine?.gateway(range.outside));
            let by = by.and_then(|by| beyond.gateways.iter().find(|(_, key)| *key == by));
            let ranges = beyond.ranges.iter();
            ClusterSummary {
                name: beyond.name.clone(),
                ranges: ranges
                    .map(|range| (range.inside.to_string(), range.outside.to_string()))
                    .collect(),
                here: beyond.here,
                gateways: beyond
                    .gateways
                    .iter()
                    .map(|(name, _)| name.clone())
                    .collect(),
                by: by.map(|(name, _)| name.clone()),
                allowed: beyond.allowed,
                troubles: beyond.troubles(engine.is_some(), &routing.refused),
            }
        };
        current.beyond.iter().map(show).collect()
    }
}

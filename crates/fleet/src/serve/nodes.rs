//! Demand on Atoll's own nodes, as the API of an `atoll up` says it.

use super::source::{Asked, Demand, NodeFacts, Source, SourceError};
use crate::{amount::Amount, inventory::Moving};
use api::{ErrorCode, Problem, Secret, node::NodeDescription};
use reqwest::{Client, Url};
use std::{collections::HashSet, time::Duration};

/// An answer takes no longer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A longer answer is refused, in bytes.
const LONGEST: usize = 32 << 20;

/// Asks an Atoll for its nodes. What their sandboxes were promised counts as demand, shared out
/// evenly among them. Sandboxes stay until they are done. What waits for a place is not known:
/// room for it is held ready by the policy (`reserve_share`) and the forecast.
pub struct AtollSource {
    client: Client,
    url: Url,
    key: Secret,
}

impl AtollSource {
    /// The API at this address, with an administrator's key.
    ///
    /// # Errors
    /// When it is no address.
    pub fn open(url: &str, key: Secret) -> Result<Self, Problem> {
        let refuse = |cause: String| {
            Problem::new(
                ErrorCode::InvalidArgument,
                cause,
                "write `url` such as \"http://10.0.0.1:3000\"",
            )
        };
        let base = Url::parse(url).map_err(|error| refuse(format!("`{url}`: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(refuse(format!("`{url}` is not an HTTP address")));
        }
        let client = Client::builder()
            .timeout(DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build();
        Ok(Self {
            client: client.map_err(|error| refuse(error.to_string()))?,
            url: base.join("/v1/nodes").map_err(|e| refuse(e.to_string()))?,
            key,
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeDescription>, SourceError> {
        let failed = |error: reqwest::Error| SourceError(error.without_url().to_string());
        let request = self.client.get(self.url.clone());
        let request = request.header("X-API-KEY", self.key.expose());
        let mut response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(SourceError(format!("Atoll answered {}", response.status())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST {
                return Err(SourceError("Atoll's answer is too long".to_owned()));
            }
        }
        serde_json::from_slice(&body)
            .map_err(|error| SourceError(format!("Atoll's answer is not understood: {error}")))
    }
}

#[async_trait::async_trait]
impl Source for AtollSource {
    fn name(&self) -> &'static str {
        "atoll"
    }

    async fn read(&self) -> Result<Demand, SourceError> {
        let mut demand = Demand::default();
        let mut names = HashSet::new();
        for node in self.nodes().await? {
            if !names.insert(node.name.clone()) {
                return Err(SourceError(format!("two nodes are called `{}`", node.name)));
            }
            let facts = NodeFacts {
                ready: true,
                hold: false,
            };
            demand.nodes.insert(node.name.clone(), facts);
            demand.workloads.extend(sandboxes(&node));
        }
        Ok(demand)
    }

    async fn carries_work(&self, machine: &str) -> Option<bool> {
        let nodes = self.nodes().await.ok()?;
        let node = nodes.iter().find(|one| one.name == machine)?;
        Some(node.sandboxes > 0 || node.paused > 0)
    }
}

/// The sandboxes of a node: as many as run, each with its share of what all were promised.
/// Paused ones are on its disk alone, and are lost to nobody while it sleeps; but nobody can resume
/// them meanwhile, so they hold their node.
fn sandboxes(node: &NodeDescription) -> Vec<Asked> {
    let count = u64::from(node.sandboxes);
    let share = count.max(1);
    // Processors may be promised more than once; more than all of them are never in use.
    let processors = node.allocated.vcpus.min(node.capacity.vcpus);
    let (cpu, memory) = (
        (u64::from(processors) * 1000).div_euclid(share),
        node.allocated.memory.0.div_euclid(share),
    );
    let one = |name: String, request: Amount, moving: Moving| Asked {
        name,
        request,
        machine: Some(node.name.clone()),
        moving,
        set: None,
    };
    let running = (0..count).map(|at| {
        let request = Amount::new(cpu, memory, 0, 1);
        let name = format!("{}/sandbox-{at}", node.name);
        one(name, request, Moving::OnCompletion)
    });
    let paused = (node.paused > 0).then(|| {
        let name = format!("{}/paused", node.name);
        one(name, Amount::ZERO, Moving::LocalState)
    });
    running.chain(paused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Bytes, Resources};

    #[test]
    fn what_sandboxes_were_promised_is_shared_out() {
        let node: NodeDescription = serde_json::from_value(serde_json::json!({
            "id": "n000", "name": "m1", "driver": "container", "memory_snapshots": false,
            "capacity": Resources { vcpus: 4, memory: Bytes::gibibytes(8), disk: Bytes(0) },
            "allocated": Resources { vcpus: 8, memory: Bytes::gibibytes(4), disk: Bytes(0) },
            "sandboxes": 4, "sandboxes_max": 100, "slots_ready": 1, "paused": 1,
            "kernel": "6.18", "version": "0.1.0",
        }))
        .unwrap();
        let asked = sandboxes(&node);
        assert_eq!(asked.len(), 5);
        let sum: Amount = asked.iter().map(|one| one.request).sum();
        assert_eq!(sum, Amount::new(4000, 4 << 30, 0, 4));
        assert_eq!(asked[4].moving, Moving::LocalState);
        assert!(asked.iter().all(|one| one.machine.as_deref() == Some("m1")));
    }
}

//! A cluster as a source of demand.

use super::{
    client::{Api, ApiError},
    demand::{self, Machines},
    mirror::Mirror,
    resources::{Budget, Node, Pod},
};
use crate::{
    config::File,
    moment::Moment,
    serve::{Demand, Source, SourceError},
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The annotation of nodes that we cordoned, so that nobody else's cordon is ever taken back.
pub const CLOSED: &str = "atoll-fleet/closed";

/// The condition of nodes whose machines sleep on purpose. Cluster Autoscaler counts them as neither
/// broken nor on their way, from 1.36 on.
const SUSPENDED: &str = "Suspended";

/// So many nodes are marked together, and at most so many at a time.
const TOGETHER: usize = 32;
const MARKS: usize = 500;

/// Reads pods, nodes and disruption budgets; cordons, and empties by eviction.
pub struct KubernetesSource {
    api: Api,
    nodes: Mirror<Node>,
    pods: Mirror<Pod>,
    budgets: Mirror<Budget>,
    machines: Machines,
}

#[derive(Deserialize)]
struct Pods {
    #[serde(default)]
    items: Vec<Pod>,
}

impl KubernetesSource {
    /// Begins to follow a cluster. Its nodes are machines of the configuration by their provider
    /// ids, or else by their names. Needs a Tokio runtime.
    pub fn start(api: Api, file: &File) -> Self {
        let mut machines = HashMap::new();
        for machine in &file.machines {
            machines.insert(machine.name.clone(), machine.name.clone());
        }
        for machine in &file.machines {
            machines.insert(machine.provider_id(), machine.name.clone());
        }
        Self {
            nodes: Mirror::start(api.clone()),
            pods: Mirror::start(api.clone()),
            budgets: Mirror::start(api.clone()),
            api,
            machines: Machines(machines),
        }
    }

    /// The names of a machine's nodes: one, or none if it is not there.
    fn node_of(&self, machine: &str) -> Result<Vec<String>, SourceError> {
        let nodes = self.nodes.read().map_err(SourceError)?;
        let of_machine = nodes
            .iter()
            .filter(|one| self.machines.of(one) == Some(machine));
        Ok(of_machine.map(|one| one.metadata.name.clone()).collect())
    }
}

#[async_trait::async_trait]
impl Source for KubernetesSource {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    async fn read(&self) -> Result<Demand, SourceError> {
        let (nodes, pods) = (self.nodes.read(), self.pods.read());
        let (nodes, pods) = (nodes.map_err(SourceError)?, pods.map_err(SourceError)?);
        let budgets = self.budgets.read().map_err(SourceError)?;
        Ok(demand::demand(&nodes, &pods, &budgets, &self.machines))
    }

    /// Asks the API server itself, and not the copy.
    async fn carries_work(&self, machine: &str) -> Option<bool> {
        for node in self.node_of(machine).ok()? {
            let selector = format!("spec.nodeName={node}");
            let pods: Pods = self
                .api
                .get("/api/v1/pods", &[("fieldSelector", &selector)])
                .await
                .ok()?;
            let works = |pod: &Pod| !demand::is_done(pod) && !demand::goes_with_its_node(pod);
            if pods.items.iter().any(works) {
                return Some(true);
            }
        }
        Some(false)
    }

    fn moves_work(&self) -> bool {
        true
    }

    async fn close(&self, machine: &str, closed: bool) -> Result<(), SourceError> {
        let body = match closed {
            true => json!({
                "metadata": { "annotations": { (CLOSED): "true" } },
                "spec": { "unschedulable": true },
            }),
            false => json!({
                "metadata": { "annotations": { (CLOSED): null } },
                "spec": { "unschedulable": null },
            }),
        };
        for node in self.node_of(machine)? {
            match self
                .api
                .patch(&format!("/api/v1/nodes/{node}"), &body)
                .await
            {
                // Whoever is not there gets no work.
                Ok(()) | Err(ApiError::Missing) => {}
                Err(error) => return Err(SourceError(error.to_string())),
            }
        }
        Ok(())
    }

    /// Deletes its node, once the control plane has noticed that nobody answers for it. A kubelet
    /// that comes back makes it anew, without the taints by which Cluster Autoscaler emptied it.
    async fn forget(&self, machine: &str) -> Result<(), SourceError> {
        let nodes = self.nodes.read().map_err(SourceError)?;
        let gone = nodes
            .iter()
            .filter(|one| self.machines.of(one) == Some(machine) && !has(one, "Ready"));
        for node in gone {
            let (name, version) = (&node.metadata.name, &node.metadata.resource_version);
            let path = format!("/api/v1/nodes/{name}");
            match self.api.delete(&path, version).await {
                Ok(()) => tracing::info!(machine, node = name, "forgotten, as it sleeps"),
                // It may have come back: it is looked at again.
                Err(ApiError::Missing | ApiError::Changed) => {}
                Err(error) => return Err(SourceError(error.to_string())),
            }
        }
        Ok(())
    }

    /// Nodes that never slept have no such condition, and get none.
    async fn mark(&self, asleep: &[(&str, bool)], now: Moment) -> Vec<(String, SourceError)> {
        // Who cannot be read is marked another time; that there is trouble was said already.
        let Ok(nodes) = self.nodes.read() else {
            return Vec::new();
        };
        let asleep: HashMap<&str, bool> = asleep.iter().copied().collect();
        let wrong = nodes.iter().filter_map(|node| {
            let machine = self.machines.of(node)?;
            // Not before the control plane has noticed that nobody answers for it.
            let wanted = *asleep.get(machine)? && !has(node, "Ready");
            let names = (machine.to_owned(), node.metadata.name.clone());
            (has(node, SUSPENDED) != wanted).then_some((names, wanted))
        });
        let wrong: Vec<((String, String), bool)> = wrong.take(MARKS).collect();
        let api = &self.api;
        let mut marked = stream::iter(wrong)
            .map(|((machine, node), asleep)| async move {
                let path = format!("/api/v1/nodes/{node}/status");
                (
                    machine,
                    api.patch_lists(&path, &condition(asleep, now)).await,
                )
            })
            .buffer_unordered(TOGETHER);
        let mut failed = Vec::new();
        while let Some((machine, result)) = marked.next().await {
            match result {
                Ok(()) | Err(ApiError::Missing) => {}
                Err(error) => failed.push((machine, SourceError(error.to_string()))),
            }
        }
        failed
    }

    async fn evict(&self, workload: &str) -> Result<(), SourceError> {
        let Some((namespace, name)) = workload.split_once('/') else {
            return Err(SourceError(format!("`{workload}` is no pod")));
        };
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": name, "namespace": namespace },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        match self.api.post(&path, &body).await {
            Ok(()) | Err(ApiError::Missing) => Ok(()),
            Err(error) => Err(SourceError(error.to_string())),
        }
    }
}

/// Whether a node's condition is true.
fn has(node: &Node, condition: &str) -> bool {
    let mut conditions = node.status.conditions.iter();
    conditions.any(|one| one.kind == condition && one.status == "True")
}

/// What is merged into the status of a node.
fn condition(asleep: bool, now: Moment) -> Value {
    let seconds = i64::try_from(now.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    let (status, reason, message) = match asleep {
        true => (
            "True",
            "Asleep",
            "its machine is switched off until it is needed",
        ),
        false => ("False", "Awake", "its machine is on"),
    };
    let condition = json!({
        "type": SUSPENDED,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": time.to_string(),
        "lastHeartbeatTime": time.to_string(),
    });
    json!({ "status": { "conditions": [condition] } })
}

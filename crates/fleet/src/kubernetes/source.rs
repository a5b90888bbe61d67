//! A cluster as a source of demand.

use super::{
    client::{Api, ApiError},
    demand::{self, Machines},
    mirror::Mirror,
    resources::{Budget, Condition, Node, Pod},
};
use crate::{
    config::File,
    serve::{Demand, Source, SourceError},
};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

/// The annotation of nodes that we cordoned, so that nobody else's cordon is ever taken back.
pub const CLOSED: &str = "atoll-fleet/closed";

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
        let gone = nodes.iter().filter(|one| {
            let ready =
                |condition: &Condition| condition.kind == "Ready" && condition.status == "True";
            self.machines.of(one) == Some(machine) && !one.status.conditions.iter().any(ready)
        });
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

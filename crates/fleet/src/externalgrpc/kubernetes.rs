//! The part of `k8s.io.api.core.v1` that is needed here: nodes that are written, nodes and pods that
//! are read. Fields that are not named are skipped.

use crate::amount::Amount;
use prost::Message;
use std::collections::BTreeMap;

/// `v1.Node`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Node {
    /// Name, labels.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    /// Provider id, taints.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<NodeSpec>,
    /// Resources, conditions.
    #[prost(message, optional, tag = "3")]
    pub status: Option<NodeStatus>,
}

/// `meta.v1.ObjectMeta`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ObjectMeta {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "11")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[prost(btree_map = "string, string", tag = "12")]
    pub annotations: BTreeMap<String, String>,
}

/// `v1.NodeSpec`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeSpec {
    /// What the cloud knows it by.
    #[prost(string, tag = "3")]
    pub provider_id: String,
    /// What keeps pods away.
    #[prost(message, repeated, tag = "5")]
    pub taints: Vec<Taint>,
}

/// `v1.Taint`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Taint {
    /// What it is about.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
    /// What it does, such as `NoSchedule`.
    #[prost(string, tag = "3")]
    pub effect: String,
}

/// `v1.NodeStatus`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeStatus {
    /// All that it has.
    #[prost(btree_map = "string, message", tag = "1")]
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods can have of it.
    #[prost(btree_map = "string, message", tag = "2")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// What it says of itself.
    #[prost(message, repeated, tag = "4")]
    pub conditions: Vec<NodeCondition>,
}

/// `v1.NodeCondition`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeCondition {
    /// What it is about, such as `Ready`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[prost(string, tag = "2")]
    pub status: String,
    /// A word for programs.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// For people.
    #[prost(string, tag = "6")]
    pub message: String,
}

/// `resource.Quantity`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Quantity {
    /// A number with a unit, such as `500m` or `2Gi`.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// `v1.Pod`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Pod {
    /// Name, namespace.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    /// Containers.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<PodSpec>,
}

/// `v1.PodSpec`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodSpec {
    /// Containers that run together.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// Containers that run before, one after the other, or from then on.
    #[prost(message, repeated, tag = "20")]
    pub init_containers: Vec<Container>,
    /// What the pod itself takes.
    #[prost(btree_map = "string, message", tag = "32")]
    pub overhead: BTreeMap<String, Quantity>,
    /// What the pod as a whole asks for.
    #[prost(message, optional, tag = "40")]
    pub resources: Option<Resources>,
}

/// `v1.Container`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Container {
    /// What it asks for.
    #[prost(message, optional, tag = "8")]
    pub resources: Option<Resources>,
    /// `Always` for an init container that keeps running.
    #[prost(string, tag = "24")]
    pub restart_policy: String,
}

/// `v1.ResourceRequirements`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Resources {
    /// What is kept free for it.
    #[prost(btree_map = "string, message", tag = "2")]
    pub requests: BTreeMap<String, Quantity>,
}

impl Quantity {
    /// Of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// The number; nothing if it cannot be read or is negative.
    pub fn value(&self) -> f64 {
        let text = self.text.trim();
        let end = text.find(|c: char| c.is_ascii_alphabetic());
        let (mut number, mut unit) = text.split_at(end.unwrap_or(text.len()));
        // `1e3` is a number; `1E` is a unit.
        if let Some(exponent) = unit.strip_prefix(['e', 'E'])
            && exponent.parse::<i16>().is_ok()
        {
            (number, unit) = (text, "");
        }
        let factor = match unit {
            "n" => 1e-9,
            "u" => 1e-6,
            "m" => 1e-3,
            "" => 1.0,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "P" => 1e15,
            "E" => 1e18,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            "Ti" => 1_099_511_627_776.0,
            "Pi" => 1_125_899_906_842_624.0,
            "Ei" => 1_152_921_504_606_846_976.0,
            _ => return 0.0,
        };
        let value = number.parse::<f64>().unwrap_or(0.0) * factor;
        if value.is_finite() {
            value.max(0.0)
        } else {
            0.0
        }
    }
}

/// What a list of resources comes to. Whole values are rounded up.
pub fn amount(list: &BTreeMap<String, Quantity>, gpu: &str) -> Amount {
    let of = |name: &str, unit: f64| {
        let value = list.get(name).map_or(0.0, Quantity::value);
        // A millionth less, as a thousandth is no exact number.
        (value * unit - 1e-6).ceil().max(0.0) as u64
    };
    Amount::new(
        of("cpu", 1000.0),
        of("memory", 1.0),
        of(gpu, 1.0),
        of("pods", 1.0),
    )
}

impl Pod {
    /// What has to be kept free for it, and one place.
    pub fn request(&self, gpu: &str) -> Amount {
        let Some(spec) = &self.spec else {
            return Amount::ZERO;
        };
        let of = |container: &Container| {
            let resources = container.resources.as_ref();
            resources.map_or(Amount::ZERO, |one| amount(&one.requests, gpu))
        };
        let mut running: Amount = spec.containers.iter().map(of).sum();
        // An init container runs beside those before it that keep running.
        let (mut beside, mut most) = (Amount::ZERO, Amount::ZERO);
        for container in &spec.init_containers {
            if container.restart_policy == "Always" {
                beside = beside.plus(of(container));
                most = most.max(beside);
            } else {
                most = most.max(beside.plus(of(container)));
            }
        }
        running = running.plus(beside).max(most);
        if let Some(whole) = &spec.resources {
            // What is said for the pod as a whole counts, resource by resource.
            let said = amount(&whole.requests, gpu);
            for (resource, name) in [
                (crate::amount::Resource::Cpu, "cpu"),
                (crate::amount::Resource::Memory, "memory"),
            ] {
                if whole.requests.contains_key(name) {
                    running = running.with(resource, said.of(resource));
                }
            }
        }
        let overhead = amount(&spec.overhead, gpu);
        let all = running.plus(overhead);
        all.with(crate::amount::Resource::Places, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        for (text, expected) in [
            ("500m", 0.5),
            ("2", 2.0),
            ("1Gi", 1_073_741_824.0),
            ("1.5G", 1.5e9),
            ("1e3", 1000.0),
            ("1E", 1e18),
            ("-1", 0.0),
            ("x", 0.0),
            ("", 0.0),
            ("1e999", 0.0),
        ] {
            assert!(
                (Quantity::new(text).value() - expected).abs() < 1e-9,
                "{text}"
            );
        }
    }

    #[test]
    fn init_containers_count_as_the_scheduler_counts_them() {
        let container = |cpu: &str, policy: &str| Container {
            resources: Some(Resources {
                requests: BTreeMap::from([("cpu".to_owned(), Quantity::new(cpu))]),
            }),
            restart_policy: policy.to_owned(),
        };
        let mut spec = PodSpec {
            containers: vec![container("1", ""), container("500m", "")],
            init_containers: vec![container("200m", "Always"), container("3", "")],
            overhead: BTreeMap::from([("cpu".to_owned(), Quantity::new("100m"))]),
            resources: None,
        };
        let asks = |spec: &PodSpec| {
            let pod = Pod {
                metadata: None,
                spec: Some(spec.clone()),
            };
            pod.request("nvidia.com/gpu").cpu_millis
        };
        assert_eq!(
            asks(&spec),
            3300,
            "the init container of 3 beside the one that stays"
        );
        spec.init_containers.pop();
        assert_eq!(asks(&spec), 1800);
    }
}

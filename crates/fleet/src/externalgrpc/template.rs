//! What a node of a group will look like, before there is one.

use super::{Settings, kubernetes as k8s};
use crate::{
    inventory::Machine,
    targets::{Catalogue, Listed},
};
use std::collections::BTreeMap;

/// What a taint does if nothing else is said.
const NO_SCHEDULE: &str = "NoSchedule";

/// The node that a machine of this group makes once it is on and ready.
pub(super) fn node(group: &str, listed: &Listed, settings: &Settings) -> k8s::Node {
    let machine = &listed.machine;
    let name = format!("template-for-{group}");
    let resources = resources(machine, settings);
    k8s::Node {
        metadata: Some(k8s::ObjectMeta {
            labels: labels(&name, machine),
            name,
            ..k8s::ObjectMeta::default()
        }),
        spec: Some(k8s::NodeSpec {
            provider_id: Catalogue::template_id(group),
            taints: machine.taints.iter().map(taint).collect(),
        }),
        status: Some(k8s::NodeStatus {
            capacity: resources.clone(),
            allocatable: resources,
            conditions: conditions(),
        }),
    }
}

/// The operator's, and those that every kubelet sets.
fn labels(name: &str, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = machine.labels.clone();
    labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
    for (key, usual) in [
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
    ] {
        let value = labels
            .entry(key.to_owned())
            .or_insert_with(|| usual.to_owned());
        let value = value.clone();
        let old = key.replace("kubernetes.io", "beta.kubernetes.io");
        labels.entry(old).or_insert(value);
    }
    labels
}

fn taint(taint: &crate::inventory::Taint) -> k8s::Taint {
    k8s::Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: NO_SCHEDULE.to_owned(),
    }
}

fn resources(machine: &Machine, settings: &Settings) -> BTreeMap<String, k8s::Quantity> {
    let amount = machine.capacity;
    let mut all = BTreeMap::from([
        (
            "cpu".to_owned(),
            k8s::Quantity::new(format!("{}m", amount.cpu_millis)),
        ),
        (
            "memory".to_owned(),
            k8s::Quantity::new(amount.memory_bytes.to_string()),
        ),
        (
            "pods".to_owned(),
            k8s::Quantity::new(amount.places.to_string()),
        ),
    ]);
    if amount.gpus > 0 {
        let gpus = k8s::Quantity::new(amount.gpus.to_string());
        all.insert(settings.gpu_resource.clone(), gpus);
    }
    all
}

fn conditions() -> Vec<k8s::NodeCondition> {
    let condition = |kind: &str, status: &str| k8s::NodeCondition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: "Template".to_owned(),
        message: "as it will be".to_owned(),
    };
    vec![
        condition("Ready", "True"),
        condition("MemoryPressure", "False"),
        condition("DiskPressure", "False"),
        condition("PIDPressure", "False"),
        condition("NetworkUnavailable", "False"),
    ]
}

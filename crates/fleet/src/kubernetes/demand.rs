//! From resources to demand. Pure.
//!
//! What our words cannot say is never guessed: a pod with rules that are not understood is not moved,
//! and one that waits with such rules is shown without a place, with the reason as its label.

use super::{
    quantity::{millis, units},
    resources::{Affinity, Budget, Node, Pod, PodTerm, Toleration},
    source::CLOSED,
};
use crate::{
    amount::Amount,
    inventory::{Moving, Set, Spread, Taint},
    serve::{Asked, Demand, NodeFacts},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// On a pod: `true` if it may be evicted whatever it has, `false` if it must not.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// On a node: `true` if its machine is left on.
const LEFT_ON: &str = "cluster-autoscaler.kubernetes.io/scale-down-disabled";
/// On a pod that its node's kubelet runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// What no machine has: whoever asks for it finds no place.
const NOT_UNDERSTOOD: &str = "atoll-fleet/not-understood";

/// The machine of a node, by the node's provider id or its name.
pub(super) struct Machines(pub(super) HashMap<String, String>);

impl Machines {
    pub(super) fn of(&self, node: &Node) -> Option<&str> {
        let by = |key: &str| self.0.get(key).map(String::as_str);
        by(&node.spec.provider_id).or_else(|| by(&node.metadata.name))
    }
}

/// Whether a pod runs wherever there is a node, so that it holds none.
pub(super) fn goes_with_its_node(pod: &Pod) -> bool {
    let controller = pod.metadata.controller();
    controller.is_some_and(|one| one.kind == "DaemonSet" || one.kind == "Node")
        || pod.metadata.annotations.contains_key(MIRROR)
}

/// Whether a pod is done, so that it asks for nothing.
pub(super) fn is_done(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

/// What is asked for.
pub(super) fn demand(
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    budgets: &[Arc<Budget>],
    machines: &Machines,
) -> Demand {
    let mut demand = Demand::default();
    let mut of_nodes: HashMap<&str, Option<&str>> = HashMap::new();
    for node in nodes {
        let machine = machines.of(node);
        of_nodes.insert(&node.metadata.name, machine);
        if let Some(machine) = machine {
            demand.nodes.insert(machine.to_owned(), facts(node));
        }
    }
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().collect();
    sorted.sort_unstable_by_key(|pod| pod.metadata.key());
    for pod in sorted {
        if is_done(pod) || goes_with_its_node(pod) || !pod.spec.scheduling_gates.is_empty() {
            continue;
        }
        let machine = match pod.spec.node_name.as_str() {
            "" => None,
            node => match of_nodes.get(node).copied().flatten() {
                Some(machine) => Some(machine.to_owned()),
                // It runs on a node that is no machine of ours.
                None => continue,
            },
        };
        let (set, understood) = rules(pod, budgets);
        demand.workloads.push(Asked {
            name: pod.metadata.key(),
            request: request(pod),
            machine,
            moving: moving(pod, understood),
            set: Some(set.name.clone()),
        });
        let kept = sets.entry(set.name.clone()).or_insert_with(|| set.clone());
        kept.disruptions = match (kept.disruptions, set.disruptions) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }
    demand.sets = sets.into_values().collect();
    demand
}

fn facts(node: &Node) -> NodeFacts {
    let condition = |kind: &str| {
        let found = node.status.conditions.iter().find(|one| one.kind == kind);
        found.is_some_and(|one| one.status == "True")
    };
    let annotation = |name: &str| node.metadata.annotations.get(name).map(String::as_str);
    // Somebody else cordoned it, and will want to find it as it was left.
    let cordoned = node.spec.unschedulable && annotation(CLOSED).is_none();
    NodeFacts {
        ready: condition("Ready") && !cordoned,
        hold: cordoned || annotation(LEFT_ON) == Some("true"),
    }
}

/// What a pod asks for: what its containers need together, or one that comes before them needs alone.
fn request(pod: &Pod) -> Amount {
    let of = |requests: &BTreeMap<String, String>| {
        let mut amount = Amount::ZERO;
        for (name, text) in requests {
            match name.as_str() {
                "cpu" => amount.cpu_millis = millis(text).unwrap_or(0),
                "memory" => amount.memory_bytes = units(text).unwrap_or(0),
                accelerator if accelerator.ends_with("/gpu") => {
                    amount.gpus += units(text).unwrap_or(0);
                }
                _ => {}
            }
        }
        amount
    };
    let spec = &pod.spec;
    let together = spec
        .containers
        .iter()
        .map(|one| of(&one.resources.requests));
    let mut all: Amount = together.sum();
    let mut first = Amount::ZERO;
    // Those that stay run beside the others from then on.
    let mut beside = Amount::ZERO;
    for one in &spec.init_containers {
        let needs = of(&one.resources.requests);
        if one.restart_policy == "Always" {
            beside = beside.plus(needs);
            first = first.max(beside);
        } else {
            first = first.max(beside.plus(needs));
        }
    }
    all = all.plus(beside).max(first).plus(of(&spec.overhead));
    Amount { places: 1, ..all }
}

/// Whether a pod may be evicted.
fn moving(pod: &Pod, understood: bool) -> Moving {
    let safe = pod.metadata.annotations.get(SAFE_TO_EVICT);
    let safe = safe.map(String::as_str);
    if safe == Some("false") || !understood {
        return Moving::Never;
    }
    let local = |one: &super::resources::Volume| one.empty_dir.is_some() || one.host_path.is_some();
    match pod.metadata.controller().map(|one| one.kind.as_str()) {
        // Nobody would start it again.
        None => Moving::Never,
        Some("Job") if safe != Some("true") => Moving::OnCompletion,
        Some(_) if safe != Some("true") && pod.spec.volumes.iter().any(local) => Moving::LocalState,
        Some(_) => Moving::Free,
    }
}

/// The rules that a pod follows, under a name that pods with the same rules share, and whether all
/// of them are understood.
fn rules(pod: &Pod, budgets: &[Arc<Budget>]) -> (Set, bool) {
    let metadata = &pod.metadata;
    let owner = metadata
        .controller()
        .map_or_else(|| metadata.key(), |one| one.uid.clone());
    let mut set = Set::new(format!("{}/{owner}", metadata.namespace));
    let mut understood = true;
    set.labels.clone_from(&pod.spec.node_selector);
    understood &= take_affinity(&pod.spec.affinity, &mut set);
    let mut tolerations: Vec<&Toleration> = pod.spec.tolerations.iter().collect();
    tolerations.sort_unstable();
    set.tolerations = tolerations.into_iter().map(tolerated).collect();
    let own = |term: &PodTerm| term.label_selector.selects(&metadata.labels);
    for term in &pod.spec.affinity.pod_anti_affinity.required {
        if term.topology_key == HOSTNAME && own(term) {
            set.apart = true;
        } else {
            understood = false;
        }
    }
    understood &= pod.spec.affinity.pod_affinity.required.is_empty();
    for spread in &pod.spec.topology_spread_constraints {
        if spread.when_unsatisfiable != "DoNotSchedule" {
            continue;
        }
        if set.spread.is_some() {
            understood = false;
            continue;
        }
        set.spread = Some(Spread {
            label: spread.topology_key.clone(),
            skew: spread.max_skew.max(1),
        });
    }
    for budget in budgets
        .iter()
        .filter(|one| one.metadata.namespace == metadata.namespace)
    {
        let selector = budget.spec.selector.as_ref();
        if selector.is_some_and(|selector| selector.selects(&metadata.labels)) {
            let status = &budget.status;
            let missing = status.expected_pods.saturating_sub(status.desired_healthy);
            set.disruptions = Some(set.disruptions.map_or(missing, |one| one.min(missing)));
        }
    }
    if !understood {
        set.name.push_str("/not-understood");
        let why = "a rule about nodes or other pods".to_owned();
        set.labels.insert(NOT_UNDERSTOOD.to_owned(), why);
    }
    (set, understood)
}

/// Required labels of nodes, as far as they are plain equalities.
fn take_affinity(affinity: &Affinity, set: &mut Set) -> bool {
    match affinity
        .node_affinity
        .required
        .node_selector_terms
        .as_slice()
    {
        [] => true,
        [term] => {
            for one in &term.match_expressions {
                match (one.operator.as_str(), one.values.as_slice()) {
                    ("In", [value]) => {
                        set.labels.insert(one.key.clone(), value.clone());
                    }
                    _ => return false,
                }
            }
            term.match_fields.is_empty()
        }
        _ => false,
    }
}

/// An empty value tolerates every value.
fn tolerated(one: &Toleration) -> Taint {
    let any = one.operator == "Exists";
    Taint {
        key: one.key.clone(),
        value: if any {
            String::new()
        } else {
            one.value.clone()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(more: Value) -> Arc<Pod> {
        let mut whole = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": { "app": "web" },
                "ownerReferences": [{ "kind": "ReplicaSet", "uid": "u1", "controller": true }],
            },
            "spec": {
                "nodeName": "n1", "overhead": null,
                "containers": [{ "resources": { "requests": { "cpu": "500m", "memory": "1Gi" } } }],
            },
            "status": { "phase": "Running" },
        });
        merge(&mut whole, more);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn node(more: Value) -> Arc<Node> {
        let mut whole = json!({
            "metadata": { "name": "n1" },
            "spec": { "providerID": "atoll://m1" },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        merge(&mut whole, more);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    fn of(pods: &[Arc<Pod>], budgets: &[Value]) -> Demand {
        let machines = Machines(HashMap::from([("atoll://m1".into(), "m1".into())]));
        let budgets: Vec<Arc<Budget>> = budgets
            .iter()
            .map(|one| Arc::new(serde_json::from_value(one.clone()).unwrap()))
            .collect();
        demand(&[node(json!({}))], pods, &budgets, &machines)
    }

    #[test]
    fn a_pod_is_a_workload_on_the_machine_of_its_node() {
        let demand = of(&[pod(json!({}))], &[]);
        let one = &demand.workloads[0];
        assert_eq!(
            (one.name.as_str(), one.machine.as_deref()),
            ("shop/web-1", Some("m1"))
        );
        assert_eq!(one.request, Amount::workload(500, 1024));
        assert_eq!(one.moving, Moving::Free);
        assert!(demand.nodes["m1"].ready && !demand.nodes["m1"].hold);
        let waits = pod(json!({ "spec": { "nodeName": null }, "status": { "phase": "Pending" } }));
        assert_eq!(of(&[waits], &[]).workloads[0].machine, None);
    }

    #[test]
    fn what_holds_no_machine_is_left_out() {
        for more in [
            json!({ "status": { "phase": "Succeeded" } }),
            json!({ "metadata": { "ownerReferences": [{ "kind": "DaemonSet", "uid": "d", "controller": true }] } }),
            json!({ "metadata": { "annotations": { (MIRROR): "x" } } }),
            json!({ "spec": { "schedulingGates": [{ "name": "wait" }] } }),
            json!({ "spec": { "nodeName": "elsewhere" } }),
        ] {
            assert!(of(&[pod(more.clone())], &[]).workloads.is_empty(), "{more}");
        }
    }

    #[test]
    fn who_may_be_evicted_is_as_cluster_autoscaler_has_it() {
        let owner = |kind: &str| json!([{ "kind": kind, "uid": "u", "controller": true }]);
        let annotated =
            |safe: &str| json!({ "metadata": { "annotations": { (SAFE_TO_EVICT): safe } } });
        let local = json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } });
        let mut local_but_safe = local.clone();
        merge(&mut local_but_safe, annotated("true"));
        for (more, expected) in [
            (annotated("false"), Moving::Never),
            (local, Moving::LocalState),
            (local_but_safe, Moving::Free),
            (
                json!({ "metadata": { "ownerReferences": [] } }),
                Moving::Never,
            ),
            (
                json!({ "metadata": { "ownerReferences": owner("Job") } }),
                Moving::OnCompletion,
            ),
            (
                json!({ "metadata": { "ownerReferences": owner("StatefulSet") } }),
                Moving::Free,
            ),
        ] {
            let demand = of(&[pod(more.clone())], &[]);
            assert_eq!(demand.workloads[0].moving, expected, "{more}");
        }
    }

    #[test]
    fn rules_that_are_not_understood_hold_a_pod_where_it_is() {
        let term = |operator: &str| {
            json!({ "spec": { "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                    { "matchExpressions": [{ "key": "zone", "operator": operator, "values": ["a"] }] },
                ] } } } } })
        };
        let plain = of(&[pod(term("In"))], &[]);
        assert_eq!(plain.sets[0].labels["zone"], "a");
        assert_eq!(plain.workloads[0].moving, Moving::Free);
        let strange = of(&[pod(term("Gt"))], &[]);
        assert_eq!(strange.workloads[0].moving, Moving::Never);
        assert!(strange.sets[0].labels.contains_key(NOT_UNDERSTOOD));
        let apart = json!({ "spec": { "affinity": { "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": HOSTNAME, "labelSelector": { "matchLabels": { "app": "web" } } },
            ] } } } });
        let apart = of(&[pod(apart)], &[]);
        assert!(apart.sets[0].apart && apart.workloads[0].moving == Moving::Free);
    }

    #[test]
    fn a_budget_bounds_how_many_may_be_missing() {
        let budget = json!({
            "metadata": { "name": "b", "namespace": "shop" },
            "spec": { "selector": { "matchExpressions": [
                { "key": "app", "operator": "In", "values": ["web"] } ] } },
            "status": { "expectedPods": 5, "desiredHealthy": 3 },
        });
        let mut elsewhere = budget.clone();
        elsewhere["metadata"]["namespace"] = "other".into();
        elsewhere["status"]["desiredHealthy"] = 5.into();
        let demand = of(&[pod(json!({}))], &[budget, elsewhere]);
        assert_eq!(demand.sets[0].disruptions, Some(2));
    }

    #[test]
    fn containers_that_come_first_count_if_they_need_more() {
        let requests = |cpu: &str| json!({ "resources": { "requests": { "cpu": cpu, "nvidia.com/gpu": "1" } } });
        let mut stays = requests("200m");
        stays["restartPolicy"] = "Always".into();
        let one = pod(json!({ "spec": {
            "containers": [requests("500m"), requests("500m")],
            "initContainers": [stays, requests("2")],
            "overhead": { "cpu": "100m" },
        } }));
        let asked = request(&one);
        assert_eq!((asked.cpu_millis, asked.gpus), (2300, 3));
    }

    #[test]
    fn a_node_that_somebody_else_cordoned_is_left_on() {
        let cordoned = node(json!({ "spec": { "unschedulable": true } }));
        assert!(facts(&cordoned).hold && !facts(&cordoned).ready);
        let ours = node(json!({
            "metadata": { "annotations": { (CLOSED): "true" } }, "spec": { "unschedulable": true },
        }));
        assert!(!facts(&ours).hold && facts(&ours).ready);
        let asked = node(json!({ "metadata": { "annotations": { (LEFT_ON): "true" } } }));
        assert!(facts(&asked).hold);
    }
}

//! A Kubernetes cluster as the source of demand: pods are seen where they are, nodes are cordoned and emptied
//! before their machines sleep, and take pods again when they wake.

use super::{
    bench::{Bench, STEP, bench_with},
    cluster::{self, Cluster},
};
use fleet::{
    kubernetes::{Api, KubernetesSource, Place},
    moment::Span,
    serve::Source,
    targets::NodeName,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

struct Scene {
    bench: Bench,
    cluster: Cluster,
    source: Arc<KubernetesSource>,
    token: tempfile::NamedTempFile,
    _server: tokio::task::JoinSet<()>,
}

/// Three machines, of which the first is a base machine, each with a daemon's pod on it.
async fn scene(dry_run: bool) -> Scene {
    scene_of("", dry_run).await
}

async fn scene_of(group: &str, dry_run: bool) -> Scene {
    let mut bench = bench_with(3, group, dry_run).await;
    let (cluster, address, server) = cluster::start().await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "first\n").unwrap();
    cluster.with(|state| state.token = "first".to_owned());
    for name in ["m0", "m1", "m2"] {
        cluster.node(name, true);
        cluster.pod(&format!("log-{name}"), 100, Some(name), "DaemonSet");
    }
    let place = Place {
        url: Some(address),
        token: Some(token.path().to_owned()),
        certificate_authority: None,
    };
    let source = Arc::new(KubernetesSource::start(
        Api::open(&place).unwrap(),
        &bench.file,
    ));
    bench.follow(source.clone()).await;
    let mut scene = Scene {
        bench,
        cluster,
        source,
        token,
        _server: server,
    };
    scene.see().await;
    scene
}

impl Scene {
    /// Nodes follow their machines; what carries pods works; waits until all of that was seen.
    async fn see(&mut self) {
        let up: Vec<(String, bool)> = self.bench.with(|world| {
            let machines = world.machines.iter();
            machines.map(|(name, one)| (name.clone(), one.up)).collect()
        });
        for (name, up) in &up {
            self.cluster.node(name, *up);
        }
        let expected = self.cluster.placed();
        self.bench.with(|world| {
            world.working = expected.values().flatten().cloned().collect();
        });
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let seen = self.source.read().await;
            if let Ok(demand) = &seen {
                let placed: BTreeMap<String, Option<String>> = demand
                    .workloads
                    .iter()
                    .map(|one| (one.name.clone(), one.machine.clone()))
                    .collect();
                let ready = up.iter().all(|(name, up)| {
                    let facts = demand.nodes.get(name);
                    facts.map_or(!*up, |one| one.ready == *up || one.hold)
                });
                if placed == expected && ready {
                    return;
                }
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{expected:?} {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn run(&mut self, span: Span) {
        let end = self.bench.now().plus(span);
        while self.bench.now() < end {
            self.bench.run(STEP).await;
            self.see().await;
        }
    }

    async fn until(&mut self, machine: &str, up: bool) {
        let start = self.bench.now();
        while self.bench.with(|world| world.machines[machine].up) != up {
            assert!(
                self.bench.now().since(start) < Span::hours(1),
                "{machine} {up}"
            );
            self.run(STEP).await;
        }
    }
}

#[tokio::test]
async fn a_cluster_is_emptied_and_filled_again() {
    let mut scene = scene(false).await;
    scene.cluster.pod("a", 1000, Some("m0"), "ReplicaSet");
    scene.cluster.pod("b", 1000, Some("m1"), "ReplicaSet");
    scene.cluster.with(|state| state.budget_forbids = true);
    scene.see().await;
    // Daemons hold nothing, so the last machine sleeps at once; a budget holds the other.
    scene.until("m2", false).await;
    scene.run(Span::minutes(10)).await;
    assert!(scene.cluster.with(|state| state.evictions > 0));
    let trouble = scene.bench.fleet.shared().status().trouble;
    assert!(
        trouble.iter().any(|one| one.contains("disruption budget")),
        "{trouble:?}"
    );
    assert!(scene.bench.sent("m1").is_empty());

    // Watches break off, the server forgets, and the token is replaced: nothing of that is seen.
    scene.cluster.break_off();
    std::fs::write(scene.token.path(), "second").unwrap();
    scene
        .cluster
        .with(|state| state.token = "second".to_owned());
    let lists = scene.cluster.with(|state| state.lists);
    scene.cluster.forget();
    scene.cluster.with(|state| state.budget_forbids = false);
    scene.until("m1", false).await;
    assert!(
        scene.cluster.with(|state| state.lists) > lists,
        "all was listed anew"
    );
    let placed = scene.cluster.placed();
    assert!(
        placed.values().all(|node| node.as_deref() == Some("m0")),
        "{placed:?}"
    );

    // A pod that finds no place wakes a machine, and is bound there by the cluster's own scheduler.
    scene.cluster.pod("c", 3500, None, "ReplicaSet");
    scene.see().await;
    scene.until("m1", true).await;
    scene.run(Span(30)).await;
    assert_eq!(scene.cluster.placed()["shop/c"].as_deref(), Some("m1"));
    assert!(scene.bench.with(|world| world.violations.is_empty()));
    let cordons = scene.cluster.with(|state| {
        let all = state.patches.iter();
        let of_spec = all.filter(|(_, change)| change["spec"].is_object());
        of_spec.cloned().collect::<Vec<_>>()
    });
    let (node, change) = cordons.last().unwrap();
    assert_eq!(node, "m1");
    assert!(change["spec"]["unschedulable"].is_null());
}

#[tokio::test]
async fn what_somebody_else_cordoned_is_left_and_a_dry_run_touches_nothing() {
    let mut scene = scene(true).await;
    scene.cluster.cordon("m2");
    scene.see().await;
    scene.cluster.pod("b", 1000, Some("m1"), "ReplicaSet");
    scene.see().await;
    scene.run(Span::minutes(20)).await;
    assert_eq!(scene.bench.reason("m2"), "ScaleDownDisabledAnnotation");
    let plan = scene.bench.fleet.shared().plan();
    assert!(
        plan.actions.iter().any(|one| one.machine == "m1"),
        "{plan:?}"
    );
    let (patches, evictions) = scene
        .cluster
        .with(|state| (state.patches.len(), state.evictions));
    assert_eq!((patches, evictions), (0, 0));
    assert!(scene.bench.sent("m1").is_empty());
}

/// A node that is kept while its machine sleeps is none that is broken, and says so.
#[tokio::test]
async fn the_node_of_a_machine_that_sleeps_is_kept_and_says_so() {
    let mut scene = scene(false).await;
    scene.cluster.pod("a", 3500, Some("m0"), "ReplicaSet");
    scene.see().await;
    scene.until("m1", false).await;
    scene.run(Span(60)).await;
    let said = scene.cluster.suspended("m1").unwrap();
    assert_eq!(
        (&said["status"], &said["reason"]),
        (&json!("True"), &json!("Asleep"))
    );
    let since = said["lastTransitionTime"].as_str().unwrap();
    assert!(
        since.starts_with("1970-01-12T") && since.ends_with('Z'),
        "{since}"
    );
    assert_eq!(scene.cluster.suspended("m0"), None, "it never slept");
    let marks = |scene: &Scene| {
        let of_status = |change: &Value| change["status"].is_object();
        scene.cluster.with(|state| {
            let all = state.patches.iter();
            all.filter(|(node, change)| node == "m1" && of_status(change))
                .count()
        })
    };
    assert_eq!(marks(&scene), 1, "said once, and not with every tick");

    scene.cluster.pod("b", 3500, None, "ReplicaSet");
    scene.see().await;
    scene.until("m1", true).await;
    scene.run(Span(60)).await;
    assert_eq!(scene.cluster.suspended("m1").unwrap()["status"], "False");
    assert_eq!(scene.cluster.placed()["shop/b"].as_deref(), Some("m1"));
    assert_eq!(marks(&scene), 2);
    let trouble = scene.bench.fleet.shared().status().trouble;
    assert!(trouble.is_empty(), "{trouble:?}");
}

/// Cluster Autoscaler taints what it gives back, and never takes that away from a node that stays; and
/// it stops when too many nodes are not ready.
#[tokio::test]
async fn the_node_of_a_machine_that_was_given_back_is_forgotten_while_it_sleeps() {
    let mut scene = scene_of("cluster_autoscaler = true", false).await;
    scene.run(Span(60)).await;
    let targets = scene.bench.fleet.targets().unwrap();
    scene.cluster.taint("m1", "ToBeDeletedByClusterAutoscaler");
    let node = NodeName {
        provider_id: "atoll://m1".to_owned(),
        name: "m1".to_owned(),
    };
    let given = targets.delete("pool", vec![node], scene.bench.now()).await;
    assert_eq!(given.unwrap(), ["m1"]);
    scene.until("m1", false).await;
    scene.run(Span::minutes(2)).await;
    assert_eq!(scene.cluster.taints("m1"), None, "it is forgotten");
    let marked = scene.cluster.with(|state| {
        let all = state.patches.iter();
        all.filter(|(_, change)| change["status"].is_object())
            .count()
    });
    assert_eq!(marked, 0, "and was not marked before");
    assert!(scene.cluster.taints("m0").is_some());
    assert!(scene.cluster.taints("m2").is_some(), "who is on is kept");

    let promised = targets.increase("pool", 1, scene.bench.now()).await;
    assert_eq!(promised.unwrap(), ["m1"]);
    scene.until("m1", true).await;
    scene.run(Span::minutes(2)).await;
    let taints = scene.cluster.taints("m1").unwrap();
    assert!(taints.is_null(), "its kubelet made it anew: {taints}");
    assert!(scene.bench.with(|world| world.violations.is_empty()));
}

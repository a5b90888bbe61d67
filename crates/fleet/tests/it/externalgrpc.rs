//! Cluster Autoscaler's calls: the bytes of both generations of the wire, the mistakes of others,
//! and every trap that its clients set.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::cluster;

use cluster::{Cluster, ask, client::Client, fake, id, node, seen};
use fleet::{
    externalgrpc::{Call, GroupOptions, Service, Settings, kubernetes as k8s, serve, wire},
    inventory::Power,
    moment::Span,
    power::transition::{Intent, Outcome, Wanted},
    targets::{Catalogue, Seen, Targets, Wish},
    tariff::{Curve, Objective, Tariff},
};
use prost::Message;
use std::time::Duration;
use tonic::{Code, Status};

// Protocol buffers by hand, so that nothing that is tested also makes what it is tested with.

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn number(tag: u64, value: i64) -> Vec<u8> {
    [varint(tag << 3), varint(value as u64)].concat()
}

fn double(tag: u64, value: f64) -> Vec<u8> {
    [varint(tag << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn bytes(tag: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [
        varint(tag << 3 | 2),
        varint(value.len() as u64),
        value.to_vec(),
    ]
    .concat()
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

async fn plain(on: &[&str]) -> Cluster {
    Cluster::new(Settings::default(), on).await
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.err().map_or(Code::Ok, |status| status.code())
}

const RUNNING: i32 = 1;
const CREATING: i32 = 2;
const DELETING: i32 = 3;

#[tokio::test]
async fn rivals_mistake_1_a_negative_delta_does_nothing() {
    let cluster = plain(&["s0"]).await;
    cluster.increase("small", 2).await.unwrap();
    assert_eq!(cluster.target("small").await, 3);
    cluster.decrease("small", -1).await.unwrap();
    assert_eq!(cluster.target("small").await, 2);
    let wanted = cluster.targets.wanted();
    let given = wanted.iter().filter(|one| one.wish == Wish::GivenBack);
    assert_eq!(given.count(), 1, "nobody goes on waking it: {wanted:?}");
}

#[tokio::test]
async fn rivals_mistake_2_a_decrease_switches_running_machines_off() {
    let cluster = plain(&["s0", "s1", "s2"]).await;
    for delta in [-1, 1, 0, i32::MIN] {
        assert_ne!(code(cluster.decrease("small", delta).await), Code::Ok);
    }
    cluster.increase("small", 1).await.unwrap();
    assert_ne!(code(cluster.decrease("small", -2).await), Code::Ok);
    assert_eq!(cluster.target("small").await, 4, "all or nothing");
    assert!(
        cluster
            .targets
            .wanted()
            .iter()
            .all(|one| one.wish == Wish::On)
    );
}

#[tokio::test]
async fn rivals_mistake_3_sleeping_machines_are_listed() {
    let cluster = plain(&["s0"]).await;
    let first = ("metal://rack/s0".to_owned(), RUNNING);
    assert_eq!(cluster.listed("small").await, std::slice::from_ref(&first));
    assert_eq!(cluster.listed("large").await, []);
    cluster.increase("small", 1).await.unwrap();
    let second = ("metal://rack/s1".to_owned(), CREATING);
    assert_eq!(cluster.listed("small").await, [first, second]);
}

#[tokio::test]
async fn rivals_mistake_4_instances_have_names_for_ids() {
    let cluster = plain(&["s0", "s1", "l0"]).await;
    for group in ["small", "large"] {
        for (id, _) in cluster.listed(group).await {
            // What Cluster Autoscaler compares it with.
            let machine = id.strip_prefix("metal://rack/").unwrap();
            assert_eq!(node(machine).provider_id, id);
        }
    }
}

#[tokio::test]
async fn rivals_mistake_5_an_increase_that_fails_leaves_machines_on() {
    let cluster = plain(&["s0"]).await;
    // Three can be woken, but one of them rests.
    cluster.increase("small", 1).await.unwrap();
    let mut failed = Intent::new(Wanted::On, cluster.now());
    failed.outcome = Some(Outcome::NeverCame);
    let mut dead = seen("s1", false);
    dead.intent = Some(failed);
    cluster.observe(vec![dead]).await;
    cluster.delete("small", &["s1"]).await.unwrap();
    cluster.observe(vec![seen("s1", false)]).await;
    let before = cluster.targets.wanted();
    assert_eq!(
        code(cluster.increase("small", 3).await),
        Code::ResourceExhausted
    );
    assert_eq!(code(cluster.increase("small", 4).await), Code::OutOfRange);
    assert_eq!(
        code(cluster.increase("small", -1).await),
        Code::InvalidArgument
    );
    assert_eq!(cluster.targets.wanted(), before);
    assert_eq!(cluster.target("small").await, 1);
    cluster.increase("small", 2).await.unwrap();
    let wanted = cluster.targets.wanted();
    assert!(wanted.iter().all(|one| one.machine != "s1"), "{wanted:?}");
}

#[tokio::test]
async fn rivals_mistake_6_a_group_cannot_grow_from_nothing() {
    let cluster = plain(&["s0"]).await;
    assert_eq!(cluster.target("large").await, 0);
    let answer = cluster.raw(Call::NodeGroupTemplateNodeInfo, bytes(1, "large"));
    let answer = answer.await.unwrap();
    let template = wire::Template::decode(answer).unwrap();
    let node = k8s::Node::decode(template.node_bytes.as_slice()).unwrap();
    let metadata = node.metadata.unwrap();
    for (label, value) in [
        ("kubernetes.io/hostname", metadata.name.as_str()),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/zone", "north"),
    ] {
        assert_eq!(metadata.labels[label], value);
    }
    let spec = node.spec.unwrap();
    assert_eq!(spec.taints[0].key, "gpu");
    assert_eq!(spec.taints[0].effect, "NoSchedule");
    let status = node.status.unwrap();
    assert_eq!(status.capacity, status.allocatable);
    let room = k8s::amount(&status.allocatable, "nvidia.com/gpu");
    assert_eq!((room.cpu_millis, room.gpus, room.places), (64_000, 2, 110));
    assert_eq!(room.memory_bytes, 64 << 32);
    let ready = status.conditions.iter().find(|one| one.kind == "Ready");
    assert_eq!(ready.unwrap().status, "True");
    cluster.increase("large", 1).await.unwrap();
    assert_eq!(cluster.target("large").await, 1);
    // The template is asked for its group too, while it stands for nodes to come.
    let stand_in = wire::Node {
        provider_id: spec.provider_id,
        name: "template-node-for-large-123".into(),
        ..wire::Node::default()
    };
    let question = wire::ForNode {
        node: Some(stand_in),
    };
    let group: wire::GroupOfNode = cluster
        .ask(Call::NodeGroupForNode, &question)
        .await
        .unwrap();
    assert_eq!(group.node_group.unwrap().id, "large");
}

#[tokio::test]
async fn both_generations_of_the_wire_are_spoken_at_once() {
    let cluster = plain(&["s0", "s1"]).await;

    // NodeGroups: id=1, minSize=2, maxSize=3, debug=4.
    let groups = cluster.raw(Call::NodeGroups, Vec::new()).await.unwrap();
    let small = [bytes(1, "small"), number(2, 1), number(3, 4)].concat();
    assert!(contains(&groups, &small));
    // `large` has no least number: nothing is written for a zero.
    assert!(contains(
        &groups,
        &[bytes(1, "large"), number(3, 2)].concat()
    ));

    // NodeGroupForNode: node=1{providerID=1, name=2, labels=3, annotations=4} to nodeGroup=1.
    let label = [bytes(1, "a"), bytes(2, "b")].concat();
    let asked = [
        bytes(1, "metal://rack/s1"),
        bytes(2, "s1"),
        bytes(3, &label),
        bytes(4, label),
    ];
    let asked = bytes(1, asked.concat());
    let group = cluster.raw(Call::NodeGroupForNode, asked).await.unwrap();
    assert!(contains(&group, &small) && group[0] == 0x0a);

    // NodeGroupTargetSize: id=1 to targetSize=1.
    let size = cluster
        .raw(Call::NodeGroupTargetSize, bytes(1, "small"))
        .await;
    assert_eq!(size.unwrap(), number(1, 2));

    // NodeGroupIncreaseSize: delta=1, id=2 to nothing. A negative int32 has ten bytes.
    let delta = |count| [number(1, count), bytes(2, "small")].concat();
    assert_eq!(
        cluster
            .raw(Call::NodeGroupIncreaseSize, delta(2))
            .await
            .unwrap(),
        ""
    );
    assert_eq!(
        cluster
            .raw(Call::NodeGroupDecreaseTargetSize, delta(-1))
            .await
            .unwrap(),
        ""
    );
    assert_eq!(number(1, -1).len(), 11);
    assert_eq!(cluster.target("small").await, 3);

    // NodeGroupDeleteNodes: nodes=1, id=2 to nothing.
    let node = [bytes(1, "metal://rack/s1"), bytes(2, "s1")].concat();
    let delete = [bytes(1, node), bytes(2, "small")].concat();
    assert_eq!(
        cluster
            .raw(Call::NodeGroupDeleteNodes, delete)
            .await
            .unwrap(),
        ""
    );

    // NodeGroupNodes: instances=1{id=1, status=2{instanceState=1}}.
    let nodes = cluster
        .raw(Call::NodeGroupNodes, bytes(1, "small"))
        .await
        .unwrap();
    for (machine, state) in [("s0", RUNNING), ("s1", DELETING)] {
        let id = bytes(1, format!("metal://rack/{machine}"));
        let instance = [id, bytes(2, number(1, i64::from(state)))].concat();
        assert!(contains(&nodes, &bytes(1, instance)), "{machine}");
    }

    // NodeGroupTemplateNodeInfo: nodeInfo=1 until 1.34, nodeBytes=2 from 1.35 on; the same bytes.
    let template = cluster.raw(Call::NodeGroupTemplateNodeInfo, bytes(1, "large"));
    let template = template.await.unwrap();
    let read = wire::Template::decode(template.clone()).unwrap();
    assert_eq!(read.node_info, read.node_bytes);
    assert_eq!(
        template,
        [bytes(1, &read.node_info), bytes(2, &read.node_bytes)].concat()
    );
    // v1.Node: metadata=1{labels=11}, spec=2{taints=5}, status=3{capacity=1, conditions=4}.
    let taint = [bytes(1, "gpu"), bytes(2, "yes"), bytes(3, "NoSchedule")].concat();
    let cpu = [bytes(1, "cpu"), bytes(2, bytes(1, "64000m"))].concat();
    let arch = [bytes(1, "kubernetes.io/arch"), bytes(2, "amd64")].concat();
    for part in [
        bytes(5, taint),
        bytes(1, &cpu),
        bytes(2, cpu),
        bytes(11, arch),
    ] {
        assert!(contains(&read.node_info, &part));
    }

    // Refresh, Cleanup and GPULabel.
    assert_eq!(cluster.raw(Call::Refresh, Vec::new()).await.unwrap(), "");
    assert_eq!(cluster.raw(Call::Cleanup, Vec::new()).await.unwrap(), "");
    let label = cluster.raw(Call::GpuLabel, Vec::new()).await.unwrap();
    assert_eq!(label, bytes(1, "nvidia.com/gpu.product"));
    // GetAvailableGPUTypes: a map whose keys count.
    let types = cluster
        .raw(Call::GetAvailableGpuTypes, Vec::new())
        .await
        .unwrap();
    assert_eq!(types, bytes(1, bytes(1, "L4")));
    assert!(
        cluster.raw(Call::NodeGroups, vec![0xff]).await.is_ok(),
        "it has no fields"
    );
    let refused = cluster.raw(Call::NodeGroupNodes, vec![0xff]).await;
    assert_eq!(code(refused), Code::InvalidArgument);
}

#[tokio::test]
async fn prices_are_asked_for_in_both_generations() {
    let tariff = Tariff {
        price_per_kwh: Curve::flat(0.5),
        objective: Objective::Cost,
        ..Tariff::default()
    };
    let settings = Settings {
        tariff,
        ..Settings::default()
    };
    let cluster = Cluster::new(settings, &["s0"]).await;
    let time = |seconds: i64| number(1, seconds);
    let node = bytes(1, [bytes(1, "metal://rack/s1"), bytes(2, "s1")].concat());
    let container = bytes(
        2,
        bytes(
            8,
            bytes(2, [bytes(1, "cpu"), bytes(2, bytes(1, "4"))].concat()),
        ),
    );
    let pod = bytes(2, container);
    let price = |call, question: Vec<u8>| {
        let answer = cluster.raw(call, question);
        async { wire::Price::decode(answer.await.unwrap()).unwrap().price }
    };
    for [pod_tag, pod_start, pod_end, start, end] in [[1, 2, 3, 2, 3], [4, 5, 6, 4, 5]] {
        // Half loaded it draws 120 W more than switched off: for ten hours, 1.2 kWh.
        let question = [&node[..], &bytes(start, time(0)), &bytes(end, time(36_000))].concat();
        let found = price(Call::PricingNodePrice, question).await;
        assert!((found - 0.6).abs() < 1e-9, "{found}");
        // Four processors of the small machine, which has eight, draw 80 W of its 160 at the most.
        let times = [bytes(pod_start, time(0)), bytes(pod_end, time(36_000))].concat();
        let question = [bytes(pod_tag, &pod), times].concat();
        let found = price(Call::PricingPodPrice, question).await;
        assert!((found - 0.4).abs() < 1e-9, "{found}");
    }
    let backwards = [&node[..], &bytes(4, time(9)), &bytes(5, time(1))].concat();
    let refused = cluster.raw(Call::PricingNodePrice, backwards).await;
    assert_eq!(code(refused), Code::InvalidArgument);
}

#[tokio::test]
async fn options_are_the_defaults_but_for_what_the_operator_says() {
    let cluster = plain(&["s0"]).await;
    let legacy = |tag, seconds: i64| bytes(tag, number(1, seconds * 1_000_000_000));
    let modern = |tag, seconds: i64| bytes(tag, number(1, seconds));
    let old = [
        double(1, 0.5),
        double(2, 0.6),
        legacy(3, 600),
        legacy(4, 1200),
        legacy(5, 900),
    ];
    let startup = [bytes(11, number(1, 900)), number(12, 1)].concat();
    let later = bytes(40, "what nobody knows yet");
    let new = [
        double(1, 0.5),
        double(2, 0.6),
        modern(8, 600),
        modern(9, 1200),
        modern(10, 900),
    ];
    let new = [new.concat(), startup.clone(), later.clone()].concat();
    let ask = |cluster: &Cluster, defaults: &[u8]| {
        let question = [bytes(1, "small"), bytes(2, defaults)].concat();
        let service = cluster.service.clone();
        async move {
            service
                .call(Call::NodeGroupGetOptions, question.into())
                .await
        }
    };
    // Any answer would make some versions forget what they do not send.
    assert_eq!(code(ask(&cluster, &new).await), Code::Unimplemented);

    let changes = GroupOptions {
        utilization: Some(0.7),
        unneeded: Some(Span::minutes(3)),
        ..GroupOptions::default()
    };
    let settings = Settings {
        options: [("small".to_owned(), changes)].into(),
        ..Settings::default()
    };
    let cluster = Cluster::new(settings, &["s0"]).await;
    for defaults in [old.concat(), new.clone()] {
        let answer = ask(&cluster, &defaults).await.unwrap();
        for part in [
            double(1, 0.7),
            double(2, 0.6),
            legacy(3, 180),
            legacy(4, 1200),
            legacy(5, 900),
            modern(8, 180),
            modern(9, 1200),
            modern(10, 900),
        ] {
            assert!(contains(&answer, &part), "{part:?}");
        }
        let knows = defaults == new;
        assert_eq!(contains(&answer, &startup), knows);
        assert_eq!(
            contains(&answer, &later),
            knows,
            "what is not known is given back"
        );
    }
    let nothing = cluster
        .raw(Call::NodeGroupGetOptions, bytes(1, "small"))
        .await;
    assert_eq!(
        code(nothing),
        Code::Unimplemented,
        "there is nothing to give back"
    );
}

#[tokio::test]
async fn a_group_that_is_switched_as_a_whole_says_so() {
    let mut groups = cluster::catalogue().groups().to_vec();
    groups[1].atomic = true;
    let machines = cluster::catalogue().machines().to_vec();
    let catalogue = Catalogue::new(groups, machines).unwrap();
    let cluster = Cluster::of(catalogue, Settings::default(), &["s0"]).await;
    let question = [bytes(1, "large"), bytes(2, double(1, 0.5))].concat();
    let answer = cluster
        .raw(Call::NodeGroupGetOptions, question)
        .await
        .unwrap();
    assert!(contains(&answer, &number(6, 1)) && contains(&answer, &double(1, 0.5)));
    assert_eq!(
        code(cluster.increase("large", 1).await),
        Code::FailedPrecondition
    );
    cluster.increase("large", 2).await.unwrap();
    cluster
        .observe(vec![seen("l0", true), seen("l1", true)])
        .await;
    assert_eq!(
        code(cluster.delete("large", &["l0"]).await),
        Code::FailedPrecondition
    );
    cluster.delete("large", &["l0", "l1"]).await.unwrap();
    assert_eq!(cluster.target("large").await, 0);
}

#[tokio::test]
async fn nodes_are_found_by_whatever_they_are_called() {
    let cluster = plain(&["s0"]).await;
    let group = async |node: wire::Node| {
        let question = wire::ForNode { node: Some(node) };
        let answer: wire::GroupOfNode = cluster
            .ask(Call::NodeGroupForNode, &question)
            .await
            .unwrap();
        answer.node_group.unwrap().id
    };
    let called = |provider_id: &str, name: &str| wire::Node {
        provider_id: provider_id.into(),
        name: name.into(),
        ..wire::Node::default()
    };
    assert_eq!(group(called("", "s1")).await, "small");
    assert_eq!(group(node("s1")).await, "small");
    assert_eq!(group(called("metal://rack/l0", "")).await, "large");
    assert_eq!(group(fake("l1", "unregistered")).await, "large");
    assert_eq!(group(fake("l1", "create-error")).await, "large");
    // A node that is not ours is no error: an error would end Cluster Autoscaler's loop.
    for stranger in [
        called("aws:///i-1", "ip-10-0-0-1"),
        called("", ""),
        fake("x9", "unregistered"),
    ] {
        assert_eq!(group(stranger).await, "");
    }
    let question = wire::ForNode { node: None };
    let answer: wire::GroupOfNode = cluster
        .ask(Call::NodeGroupForNode, &question)
        .await
        .unwrap();
    assert_eq!(answer.node_group.unwrap().id, "");
    // A node whose provider id differs is noticed, as Cluster Autoscaler would not recognise it.
    assert!(cluster.service.mismatches().is_empty());
    assert_eq!(group(called("kind://s2", "s2")).await, "small");
    assert_eq!(cluster.service.mismatches()["s2"], "kind://s2");
    assert_eq!(group(node("s2")).await, "small");
    assert!(cluster.service.mismatches().is_empty());
}

#[tokio::test]
async fn what_is_given_back_counts_no_more_and_goes_once() {
    let cluster = plain(&["s0", "s1", "s2", "s3"]).await;
    cluster.delete("small", &["s1"]).await.unwrap();
    cluster.delete("small", &["s1"]).await.unwrap();
    cluster.delete("small", &["s1", "s1", "s2"]).await.unwrap();
    assert_eq!(cluster.target("small").await, 2);
    let listed = cluster.listed("small").await;
    assert_eq!(listed[1], ("metal://rack/s1".to_owned(), DELETING));
    // It is listed until it is off, and asking again afterwards changes nothing.
    cluster.observe(vec![seen("s1", false)]).await;
    assert_eq!(cluster.listed("small").await.len(), 3);
    cluster.delete("small", &["s1"]).await.unwrap();
    assert_eq!(cluster.target("small").await, 2);

    assert_eq!(
        code(cluster.delete("small", &["s0"]).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(cluster.delete("small", &["s3", "l0"]).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(cluster.delete("small", &["s3", "x9"]).await),
        Code::NotFound
    );
    assert_eq!(code(cluster.delete("huge", &["s3"]).await), Code::NotFound);
    assert_eq!(cluster.target("small").await, 2, "all or nothing");
    cluster.delete("small", &[]).await.unwrap();
}

#[tokio::test]
async fn a_group_keeps_its_least_number() {
    let mut groups = cluster::catalogue().groups().to_vec();
    groups[0].min = 2;
    let machines = cluster::catalogue().machines().to_vec();
    let catalogue = Catalogue::new(groups, machines).unwrap();
    let cluster = Cluster::of(catalogue, Settings::default(), &["s0", "s1", "s2"]).await;
    let refused = cluster.delete("small", &["s1", "s2"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "group `small` would have 1 machines, and keeps at least 2"
    );
    cluster.delete("small", &["s1"]).await.unwrap();
    assert_eq!(
        code(cluster.delete("small", &["s2"]).await),
        Code::FailedPrecondition
    );
}

#[tokio::test]
async fn a_controller_that_says_no_is_an_error_of_the_instance() {
    let cluster = plain(&["s0"]).await;
    cluster.increase("large", 1).await.unwrap();
    let mut intent = Intent::new(Wanted::On, cluster.now());
    intent.attempts = 3;
    intent.failures = 3;
    intent.last_error = Some("the controller does not accept user and password".into());
    let look = |intent: &Intent| Seen {
        machine: "l0".into(),
        power: Power::Off,
        node: false,
        intent: Some(intent.clone()),
    };
    cluster.observe(vec![look(&intent)]).await;
    let answer: wire::Instances = cluster
        .ask(Call::NodeGroupNodes, &id("large"))
        .await
        .unwrap();
    let status = answer.instances[0].status.clone().unwrap();
    assert_eq!(
        status.instance_state, CREATING,
        "only then the error is read"
    );
    let error = status.error_info.unwrap();
    assert_eq!(
        (error.error_code.as_str(), error.instance_error_class),
        ("PowerControlFailed", 99)
    );
    assert!(
        error.error_message.contains("user and password"),
        "{error:?}"
    );
    // Cluster Autoscaler gives it back in every loop, by its instance's id, also below the least.
    let nodes = vec![fake("l0", "create-error")];
    let question = wire::DeleteNodes {
        nodes,
        id: "large".into(),
    };
    for _ in 0..3 {
        let _: wire::Empty = cluster
            .ask(Call::NodeGroupDeleteNodes, &question)
            .await
            .unwrap();
        assert_eq!(cluster.target("large").await, 0);
    }
    // As long as somebody may still be waking it, it is not gone.
    cluster.observe(vec![look(&intent)]).await;
    assert_eq!(cluster.listed("large").await[0].1, DELETING);
    intent.outcome = Some(Outcome::NeverCame);
    cluster.observe(vec![look(&intent)]).await;
    assert_eq!(cluster.listed("large").await, []);
    // It rests for half an hour; the other one is tried.
    cluster.increase("large", 1).await.unwrap();
    assert_eq!(cluster.listed("large").await[0].0, "metal://rack/l1");
    assert_eq!(
        code(cluster.increase("large", 1).await),
        Code::ResourceExhausted
    );
    cluster.wait(Span::minutes(31));
    cluster.increase("large", 1).await.unwrap();
}

#[tokio::test]
async fn machines_that_go_or_come_by_themselves_are_told_truly() {
    let cluster = plain(&["s0", "s1"]).await;
    // It lost its power: it is still promised, and comes again.
    cluster.observe(vec![seen("s1", false)]).await;
    assert_eq!(cluster.target("small").await, 2);
    assert_eq!(cluster.listed("small").await[1].1, CREATING);
    cluster.observe(vec![seen("s1", true)]).await;
    assert_eq!(cluster.listed("small").await[1].1, RUNNING);
    // Somebody switched it on: its node is there, so it counts.
    cluster.observe(vec![seen("s2", true)]).await;
    assert_eq!(cluster.target("small").await, 3);
    // Given back and wanted again before it was off: it comes after it went off.
    cluster.delete("small", &["s2"]).await.unwrap();
    cluster.increase("small", 2).await.unwrap();
    assert_eq!(cluster.target("small").await, 4);
    let wish = |name: &str| {
        let wanted = cluster.targets.wanted();
        wanted.iter().find(|one| one.machine == name).unwrap().wish
    };
    assert_eq!(wish("s2"), Wish::GivenBack);
    cluster.observe(vec![seen("s2", false)]).await;
    assert_eq!(wish("s2"), Wish::On);
}

#[tokio::test]
async fn promises_survive_the_process_and_only_the_leader_makes_them() {
    let cluster = plain(&["s0"]).await;
    cluster.increase("small", 2).await.unwrap();
    cluster.delete("small", &["s2"]).await.unwrap();
    let wanted = cluster.targets.wanted();
    let again = cluster.reopened().await;
    assert_eq!(again.wanted(), wanted);
    let service = Service::new(again, Settings::default());
    let refused: Result<wire::Empty, Status> = ask(&service, Call::Refresh, &wire::Empty {}).await;
    assert_eq!(code(refused), Code::Unavailable, "nobody has looked yet");
    // Another took over.
    let journal = fleet::power::journal::Journal::new(cluster.store.clone());
    journal.resign(cluster.leadership.clone()).await.unwrap();
    let other = cluster::lead(&cluster.store).await;
    assert_eq!(code(cluster.increase("small", 1).await), Code::Unavailable);
    assert_eq!(cluster.targets.wanted(), wanted, "nothing was promised");
    let heir = Targets::open(cluster.store.clone(), other, cluster::catalogue());
    let heir = heir.await.unwrap();
    heir.increase("small", 1, cluster.now()).await.unwrap();
    assert_eq!(heir.snapshot().group("small").unwrap().target(), 3);
}

#[tokio::test]
async fn a_dry_run_promises_nothing() {
    let settings = Settings {
        dry_run: true,
        ..Settings::default()
    };
    let cluster = Cluster::new(settings, &["s0", "s1"]).await;
    assert_eq!(
        code(cluster.increase("small", 1).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(cluster.delete("small", &["s1"]).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(cluster.decrease("small", -1).await),
        Code::FailedPrecondition
    );
    assert_eq!(cluster.target("small").await, 2);
}

#[tokio::test]
async fn the_expander_takes_what_draws_least_for_what_it_brings() {
    let cluster = plain(&["s0"]).await;
    let pod = |cpu: &str| {
        let request = [bytes(1, "cpu"), bytes(2, bytes(1, cpu))].concat();
        bytes(2, bytes(2, bytes(8, bytes(2, request))))
    };
    let option = |group: &str, count: i64, pods: &[Vec<u8>], tag: u64| {
        let pods = pods.iter().map(|pod| bytes(tag, pod)).collect::<Vec<_>>();
        let option = [bytes(1, group), number(2, count), pods.concat()].concat();
        bytes(1, option)
    };
    let best = async |options: Vec<Vec<u8>>| {
        let answer = cluster
            .raw(Call::BestOptions, options.concat())
            .await
            .unwrap();
        let answer = wire::BestOptionsAnswer::decode(answer).unwrap();
        let options = answer.options.into_iter().map(|one| one.node_group_id);
        options.collect::<Vec<_>>()
    };
    for tag in [4, 5] {
        // One pod of two processors: a small machine does. Sixty: one large beats eight small, of
        // which there are only three.
        let few = [pod("2")];
        let found = best(vec![
            option("large", 1, &few, tag),
            option("small", 1, &few, tag),
        ])
        .await;
        assert_eq!(found, ["small"]);
        let many: Vec<_> = (0..30).map(|_| pod("2")).collect();
        let found = best(vec![
            option("small", 8, &many, tag),
            option("large", 1, &many, tag),
        ])
        .await;
        assert_eq!(found, ["large"]);
    }
    // A group of which only the node is known, in both generations.
    let room = |cpu: &str| [bytes(1, "cpu"), bytes(2, bytes(1, cpu))].concat();
    for tag in [2, 3] {
        let node = bytes(3, bytes(2, room("128")));
        let known = bytes(tag, [bytes(1, "other"), bytes(2, node)].concat());
        let options = [
            option("other", 1, &[pod("2")], 5),
            option("small", 1, &[pod("2")], 5),
        ];
        assert_eq!(best(vec![options.concat(), known]).await, ["small"]);
    }
    assert_eq!(best(Vec::new()).await, Vec::<String>::new());
}

#[tokio::test]
async fn calls_over_a_connection_have_deadlines_and_limits() {
    let cluster = plain(&["s0"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, None, cluster.service.clone(), async {
        let _ = stopped.await;
    }));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut client = Client::new(stream).await.unwrap();
    let size = client
        .call(Call::NodeGroupTargetSize, &bytes(1, "small"))
        .await;
    assert_eq!(size.unwrap().unwrap(), number(1, 1));
    let (code, words) = client
        .call(Call::NodeGroupTargetSize, &bytes(1, "huge"))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(code, 5);
    assert!(words.contains("huge"), "{words}");
    // Its time is over before it is written down; then the promise still is all or nothing.
    let mut changes = cluster.targets.changes();
    let question = [number(1, 2), bytes(2, "small")].concat();
    let path = Call::NodeGroupIncreaseSize.path();
    cluster.faulty.hold(true);
    let late = client.call_within(&path, &question, "50m").await.unwrap();
    assert_eq!(late.unwrap_err().0, 4);
    cluster.faulty.hold(false);
    let changed = tokio::time::timeout(Duration::from_secs(10), changes.changed());
    changed.await.unwrap().unwrap();
    assert_eq!(cluster.target("small").await, 3);
    assert_eq!(cluster.reopened().await.wanted(), cluster.targets.wanted());
    // What is no call, and what is too large.
    let path = "/clusterautoscaler.cloudprovider.v1.externalgrpc.CloudProvider/Nothing";
    assert_eq!(
        client
            .call_within(path, &[], "5S")
            .await
            .unwrap()
            .unwrap_err()
            .0,
        12
    );
    let large = bytes(1, vec![b'x'; 5 << 20]);
    let refused = client.call(Call::NodeGroupTargetSize, &large).await;
    assert!(refused.map_or(true, |answer| answer.is_err()));
    let text = cluster.service.metrics().render();
    let line = "atoll_fleet_grpc_seconds_count{method=\"NodeGroupTargetSize\",code=\"5\"} 1";
    assert!(text.contains(line), "{text}");
    let _ = stop.send(());
    server.await.unwrap().unwrap();
}

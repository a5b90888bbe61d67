//! A few machines, their promises in a store, and the service that answers for them.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses a part of it"
)]

pub mod client;
pub mod faulty;

use bytes::Bytes;
use faulty::Faulty;
use fleet::{
    amount::Amount,
    externalgrpc::{Call, Service, Settings, wire},
    inventory::{Group, GroupIndex, Machine, Power, Role, Taint, Watts},
    moment::{Moment, Span},
    power::journal::{Journal, Leadership},
    targets::{Catalogue, Listed, Seen, Targets},
};
use prost::Message;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use store::{SqliteOptions, SqliteStore, Store, clock::ManualClock};
use tempfile::TempDir;
use tonic::Status;

/// A moment to begin with.
pub const START: u64 = 1_790_000_000;

/// Where files do not reach a disk, if there is such a place.
pub fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A store whose leases do not end by themselves.
pub async fn open_store(folder: &TempDir) -> Arc<dyn Store> {
    let options = SqliteOptions {
        clock: Arc::new(ManualClock::default()),
        ..SqliteOptions::default()
    };
    let path = folder.path().join("store.sqlite");
    Arc::new(SqliteStore::open_with(path, options).await.unwrap())
}

pub async fn lead(store: &Arc<dyn Store>) -> Leadership {
    Journal::new(store.clone()).lead().await.unwrap().unwrap()
}

pub fn machine(name: &str, group: usize, processors: u64) -> Listed {
    let capacity = Amount::new(processors * 1000, processors << 32, 0, 110);
    let mut machine = Machine::new(name, GroupIndex(group as u32), capacity);
    machine.watts = Watts {
        off: 5.0,
        suspended: None,
        idle: 10.0 * processors as f64 + 5.0,
        peak: 20.0 * processors as f64 + 5.0,
    };
    Listed {
        machine,
        provider_id: format!("metal://rack/{name}"),
    }
}

/// Two groups: `small` with s0 to s3 (s0 is never given back), 1 to 4 of them on; and `large` with
/// l0 and l1, 0 to 2 of them on, with a label and a taint.
pub fn catalogue() -> Catalogue {
    let group = |name: &str, min, max| Group {
        min,
        max,
        ..Group::new(name)
    };
    let groups = vec![group("small", 1, 4), group("large", 0, 2)];
    let mut machines: Vec<Listed> = (0..4).map(|at| machine(&format!("s{at}"), 0, 8)).collect();
    machines[0].machine.role = Role::Base;
    for at in 0..2 {
        let mut one = machine(&format!("l{at}"), 1, 64);
        one.machine.capacity.gpus = 2;
        let labels = &mut one.machine.labels;
        labels.insert("topology.kubernetes.io/zone".into(), "north".into());
        labels.insert("nvidia.com/gpu.product".into(), "L4".into());
        one.machine.taints.push(Taint {
            key: "gpu".into(),
            value: "yes".into(),
        });
        machines.push(one);
    }
    Catalogue::new(groups, machines).unwrap()
}

/// All that a test needs, with the machines of [`catalogue`].
pub struct Cluster {
    pub folder: TempDir,
    pub store: Arc<dyn Store>,
    pub faulty: Arc<Faulty>,
    pub leadership: Leadership,
    pub targets: Targets,
    pub service: Arc<Service>,
    now: Arc<AtomicU64>,
}

impl Cluster {
    /// Of which `on` are on, and seen.
    pub async fn new(settings: Settings, on: &[&str]) -> Self {
        Self::of(catalogue(), settings, on).await
    }

    pub async fn of(catalogue: Catalogue, settings: Settings, on: &[&str]) -> Self {
        let folder = folder();
        let faulty = Faulty::new(open_store(&folder).await);
        let store: Arc<dyn Store> = faulty.clone();
        let leadership = lead(&store).await;
        let targets = Targets::open(store.clone(), leadership.clone(), catalogue);
        let targets = targets.await.unwrap();
        let now = Arc::new(AtomicU64::new(START));
        let clock = now.clone();
        let clock = Arc::new(move || Moment(clock.load(Ordering::Relaxed)));
        let service = Arc::new(Service::with_clock(targets.clone(), settings, clock));
        let cluster = Self {
            folder,
            store,
            faulty,
            leadership,
            targets,
            service,
            now,
        };
        let snapshot = cluster.targets.snapshot();
        let all = snapshot.catalogue().machines().iter();
        let seen = all.map(|one| {
            let name = &one.machine.name;
            seen(name, on.contains(&name.as_str()))
        });
        cluster.observe(seen.collect()).await;
        cluster
    }

    pub fn now(&self) -> Moment {
        Moment(self.now.load(Ordering::Relaxed))
    }

    pub fn wait(&self, span: Span) {
        self.now.fetch_add(span.0, Ordering::Relaxed);
    }

    pub async fn observe(&self, seen: Vec<Seen>) {
        self.targets.observe(seen, self.now()).await.unwrap();
    }

    /// The same promises, as another process finds them.
    pub async fn reopened(&self) -> Targets {
        let catalogue = self.targets.snapshot().catalogue().clone();
        let targets = Targets::open(self.store.clone(), self.leadership.clone(), catalogue);
        targets.await.unwrap()
    }

    pub async fn ask<A: Message + Default>(
        &self,
        call: Call,
        question: &impl Message,
    ) -> Result<A, Status> {
        ask(&self.service, call, question).await
    }

    pub async fn raw(&self, call: Call, bytes: Vec<u8>) -> Result<Bytes, Status> {
        self.service.call(call, bytes.into()).await
    }

    pub async fn target(&self, group: &str) -> i32 {
        let answer: wire::TargetSize = self
            .ask(Call::NodeGroupTargetSize, &id(group))
            .await
            .unwrap();
        answer.target_size
    }

    /// The ids and states that are listed.
    pub async fn listed(&self, group: &str) -> Vec<(String, i32)> {
        let answer: wire::Instances = self.ask(Call::NodeGroupNodes, &id(group)).await.unwrap();
        let state = |one: &wire::Instance| one.status.as_ref().unwrap().instance_state;
        let instances = answer.instances.iter();
        instances.map(|one| (one.id.clone(), state(one))).collect()
    }

    pub async fn increase(&self, group: &str, delta: i32) -> Result<wire::Empty, Status> {
        let id = group.to_owned();
        self.ask(Call::NodeGroupIncreaseSize, &wire::Delta { delta, id })
            .await
    }

    pub async fn decrease(&self, group: &str, delta: i32) -> Result<wire::Empty, Status> {
        let id = group.to_owned();
        let question = wire::Delta { delta, id };
        self.ask(Call::NodeGroupDecreaseTargetSize, &question).await
    }

    pub async fn delete(&self, group: &str, machines: &[&str]) -> Result<wire::Empty, Status> {
        let nodes = machines.iter().map(|name| node(name)).collect();
        let id = group.to_owned();
        self.ask(Call::NodeGroupDeleteNodes, &wire::DeleteNodes { nodes, id })
            .await
    }
}

pub async fn ask<A: Message + Default>(
    service: &Service,
    call: Call,
    question: &impl Message,
) -> Result<A, Status> {
    let answer = service.call(call, question.encode_to_vec().into()).await?;
    Ok(A::decode(answer).unwrap())
}

pub fn id(group: &str) -> wire::Id {
    wire::Id {
        id: group.to_owned(),
    }
}

/// A node as Kubernetes has it.
pub fn node(machine: &str) -> wire::Node {
    wire::Node {
        provider_id: format!("metal://rack/{machine}"),
        name: machine.to_owned(),
        ..wire::Node::default()
    }
}

/// A node that Cluster Autoscaler made up for an instance without one.
pub fn fake(machine: &str, reason: &str) -> wire::Node {
    let id = format!("metal://rack/{machine}");
    let annotation = fleet::externalgrpc::FAKE_NODE_REASON.to_owned();
    wire::Node {
        provider_id: id.clone(),
        name: id,
        annotations: [(annotation, reason.to_owned())].into(),
        ..wire::Node::default()
    }
}

/// What is seen of a machine that is on, or off, for certain.
pub fn seen(machine: &str, on: bool) -> Seen {
    Seen {
        machine: machine.to_owned(),
        power: if on { Power::On } else { Power::Off },
        node: on,
        intent: None,
    }
}

//! Sandboxes that are in the mesh, with somebody who only notes what is asked of him.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, Attached, Members, simulation::World};
use api::{
    ErrorCode, Problem, SandboxId, Secret,
    node::{CreateSandbox, EndReason, ForkChild, MeshMembership, MeshPlace, Node, SandboxState},
};
use common::{House, create, id, request, serve_guests, status, wait_for};
use driver::NetworkSlot;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering::SeqCst},
    time::Duration,
};

#[derive(Default)]
struct Noted {
    events: Mutex<Vec<String>>,
    refuses: AtomicBool,
}

impl Noted {
    fn note(&self, what: &str, sandbox: &SandboxId) {
        let number: u32 = sandbox.as_str()[8..].parse().unwrap();
        self.events.lock().unwrap().push(format!("{what} {number}"));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

fn place() -> MeshPlace {
    MeshPlace {
        name: "ci-1.mesh.internal".into(),
        addresses: vec!["100.64.0.7".parse().unwrap()],
        tags: BTreeSet::from(["ci".into()]),
    }
}

#[async_trait::async_trait]
impl Members for Noted {
    async fn attach(
        &self,
        sandbox: &SandboxId,
        membership: &MeshMembership,
        _: &NetworkSlot,
        name_servers: &[IpAddr],
    ) -> Result<Option<Attached>, Problem> {
        self.note("attach", sandbox);
        assert_eq!(
            (&*membership.name, name_servers.is_empty()),
            ("ci-1", false)
        );
        if self.refuses.load(SeqCst) {
            return Err(Problem::new(ErrorCode::Unavailable, "no mesh", "wait"));
        }
        Ok(Some(Attached {
            place: place(),
            name_server: place().addresses[0],
            domain: "mesh.internal".into(),
            devices: "atoll",
        }))
    }

    async fn detach(&self, sandbox: &SandboxId) {
        self.note("detach", sandbox);
    }

    async fn release(&self, sandbox: &SandboxId) {
        self.note("release", sandbox);
    }

    async fn place(&self, _: &SandboxId) -> Option<MeshPlace> {
        Some(place())
    }

    async fn sweep(&self, keep: &[SandboxId]) {
        self.events
            .lock()
            .unwrap()
            .push(format!("sweep but {}", keep.len()));
    }
}

fn member(number: u32) -> CreateSandbox {
    let mesh = MeshMembership {
        name: "ci-1".into(),
        tags: BTreeSet::from(["ci".into()]),
        token: Secret::new("token"),
    };
    CreateSandbox {
        mesh: Some(mesh),
        ..request(number)
    }
}

async fn start(house: &House, members: &Arc<Noted>) -> Arc<Agent> {
    let members: Arc<dyn Members> = members.clone();
    let options = AgentOptions {
        guest_port: serve_guests().await,
        members: Some(members),
        ..house.options()
    };
    Agent::start(options).await.unwrap()
}

#[tokio::test]
async fn a_sandbox_is_in_the_mesh_while_it_runs_and_who_it_was_after_a_pause() {
    let house = House::new(World::new());
    let members = Arc::new(Noted::default());
    let agent = start(&house, &members).await;
    assert_eq!(members.take(), ["sweep but 0"]);
    // Whoever asks for nothing costs nothing.
    create(&agent, 9).await.unwrap();
    assert_eq!(status(&agent, 9).await.mesh, None);
    agent.kill(&id(9), EndReason::Killed).await.unwrap();
    assert!(members.take().is_empty());

    let made = agent.create(member(1)).await.unwrap();
    assert_eq!(made.mesh, Some(place()));
    agent.pause(&id(1), true).await.unwrap();
    assert_eq!(status(&agent, 1).await.mesh, Some(place()));
    assert_eq!(members.take(), ["attach 1", "detach 1"]);
    // While it cannot be what it was, it stays paused.
    members.refuses.store(true, SeqCst);
    let hour = Duration::from_secs(3600);
    assert!(agent.resume(&id(1), hour).await.is_err());
    assert_eq!(status(&agent, 1).await.state, SandboxState::Paused);
    assert_eq!(members.take(), ["attach 1", "detach 1"]);
    members.refuses.store(false, SeqCst);
    agent.resume(&id(1), hour).await.unwrap();
    // A child is somebody else.
    let child = ForkChild {
        id: id(2),
        access_token: None,
        traffic_token: None,
        timeout: hour,
        metadata: BTreeMap::new(),
    };
    let children = agent.fork(&id(1), vec![child]).await.unwrap();
    assert_eq!(children[0].as_ref().unwrap().mesh, None);
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    assert_eq!(members.take(), ["attach 1", "release 1"]);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn one_that_may_not_join_does_not_start_and_leaves_nothing() {
    let house = House::new(World::new());
    let members = Arc::new(Noted::default());
    members.refuses.store(true, SeqCst);
    let agent = start(&house, &members).await;
    let problem = agent.create(member(1)).await.unwrap_err();
    assert_eq!(
        (problem.code, &*problem.cause),
        (ErrorCode::Unavailable, "no mesh")
    );
    assert_eq!(members.take().last().unwrap(), "release 1");
    assert!(house.world.machines().is_empty());
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn what_cannot_be_in_the_mesh_is_refused() {
    for world in [World::new(), World::with_snapshots()] {
        let house = House::new(world);
        let agent = house.agent().await;
        let problem = agent.create(member(1)).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::Unsupported);
        assert!(problem.cause.contains("keeps no"), "{problem}");
        assert!(!problem.remedy.is_empty());
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_machine_is_joined_behind_its_slot_whenever_it_gets_one() {
    let house = House::new(World::with_snapshots());
    let members = Arc::new(Noted::default());
    let agent = start(&house, &members).await;
    agent.create(member(1)).await.unwrap();
    agent.pause(&id(1), true).await.unwrap();
    let hour = Duration::from_secs(3600);
    agent.resume(&id(1), hour).await.unwrap();
    assert_eq!(members.take()[1..], ["attach 1", "detach 1", "attach 1"]);
    let events = house.world.events();
    let joins = events.iter().filter(|event| event.starts_with("join"));
    let joins: Vec<_> = joins.collect();
    assert_eq!(joins.len(), 2, "{events:?}");
    assert!(joins[0].ends_with(" by atoll as 100.64.0.7"), "{joins:?}");
    agent.stop().await;
    house.assert_empty();
}

#[test]
fn one_that_went_on_is_brought_back() {
    let house = House::new(World::new());
    let members = Arc::new(Noted::default());
    let options = |members: &Arc<Noted>| {
        let members: Arc<dyn Members> = members.clone();
        AgentOptions {
            members: Some(members),
            ..house.options()
        }
    };
    let first = options(&members);
    house.until_killed(async move {
        let agent = Agent::start(first).await.unwrap();
        agent.create(member(1)).await.unwrap();
        agent.create(member(2)).await.unwrap();
        agent.pause(&id(2), true).await.unwrap();
    });
    members.take();
    let second = options(&members);
    let noted = members.clone();
    house.until_killed(async move {
        let agent = Agent::start(second).await.unwrap();
        let attached = || {
            let events = noted.events.lock().unwrap();
            events.contains(&"attach 1".to_owned())
        };
        wait_for("the sandbox is back in the mesh", attached).await;
        for number in [1, 2] {
            let began = std::time::Instant::now();
            while status(&agent, number).await.mesh != Some(place()) {
                assert!(began.elapsed() < std::time::Duration::from_secs(60));
                tokio::task::yield_now().await;
            }
        }
        agent.stop().await;
    });
    let mut events = members.take();
    assert_eq!(events.remove(0), "sweep but 2");
    events.sort();
    assert_eq!(events, ["attach 1", "release 1", "release 2"]);
    house.assert_empty();
}

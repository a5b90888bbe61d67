//! The agent, or the whole machine, dies while sandboxes are paused, resumed and forked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, OnExit, simulation::World};
use api::{
    BuildId,
    node::{CreateSandbox, EndReason, ForkChild, Node, OnTimeout, SandboxState, TemplateBuild},
};
use common::{House, create, id, names, request, serve_guests, status, wait_for};
use rand::Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

fn start_in(house: &House) -> impl Future<Output = Arc<Agent>> + Send + use<> {
    let options = house.options();
    async move {
        let options = AgentOptions {
            guest_port: serve_guests().await,
            on_exit: OnExit::Kill,
            ..options
        };
        Agent::start(options).await.unwrap()
    }
}

fn slow() -> Arc<World> {
    let mut world = World::with_snapshots();
    let inside = Arc::get_mut(&mut world).unwrap();
    inside.save_time = Duration::from_millis(2);
    inside.start_time = Duration::from_millis(1);
    world
}

fn block_on<Output>(work: impl Future<Output = Output>) -> Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// The slot whose machine has this memory.
fn slot_with(house: &House, memory: &str) -> u32 {
    let found = house
        .world
        .machines()
        .into_iter()
        .find(|slot| house.world.read(*slot).is_some_and(|read| read.0 == memory));
    found.unwrap_or_else(|| panic!("no machine holds `{memory}`"))
}

#[test]
fn a_paused_sandbox_survives_the_machine() {
    let house = House::new(World::with_snapshots());
    let starting = start_in(&house);
    let before = house.until_killed(async move {
        let agent = starting.await;
        let short = CreateSandbox {
            timeout: Duration::from_millis(200),
            ..request(1)
        };
        agent.create(short).await.unwrap();
        agent.pause(&id(1), true).await.unwrap();
        create(&agent, 2).await.unwrap();
        create(&agent, 3).await.unwrap();
        agent.pause(&id(3), true).await.unwrap();
        agent.kill(&id(3), EndReason::Killed).await.unwrap();
        status(&agent, 1).await
    });
    house.world.reboot();
    block_on(async {
        // Its time does not run while it is paused.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let agent = start_in(&house).await;
        assert_eq!(status(&agent, 1).await, before);
        assert!(matches!(
            status(&agent, 2).await.state,
            SandboxState::Ended {
                reason: EndReason::Crashed(_),
                ..
            }
        ));
        // It outlives an agent that stops, too.
        agent.stop().await;
        house.assert_empty();
        let agent = start_in(&house).await;
        assert_eq!(status(&agent, 1).await, before);
        assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
        agent.kill(&id(1), EndReason::Killed).await.unwrap();
        wait_for("its state to go", || names(&house, "paused").is_empty()).await;
        agent.stop().await;
        house.assert_empty();
    });
}

#[test]
fn a_frozen_sandbox_stays_frozen_when_the_agent_starts_again() {
    let house = House::new(World::new());
    let starting = start_in(&house);
    house.until_killed(async move {
        let agent = starting.await;
        create(&agent, 1).await.unwrap();
        agent.pause(&id(1), true).await.unwrap();
    });
    block_on(async {
        let agent = start_in(&house).await;
        assert_eq!(status(&agent, 1).await.state, SandboxState::Paused);
        let slot = house.world.machines()[0];
        assert!(house.world.is_frozen(slot));
        assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
        assert!(!house.world.is_frozen(slot));
        agent.stop().await;
        house.assert_empty();
    });
}

#[test]
fn a_state_that_is_gone_ends_its_sandbox() {
    let house = House::new(World::with_snapshots());
    let starting = start_in(&house);
    house.until_killed(async move {
        let agent = starting.await;
        create(&agent, 1).await.unwrap();
        agent.pause(&id(1), true).await.unwrap();
    });
    std::fs::remove_dir_all(house.path().join("paused")).unwrap();
    block_on(async {
        let agent = start_in(&house).await;
        let now = status(&agent, 1).await.state;
        assert!(matches!(now, SandboxState::Ended { .. }), "{now:?}");
        agent.stop().await;
        house.assert_empty();
    });
}

/// Every prefix of a journal of pauses and resumes, with the world and the disk as they were at
/// the end.
#[test]
fn any_prefix_of_the_journal_leads_to_a_legal_state() {
    let live = |house: &House| {
        let starting = start_in(house);
        house.until_killed(async move {
            let agent = starting.await;
            create(&agent, 1).await.unwrap();
            create(&agent, 2).await.unwrap();
            agent.pause(&id(1), true).await.unwrap();
            agent.resume(&id(1), HOUR).await.unwrap();
            agent.pause(&id(2), true).await.unwrap();
        });
        std::fs::read_to_string(house.journal()).unwrap()
    };
    let lines = live(&House::new(World::with_snapshots())).lines().count();
    for kept in 0..=lines {
        let house = House::new(World::with_snapshots());
        let text = live(&house);
        let mut prefix: String = text.split_inclusive('\n').take(kept).collect();
        prefix.push_str("{\"event\":\"torn");
        std::fs::write(house.journal(), prefix).unwrap();
        block_on(async {
            let agent = start_in(&house).await;
            let (mut running, mut paused) = (0, 0);
            for status in agent.list().await.unwrap() {
                match &status.state {
                    SandboxState::Running => running += 1,
                    SandboxState::Paused => paused += 1,
                    SandboxState::Ended { .. } => {}
                    other => panic!("{other:?} after {kept} lines"),
                }
            }
            assert_eq!(house.world.machines().len(), running, "after {kept} lines");
            for number in 1..=2 {
                agent.kill(&id(number), EndReason::Killed).await.unwrap();
            }
            let _ = paused;
            wait_for("states to go", || names(&house, "paused").is_empty()).await;
            agent.stop().await;
            house.assert_empty();
        });
    }
}

/// The agent is killed at random moments of pauses and resumes. A sandbox that was handed out is
/// running or paused afterwards, and holds what was written last before a pause that was told to
/// have succeeded.
#[test]
fn killed_at_any_moment_no_sandbox_is_lost() {
    const SANDBOXES: u32 = 3;
    let house = House::new(slow());
    // Sandboxes that exist, by what their memory holds.
    let known: Arc<Mutex<BTreeSet<u32>>> = Arc::default();
    for _ in 0..40 {
        let starting = start_in(&house);
        let (known, world) = (known.clone(), house.world.clone());
        let lifetime = Duration::from_micros(rand::rng().random_range(0..40_000));
        house.until_killed(async move {
            let agent = starting.await;
            for number in 1..=SANDBOXES {
                let exists = known.lock().unwrap().contains(&number);
                if exists {
                    let now = status(&agent, number).await.state;
                    assert!(
                        matches!(now, SandboxState::Running | SandboxState::Paused),
                        "{number} is {now:?}"
                    );
                } else if agent.get(&id(number)).await.unwrap().is_none() {
                    create(&agent, number).await.unwrap();
                    let address = status(&agent, number).await.address.unwrap();
                    let slot = world
                        .machines()
                        .into_iter()
                        .find(|slot| address.to_string().ends_with(&format!(".{slot}")))
                        .unwrap();
                    world.write(slot, &format!("sandbox {number}"), "");
                    known.lock().unwrap().insert(number);
                }
                let agent = agent.clone();
                tokio::spawn(async move {
                    loop {
                        let _ = agent.pause(&id(number), true).await;
                        let _ = agent.resume(&id(number), HOUR).await;
                        // Once the runtime is on its way down both fail at once, and a loop that
                        // never yields would go on for ever, and take the processor from all else.
                        tokio::task::yield_now().await;
                    }
                });
            }
            tokio::time::sleep(lifetime).await;
        });
    }
    assert_eq!(known.lock().unwrap().len(), SANDBOXES as usize);
    block_on(async {
        let agent = start_in(&house).await;
        for number in 1..=SANDBOXES {
            agent.resume(&id(number), HOUR).await.unwrap();
            slot_with(&house, &format!("sandbox {number}"));
        }
        for number in 1..=SANDBOXES {
            agent.kill(&id(number), EndReason::Killed).await.unwrap();
        }
        wait_for("states to go", || names(&house, "paused").is_empty()).await;
        agent.stop().await;
        house.assert_empty();
    });
}

fn nothing_kept(house: &House) -> bool {
    ["states", "forks"]
        .iter()
        .all(|folder| names(house, folder).is_empty())
}

/// Creates, pauses, snapshots, forks and removals at random, with restarts between them, end with
/// nothing left.
#[test]
fn whatever_is_made_and_removed_nothing_is_left() {
    for seed in 0..6u64 {
        let house = House::new(World::with_snapshots());
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let mut next = 1;
        let mut builds: BTreeMap<u32, BuildId> = BTreeMap::new();
        let mut live: BTreeSet<u32> = BTreeSet::new();
        for round in 0..4 {
            block_on(async {
                let agent = start_in(&house).await;
                live.retain(|_| true);
                for _ in 0..30 {
                    let pick = |live: &BTreeSet<u32>, random: &mut rand::rngs::StdRng| {
                        let all: Vec<u32> = live.iter().copied().collect();
                        (!all.is_empty()).then(|| all[random.random_range(0..all.len())])
                    };
                    match random.random_range(0..8) {
                        0 | 1 => {
                            let from = builds.values().next().cloned();
                            let template = TemplateBuild {
                                build: from.unwrap_or(request(next).template.build),
                                ..request(next).template
                            };
                            let wanted = CreateSandbox {
                                template,
                                on_timeout: OnTimeout::Pause,
                                ..request(next)
                            };
                            agent.create(wanted).await.unwrap();
                            live.insert(next);
                            next += 1;
                        }
                        2 => {
                            if let Some(number) = pick(&live, &mut random) {
                                let _ = agent.pause(&id(number), true).await;
                            }
                        }
                        3 => {
                            if let Some(number) = pick(&live, &mut random) {
                                agent.resume(&id(number), HOUR).await.unwrap();
                            }
                        }
                        4 => {
                            if let Some(number) = pick(&live, &mut random) {
                                let build: BuildId = format!("00000000-0000-4000-8000-{next:012}")
                                    .parse()
                                    .unwrap();
                                let template = TemplateBuild {
                                    build: build.clone(),
                                    ..request(number).template
                                };
                                if agent.snapshot(&id(number), template, true).await.is_ok() {
                                    builds.insert(next, build);
                                    next += 1;
                                }
                            }
                        }
                        5 => {
                            if let Some(number) = pick(&live, &mut random) {
                                let child = ForkChild {
                                    id: id(next),
                                    access_token: None,
                                    traffic_token: None,
                                    timeout: HOUR,
                                    metadata: BTreeMap::new(),
                                };
                                if agent.fork(&id(number), vec![child]).await.is_ok() {
                                    live.insert(next);
                                    next += 1;
                                }
                            }
                        }
                        6 => {
                            if let Some((number, build)) = builds.pop_first() {
                                let _ = number;
                                agent.remove_state(&build).await.unwrap();
                            }
                        }
                        _ => {
                            if let Some(number) = pick(&live, &mut random) {
                                agent.kill(&id(number), EndReason::Killed).await.unwrap();
                                live.remove(&number);
                            }
                        }
                    }
                }
                if round == 3 {
                    for number in std::mem::take(&mut live) {
                        agent.kill(&id(number), EndReason::Killed).await.unwrap();
                    }
                    let report = agent.collect_garbage(Vec::new(), true).await.unwrap();
                    // Only asked, it removes nothing, and says why of each.
                    assert!(
                        report
                            .iter()
                            .all(|one| !one.removed && !one.reason.is_empty()),
                        "{report:?}"
                    );
                    assert_eq!(report.is_empty(), nothing_kept(&house), "{report:?}");
                    builds.insert(0, request(1).template.build);
                    for build in builds.values() {
                        agent.remove_state(build).await.unwrap();
                    }
                    for folder in ["states", "paused", "forks"] {
                        wait_for(folder, || names(&house, folder).is_empty()).await;
                    }
                }
                agent.stop().await;
                // Those that were paused go on; the others end with the agent.
                let statuses = agent.list().await.unwrap();
                live.retain(|number| {
                    let status = statuses.iter().find(|status| status.id == id(*number));
                    status.is_some_and(|status| status.state == SandboxState::Paused)
                });
            });
            house.assert_empty();
        }
    }
}

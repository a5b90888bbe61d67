//! The agent is killed and started again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, OnExit, simulation::World};
use api::{
    node::{CreateSandbox, EndReason, NetworkPolicy, Node, SandboxState},
    route::Locate,
};
use common::{House, create, id, request, status, wait_for};
use driver::Exit;
use rand::Rng;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

fn start_in(house: &House) -> impl Future<Output = Arc<Agent>> + Send + use<> {
    let options = house.options();
    async move { Agent::start(options).await.unwrap() }
}

fn end_of(state: &SandboxState) -> EndReason {
    match state {
        SandboxState::Ended { reason, .. } => reason.clone(),
        other => panic!("should have ended, and is {other:?}"),
    }
}

#[test]
fn what_ran_goes_on_and_what_ended_meanwhile_is_reported() {
    let house = House::new(World::new());
    let starting = start_in(&house);
    let made = house.until_killed(async move {
        let agent = starting.await;
        let mut made = Vec::new();
        for number in 1..=4 {
            made.push(create(&agent, number).await.unwrap());
        }
        let short = CreateSandbox {
            timeout: Duration::from_millis(100),
            ..request(5)
        };
        agent.create(short).await.unwrap();
        let closed = NetworkPolicy {
            internet: false,
            ..NetworkPolicy::default()
        };
        agent.set_network(&id(2), closed).await.unwrap();
        let later = made[2].deadline + jiff::SignedDuration::from_secs(60);
        made[2] = agent.set_deadline(&id(3), later).await.unwrap();
        agent.kill(&id(4), EndReason::Killed).await.unwrap();
        made
    });
    let crashed = house.world.machines()[0];
    house.world.crash(crashed, Exit::OutOfMemory);
    let crashed_number = made
        .iter()
        .position(|made| {
            made.address
                .unwrap()
                .to_string()
                .ends_with(&format!(".{crashed}"))
        })
        .unwrap() as u32
        + 1;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                tokio::time::sleep(Duration::from_millis(150)).await;
                let agent = start_in(&house).await;
                for number in 1..=3 {
                    let now = status(&agent, number).await;
                    if number == crashed_number {
                        assert!(matches!(end_of(&now.state), EndReason::Crashed(_)));
                        continue;
                    }
                    let before = &made[number as usize - 1];
                    assert_eq!(now.state, SandboxState::Running);
                    assert_eq!(now.deadline, before.deadline);
                    assert_eq!(now.started_at, before.started_at);
                    assert_eq!(now.address, before.address);
                    assert_eq!(now.network.internet, number != 2);
                    let route = agent.locate(&id(number)).await.unwrap();
                    assert_eq!(route.access_token, request(number).access_token);
                }
                assert_eq!(end_of(&status(&agent, 4).await.state), EndReason::Killed);
                assert_eq!(end_of(&status(&agent, 5).await.state), EndReason::TimedOut);
                assert_eq!(house.world.machines().len(), 2);
                // Asking again for one that runs is answered as before.
                let again = if crashed_number == 1 { 2 } else { 1 };
                if again == 1 {
                    assert_eq!(
                        create(&agent, 1).await.unwrap().state,
                        SandboxState::Running
                    );
                }
                agent.stop().await;
                house.assert_empty();
            });
        });
    });
}

#[tokio::test]
async fn keep_leaves_sandboxes_running_and_nothing_else() {
    let house = House::new(World::new());
    let options = AgentOptions {
        on_exit: OnExit::Keep,
        ..house.options()
    };
    let agent = Agent::start(options).await.unwrap();
    create(&agent, 1).await.unwrap();
    create(&agent, 2).await.unwrap();
    agent.stop().await;
    agent.stop().await;
    assert_eq!(house.world.machines().len(), 2);
    assert_eq!(house.world.slots(), house.world.machines());
    assert!(
        house
            .world
            .events()
            .contains(&"network stop, keep true".into())
    );
    drop(agent);

    let agent = house.agent().await;
    assert_eq!(status(&agent, 1).await.state, SandboxState::Running);
    assert!(agent.kill(&id(1), EndReason::Killed).await.unwrap());
    agent.stop().await;
    assert_eq!(
        end_of(&status(&agent, 2).await.state),
        EndReason::NodeStopped
    );
    assert!(
        house
            .world
            .events()
            .contains(&"network stop, keep false".into())
    );
    house.assert_empty();
}

#[tokio::test]
async fn a_network_that_cannot_be_taken_over_ends_the_sandbox() {
    let house = House::new(World::new());
    let starting = start_in(&house);
    house.until_killed(async move {
        let agent = starting.await;
        create(&agent, 1).await.unwrap();
    });
    house.world.faults.adopt_slot.store(1, SeqCst);
    house.world.faults.leave_prepared.store(true, SeqCst);
    let agent = house.agent().await;
    assert!(matches!(
        end_of(&status(&agent, 1).await.state),
        EndReason::Crashed(_)
    ));
    assert!(house.world.machines().is_empty());
    agent.stop().await;
    house.assert_empty();
}

/// Kills the agent at random moments under load, and starts another one each time. Whatever the
/// moment: what was handed out and not killed runs or is reported, and nothing else is left.
#[test]
fn killed_at_any_moment_nothing_is_lost_and_nothing_leaks() {
    let house = House::new(World::slow(
        Duration::from_millis(1),
        Duration::from_millis(2),
    ));
    house.world.faults.leave_prepared.store(true, SeqCst);
    let next = Arc::new(AtomicU64::new(1));
    // Sandboxes that were handed out and that nobody asked to end.
    let wanted: Arc<Mutex<Vec<u32>>> = Arc::default();
    // Sandboxes that were asked for, or asked to end, when the agent was killed.
    let doubtful: Arc<Mutex<Vec<u32>>> = Arc::default();
    for _ in 0..40 {
        let starting = start_in(&house);
        let (next, wanted, doubtful) = (next.clone(), wanted.clone(), doubtful.clone());
        let lifetime = Duration::from_micros(rand::rng().random_range(0..30_000));
        // Tasks are torn down one after the other, unlike those of a killed process: what the last
        // ones hear from those that are gone, nobody would have heard.
        let dying = Arc::new(AtomicBool::new(false));
        house.until_killed(async move {
            let agent = starting.await;
            let expected = wanted.lock().unwrap().clone();
            for number in expected {
                let now = status(&agent, number).await.state;
                assert_eq!(now, SandboxState::Running, "{number}");
            }
            let unclear = std::mem::take(&mut *doubtful.lock().unwrap());
            for number in unclear {
                // Known or not, it is in a state that makes sense; those that run are ended.
                if let Some(status) = agent.get(&id(number)).await.unwrap() {
                    assert!(
                        !matches!(status.state, SandboxState::Starting),
                        "{status:?}"
                    );
                    agent.kill(&id(number), EndReason::Killed).await.unwrap();
                }
            }
            for _ in 0..4 {
                let agent = agent.clone();
                let (next, wanted, doubtful) = (next.clone(), wanted.clone(), doubtful.clone());
                let dying = dying.clone();
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, SeqCst) as u32;
                        doubtful.lock().unwrap().push(number);
                        if create(&agent, number).await.is_err() || dying.load(SeqCst) {
                            continue;
                        }
                        if number.is_multiple_of(8) && wanted.lock().unwrap().len() < 30 {
                            doubtful.lock().unwrap().retain(|other| *other != number);
                            wanted.lock().unwrap().push(number);
                            continue;
                        }
                        let killed = agent.kill(&id(number), EndReason::Killed).await.is_ok();
                        if killed && !dying.load(SeqCst) {
                            doubtful.lock().unwrap().retain(|other| *other != number);
                        }
                    }
                });
            }
            tokio::time::sleep(lifetime).await;
            dying.store(true, SeqCst);
        });
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let agent = house.agent().await;
        let unclear = std::mem::take(&mut *doubtful.lock().unwrap());
        for number in unclear {
            agent.kill(&id(number), EndReason::Killed).await.unwrap();
        }
        let wanted = wanted.lock().unwrap().clone();
        assert!(!wanted.is_empty(), "the agent never lived long enough");
        // What was being taken down when the agent was killed is taken down by the next one.
        let began = Instant::now();
        while house.world.machines().len() != wanted.len() {
            let list = agent.list().await.unwrap();
            let live = list
                .iter()
                .filter(|one| !matches!(one.state, SandboxState::Ended { .. }));
            let live: Vec<_> = live.map(|one| (one.id.as_str(), &one.state)).collect();
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{wanted:?} are wanted; the agent knows {live:?}; there are machines in {:?}",
                house.world.machines(),
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        wait_for("the pool", || house.world.prepared().len() >= 4).await;
        agent.stop().await;
        house.assert_empty();
    });
}

/// Every prefix of a journal, with the world as it was at the end: whatever the journal has not
/// said is removed, and what it said is reported.
#[test]
fn any_prefix_of_the_journal_leads_to_a_legal_state() {
    let house = House::new(World::new());
    let starting = start_in(&house);
    house.until_killed(async move {
        let agent = starting.await;
        create(&agent, 1).await.unwrap();
        create(&agent, 2).await.unwrap();
        agent.kill(&id(1), EndReason::Killed).await.unwrap();
    });
    let journal = std::fs::read_to_string(house.journal()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for lines in 0..=journal.lines().count() {
        let house = House::new(World::new());
        let starting = start_in(&house);
        // The same again, so that the world holds what the journal speaks of.
        house.until_killed(async move {
            let agent = starting.await;
            create(&agent, 1).await.unwrap();
            create(&agent, 2).await.unwrap();
            agent.kill(&id(1), EndReason::Killed).await.unwrap();
        });
        let text = std::fs::read_to_string(house.journal()).unwrap();
        let mut prefix: String = text.split_inclusive('\n').take(lines).collect();
        prefix.push_str("{\"event\":\"torn");
        std::fs::write(house.journal(), prefix).unwrap();
        runtime.block_on(async {
            let agent = house.agent().await;
            let running = agent
                .list()
                .await
                .unwrap()
                .into_iter()
                .filter(|status| match &status.state {
                    SandboxState::Running => true,
                    SandboxState::Ended { .. } => false,
                    other => panic!("{other:?} after {lines} lines"),
                })
                .count();
            assert_eq!(house.world.machines().len(), running, "after {lines} lines");
            agent.stop().await;
            house.assert_empty();
        });
    }
}

//! Many sandboxes, too many sandboxes, and sandboxes prepared ahead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, Limits, PoolOptions, simulation::World};
use api::{
    Bytes, ErrorCode, Resources,
    node::{CreateSandbox, EndReason, Node, SandboxState},
};
use common::{House, create, id, request, status, wait_for};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sandboxes_come_and_go() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let began = Instant::now();
    let all = (1..=1000).map(|number| {
        let agent = agent.clone();
        tokio::spawn(async move { create(&agent, number).await.map(|made| made.state) })
    });
    for made in futures::future::join_all(all).await {
        assert_eq!(made.unwrap().unwrap(), SandboxState::Running);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(agent.list().await.unwrap().len(), 1000);
    assert_eq!(house.world.machines().len(), 1000);
    assert_eq!(agent.describe().await.unwrap().sandboxes, 1000);
    let total = agent
        .phases()
        .into_iter()
        .find(|phase| phase.phase == "total")
        .unwrap();
    assert_eq!(total.count, 1000);
    agent.stop().await;
    house.assert_empty();
    assert!(agent.list().await.unwrap().iter().all(|status| {
        matches!(
            &status.state,
            SandboxState::Ended {
                reason: EndReason::NodeStopped,
                ..
            }
        )
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makers_and_killers_of_the_same_sandbox_agree() {
    let house = House::new(World::slow(
        Duration::from_millis(1),
        Duration::from_millis(1),
    ));
    let agent = house.agent().await;
    for number in 1..=50 {
        let mut tasks = Vec::new();
        for turn in 0..6 {
            let agent = agent.clone();
            tasks.push(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(u64::from(turn * number * 7 % 3000)))
                    .await;
                if turn % 2 == 0 {
                    drop(create(&agent, number).await);
                } else {
                    agent.kill(&id(number), EndReason::Killed).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        agent.kill(&id(number), EndReason::Killed).await.unwrap();
        if let Some(now) = agent.get(&id(number)).await.unwrap() {
            assert!(matches!(now.state, SandboxState::Ended { .. }), "{now:?}");
        }
    }
    assert!(house.world.machines().is_empty());
    assert_eq!(agent.describe().await.unwrap().sandboxes, 0);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn what_is_used_up_is_named_and_nothing_is_left_half_made() {
    let mut world = World::new();
    Arc::get_mut(&mut world).unwrap().slots_max = 3;
    let house = House::new(world);
    let options = AgentOptions {
        pool: PoolOptions {
            min: 0,
            max: 0,
            ..PoolOptions::default()
        },
        ..house.options()
    };
    let agent = Agent::start(options).await.unwrap();
    for number in 1..=3 {
        create(&agent, number).await.unwrap();
    }
    let problem = create(&agent, 4).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::OutOfCapacity);
    assert!(
        problem.cause.contains("slots") && !problem.remedy.is_empty(),
        "{problem}"
    );
    assert!(agent.get(&id(4)).await.unwrap().is_none());

    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    house.world.faults.prepare.store(1, SeqCst);
    let problem = create(&agent, 4).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::OutOfDisk);
    assert_eq!(house.world.slots().len(), 2);
    // The same sandbox may be asked for again once there is room.
    create(&agent, 4).await.unwrap();

    let limits = Limits {
        memory_overcommit: 1.0,
        sandboxes: 3,
        ..house.options().limits
    };
    agent.stop().await;
    let agent = Agent::start(AgentOptions {
        limits,
        ..house.options()
    })
    .await
    .unwrap();
    let huge = Resources {
        memory: Bytes::gibibytes(1 << 20),
        ..Resources::default()
    };
    let problem = agent
        .create(CreateSandbox {
            resources: huge,
            ..request(10)
        })
        .await
        .unwrap_err();
    assert_eq!(problem.code, ErrorCode::OutOfCapacity);
    for number in 11..=13 {
        create(&agent, number).await.unwrap();
    }
    assert_eq!(
        create(&agent, 14).await.unwrap_err().code,
        ErrorCode::OutOfCapacity
    );
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn the_pool_is_filled_grows_with_demand_and_replaces_the_dead() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    wait_for("the pool to fill", || agent.ready() == 4).await;
    for slot in house.world.prepared() {
        house.world.kill_prepared(slot);
    }
    // The dead are not handed out: starting one would fail.
    create(&agent, 1).await.unwrap();
    wait_for("the dead to be replaced", || {
        house.world.prepared().len() >= 4
    })
    .await;
    wait_for("the slots of the dead to be free", || {
        house.world.slots().len() == house.world.prepared().len() + 1
    })
    .await;

    let burst = (2..=18).map(|number| create(&agent, number));
    for made in futures::future::join_all(burst).await {
        made.unwrap();
    }
    wait_for("the pool to grow", || agent.ready() >= 20).await;
    assert!(agent.ready() <= 32);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_pool_that_cannot_be_filled_tries_again() {
    let house = House::new(World::new());
    house.world.faults.prepare.store(1, SeqCst);
    let agent = house.agent().await;
    wait_for("the pool to fill", || agent.ready() == 4).await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_sandboxes_start_leaves_nothing() {
    for round in 0..20u64 {
        let house = House::new(World::slow(
            Duration::from_millis(2),
            Duration::from_millis(2),
        ));
        let agent = house.agent().await;
        let starting: Vec<_> = (1..=20)
            .map(|number| {
                let agent = agent.clone();
                tokio::spawn(async move { create(&agent, number).await.is_ok() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(round)).await;
        agent.stop().await;
        for started in starting {
            started.await.unwrap();
        }
        wait_for("the last to be gone", || house.world.slots().is_empty()).await;
        house.assert_empty();
        for number in 1..=20 {
            if agent.get(&id(number)).await.unwrap().is_some() {
                let now = status(&agent, number).await.state;
                assert!(matches!(now, SandboxState::Ended { .. }), "{now:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_environment_that_no_guest_can_be_told_is_refused() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let with = |number, length| CreateSandbox {
        environment: [("BIG".to_owned(), "x".repeat(length))].into(),
        ..request(number)
    };
    agent.create(with(1, 200 << 10)).await.unwrap();
    let problem = agent.create(with(2, 250 << 10)).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidArgument);
    assert!(
        problem.cause.contains("environment") && problem.remedy.contains("files"),
        "{problem}"
    );
    let phases = agent.describe().await.unwrap().phases;
    assert!(
        phases
            .iter()
            .any(|phase| phase.name == "total" && phase.count == 1),
        "{phases:?}"
    );
    agent.stop().await;
    house.assert_empty();
}

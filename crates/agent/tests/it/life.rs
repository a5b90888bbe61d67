//! The life of one sandbox, from its making to its end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::simulation::World;
use api::{
    ErrorCode,
    node::{CreateSandbox, EndReason, NetworkPolicy, Node, SandboxState},
    route::Locate,
};
use common::{House, create, ended, id, request, status, wait_for};
use driver::Exit;
use jiff::{SignedDuration, Timestamp};
use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

fn reason(state: &SandboxState) -> &EndReason {
    match state {
        SandboxState::Ended { reason, .. } => reason,
        other => panic!("should have ended, and is {other:?}"),
    }
}

#[tokio::test]
async fn a_sandbox_is_made_found_and_killed() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let before = Timestamp::now();
    let made = create(&agent, 1).await.unwrap();
    assert_eq!(made.state, SandboxState::Running);
    assert!(made.started_at >= before && made.secure);
    assert_eq!(
        made.deadline.duration_since(made.started_at),
        SignedDuration::from_secs(300)
    );
    assert_eq!(agent.get(&id(1)).await.unwrap().unwrap(), made);
    assert_eq!(
        agent.list().await.unwrap(),
        [std::sync::Arc::new(made.clone())]
    );
    let route = agent.locate(&id(1)).await.unwrap();
    assert_eq!(Some(route.address), made.address);
    assert_eq!(agent.routes().await, [(id(1), route)]);
    let about = agent.describe().await.unwrap();
    assert_eq!(
        (about.sandboxes, about.allocated.memory),
        (1, request(1).resources.memory)
    );

    assert!(agent.kill(&id(1), EndReason::Killed).await.unwrap());
    assert!(agent.locate(&id(1)).await.is_none());
    let ended = status(&agent, 1).await;
    assert_eq!(reason(&ended.state), &EndReason::Killed);
    assert_eq!(ended.address, None);
    assert!(ended.template.environment.is_empty());
    assert!(!agent.kill(&id(1), EndReason::Killed).await.unwrap());
    assert!(!agent.kill(&id(2), EndReason::Killed).await.unwrap());
    assert_eq!(agent.describe().await.unwrap().sandboxes, 0);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn what_happens_happens_in_order() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    create(&agent, 1).await.unwrap();
    let slot = house.world.machines()[0];
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    let wanted =
        ["claim", "prepare", "start", "destroy", "release"].map(|word| format!("{word} {slot}"));
    let events = house.world.events();
    let seen: Vec<_> = events
        .iter()
        .filter(|event| event.ends_with(&format!(" {slot}")))
        .collect();
    assert_eq!(
        seen.iter().take(5).copied().collect::<Vec<_>>(),
        wanted.iter().collect::<Vec<_>>()
    );

    let journal = std::fs::read_to_string(house.journal()).unwrap();
    let position = |event: &str, of: &str| {
        journal
            .lines()
            .position(|line| line.contains(&format!("\"event\":\"{event}\"")) && line.contains(of))
            .unwrap_or_else(|| panic!("no record of {event}"))
    };
    let of = id(1);
    let order = [
        position("reserved", &format!("\"slot\":{slot}")),
        position("starting", of.as_str()),
        position("running", of.as_str()),
        position("stopping", of.as_str()),
        position("ended", of.as_str()),
    ];
    assert!(order.is_sorted(), "{order:?}");
    agent.stop().await;
}

#[tokio::test]
async fn asking_twice_makes_one() {
    let house = House::new(World::slow(Duration::ZERO, Duration::from_millis(50)));
    let agent = house.agent().await;
    let both = futures::future::join(create(&agent, 1), create(&agent, 1)).await;
    assert_eq!(both.0.unwrap(), both.1.unwrap());
    assert_eq!(house.world.machines().len(), 1);
    let other = CreateSandbox {
        auto_resume: true,
        ..request(1)
    };
    assert_eq!(
        agent.create(other).await.unwrap_err().code,
        ErrorCode::Conflict
    );
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    assert_eq!(
        create(&agent, 1).await.unwrap_err().code,
        ErrorCode::Conflict
    );
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn time_is_up_when_it_is_up() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let short = CreateSandbox {
        timeout: Duration::from_millis(700),
        ..request(1)
    };
    let made = agent.create(short).await.unwrap();
    create(&agent, 2).await.unwrap();
    let waiting = Instant::now();
    agent.ended(&id(1)).await;
    let lived = waiting.elapsed();
    assert!(
        lived > Duration::from_millis(600) && lived < Duration::from_millis(950),
        "{lived:?}"
    );
    let SandboxState::Ended { reason, at } = ended(&agent, 1).await.state else {
        panic!()
    };
    assert_eq!(reason, EndReason::TimedOut);
    assert!(at.duration_since(made.deadline).abs() < SignedDuration::from_millis(250));

    // A time may be moved both ways; one that is over acts at once.
    let later = Timestamp::now() + SignedDuration::from_secs(1000);
    assert_eq!(
        agent.set_deadline(&id(2), later).await.unwrap().deadline,
        later
    );
    agent.set_deadline(&id(2), Timestamp::now()).await.unwrap();
    tokio::time::timeout(Duration::from_millis(500), agent.ended(&id(2)))
        .await
        .unwrap();
    wait_for("the second to be gone", || {
        house.world.machines().is_empty()
    })
    .await;
    let late = agent.set_deadline(&id(2), later).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Conflict);
    assert_eq!(
        agent.set_deadline(&id(3), later).await.unwrap_err().code,
        ErrorCode::NotFound
    );
    agent.stop().await;
}

#[tokio::test]
async fn the_longest_time_does_no_harm() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let long = CreateSandbox {
        timeout: Duration::MAX,
        ..request(1)
    };
    assert_eq!(agent.create(long).await.unwrap().deadline, Timestamp::MAX);
    agent.stop().await;
}

#[tokio::test]
async fn a_machine_that_ends_is_reported_with_its_reason() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    for (number, exit, wanted) in [
        (1, Exit::OutOfMemory, EndReason::OutOfMemory),
        (
            2,
            Exit::Ended("exit status 3".into()),
            EndReason::Crashed("exit status 3".into()),
        ),
    ] {
        create(&agent, number).await.unwrap();
        let slot = house.world.machines()[0];
        house.world.crash(slot, exit);
        agent.ended(&id(number)).await;
        assert_eq!(reason(&ended(&agent, number).await.state), &wanted);
        assert!(house.world.machines().is_empty());
        assert!(!house.world.slots().contains(&slot) || house.world.prepared().contains(&slot));
    }
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_kill_while_it_starts_leaves_nothing() {
    let house = House::new(World::slow(Duration::ZERO, Duration::from_millis(200)));
    let agent = house.agent().await;
    let starting = tokio::spawn({
        let agent = agent.clone();
        async move { create(&agent, 1).await }
    });
    wait_for("the start", || !house.world.machines().is_empty()).await;
    assert_eq!(status(&agent, 1).await.state, SandboxState::Starting);
    let refused = agent
        .set_deadline(&id(1), Timestamp::MAX)
        .await
        .unwrap_err();
    assert!(
        refused.cause.contains("starting") && refused.cause.contains("running"),
        "{refused}"
    );
    assert!(agent.kill(&id(1), EndReason::Killed).await.unwrap());
    assert!(house.world.machines().is_empty());
    let problem = starting.await.unwrap().unwrap_err();
    assert_eq!(problem.code, ErrorCode::Conflict);
    assert_eq!(reason(&status(&agent, 1).await.state), &EndReason::Killed);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_but_the_reason() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    house.world.faults.start.store(1, SeqCst);
    let problem = create(&agent, 1).await.unwrap_err();
    assert!(problem.cause.contains("did not start"), "{problem}");
    let EndReason::FailedToStart(text) = reason(&status(&agent, 1).await.state).clone() else {
        panic!()
    };
    assert_eq!(text, problem.cause);
    house.world.faults.set_internet.store(1, SeqCst);
    let network = NetworkPolicy {
        internet: false,
        ..NetworkPolicy::default()
    };
    let closed = CreateSandbox {
        network,
        ..request(2)
    };
    assert_eq!(
        agent.create(closed).await.unwrap_err().code,
        ErrorCode::Internal
    );
    assert!(house.world.machines().is_empty());
    assert_eq!(agent.describe().await.unwrap().sandboxes, 0);
    create(&agent, 3).await.unwrap();
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn taking_down_is_tried_until_it_works() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    create(&agent, 1).await.unwrap();
    house.world.faults.destroy.store(2, SeqCst);
    let began = Instant::now();
    assert!(agent.kill(&id(1), EndReason::Killed).await.unwrap());
    assert!(began.elapsed() >= Duration::from_millis(290));
    assert!(house.world.machines().is_empty());
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn what_it_may_reach_is_set_before_it_runs_and_can_be_changed() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let closed = NetworkPolicy {
        internet: false,
        ..NetworkPolicy::default()
    };
    let made = agent
        .create(CreateSandbox {
            network: closed.clone(),
            ..request(1)
        })
        .await
        .unwrap();
    let slot = house.world.machines()[0];
    assert!(house.world.is_closed(slot));
    assert_eq!(made.network, closed);
    let guarded = NetworkPolicy {
        allow_public_traffic: false,
        ..NetworkPolicy::default()
    };
    agent.set_network(&id(1), guarded.clone()).await.unwrap();
    assert!(!house.world.is_closed(slot));
    assert_eq!(status(&agent, 1).await.network, guarded);

    house.world.faults.set_internet.store(1, SeqCst);
    assert!(agent.set_network(&id(1), closed).await.is_err());
    assert_eq!(status(&agent, 1).await.network, guarded);
    agent.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    let nothing = CreateSandbox {
        timeout: Duration::ZERO,
        ..request(1)
    };
    assert_eq!(
        agent.create(nothing).await.unwrap_err().code,
        ErrorCode::InvalidArgument
    );
    let elsewhere = CreateSandbox {
        id: "iclunod20000000000000".parse().unwrap(),
        ..request(1)
    };
    assert_eq!(
        agent.create(elsewhere).await.unwrap_err().code,
        ErrorCode::InvalidArgument
    );
    assert!(agent.list().await.unwrap().is_empty());
    agent.stop().await;
    assert_eq!(
        create(&agent, 1).await.unwrap_err().code,
        ErrorCode::Unavailable
    );
}

#[tokio::test]
async fn connections_are_broken_when_the_kill_begins_and_not_when_it_is_done() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    create(&agent, 1).await.unwrap();
    house.world.faults.destroy.store(3, SeqCst);
    let killing = tokio::spawn({
        let agent = agent.clone();
        async move { agent.kill(&id(1), EndReason::Killed).await }
    });
    tokio::time::timeout(Duration::from_millis(100), agent.ended(&id(1)))
        .await
        .unwrap();
    assert!(!killing.is_finished());
    assert!(matches!(
        status(&agent, 1).await.state,
        SandboxState::Stopping { .. }
    ));
    assert!(agent.locate(&id(1)).await.is_none());
    killing.await.unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn the_first_sample_comes_within_two_seconds() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    create(&agent, 1).await.unwrap();
    let began = Instant::now();
    let samples = loop {
        let samples = agent.metrics(&id(1), None, None).await.unwrap();
        if !samples.is_empty() {
            break samples;
        }
        assert!(began.elapsed() < Duration::from_secs(3));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(
        (5.0..15.0).contains(&samples[0].cpu_used_percent),
        "{samples:?}"
    );
    assert_eq!(samples[0].memory_total, request(1).resources.memory);
    let before = samples[0].at - SignedDuration::from_secs(100);
    assert!(
        agent
            .metrics(&id(1), None, Some(before))
            .await
            .unwrap()
            .is_empty()
    );
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    assert_eq!(agent.metrics(&id(1), None, None).await.unwrap(), samples);
    assert_eq!(
        agent.metrics(&id(2), None, None).await.unwrap_err().code,
        ErrorCode::NotFound
    );
    agent.stop().await;
}

//! Pausing, resuming, snapshots and forks, in a simulated world.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, simulation::World};
use api::{
    BuildId, ErrorCode, Secret,
    node::{
        CreateSandbox, EndReason, ForkChild, NetworkPolicy, Node, OnTimeout, SandboxState,
        TemplateBuild,
    },
    route::Locate,
};
use common::{House, create, ended, id, names, request, serve_guests, status, upgrade, wait_for};
use driver::Exit;
use futures::StreamExt;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

fn slot_of(house: &House) -> u32 {
    let machines = house.world.machines();
    assert_eq!(machines.len(), 1, "{machines:?}");
    machines[0]
}

fn build(number: u32) -> BuildId {
    format!("00000000-0000-4000-8000-{number:012}")
        .parse()
        .unwrap()
}

fn child(number: u32) -> ForkChild {
    ForkChild {
        id: id(number),
        access_token: Some(Secret::new(format!("token of {number}"))),
        traffic_token: None,
        timeout: Duration::from_secs(60),
        metadata: BTreeMap::from([("child".into(), number.to_string())]),
    }
}

fn snapshot_of(number: u32, build: BuildId) -> TemplateBuild {
    TemplateBuild {
        build,
        ..request(number).template
    }
}

/// Pauses and forks leave nothing; what templates have stays.
async fn assert_no_states(house: &House) {
    wait_for("states to go", || {
        names(house, "paused").is_empty() && names(house, "forks").is_empty()
    })
    .await;
}

async fn agent_of(house: &House) -> Arc<Agent> {
    house.agent_with_guests().await
}

#[tokio::test]
async fn a_stop_waits_until_what_was_deleted_is_gone() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    agent.pause(&id(1), true).await.unwrap();
    let held = names(&house, "paused");
    let state = house.path().join("paused").join(&held[0]);
    // So that removing it takes longer than stopping.
    for number in 0..20_000 {
        std::fs::write(state.join(number.to_string()), "").unwrap();
    }
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    agent.stop().await;
    assert_eq!(names(&house, "paused"), Vec::<String>::new());
}

#[tokio::test]
async fn a_paused_sandbox_holds_nothing_but_disk_and_comes_back_as_it_was() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    let made = create(&agent, 1).await.unwrap();
    let slot = slot_of(&house);
    house.world.write(slot, "in memory", "on disk");

    let paused = agent.pause(&id(1), true).await.unwrap();
    assert_eq!(paused.state, SandboxState::Paused);
    assert_eq!(
        (paused.address, paused.paused_with_memory),
        (None, Some(true))
    );
    assert!(paused.paused_at.is_some() && paused.started_at == made.started_at);
    assert!(house.world.machines().is_empty());
    assert!(agent.locate(&id(1)).await.is_none());
    let about = agent.describe().await.unwrap();
    assert_eq!(
        (about.sandboxes, about.paused, about.allocated.vcpus),
        (0, 1, 0)
    );
    let again = agent.pause(&id(1), true).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::Conflict);
    let late = agent.set_deadline(&id(1), made.deadline).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Conflict);

    let resumed = agent.resume(&id(1), HOUR).await.unwrap();
    assert!(resumed.was_paused);
    assert_eq!(resumed.status.state, SandboxState::Running);
    assert_eq!(resumed.status.paused_with_memory, None);
    assert!(resumed.status.deadline > made.deadline);
    let slot = slot_of(&house);
    let expected = ("in memory".to_owned(), "on disk".to_owned());
    assert_eq!(house.world.read(slot), Some(expected));
    let route = agent.locate(&id(1)).await.unwrap();
    assert_eq!(route.access_token, request(1).access_token);
    let starts = |what: &str| {
        let events = house.world.events();
        events
            .iter()
            .filter(|event| **event == format!("{what} {slot}"))
            .count()
    };
    assert!(starts("start") > starts("renew"), "a resume renews nothing");
    // Running already: only its time is moved, and only forwards.
    let again = agent.resume(&id(1), Duration::from_secs(1)).await.unwrap();
    assert!(!again.was_paused);
    assert_eq!(again.status.deadline, resumed.status.deadline);

    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    assert_no_states(&house).await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn many_pauses_keep_no_more_states_than_needed() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    for round in 0..20 {
        let text = format!("round {round}");
        house.world.write(slot_of(&house), &text, &text);
        agent.pause(&id(1), round % 5 != 0).await.unwrap();
        agent.resume(&id(1), HOUR).await.unwrap();
        let read = house.world.read(slot_of(&house)).unwrap();
        let memory = if round % 5 == 0 { "" } else { &text };
        assert_eq!(read, (memory.to_owned(), text.clone()));
    }
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    assert_no_states(&house).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_fails_leaves_it_as_it_was() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    house.world.faults.save.store(1, SeqCst);
    let problem = agent.pause(&id(1), true).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::OutOfDisk);
    assert_eq!(status(&agent, 1).await.state, SandboxState::Running);
    assert!(!house.world.is_frozen(slot_of(&house)));
    assert!(agent.locate(&id(1)).await.is_some());

    agent.pause(&id(1), true).await.unwrap();
    for fault in ["start", "check", "claim"] {
        match fault {
            "start" => house.world.faults.start.store(1, SeqCst),
            "check" => house.world.change(|host| host.processor = "other".into()),
            _ => house.world.faults.claim.store(1, SeqCst),
        }
        let problem = agent.resume(&id(1), HOUR).await.unwrap_err();
        house.world.change(|host| host.processor = "this".into());
        let now = status(&agent, 1).await;
        assert_eq!(now.state, SandboxState::Paused, "{fault}: {problem}");
        assert!(house.world.machines().is_empty(), "{fault}");
        let about = agent.describe().await.unwrap();
        assert_eq!((about.sandboxes, about.paused), (0, 1), "{fault}");
    }
    // That its kernel and its guest are older than this host's is no reason.
    house.world.change(upgrade);
    assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
    // One that crashes after that has ended for good.
    house.world.crash(slot_of(&house), Exit::OutOfMemory);
    ended(&agent, 1).await;
    assert_no_states(&house).await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn killed_while_it_is_paused_or_brought_back() {
    let mut world = World::with_snapshots();
    {
        let world = Arc::get_mut(&mut world).unwrap();
        world.save_time = Duration::from_millis(100);
        world.start_time = Duration::from_millis(100);
    }
    let house = House::new(world);
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    create(&agent, 2).await.unwrap();
    create(&agent, 3).await.unwrap();

    let (first, second) = (id(1), id(2));
    let pausing = agent.pause(&first, true);
    let killing = async {
        agent.ended(&id(1)).await;
        assert_eq!(status(&agent, 1).await.state, SandboxState::Pausing);
        agent.kill(&id(1), EndReason::Killed).await.unwrap()
    };
    let (paused, killed) = futures::join!(pausing, killing);
    assert_eq!(paused.unwrap_err().code, ErrorCode::Conflict);
    assert!(killed);
    let reason = |state: &SandboxState| match state {
        SandboxState::Ended { reason, .. } => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&status(&agent, 1).await.state), EndReason::Killed);

    agent.pause(&id(2), true).await.unwrap();
    let resuming = agent.resume(&second, HOUR);
    let killing = async {
        loop {
            if status(&agent, 2).await.state == SandboxState::Resuming {
                break;
            }
            tokio::task::yield_now().await;
        }
        agent.kill(&id(2), EndReason::Killed).await.unwrap()
    };
    let (resumed, killed) = futures::join!(resuming, killing);
    assert_eq!(resumed.unwrap_err().code, ErrorCode::Conflict);
    assert!(killed);

    agent.pause(&id(3), true).await.unwrap();
    assert!(agent.kill(&id(3), EndReason::Killed).await.unwrap());
    assert_eq!(reason(&status(&agent, 3).await.state), EndReason::Killed);
    assert_no_states(&house).await;
    assert!(house.world.machines().is_empty());
    assert_eq!(agent.describe().await.unwrap().paused, 0);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn time_that_is_up_pauses_and_traffic_wakes() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    let wanted = |number, auto_resume, pause_memory| CreateSandbox {
        timeout: Duration::from_millis(300),
        on_timeout: OnTimeout::Pause,
        auto_resume,
        pause_memory,
        ..request(number)
    };
    agent.create(wanted(1, true, true)).await.unwrap();
    agent.create(wanted(2, false, true)).await.unwrap();
    agent.create(wanted(3, true, false)).await.unwrap();
    wait_for("all to be paused", || house.world.machines().is_empty()).await;
    for number in 1..=3 {
        while status(&agent, number).await.state != SandboxState::Paused {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(status(&agent, 3).await.paused_with_memory, Some(false));
    // A hundred requests at once share one resume.
    let address = id(1);
    let woken = futures::future::join_all((0..100).map(|_| agent.wake(&address))).await;
    for route in &woken {
        assert_eq!(route.as_ref().unwrap(), woken[0].as_ref().unwrap());
    }
    assert!(woken[0].as_ref().unwrap().is_some());
    assert_eq!(house.world.machines().len(), 1);
    let left = status(&agent, 1)
        .await
        .deadline
        .duration_since(jiff::Timestamp::now());
    assert!(left.as_secs() > 290, "{left:?}");
    for number in [2, 3] {
        let problem = agent.wake(&id(number)).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::PermissionDenied);
    }
    assert_eq!(agent.wake(&id(9)).await.unwrap(), None);
    for number in 1..=3 {
        agent.kill(&id(number), EndReason::Killed).await.unwrap();
    }
    assert_eq!(agent.wake(&id(1)).await.unwrap(), None);
    assert_no_states(&house).await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_snapshot_starts_sandboxes_until_it_is_removed() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    house
        .world
        .write(slot_of(&house), "memory of 1", "disk of 1");
    let made = snapshot_of(1, build(7));
    let info = agent.snapshot(&id(1), made.clone(), true).await.unwrap();
    assert!(info.memory && info.build == build(7) && info.size.0 > 0);
    assert_eq!(status(&agent, 1).await.state, SandboxState::Running);
    let twice = agent
        .snapshot(&id(1), made.clone(), true)
        .await
        .unwrap_err();
    assert_eq!(twice.code, ErrorCode::Conflict);
    agent.kill(&id(1), EndReason::Killed).await.unwrap();

    let from = |number| CreateSandbox {
        template: made.clone(),
        ..request(number)
    };
    // Also when it is older than what would be booted now.
    house.world.change(upgrade);
    agent.create(from(2)).await.unwrap();
    let slot = slot_of(&house);
    let read = house.world.read(slot).unwrap();
    assert_eq!(read, ("memory of 1".to_owned(), "disk of 1".to_owned()));
    assert!(house.world.events().contains(&format!("renew {slot}")));
    let larger = CreateSandbox {
        resources: api::Resources {
            vcpus: 3,
            ..request(3).resources
        },
        ..from(3)
    };
    let problem = agent.create(larger).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidArgument);
    // It cannot be made again, so a host that cannot resume it says so.
    house.world.change(|host| host.processor = "other".into());
    let problem = agent.create(from(3)).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::Unsupported);
    assert!(problem.cause.contains("processor"), "{problem}");

    // Its files stay for as long as a sandbox runs on them.
    agent.remove_state(&build(7)).await.unwrap();
    assert!(names(&house, "states").contains(&build(7).to_string()));
    agent.kill(&id(2), EndReason::Killed).await.unwrap();
    wait_for("the snapshot to go", || {
        !names(&house, "states").contains(&build(7).to_string())
    })
    .await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_fork_makes_children_and_the_parent_goes_on() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    house.world.write(slot_of(&house), "shared", "files");
    let closed = NetworkPolicy {
        internet: false,
        ..NetworkPolicy::default()
    };
    agent.set_network(&id(1), closed.clone()).await.unwrap();
    // One child cannot start: the others do.
    let mut elsewhere = child(5);
    elsewhere.id = "iclunod20000000000000".parse().unwrap();
    let children = vec![child(2), elsewhere, child(3), child(4)];
    let made = agent.fork(&id(1), children).await.unwrap();
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3);
    assert!(made[1].is_err());
    assert_eq!(status(&agent, 1).await.state, SandboxState::Running);
    assert_eq!(house.world.machines().len(), 4);
    for (number, made) in [(2, &made[0]), (3, &made[2]), (4, &made[3])] {
        let made = made.as_ref().unwrap();
        assert_eq!((made.id.clone(), &made.network), (id(number), &closed));
        assert_eq!(made.metadata["child"], number.to_string());
        let route = agent.locate(&id(number)).await.unwrap();
        let token = Secret::new(format!("token of {number}"));
        assert_eq!(route.access_token, Some(token));
    }
    for slot in house.world.machines() {
        assert!(house.world.is_closed(slot));
        let read = house.world.read(slot).unwrap();
        assert_eq!(read, ("shared".to_owned(), "files".to_owned()));
    }
    assert_eq!(names(&house, "forks").len(), 1);
    // A paused child lies on what it was forked from.
    agent.pause(&id(2), true).await.unwrap();
    for number in [3, 4] {
        agent.kill(&id(number), EndReason::Killed).await.unwrap();
    }
    assert_eq!(names(&house, "forks").len(), 1);
    agent.kill(&id(2), EndReason::Killed).await.unwrap();
    assert_no_states(&house).await;

    let nobody = agent.fork(&id(2), vec![child(6)]).await.unwrap_err();
    assert_eq!(nobody.code, ErrorCode::Conflict);
    let none = agent.fork(&id(1), Vec::new()).await.unwrap_err();
    assert_eq!(none.code, ErrorCode::InvalidArgument);
    house.world.faults.save.store(1, SeqCst);
    assert!(agent.fork(&id(1), vec![child(6)]).await.is_err());
    assert_eq!(status(&agent, 1).await.state, SandboxState::Running);
    agent.stop().await;
    assert_no_states(&house).await;
    house.assert_empty();
}

#[tokio::test]
async fn a_driver_without_memory_snapshots_freezes_in_place() {
    let house = House::new(World::new());
    let agent = house.agent().await;
    create(&agent, 1).await.unwrap();
    let slot = slot_of(&house);
    house.world.write(slot, "memory", "disk");
    let paused = agent.pause(&id(1), true).await.unwrap();
    assert_eq!(paused.paused_with_memory, Some(true));
    assert!(house.world.is_frozen(slot) && agent.locate(&id(1)).await.is_none());
    // It holds what it held.
    assert_eq!(agent.describe().await.unwrap().sandboxes, 1);
    assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
    assert!(!house.world.is_frozen(slot) && agent.locate(&id(1)).await.is_some());

    let problem = agent
        .snapshot(&id(1), snapshot_of(1, build(7)), true)
        .await
        .unwrap_err();
    assert_eq!(problem.code, ErrorCode::Unsupported);
    assert!(names(&house, "states").is_empty());
    agent.pause(&id(1), false).await.unwrap();
    assert!(house.world.machines().is_empty());
    agent.resume(&id(1), HOUR).await.unwrap();
    let read = house.world.read(slot_of(&house)).unwrap();
    assert_eq!(read, (String::new(), "disk".to_owned()));
    // A fork has its disk only.
    let made = agent.fork(&id(1), vec![child(2)]).await.unwrap();
    made[0].as_ref().unwrap();
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn who_got_a_prepared_machine_has_a_moment_to_itself() {
    let house = House::new(World::with_snapshots());
    let mut options = house.options();
    options.guest_port = serve_guests().await;
    options.pool.grace = HOUR;
    let agent = Agent::start(options).await.unwrap();
    let (template, resources) = (request(1).template, request(1).resources);
    let made = agent.prepare_template(template, resources).await.unwrap();
    drop(made.collect::<Vec<_>>().await);
    // None is ready yet, so nobody gets one that was.
    let burst = (1..=4).map(|number| create(&agent, number));
    for made in futures::future::join_all(burst).await {
        made.unwrap();
    }
    wait_for("some to be prepared", || agent.ready() >= 4).await;
    let ready = agent.ready();
    for number in 0..ready {
        create(&agent, 5 + number).await.unwrap();
    }
    // Of all that are wanted again one is prepared, as none was left.
    wait_for("one to be prepared", || agent.ready() > 0).await;
    assert_eq!(agent.ready(), 1);
    let pools = agent.describe().await.unwrap().pools;
    assert_eq!((pools[0].hits, pools[0].misses), (ready.into(), 4));
    assert!(pools[0].wanted > 2, "{pools:?}");
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_template_is_started_once_and_kept_ready() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    let template = request(1).template;
    let resources = request(1).resources;
    let events: Vec<_> = agent
        .prepare_template(template.clone(), resources)
        .await
        .unwrap()
        .collect()
        .await;
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, api::node::BuildEvent::Failed { .. })),
        "{events:?}"
    );
    let starts = || {
        let events = house.world.events();
        events
            .iter()
            .filter(|event| event.starts_with("start "))
            .count()
    };
    assert_eq!(starts(), 1);
    create(&agent, 1).await.unwrap();
    assert_eq!(starts(), 2);
    // Demand keeps one ready for the next.
    wait_for("one to be prepared", || !house.world.prepared().is_empty()).await;
    let pools = agent.describe().await.unwrap().pools;
    assert_eq!(
        (pools.len(), pools[0].build.clone()),
        (1, Some(template.build.clone()))
    );
    assert_eq!((pools[0].hits, pools[0].misses), (0, 1));
    create(&agent, 2).await.unwrap();
    assert_eq!(agent.describe().await.unwrap().pools[0].hits, 1);

    // A host that has changed cannot resume it: it is made again, and the create waits for that.
    house.world.change(|host| host.processor = "other".into());
    create(&agent, 3).await.unwrap();
    assert!(starts() >= 5, "{}", starts());

    for number in 1..=3 {
        agent.kill(&id(number), EndReason::Killed).await.unwrap();
    }
    agent.remove_state(&template.build).await.unwrap();
    wait_for("the template's state to go", || {
        names(&house, "states").is_empty()
    })
    .await;
    agent.stop().await;
    house.assert_empty();
}

/// A shell is run beforehand in what waits for a template's sandboxes.
#[tokio::test]
async fn what_waits_for_a_template_is_warmed_up() {
    let house = House::new(World::with_snapshots());
    let agent = agent_of(&house).await;
    create(&agent, 1).await.unwrap();
    let warm = || {
        let events = house.world.events();
        let mut warm = events
            .into_iter()
            .filter(|event| event.starts_with("warm "));
        warm.next()
    };
    wait_for("one to be warmed up", || warm().is_some()).await;
    assert!(warm().is_some_and(|event| event.ends_with(" as user")));
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    agent.stop().await;
    house.assert_empty();
}

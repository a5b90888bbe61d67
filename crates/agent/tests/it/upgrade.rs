//! What was saved is of use after Atoll, or what guests boot, was upgraded, and where the data
//! directory was moved to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, OnExit, simulation::World};
use api::{
    ErrorCode,
    node::{EndReason, Node, SandboxState},
};
use common::{House, create, id, names, request, serve_guests, status, upgrade, wait_for};
use rand::Rng;
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A world whose machines take a moment to be saved.
fn world() -> Arc<World> {
    let mut world = World::with_snapshots();
    Arc::get_mut(&mut world).unwrap().save_time = Duration::from_millis(100);
    world
}

/// How often machines were started, for a template or as sandboxes.
fn starts(house: &House) -> usize {
    let events = house.world.events();
    let started = events.iter().filter(|event| event.starts_with("start "));
    started.count()
}

/// The name of the template's state that was made so many times before.
fn state(count: u32) -> String {
    let build = request(1).template.build;
    match count {
        0 => build.to_string(),
        count => format!("{build}.{count}"),
    }
}

fn is_whole(house: &House, state: &str) -> bool {
    house
        .path()
        .join("states")
        .join(state)
        .join("state.json")
        .exists()
}

async fn wait_for_states(house: &House, states: &[String]) {
    let about = |state: &String| [state.clone(), format!("{state}.json")];
    let mut expected: Vec<String> = states.iter().flat_map(about).collect();
    expected.sort();
    wait_for(&format!("{states:?}"), || {
        names(house, "states") == expected && states.iter().all(|state| is_whole(house, state))
    })
    .await;
}

#[tokio::test]
async fn an_outdated_template_is_used_until_it_is_made_again() {
    let house = House::new(world());
    let agent = house.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    agent.pause(&id(1), true).await.unwrap();
    agent.stop().await;

    house.world.change(upgrade);
    let agent = house.agent_with_guests().await;
    create(&agent, 2).await.unwrap();
    assert!(!is_whole(&house, &state(1)), "nobody waits for it");
    assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
    let about = house
        .path()
        .join("states")
        .join(format!("{}.json", state(0)));
    wait_for("another to take its name", || !about.exists()).await;
    // The new one starts sandboxes; on the one before they run for as long as they like.
    create(&agent, 3).await.unwrap();
    agent.pause(&id(2), true).await.unwrap();
    assert!(agent.resume(&id(2), HOUR).await.unwrap().was_paused);
    assert!(is_whole(&house, &state(0)));
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    agent.kill(&id(2), EndReason::Killed).await.unwrap();
    wait_for_states(&house, &[state(1)]).await;
    agent.stop().await;

    // Nothing has changed since, so nothing is made again.
    let before = starts(&house);
    let agent = house.agent_with_guests().await;
    create(&agent, 4).await.unwrap();
    wait_for("one to be prepared", || agent.ready() > 0).await;
    assert_eq!(starts(&house), before + 1);
    agent
        .remove_state(&request(1).template.build)
        .await
        .unwrap();
    agent.stop().await;
    wait_for_states(&house, &[]).await;
    house.assert_empty();
}

#[tokio::test]
async fn what_this_host_cannot_resume_is_made_again_before_it_is_asked_for() {
    let house = House::new(world());
    let agent = house.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    agent.pause(&id(1), true).await.unwrap();
    agent.stop().await;

    house.world.change(|host| host.protocol += 1);
    let agent = house.agent_with_guests().await;
    wait_for("another", || is_whole(&house, &state(1))).await;
    let before = starts(&house);
    create(&agent, 2).await.unwrap();
    assert_eq!(starts(&house), before + 1);
    // What cannot be made again is kept for a host that can resume it.
    let problem = agent.resume(&id(1), HOUR).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::Unsupported);
    assert!(problem.cause.contains("protocol"), "{problem}");
    assert_eq!(status(&agent, 1).await.state, SandboxState::Paused);
    agent.stop().await;

    house.world.change(|host| host.protocol -= 1);
    let agent = house.agent_with_guests().await;
    assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_template_that_cannot_be_made_again_stays_as_it_was() {
    let house = House::new(world());
    let agent = house.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    agent.stop().await;

    house.world.change(upgrade);
    house.world.faults.save.store(1, SeqCst);
    let before = starts(&house);
    let agent = house.agent_with_guests().await;
    wait_for("a failure", || house.world.faults.save.load(SeqCst) == 0).await;
    wait_for("its end", || house.world.machines().is_empty()).await;
    create(&agent, 2).await.unwrap();
    // It is not tried again at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(starts(&house), before + 2);
    wait_for_states(&house, &[state(0)]).await;
    // A build that is removed while its state is made again has none afterwards.
    agent.stop().await;
    let agent = house.agent_with_guests().await;
    wait_for("the other's machine", || starts(&house) == before + 3).await;
    agent
        .remove_state(&request(1).template.build)
        .await
        .unwrap();
    wait_for("its end", || house.world.machines().is_empty()).await;
    wait_for_states(&house, &[]).await;
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_stop_while_a_template_is_made_again_leaves_nothing() {
    // Booting, which is part of preparing, may take longer than stopping waits for other tasks.
    futures::join!(stop_meanwhile(50, 10), stop_meanwhile(2200, 2));
}

async fn stop_meanwhile(prepare_milliseconds: u64, times: u64) {
    let mut world = World::with_snapshots();
    let inside = Arc::get_mut(&mut world).unwrap();
    inside.prepare_time = Duration::from_millis(prepare_milliseconds);
    inside.start_time = Duration::from_millis(50);
    inside.save_time = Duration::from_millis(50);
    let house = House::new(world);
    let agent = house.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    agent.stop().await;
    for step in 0..times {
        house.world.change(upgrade);
        let agent = house.agent_with_guests().await;
        tokio::time::sleep(Duration::from_millis(20 * step)).await;
        agent.stop().await;
        house.assert_empty();
    }
}

/// A machine that never comes up, which emulators know: stopping does not wait for it, and it goes.
#[tokio::test]
async fn a_stop_gives_up_what_never_gets_ready() {
    let mut world = World::with_snapshots();
    Arc::get_mut(&mut world).unwrap().prepare_time = Duration::from_secs(3600);
    let house = House::new(world);
    let agent = house.agent_with_guests().await;
    let creating = tokio::spawn({
        let agent = agent.clone();
        async move { create(&agent, 1).await }
    });
    wait_for("the template", || !house.world.preparing().is_empty()).await;
    tokio::time::timeout(Duration::from_secs(60), agent.stop())
        .await
        .expect("it stops");
    assert!(creating.await.unwrap().is_err());
    house.assert_empty();
}

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

/// The agent is killed at random moments of making a template again.
#[test]
fn killed_at_any_moment_a_template_is_there_once() {
    let mut world = World::with_snapshots();
    let inside = Arc::get_mut(&mut world).unwrap();
    inside.save_time = Duration::from_millis(3);
    inside.start_time = Duration::from_millis(3);
    let house = House::new(world);
    for round in 0..40 {
        let starting = start_in(&house);
        let lifetime = Duration::from_micros(rand::rng().random_range(0..30_000));
        house.until_killed(async move {
            let agent = starting.await;
            if round == 0 {
                create(&agent, 1).await.unwrap();
            }
            tokio::time::sleep(lifetime).await;
        });
        house.world.change(upgrade);
    }
    let starting = start_in(&house);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let agent = starting.await;
        agent.kill(&id(1), EndReason::Killed).await.unwrap();
        create(&agent, 2).await.unwrap();
        agent.kill(&id(2), EndReason::Killed).await.unwrap();
        wait_for("one state", || {
            let states = names(&house, "states");
            states.len() == 2 && states[1] == format!("{}.json", states[0])
        })
        .await;
        agent
            .remove_state(&request(1).template.build)
            .await
            .unwrap();
        wait_for_states(&house, &[]).await;
        agent.stop().await;
    });
    house.assert_empty();
}

fn move_all(old: &House, new: &House) {
    for file in std::fs::read_dir(old.path()).unwrap() {
        let path = file.unwrap().path();
        let moved = new.path().join(path.file_name().unwrap());
        std::fs::rename(path, moved).unwrap();
    }
}

#[tokio::test]
async fn another_driver_starts_templates_without_what_it_cannot_resume() {
    let old = House::new(World::with_snapshots());
    let agent = old.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    agent.stop().await;
    let new = House::new(World::new());
    move_all(&old, &new);
    assert!(is_whole(&new, &state(0)));
    let agent = new.agent_with_guests().await;
    create(&agent, 2).await.unwrap();
    wait_for_states(&new, &[]).await;
    create(&agent, 3).await.unwrap();
    agent.stop().await;
    new.assert_empty();
}

#[tokio::test]
async fn a_data_directory_that_was_moved_holds_all_that_was_saved() {
    let old = House::new(World::with_snapshots());
    let agent = old.agent_with_guests().await;
    create(&agent, 1).await.unwrap();
    let slot = old.world.machines()[0];
    old.world.write(slot, "memory of 1", "disk of 1");
    agent.pause(&id(1), true).await.unwrap();
    agent.stop().await;

    let new = House::new(old.world.clone());
    move_all(&old, &new);
    let agent = new.agent_with_guests().await;
    // Its memory lies on the template's: that is known to be so where they are now.
    agent
        .remove_state(&request(1).template.build)
        .await
        .unwrap();
    assert!(is_whole(&new, &state(0)));
    assert!(agent.resume(&id(1), HOUR).await.unwrap().was_paused);
    let slot = new.world.machines()[0];
    let held = new.world.read(slot).unwrap();
    assert_eq!(held, ("memory of 1".to_owned(), "disk of 1".to_owned()));
    // Nor is anything written where it was.
    agent.pause(&id(1), true).await.unwrap();
    assert!(old.path().read_dir().unwrap().next().is_none());
    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    for folder in ["states", "paused"] {
        wait_for(folder, || names(&new, folder).is_empty()).await;
    }
    agent.stop().await;
    new.assert_empty();
}

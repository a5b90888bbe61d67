//! What every driver must do, asked through the `Driver` trait and the guest's API alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use driver::{DriverError, DriverKind, Exit, Origin, Plan, SaveOptions, SavedState};
use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};
use support::{World, guest, is_healthy, report, wait_for};

/// Each test for each driver that is to pass it. Where the machine that this was built on has no
/// driver for it, it is ignored, and counted as that.
macro_rules! conformance {
    ($($driver:ident as $kind:ident $(unless $absent:literal)?: $($test:ident),+;)+) => {$(
        conformance!(@ $driver $kind ($($absent)?) $($test),+);
    )+};
    (@ $driver:ident $kind:ident $absent:tt $($test:ident),+) => {
        mod $driver {
            use super::*;
            $(conformance!(@@ $kind $absent $test);)+
        }
    };
    (@@ $kind:ident ($($absent:literal)?) $test:ident) => {
        #[tokio::test]
        $(#[cfg_attr(not(firecracker_given), ignore = $absent)])?
        async fn $test() {
            super::$test(World::of(DriverKind::$kind)).await;
        }
    };
}

conformance! {
    container as Container:
        a_sandbox_starts_serves_and_leaves_nothing,
        a_prepared_sandbox_can_be_discarded_or_dropped,
        a_preparation_can_be_given_up,
        a_slot_can_be_used_again_at_once,
        each_sandbox_runs_as_a_user_of_its_own,
        a_running_sandbox_outlives_its_driver_and_is_adopted,
        what_nobody_keeps_is_swept,
        an_end_is_seen_with_its_reason,
        the_memory_limit_holds,
        the_disk_limit_holds,
        a_data_directory_may_be_moved;
    qemu as Qemu:
        a_sandbox_starts_serves_and_leaves_nothing,
        a_prepared_sandbox_can_be_discarded_or_dropped,
        a_preparation_can_be_given_up,
        a_slot_can_be_used_again_at_once,
        each_sandbox_runs_as_a_user_of_its_own,
        a_running_sandbox_outlives_its_driver_and_is_adopted,
        what_nobody_keeps_is_swept,
        an_end_is_seen_with_its_reason,
        the_memory_limit_holds,
        the_disk_limit_holds,
        a_data_directory_may_be_moved,
        a_saved_sandbox_goes_on_where_it_stood,
        what_differs_is_saved_again_and_again,
        one_state_becomes_many,
        what_was_warmed_up_becomes_a_sandbox,
        a_state_without_memory_starts_anew,
        what_cannot_be_resumed_is_refused,
        a_frozen_sandbox_stands_still;
    firecracker as Firecracker unless "ATOLL_TEST_FIRECRACKER names none; see tests/firecracker.rs":
        a_sandbox_starts_serves_and_leaves_nothing,
        a_prepared_sandbox_can_be_discarded_or_dropped,
        a_preparation_can_be_given_up,
        a_slot_can_be_used_again_at_once,
        each_sandbox_runs_as_a_user_of_its_own,
        a_running_sandbox_outlives_its_driver_and_is_adopted,
        what_nobody_keeps_is_swept,
        an_end_is_seen_with_its_reason,
        the_memory_limit_holds,
        the_disk_limit_holds,
        a_data_directory_may_be_moved,
        a_saved_sandbox_goes_on_where_it_stood,
        what_differs_is_saved_again_and_again,
        one_state_becomes_many,
        what_was_warmed_up_becomes_a_sandbox,
        a_state_without_memory_starts_anew,
        what_cannot_be_resumed_is_refused,
        a_frozen_sandbox_stands_still;
}

async fn a_sandbox_starts_serves_and_leaves_nothing(world: World) {
    let driver = world.driver();
    let prepared = world.prepare(&*driver).await;
    assert!(prepared.is_alive());
    let machine = prepared.start(world.spec("")).await.unwrap();
    assert!(is_healthy(&*machine));
    let usage = machine.usage().unwrap();
    assert!(
        usage.memory > 0 && usage.processes >= 1 && usage.disk < 8 << 20,
        "{usage:?}"
    );
    let waiting = machine.wait();
    assert!(
        tokio::time::timeout(Duration::from_millis(50), waiting)
            .await
            .is_err()
    );
    machine.destroy().await.unwrap();
    machine.destroy().await.unwrap();
    assert!(matches!(machine.wait().await, Exit::Ended(_)));
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn a_prepared_sandbox_can_be_discarded_or_dropped(world: World) {
    let driver = world.driver();
    let discarded = world.prepare(&*driver).await;
    let dropped = world.prepare(&*driver).await;
    discarded.discard().await;
    drop(dropped);
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// At any moment of it, since whoever waited for it may have to end. What was begun is cleared.
async fn a_preparation_can_be_given_up(world: World) {
    let driver = world.driver();
    // The first one makes what the others find.
    world.prepare(&*driver).await.discard().await;
    let mut given_up = Vec::new();
    for milliseconds in [0, 3, 10, 30, 100, 300, 1000] {
        let (slot, plan) = (world.network(), world.plan());
        let number = slot.number;
        let preparing = driver.prepare(slot, &plan);
        match tokio::time::timeout(Duration::from_millis(milliseconds), preparing).await {
            Ok(prepared) => prepared.unwrap().discard().await,
            Err(_) => given_up.push(number),
        }
    }
    assert!(!given_up.is_empty());
    // A step that was under way on another thread may end after the first look.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for slot in &given_up {
            driver.clear(*slot).await.unwrap();
        }
        driver.shutdown().await;
        match world.leftovers() {
            none if none.is_empty() => return,
            left => assert!(Instant::now() < deadline, "{left:?}"),
        }
    }
}

async fn a_slot_can_be_used_again_at_once(world: World) {
    let driver = world.driver();
    let slot = world.network();
    for round in 0..5 {
        let prepared = driver.prepare(slot.clone(), &world.plan()).await.unwrap();
        let machine = prepared
            .start(world.spec("echo x > /only; echo done"))
            .await
            .unwrap();
        wait_for("the file", || guest::read(&*machine, "/only").is_some()).await;
        machine.destroy().await.unwrap();
        assert!(
            !world.root.join("only").exists(),
            "round {round} wrote to the shared root"
        );
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn each_sandbox_runs_as_a_user_of_its_own(world: World) {
    let driver = world.driver();
    let (first, second) = (
        world.start(&*driver, "").await,
        world.start(&*driver, "").await,
    );
    let mut users = Vec::new();
    for sandbox in [&first, &second] {
        let record = sandbox.record();
        let status = fs::read_to_string(format!("/proc/{}/status", record.pid)).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words = line.unwrap().split_whitespace();
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let uids = field("Uid:");
        let user: u32 = uids[0].parse().unwrap();
        assert!(uids.iter().all(|uid| *uid == uids[0]), "{uids:?}");
        assert!(user > 65_535, "nobody of the host's: {user}");
        if world.kind != DriverKind::Container {
            assert_eq!(user, world.user_of(record.slot));
            assert_eq!(field("Gid:")[0], uids[0]);
            assert_eq!(field("Groups:"), [""; 0]);
            for kind in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(kind), ["0000000000000000"], "{kind}");
            }
        }
        users.push(user);
    }
    assert_ne!(users[0], users[1]);
    for sandbox in [first, second] {
        sandbox.destroy().await.unwrap();
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn a_running_sandbox_outlives_its_driver_and_is_adopted(world: World) {
    let record = {
        let driver = world.driver();
        let machine = world.start(&*driver, "echo kept > /kept; echo done").await;
        let _unclaimed = world.prepare(&*driver).await;
        wait_for("the file", || guest::read(&*machine, "/kept").is_some()).await;
        machine.record()
        // Everything is dropped here, as when the program dies.
    };
    let driver = world.driver();
    let machine = driver.adopt(&record).await.unwrap().expect("it still runs");
    assert_eq!(machine.record(), record);
    assert!(is_healthy(&*machine));
    assert!(machine.usage().unwrap().disk > 0);
    driver.sweep(&[record.slot]).await.unwrap();
    assert!(is_healthy(&*machine));
    machine.destroy().await.unwrap();
    assert!(driver.adopt(&record).await.unwrap().is_none());
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

async fn what_nobody_keeps_is_swept(world: World) {
    let record = {
        let driver = world.driver();
        let machine = world.start(&*driver, "sleep 1000").await;
        machine.record()
    };
    let driver = world.driver();
    let swept = driver.sweep(&[]).await.unwrap();
    assert!(!swept.is_empty());
    assert!(driver.adopt(&record).await.unwrap().is_none());
    driver.shutdown().await;
    world.expect_nothing_left().await;
    assert_eq!(driver.sweep(&[]).await.unwrap(), [""; 0]);
}

async fn an_end_is_seen_with_its_reason(world: World) {
    let driver = world.driver();
    let machine = world.start(&*driver, "").await;
    let pid = i32::try_from(machine.record().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    match machine.wait().await {
        Exit::Ended(reason) => assert!(reason.contains("signal 9"), "{reason}"),
        other => panic!("{other:?}"),
    }
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn the_memory_limit_holds(world: World) {
    let driver = world.driver();
    // Each on its own stays below the limit of 128 MiB, and all are in the sandbox.
    let command = "tail /dev/zero; echo $? > /after";
    let machine = world.start(&*driver, command).await;
    wait_for("an end by memory", || {
        guest::read(&*machine, "/after").is_some() || !is_healthy(&*machine)
    })
    .await;
    let host = fs::read_to_string("/proc/meminfo").unwrap();
    assert!(host.contains("MemAvailable"));
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn the_disk_limit_holds(world: World) {
    let driver = world.driver();
    let command = "{ dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo done; } > /dev/shm/report";
    let machine = world.start(&*driver, command).await;
    let text = report(&*machine, "/dev/shm/report").await;
    assert!(text.contains("No space left on device"), "{text}");
    let used = machine.usage().unwrap().disk;
    assert!((40 << 20..=64 << 20).contains(&used), "{used}");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Holds random bytes in memory and writes, again and again, what they add up to, the boot's name
/// and how often it did so.
const HOLDER: &str = r#"x=$(dd if=/dev/urandom bs=1k count=64 2>/dev/null | base64)
n=0
while :; do
    n=$((n+1))
    { echo "$x" | cksum; cat /proc/sys/kernel/random/boot_id; echo $n; } > /state.new
    mv /state.new /state
    sleep 0.1
done"#;

/// What [`HOLDER`] wrote: what must stay the same, and the count.
async fn held(machine: &dyn driver::Machine) -> (String, u64) {
    let mut found = None;
    wait_for("the holder", || {
        let text = guest::read(machine, "/state").unwrap_or_default();
        let (same, count) = text.trim_end().rsplit_once('\n').unwrap_or_default();
        found = count.parse().ok().map(|count| (same.to_owned(), count));
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Waits until [`HOLDER`] has written again.
async fn goes_on(machine: &dyn driver::Machine) -> String {
    let (_, before) = held(machine).await;
    let mut same = String::new();
    wait_for("the holder to go on", || {
        let text = guest::read(machine, "/state").unwrap_or_default();
        let (first, count) = text.trim_end().rsplit_once('\n').unwrap_or_default();
        same = first.to_owned();
        count.parse::<u64>().is_ok_and(|count| count > before)
    })
    .await;
    same
}

const WITH_MEMORY: SaveOptions = SaveOptions {
    memory: true,
    goes_on: true,
    lasts: true,
};

async fn a_saved_sandbox_goes_on_where_it_stood(world: World) {
    let driver = world.driver();
    let machine = world.start(&*driver, HOLDER).await;
    let (same, _) = held(&*machine).await;
    let saved = world.directory.path().join("saved");
    let stays = SaveOptions {
        goes_on: false,
        lasts: true,
        ..WITH_MEMORY
    };
    let state = machine.save(&saved, stays).await.unwrap();
    machine.destroy().await.unwrap();
    assert_eq!(SavedState::load(&saved, &world.data).unwrap(), state);
    driver.check(&state).unwrap();

    let state = Arc::new(state);
    let machine = world.resume(&*driver, &state, false).await;
    println!("{:?}", machine.phases());
    assert_eq!(goes_on(&*machine).await, same);
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Also one whose memory lies on that of another.
async fn a_data_directory_may_be_moved(mut world: World) {
    world.keep_root_with_data();
    let driver = world.driver();
    let mut machine = world.start(&*driver, "echo one > /kept").await;
    wait_for("the file", || guest::read(&*machine, "/kept").is_some()).await;
    let options = SaveOptions {
        memory: driver.capabilities().memory_snapshot,
        goes_on: false,
        lasts: true,
    };
    for name in ["states/build", "paused/sandbox.1"] {
        let saved = world.data.join(name);
        fs::create_dir_all(saved.parent().unwrap()).unwrap();
        let state = machine.save(&saved, options).await.unwrap();
        machine.destroy().await.unwrap();
        machine = world.resume(&*driver, &Arc::new(state), false).await;
    }
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    drop(driver);

    world.move_data("moved");
    let saved = world.data.join("paused/sandbox.1");
    let text = fs::read_to_string(saved.join("state.json")).unwrap();
    let here = world.directory.path().to_str().unwrap();
    assert!(!text.contains(here), "{text}");
    let driver = world.driver();
    let state = SavedState::load(&saved, &world.data).unwrap();
    if let Some(memory) = &state.memory {
        assert_eq!(memory.base, Some(world.data.join("states/build")));
    }
    let machine = world.resume(&*driver, &Arc::new(state), false).await;
    assert_eq!(guest::read(&*machine, "/kept").unwrap(), "one\n");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn what_differs_is_saved_again_and_again(world: World) {
    let driver = world.driver();
    let mut machine = world.start(&*driver, HOLDER).await;
    let (same, _) = held(&*machine).await;
    let mut bases = Vec::new();
    for round in 0..4 {
        let saved = world.directory.path().join(format!("saved-{round}"));
        let state = machine.save(&saved, WITH_MEMORY).await.unwrap();
        assert!(is_healthy(&*machine), "it goes on after round {round}");
        machine.destroy().await.unwrap();
        bases.push(state.memory.as_ref().unwrap().base.clone());
        driver::qemu::verify(&state).unwrap();
        machine = world.resume(&*driver, &Arc::new(state), false).await;
        assert_eq!(goes_on(&*machine).await, same, "round {round}");
    }
    // The first is whole, and no chain is longer than one.
    let first = world.directory.path().join("saved-0");
    assert_eq!(bases[0], None);
    for base in bases.iter().skip(1).flatten() {
        assert!(*base == first || base.join("memory").exists());
        assert!(
            SavedState::load(base, &world.data)
                .unwrap()
                .memory
                .unwrap()
                .base
                .is_none()
        );
    }
    assert!(bases[1].is_some(), "a little that differs is saved as that");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn one_state_becomes_many(world: World) {
    let driver = world.driver();
    let parent = world.start(&*driver, HOLDER).await;
    let (same, _) = held(&*parent).await;
    let saved = world.directory.path().join("saved");
    let state = Arc::new(parent.save(&saved, WITH_MEMORY).await.unwrap());
    let mut children = Vec::new();
    for _ in 0..3 {
        children.push(world.resume(&*driver, &state, true).await);
    }
    let mut random = std::collections::BTreeSet::new();
    for child in &children {
        assert_eq!(goes_on(&**child).await, same);
        let usage = child.usage().unwrap();
        println!("a child uses {usage:?}");
        random.insert(guest::read(&**child, "/proc/sys/kernel/random/uuid"));
        child.destroy().await.unwrap();
    }
    assert_eq!(goes_on(&*parent).await, same);
    parent.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn what_was_warmed_up_becomes_a_sandbox(world: World) {
    let driver = world.driver();
    let first = world.start(&*driver, "").await;
    let saved = world.directory.path().join("saved");
    let state = Arc::new(first.save(&saved, WITH_MEMORY).await.unwrap());
    first.destroy().await.unwrap();
    let plan = Plan {
        origin: Origin::Saved(Arc::clone(&state)),
        resources: state.resources,
    };
    let mut prepared = driver.prepare(world.network(), &plan).await.unwrap();
    prepared.warm_up("root").await.unwrap();
    assert!(prepared.is_alive());
    let mut spec = world.spec("cat /etc/hostname > /only");
    spec.origin = plan.origin;
    spec.resources = plan.resources;
    spec.host_name = "somebody".into();
    let machine = prepared.start(spec).await.unwrap();
    assert!(is_healthy(&*machine));
    wait_for("its name", || {
        guest::read(&*machine, "/only").is_some_and(|name| name == "somebody\n")
    })
    .await;
    machine.destroy().await.unwrap();

    // One that is not needed after all.
    let mut prepared = driver
        .prepare(
            world.network(),
            &Plan {
                origin: Origin::Saved(Arc::clone(&state)),
                resources: state.resources,
            },
        )
        .await
        .unwrap();
    prepared.warm_up("root").await.unwrap();
    prepared.discard().await;
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn a_state_without_memory_starts_anew(world: World) {
    let driver = world.driver();
    let machine = world.start(&*driver, HOLDER).await;
    let (same, _) = held(&*machine).await;
    let saved = world.directory.path().join("saved");
    let options = SaveOptions {
        memory: false,
        goes_on: true,
        lasts: true,
    };
    let state = machine.save(&saved, options).await.unwrap();
    assert!(state.memory.is_none());
    assert_eq!(goes_on(&*machine).await, same);
    machine.destroy().await.unwrap();
    let machine = world.resume(&*driver, &Arc::new(state), true).await;
    // The file is there, and the process is not.
    let (kept, count) = held(&*machine).await;
    assert_eq!(kept, same);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(held(&*machine).await, (kept, count));
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn what_cannot_be_resumed_is_refused(world: World) {
    let driver = world.driver();
    let machine = world.start(&*driver, "").await;
    let saved = world.directory.path().join("saved");
    let mut state = machine.save(&saved, WITH_MEMORY).await.unwrap();
    machine.destroy().await.unwrap();
    assert_eq!(driver.outdated(&state), [""; 0]);
    // What is in the memory may be older than what would be there now.
    let memory = state.memory.as_mut().unwrap();
    memory.host.kernel = "5.10, older".into();
    memory.host.guest = "older".into();
    driver.check(&state).unwrap();
    let outdated = driver.outdated(&state);
    assert_eq!(outdated.len(), 2, "{outdated:?}");
    assert!(outdated[0].contains("`5.10, older`"), "{outdated:?}");
    let machine = world
        .resume(&*driver, &Arc::new(state.clone()), false)
        .await;
    let again = world.directory.path().join("again");
    let again = machine.save(&again, WITH_MEMORY).await.unwrap();
    machine.destroy().await.unwrap();
    assert_eq!(driver.outdated(&again), outdated);
    // What it needs of the host may not differ.
    let mut spoken = state.clone();
    spoken.memory.as_mut().unwrap().host.protocol += 1;
    let refused = driver.check(&spoken).unwrap_err();
    assert!(refused.to_string().contains("protocol"), "{refused}");
    let memory = state.memory.as_mut().unwrap();
    memory.host.program = "QEMU 1.0".into();
    let refused = driver.check(&state).unwrap_err();
    match &refused {
        DriverError::Unsupported { cause, .. } => {
            assert!(cause.contains("the program was `QEMU 1.0`"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    let plan = driver::Plan {
        resources: state.resources,
        origin: driver::Origin::Saved(Arc::new(state)),
    };
    assert!(driver.prepare(world.network(), &plan).await.is_err());
    // A file that was changed is found where that is asked for.
    let state = SavedState::load(&saved, &world.data).unwrap();
    driver::qemu::verify(&state).unwrap();
    fs::write(state.disk(), "x").unwrap();
    assert!(driver::qemu::verify(&state).is_err());
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

async fn a_frozen_sandbox_stands_still(world: World) {
    let driver = world.driver();
    let machine = world.start(&*driver, HOLDER).await;
    let (same, _) = held(&*machine).await;
    machine.freeze().await.unwrap();
    machine.freeze().await.unwrap();
    let before = machine.usage().unwrap().cpu_time;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let used = machine.usage().unwrap().cpu_time - before;
    assert!(used < Duration::from_millis(50), "{used:?}");
    machine.thaw().await.unwrap();
    assert_eq!(goes_on(&*machine).await, same);
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

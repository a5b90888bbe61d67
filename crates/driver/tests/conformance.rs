//! What every driver must do, asked through the `Driver` trait alone.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use driver::{Driver, DriverError, Exit};
use std::{fs, time::Duration};
use support::{World, inside, is_healthy, report, wait_for};

/// Not a test: what the driver under test starts as its keeper.
#[test]
fn keeper_process() {
    driver::container::keeper::run_if_asked();
}

#[tokio::test]
async fn a_sandbox_starts_serves_and_leaves_nothing() {
    let world = World::new();
    let driver = world.driver();
    let prepared = world.prepare(&driver).await;
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

#[tokio::test]
async fn a_prepared_sandbox_can_be_discarded_or_dropped() {
    let world = World::new();
    let driver = world.driver();
    let discarded = world.prepare(&driver).await;
    let dropped = world.prepare(&driver).await;
    discarded.discard().await;
    drop(dropped);
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_slot_can_be_used_again_at_once() {
    let world = World::new();
    let driver = world.driver();
    let slot = world.network();
    for round in 0..5 {
        let prepared = driver.prepare(slot.clone(), &world.plan()).await.unwrap();
        let machine = prepared
            .start(world.spec("echo x > /only; echo done"))
            .await
            .unwrap();
        wait_for("the file", || inside(&*machine, "/only").exists()).await;
        machine.destroy().await.unwrap();
        assert!(
            !world.root.join("only").exists(),
            "round {round} wrote to the shared root"
        );
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_running_sandbox_outlives_its_driver_and_is_adopted() {
    let world = World::new();
    let record = {
        let driver = world.driver();
        let machine = world.start(&driver, "echo kept > /kept; echo done").await;
        let _unclaimed = world.prepare(&driver).await;
        wait_for("the file", || inside(&*machine, "/kept").exists()).await;
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

#[tokio::test]
async fn what_nobody_keeps_is_swept() {
    let world = World::new();
    let record = {
        let driver = world.driver();
        let machine = world.start(&driver, "sleep 1000").await;
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

#[tokio::test]
async fn an_end_is_seen_with_its_reason() {
    let world = World::new();
    let driver = world.driver();
    let machine = world.start(&driver, "").await;
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

#[tokio::test]
async fn the_memory_limit_holds() {
    let world = World::new();
    let driver = world.driver();
    // Each on its own stays below the limit of 128 MiB, and all are in the sandbox.
    let command = "tail /dev/zero; echo $? > /after";
    let machine = world.start(&driver, command).await;
    wait_for("an end by memory", || {
        inside(&*machine, "/after").exists() || !is_healthy(&*machine)
    })
    .await;
    let host = fs::read_to_string("/proc/meminfo").unwrap();
    assert!(host.contains("MemAvailable"));
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_sandbox_that_runs_out_of_memory_says_so() {
    let world = World::new();
    let driver = world.driver();
    let mut spec = world.spec("");
    // Too little even for the guest once its cache is written to.
    spec.resources.memory = api::Bytes::mebibytes(24);
    // The first process itself is made the one to go.
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    let pid = machine.record().pid;
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").unwrap();
    let group = driver::cgroup::Group::of(
        &driver::cgroup::Hierarchies::find().unwrap(),
        &world.instance,
        machine.record().slot,
    );
    // A child of the test, moved into the sandbox's groups, uses up what there is: two, so that neither is
    // larger than the one that is marked.
    let mut child = std::process::Command::new("sh")
        .args(["-c", "read go; tail /dev/zero & exec tail /dev/zero"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for directory in group
        .legacy()
        .iter()
        .map(AsRef::as_ref)
        .chain(group.unified())
    {
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    drop(child.stdin.take());
    let exit = tokio::time::timeout(Duration::from_secs(20), machine.wait())
        .await
        .unwrap();
    assert_eq!(exit, Exit::OutOfMemory);
    let _ = child.kill();
    child.wait().unwrap();
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_disk_limit_holds() {
    let world = World::new();
    let driver = world.driver();
    let command = "{ dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo done; } > /dev/shm/report";
    let machine = world.start(&driver, command).await;
    let text = report(&*machine, "/dev/shm/report").await;
    assert!(text.contains("No space left on device"), "{text}");
    let used = machine.usage().unwrap().disk;
    assert!((40 << 20..=64 << 20).contains(&used), "{used}");
    machine.destroy().await.unwrap();

    // Another size than the prepared one.
    let mut spec = world.spec(command);
    spec.resources.disk = api::Bytes::mebibytes(128);
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    report(&*machine, "/dev/shm/report").await;
    let used = machine.usage().unwrap().disk;
    assert!((100 << 20..=128 << 20).contains(&used), "{used}");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_limit_on_processes_holds() {
    let world = World::new();
    let mut options = world.options();
    options.processes = 40;
    let driver = driver::container::Container::new(options).unwrap();
    let command = "{ for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 \
                   26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50; do \
                   sleep 1000 & done; } 2> /refused; touch /over";
    let machine = world.start(&driver, command).await;
    wait_for("the limit", || {
        fs::read_to_string(inside(&*machine, "/refused")).is_ok_and(|text| {
            let text = text.to_lowercase();
            text.contains("cannot fork") || text.contains("resource temporarily unavailable")
        })
    })
    .await;
    assert!(machine.usage().unwrap().processes <= 40);
    assert!(is_healthy(&*machine));
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing() {
    let world = World::new();
    let driver = world.driver();
    let mut spec = world.spec("");
    spec.origin = support::origin(vec![world.root.join("absent")]);
    match world.prepare(&driver).await.start(spec).await {
        Err(DriverError::System { doing, .. }) => assert!(doing.contains("absent"), "{doing}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it started without a root"),
    }
    // A hostile image: its /proc points elsewhere.
    let hostile = world.directory.path().join("hostile");
    fs::create_dir_all(&hostile).unwrap();
    std::os::unix::fs::symlink("/tmp", hostile.join("proc")).unwrap();
    let mut spec = world.spec("");
    spec.origin = support::origin(vec![hostile]);
    match world.prepare(&driver).await.start(spec).await {
        Err(DriverError::Guest(message)) => assert!(message.contains("/proc"), "{message}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it followed a link"),
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once() {
    let world = World::new();
    let driver = world.driver();
    let mut prepared = Vec::new();
    for _ in 0..100 {
        prepared.push(world.prepare(&driver).await);
    }
    let begin = std::time::Instant::now();
    let starts = prepared.into_iter().map(|prepared| {
        let spec = world.spec("");
        tokio::spawn(async move { prepared.start(spec).await.unwrap() })
    });
    let starts: Vec<_> = starts.collect();
    let mut machines = Vec::new();
    for start in starts {
        machines.push(start.await.unwrap());
    }
    println!("100 starts in {:?}", begin.elapsed());
    assert!(machines.iter().all(|machine| is_healthy(&**machine)));
    let begin = std::time::Instant::now();
    for machine in &machines {
        machine.destroy().await.unwrap();
    }
    println!("100 ends in {:?}", begin.elapsed());
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

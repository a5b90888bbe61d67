//! Machines whose memory is brought page by page: the `firecracker` driver's server of pages, a real
//! userfaultfd, and a stand-in for Firecracker that has its memory there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::{firecracker_api, firecracker_host as host, support};

use api::Bytes;
use driver::{
    Driver, Exit, Machine, Origin, Plan, SaveOptions,
    cgroup::{Group, Hierarchies},
    firecracker::{Firecracker, MemoryBackend},
};
use firecracker_api::{Behaviour, Lie};
use host::{Host, failed, tell_guest, text};
use serde_json::json;
use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use support::wait_for;

const WITH_MEMORY: SaveOptions = SaveOptions {
    memory: true,
    goes_on: true,
    lasts: true,
};

fn with_pages(host: &Host) -> Firecracker {
    let mut options = host.options();
    options.memory = MemoryBackend::Pages;
    Firecracker::new(options).unwrap()
}

/// The processes of a machine besides Firecracker.
fn servers(host: &Host, machine: &dyn Machine) -> Vec<u32> {
    let record = machine.record();
    let group = Group::of(
        &Hierarchies::find().unwrap(),
        &host.world.instance,
        record.slot,
    );
    let directory = match group.legacy().into_iter().next() {
        Some(directory) => directory,
        None => group.unified().unwrap().to_owned(),
    };
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
    let members = members.lines().map(|line| line.parse().unwrap());
    members.filter(|pid| *pid != record.pid).collect()
}

/// The thread that does the work of a process: a test's has another one besides.
fn working_thread(pid: u32) -> u32 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| {
            thread
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .max()
        .unwrap()
}

#[tokio::test]
async fn pages_are_brought_and_what_differs_is_saved() {
    let host = Host::new();
    let driver = with_pages(&host);
    let machine = host.start(&driver).await;
    tell_guest(&*machine, "control", "/page/520/5");
    let whole = machine
        .save(&host.path("whole"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();

    // Loaded twice over; the second lies on what differs, without a file that holds both.
    let mut state = whole;
    for round in 0..2u64 {
        let number = u32::try_from(round + 1).unwrap();
        let machine = host.load(&driver, host.slot(), &state).await.unwrap();
        assert_eq!(
            host.body(number, "PUT /snapshot/load")["mem_backend"],
            json!({ "backend_type": "Uffd", "backend_path": "/pages.socket" })
        );
        assert_eq!(servers(&host, &*machine).len(), 1);
        let root = host.root(number);
        assert!(!root.join("memory").exists(), "it need not be there");
        for (page, byte) in [(20 + round, 40 + round), (580 + round, 1)] {
            tell_guest(&*machine, "control", &format!("/page/{page}/{byte}"));
        }
        // What was given back is zero, whatever was saved.
        tell_guest(&*machine, "control", &format!("/remove/{}", 40 + round));
        let name = format!("round-{round}");
        state = machine.save(&host.path(&name), WITH_MEMORY).await.unwrap();
        machine.destroy().await.unwrap();
        assert!(!host.path(&name).join("memory.merged").exists());
    }
    // By mapping a file it is the same.
    let driver_of_files = host.driver();
    let machine = host
        .load(&driver_of_files, host.slot(), &state)
        .await
        .unwrap();
    let merged = fs::read(host.path("round-1/memory.merged")).unwrap();
    let page = |number: usize| merged[number * 4096];
    assert_eq!(
        [1, 2, 7, 20, 21, 39, 40, 41, 42, 520].map(page),
        [1, 2, 7, 40, 41, 9, 0, 0, 9, 5]
    );
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn pages_are_right_while_others_are_given_back() {
    let host = Host::new();
    let driver = with_pages(&host);
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    for _ in 0..3 {
        tell_guest(&*machine, "control", "/stress");
    }
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_server_outlives_the_driver_and_ends_with_its_machine() {
    let host = Host::new();
    let (record, server) = {
        let driver = with_pages(&host);
        let machine = host.start(&driver).await;
        let state = machine
            .save(&host.path("saved"), WITH_MEMORY)
            .await
            .unwrap();
        machine.destroy().await.unwrap();
        let machine = host.load(&driver, host.slot(), &state).await.unwrap();
        // Locked up as the machine's own user.
        let server = servers(&host, &*machine)[0];
        let server = working_thread(server);
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        let user = host.world.user_of(machine.record().slot);
        assert!(status.contains(&format!("Uid:\t{user}\t{user}\t{user}\t{user}")));
        assert!(status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"));
        let of = |pid: u32, what: &str| fs::read_link(format!("/proc/{pid}/{what}")).unwrap();
        assert_eq!(of(server, "ns/net"), of(machine.record().pid, "ns/net"));
        assert_ne!(of(server, "ns/pid"), of(std::process::id(), "ns/pid"));
        assert!(of(server, "root").starts_with(host.path("data/jails")));
        (machine.record(), server)
        // Everything is dropped here, as when the program dies.
    };
    let driver = with_pages(&host);
    let machine = driver.adopt(&record).await.unwrap().expect("it still runs");
    tell_guest(&*machine, "control", "/page/900/1");
    assert!(support::is_healthy(&*machine));
    machine.destroy().await.unwrap();
    let gone = || !PathBuf::from(format!("/proc/{server}/root")).exists();
    wait_for("the server to end", gone).await;
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_machine_that_loses_its_pages_ends() {
    let host = Host::new();
    let driver = with_pages(&host);
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    let server = i32::try_from(servers(&host, &*machine)[0]).unwrap();
    let server = rustix::process::Pid::from_raw(server).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(machine.wait().await, Exit::Ended(_)));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn huge_pages_are_always_brought_and_are_not_exchanged() {
    let host = Host::new();
    let mut options = host.options();
    options.huge_pages = true;
    let driver = Firecracker::new(options).unwrap();
    let machine = host.start(&driver).await;
    let slot = machine.record().slot;
    assert_eq!(
        host.body(slot, "PUT /machine-config")["huge_pages"],
        json!("2M")
    );
    let balloon = host.body(slot, "PUT /balloon");
    assert!(balloon.get("free_page_reporting").is_none(), "{balloon}");
    tell_guest(&*machine, "control", "/page/520/5");
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let refused = text(&host.driver().check(&state).unwrap_err());
    assert!(refused.contains("huge pages"), "{refused}");
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    let again = machine
        .save(&host.path("again"), WITH_MEMORY)
        .await
        .unwrap();
    assert!(support::is_healthy(&*machine));
    machine.destroy().await.unwrap();
    let before = fs::read(host.path("saved/memory")).unwrap();
    assert_eq!(
        [1, 2, 40, 520].map(|page: usize| before[page * 4096]),
        [1, 2, 9, 5]
    );
    driver::qemu::verify(&again).unwrap();

    let mut odd = host.plan();
    odd.resources.memory = Bytes::mebibytes(5);
    let refused = text(&failed(driver.prepare(host.slot(), &odd).await));
    assert!(refused.contains("even number"), "{refused}");
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_firecracker_that_hangs_before_it_says_where_its_memory_is_is_ended() {
    let host = Host::new();
    let driver = with_pages(&host);
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    host.becomes(&Behaviour {
        hangs_at: Some("PUT /snapshot/load".into()),
        ..Behaviour::default()
    });
    let plan = Plan {
        origin: Origin::Saved(Arc::new(state.clone())),
        resources: state.resources,
    };
    let prepared = driver.prepare(host.slot(), &plan).await.unwrap();
    let mut spec = host.spec();
    spec.deadline = Duration::from_millis(300);
    let told = text(&failed(prepared.start(spec).await));
    assert!(told.contains("did not answer"), "{told}");
    // And one that is never started.
    let prepared = driver.prepare(host.slot(), &plan).await.unwrap();
    prepared.discard().await;
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_firecracker_that_lies_of_its_memory_is_ended() {
    let host = Host::new();
    let driver = with_pages(&host);
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    for lie in [
        Lie::Nonsense,
        Lie::More,
        Lie::AnotherDescriptor,
        Lie::NoDescriptor,
    ] {
        host.becomes(&Behaviour {
            lies: Some(lie),
            ..Behaviour::default()
        });
        let begin = Instant::now();
        let told = text(&failed(host.load(&driver, host.slot(), &state).await));
        assert!(told.contains("its machine "), "{lie:?}: {told}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{lie:?}");
    }
    host.expect_nothing_left(&driver).await;
}

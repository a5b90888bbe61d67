//! The `firecracker` driver against a stand-in that checks every request against Firecracker's
//! published API. With the real one (`ATOLL_TEST_FIRECRACKER`), see `conformance.rs`.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::{firecracker_api, firecracker_host as host, support};

use driver::{
    Driver, DriverError, Exit, Machine, NetworkSlot, Origin, Plan, SaveOptions, SavedState,
    firecracker::Firecracker,
};
use firecracker_api::{
    Behaviour, claims,
    description::{self, State},
};
use host::{Host, failed, tell_guest, text};
use serde_json::{Value, json};
use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};
use support::network;

const WITH_MEMORY: SaveOptions = SaveOptions {
    memory: true,
    goes_on: true,
    lasts: true,
};

#[tokio::test]
async fn a_machine_boots_in_the_order_that_the_api_wants() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    assert_eq!(
        host.calls(0),
        [
            "GET /version",
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/root",
            "PUT /drives/layer",
            "PUT /network-interfaces/net",
            "PUT /balloon",
            "PUT /entropy",
            "PUT /actions",
        ]
    );
    let config = host.body(0, "PUT /machine-config");
    assert_eq!(
        (&config["vcpu_count"], &config["mem_size_mib"]),
        (&json!(1), &json!(4))
    );
    let source = host.body(0, "PUT /boot-source");
    assert!(
        source["boot_args"].as_str().unwrap().contains("pci=off"),
        "{source}"
    );
    assert_eq!(
        host.body(0, "PUT /drives/root")["is_read_only"],
        json!(true)
    );
    assert_eq!(
        host.body(0, "PUT /network-interfaces/net")["host_dev_name"],
        json!("tap0")
    );
    // The clock stood still or never went: the claim tells the time, and brings entropy.
    let (_, claim) = &claims(&host.root(0))[0];
    assert!(claim["unix_time_ns"].as_u64().unwrap() > 1_700_000_000_000_000_000);
    assert!(claim["entropy"].as_str().unwrap().len() >= 86);
    assert!(support::is_healthy(&*machine));
    // It runs as nobody else, in its groups only.
    let user = fs::metadata(format!("/proc/{}", machine.record().pid))
        .unwrap()
        .uid();
    assert_eq!(user, host.options().first_id);
    assert_eq!(user, host.world.user_of(0));
    let usage = machine.usage().unwrap();
    assert!(usage.memory > 0 && usage.disk < 8 << 20, "{usage:?}");
    machine.destroy().await.unwrap();
    machine.destroy().await.unwrap();
    assert!(matches!(machine.wait().await, Exit::Ended(_)));
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn what_is_prepared_can_be_discarded_or_dropped() {
    let host = Host::new();
    let driver = host.driver();
    let discarded = driver.prepare(host.slot(), &host.plan()).await.unwrap();
    let dropped = driver.prepare(host.slot(), &host.plan()).await.unwrap();
    assert!(discarded.is_alive() && dropped.is_alive());
    discarded.discard().await;
    drop(dropped);
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_snapshot_is_whole_then_what_differs_and_nothing_is_configured_before_loading() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let whole = machine
        .save(&host.path("whole"), WITH_MEMORY)
        .await
        .unwrap();
    assert_eq!(
        SavedState::load(&host.path("whole"), &host.path("data")).unwrap(),
        whole
    );
    assert_eq!(
        host.body(0, "PUT /snapshot/create")["snapshot_type"],
        json!("Full")
    );
    let calls = host.calls(0);
    assert_eq!(
        calls[calls.len() - 3..],
        ["PATCH /vm", "PUT /snapshot/create", "PATCH /vm"]
    );
    let memory = fs::metadata(host.path("whole/memory")).unwrap();
    assert_eq!(memory.len(), 4 << 20);
    assert!(memory.blocks() * 512 <= 256 << 10, "zeros became holes");
    assert!(support::is_healthy(&*machine), "it goes on");
    machine.destroy().await.unwrap();
    driver::qemu::verify(&whole).unwrap();

    // Three generations: each saves what differs from the first.
    let mut state = whole;
    for round in 0..3u64 {
        let number = u32::try_from(round + 1).unwrap();
        let machine = host.load(&driver, host.slot(), &state).await.unwrap();
        assert_eq!(
            host.calls(number)[..2],
            ["GET /version", "PUT /snapshot/load"]
        );
        let load = host.body(number, "PUT /snapshot/load");
        assert_eq!(load["track_dirty_pages"], json!(true));
        assert!(load.get("network_overrides").is_none(), "{load}");
        tell_guest(
            &*machine,
            "control",
            &format!("/page/{}/{}", 20 + round, 40 + round),
        );
        let name = format!("round-{round}");
        state = machine.save(&host.path(&name), WITH_MEMORY).await.unwrap();
        machine.destroy().await.unwrap();
        assert_eq!(
            host.path("whole"),
            state.memory.clone().unwrap().base.unwrap()
        );
        driver::qemu::verify(&state).unwrap();
    }
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    let merged = fs::read(host.path("round-2/memory.merged")).unwrap();
    let page = |number: usize| merged[number * 4096];
    assert_eq!(
        [1, 2, 7, 20, 21, 22, 23].map(page),
        [1, 2, 7, 40, 41, 42, 0]
    );
    // Twice of one machine: the second difference holds the first.
    let other = host.path("other");
    tell_guest(&*machine, "control", "/page/30/50");
    machine
        .save(&host.path("between"), WITH_MEMORY)
        .await
        .unwrap();
    tell_guest(&*machine, "control", "/page/31/51");
    let last = machine.save(&other, WITH_MEMORY).await.unwrap();
    machine.destroy().await.unwrap();
    let machine = host.load(&driver, host.slot(), &last).await.unwrap();
    let merged = fs::read(other.join("memory.merged")).unwrap();
    assert_eq!(
        [20, 30, 31].map(|number| merged[number * 4096]),
        [40, 50, 51]
    );
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_state_without_memory_boots_with_its_disk() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let options = SaveOptions {
        memory: false,
        goes_on: false,
        lasts: true,
    };
    let state = machine.save(&host.path("saved"), options).await.unwrap();
    assert_eq!(state.memory, None);
    assert!(!host.calls(0).contains(&"PUT /snapshot/create".to_owned()));
    machine.destroy().await.unwrap();
    driver.check(&state).unwrap();
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    assert!(host.calls(1).contains(&"PUT /actions".to_owned()));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

/// The same slot, with its tap under another name.
fn rename_tap(slot: Arc<NetworkSlot>, name: &str) -> Arc<NetworkSlot> {
    let slot = Arc::into_inner(slot).unwrap();
    let namespace = format!(
        "--net=/proc/{}/fd/{}",
        std::process::id(),
        slot.namespace.as_raw_fd()
    );
    let rename = format!("ip link set tap0 down && ip link set tap0 name {name} up");
    let status = Command::new("nsenter")
        .args([&namespace, "sh", "-c", &rename])
        .status();
    assert!(status.unwrap().success());
    Arc::new(NetworkSlot {
        tap: Some(name.into()),
        ..slot
    })
}

#[tokio::test]
async fn another_tap_is_overridden_where_the_version_can() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    let slot = rename_tap(host.slot(), "tap7");
    let loaded = host.load(&driver, slot, &state).await.unwrap();
    assert_eq!(
        host.body(1, "PUT /snapshot/load")["network_overrides"],
        json!([{ "iface_id": "net", "host_dev_name": "tap7" }])
    );
    loaded.destroy().await.unwrap();
    // One that is not there is an error that names it.
    let mut slot = Arc::into_inner(rename_tap(host.slot(), "tap8")).unwrap();
    slot.tap = None;
    let error = failed(host.load(&driver, Arc::new(slot), &state).await);
    assert!(text(&error).contains("tap0"), "{}", text(&error));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;

    let old = of_version("1.10.1");
    let driver = old.driver();
    let machine = old.start(&driver).await;
    let state = machine.save(&old.path("saved"), WITH_MEMORY).await.unwrap();
    machine.destroy().await.unwrap();
    let slot = rename_tap(old.slot(), "tap7");
    let error = failed(old.load(&driver, slot, &state).await);
    assert!(text(&error).contains("1.12"), "{}", text(&error));
    let machine = old.load(&driver, old.slot(), &state).await.unwrap();
    let load = old.body(2, "PUT /snapshot/load");
    assert_eq!(load["enable_diff_snapshots"], json!(true));
    machine.destroy().await.unwrap();
    old.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn what_cannot_be_loaded_here_is_refused_before_it_is_tried() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let mut foreign = state.clone();
    let facts = &mut foreign.memory.as_mut().unwrap().host;
    facts.program = "Firecracker 1.11.0, snapshots v4.0.0".into();
    facts.processor = "Another, features 00".into();
    let told = text(&driver.check(&foreign).unwrap_err());
    assert!(
        told.contains("1.11.0") && told.contains("Another"),
        "{told}"
    );
    failed(host.load(&driver, host.slot(), &foreign).await);
    // A template hides what processors differ in.
    let mut options = host.options();
    options.cpu_template = Some("T2".into());
    let with_template = Firecracker::new(options).unwrap();
    assert_eq!(with_template.facts().processor, "template T2");
    let machine = host.start(&with_template).await;
    let slot = machine.record().slot;
    assert_eq!(
        host.body(slot, "PUT /machine-config")["cpu_template"],
        json!("T2")
    );
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn versions_and_programs_that_will_not_do_are_refused_with_the_remedy() {
    let refused = |version: &str, jailer: &str| {
        let host = Host::that(Behaviour {
            version: version.into(),
            jailer_version: jailer.into(),
            ..Behaviour::default()
        });
        text(&failed(Firecracker::new(host.options())))
    };
    let told = refused("1.9.1", "1.9.1");
    assert!(
        told.contains("older than 1.10.0") && told.contains("Install"),
        "{told}"
    );
    let told = refused("1.12.0", "1.11.0");
    assert!(told.contains("its jailer 1.11.0"), "{told}");
    let host = Host::new();
    fs::remove_file(&host.jailer).unwrap();
    let told = text(&failed(Firecracker::new(host.options())));
    assert!(
        told.contains("jailer is not there") && told.contains("releases"),
        "{told}"
    );

    // What is updated or removed while the driver is there.
    let host = Host::new();
    let driver = host.driver();
    host.becomes(&Behaviour {
        version: "1.15.0".into(),
        ..Behaviour::default()
    });
    let told = text(&failed(driver.prepare(host.slot(), &host.plan()).await));
    assert!(
        told.contains("is 1.15.0") && told.contains("Restart"),
        "{told}"
    );
    fs::remove_file(&host.jailer).unwrap();
    let told = text(&failed(driver.prepare(host.slot(), &host.plan()).await));
    assert!(told.contains("jailer is not there"), "{told}");
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_leaves_nothing() {
    let message = "Invalid balloon: it is red";
    let host = Host::that(Behaviour {
        refuses: Some(("PUT /balloon".into(), message.into())),
        ..Behaviour::default()
    });
    let driver = host.driver();
    let told = text(&failed(driver.prepare(host.slot(), &host.plan()).await));
    assert!(
        told.contains("PUT /balloon") && told.contains(message),
        "{told}"
    );
    host.expect_nothing_left(&driver).await;

    // The spurious want of memory of a fork storm is worth another try.
    let message = "Load snapshot error: KVM: Cannot allocate memory (os error 12)";
    host.becomes(&Behaviour::default());
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    host.becomes(&Behaviour {
        refuses: Some(("PUT /snapshot/load".into(), message.into())),
        ..Behaviour::default()
    });
    let error = failed(host.load(&driver, host.slot(), &state).await);
    assert!(
        matches!(error, DriverError::Exhausted { what: "memory", .. }),
        "{error:?}"
    );
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_jailer_that_fails_is_heard() {
    let host = Host::that(Behaviour {
        jailer_fails: Some("Failed to create /dev/kvm via mknod".into()),
        ..Behaviour::default()
    });
    let driver = host.driver();
    let told = text(&failed(driver.prepare(host.slot(), &host.plan()).await));
    assert!(told.contains("/dev/kvm via mknod"), "{told}");
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn one_that_dies_or_hangs_is_ended_in_time() {
    let host = Host::that(Behaviour {
        dies_at: Some("PUT /actions".into()),
        ..Behaviour::default()
    });
    let driver = host.driver();
    failed(driver.prepare(host.slot(), &host.plan()).await);
    host.expect_nothing_left(&driver).await;

    host.becomes(&Behaviour::default());
    let machine = host.start(&driver).await;
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
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
    let begin = std::time::Instant::now();
    let told = text(&failed(prepared.start(spec).await));
    assert!(
        told.contains("did not answer `PUT /snapshot/load`"),
        "{told}"
    );
    assert!(begin.elapsed() < Duration::from_secs(10));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_machine_outlives_its_driver_is_adopted_and_can_all() {
    let host = Host::new();
    let record = {
        let driver = host.driver();
        let machine = host.start(&driver).await;
        let _unclaimed = driver.prepare(host.slot(), &host.plan()).await.unwrap();
        machine.record()
        // Everything is dropped here, as when the program dies.
    };
    let driver = host.driver();
    let machine = driver.adopt(&record).await.unwrap().expect("it still runs");
    assert_eq!(machine.record(), record);
    driver.sweep(&[record.slot]).await.unwrap();
    assert!(support::is_healthy(&*machine));
    for _ in 0..2 {
        machine.freeze().await.unwrap();
    }
    for _ in 0..2 {
        machine.thaw().await.unwrap();
    }
    assert!(support::is_healthy(&*machine));
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    let loaded = host
        .load(
            &driver,
            network::slot(7, Some(host.world.user_of(7))),
            &state,
        )
        .await
        .unwrap();
    loaded.destroy().await.unwrap();
    machine.destroy().await.unwrap();
    assert!(driver.adopt(&record).await.unwrap().is_none());
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn what_nobody_keeps_is_swept() {
    let host = Host::new();
    let record = {
        let driver = host.driver();
        host.start(&driver).await.record()
    };
    let driver = host.driver();
    assert_eq!(driver.sweep(&[]).await.unwrap().len(), 1);
    assert!(driver.adopt(&record).await.unwrap().is_none());
    host.expect_nothing_left(&driver).await;
    assert_eq!(driver.sweep(&[]).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn an_end_is_seen() {
    let host = Host::new();
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let pid = i32::try_from(machine.record().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    match machine.wait().await {
        Exit::Ended(reason) => assert!(reason.starts_with("its machine "), "{reason}"),
        other => panic!("{other:?}"),
    }
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn a_machine_that_cannot_be_saved_goes_on() {
    let host = Host::that(Behaviour {
        refuses: Some((
            "PUT /snapshot/create".into(),
            "No space left on device".into(),
        )),
        ..Behaviour::default()
    });
    let driver = host.driver();
    let machine = host.start(&driver).await;
    let saved = host.path("saved");
    for goes_on in [true, false] {
        let options = SaveOptions {
            memory: true,
            goes_on,
            lasts: true,
        };
        let told = text(&failed(machine.save(&saved, options).await));
        assert!(told.contains("No space left"), "{told}");
        assert!(!saved.exists());
        assert!(support::is_healthy(&*machine), "it goes on");
    }
    // What is there is not written over.
    fs::create_dir(&saved).unwrap();
    failed(machine.save(&saved, WITH_MEMORY).await);
    assert!(Path::new(&saved).exists());
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

/// A host whose Firecracker and jailer are of a version.
fn of_version(version: &str) -> Host {
    Host::that(Behaviour {
        version: version.into(),
        jailer_version: version.into(),
        ..Behaviour::default()
    })
}

#[tokio::test]
async fn each_machine_has_a_user_and_a_tap_of_its_own() {
    let host = Host::new();
    let driver = host.driver();
    let (first, second) = (host.start(&driver).await, host.start(&driver).await);
    let user = |machine: &dyn Machine| {
        let process = format!("/proc/{}", machine.record().pid);
        fs::metadata(process).unwrap().uid()
    };
    let users = [user(&*first), user(&*second)];
    assert_ne!(users[0], users[1]);
    // systemd.io/UIDS-GIDS: not for containers, not for files of other systems.
    for user in users {
        assert!((0x7fff_0000..=0x7fff_ffff).contains(&user), "{user}");
    }
    // Another slot's user cannot open a tap.
    let slot = network::slot(9, Some(users[0]));
    let told = text(&failed(driver.prepare(slot, &host.plan()).await));
    assert!(told.contains("Open tap device failed"), "{told}");
    for machine in [first, second] {
        machine.destroy().await.unwrap();
    }
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn what_is_not_asked_for_is_off() {
    let host = of_version("1.16.1");
    let driver = host.driver();
    let machine = host.start(&driver).await;
    assert!(!host.calls(0).iter().any(|call| call.contains("mmds")));
    let balloon = host.body(0, "PUT /balloon");
    assert_eq!(balloon["deflate_on_oom"], json!(true));
    assert!(balloon.get("stats_polling_interval_s").is_none());
    assert!(driver.guest_memory(0).await.is_err());
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    let load = host.body(1, "PUT /snapshot/load");
    assert!(load.get("clock_realtime").is_none(), "{load}");
    assert_eq!(load["mem_backend"]["backend_type"], json!("File"));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;
}

#[tokio::test]
async fn statistics_metadata_and_the_clock_can_be_asked_for() {
    let host = of_version("1.16.1");
    let mut options = host.options();
    options.balloon_statistics = Some(Duration::from_secs(5));
    options.metadata = true;
    options.advance_clock = true;
    let driver = Firecracker::new(options.clone()).unwrap();
    let machine = host.start(&driver).await;
    let balloon = host.body(0, "PUT /balloon");
    assert_eq!(balloon["stats_polling_interval_s"], json!(5));
    let memory = driver.guest_memory(0).await.unwrap();
    assert_eq!((memory.total, memory.free), (Some(4 << 20), Some(4096)));
    assert_eq!(
        host.body(0, "PUT /mmds/config"),
        json!({ "network_interfaces": ["net"], "version": "V2" })
    );
    let metadata = host.body(0, "PUT /mmds");
    assert!(metadata["instanceID"].is_string() && metadata["envID"].is_string());
    assert_eq!(metadata.as_object().unwrap().len(), 2, "nothing secret");
    let state = machine
        .save(&host.path("saved"), WITH_MEMORY)
        .await
        .unwrap();
    machine.destroy().await.unwrap();
    let machine = host.load(&driver, host.slot(), &state).await.unwrap();
    assert_eq!(
        host.body(1, "PUT /snapshot/load")["clock_realtime"],
        json!(true)
    );
    assert!(host.calls(1).contains(&"PUT /mmds".to_owned()));
    machine.destroy().await.unwrap();
    host.expect_nothing_left(&driver).await;

    // An older one is not asked for what it does not know.
    let old = of_version("1.15.0");
    let mut options = old.options();
    options.advance_clock = true;
    let driver = Firecracker::new(options).unwrap();
    let machine = old.start(&driver).await;
    let state = machine.save(&old.path("saved"), WITH_MEMORY).await.unwrap();
    machine.destroy().await.unwrap();
    let machine = old.load(&driver, old.slot(), &state).await.unwrap();
    machine.destroy().await.unwrap();
    old.expect_nothing_left(&driver).await;
}

/// The stand-in itself: what the description refuses.
#[test]
fn the_description_refuses_what_firecracker_refuses() {
    let check = |method, path, body: Value, state, configured| {
        let body = (!body.is_null()).then_some(body);
        description::check((method, path, body.as_ref()), state, configured, (1, 14))
            .map(drop)
            .unwrap_err()
    };
    use State::{NotStarted, Paused, Running};
    let load = json!({
        "snapshot_path": "/s",
        "mem_backend": { "backend_type": "File", "backend_path": "/m" },
    });
    let create = json!({ "snapshot_path": "/s", "mem_file_path": "/m" });
    for (refused, why) in [
        (
            check("PUT", "/snapshot/load", load.clone(), NotStarted, true),
            "after configuring",
        ),
        (
            check("PUT", "/snapshot/load", load, Running, true),
            "after starting",
        ),
        (
            check("PUT", "/snapshot/create", create.clone(), Running, true),
            "paused first",
        ),
        (
            check("PUT", "/snapshot/create", create, NotStarted, false),
            "before starting",
        ),
        (
            check(
                "PATCH",
                "/vm",
                json!({ "state": "Paused" }),
                NotStarted,
                false,
            ),
            "before starting",
        ),
        (
            check("PATCH", "/vm", json!({ "state": "Stopped" }), Running, true),
            "cannot be",
        ),
        (
            check("PUT", "/entropy", json!({}), Paused, true),
            "after starting",
        ),
        (
            check("PUT", "/entropy", Value::Null, NotStarted, false),
            "Empty request",
        ),
        (
            check(
                "PUT",
                "/balloon",
                json!({ "amount_mib": 0 }),
                NotStarted,
                false,
            ),
            "missing field",
        ),
        (
            check(
                "PUT",
                "/boot-source",
                json!({ "kernel": "/k" }),
                NotStarted,
                false,
            ),
            "unknown field",
        ),
        (
            check(
                "PUT",
                "/drives/a",
                json!({ "drive_id": "b", "is_root_device": false }),
                NotStarted,
                false,
            ),
            "does not match",
        ),
        (
            check("DELETE", "/vm", Value::Null, Running, true),
            "Invalid request",
        ),
        (
            check(
                "PUT",
                "/snapshot/load",
                json!({
                    "snapshot_path": "/s",
                    "mem_backend": { "backend_type": "Tape", "backend_path": "/m" },
                }),
                NotStarted,
                false,
            ),
            "cannot be",
        ),
    ] {
        assert!(refused.contains(why), "{why}: {refused}");
    }
    let new = json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true });
    let old = description::check(("PUT", "/balloon", Some(&new)), NotStarted, false, (1, 10));
    assert!(old.unwrap_err().contains("unknown field"));
}

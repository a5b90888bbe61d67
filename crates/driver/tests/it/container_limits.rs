//! Limits on what a container reads and writes of its layer, and what starting one costs the host
//! in programs: none.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::support;

use driver::{Driver, SaveOptions, cgroup::IoLimits, container::Container};
use std::{process::Command, sync::Arc, time::Duration};
use support::{World, is_healthy, own_test, report};

/// How long a script takes inside, from its first to its last line, with a limit.
async fn take(limits: Option<IoLimits>, script: &str, disk: u64) -> Duration {
    let world = World::new();
    let mut options = world.options();
    options.io = limits;
    let driver = Container::new(options).unwrap();
    let mut spec = world.spec("");
    // As bash, which measures by itself.
    spec.identity.start_command = Some(format!(
        "exec bash -c 'exec > /dev/shm/report 2>&1; TIMEFORMAT=\"took %R\"; \
         time {{ {script}; }}; echo done'"
    ));
    spec.resources.disk = api::Bytes::mebibytes(disk);
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    let text = report(&*machine, "/dev/shm/report").await;
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
    let took = text.lines().find_map(|line| line.strip_prefix("took "));
    let seconds: f64 = took.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    Duration::from_secs_f64(seconds)
}

const BOUND: IoLimits = IoLimits {
    bytes: 8 << 20,
    operations: 10_000,
};

/// Past the page cache, which is what every version of control groups bounds.
const WRITE: &str = "dd if=/dev/zero of=/file bs=1M count=16 oflag=direct";

/// 16 MiB at 8 MiB a second, also on a disk that was not the prepared one (128 MiB).
#[tokio::test]
async fn the_rate_of_writing_is_bounded() {
    for disk in [64, 128] {
        let free = take(None, WRITE, disk).await;
        let bound = take(Some(BOUND), WRITE, disk).await;
        println!("{disk} MiB: {free:?} without and {bound:?} with a limit");
        assert!(bound >= Duration::from_millis(1500), "{bound:?}");
        assert!(free < bound, "{free:?}");
    }
}

#[tokio::test]
async fn the_rate_of_reading_is_bounded() {
    // Written through and dropped from the cache by the same tool.
    let script = "dd if=/dev/zero of=/file bs=1M count=1 oflag=direct; \
                  for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do \
                  dd if=/file of=/dev/null bs=1M iflag=direct; done";
    let free = take(None, script, 64).await;
    let bound = take(Some(BOUND), script, 64).await;
    println!("{free:?} without and {bound:?} with a limit");
    assert!(bound >= Duration::from_millis(1500), "{bound:?}");
    assert!(free < bound, "{free:?}");
}

#[tokio::test]
async fn the_rate_of_operations_is_bounded() {
    let slow = IoLimits {
        operations: 100,
        ..IoLimits::default()
    };
    let script = "dd if=/dev/zero of=/file bs=4k count=200 oflag=direct";
    let free = take(None, script, 64).await;
    let bound = take(Some(slow), script, 64).await;
    println!("{free:?} without and {bound:?} with a limit");
    assert!(bound >= Duration::from_millis(1500), "{bound:?}");
    assert!(free < bound, "{free:?}");
}

/// Not a test: a keeper that cannot execute anything but the guest, which it holds open.
#[test]
fn keeper_that_executes_nothing() {
    if std::env::var_os("ATOLL_KEEPER").is_some() {
        forbid_executing();
        driver::container::keeper::run_if_asked();
    }
}

/// From here on no thread of this process, and nothing that it starts, can execute a program by its
/// path: only one that is open already, with `execveat` and `AT_EMPTY_PATH`.
fn forbid_executing() {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
    let make = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |offset| make(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
    let equals = |value, jt, jf| make(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, value);
    let answer = |value| make(BPF_RET | BPF_K, 0, 0, value);
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let filter = [
        load(0),
        equals(libc::SYS_execve as u32, 3, 0),
        equals(libc::SYS_execveat as u32, 0, 3),
        // The lower half of the fifth argument.
        load(48),
        equals(libc::AT_EMPTY_PATH as u32, 1, 0),
        answer(refused),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program points at a live array of the length that it states.
    let installed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}

/// Once a first one was prepared (which formats a file system), neither this program nor the keeper
/// executes anything to prepare, start, save and end sandboxes.
#[tokio::test]
async fn creating_a_sandbox_starts_no_external_program() {
    // In a process of its own, as what it forbids itself is forbidden to all of its threads.
    const ALONE: &str = "ATOLL_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let own = own_test("container_limits::creating_a_sandbox_starts_no_external_program");
        let mut alone = Command::new(&own[0]);
        let alone = alone.args(&own[1..]).env(ALONE, "1").output().unwrap();
        assert!(alone.status.success(), "{alone:?}");
        return;
    }
    let world = World::new();
    let mut options = world.options();
    for word in &mut options.keeper_command {
        if word == "keeper_process" {
            *word = "container_limits::keeper_that_executes_nothing".into();
        }
    }
    let driver = Container::new(options).unwrap();
    let networks: Vec<_> = (0..3).map(|_| world.network()).collect();
    let first = driver.prepare(networks[0].clone(), &world.plan()).await;
    first.unwrap().discard().await;

    forbid_executing();
    assert!(Command::new("/bin/true").status().is_err());
    let prepared = driver.prepare(networks[1].clone(), &world.plan()).await;
    let machine = prepared.unwrap().start(world.spec("")).await.unwrap();
    assert!(is_healthy(&*machine));
    let saved = world.directory.path().join("saved");
    let options = SaveOptions {
        memory: false,
        goes_on: true,
        lasts: true,
    };
    let state = machine.save(&saved, options).await.unwrap();
    let prepared = driver.prepare(networks[2].clone(), &world.plan()).await;
    let mut spec = world.spec("");
    spec.origin = driver::Origin::Saved(Arc::new(state));
    let child = prepared.unwrap().start(spec).await.unwrap();
    assert!(is_healthy(&*child));
    for machine in [machine, child] {
        machine.destroy().await.unwrap();
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

//! Limits on what a container reads and writes of its layer, and what starting one costs the host
//! in programs: none.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use driver::{Driver, cgroup::IoLimits, container::Container};
use std::time::Duration;
use support::{World, report};

/// Not a test: what the driver under test starts as its keeper.
#[test]
fn keeper_process() {
    driver::container::keeper::run_if_asked();
}

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

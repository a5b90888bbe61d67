//! Where the time of preparing, starting and ending sandboxes goes.
//!
//! `cargo run --release -p driver --example phases [COUNT]`, as root. The root file system is a
//! few of the host's programs, and the network has nothing but a loopback interface.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use driver::Driver;
use std::{
    fs,
    time::{Duration, Instant},
};
use support::World;

fn main() {
    driver::container::keeper::run_if_asked();
    let count = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(200);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure(count));
}

async fn measure(count: usize) {
    let world = World::new();
    let mut options = world.options();
    options.keeper_command = vec!["/proc/self/exe".into(), "keeper".into()];
    let driver = driver::container::Container::new(options).unwrap();
    world.prepare(&driver).await.discard().await;

    let mut all: Vec<(String, Vec<Duration>)> = Vec::new();
    let mut note = |name: &str, took: Duration| match all.iter_mut().find(|(had, _)| had == name) {
        Some((_, times)) => times.push(took),
        None => all.push((name.to_owned(), vec![took])),
    };
    for _ in 0..count {
        let slot = world.network();
        let begin = Instant::now();
        let prepared = driver.prepare(slot, &world.plan()).await.unwrap();
        note("prepare", begin.elapsed());
        let spec = world.spec("");
        let begin = Instant::now();
        let machine = prepared.start(spec).await.unwrap();
        note("start", begin.elapsed());
        for (name, took) in &machine.phases().0 {
            note(&format!("  {name}"), *took);
        }
        let begin = Instant::now();
        machine.destroy().await.unwrap();
        note("destroy", begin.elapsed());
    }
    println!(
        "{:<28} {:>10} {:>10} {:>10}",
        "one after another", "p50 µs", "p99 µs", "least µs"
    );
    for (name, mut times) in all {
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
        println!("{name:<28} {:>10} {:>10} {:>10}", at(50), at(99), at(0));
    }

    let before = Memory::now();
    let mut prepared = Vec::new();
    for _ in 0..100 {
        prepared.push(world.prepare(&driver).await);
    }
    let after = Memory::now();
    println!(
        "one prepared one costs {} KiB of available memory, {} KiB of slab among it",
        before.available.saturating_sub(after.available) / 100,
        after.slab.saturating_sub(before.slab) / 100,
    );
    let begin = Instant::now();
    let starts: Vec<_> = prepared
        .into_iter()
        .map(|prepared| {
            let spec = world.spec("");
            tokio::spawn(async move { prepared.start(spec).await.unwrap() })
        })
        .collect();
    let mut machines = Vec::new();
    for start in starts {
        machines.push(start.await.unwrap());
    }
    println!("100 prepared ones started in {:?}", begin.elapsed());
    let pid = machines[50].record().pid;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .unwrap()
        .lines()
    {
        if ["Pss:", "Private_Clean:", "Private_Dirty:"]
            .iter()
            .any(|key| line.starts_with(key))
        {
            println!("guest {line}");
        }
    }
    println!("group's memory {}", machines[50].usage().unwrap().memory);
    let begin = Instant::now();
    end_all(machines).await;
    println!("100 ended at once in {:?}", begin.elapsed());
    let begin = Instant::now();
    driver.shutdown().await;
    println!(
        "shut down in {:?}; left: {:?}",
        begin.elapsed(),
        world.leftovers()
    );
}

async fn end_all(machines: Vec<Box<dyn driver::Machine>>) {
    let ends: Vec<_> = machines
        .into_iter()
        .map(|machine| tokio::spawn(async move { machine.destroy().await.unwrap() }))
        .collect();
    for end in ends {
        end.await.unwrap();
    }
}

/// Of `/proc/meminfo`, in KiB. Of use only while nothing else happens on the machine.
struct Memory {
    available: u64,
    slab: u64,
}

impl Memory {
    fn now() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let field = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            available: field("MemAvailable:"),
            slab: field("Slab:"),
        }
    }
}

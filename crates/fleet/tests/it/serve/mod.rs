//! The process that carries plans out, with our own Redfish driver and a controller in this process. Nobody
//! waits for time to pass: each tick is told what time it is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::await_holding_lock,
    reason = "a test may stop at what it did not expect"
)]

mod answers;
mod bench;
mod cluster;
mod controllers;
mod kills;
mod kubernetes;
mod restarts;
mod suspension;

use bench::{BOOT, STEP, bench, bench_with};
use fleet::{
    explain::History,
    moment::{Moment, Span},
    planner::Action,
    serve::Standing,
    targets::NodeName,
};
use std::time::Duration;

#[tokio::test]
async fn a_machine_sleeps_when_demand_goes_and_wakes_when_it_comes_back() {
    let mut bench = bench(3).await;
    bench.ask("a", 3, Some("m0"));
    bench.ask("b", 3, Some("m1"));
    bench.run(Span(30)).await;
    assert_eq!(bench.reason("m0"), "NotAutoscaled");
    // m2 carries nothing from the start, m1 does until now.
    bench.end("b");
    let gone = bench.now();
    let took = bench.until("m1", false).await;
    assert!(
        took >= Span(60),
        "it is not switched off before the debounce is over: {took}"
    );
    assert_eq!(bench.sent("m1"), ["GracefulShutdown"]);
    let history = History::new(bench.store.clone());
    let told = history.between("m1", gone, bench.now()).await.unwrap();
    let reasons: Vec<&str> = told.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(
        reasons[reasons.len() - 2..],
        ["Unneeded", "CurrentlyBeingDeleted"]
    );
    assert!(reasons.contains(&"NotUnneededLongEnough"), "{reasons:?}");
    bench.run(Span::minutes(10)).await;
    let status = bench.fleet.shared().status();
    assert_eq!((status.machines["off"], status.machines["on"]), (2, 1));

    // Two machines' worth of work comes; m0 has room for none of it.
    bench.ask("c", 3, None);
    bench.ask("d", 3, None);
    let waits = bench.until("m1", true).await;
    assert!(waits <= Span(BOOT + 2 * STEP.0), "{waits}");
    bench.run(Span(20)).await;
    assert_eq!(bench.sent("m1"), ["GracefulShutdown", "On"]);
    assert_eq!(bench.sent("m2"), ["GracefulShutdown", "On"]);
    let plan = bench.fleet.shared().plan();
    assert_eq!(plan.placements.len(), 2, "{plan:?}");
    assert!(bench.with(|world| world.violations.is_empty()));
}

#[tokio::test]
async fn a_machine_that_carries_work_is_never_switched_off() {
    let mut bench = bench(2).await;
    // Nobody asks for it in time, but at the last look there is work.
    bench.with(|world| world.surprise.insert("m1".to_owned()));
    bench.run(Span::minutes(30)).await;
    assert!(bench.sent("m1").is_empty());
    assert_eq!(bench.reason("m1"), "RecentlyUnremovable");
    bench.with(|world| world.surprise.clear());
    bench.until("m1", false).await;
}

#[tokio::test]
async fn nothing_changes_while_demand_cannot_be_read() {
    let mut bench = bench(2).await;
    bench.run(Span(20)).await;
    let before = bench.with(|world| world.demand.take());
    bench.run(Span::minutes(30)).await;
    assert!(bench.sent("m1").is_empty());
    assert_eq!(bench.reason("m1"), "DemandUnknown");
    let status = bench.fleet.shared().status();
    assert_eq!(status.demand.error.as_deref(), Some("out of order"));
    bench.with(|world| world.demand = before);
    bench.until("m1", false).await;
}

#[tokio::test]
async fn a_machine_that_never_comes_up_is_switched_off_and_another_wakes() {
    let mut bench = bench(3).await;
    bench.ask("a", 4, Some("m0"));
    bench.until("m1", false).await;
    bench.until("m2", false).await;
    bench.with(|world| world.machines.get_mut("m1").unwrap().never_comes_up = true);
    bench.ask("b", 3, None);
    let waits = bench.until("m2", true).await;
    assert!(
        waits <= Span::minutes(5),
        "others come in its place long before it is given up: {waits}"
    );
    bench.ask("b", 3, Some("m2"));
    bench.run(Span::minutes(20)).await;
    let sent = bench.sent("m1");
    assert_eq!(
        sent.last().unwrap(),
        "GracefulShutdown",
        "it is not left on: {sent:?}"
    );
    assert_eq!(bench.reason("m1"), "Quarantined");
    assert!(!bench.with(|world| world.machines["m1"].on));
    // It is left alone even if there is need, until its time has come.
    bench.ask("c", 3, None);
    bench.run(Span(60)).await;
    assert_eq!(bench.sent("m1"), sent);
}

#[tokio::test]
async fn work_is_kept_away_and_moved_before_a_machine_sleeps() {
    let mut bench = bench(3).await;
    bench.with(|world| world.moves = true);
    bench.ask("a", 1, Some("m0"));
    bench.ask("b", 1, Some("m1"));
    bench.until("m2", false).await;
    while bench.with(|world| world.evicted.is_empty()) {
        bench.run(STEP).await;
    }
    assert!(bench.with(|world| world.closed.contains("m1")));
    assert_eq!(bench.with(|world| world.evicted[0].clone()), "b");
    assert!(bench.sent("m1").is_empty(), "not before its work has moved");
    bench.ask("b", 1, Some("m0"));
    bench.end("nothing");
    bench.until("m1", false).await;
    // Woken again, it takes work again.
    bench.ask("c", 4, None);
    bench.until("m1", true).await;
    bench.run(Span(30)).await;
    assert!(bench.with(|world| !world.closed.contains("m1")));
    assert!(bench.with(|world| world.violations.is_empty()));
}

#[tokio::test]
async fn a_standby_takes_over_and_nothing_is_sent_twice() {
    let mut bench = bench(2).await;
    bench.ask("a", 4, Some("m0"));
    bench.until("m1", false).await;
    bench.run(Span::minutes(1)).await;
    let mut standby = bench.another();
    assert!(!standby.try_lead(bench.now()).await.unwrap());
    assert_eq!(standby.shared().status().standing, Standing::StandingBy);
    bench.ask("b", 2, None);
    bench.run(STEP).await;
    assert_eq!(bench.sent("m1"), ["GracefulShutdown", "On"]);
    // The first is killed while the machine boots: it gives nothing back.
    bench.fleet = standby;
    assert!(!bench.fleet.try_lead(bench.now()).await.unwrap());
    bench.leases.advance(Duration::from_secs(16));
    let mut tries = 0;
    while !bench.fleet.try_lead(bench.now()).await.unwrap() {
        tries += 1;
        assert!(tries < 500, "the lease has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.until("m1", true).await;
    bench.run(Span(30)).await;
    assert_eq!(bench.sent("m1"), ["GracefulShutdown", "On"]);
    assert_eq!(bench.fleet.shared().status().standing, Standing::Acting);
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let mut bench = bench_with(2, "", true).await;
    bench.run(Span::minutes(20)).await;
    assert!(bench.sent("m1").is_empty());
    let plan = bench.fleet.shared().plan();
    assert!(plan.dry_run);
    assert_eq!(plan.actions[0].action, Action::PowerOff);
    let told = History::new(bench.store.clone());
    let record = told.at("m1", bench.now()).await.unwrap().unwrap();
    assert_eq!(record.reason, "Unneeded");
}

#[tokio::test]
async fn what_cluster_autoscaler_wants_is_switched_and_nothing_else() {
    let mut bench = bench_with(3, "cluster_autoscaler = true", false).await;
    bench.run(Span::minutes(20)).await;
    let targets = bench.fleet.targets().unwrap();
    let target = || targets.snapshot().group("pool").unwrap().target();
    assert_eq!(target(), 3, "all were on when they were seen first");
    assert!(bench.sent("m1").is_empty(), "the planner has no say here");
    let node = |name: &str| NodeName {
        provider_id: format!("atoll://{name}"),
        name: name.to_owned(),
    };
    let given = targets.delete("pool", vec![node("m1")], bench.now()).await;
    assert_eq!(given.unwrap(), ["m1"]);
    bench.until("m1", false).await;
    bench.run(Span(60)).await;
    assert_eq!(target(), 2);
    let promised = targets.increase("pool", 1, bench.now()).await.unwrap();
    assert_eq!(promised, ["m1"]);
    bench.run(STEP).await;
    assert_eq!(bench.reason("m1"), "Promised");
    bench.until("m1", true).await;
    assert_eq!(bench.sent("m1"), ["GracefulShutdown", "On"]);
    assert_eq!(bench.sent("m2"), [""; 0]);
}

#[tokio::test]
async fn machines_that_wait_for_their_turn_wake_one_after_the_other() {
    let mut bench = bench(5).await;
    let names = ["m1", "m2", "m3", "m4"];
    for name in names {
        bench.until(name, false).await;
    }
    bench.run(Span(60)).await;
    bench.file.wakes_per_second = 0.5;
    bench.restart().await;
    bench.ask("a", 4, Some("m0"));
    for name in names {
        bench.ask(name, 4, None);
    }
    bench.run(STEP).await;
    let woken = |bench: &bench::Bench| -> Vec<Moment> {
        let sent = names.map(|name| bench.with(|world| world.machines[name].sent.clone()));
        let on = sent.iter().flatten().filter(|(_, how)| how == "On");
        let mut on: Vec<Moment> = on.map(|(at, _)| *at).collect();
        on.sort_unstable();
        on
    };
    assert_eq!(woken(&bench).len(), 1);
    for _ in 0..7 {
        bench.pass(Span(1)).await;
        bench.fleet.pulse(bench.now()).await.unwrap();
        bench
            .fleet
            .drive(tokio::time::sleep(Duration::from_secs(10)))
            .await;
    }
    let woken = woken(&bench);
    assert_eq!(woken.len(), 4, "{woken:?}");
    let apart = woken
        .windows(2)
        .all(|pair| pair[1].since(pair[0]) >= Span(2));
    assert!(apart, "{woken:?}");
}

#[tokio::test]
async fn a_base_machine_that_nobody_can_look_at_counts_as_on() {
    let mut bench = bench(2).await;
    bench.file.groups[0].min = 1;
    let base = &mut bench.file.machines[0];
    (base.node, base.power) = (None, None);
    bench.restart().await;
    bench.ask("a", 1, Some("m0"));
    bench.until("m1", false).await;
    bench.run(Span::minutes(5)).await;
    assert_eq!(bench.reason("m0"), "NotAutoscaled");
    assert_eq!(bench.sent("m1"), ["GracefulShutdown"]);
}

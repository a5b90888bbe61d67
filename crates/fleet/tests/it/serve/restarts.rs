//! What is remembered when a process ends and another goes on.

use super::bench::{BOOT, STEP, bench};
use fleet::moment::Span;

/// Ticks until m1 is told to switch off, for at most an hour; returns how long that took.
async fn told_off(bench: &mut super::bench::Bench) -> Span {
    let start = bench.now();
    while bench.sent("m1").is_empty() {
        assert!(
            bench.now().since(start) < Span::hours(1),
            "it sleeps some day"
        );
        bench.run(STEP).await;
    }
    bench.now().since(start)
}

#[tokio::test]
async fn what_a_machine_has_waited_for_counts_after_a_kill() {
    let mut bench = bench(2).await;
    bench.file.policy.debounce = Span::minutes(20);
    bench.restart().await;
    bench.run(Span::minutes(12)).await;
    // Gone for as long as a restart takes: time goes on.
    bench.kill(Span(30)).await;
    bench.run(Span::minutes(4)).await;
    assert_eq!(bench.reason("m1"), "NotUnneededLongEnough");
    // Gone for longer: nobody knows what was needed meanwhile, and the time before still counts.
    bench.kill(Span::minutes(30)).await;
    let waited = told_off(&mut bench).await;
    assert!(
        waited >= Span(150) && waited <= Span::minutes(6),
        "of 20 minutes, 16 had passed: {waited}"
    );
}

#[tokio::test]
async fn after_a_day_nothing_is_remembered_of_what_was_needed() {
    let mut bench = bench(2).await;
    bench.file.policy.debounce = Span::minutes(20);
    bench.restart().await;
    bench.run(Span::minutes(19)).await;
    bench.kill(Span::hours(24)).await;
    let waited = told_off(&mut bench).await;
    assert!(waited >= Span::minutes(19), "{waited}");
}

#[tokio::test]
async fn what_was_learnt_is_there_after_a_kill() {
    let mut bench = bench(2).await;
    bench.file.groups[0].boot = Some(Span::minutes(5));
    bench.restart().await;
    bench.ask("a", 4, Some("m0"));
    for _ in 0..6 {
        bench.until("m1", false).await;
        bench.run(Span::minutes(1)).await;
        bench.ask("b", 3, None);
        bench.until("m1", true).await;
        bench.run(STEP).await;
        bench.end("b");
    }
    let boot = |bench: &super::bench::Bench| {
        let machines = bench.fleet.shared().machines();
        let m1 = machines.into_iter().find(|one| one.name == "m1").unwrap();
        (m1.boot, m1.boot_p95)
    };
    let learnt = boot(&bench);
    assert!(
        learnt.0 >= Span(BOOT) && learnt.0 < Span(BOOT * 2),
        "{learnt:?}"
    );
    bench.kill(Span(30)).await;
    bench.run(STEP).await;
    assert_eq!(boot(&bench), learnt);
    // What was learnt of demand was written down, though nobody ended the process in order.
    let kept = bench.store.get("fleet/forecast/pool").await.unwrap();
    assert!(kept.is_some_and(|one| one.value.len() > 1_000));
}

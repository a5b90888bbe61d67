//! Controllers that change their minds.

use super::bench::{STEP, bench};
use fleet::moment::Span;

/// The node of a machine that works cannot be reached, nobody can tell what runs there, and its controller
/// says once that it is off. It is taken for one that sleeps and is woken, which it does not notice; but
/// nobody may believe afterwards that a machine of which nothing was heard since it “woke” carries nothing.
#[tokio::test]
async fn a_controller_that_says_off_once_does_not_make_work_forgotten() {
    let mut bench = bench(3).await;
    bench.ask("a", 4, Some("m0"));
    bench.ask("b", 3, Some("m1"));
    bench.ask("c", 3, Some("m2"));
    bench.run(Span::minutes(2)).await;
    bench.cut("m1", true).await;
    bench.with(|world| {
        // Whoever schedules has lost sight of the node and of what runs there; other work waits.
        let demand = world.demand.as_mut().unwrap();
        demand.workloads.retain(|one| one.name != "b");
        world.cannot_tell = true;
        world.machines.get_mut("m1").unwrap().says = Some(false);
    });
    bench.ask("d", 3, None);
    bench.run(STEP).await;
    bench.with(|world| world.machines.get_mut("m1").unwrap().says = None);
    bench.run(Span::hours(1)).await;
    assert!(
        !bench.sent("m1").iter().any(|one| one != "On"),
        "{:?}",
        bench.sent("m1")
    );
    assert!(bench.with(|world| world.violations.is_empty()));
    // It is back, with its work.
    bench.with(|world| world.cannot_tell = false);
    bench.cut("m1", false).await;
    bench.ask("b", 3, Some("m1"));
    bench.run(Span::minutes(1)).await;
    assert_eq!(bench.reason("m1"), "BlockedByOnCompletionPod");
}

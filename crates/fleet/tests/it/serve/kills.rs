//! Killed at any moment: the future of a tick is dropped at a random place where it waits, and a new
//! process goes on from what is in the store.

use super::bench::{Bench, STEP, bench};
use fleet::{moment::Span, power::transition::Patience};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// A future that is dropped after it was woken so often.
struct Killed<F> {
    future: Pin<Box<F>>,
    left: u32,
}

impl<F: Future> Future for Killed<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.future.as_mut().poll(context).map(Some)
    }
}

/// Random enough to choose moments with (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % u64::from(bound)) as u32
    }
}

fn random() -> (Random, String) {
    let seed = std::env::var("ATOLL_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64
    });
    (Random(seed), format!("ATOLL_TEST_SEED={seed}"))
}

/// A tick during which the process may be killed; then another takes its place. Returns whether it was.
async fn tick(bench: &mut Bench, left: u32) -> bool {
    let now = bench.now();
    let tick = Killed {
        future: Box::pin(bench.fleet.tick(now)),
        left,
    };
    let ended = tick.await;
    if let Some(result) = ended {
        result.unwrap();
        return false;
    }
    // What was on its way to the controller arrives, or not.
    bench.fleet = bench.another();
    let now = bench.now();
    while !bench.fleet.try_lead(now).await.unwrap() {
        bench.leases.advance(Duration::from_secs(16));
        tokio::task::yield_now().await;
    }
    true
}

/// How many kills the test does in all.
fn kills() -> u32 {
    let given = std::env::var("ATOLL_TEST_KILLS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(150)
}

#[tokio::test]
async fn killed_at_any_moment_nothing_is_switched_twice_or_forgotten() {
    let (mut random, seed) = random();
    println!("{seed}");
    let mut killed = 0;
    let mut bench = bench(3).await;
    bench.ask("a", 4, Some("m0"));
    while killed < kills() {
        // Demand goes, and comes back; each time every machine must get there.
        for wanted in [false, true] {
            match wanted {
                false => ["b", "c"].into_iter().for_each(|name| bench.end(name)),
                true => ["b", "c"]
                    .into_iter()
                    .for_each(|name| bench.ask(name, 3, None)),
            }
            let start = bench.now();
            let all = |bench: &Bench| {
                bench.with(|world| {
                    ["m1", "m2"]
                        .iter()
                        .all(|name| world.machines[*name].up == wanted)
                })
            };
            while !all(&bench) {
                let waited = bench.now().since(start);
                assert!(waited < Span::hours(2), "{seed}: {wanted} after {waited}");
                bench.pass(STEP).await;
                let (left, calm) = (random.below(90), random.below(3) == 0);
                let left = if calm { u32::MAX } else { left };
                killed += u32::from(tick(&mut bench, left).await);
            }
        }
    }
    let retry = Patience::default().retry;
    bench.with(|world| {
        assert!(
            world.violations.is_empty(),
            "{seed}: {:?}",
            world.violations
        );
        for (name, machine) in &world.machines {
            for pair in machine.sent.windows(2) {
                let same = pair[0].1 == pair[1].1;
                let apart = pair[1].0.since(pair[0].0);
                assert!(!same || apart >= retry, "{seed}: {name} {:?}", machine.sent);
            }
        }
    });
    // Those that carry work are on, and what was closed on the way is open.
    bench.run(Span::minutes(2)).await;
    assert!(bench.with(|world| world.closed.is_empty()), "{seed}");
}

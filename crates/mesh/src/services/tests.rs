//! Orders for any endpoints, and evidence over time.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn well(now: Instant, ms: u64) -> Evidence {
    let mut evidence = Evidence::default();
    evidence.succeeded(now, Some(Duration::from_millis(ms)));
    evidence
}

fn ill(now: Instant, ms: u64) -> Evidence {
    let mut evidence = well(now, ms);
    evidence.failed(now, Failure::Closed);
    evidence.failed(now, Failure::Closed);
    assert_eq!(evidence.state(now), State::Ejected);
    evidence
}

fn candidates(all: &[Evidence]) -> Vec<Candidate<'_>> {
    let candidate = |evidence| Candidate {
        here: false,
        ready: true,
        evidence,
    };
    all.iter().map(candidate).collect()
}

/// How often each comes first.
fn firsts(all: &[Candidate<'_>], now: Instant) -> Vec<usize> {
    let mut counts = vec![0; all.len()];
    for random in 0..1000 {
        counts[order(all, now, random * 7919).choices[0].at] += 1;
    }
    counts
}

#[test]
fn the_nearest_go_first_and_share() {
    let now = Instant::now();
    let all = [well(now, 100), well(now, 1), well(now, 10), well(now, 2)];
    let mut all = candidates(&all);
    let counts = firsts(&all, now);
    assert_eq!((counts[0], counts[2]), (0, 0));
    assert!(counts[1] > 400 && counts[3] > 400, "{counts:?}");
    let order = order(&all, now, 5);
    let classes: Vec<_> = order.choices.iter().map(|choice| choice.class).collect();
    assert_eq!(
        classes,
        [Class::Site, Class::Site, Class::Region, Class::Far]
    );
    assert_eq!(order.choices[0].reason, Reason::Nearest);
    assert_eq!(order.choices[3].reason, Reason::Farther);
    all[0].here = true;
    assert_eq!(firsts(&all, now)[0], 1000);
}

#[test]
fn when_too_few_of_the_nearest_are_well_the_next_take_a_part() {
    let now = Instant::now();
    let near = |well_ones: usize| -> Vec<_> {
        let near = (0..10).map(|at| {
            if at < well_ones {
                well(now, 1)
            } else {
                ill(now, 1)
            }
        });
        near.chain([well(now, 10), well(now, 10), well(now, 10), well(now, 10)])
            .collect()
    };
    for (well_ones, least, most) in [(10, 1000, 1000), (8, 1000, 1000), (5, 640, 760)] {
        let all = near(well_ones);
        let counts = firsts(&candidates(&all), now);
        let nearest: usize = counts[..well_ones].iter().sum();
        assert!((least..=most).contains(&nearest), "{well_ones}: {nearest}");
        assert_eq!(counts[well_ones..10].iter().sum::<usize>(), 0);
    }
}

#[test]
fn when_most_look_ill_all_are_used() {
    let now = Instant::now();
    let all = [ill(now, 1), ill(now, 1), well(now, 1)];
    let panic = order(&candidates(&all), now, 1);
    assert!(panic.panic);
    assert!(
        panic
            .choices
            .iter()
            .all(|choice| choice.reason == Reason::Panic)
    );
    let counts = firsts(&candidates(&all), now);
    assert!(counts.iter().all(|count| *count > 250), "{counts:?}");
    // Half of them are not most.
    let half = order(&candidates(&all[1..]), now, 1);
    assert!(!half.panic);
    assert_eq!(half.choices[0].at, 1);
    assert_eq!(half.choices[1].reason, Reason::Ejected);
    // One alone is always tried.
    assert!(order(&candidates(&all[..1]), now, 1).panic);
}

#[test]
fn who_is_not_ready_gets_nothing_unless_nobody_is() {
    let now = Instant::now();
    let all = [well(now, 1), ill(now, 50)];
    let mut all = candidates(&all);
    all[0].ready = false;
    // What the node says of itself stands, even if the other looks ill.
    let one = order(&all, now, 3);
    assert_eq!(one.choices.len(), 1);
    assert_eq!((one.choices[0].at, one.panic), (1, true));
    assert_eq!(one.left_out[0].reason, Reason::NotReady);
    all[1].ready = false;
    let none = order(&all, now, 3);
    assert_eq!(none.choices.len(), 2);
    assert!(
        none.choices
            .iter()
            .all(|choice| choice.reason == Reason::NoneReady)
    );
}

#[test]
fn who_fails_is_put_aside_for_longer_each_time_and_comes_back_by_a_trial() {
    let start = Instant::now();
    let mut evidence = well(start, 1);
    evidence.failed(start, Failure::Silent);
    assert_eq!(evidence.state(start), State::Suspect, "once is chance");
    let mut now = start;
    for seconds in [3, 6, 12, 24, 48, 60, 60] {
        evidence.failed(now, Failure::Silent);
        // More of the same says nothing new.
        evidence.failed(now + SECOND, Failure::Silent);
        assert_eq!(evidence.until(), Some(now + seconds * SECOND));
        assert_eq!(evidence.state(now + SECOND), State::Ejected);
        now += seconds * SECOND;
        assert_eq!(evidence.state(now), State::Trial);
    }
    evidence.succeeded(now, None);
    assert_eq!((evidence.state(now), evidence.until()), (State::Well, None));
    // Soon afterwards it is not trusted as much as one that was well for long.
    evidence.failed(now + SECOND, Failure::Closed);
    evidence.failed(now + SECOND, Failure::Closed);
    assert_eq!(evidence.until(), Some(now + 61 * SECOND));
    now += 1000 * SECOND;
    evidence.succeeded(now, None);
    evidence.failed(now, Failure::Closed);
    evidence.failed(now, Failure::Closed);
    assert_eq!(evidence.until(), Some(now + 3 * SECOND));
}

#[test]
fn who_was_put_aside_long_enough_is_tried_now_and_then() {
    let now = Instant::now();
    let all = [ill(now, 1), well(now, 1), well(now, 1)];
    assert_eq!(firsts(&candidates(&all), now)[0], 0);
    let later = now + 3 * SECOND;
    let count = firsts(&candidates(&all), later)[0];
    assert!((60..220).contains(&count), "{count}");
}

#[test]
fn who_was_slow_goes_behind_those_of_its_class() {
    let now = Instant::now();
    let mut all = [well(now, 1), well(now, 1), well(now, 10)];
    all[0].overtaken();
    for random in 0..100 {
        let order = order(&candidates(&all), now, random);
        let places: Vec<_> = order.choices.iter().map(|choice| choice.at).collect();
        assert_eq!(places, [1, 0, 2]);
        assert_eq!(order.choices[1].reason, Reason::Suspect);
    }
}

/// An endpoint that any things happened to: readiness, distance, and what was seen at which second.
fn endpoint() -> impl Strategy<Value = (bool, Vec<(u64, u64)>)> {
    let events = proptest::collection::vec((0..200_u64, 0..4_u64), 0..12);
    (proptest::bool::weighted(0.8), events)
}

proptest! {
    #[test]
    fn each_is_tried_once_and_at_most_half_are_put_aside(
        endpoints in proptest::collection::vec(endpoint(), 0..12),
        here in 0..20_usize,
        at in 0..300_u64,
        random: u64,
    ) {
        let start = Instant::now();
        let now = start + Duration::from_secs(at);
        let evidence: Vec<_> = endpoints.iter().map(|(_, events)| {
            let mut events = events.clone();
            events.sort_unstable();
            let mut evidence = Evidence::default();
            for (second, what) in events {
                let then = start + Duration::from_secs(second);
                match what {
                    0 => evidence.succeeded(then, Some(Duration::from_millis(second))),
                    1 => evidence.overtaken(),
                    _ => evidence.failed(then, Failure::Silent),
                }
            }
            evidence
        }).collect();
        let all: Vec<_> = endpoints.iter().zip(&evidence).enumerate()
            .map(|(number, ((ready, _), evidence))| Candidate { here: number == here, ready: *ready, evidence })
            .collect();
        let order = order(&all, now, random);
        let mut seen: Vec<_> = order.choices.iter().chain(&order.left_out).map(|choice| choice.at).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..all.len()).collect::<Vec<_>>(), "each once");
        let any_ready = all.iter().any(|one| one.ready);
        for choice in &order.choices {
            prop_assert!(!any_ready || all[choice.at].ready, "who is not ready is not tried");
            prop_assert_eq!(choice.class, all[choice.at].class());
        }
        let out = |choice: &Choice| all[choice.at].evidence.state(now).is_out();
        let aside = order.choices.iter().filter(|choice| out(choice)).count();
        if order.panic {
            prop_assert!(2 * aside > order.choices.len());
        } else {
            prop_assert!(2 * aside <= order.choices.len(), "at most half");
            // But for one trial, nobody who is put aside goes before one who is not.
            let rest = order.choices.iter().skip(usize::from(order.choices.first().is_some_and(out)));
            prop_assert!(rest.map(out).is_sorted());
            if !order.choices.is_empty() && out(&order.choices[0]) && aside < order.choices.len() {
                prop_assert_eq!(all[order.choices[0].at].evidence.state(now), State::Trial);
            }
        }
    }

    #[test]
    fn evidence_has_an_end(events in proptest::collection::vec((0..100_u64, any::<bool>()), 0..60)) {
        let mut now = Instant::now();
        let mut evidence = Evidence::default();
        for (seconds, good) in events {
            now += Duration::from_secs(seconds);
            if good {
                evidence.succeeded(now, None);
                prop_assert_eq!(evidence.state(now), State::Well);
            } else {
                evidence.failed(now, Failure::Unreachable);
                prop_assert_ne!(evidence.state(now), State::Well);
            }
            prop_assert!(evidence.until().is_none_or(|until| until <= now + Duration::from_secs(60)));
        }
        // However bad it was, it gets its trial within a minute.
        prop_assert_ne!(evidence.state(now + Duration::from_secs(60)), State::Ejected);
    }
}

//! Simulated weeks: what ours needs beside an oracle that knows the future, and what that costs
//! those who wait.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use fleet::{
    moment::{Moment, Span},
    policy::{Kind, Policy},
    simulate::{
        Comparison, Options, Shape, compare, generate, knowing_arrivals, plot, uniform_fleet,
    },
};

fn week(shape: Shape, kinds: &[Kind]) -> Comparison {
    let inventory = uniform_fleet(60);
    let options = Options {
        start: Moment(4 * 86_400),
        ..Options::default()
    };
    let trace = generate(shape, &inventory, options.start, options.length, 1);
    let policies: Vec<Policy> = kinds.iter().copied().map(Policy::of).collect();
    compare(&inventory, &trace, &policies, options)
}

/// Within 5 per cent of the oracle's energy, and nobody waits longer than one boot. The oracle lets
/// nobody wait.
fn check(shape: Shape) {
    let comparison = week(shape, &[Kind::Atoll]);
    let (ours, oracle) = (&comparison.rows[0], &comparison.rows[1]);
    assert_eq!(oracle.longest_wait, Span::ZERO);
    let share = comparison.of_oracle(ours);
    assert!(share <= 1.05, "{shape:?}: {share}");
    assert!(oracle.energy_kwh >= comparison.bound_kwh);
    // What a step hides of the end of a boot is added: the clock moves by whole minutes.
    let boot = ours.longest_boot.0 + 60;
    assert!(ours.longest_wait.0 <= boot, "{shape:?}: {ours:?}");
    assert_eq!(ours.work_lost, 0);
}

#[test]
fn a_week_with_days_and_nights() {
    check(Shape::Diurnal);
}

#[test]
fn a_week_of_bursts() {
    check(Shape::Bursty);
}

/// Long jobs that cannot be moved, and of which nobody knows when they end: the oracle knows, and
/// puts together what ends together. Their lengths are without memory, so how long one has run says
/// nothing of how long it still will, and nobody can learn it. Who knows all but that is the measure.
#[test]
fn a_week_of_batches() {
    let comparison = week(Shape::Batch, &[Kind::Atoll, Kind::AlwaysOn]);
    let inventory = uniform_fleet(60);
    let options = Options {
        start: Moment(4 * 86_400),
        ..Options::default()
    };
    let trace = generate(Shape::Batch, &inventory, options.start, options.length, 1);
    let tariff = Policy::default().tariff;
    let knowing = knowing_arrivals(&inventory, &trace, &tariff, options);
    let [ours, always, _] = comparison.rows.as_slice() else {
        panic!("three rows");
    };
    let (share, beside) = (
        comparison.of_oracle(ours),
        ours.energy_kwh / knowing.energy_kwh,
    );
    assert!(share <= 1.13, "{share} of the oracle's");
    assert!(
        beside <= 1.03,
        "{beside} of what all but the ends makes known"
    );
    assert!(ours.energy_kwh < always.energy_kwh / 2.0);
    assert!(ours.longest_wait.0 <= ours.longest_boot.0 + 60);
}

#[test]
fn every_policy_is_simulated_and_drawn() {
    let inventory = uniform_fleet(20);
    let options = Options {
        start: Moment(4 * 86_400),
        length: Span::hours(24),
        ..Options::default()
    };
    let trace = generate(Shape::Diurnal, &inventory, options.start, options.length, 7);
    let policies: Vec<Policy> = Kind::ALL.into_iter().map(Policy::of).collect();
    let comparison = compare(&inventory, &trace, &policies, options);
    assert_eq!(comparison.rows.len(), Kind::ALL.len() + 1);
    let always = comparison.row("always-on").unwrap();
    for row in &comparison.rows {
        assert_eq!(row.work_lost, 0, "{}", row.policy);
        assert!(row.energy_kwh >= comparison.bound_kwh, "{}", row.policy);
        assert!(
            row.energy_kwh <= always.energy_kwh * 1.001,
            "{}",
            row.policy
        );
        assert_eq!(row.requests, trace.requests().len() as u64);
    }
    let svg = plot(&comparison);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("karpenter") && !svg.contains("NaN"));
    // The same once more is the same.
    assert_eq!(compare(&inventory, &trace, &policies, options), comparison);
}

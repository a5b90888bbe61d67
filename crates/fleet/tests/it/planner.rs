//! What the planner does with fleets: who wakes, who sleeps, and that nothing is lost meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use crate::support;

use fleet::{
    amount::Amount,
    inventory::{MachineIndex, Moving, Power, Role, Set, Spread},
    moment::{Moment, Span},
    planner::{Action, gap},
    policy::Policy,
};
use support::{Fixture, Growing, GrowingAfter};

fn on(fixture: &Fixture) -> Vec<&str> {
    let machines = fixture.inventory.machines().iter();
    let on = machines.filter(|one| one.power == Power::On);
    on.map(|one| one.name.as_str()).collect()
}

/// The scenario with which the Cluster Autoscaler measures how well it scales down: machines of 1,
/// 4 and 9 processors, six workloads of one. It ends with three machines of 11 processors.
#[test]
fn one_machine_of_nine_processors_remains_of_six() {
    let mut fixture = Fixture::new(&[1, 1, 4, 4, 4, 9]);
    for at in 0..6 {
        fixture.workload(1000, Some(at), Moving::Free);
    }
    fixture.run(Span::hours(2));
    assert_eq!(on(&fixture), ["m5"]);
    assert_eq!(fixture.inventory.carried(MachineIndex(5)).len(), 6);
}

#[test]
fn work_that_waits_wakes_the_cheapest_machine_that_carries_it() {
    let mut fixture = Fixture::new(&[1, 1, 4, 4, 4, 9]);
    for at in 0..6 {
        fixture.machine(at).power = Power::Off;
        fixture.workload(1000, None, Moving::Free);
    }
    let plan = fixture.plan();
    assert_eq!(plan.with(Action::Wake), [MachineIndex(5)]);
    assert_eq!(plan.promises.len(), 6);
}

#[test]
fn work_goes_to_machines_that_are_being_emptied_before_others_wake() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.machine(0).draining = true;
    fixture.machine(1).power = Power::Off;
    fixture.workload(1000, None, Moving::Free);
    let plan = fixture.plan();
    assert_eq!(plan.with(Action::Undrain), [MachineIndex(0)]);
    assert_eq!(plan.placements.len(), 1);
    assert!(plan.with(Action::Wake).is_empty());
}

#[test]
fn a_machine_that_is_on_its_way_is_not_asked_for_twice() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.machine(0).power = Power::Waking;
    fixture.machine(0).since = fixture.now;
    fixture.machine(1).power = Power::Off;
    fixture.workload(1000, None, Moving::Free);
    assert!(fixture.plan().with(Action::Wake).is_empty());
    // When it is far too late, somebody else is asked.
    fixture.now = fixture.now.plus(Span(900));
    assert_eq!(fixture.plan().with(Action::Wake), [MachineIndex(1)]);
}

#[test]
fn machines_that_often_come_late_are_not_relied_on_alone() {
    let mut fixture = Fixture::new(&[4; 12]);
    for at in 0..12 {
        let one = fixture.machine(at);
        one.power = Power::Off;
        for span in [300, 310, 320, 900].repeat(4) {
            one.boot.learn(Span(span));
        }
        for _ in 0..8 {
            one.boot.learn_failure();
        }
    }
    for _ in 0..4 {
        fixture.workload(3500, None, Moving::Free);
    }
    let woken = fixture.plan().with(Action::Wake).len();
    assert!((5..=6).contains(&woken), "{woken}");
    fixture.policy.late_chance = 1.0;
    fixture.memory = Default::default();
    assert_eq!(fixture.plan().with(Action::Wake).len(), 4);
}

#[test]
fn room_is_held_ready_for_demand_that_is_expected() {
    let mut fixture = Fixture::new(&[4, 4, 4]);
    fixture.machine(2).power = Power::Off;
    fixture.workload(3000, Some(0), Moving::Free);
    fixture.forecast = Some(Box::new(Growing(Amount::new(6000, 0, 0, 0))));
    let plan = fixture.plan();
    assert_eq!(plan.with(Action::Wake), [MachineIndex(2)]);
    fixture.forecast = None;
    fixture.memory = Default::default();
    assert!(fixture.plan().with(Action::Wake).is_empty());
}

#[test]
fn a_machine_that_is_needed_again_soon_stays_on() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.workload(3500, Some(0), Moving::Never);
    fixture.forecast = Some(Box::new(GrowingAfter(
        Span::minutes(8),
        Amount::new(4000, 0, 0, 0),
    )));
    fixture.policy.debounce = Span::ZERO;
    assert!(fixture.plan().with(Action::PowerOff).is_empty());
    fixture.forecast = Some(Box::new(GrowingAfter(
        Span::hours(3),
        Amount::new(4000, 0, 0, 0),
    )));
    assert_eq!(fixture.plan().with(Action::PowerOff), [MachineIndex(1)]);
}

#[test]
fn the_ladder_goes_from_suspended_to_off() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.machine(1).watts.suspended = Some(9.0);
    fixture.workload(3500, Some(0), Moving::Never);
    fixture.policy.debounce = Span::ZERO;
    fixture.run(Span::minutes(5));
    assert_eq!(fixture.machine(1).power, Power::Suspended);
    fixture.run(Span::hours(8));
    assert_eq!(fixture.machine(1).power, Power::Off);
}

#[test]
fn suspended_or_off_whichever_is_right_for_how_long_it_lasts() {
    for (asleep, needed_in, action) in [
        (9.0, Span::minutes(20), Action::Suspend),
        (9.0, Span::hours(1), Action::Suspend),
        (9.0, Span::hours(20), Action::PowerOff),
        // It draws much while it is suspended.
        (60.0, Span::hours(1), Action::PowerOff),
    ] {
        let mut fixture = Fixture::new(&[4, 4]);
        fixture.machine(1).watts.suspended = Some(asleep);
        fixture.workload(3500, Some(0), Moving::Never);
        fixture.policy.debounce = Span::ZERO;
        let growth = Amount::new(4000, 0, 0, 0);
        fixture.forecast = Some(Box::new(GrowingAfter(needed_in, growth)));
        let decision = fixture.decide(1);
        assert_eq!(decision.action, action, "{asleep} W, needed in {needed_in}");
    }
}

#[test]
fn dear_hours_send_machines_to_sleep_sooner() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.workload(3500, Some(0), Moving::Never);
    let mut prices = vec![0.1; 24];
    prices[8..20].fill(0.5);
    fixture.policy.tariff.price_per_kwh = fleet::tariff::Curve(prices);
    fixture.policy.tariff.objective = fleet::tariff::Objective::Cost;
    let mut idled = |hour: u64| {
        fixture.memory = Default::default();
        let start = Moment(1_036_800 + hour * 3600);
        fixture.now = start;
        while fixture.plan().with(Action::PowerOff).is_empty() {
            fixture.now = fixture.now.plus(Span(10));
        }
        fixture.now.since(start)
    };
    assert!(idled(10) < idled(2));
}

#[test]
fn rules_of_sets_survive_a_drain() {
    let mut fixture = Fixture::new(&[4, 4, 4, 4]);
    for (at, zone) in ["a", "b", "a", "b"].into_iter().enumerate() {
        let labels = &mut fixture.machine(at as u32).labels;
        labels.insert("zone".into(), zone.into());
    }
    let set = fixture.inventory.add_set(Set {
        apart: true,
        spread: Some(Spread {
            label: "zone".into(),
            skew: 1,
        }),
        disruptions: Some(1),
        ..Set::new("database")
    });
    for at in 0..2 {
        let index = fixture.workload(1000, Some(at), Moving::Free);
        fixture.inventory.workload_mut(index).unwrap().set = Some(set);
    }
    fixture.workload(500, Some(2), Moving::Free);
    fixture.workload(500, Some(3), Moving::Free);
    fixture.run(Span::hours(2));
    assert_eq!(on(&fixture).len(), 2, "{:?}", on(&fixture));
    let zones: Vec<&String> = fixture
        .inventory
        .workloads()
        .filter(|(_, one)| one.set.is_some())
        .map(|(_, one)| &fixture.inventory.machine(one.machine.unwrap()).labels["zone"])
        .collect();
    assert_ne!(zones[0], zones[1]);
}

#[test]
fn a_base_machine_is_filled_first_and_never_sleeps() {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.machine(1).role = Role::Base;
    fixture.workload(1000, Some(0), Moving::Free);
    fixture.run(Span::hours(2));
    assert_eq!(on(&fixture), ["m1"]);
    fixture.workload(1000, None, Moving::Free);
    let plan = fixture.plan();
    assert_eq!(plan.placements[0].machine, MachineIndex(1));
}

#[test]
fn a_plan_depends_on_nothing_but_its_arguments() {
    let mut fixture = Fixture::new(&[8; 40]);
    for at in 0..120 {
        fixture.workload(500 + 137 * (at % 11), Some(at as u32 % 40), Moving::Free);
    }
    let one = fleet::planner::plan(fixture.situation(), &fixture.memory);
    let two = fleet::planner::plan(fixture.situation(), &fixture.memory);
    assert_eq!(one, two);
}

#[test]
fn the_gap_to_the_bound_is_small_on_a_large_fleet() {
    let mut fixture = Fixture::new(&[16; 200]);
    fixture.policy = Policy {
        tries: 1000,
        max_power_offs: 1000,
        ..Policy::default()
    };
    let mut state = 7_u64;
    for at in 0..800 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let millis = 500 + (state >> 33) % 3000;
        fixture.workload(millis, Some(at % 200), Moving::Free);
    }
    let plan = fixture.run(Span::hours(3));
    let gap = gap(&fixture.inventory, &plan);
    assert!(
        gap.share() >= 0.0 && gap.share() <= 0.05,
        "{gap:?} {}",
        gap.share()
    );
}

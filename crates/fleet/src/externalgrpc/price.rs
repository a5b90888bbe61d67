//! What a machine or a pod costs, in what the operator's objective counts: kilowatt-hours, money or
//! grams of carbon dioxide.

use crate::{
    amount::Amount,
    inventory::Machine,
    moment::{Moment, Span},
    targets::Catalogue,
    tariff::{Objective, Tariff},
};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// How busy a machine is taken to be.
const USUAL_LOAD: f64 = 0.5;

/// What drawing `watts` for so long costs.
pub(super) fn cost(tariff: &Tariff, watts: f64, from: Moment, span: Span) -> f64 {
    let hour = |at: Moment| match tariff.objective {
        Objective::Energy => 1.0,
        Objective::Cost => tariff.price(at),
        Objective::Carbon => tariff.carbon(at),
    };
    // Whole days are alike, so that a long time takes no longer to add up.
    let day: f64 = (0..24).map(|at| hour(Moment(at * HOUR))).sum();
    let mut figure = (span.0 / DAY) as f64 * day;
    let (mut at, end) = (from, from.plus(Span(span.0 % DAY)));
    while at < end {
        let next = Moment((at.0 / HOUR).saturating_add(1).saturating_mul(HOUR)).min(end);
        figure += next.since(at).as_hours() * hour(at);
        at = next;
    }
    watts / 1000.0 * figure
}

/// What a machine draws more for being on, in watts, at a usual load.
pub(super) fn machine_watts(machine: &Machine) -> f64 {
    (machine.watts.loaded(USUAL_LOAD) - machine.watts.off).max(0.0)
}

/// What a pod draws on a machine that suits it perfectly: its share of the most frugal one, in
/// watts.
pub(super) fn pod_watts(catalogue: &Catalogue, request: &Amount) -> f64 {
    let machines = catalogue.machines().iter().map(|one| &one.machine);
    let shares = machines
        .filter(|one| request.fits(&one.capacity))
        .map(|one| {
            let share = request.share_of(&one.capacity);
            share * (one.watts.peak - one.watts.off).max(0.0)
        });
    shares.reduce(f64::min).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tariff::Curve;

    #[test]
    fn time_of_day_counts_and_eternity_is_added_up_at_once() {
        let mut hours = vec![0.30; 24];
        hours[..6].fill(0.10);
        let tariff = Tariff {
            price_per_kwh: Curve(hours),
            objective: Objective::Cost,
            ..Tariff::default()
        };
        let check = |from: u64, span: u64, expected: f64| {
            let found = cost(&tariff, 1000.0, Moment(from), Span(span));
            assert!(
                (found - expected).abs() < 1e-9 * expected.max(1.0),
                "{found} {expected}"
            );
        };
        check(5 * HOUR + HOUR / 2, HOUR, 0.05 + 0.15);
        check(0, DAY, 6.0);
        check(12 * HOUR, 3 * DAY + HOUR, 18.3);
        check(0, u64::MAX / DAY * DAY, (u64::MAX / DAY) as f64 * 6.0);
    }
}

//! What energy costs and emits over the day, and in which of them a plan counts.

use crate::moment::{Moment, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the plan makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Energy, in kilowatt-hours.
    #[default]
    Energy,
    /// Cost, by the price curve.
    Cost,
    /// Carbon, by the carbon curve.
    Carbon,
}

/// A figure for each hour of the day, in local time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Curve(pub Vec<f64>);

impl Curve {
    /// The same at all hours.
    pub fn flat(value: f64) -> Self {
        Self(vec![value])
    }

    /// The figure for an hour of the day; 0 for a curve without figures.
    pub fn at_hour(&self, hour: usize) -> f64 {
        match self.0.len() {
            0 => 0.0,
            count => self.0[hour * count / 24 % count],
        }
    }
}

/// Prices and carbon over the day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tariff {
    /// Price of a kilowatt-hour: one figure, or 24 for the hours of the day.
    pub price_per_kwh: Curve,
    /// Grams of CO₂ equivalent for a kilowatt-hour: one figure, or 24.
    pub carbon_grams_per_kwh: Curve,
    /// How far local time is ahead of UTC, in minutes.
    pub utc_offset_minutes: i32,
    /// What the plan makes small: `energy`, `cost` or `carbon`.
    pub objective: Objective,
}

impl Default for Tariff {
    fn default() -> Self {
        Self {
            price_per_kwh: Curve::flat(0.25),
            carbon_grams_per_kwh: Curve::flat(350.0),
            utc_offset_minutes: 0,
            objective: Objective::Energy,
        }
    }
}

impl Tariff {
    /// Seconds since local midnight on the first of January 1970.
    pub fn local(&self, now: Moment) -> u64 {
        let offset = i64::from(self.utc_offset_minutes) * 60;
        now.0.saturating_add_signed(offset)
    }

    fn hour(&self, now: Moment) -> usize {
        (self.local(now) / 3600 % 24) as usize
    }

    /// Price of a kilowatt-hour at this moment.
    pub fn price(&self, now: Moment) -> f64 {
        self.price_per_kwh.at_hour(self.hour(now))
    }

    /// Grams of CO₂ equivalent for a kilowatt-hour at this moment.
    pub fn carbon(&self, now: Moment) -> f64 {
        self.carbon_grams_per_kwh.at_hour(self.hour(now))
    }

    /// How much a watt-hour counts at this moment, relative to the mean over the day: 1 on
    /// average.
    pub fn weight(&self, now: Moment) -> f64 {
        let curve = match self.objective {
            Objective::Energy => return 1.0,
            Objective::Cost => &self.price_per_kwh,
            Objective::Carbon => &self.carbon_grams_per_kwh,
        };
        let mean = curve.0.iter().sum::<f64>() / curve.0.len().max(1) as f64;
        if mean > 0.0 {
            curve.at_hour(self.hour(now)) / mean
        } else {
            1.0
        }
    }

    /// What drawing `watts` for so long counts, in watt-hours weighted by the hours that they
    /// fall in.
    pub fn weigh(&self, watts: f64, from: Moment, span: Span) -> f64 {
        if self.objective == Objective::Energy {
            return watts * span.as_hours();
        }
        let (mut at, end) = (from, from.plus(span));
        let mut total = 0.0;
        while at < end {
            let next = Moment((at.0 / 3600 + 1) * 3600).min(end);
            total += watts * next.since(at).as_hours() * self.weight(at);
            at = next;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_night() -> Tariff {
        let mut hours = vec![0.30; 24];
        hours[..6].fill(0.10);
        Tariff {
            price_per_kwh: Curve(hours),
            objective: Objective::Cost,
            ..Tariff::default()
        }
    }

    #[test]
    fn cheap_hours_count_less() {
        let tariff = by_night();
        assert!((tariff.price(Moment(0)) - 0.10).abs() < 1e-9);
        assert!((tariff.price(Moment(7 * 3600)) - 0.30).abs() < 1e-9);
        assert!(tariff.weight(Moment(0)) < 0.5 && tariff.weight(Moment(7 * 3600)) > 1.0);
        let day = tariff.weigh(100.0, Moment(1800), Span::hours(24));
        assert!((day - 2400.0).abs() < 1e-6, "{day}");
    }

    #[test]
    fn hours_are_local() {
        let tariff = Tariff {
            utc_offset_minutes: 120,
            ..by_night()
        };
        assert!((tariff.price(Moment(5 * 3600)) - 0.30).abs() < 1e-9);
    }
}

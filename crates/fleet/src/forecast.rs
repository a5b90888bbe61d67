//! What demand is expected to do: the same as at this time of the day and the week before, with
//! how far that was off. Learnt as time goes on, and not used where it does worse than nothing.

use crate::{
    amount::{Amount, Resource},
    inventory::{GroupIndex, Inventory},
    moment::{Moment, Span},
};
use serde::{Deserialize, Serialize};

/// What a planner may ask of the future.
pub trait Outlook: Send + Sync {
    /// By how much demand in a group will exceed what it is `now`, at the end of `ahead`: the
    /// amount that it stays below with the chance `quantile`. Nothing if it falls.
    fn growth(&self, group: GroupIndex, now: Moment, ahead: Span, quantile: f64) -> Amount;

    /// Whether it has learnt anything that is better than to guess that all stays as it is.
    fn foresees(&self, _group: GroupIndex, _ahead: Span) -> bool {
        true
    }
}

/// Length of the steps in which a season is remembered.
const SLOT: u64 = 600;
const SLOTS_IN_DAY: usize = 144;
const SLOTS_IN_WEEK: usize = 7 * SLOTS_IN_DAY;

/// How far ahead errors are learnt; what is asked for is answered by the nearest.
const AHEAD: [u64; 7] = [300, 600, 1800, 3600, 10_800, 21_600, 43_200];

/// How many errors are remembered for each of them.
const ERRORS: usize = 288;

/// How much the newest figure counts in a season.
const SEASON_GAIN: f64 = 0.4;

/// How slowly the judgement of a forecast changes.
const JUDGEMENT_GAIN: f64 = 0.01;

/// Demand of one resource in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Series {
    day: Vec<Option<f64>>,
    week: Vec<Option<f64>>,
    /// The last figure, and the sum and count of those of the running slot.
    last: Option<(Moment, f64)>,
    slot: u64,
    sum: f64,
    count: u32,
    /// Demand at the end of each slot, the newest last, as far back as the longest look ahead.
    past: Vec<Predicted>,
    ahead: Vec<Errors>,
}

/// Demand at the end of a slot, and what was then said about later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Predicted {
    at: Moment,
    demand: f64,
    /// By how much it was expected to grow, for each look ahead.
    growth: [f64; AHEAD.len()],
}

/// How far forecasts were off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Errors {
    seasonal: Sample,
    none: Sample,
    /// Mean loss of either, the recent ones counting most.
    seasonal_loss: f64,
    none_loss: f64,
    judged: u32,
}

/// The most recent figures, also in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Sample {
    recent: Vec<f64>,
    sorted: Vec<f64>,
    next: usize,
}

impl Sample {
    fn add(&mut self, value: f64) {
        if self.recent.len() < ERRORS {
            self.recent.push(value);
        } else {
            let old = std::mem::replace(&mut self.recent[self.next], value);
            let at = self.sorted.partition_point(|one| *one < old);
            if at < self.sorted.len() {
                self.sorted.remove(at);
            }
            self.next = (self.next + 1) % ERRORS;
        }
        let at = self.sorted.partition_point(|one| *one < value);
        self.sorted.insert(at, value);
    }

    fn quantile(&self, quantile: f64) -> Option<f64> {
        let last = self.sorted.len().checked_sub(1)?;
        let at = (quantile.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.sorted.get(at).copied()
    }
}

impl Errors {
    /// The forecast counts once it was judged often enough and did better than none.
    fn trusts_season(&self) -> bool {
        self.judged >= 48 && self.seasonal_loss < self.none_loss
    }

    fn judge(&mut self, predicted: f64, actual: f64) {
        // Both are judged as they would be used: with their own errors on top.
        let loss = |sample: &Sample, guess: f64| {
            let bound = guess + sample.quantile(0.9).unwrap_or(0.0);
            let off = actual - bound;
            if off > 0.0 { 0.9 * off } else { -0.1 * off }
        };
        let losses = (loss(&self.seasonal, predicted), loss(&self.none, 0.0));
        self.judged = self.judged.saturating_add(1);
        let gain = JUDGEMENT_GAIN.max(1.0 / f64::from(self.judged));
        self.seasonal_loss += (losses.0 - self.seasonal_loss) * gain;
        self.none_loss += (losses.1 - self.none_loss) * gain;
        self.seasonal.add(actual - predicted);
        self.none.add(actual);
    }
}

impl Default for Series {
    fn default() -> Self {
        Self {
            day: vec![None; SLOTS_IN_DAY],
            week: vec![None; SLOTS_IN_WEEK],
            last: None,
            slot: 0,
            sum: 0.0,
            count: 0,
            past: Vec::new(),
            ahead: vec![Errors::default(); AHEAD.len()],
        }
    }
}

impl Series {
    fn observe(&mut self, now: Moment, demand: f64) {
        let slot = now.0 / SLOT;
        if self.last.is_some() && slot != self.slot {
            self.close_slot(now, demand);
        }
        if slot != self.slot {
            (self.sum, self.count) = (0.0, 0);
        }
        self.slot = slot;
        self.sum += demand;
        self.count += 1;
        self.last = Some((now, demand));
    }

    fn close_slot(&mut self, now: Moment, demand: f64) {
        if self.count > 0 {
            let mean = self.sum / f64::from(self.count);
            let (day, week) = places(self.slot * SLOT);
            for place in [&mut self.day[day], &mut self.week[week]] {
                *place = Some(match *place {
                    Some(old) => old + (mean - old) * SEASON_GAIN,
                    None => mean,
                });
            }
        }
        for (at, ahead) in AHEAD.iter().enumerate() {
            let then = now.minus(Span(*ahead));
            // The slot that began nearest to so long ago.
            let found = self
                .past
                .iter()
                .rev()
                .find(|one| one.at <= then.plus(Span(SLOT / 2)));
            if let Some(one) = found
                && now.since(one.at).0 <= ahead + SLOT
            {
                let (growth, actual) = (one.growth[at], demand - one.demand);
                self.ahead[at].judge(growth, actual);
            }
        }
        let mut growth = [0.0; AHEAD.len()];
        for (at, ahead) in AHEAD.iter().enumerate() {
            growth[at] = self.seasonal(now, Span(*ahead)).unwrap_or(0.0);
        }
        let keep = (AHEAD[AHEAD.len() - 1] / SLOT + 2) as usize;
        if self.past.len() >= keep {
            self.past.remove(0);
        }
        self.past.push(Predicted {
            at: now,
            demand,
            growth,
        });
    }

    /// What the season has at a moment: of the same time a week ago, or on other days.
    fn level(&self, at: u64) -> Option<f64> {
        let slot = |at: u64| {
            let (day, week) = places(at);
            match (self.week[week], self.day[day]) {
                // The day learns faster, the week knows Sundays.
                (Some(week), Some(day)) => Some(0.7 * week + 0.3 * day),
                (week, day) => week.or(day),
            }
        };
        // Between the middles of two slots.
        let from = at.saturating_sub(SLOT / 2);
        let share = (from % SLOT) as f64 / SLOT as f64;
        match (slot(from), slot(from + SLOT)) {
            (Some(one), Some(two)) => Some(one + (two - one) * share),
            (one, two) => one.or(two),
        }
    }

    /// By how much the season says that demand grows.
    fn seasonal(&self, now: Moment, ahead: Span) -> Option<f64> {
        let (_, demand) = self.last?;
        let (here, there) = (self.level(now.0)?, self.level(now.plus(ahead).0)?);
        // Seasons grow in proportion, within reason.
        let scale = if here > 0.0 { demand / here } else { 1.0 };
        Some((there - here) * scale.clamp(0.5, 2.0))
    }

    fn growth(&self, now: Moment, ahead: Span, quantile: f64) -> f64 {
        let nearest = |(_, one): &(usize, &u64)| ahead.0.abs_diff(**one);
        let Some((at, _)) = AHEAD.iter().enumerate().min_by_key(nearest) else {
            return 0.0;
        };
        let errors = &self.ahead[at];
        let (guess, sample) = if errors.trusts_season() {
            (self.seasonal(now, ahead).unwrap_or(0.0), &errors.seasonal)
        } else {
            (0.0, &errors.none)
        };
        (guess + sample.quantile(quantile).unwrap_or(0.0)).max(0.0)
    }
}

/// A moment's place in the day and in the week.
fn places(at: u64) -> (usize, usize) {
    let slot = (at / SLOT) as usize;
    (slot % SLOTS_IN_DAY, slot % SLOTS_IN_WEEK)
}

/// A forecast for every group and resource, learnt from what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    groups: Vec<[Series; 2]>,
}

/// What was learnt of one group, to be kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupForecast([Series; 2]);

/// Resources that are forecast; the others follow.
const FORECAST: [Resource; 2] = [Resource::Cpu, Resource::Memory];

impl Forecast {
    /// A forecast from what was learnt of each group, in the order of their indices.
    pub fn of(groups: Vec<GroupForecast>) -> Self {
        Self {
            groups: groups.into_iter().map(|one| one.0).collect(),
        }
    }

    /// What was learnt of a group; nothing before its first demand.
    pub fn group(&self, group: GroupIndex) -> GroupForecast {
        let series = self.groups.get(group.at());
        GroupForecast(series.cloned().unwrap_or_default())
    }

    /// Learns what is asked for at this moment. Moments must not go back.
    pub fn observe(&mut self, inventory: &Inventory, now: Moment) {
        let mut demand = vec![Amount::ZERO; inventory.groups().len()];
        for (index, machine) in inventory.enumerate() {
            let group = &mut demand[machine.group.at()];
            *group = group.plus(inventory.used(index));
        }
        self.observe_demand(&demand, now);
    }

    /// Learns demand that is known group by group.
    pub fn observe_demand(&mut self, demand: &[Amount], now: Moment) {
        self.groups
            .resize_with(demand.len().max(self.groups.len()), Default::default);
        for (series, amount) in self.groups.iter_mut().zip(demand) {
            for (one, resource) in series.iter_mut().zip(FORECAST) {
                one.observe(now, amount.of(resource) as f64);
            }
        }
    }

    /// Whether a group's forecast has proven better than none, for so long ahead.
    pub fn is_trusted(&self, group: GroupIndex, ahead: Span) -> bool {
        let nearest = AHEAD.iter().enumerate();
        let nearest = nearest.min_by_key(|(_, one)| ahead.0.abs_diff(**one));
        let at = nearest.map_or(0, |(at, _)| at);
        let series = self.groups.get(group.at());
        series.is_some_and(|series| series[0].ahead[at].trusts_season())
    }
}

impl Outlook for Forecast {
    fn foresees(&self, group: GroupIndex, ahead: Span) -> bool {
        self.is_trusted(group, ahead)
    }

    fn growth(&self, group: GroupIndex, now: Moment, ahead: Span, quantile: f64) -> Amount {
        let Some(series) = self.groups.get(group.at()) else {
            return Amount::ZERO;
        };
        let mut amount = Amount::ZERO;
        for (one, resource) in series.iter().zip(FORECAST) {
            let growth = one.growth(now, ahead, quantile);
            amount = amount.with(resource, growth as u64);
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupIndex = GroupIndex(0);

    /// Two weeks of minutes of a demand.
    fn learnt(demand: impl Fn(u64) -> f64) -> (Forecast, Moment) {
        let mut forecast = Forecast::default();
        let mut now = Moment(0);
        for minute in 0..14 * 24 * 60 {
            now = Moment(minute * 60);
            let amount = Amount::new(demand(now.0).max(0.0) as u64, 0, 0, 0);
            forecast.observe_demand(&[amount], now);
        }
        (forecast, now)
    }

    fn day(at: u64) -> f64 {
        let angle = at as f64 / 86_400.0 * std::f64::consts::TAU;
        100_000.0 - 80_000.0 * angle.cos()
    }

    #[test]
    fn a_day_is_learnt() {
        let (forecast, now) = learnt(day);
        assert!(forecast.is_trusted(GROUP, Span::hours(3)));
        // Midnight: six hours later it is 80,000 more.
        let growth = forecast.growth(GROUP, now, Span::hours(6), 0.5).cpu_millis as f64;
        assert!((growth - 80_000.0).abs() < 4_000.0, "{growth}");
        let noon = Moment(now.0 - 43_200);
        let falling = forecast.growth(GROUP, noon, Span::hours(6), 0.5);
        assert!(falling.is_zero(), "{falling:?}");
    }

    #[test]
    fn a_higher_quantile_asks_for_more() {
        let noisy = |at: u64| day(at) + ((at / 60 * 7919) % 1000) as f64 * 20.0;
        let (forecast, now) = learnt(noisy);
        let at = |quantile| forecast.growth(GROUP, now, Span(600), quantile).cpu_millis;
        assert!(at(0.5) < at(0.9) && at(0.9) < at(0.99));
    }

    #[test]
    fn what_has_no_season_is_not_forecast() {
        // A walk that never repeats: yesterday says nothing about today.
        let mut state = 12_345_u64;
        let mut level = 500_000.0;
        let steps: Vec<f64> = (0..14 * 24 * 60)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                level += ((state >> 33) % 2001) as f64 - 1000.0;
                level
            })
            .collect();
        let (forecast, _) = learnt(|at| steps[(at / 60) as usize]);
        assert!(!forecast.is_trusted(GROUP, Span(600)));
    }

    #[test]
    fn nothing_is_claimed_before_anything_was_seen() {
        let forecast = Forecast::default();
        assert!(forecast.growth(GROUP, Moment(0), Span(600), 0.9).is_zero());
    }
}

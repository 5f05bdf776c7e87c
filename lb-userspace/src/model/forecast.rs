//! How a drain goes on: from the flows that have left so far to those that will.
//!
//! The rate at which flows leave depends on their age: most are short, and one that is old will get older. So the rate
//! is taken for each octave of age alone: flows that left at that age, divided by the time that flows spent at it
//! (occurrence over exposure, the estimator of a hazard that is constant in each class). Where little was seen, the rate
//! of the next younger octave counts as [`WEIGHT`] flows seen; so the oldest flows leave as those did that were nearly
//! as old. Flows whose opening nobody saw are a class of their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ages::{Ages, octave_start};

/// Flows that the rate of the next younger octave counts for.
const WEIGHT: f64 = 2.0;

/// Longest time that a forecast looks ahead, milliseconds: that of the longest drain.
const HORIZON_MS: u64 = 7 * 24 * 3600 * 1000;

/// Share of the flows that is asked for.
const MOST: f64 = 0.9;

/// Time that flows have spent at each age while they were watched, in flow-milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exposure {
    /// By octave of age.
    known: Vec<u64>,
    /// Of flows whose age nobody knows.
    unknown: u64,
}

impl Exposure {
    /// Adds what another one has.
    pub fn merge(&mut self, other: &Self) {
        if other.known.len() > self.known.len() {
            self.known.resize(other.known.len(), 0);
        }
        for (sum, more) in self.known.iter_mut().zip(&other.known) {
            *sum = sum.saturating_add(*more);
        }
        self.unknown = self.unknown.saturating_add(other.unknown);
    }

    /// `live` flows of known age and `unknown` others were there for `time_ms`.
    pub fn add(&mut self, live: &Ages, unknown: u64, time_ms: u64) {
        for (octave, count) in live.octaves() {
            if octave >= self.known.len() {
                self.known.resize(octave + 1, 0);
            }
            let sum = &mut self.known[octave];
            *sum = sum.saturating_add(count.saturating_mul(time_ms));
        }
        self.unknown = self.unknown.saturating_add(unknown.saturating_mul(time_ms));
    }
}

/// A drain's flows as they are known now.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Flows it began with.
    pub at_start: u64,
    /// Flows left.
    pub left: u64,
    /// Ages of those of them that are known.
    pub live: &'a Ages,
    /// Ages of flows as they left, where they are known.
    pub gone: &'a Ages,
    /// What was watched so far.
    pub exposure: &'a Exposure,
}

/// What will become of a drain's flows, if they go on leaving as they did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Seconds until nine in ten of the flows at the start have left; 0 when they have, absent when that takes longer
    /// than any drain.
    pub most_gone_s: Option<f64>,
    /// Flows that will be left at the deadline.
    pub outlive: u64,
    /// Flows that have left so far: what this rests on.
    pub seen: u64,
}

/// Rates of leaving.
struct Rates {
    /// By octave of age, a millisecond; the last one goes for all that is older.
    known: Vec<f64>,
    /// Of flows of unknown age.
    unknown: f64,
}

impl Rates {
    fn learn(picture: &Picture) -> Option<Self> {
        let gone = picture.at_start.saturating_sub(picture.left);
        let known = picture.gone.count();
        let left_by_octave: BTreeMap<usize, u64> = picture.gone.octaves().collect();
        let exposure = &picture.exposure;
        let time = exposure.known.iter().map(|time| *time as f64).sum::<f64>();
        let all = ratio(gone.max(known) as f64, time + exposure.unknown as f64)?;
        let mut before = ratio(known as f64, time).unwrap_or(all);
        let octaves = exposure.known.len().max(
            left_by_octave
                .last_key_value()
                .map_or(0, |(last, _)| last + 1),
        );
        let rate = |octave: usize| {
            let time = exposure.known.get(octave).copied().unwrap_or(0) as f64;
            let left = left_by_octave.get(&octave).copied().unwrap_or(0) as f64;
            before = (left + WEIGHT) / (time + WEIGHT / before);
            before
        };
        let mut rates: Vec<f64> = (0..octaves).map(rate).collect();
        if rates.is_empty() {
            rates.push(all);
        }
        let unknown_gone = gone.saturating_sub(known) as f64;
        let unknown = (unknown_gone + WEIGHT) / (exposure.unknown as f64 + WEIGHT / all);
        Some(Self {
            known: rates,
            unknown,
        })
    }

    /// Chance that a flow in the middle of this octave of age is there `time_ms` later.
    fn survival(&self, octave: usize, time_ms: f64) -> f64 {
        let start = octave_start(octave) as f64;
        let mut age = start + (octave_start(octave + 1) as f64 - start) / 2.0;
        let (mut octave, mut left, mut exponent) = (octave, time_ms, 0.0);
        let last = self.known.len() - 1;
        while left > 0.0 {
            let rate = self.known[octave.min(last)];
            let here = if octave >= last {
                left
            } else {
                (octave_start(octave + 1) as f64 - age).clamp(0.0, left)
            };
            exponent += rate * here;
            age += here;
            left -= here;
            octave += 1;
            if octave > last {
                exponent += self.known[last] * left;
                break;
            }
        }
        (-exponent).exp()
    }

    /// Flows expected to be left `time_ms` from now.
    fn left(&self, picture: &Picture, time_ms: f64) -> f64 {
        let known = picture.live.octaves();
        let known: f64 = known
            .map(|(octave, count)| count as f64 * self.survival(octave, time_ms))
            .sum();
        let unknown = picture.left.saturating_sub(picture.live.count()) as f64;
        (known + unknown * (-self.unknown * time_ms).exp()).min(picture.left as f64)
    }
}

/// A rate that can be reckoned with.
fn ratio(events: f64, time: f64) -> Option<f64> {
    (events > 0.0 && time > 0.0).then(|| events / time)
}

/// Looks ahead to the deadline, `to_deadline_ms` from now. `None` before any flow has left.
pub fn forecast(picture: &Picture, to_deadline_ms: u64) -> Option<Forecast> {
    let rates = Rates::learn(picture)?;
    let outlive = rates.left(picture, to_deadline_ms as f64);
    Some(Forecast {
        most_gone_s: most_gone_ms(&rates, picture).map(|ms| ms / 1000.0),
        outlive: outlive.round() as u64,
        seen: picture
            .at_start
            .saturating_sub(picture.left)
            .max(picture.gone.count()),
    })
}

/// When nine in ten have left, found by halving: the number of flows left only falls.
fn most_gone_ms(rates: &Rates, picture: &Picture) -> Option<f64> {
    let wanted = picture.at_start as f64 * (1.0 - MOST);
    if picture.left as f64 <= wanted {
        return Some(0.0);
    }
    let (mut low, mut high) = (0.0, HORIZON_MS as f64);
    if rates.left(picture, high) > wanted {
        return None;
    }
    // To a thousandth; the first halvings are of the logarithm, as the answer may be seconds or days.
    while high - low > 10.0 && high > low * 1.001 {
        let middle = if high > 4.0 * (low + 10.0) {
            ((low + 10.0) * high).sqrt()
        } else {
            (low + high) / 2.0
        };
        if rates.left(picture, middle) > wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests;

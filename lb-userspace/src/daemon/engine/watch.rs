//! What looks see of the drains under way: ages, departures, rates. Little of it is written down, and not at every look.

use std::collections::{BTreeMap, VecDeque};

use super::Engine;
use crate::model::{
    ages::Ages,
    census::{FlowAges, Tally, Watched},
    drain::{Draining, Progress},
    forecast::{self, Forecast, Picture},
};

/// Time between two notes of a drain's progress in the journal, milliseconds. What a crash loses of it are ages, not
/// flows.
const WRITE_MS: u64 = 5_000;

/// Time over which the rate of leaving is taken, milliseconds.
const WINDOW_MS: u64 = 10_000;

/// Shortest time that a rate is worth the name, milliseconds.
const RATE_MS: u64 = 1_000;

/// Longest time between two looks that counts as watching, milliseconds.
const GAP_MS: u64 = 10_000;

/// A drain under way, as looks have seen it.
#[derive(Debug, Default)]
pub struct Watch {
    /// What the drain's own progress does not know yet.
    pub unwritten: Progress,
    /// Ages of its live flows at the last look.
    pub live: Ages,
    /// Ages of its closed flows that are listed still.
    pub closed: Ages,
    /// When it was looked at last, with the flows left then; those of the last [`WINDOW_MS`].
    samples: VecDeque<(u64, u64)>,
    written_ms: u64,
    dirty: bool,
}

impl Watch {
    /// Takes in what a look at `now_ms` has found.
    fn take_in(&mut self, found: FlowAges, tally: &Tally, left: u64, longest_ms: u64, now_ms: u64) {
        let unwritten = &mut self.unwritten;
        unwritten.idle_expired += tally.idle_expired;
        unwritten.longest_ms = unwritten.longest_ms.max(longest_ms);
        unwritten.ages.merge(&found.freed);
        if let Some((then, _)) = self.samples.back() {
            let passed = now_ms.saturating_sub(*then);
            if passed <= GAP_MS {
                let unknown = left.saturating_sub(found.live.count());
                unwritten.exposure.add(&found.live, unknown, passed);
            }
        } else {
            self.written_ms = now_ms;
        }
        self.dirty |= tally.idle_expired > 0 || left > 0;
        self.live = found.live;
        self.closed = found.closed;
        self.samples.push_back((now_ms, left));
        let old = |(then, _): &(u64, u64)| now_ms.saturating_sub(*then) > WINDOW_MS;
        while self.samples.len() > 2 && self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
    }

    /// Flows that were left at `then`, Unix milliseconds: at the last look before it, or the first that is remembered.
    pub fn left_at(&self, then_ms: u64) -> u64 {
        let before = self.samples.iter().rev().find(|(at, _)| *at <= then_ms);
        before.or(self.samples.front()).map_or(0, |(_, left)| *left)
    }

    /// Whether its last flows have gone in the time that is remembered.
    pub fn has_emptied(&self) -> bool {
        self.left_at(u64::MAX) == 0 && self.samples.iter().any(|(_, left)| *left > 0)
    }

    /// Whether it is time to write down what was seen.
    pub fn wants_writing(&self, now_ms: u64) -> bool {
        self.dirty && now_ms >= self.written_ms.saturating_add(WRITE_MS)
    }

    /// It has been written down.
    pub fn written(&mut self, now_ms: u64) {
        self.unwritten = Progress::default();
        self.written_ms = now_ms;
        self.dirty = false;
    }

    /// Flows a second that have left, over the last seconds.
    pub fn rate(&self) -> Option<f64> {
        let ((then, before), (now, left)) = (*self.samples.front()?, *self.samples.back()?);
        let passed = now.saturating_sub(then);
        (passed >= RATE_MS).then(|| before.saturating_sub(left) as f64 * 1000.0 / passed as f64)
    }
}

impl Engine {
    /// The backends whose flows' ages are wanted.
    pub(super) fn watched(&self, now_ms: u64) -> Watched {
        let drains = self.state.backends().filter_map(|(_, _, id, backend)| {
            let drain = backend.admin.draining()?;
            let passed = std::time::Duration::from_millis(now_ms.saturating_sub(drain.since_ms));
            Some((id, self.datapath.ticks(passed)))
        });
        Watched::new(drains, self.datapath.ticks_per_second())
    }

    /// Takes in what a look has found of the drains under way, and forgets those that are over.
    pub(super) fn watch_drains(&mut self, mut ages: BTreeMap<u32, FlowAges>, now_ms: u64) {
        let per_second = u64::from(self.datapath.ticks_per_second().max(1));
        let mut before = std::mem::take(&mut self.watches);
        let mut watches = BTreeMap::new();
        for (_, service, id, backend) in self.state.backends() {
            let Some(drain) = backend.admin.draining() else {
                continue;
            };
            let tally = self.last_look.tallies.get(&id).copied().unwrap_or_default();
            let left = self.sight(service, id, backend).left();
            let longest_ms = u64::from(tally.longest) * 1000 / per_second;
            let mut watch = before.remove(&drain.id).unwrap_or_default();
            let found = ages.remove(&id).unwrap_or_default();
            watch.take_in(found, &tally, left, longest_ms, now_ms);
            watches.insert(drain.id, watch);
        }
        self.watches = watches;
    }

    /// Takes in what a look that was cut short has freed, which no other will see: the rest of what it saw is seen again.
    pub(super) fn note_freed(
        &mut self,
        tallies: &BTreeMap<u32, Tally>,
        ages: &BTreeMap<u32, FlowAges>,
    ) {
        for (_, _, id, backend) in self.state.backends() {
            let (Some(drain), Some(tally)) = (backend.admin.draining(), tallies.get(&id)) else {
                continue;
            };
            let watch = self.watches.entry(drain.id).or_default();
            watch.unwritten.idle_expired += tally.idle_expired;
            watch.dirty |= tally.idle_expired > 0;
            if let Some(found) = ages.get(&id) {
                watch.unwritten.ages.merge(&found.freed);
            }
        }
    }

    /// All that is known of a drain's progress, written down or not.
    pub(super) fn progress(&self, drain: &Draining) -> Progress {
        let mut progress = drain.progress.clone();
        if let Some(watch) = self.watches.get(&drain.id) {
            progress.merge(&watch.unwritten);
        }
        progress
    }

    /// Ages of a drain's flows that are listed, alive or closed.
    pub(super) fn listed_ages(&self, drain: u64) -> Ages {
        let mut ages = Ages::default();
        if let Some(watch) = self.watches.get(&drain) {
            ages.merge(&watch.live);
            ages.merge(&watch.closed);
        }
        ages
    }

    /// What will become of a drain whose `left` flows are there now.
    pub(super) fn forecast(&self, drain: &Draining, left: u64, now_ms: u64) -> Option<Forecast> {
        let watch = self.watches.get(&drain.id)?;
        let progress = self.progress(drain);
        let mut gone = progress.ages.clone();
        gone.merge(&watch.closed);
        let picture = Picture {
            at_start: drain.at_start?,
            left,
            live: &watch.live,
            gone: &gone,
            exposure: &progress.exposure,
        };
        let to_deadline = drain.deadline_ms.saturating_sub(now_ms);
        forecast::forecast(&picture, to_deadline)
    }
}

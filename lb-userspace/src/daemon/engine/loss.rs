//! Whether anything is known of all flows. Entries may be lost (maps cleared, a table too small), and the counters with them
//! (maps made anew under a state that is older): what has not been seen since may live all the same.
//!
//! What is known of it lies in the maps ([`Known`]): a daemon goes on from what the last look of the one before it has left.
//!
//! Nor does a look see flows that get no entry ([`Unlisted`]).

use std::collections::BTreeMap;

use lb_common::abi::Known;

/// Of so many entries one may be missed without its being called a loss: a look reads them while they change.
const MISSED_OF: u64 = 64;

/// What was lost, and when.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// Entries in use at the last look; `None` where nobody has looked.
    entries: Option<u64>,
    /// Those that looks have freed since.
    freed: u64,
    lost_ms: u64,
    counted_since_ms: u64,
}

impl Losses {
    /// What was noted of these maps. The wall clock may have been set back since.
    pub fn recall(known: &Known, now_ms: u64) -> Self {
        let ms = |seconds: u32| (u64::from(seconds) * 1000).min(now_ms);
        Self {
            entries: u64::from(known.entries).checked_sub(1),
            freed: 0,
            lost_ms: ms(known.lost_s),
            counted_since_ms: ms(known.counted_since_s),
        }
    }

    /// What is to be noted, for [`Self::recall`].
    pub fn known(&self) -> Known {
        let seconds = |ms: u64| u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX);
        let left = |entries: u64| entries.saturating_sub(self.freed) + 1;
        let entries = self.entries.map_or(0, left);
        Known {
            entries: u32::try_from(entries).unwrap_or(u32::MAX),
            lost_s: seconds(self.lost_ms),
            counted_since_s: seconds(self.counted_since_ms),
            reserved: 0,
        }
    }

    /// Whether it is known how many entries there should be.
    pub const fn has_evidence(&self) -> bool {
        self.entries.is_some()
    }

    /// Nothing is listed, and nothing is missed.
    pub fn begin(&mut self) {
        *self = Self {
            entries: Some(0),
            ..Self::default()
        };
    }

    /// The maps are new, and the state is not: flows may live that nothing was ever counted of.
    pub fn forgotten(&mut self, now_ms: u64) {
        self.begin();
        self.lost_ms = now_ms;
        self.counted_since_ms = now_ms;
    }

    /// A look has freed so many entries.
    pub const fn freed(&mut self, entries: u64) {
        self.freed += entries;
    }

    /// A look at all of them has found so many in use, after those that it has freed. Nobody else ever frees one. Returns
    /// whether some are missing.
    pub fn looked(&mut self, entries: u64, now_ms: u64) -> bool {
        let freed = std::mem::take(&mut self.freed);
        let Some(before) = self.entries.replace(entries) else {
            return false;
        };
        let missing = before.saturating_sub(entries + freed);
        if missing <= before / MISSED_OF {
            return false;
        }
        self.lost_ms = now_ms;
        true
    }

    /// When entries were lost last, Unix milliseconds; 0 for never.
    pub const fn lost_ms(&self) -> u64 {
        self.lost_ms
    }

    /// Since when openings and closes are counted, where flows may be older, Unix milliseconds; 0 where they are not.
    pub const fn counted_since_ms(&self) -> u64 {
        self.counted_since_ms
    }
}

/// By service that is changing: packets of flows that were forwarded without the entry that they should have got.
#[derive(Debug, Clone, Default)]
pub struct Unlisted(BTreeMap<u32, Counted>);

/// How many there were, and when the last ones.
#[derive(Debug, Clone, Copy)]
struct Counted {
    count: u64,
    since_ms: u64,
}

impl Unlisted {
    /// The service's counter stands there. Where nobody has looked before, the last one may have been just now.
    pub fn counted(&mut self, service: u32, count: u64, now_ms: u64) {
        let since_ms = match self.0.get(&service) {
            Some(before) if before.count == count => before.since_ms,
            None if count == 0 => 0,
            _ => now_ms,
        };
        self.0.insert(service, Counted { count, since_ms });
    }

    /// Nothing more is wanted of services but these.
    pub fn keep(&mut self, wanted: impl Fn(u32) -> bool) {
        self.0.retain(|service, _| wanted(*service));
    }

    /// When there was one last, Unix milliseconds, to a look; 0 for never.
    pub fn last_ms(&self, service: u32) -> u64 {
        self.0.get(&service).map_or(0, |counted| counted.since_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_nobody_has_freed_are_lost() {
        let mut losses = Losses::default();
        assert!(!losses.looked(100, 1));
        assert!(!losses.looked(120, 2));
        losses.freed(50);
        losses.freed(20);
        assert!(!losses.looked(50, 3));
        assert_eq!(losses.lost_ms(), 0);
        losses.freed(10);
        assert!(losses.looked(39, 4));
        assert_eq!(losses.lost_ms(), 4);
        assert!(losses.looked(0, 5));
        assert_eq!((losses.lost_ms(), losses.counted_since_ms()), (5, 0));
    }

    #[test]
    fn one_missed_of_many_is_no_loss() {
        let mut losses = Losses::default();
        losses.looked(1000, 1);
        assert!(!losses.looked(990, 2));
        assert!(losses.looked(960, 3));
        assert!(losses.looked(0, 4));
        losses.looked(1, 5);
        assert!(losses.looked(0, 6));
    }

    #[test]
    fn new_maps_under_an_older_state_know_nothing() {
        let mut losses = Losses::default();
        losses.forgotten(7);
        assert_eq!((losses.lost_ms(), losses.counted_since_ms()), (7, 7));
        assert!(!losses.looked(3, 8), "those that were seen since");
    }

    #[test]
    fn whoever_goes_on_without_an_entry_is_known_by_the_counter() {
        let mut unlisted = Unlisted::default();
        assert_eq!(unlisted.last_ms(1), 0);
        for (count, now_ms, last_ms) in [(0, 10, 0), (0, 20, 0), (3, 30, 30), (3, 40, 30)] {
            unlisted.counted(1, count, now_ms);
            assert_eq!(unlisted.last_ms(1), last_ms);
        }
        unlisted.counted(1, 1, 50);
        assert_eq!(unlisted.last_ms(1), 50, "other maps");
        unlisted.counted(2, 7, 60);
        assert_eq!(unlisted.last_ms(2), 60, "nobody knows since when");
        unlisted.keep(|service| service == 2);
        assert_eq!((unlisted.last_ms(1), unlisted.last_ms(2)), (0, 60));
    }

    #[test]
    fn the_next_daemon_knows_what_this_one_knew() {
        let mut losses = Losses::recall(&Known::default(), 1);
        assert!(!losses.has_evidence());
        losses.forgotten(7_001);
        losses.looked(100, 8_000);
        losses.freed(10);
        let next = |now_ms| Losses::recall(&losses.known(), now_ms);
        assert!(!next(9_000).looked(90, 9_000), "all are there");
        assert!(next(9_000).looked(80, 9_000));
        assert_eq!(
            (next(9_000).lost_ms(), next(9_000).counted_since_ms()),
            (8_000, 8_000),
            "rounded up"
        );
        assert_eq!(next(5_000).lost_ms(), 5_000, "the clock was set back");
    }
}

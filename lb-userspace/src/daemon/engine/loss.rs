//! Whether anything is known of all flows. Entries may be lost (maps cleared, a table too small), and the counters with them
//! (maps made anew under a state that is older): what has not been seen since may live all the same.

/// Of so many entries one may be missed without its being called a loss: a look reads them while they change.
const MISSED_OF: u64 = 64;

/// What was lost, and when.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// Entries in use at the last look; `None` before the first.
    entries: Option<u64>,
    /// Those that looks have freed since.
    freed: u64,
    lost_ms: u64,
    counted_since_ms: u64,
}

impl Losses {
    /// The maps are new, and the state is not: flows may live that nothing was ever counted of.
    pub const fn forgotten(&mut self, now_ms: u64) {
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
    }
}

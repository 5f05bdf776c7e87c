//! Ages of flows in little memory: a histogram whose buckets grow with the age.
//!
//! Eight buckets an octave, so a quantile is off by at most a sixteenth of itself; [`BUCKETS`] counters at most, however
//! many flows there are and however long they live.

use serde::{Deserialize, Serialize};

/// Buckets in an octave, as a power of two.
const SHIFT: u32 = 3;

/// Buckets that any age fits into.
pub const BUCKETS: usize = (64 - SHIFT as usize + 1) << SHIFT;

/// How many flows had which age, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Ages {
    /// By bucket; the last one is not empty.
    counts: Vec<u64>,
}

impl Ages {
    /// Counts a flow.
    pub fn add(&mut self, age_ms: u64) {
        self.add_to(bucket(age_ms), 1);
    }

    fn add_to(&mut self, bucket: usize, count: u64) {
        if count == 0 || bucket >= BUCKETS {
            return;
        }
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += count;
    }

    /// Counts the flows of another one too.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.pairs() {
            self.add_to(bucket, count);
        }
    }

    /// Flows counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The age that a share `q` (0 to 1) of the flows does not exceed, milliseconds; `None` without flows.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let count = self.count();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.pairs().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(bucket, _)| middle(bucket))
    }

    /// An age that the oldest flow has reached, to an eighth; 0 without flows.
    pub fn reached(&self) -> u64 {
        self.counts.len().checked_sub(1).map_or(0, first)
    }

    /// Flows by octave ([`octave`]), none of them empty, youngest first.
    pub fn octaves(&self) -> impl Iterator<Item = (usize, u64)> {
        let octaves = self.counts.chunks(1 << SHIFT).enumerate();
        octaves
            .map(|(octave, counts)| (octave, counts.iter().sum()))
            .filter(|(_, count)| *count > 0)
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.counts.iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0)
    }
}

impl From<Vec<(u16, u64)>> for Ages {
    fn from(pairs: Vec<(u16, u64)>) -> Self {
        let mut ages = Self::default();
        for (bucket, count) in pairs {
            ages.add_to(usize::from(bucket), count);
        }
        ages
    }
}

impl From<Ages> for Vec<(u16, u64)> {
    fn from(ages: Ages) -> Self {
        let pairs = ages.pairs();
        pairs
            .map(|(bucket, count)| (bucket as u16, count))
            .collect()
    }
}

/// Bucket of an age: one a millisecond below the first octave, then the leading bits of the age.
fn bucket(age_ms: u64) -> usize {
    let highest = age_ms.checked_ilog2().unwrap_or(0);
    if highest < SHIFT {
        return age_ms as usize;
    }
    let shift = highest - SHIFT;
    ((shift as usize) << SHIFT) + (age_ms >> shift) as usize
}

/// First age of a bucket.
fn first(bucket: usize) -> u64 {
    let shift = (bucket >> SHIFT).saturating_sub(1);
    let leading = bucket - (shift << SHIFT);
    (leading as u64)
        .checked_shl(shift as u32)
        .unwrap_or(u64::MAX)
}

/// The age that stands for a bucket.
fn middle(bucket: usize) -> u64 {
    let first = first(bucket);
    let width = 1u64 << (bucket >> SHIFT).saturating_sub(1).min(63);
    first.saturating_add(width / 2)
}

/// Octave of an age: 0 up to 7 ms, then one for each doubling.
pub fn octave(age_ms: u64) -> usize {
    bucket(age_ms) >> SHIFT
}

/// First age of an octave, milliseconds.
pub fn octave_start(octave: usize) -> u64 {
    if octave << SHIFT >= BUCKETS {
        u64::MAX
    } else {
        first(octave << SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn octaves_double() {
        let starts: Vec<u64> = (0..6).map(octave_start).collect();
        assert_eq!(starts, [0, 8, 16, 32, 64, 128]);
        assert_eq!((octave(7), octave(8), octave(15), octave(16)), (0, 1, 1, 2));
        assert!(octave(u64::MAX) << SHIFT < BUCKETS);
        assert_eq!(octave_start(octave(u64::MAX) + 1), u64::MAX);
    }

    #[test]
    fn quantiles_of_known_flows() {
        let mut ages = Ages::default();
        assert_eq!(ages.quantile(0.5), None);
        (1..=1000).for_each(|ms| ages.add(ms));
        for (q, exact) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = ages.quantile(q).unwrap() as f64;
            assert!((found - exact).abs() <= exact / 16.0 + 1.0, "{q}: {found}");
        }
    }

    proptest! {
        #[test]
        fn an_age_lies_in_its_bucket(age in any::<u64>()) {
            let bucket = bucket(age);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(first(bucket) <= age);
            prop_assert!(bucket + 1 == BUCKETS || age < first(bucket + 1));
            let middle = middle(bucket) as f64;
            prop_assert!((middle - age as f64).abs() <= age as f64 / 16.0 + 1.0);
        }

        #[test]
        fn what_is_written_down_is_read_again(
            ages in prop::collection::vec(0u64..1 << 40, 0..50),
            more in prop::collection::vec(0u64..1 << 40, 0..50),
        ) {
            let fill = |from: &[u64]| {
                let mut filled = Ages::default();
                from.iter().for_each(|age| filled.add(*age));
                filled
            };
            let (one, other) = (fill(&ages), fill(&more));
            let text = serde_json::to_string(&one).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Ages>(&text).unwrap(), &one);
            let mut both = one.clone();
            both.merge(&other);
            prop_assert_eq!(both, fill(&[ages.clone(), more.clone()].concat()));
            prop_assert_eq!(one.octaves().map(|(_, count)| count).sum::<u64>(), ages.len() as u64);
        }
    }
}

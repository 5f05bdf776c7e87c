//! When the kernel is asked, and asked again, to resolve a neighbour. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::table::NeighbourKey;

/// Wait after the first request; doubled after each.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait. A backend that comes back is found within it even if it says nothing by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Requests (over seven seconds) after which no answer is a failure, in case the kernel did not say so itself; it
/// does after about three seconds.
const FRUITLESS: u32 = 3;

#[derive(Debug, Clone, Copy)]
struct Attempt {
    made: u32,
    next: Instant,
}

/// Neighbours the kernel was asked for and that still want it.
#[derive(Debug, Default)]
pub struct Attempts(BTreeMap<NeighbourKey, Attempt>);

/// What to do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Ask the kernel for these.
    pub ask: Vec<NeighbourKey>,
    /// These were asked for long enough to say that they do not answer (they are in `ask` as well).
    pub fruitless: Vec<NeighbourKey>,
}

impl Attempts {
    /// `wanting`: the neighbours that want the kernel now. What is no longer in it begins anew when it is again.
    pub fn due(&mut self, wanting: &BTreeSet<NeighbourKey>, now: Instant) -> Due {
        self.0.retain(|key, _| wanting.contains(key));
        let mut due = Due::default();
        for key in wanting {
            let attempt = self.0.entry(*key).or_insert(Attempt { made: 0, next: now });
            if attempt.next > now {
                continue;
            }
            if attempt.made >= FRUITLESS {
                due.fruitless.push(*key);
            }
            due.ask.push(*key);
            attempt.next = now + wait_after(attempt.made);
            attempt.made = attempt.made.saturating_add(1);
        }
        due
    }

    /// When `due` has something next.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|attempt| attempt.next).min()
    }
}

/// Wait after a request that `made` others preceded.
fn wait_after(made: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << made.min(8))
        .min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ifindex: u32) -> NeighbourKey {
        NeighbourKey {
            ifindex,
            address: "10.0.0.1".parse().unwrap(),
        }
    }

    #[test]
    fn asked_at_once_then_ever_less_often_but_never_given_up() {
        let start = Instant::now();
        let wanting = BTreeSet::from([key(1)]);
        let mut attempts = Attempts::default();
        let mut asked = Vec::new();
        for second in 0..40 {
            let due = attempts.due(&wanting, start + Duration::from_secs(second));
            if !due.ask.is_empty() {
                asked.push((second, !due.fruitless.is_empty()));
            }
        }
        let expected = [
            (0, false),
            (1, false),
            (3, false),
            (7, true),
            (15, true),
            (23, true),
            (31, true),
            (39, true),
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn one_that_answered_begins_anew() {
        let start = Instant::now();
        let mut attempts = Attempts::default();
        let wanting = BTreeSet::from([key(1)]);
        assert_eq!(attempts.due(&wanting, start).ask, [key(1)]);
        assert_eq!(attempts.due(&wanting, start), Due::default());
        assert_eq!(attempts.next(), Some(start + FIRST_WAIT));
        assert_eq!(attempts.due(&BTreeSet::new(), start), Due::default());
        assert_eq!(attempts.next(), None);
        assert_eq!(attempts.due(&wanting, start).ask, [key(1)]);
    }
}

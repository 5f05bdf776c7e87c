//! How good a table is, and how good a change from one table to another.

use std::collections::{BTreeMap, BTreeSet};

use super::Member;

/// Figures of a table and of the change that led to it. Shares are parts of all slots, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Slots of the member that has most of them relative to its fair share, divided by that share; 1 is perfect.
    pub imbalance: f64,
    /// The same for the member that has least.
    pub lightest: f64,
    /// Largest distance between the share a member has and the one it should have.
    pub share_error: f64,
    /// Share of slots that have another owner now.
    pub moved: f64,
    /// Share of slots that had to move to give each member as many as it has now.
    pub needed: f64,
    /// Share of slots that moved from a member that stayed to one that had slots before: neither was it the owner
    /// that left, nor the new owner who came. After a change of weights part of it is needed.
    pub collateral: f64,
}

/// Measures `after`, the table of `members`, and the change from `before`, a table of the same number of slots.
///
/// Each member's id must be its own. Without slots or weight there is nothing to measure, and all is perfect.
pub fn quality(before: &[u32], after: &[u32], members: &[Member]) -> Quality {
    let (had, has) = (count(before), count(after));
    let slots = after.len().max(1) as f64;
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();

    let mut result = Quality {
        imbalance: 1.0,
        lightest: 1.0,
        share_error: 0.0,
        moved: 0.0,
        needed: 0.0,
        collateral: 0.0,
    };
    for member in members.iter().filter(|member| member.weight > 0) {
        let fair = f64::from(member.weight) / total;
        let share = has.get(&member.id).copied().unwrap_or(0) as f64 / slots;
        result.imbalance = result.imbalance.max(share / fair);
        result.lightest = result.lightest.min(share / fair);
        result.share_error = result.share_error.max((share - fair).abs());
    }

    let stay: BTreeSet<u32> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| member.id)
        .collect();
    let moves = || before.iter().zip(after).filter(|(old, new)| old != new);
    let lost: usize = had
        .iter()
        .map(|(id, &old)| old.saturating_sub(has.get(id).copied().unwrap_or(0)))
        .sum();
    result.moved = moves().count() as f64 / slots;
    result.needed = lost as f64 / slots;
    result.collateral = moves()
        .filter(|(old, new)| stay.contains(old) && had.contains_key(new))
        .count() as f64
        / slots;
    result
}

/// How many slots each id has.
fn count(table: &[u32]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for &id in table {
        *counts.entry(id).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn member(id: u32, weight: u32) -> Member<'static> {
        Member {
            key: "",
            id,
            weight,
        }
    }

    #[test]
    fn shares_are_measured_against_weights() {
        let table = [1, 1, 1, 2];
        let found = quality(&table, &table, &[member(1, 1), member(2, 1)]);
        let want = Quality {
            imbalance: 1.5,
            lightest: 0.5,
            share_error: 0.25,
            moved: 0.0,
            needed: 0.0,
            collateral: 0.0,
        };
        assert_eq!(found, want);
        assert_eq!(
            quality(&table, &table, &[member(1, 3), member(2, 1)]).imbalance,
            1.0
        );
    }

    #[test]
    fn only_moves_between_those_who_stay_are_collateral() {
        // 3 left; its slot went to 2. One slot went from 1 to 2 and one from 2 to 1.
        let found = quality(&[1, 1, 2, 3], &[1, 2, 1, 2], &[member(1, 1), member(2, 1)]);
        assert_eq!(
            (found.moved, found.needed, found.collateral),
            (0.75, 0.25, 0.5)
        );
        // 3 came and took a slot from 1.
        let found = quality(
            &[1, 1, 2, 2],
            &[1, 3, 2, 2],
            &[member(1, 1), member(2, 1), member(3, 1)],
        );
        assert_eq!(
            (found.moved, found.needed, found.collateral),
            (0.25, 0.25, 0.0)
        );
    }
}

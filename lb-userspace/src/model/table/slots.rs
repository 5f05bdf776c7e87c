//! How many slots a table has.

/// Primes about a factor of two apart, so that a service keeps its number of slots while it grows.
const LADDER: [u32; 13] = [
    4_093, 8_191, 16_381, 32_749, 65_537, 131_071, 262_139, 524_287, 1_048_573, 2_097_143,
    4_194_301, 8_388_593, 16_777_213,
];

/// The rung from which on 100 slots a member are enough; below it there is room for twice the members.
const LARGE: u32 = 65_537;

/// A good number of slots, a prime, for a service of that many members.
///
/// At least 200 slots a member below 65,537 slots, at least 100 from there on (65,537 serves up to 655 members);
/// 16,777,213 at most. Another number of slots is another table altogether: count every member that is configured,
/// not those that have weight just now, or a drain would move everything.
pub fn choose_slots(members: usize) -> u32 {
    let enough = |slots: u32| {
        let each = if slots < LARGE { 200 } else { 100 };
        members.saturating_mul(each) <= slots as usize
    };
    LADDER
        .into_iter()
        .find(|&slots| enough(slots))
        .unwrap_or(LADDER[LADDER.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_prime(number: u32) -> bool {
        (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
    }

    #[test]
    fn every_rung_is_prime() {
        for slots in LADDER {
            assert!(is_prime(slots), "{slots}");
        }
    }

    #[test]
    fn rungs_for_sets_of_every_size() {
        let rows = [
            (0, 4_093),
            (1, 4_093),
            (20, 4_093),
            (21, 8_191),
            (163, 32_749),
            (164, 65_537),
            (655, 65_537),
            (656, 131_071),
            (1_310, 131_071),
            (1_311, 262_139),
            (16_384, 2_097_143),
            (usize::MAX, 16_777_213),
        ];
        for (members, slots) in rows {
            assert_eq!(choose_slots(members), slots, "{members} members");
        }
    }
}

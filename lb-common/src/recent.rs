//! Which flows' entries were seen to a moment ago.
//!
//! A flow's entry is a cache line of 64 bytes, and of a million flows none is in a cache. Where every flow is listed, nearly
//! every packet would fetch one to learn what its slot says already, and to note the time, which it does once in a
//! while only. So each entry has a word of 8 bytes beside the table: [`mark`] of the flow and its backend, and the tick that the
//! entry has. While that is as young as an entry's time may be late, a packet of a slot that is not tracked needs no
//! more than this word.
//!
//! Nothing depends on a word being there, or being right about the flow: it only stands for an entry of the slot's own
//! base, who gets the packet without an entry too.

use crate::{entry, limits::WAYS};

/// The words of the entries that share a group.
pub type Group = [u64; WAYS as usize];

/// Which group the entries of a flow with this hash are in.
#[inline(always)]
pub const fn group(hash: u64, mask: u32) -> u32 {
    (hash as u32 & mask) / WAYS
}

/// What a word says of a flow with this hash on this backend; never 0. Another base is another mark.
#[inline(always)]
pub const fn mark(hash: u64, backend: u32) -> u32 {
    ((hash >> 32) as u32 ^ backend.wrapping_mul(0x9e37_79b1)) | 1
}

/// A word: the mark, and the tick of the entry.
#[inline(always)]
pub const fn word(mark: u32, seen: u32) -> u64 {
    ((mark as u64) << 32) | seen as u64
}

/// Whether a word of the group has the flow's mark, and its entry's time is at most `grain` ticks late.
///
/// Without a branch on any single word: which of them is the flow's nobody can predict, and a wrong guess is only known once
/// the words have come from memory, so that it would cost their whole latency (a million flows: 171 ns a packet, without
/// such branches 100).
///
/// # Safety
/// `group` is valid for reads; others may be writing its words.
#[inline(always)]
pub unsafe fn holds(group: *const Group, mark: u32, now: u32, grain: u32) -> bool {
    let mut held = 0;
    let mut place = 0;
    while place < WAYS {
        // SAFETY: the caller's; the place lies inside the group.
        let word = unsafe { group.cast::<u64>().add(place as usize).read_volatile() };
        held |= is_held(word, mark, now, grain);
        place += 1;
    }
    held != 0
}

/// 1 where a word has the mark and its time is not too late, 0 otherwise.
#[inline(always)]
const fn is_held(word: u64, mark: u32, now: u32, grain: u32) -> u64 {
    // Each below 2^33, so that taking one away leaves the uppermost bit for 0 alone.
    let other_mark = (word >> 32) ^ mark as u64;
    let too_late = (grain as u64).wrapping_sub(entry::age(word as u32, now) as u64) >> 63;
    (other_mark + too_late).wrapping_sub(1) >> 63
}

/// Stores a word at the place of the entry with this index.
///
/// # Safety
/// `group` is valid for writes of whole words, by others as well.
#[inline(always)]
pub unsafe fn note(group: *mut Group, index: u32, word: u64) {
    let place = group.cast::<u64>();
    unsafe { place.add((index % WAYS) as usize).write_volatile(word) };
}

/// Forgets all of a group: a flow of it has to be looked up again.
///
/// # Safety
/// As for [`note`].
#[inline(always)]
pub unsafe fn forget(group: *mut Group) {
    let mut way = 0;
    while way < WAYS {
        unsafe { note(group, way, 0) };
        way += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: u64 = 0x1234_5678_9abc_def1;

    #[test]
    fn a_flow_is_held_for_as_long_as_its_time_may_be_late() {
        let mut words: Group = [0; 4];
        let mark = mark(HASH, 7);
        let holds = |words: &Group, mark, now| unsafe { holds(words, mark, now, 10) };
        assert!(!holds(&words, mark, 100));
        unsafe { note(&mut words, 0x1006, word(mark, 100)) };
        assert_eq!(words[2], word(mark, 100));
        assert!(holds(&words, mark, 100) && holds(&words, mark, 110));
        assert!(!holds(&words, mark, 111), "late");
        assert!(!holds(&words, super::mark(HASH, 8), 100), "another base");
        let other = super::mark(HASH ^ 1 << 40, 7);
        assert!(!holds(&words, other, 100), "another flow");
        unsafe { forget(&mut words) };
        assert!(!holds(&words, mark, 100));
    }

    #[test]
    fn an_empty_word_holds_nobody() {
        for backend in 0..1000_u32 {
            assert_ne!(
                mark(u64::from(backend.wrapping_mul(0x9e37_79b1)) << 32, backend),
                0
            );
        }
    }

    #[test]
    fn a_group_is_that_of_the_entries() {
        let mask = 0xff;
        for way in 0..WAYS {
            let index = (HASH as u32 & mask) ^ way;
            assert_eq!(index / WAYS, group(HASH, mask));
        }
    }
}

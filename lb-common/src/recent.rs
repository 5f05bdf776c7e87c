//! Which flows' entries were seen to a moment ago.
//!
//! A flow's entry is a cache line of 64 bytes, and of a million flows none is in a cache. Where every flow is listed, nearly
//! every packet would fetch one to learn what its slot says already, and to note the time, which it does once in a
//! while only. So each entry has a word of 4 bytes beside the table: a mark of the flow and its backend, and the epoch in which the
//! entry was last seen to. While that lasts, a packet of a slot that is not tracked needs no more than this word.
//!
//! Epochs are as long as an entry's time may be late, rounded down to a power of two, and each flow's begin at a time of its
//! own: else a million flows would all fetch their entries at once.
//!
//! Nothing depends on a word being there, or being right about the flow: it only stands for an entry of the slot's own
//! base, who gets the packet without an entry too.

use crate::{
    abi::ServiceRecord,
    limits::{SEEN_SHIFT, WAYS},
};

/// The words of the entries that share a group.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Group(pub [u32; WAYS as usize]);

const _: () = assert!(size_of::<Group>() == 16);

/// Bits of a word that say the epoch. It comes again after 256 of them, four times the idle timeout or more (but for timeouts
/// beyond the longest that a configuration may have, whose epochs are cut short by [`SHIFT_MAX`]).
const EPOCH: u32 = 0xff;

/// Longest epoch, as a power of two: so that its number has as many bits as a word has room for.
const SHIFT_MAX: u32 = 24;

/// Length of the epochs of flows with this idle timeout, in ticks, as a power of two: [`ServiceRecord::epoch_shift`].
#[must_use]
pub const fn shift(idle_ticks: u32) -> u8 {
    let shift = match (idle_ticks >> SEEN_SHIFT).checked_ilog2() {
        None => 0,
        Some(shift) if shift > SHIFT_MAX => SHIFT_MAX,
        Some(shift) => shift,
    };
    shift as u8
}

/// Which group the entries of a flow with this hash are in.
#[inline(always)]
pub const fn group(hash: u64, mask: u32) -> u32 {
    (hash as u32 & mask) / WAYS
}

/// The word of a flow with this hash on this backend, whose entry is seen to now; never 0. Another base is another word.
#[inline(always)]
pub const fn word(service: &ServiceRecord, hash: u64, backend: u32, now: u32) -> u32 {
    // Neither half of the hash is left out: the lower one says when the flow's epochs begin.
    let mark = (hash >> 32) as u32 ^ backend.wrapping_mul(0x9e37_79b1);
    let epoch = now.wrapping_add(hash as u32) >> (service.epoch_shift & 31);
    mark & !EPOCH | epoch & EPOCH | 1 << 31
}

/// Whether a group has this word.
///
/// Without a branch on any single word: which of them is the flow's nobody can predict, and a wrong guess is only known once
/// the words have come from memory, so that it would cost their whole latency (a million flows: 171 ns a packet, without
/// such branches 100).
///
/// # Safety
/// `group` is valid for reads; others may be writing its words.
#[inline(always)]
pub unsafe fn holds(group: *const Group, word: u32) -> bool {
    let mut held = 0_u64;
    let mut place = 0;
    while place < WAYS {
        // SAFETY: the caller's; the place lies inside the group.
        let found = unsafe { group.cast::<u32>().add(place as usize).read_volatile() };
        // Below 2^32, so that taking one away reaches the uppermost bit from 0 alone.
        held |= u64::from(found ^ word).wrapping_sub(1);
        place += 1;
    }
    (held as i64) < 0
}

/// Stores a word at the place of the entry with this index.
///
/// # Safety
/// `group` is valid for writes of whole words, by others as well.
#[inline(always)]
pub unsafe fn note(group: *mut Group, index: u32, word: u32) {
    let place = group.cast::<u32>();
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

    fn service(idle_ticks: u32) -> ServiceRecord {
        let mut service = ServiceRecord::default();
        service.set_idle(idle_ticks);
        service
    }

    #[test]
    fn a_flow_is_held_for_as_long_as_its_time_may_be_late() {
        let service = service(20 << SEEN_SHIFT);
        let late = 20;
        let word = |hash, backend, now| word(&service, hash, backend, now);
        for seen in 1000..1100 {
            let mut words = Group::default();
            let holds = |words: &Group, word| unsafe { holds(words, word) };
            assert!(!holds(&words, word(HASH, 7, seen)));
            unsafe { note(&mut words, 0x1006, word(HASH, 7, seen)) };
            assert_eq!(words.0[2], word(HASH, 7, seen));
            assert!(holds(&words, word(HASH, 7, seen)));
            assert!(!holds(&words, word(HASH, 7, seen + late)), "late");
            assert!(!holds(&words, word(HASH, 8, seen)), "another base");
            assert!(
                !holds(&words, word(HASH ^ 1 << 40, 7, seen)),
                "another flow"
            );
            unsafe { forget(&mut words) };
            assert!(!holds(&words, word(HASH, 7, seen)));
        }
    }

    #[test]
    fn an_epoch_is_at_most_as_long_as_an_entry_may_be_late() {
        for idle_ticks in [0, 1, 63, 64, 127, 128, 250, 75_000, u32::MAX] {
            let late = (idle_ticks >> SEEN_SHIFT).max(1);
            let length = 1_u32 << shift(idle_ticks);
            assert!(length <= late, "{idle_ticks}");
            assert!(
                length > late / 2 || length == 1 << SHIFT_MAX,
                "{idle_ticks}"
            );
        }
    }

    #[test]
    fn an_epoch_does_not_come_again_within_the_idle_timeout() {
        // Of all timeouts up to the one whose epochs are as long as they get.
        for idle_ticks in [64, 127, 128, 12_345, 75_000, (1 << 30) + 17] {
            let service = service(idle_ticks);
            let length = 1_u32 << service.epoch_shift;
            let first = word(&service, HASH, 7, 5_000);
            let mut now = 5_000_u32.wrapping_add(length);
            let end = 5_000_u32.wrapping_add(idle_ticks).wrapping_add(length);
            while end.wrapping_sub(now) as i32 > 0 {
                assert_ne!(word(&service, HASH, 7, now), first, "{idle_ticks} {now}");
                now = now.wrapping_add(length);
            }
        }
    }

    #[test]
    fn flows_do_not_change_their_epochs_at_once() {
        let service = service(256 << SEEN_SHIFT);
        let changes = |hash: u64| {
            (0..256_u32)
                .find(|now| word(&service, hash, 7, *now) != word(&service, hash, 7, now + 1))
        };
        let all: std::collections::BTreeSet<_> = (0..256).map(changes).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn an_empty_word_holds_nobody() {
        let service = service(64);
        for backend in 0..1000_u32 {
            let hash = u64::from(backend.wrapping_mul(0x9e37_79b1)) << 32;
            assert_ne!(word(&service, hash, backend, 0), 0);
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

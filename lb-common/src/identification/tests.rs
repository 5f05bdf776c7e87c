use std::{cell::UnsafeCell, collections::BTreeSet, vec, vec::Vec};

use proptest::prelude::*;

use super::*;

struct Memory(Vec<UnsafeCell<Lane>>);

impl Memory {
    fn new() -> Self {
        Self((0..LANES).map(|_| UnsafeCell::default()).collect())
    }
}

impl Lanes for Memory {
    fn lane(&self, index: u32) -> Option<NonNull<Lane>> {
        NonNull::new(self.0.get(index as usize)?.get())
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe {
            let found = *word;
            if found == old {
                *word = new;
            }
            found
        }
    }
}

fn v4(last: u8) -> Addr {
    Addr::from_v4([10, 0, 0, last])
}

fn v6(last: u8) -> Addr {
    let mut bytes = [0x20; 16];
    bytes[15] = last;
    Addr::from_bytes(bytes)
}

#[test]
fn ipv4_has_each_number_once_and_then_waits() {
    let memory = Memory::new();
    let ends = Ends::new(7, &v4(1), &v4(2), 17);
    let mut given = BTreeSet::new();
    for _ in 0..NUMBERS_V4 {
        let id = fresh(&memory, &ends, 1000).expect("never given yet");
        assert!(id <= 0xffff && given.insert(id));
    }
    assert_eq!(given.len(), 65_536);
    for second in [1000, 1000 + SECONDS, 999] {
        assert_eq!(fresh(&memory, &ends, second), None);
    }
    // Who was refused has used up nothing.
    let after = 1000 + SECONDS + 1;
    let again: BTreeSet<u32> = (0..SPAN)
        .map(|_| fresh(&memory, &ends, after).expect("free again"))
        .collect();
    assert_eq!(again.len() as u64, SPAN);
}

#[test]
fn at_a_moderate_rate_ipv4_never_waits() {
    let memory = Memory::new();
    let ends = Ends::new(7, &v4(1), &v4(2), 17);
    for second in 0..1000 {
        for _ in 0..900 {
            assert!(
                fresh(&memory, &ends, second).is_some(),
                "in second {second}"
            );
        }
    }
}

#[test]
fn ipv6_never_waits() {
    let memory = Memory::new();
    let ends = Ends::new(7, &v6(1), &v6(2), 17);
    let given: BTreeSet<u32> = (0..200_000)
        .map(|_| fresh(&memory, &ends, 5).expect("a number"))
        .collect();
    assert_eq!(given.len(), 200_000);
}

#[test]
fn families_do_not_share_a_lane() {
    for last in 0..100 {
        let (four, six) = (
            Ends::new(7, &v4(last), &v4(0), 17),
            Ends::new(7, &v6(last), &v6(0), 17),
        );
        assert_eq!((four.lane & 1, six.lane & 1), (0, 1));
    }
}

#[test]
fn the_protocol_counts_in_ipv4_alone() {
    assert_ne!(
        Ends::new(7, &v4(1), &v4(2), 17),
        Ends::new(7, &v4(1), &v4(2), 6)
    );
    assert_eq!(
        Ends::new(7, &v6(1), &v6(2), 17),
        Ends::new(7, &v6(1), &v6(2), 6)
    );
}

#[test]
fn a_number_that_others_keep_taking_is_given_up() {
    struct Busy(Memory);
    impl Lanes for Busy {
        fn lane(&self, index: u32) -> Option<NonNull<Lane>> {
            self.0.lane(index)
        }
        unsafe fn compare_exchange(_: *mut u64, old: u64, _: u64) -> u64 {
            old + 1
        }
    }
    let busy = Busy(Memory::new());
    assert_eq!(fresh(&busy, &Ends::new(7, &v4(1), &v4(2), 17), 0), None);
}

proptest! {
    /// Whatever the rate, and whoever else uses the lane: no number is given again while it may be in use.
    #[test]
    fn no_number_is_given_twice_in_its_time(
        steps in proptest::collection::vec((0..20_000_u32, 0..40_u32), 1..60), start in 0..u64::MAX / 2,
    ) {
        let memory = Memory::new();
        let ends = Ends::new(7, &v4(1), &v4(2), 17);
        // As after a long time: far on, and nothing about.
        memory.lane(ends.lane).map(|lane| unsafe { (*lane.as_ptr()).next = start }).expect("a lane");
        let mut last = vec![None; 65_536];
        let mut second = 1_000_000;
        for (packets, pause) in steps {
            for _ in 0..packets {
                let Some(id) = fresh(&memory, &ends, second) else { break };
                let before = last[id as usize].replace(second);
                prop_assert!(before.is_none_or(|before| second - before > SECONDS), "{id} at {second} after {before:?}");
            }
            second += pause;
        }
    }
}

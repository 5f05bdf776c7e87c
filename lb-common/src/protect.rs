//! Protection: how many flows may begin, and which clients may not come at all.

/// A token bucket of one CPU: a rate in whole flows a second, checked at the kernel's ticks.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Tick of the last flow that was asked for.
    pub tick: u32,
    /// What is left, in flows times ticks a second. One second's worth at most.
    pub credit: u32,
}

/// Highest rate of a [`Bucket`], in flows a second: its credit must fit 32 bits at 1000 ticks a second.
pub const RATE_MAX: u32 = 4_000_000;

impl Bucket {
    /// Takes one flow out. `rate` is in flows a second, 0 for no limit.
    #[inline(always)]
    pub fn take(&mut self, rate: u32, ticks_per_second: u32, now: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let full = rate as u64 * ticks_per_second as u64;
        let passed = now.wrapping_sub(self.tick) as u64;
        let earned = self.credit as u64 + passed * rate as u64;
        let credit = if earned > full { full } else { earned };
        self.tick = now;
        let cost = ticks_per_second as u64;
        if credit < cost {
            self.credit = credit as u32;
            return false;
        }
        self.credit = (credit - cost) as u32;
        true
    }
}

/// What a prefix of clients is told.
pub mod action {
    /// Its packets to services are dropped.
    pub const DENY: u32 = 1;
    /// They go on, although a shorter prefix denies them.
    pub const ALLOW: u32 = 2;
}

/// Value of a client prefix in a longest-prefix-match trie; its key is the address's 16 bytes
/// ([`crate::Addr::bytes`]), IPv4 prefixes being 96 bits longer than they say.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientRule {
    /// An [`action`].
    pub action: u32,
    /// Zero.
    pub reserved: u32,
    /// Packets that it decided on, since it was loaded.
    pub packets: u64,
}

const _: () = assert!(size_of::<ClientRule>() == 16 && size_of::<Bucket>() == 8);
const _: () = assert!(RATE_MAX as u64 * 1000 <= u32::MAX as u64);

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_lets_no_more_through_than_its_rate_and_a_second_s_worth(
            rate in 1..10_000u32, hz in prop::sample::select(vec![100u32, 250, 300, 1000]),
            gaps in prop::collection::vec(0..20u32, 1..2000), start: u32,
        ) {
            let mut bucket = Bucket { tick: start, credit: 0 };
            let (mut now, mut passed, mut taken) = (start, 0u64, 0u64);
            for gap in gaps {
                now = now.wrapping_add(gap);
                passed += u64::from(gap);
                taken += u64::from(bucket.take(rate, hz, now));
                prop_assert!(taken * u64::from(hz) <= passed * u64::from(rate));
            }
        }
    }

    #[test]
    fn a_slow_rate_still_lets_flows_through() {
        let mut bucket = Bucket::default();
        let taken = (0..2500).filter(|tick| bucket.take(2, 250, *tick)).count();
        assert_eq!(taken, 19);
    }

    #[test]
    fn a_rested_bucket_holds_a_second_s_worth() {
        let mut bucket = Bucket::default();
        let now = 1_000_000;
        let taken = (0..1000).filter(|_| bucket.take(100, 250, now)).count();
        assert_eq!(taken, 100);
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut bucket = Bucket::default();
        assert!((0..1000).all(|_| bucket.take(0, 250, 7)));
    }
}

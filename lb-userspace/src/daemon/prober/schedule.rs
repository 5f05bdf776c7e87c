//! When a target's next probe starts. Pure.

use std::{
    hash::Hasher,
    time::{Duration, Instant},
};

use siphasher::sip::SipHasher13;

/// Where in every period a target's probes start, as a share of 2^64: the same for the same name on every run.
pub fn phase(service: &str, backend: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(service.as_bytes());
    hasher.write_u8(0);
    hasher.write(backend.as_bytes());
    hasher.finish()
}

/// When the probe after the one due at `last` is due: at the target's place in a period, counted from `epoch`.
///
/// At least half a period after `last` (the first probe starts at no particular place) and not before `now`; what was
/// missed meanwhile is left out.
pub fn next(epoch: Instant, phase: u64, period: Duration, last: Instant, now: Instant) -> Instant {
    let period_nanos = period.as_nanos().max(1);
    let offset_nanos = (period_nanos * u128::from(phase)) >> u64::BITS;
    let earliest = now.max(last + period / 2);
    let elapsed_nanos = earliest.saturating_duration_since(epoch).as_nanos();
    let periods = elapsed_nanos
        .saturating_sub(offset_nanos)
        .div_ceil(period_nanos);
    let due_nanos = offset_nanos + periods * period_nanos;
    epoch + Duration::from_nanos(u64::try_from(due_nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn many_targets_spread_evenly() {
        let mut tenths = [0; 10];
        for backend in 0..1000 {
            let phase = phase("web", &format!("b{backend}"));
            tenths[usize::try_from((u128::from(phase) * 10) >> 64).unwrap()] += 1;
        }
        assert!(
            tenths.iter().all(|count| (60..140).contains(count)),
            "{tenths:?}"
        );
        assert_eq!(phase("a", "bc"), phase("a", "bc"));
        assert_ne!(phase("a", "bc"), phase("ab", "c"));
    }

    proptest! {
        #[test]
        fn in_rhythm_never_early_and_never_idle(
            phase: u64, period in 1u64..100_000, first in 0u64..1_000_000, late in 0u64..300_000,
        ) {
            let millis = Duration::from_millis;
            let (epoch, period) = (Instant::now(), millis(period));
            let last = epoch + millis(first);
            let now = last + millis(late);
            let due = next(epoch, phase, period, last, now);
            prop_assert!(due >= now && due >= last + period / 2);
            prop_assert!(due < now.max(last + period / 2) + period);
            // From then on the distance is one period, while probes are quick.
            let after = next(epoch, phase, period, due, due + period / 4);
            prop_assert_eq!(after, due + period);
        }
    }
}

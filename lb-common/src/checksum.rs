//! Incremental Internet checksums (RFC 1071, RFC 1624).
//!
//! Sums are over 16-bit words as they lie in memory, so they are right on either byte order as long as all
//! parts are loaded the same way.

use crate::Addr;

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sum of the 16-bit words of an address.
#[inline(always)]
pub const fn address_sum(address: &Addr) -> u64 {
    word_sum(address.high) + word_sum(address.low)
}

/// Sum of the 16-bit words of some 32-bit ones.
#[inline(always)]
pub fn words_sum(words: &[u32]) -> u64 {
    let mut sum = 0;
    for word in words {
        // Folding takes care of the upper halves.
        sum += u64::from(*word);
    }
    sum
}

#[inline(always)]
const fn word_sum(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// What is to be added to a checksum's complement when `old` is replaced by `new`: `~old + new` (RFC 1624, eqn 3).
///
/// The mapped prefix of IPv4 addresses is in both and cancels, so the same value serves the IPv4 header and the
/// pseudo-header of either family.
#[inline(always)]
pub const fn address_delta(old: &Addr, new: &Addr) -> u32 {
    fold(address_sum(new) + (!fold(address_sum(old))) as u64) as u32
}

/// The checksum field (as loaded from the packet) after the words under it changed by `delta`.
#[inline(always)]
pub const fn apply(check: u16, delta: u64) -> u16 {
    !fold((!check) as u64 + delta)
}

/// `~old + new` for one 16-bit field, both as loaded from the packet.
#[inline(always)]
pub const fn field_delta(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// Sum over bytes in memory order, for tests and for the daemon; an odd last byte is padded with zero.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    for pair in bytes.chunks(2) {
        let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
        sum += u64::from(u16::from_ne_bytes(word));
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// The two representations of zero in one's complement are the same number.
    fn same(a: u16, b: u16) -> bool {
        let norm = |x: u16| if x == 0xffff { 0 } else { x };
        norm(a) == norm(b)
    }

    proptest! {
        #[test]
        fn replacing_an_address_equals_summing_again(
            old: [u8; 16], new: [u8; 16], port: u16, new_port: u16, rest: Vec<u8>,
        ) {
            let whole = |address: &[u8; 16], port: u16| {
                !fold(sum_bytes(address) + u64::from(port) + sum_bytes(&rest))
            };
            let delta = u64::from(address_delta(&Addr::from_bytes(old), &Addr::from_bytes(new)))
                + field_delta(port, new_port);
            prop_assert!(same(apply(whole(&old, port), delta), whole(&new, new_port)));
        }

        #[test]
        fn mapped_addresses_work_on_an_ipv4_header(old: [u8; 4], new: [u8; 4], rest: [u8; 16]) {
            let whole = |address: &[u8; 4]| !fold(sum_bytes(address) + sum_bytes(&rest));
            let delta = u64::from(address_delta(&Addr::from_v4(old), &Addr::from_v4(new)));
            prop_assert!(same(apply(whole(&old), delta), whole(&new)));
        }
    }
}

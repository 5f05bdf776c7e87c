//! SipHash-1-3 (Aumasson and Bernstein, 2012), as the kernel uses it for its own hash tables: for what is rare, and has
//! a seed of a word instead of a key of many.

use crate::Addr;

/// Its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SipKey {
    /// First half.
    pub k0: u64,
    /// Second half.
    pub k1: u64,
}

struct State(u64, u64, u64, u64);

impl State {
    #[inline(always)]
    fn round(&mut self) {
        self.0 = self.0.wrapping_add(self.1);
        self.1 = self.1.rotate_left(13) ^ self.0;
        self.0 = self.0.rotate_left(32);
        self.2 = self.2.wrapping_add(self.3);
        self.3 = self.3.rotate_left(16) ^ self.2;
        self.0 = self.0.wrapping_add(self.3);
        self.3 = self.3.rotate_left(21) ^ self.0;
        self.2 = self.2.wrapping_add(self.1);
        self.1 = self.1.rotate_left(17) ^ self.2;
        self.2 = self.2.rotate_left(32);
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.3 ^= word;
        self.round();
        self.0 ^= word;
    }
}

/// SipHash-1-3 of an address and 32 more bits: of 12 bytes (the lower half of the address, `last`, each in
/// little-endian order) for IPv4, where the upper half says nothing, of 20 for IPv6. The four bytes ride in the last
/// block beside the length, so an IPv4 flow costs two rounds and the three of the end.
#[inline(always)]
pub fn sip13(key: &SipKey, address: &Addr, last: u32) -> u64 {
    let mut state = State(
        key.k0 ^ 0x736f_6d65_7073_6575,
        key.k1 ^ 0x646f_7261_6e64_6f6d,
        key.k0 ^ 0x6c79_6765_6e65_7261,
        key.k1 ^ 0x7465_6462_7974_6573,
    );
    let mut length = 12;
    if address.high != 0 {
        length = 20;
        state.word(address.high);
    }
    state.word(address.low);
    state.word(last as u64 | (length << 56));
    state.2 ^= 0xff;
    state.round();
    state.round();
    state.round();
    state.0 ^ state.1 ^ state.2 ^ state.3
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_reference(k0: u64, k1: u64, high: u64, low: u64, last: u32) {
            for high in [0, high] {
                let mut reference = SipHasher13::new_with_keys(k0, k1);
                if high != 0 {
                    reference.write(&high.to_le_bytes());
                }
                reference.write(&low.to_le_bytes());
                reference.write(&last.to_le_bytes());
                prop_assert_eq!(sip13(&SipKey { k0, k1 }, &Addr { high, low }, last), reference.finish());
            }
        }
    }
}

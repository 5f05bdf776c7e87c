//! The keyed hash that chooses slots and table entries.
//!
//! Two steps, both with secret keys (one set a service, the same on every node that has the seed):
//!
//! 1. **Multilinear hashing** (Carter and Wegman, "Universal classes of hash functions", 1979; Lemire and Kaser,
//!    "Strongly universal string hashing is fast", 2014, theorem 3.1): a sum of 32-bit words of the flow, each times a
//!    64-bit key word, plus one. Its upper 32 bits are *pairwise independent and uniform*. A second sum with the key
//!    words shifted by one (Toeplitz, as in UMAC, RFC 4418 section 5.2) is independent of the first, because the
//!    last word in which two flows differ meets a key word there that the first sum has not. Together: 64 bits.
//! 2. A **permutation** of those 64 bits, of multiplications by secret odd numbers and shifted exclusive ors. No
//!    permutation changes the guarantee of step 1; this one takes away its linearity, which would leave clients with
//!    neighbouring addresses or ports in regular patterns, very uneven ones with some keys.
//!
//! So for any two different flows of a service (of one address family), chosen without knowledge of the key: they meet
//! in one of M slots with probability at most 1/M + 2^-32, in one of 2^b buckets with 2^-b, and agree in all 64 bits
//! with 2^-64. Nobody can compute flows that meet. That is what SipHash is used for in the kernel's own tables; it
//! promises more (a pseudo-random function, also to an attacker who sees its values), for a dozen nanoseconds more
//! a packet. The values never leave the node. What can be seen from outside is which backend answers; who can see
//! that finds flows to one backend by trying, whatever the hash. Step 2 keeps such hints from being linear equations.

use crate::Addr;

pub mod sip;

/// Words of a [`HashKey`].
const WORDS: usize = 10;

/// Key of the flow hash. Made of random words: weak ones (zero, small numbers) hash badly.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HashKey {
    /// Added to the two sums.
    pub offsets: [u64; 2],
    /// Factors of the words; the first three are all that IPv4 needs, and lie in one cache line with what is before.
    pub factors: [u64; 3],
    /// Odd: factors of the permutation.
    pub rounds: [u64; 2],
    /// The other factors of the words.
    pub more_factors: [u64; 3],
}

const _: () = assert!(size_of::<HashKey>() == WORDS * size_of::<u64>());

impl HashKey {
    /// A key of these random words, `word(0)` to `word(9)`.
    pub fn from_words(mut word: impl FnMut(u8) -> u64) -> Self {
        Self {
            offsets: [word(0), word(1)],
            factors: [word(2), word(3), word(4)],
            rounds: [word(5) | 1, word(6) | 1],
            more_factors: [word(7), word(8), word(9)],
        }
    }

    /// A key for tests and benchmarks, from a number (SplitMix64; Steele, Lea and Flood, 2014).
    pub fn from_number(number: u64) -> Self {
        let mut state = number;
        Self::from_words(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }
}

/// The two sums of step 1.
struct Sums(u64, u64);

impl Sums {
    /// Adds a word of 32 bits; `second` is the factor after `first`.
    #[inline(always)]
    fn add(&mut self, word: u64, first: &u64, second: &u64) {
        self.0 = self.0.wrapping_add(word.wrapping_mul(fresh(first)));
        self.1 = self.1.wrapping_add(word.wrapping_mul(fresh(second)));
    }
}

/// Reads a word of the key where it is used. Else the compiler loads many early, and what they take the place of goes to
/// the stack: slower than a second load, and on some ways only, which Linux 6.18's verifier stumbles over.
#[inline(always)]
fn fresh(word: &u64) -> u64 {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(word) }
}

/// Hash of an address and 32 more bits: four multiplications for IPv4, ten for IPv6, and two.
#[inline(always)]
pub fn keyed(key: &HashKey, address: &Addr, last: u32) -> u64 {
    let mut sums = Sums(fresh(&key.offsets[0]), fresh(&key.offsets[1]));
    let [a, b, c] = &key.factors;
    sums.add(u64::from(last), a, b);
    if address.is_v4() {
        sums.add(u64::from(address.v4_word()), b, c);
    } else {
        let [d, e, f] = &key.more_factors;
        sums.add(address.low >> 32, b, c);
        sums.add(address.low & 0xffff_ffff, c, d);
        sums.add(address.high >> 32, d, e);
        sums.add(address.high & 0xffff_ffff, e, f);
    }
    permute(key, sums.0 ^ (sums.1 >> 32))
}

/// Step 2: a bijection for every key.
#[inline(always)]
fn permute(key: &HashKey, hash: u64) -> u64 {
    let hash = hash.wrapping_mul(fresh(&key.rounds[0]));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(fresh(&key.rounds[1]));
    hash ^ (hash >> 32)
}

/// Maps the upper half of a hash to `0..buckets` without a division (Lemire, 2016).
#[inline(always)]
pub const fn reduce(hash: u64, buckets: u32) -> u32 {
    (((hash >> 32) * buckets as u64) >> 32) as u32
}

#[cfg(test)]
mod tests;

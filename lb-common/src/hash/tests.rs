use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;

/// What the docstring says, with numbers of any length.
fn by_the_book(key: &HashKey, words: &[u32]) -> u64 {
    let factors: Vec<u64> = [&key.factors[..], &key.more_factors].concat();
    let sum = |offset: u64, factors: &[u64]| {
        let products = words
            .iter()
            .zip(factors)
            .map(|(word, factor)| u128::from(*word) * u128::from(*factor));
        (u128::from(offset) + products.sum::<u128>()) as u64
    };
    let first = sum(key.offsets[0], &factors);
    let second = sum(key.offsets[1], &factors[1..]);
    let product = |value: u64, factor: u64| (u128::from(value) * u128::from(factor)) as u64;
    let mixed = product(first ^ (second >> 32), key.rounds[0]);
    let mixed = product(mixed ^ (mixed >> 32), key.rounds[1]);
    mixed ^ (mixed >> 32)
}

proptest! {
    #[test]
    fn hashes_by_the_book(number: u64, high: u64, low: u64, v4: [u8; 4], last: u32) {
        let key = HashKey::from_number(number);
        let address = Addr { high, low };
        let words = [last, (low >> 32) as u32, low as u32, (high >> 32) as u32, high as u32];
        prop_assert_eq!(keyed(&key, &address, last), by_the_book(&key, &words));
        let address = Addr::from_v4(v4);
        let words = [last, u32::from_ne_bytes(v4)];
        prop_assert_eq!(keyed(&key, &address, last), by_the_book(&key, &words));
    }

    #[test]
    fn the_permutation_is_one(number: u64, value: u64) {
        let key = HashKey::from_number(number);
        // The inverse of an odd number, by Newton's iteration: each step doubles the good bits.
        let inverse = |odd: u64| (0..6).fold(odd, |guess, _| {
            guess.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(guess)))
        });
        let back = |hash: u64, factor: u64| (hash ^ (hash >> 32)).wrapping_mul(inverse(factor));
        let hash = permute(&key, value);
        prop_assert_eq!(back(back(hash, key.rounds[1]), key.rounds[0]), value);
    }

    #[test]
    fn reduce_stays_in_range(hash: u64, buckets in 1u32..) {
        prop_assert!(reduce(hash, buckets) < buckets);
    }
}

/// Flows as they come: neighbours in ports, in addresses, in both, in the network's half of an IPv6 address.
const PATTERNS: [fn(u32) -> (Addr, u32); 8] = [
    |n| (v4(0x0a00_0001), ports(1024 + n, 443)),
    |n| (v4(0x0a00_0001), ports(1024 + 2 * n, 443)),
    |n| (v4(0x0a00_0001 + n), ports(40_000, 443)),
    |n| (v4(0x0a00_0001 + (n << 8)), ports(40_000, 443)),
    |n| {
        (
            v4(0x6440_0001 + (n >> 4)),
            ports(20_000 + (n & 15) * 2601, 443),
        )
    },
    |n| (v6(0x2001_0db8 << 96 | u128::from(n)), ports(40_000, 443)),
    |n| {
        (
            v6(0x2001_0db8 << 96 | u128::from(n) << 64 | 1),
            ports(40_000, 443),
        )
    },
    |n| (v6(0x2001_0db8 << 96 | 1), ports(1024 + n, 443)),
];

fn v4(word: u32) -> Addr {
    Addr::from_v4(word.to_be_bytes())
}

fn v6(bits: u128) -> Addr {
    Addr::from_bytes(bits.to_be_bytes())
}

fn ports(client: u32, service: u16) -> u32 {
    let [a, b] = (client as u16).to_be_bytes();
    let [c, d] = service.to_be_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

const FLOWS: u32 = 8192;

/// How far from even, in standard deviations of the chi-square test: about 0 for random numbers, and about normal.
fn unevenness(counts: &[u32]) -> f64 {
    let expected = f64::from(FLOWS) / counts.len() as f64;
    let chi: f64 = counts
        .iter()
        .map(|count| (f64::from(*count) - expected).powi(2) / expected)
        .sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

fn uneven_by(
    key: u64,
    pattern: fn(u32) -> (Addr, u32),
    bins: u32,
    bin: fn(u64, u32) -> u32,
) -> f64 {
    let key = HashKey::from_number(key);
    let mut counts = vec![0; bins as usize];
    for number in 0..FLOWS {
        let (address, last) = pattern(number);
        counts[bin(keyed(&key, &address, last), bins) as usize] += 1;
    }
    unevenness(&counts)
}

/// Slots, buckets, first ways and cut positions are as even as random numbers would make them, for every key: a
/// linear hash alone would be far more even with most keys, and far less (by hundreds) with some.
#[test]
fn neighbours_spread_like_random_numbers() {
    const KEYS: u64 = 60;
    type Bin = fn(u64, u32) -> u32;
    let bins: [(u32, Bin); 4] = [
        (1009, reduce),
        (101, reduce),
        (1024, |hash, bins| hash as u32 & (bins - 1)),
        (512, |hash, bins| {
            reduce(u64::from(crate::abi::cut_position(hash)) << 32, bins)
        }),
    ];
    for (which, (bins, bin)) in bins.into_iter().enumerate() {
        for (number, pattern) in PATTERNS.into_iter().enumerate() {
            let found: Vec<f64> = (0..KEYS)
                .map(|key| uneven_by(key * 1000 + number as u64, pattern, bins, bin))
                .collect();
            let mean = found.iter().sum::<f64>() / KEYS as f64;
            let spread =
                (found.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / KEYS as f64).sqrt();
            let most = found.iter().copied().fold(f64::MIN, f64::max);
            assert!(
                mean.abs() < 0.6 && (0.6..1.5).contains(&spread) && most < 6.0,
                "bins {which}, pattern {number}: mean {mean:.2}, deviation {spread:.2}, most {most:.1}"
            );
        }
    }
}

/// Each bit of a flow turns each bit of its hash half of the time, over keys.
#[test]
fn every_bit_matters_to_every_bit() {
    const KEYS: u64 = 4000;
    let flip = |address: &Addr, last: u32, bit: u32| match bit {
        0..32 => (*address, last ^ (1 << bit)),
        32..96 => (
            Addr {
                low: address.low ^ (1 << (bit - 32)),
                ..*address
            },
            last,
        ),
        _ => (
            Addr {
                high: address.high ^ (1 << (bit - 96)),
                ..*address
            },
            last,
        ),
    };
    // Of an IPv4 address only the four bytes themselves may change.
    let v4_word = if cfg!(target_endian = "little") {
        64..96
    } else {
        32..64
    };
    let v4_bits: Vec<u32> = (0..32).chain(v4_word).collect();
    for (address, bits) in [
        (v4(0xcb00_7109), v4_bits),
        (v6(0x2001_0db8 << 96 | 7), (0..160).collect()),
    ] {
        let last = ports(51_234, 443);
        for bit in bits {
            let mut turned = [0u32; 64];
            for number in 0..KEYS {
                let key = HashKey::from_number(number);
                let (other, other_last) = flip(&address, last, bit);
                let change = keyed(&key, &address, last) ^ keyed(&key, &other, other_last);
                for (out, count) in turned.iter_mut().enumerate() {
                    *count += (change >> out) as u32 & 1;
                }
            }
            for (out, count) in turned.into_iter().enumerate() {
                let share = f64::from(count) / KEYS as f64;
                // Six standard deviations of a fair coin thrown as often.
                assert!(
                    (share - 0.5).abs() < 0.048,
                    "bit {bit} turns bit {out} in {share:.3}"
                );
            }
        }
    }
}

/// The guarantee itself, for pairs chosen to be hard: over keys, two flows meet as often as chance has them meet.
#[test]
fn two_flows_meet_by_chance_only() {
    const KEYS: u64 = 40_000;
    const SLOTS: u32 = 64;
    for (number, pattern) in PATTERNS.into_iter().enumerate() {
        for (one, other) in [(0, 1), (0, 0x80), (1, 0x7fff), (0x100, 0x101)] {
            let met = (0..KEYS)
                .map(HashKey::from_number)
                .filter(|key| {
                    let slot = |n| {
                        let (address, last) = pattern(n);
                        reduce(keyed(key, &address, last), SLOTS)
                    };
                    slot(one) == slot(other)
                })
                .count() as f64;
            let expected = KEYS as f64 / f64::from(SLOTS);
            assert!(
                (met - expected).abs() < 6.0 * expected.sqrt(),
                "pattern {number}, flows {one} and {other}: {met} times, not {expected}"
            );
        }
    }
}

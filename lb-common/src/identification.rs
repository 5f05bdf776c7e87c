//! Identifications for fragmented packets that leave under an address which they did not come with.
//!
//! Behind such an address stand many senders (the clients of a `full-nat` service behind the node's, its backends behind
//! the service's), each of which numbers its own packets; so their numbers would clash. Each packet gets a fresh one.
//!
//! No two packets with the same ends (source, destination and, in IPv4, protocol: RFC 6864 section 4.1, RFC 8200 section
//! 4.5) have the same identification while fragments of both may be about. The ends choose a [`Lane`], whose counter gives
//! the identification, and an offset that is added to it: both are keyed hashes of the ends, so that nobody outside can
//! tell the next one (RFC 7739 section 5.3). One pair of ends always has the same lane and offset, and a lane gives no number
//! twice before its counter comes round:
//!
//! - in IPv6 after 2^32 packets, which takes longer than any reassembly at any rate that there is;
//! - in IPv4 after 2^16, which may be soon. So there the lane remembers when each eighth of its numbers was begun, and gives
//!   none again whose eighth was not done [`SECONDS`] ago: it rather gives none. (RFC 6864 section 4.3: who can not tell that
//!   fragments are gone must send no faster.) That allows some 900 packets a second for each lane, and more for bursts of
//!   up to 57,344.
//!
//! A counter for each CPU would need a part of the number to tell the CPUs apart: of 16 bits there is none to spare.

use core::ptr::{self, NonNull};

use crate::{
    Addr, fragment,
    hash::sip::{SipKey, sip13},
};

/// How many lanes there are, a power of two: as many for either family.
pub const LANES: u32 = 1 << 12;

/// Seconds that an identification is not given again: later fragments follow their first one for
/// [`fragment::SECONDS`], and the last that did may wait for others as long again.
pub const SECONDS: u32 = 2 * fragment::SECONDS;

/// Parts of the numbers of which a lane knows when they were begun. A power of two.
const SPANS: usize = 8;

/// Numbers that IPv4 has.
const NUMBERS_V4: u64 = 1 << 16;

/// Numbers in a part of them.
const SPAN: u64 = NUMBERS_V4 / SPANS as u64;

/// How often a CPU tries to be the first to take a number.
const ATTEMPTS: u32 = 8;

/// Where the identifications of some ends come from.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lane {
    /// The number that is given next, without end.
    pub next: u64,
    /// Second of the kernel's clock in which a number of each part was first given, lately.
    pub begun: [u32; SPANS],
    /// Zero.
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Lane>() == 64);
const _: () = assert!(LANES.is_power_of_two() && SPANS.is_power_of_two());

/// The memory of the lanes.
pub trait Lanes {
    /// The lane at `index`, or `None` past the end. The memory stays valid for as long as the packet is processed.
    fn lane(&self, index: u32) -> Option<NonNull<Lane>>;

    /// Atomically: if `*word == old` then `*word = new`; returns what was there. Orders all memory accesses.
    ///
    /// # Safety
    /// `word` is aligned and lies in a lane.
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64;
}

/// Between whom a packet goes, as far as identifications are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Index of their lane.
    lane: u32,
    /// What is added to its numbers.
    offset: u32,
    is_v4: bool,
}

impl Ends {
    /// Of packets from `source` to `destination`. `seed` is secret. Of IPv6 the protocol does not count.
    #[inline(always)]
    pub fn new(seed: u64, source: &Addr, destination: &Addr, protocol: u8) -> Self {
        let is_v4 = source.is_v4();
        let key = SipKey {
            k0: seed,
            k1: 0x6964_656e_7469_6679,
        };
        let protocol = if is_v4 { protocol as u32 } else { 0 };
        let second = SipKey {
            k0: seed,
            k1: sip13(&key, destination, protocol),
        };
        let mixed = sip13(&second, source, 0);
        Self {
            // Apart by family: IPv6 uses up numbers that IPv4 has too few of.
            lane: (mixed as u32 & (LANES - 1) & !1) | !is_v4 as u32,
            offset: (mixed >> 32) as u32,
            is_v4,
        }
    }
}

/// An identification for a packet between these ends, of 16 bits in IPv4; `second` is now, by the kernel's clock. `None`
/// where all may still be in use.
#[inline(always)]
pub fn fresh<L: Lanes>(lanes: &L, ends: &Ends, second: u32) -> Option<u32> {
    let lane = lanes.lane(ends.lane)?;
    let word = unsafe { &raw mut (*lane.as_ptr()).next };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        // SAFETY: the lanes vouch for it; words that all CPUs read and write whole.
        unsafe {
            let number = ptr::read_volatile(word);
            if ends.is_v4 && !is_free(lane, number, second) {
                return None;
            }
            if L::compare_exchange(word, number, number.wrapping_add(1)) == number {
                if number % SPAN == 0 {
                    begun(lane, number).write_volatile(second);
                }
                let id = (number as u32).wrapping_add(ends.offset);
                return Some(if ends.is_v4 { id & 0xffff } else { id });
            }
        }
        attempt += 1;
    }
    None
}

/// When the part that `number` is in was begun.
#[inline(always)]
unsafe fn begun(lane: NonNull<Lane>, number: u64) -> *mut u32 {
    let part = (number / SPAN) as usize & (SPANS - 1);
    unsafe { (&raw mut (*lane.as_ptr()).begun).cast::<u32>().add(part) }
}

/// Whether nothing is about any more that had this number in the round before: its part was done when the next was begun.
#[inline(always)]
unsafe fn is_free(lane: NonNull<Lane>, number: u64, second: u32) -> bool {
    let done = unsafe { begun(lane, number.wrapping_add(SPAN)).read_volatile() };
    number < NUMBERS_V4 || second.saturating_sub(done) > SECONDS
}

#[cfg(test)]
mod tests;

//! Who owned a slot between its base and its current owner.
//!
//! Changes of one service that overlap in time leave flows on backends that their slot names no more: drain A moves a
//! slot from A to B, and before that has settled drain B moves it on to C. A flow that began in between is on B. As long as
//! its entry stands nobody has to know; if the flow table is lost, the second chance asks these as well.

use crate::limits::BACKEND_ID_MAX;

/// Most former owners of a slot that are remembered: with base and current eight backends, each of which can be asked.
pub const FORMERS_MAX: usize = 6;

/// Bits of one id. The maps hold at most 2^20 backends, numbered from 1.
const BITS: u32 = 21;

const MASK: u64 = (1 << BITS) - 1;

/// Ids in one word.
const IN_WORD: usize = 3;

const _: () = assert!(FORMERS_MAX == 2 * IN_WORD && IN_WORD as u32 * BITS <= 64);
const _: () = assert!(MASK <= BACKEND_ID_MAX as u64);

/// Former owners of a slot, the last one first; three ids of 21 bits in each word, 0 for none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Formers(pub [u64; 2]);

impl Formers {
    /// Nobody.
    pub const NONE: Self = Self([0; 2]);

    /// The first [`FORMERS_MAX`] of these ids.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut words = [0; 2];
        for (place, id) in ids.into_iter().take(FORMERS_MAX).enumerate() {
            words[place / IN_WORD] |= (u64::from(id) & MASK) << (BITS * (place % IN_WORD) as u32);
        }
        Self(words)
    }

    /// The one at `place`, 0 for none.
    #[inline(always)]
    pub const fn get(&self, place: usize) -> u32 {
        let word = if place < IN_WORD {
            self.0[0]
        } else {
            self.0[1]
        };
        let place = if place < IN_WORD {
            place
        } else {
            place - IN_WORD
        };
        ((word >> (BITS * (place as u32 & 3))) & MASK) as u32
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let all = (0..FORMERS_MAX).map(move |place| self.get(place));
        all.take_while(|id| *id != 0)
    }

    /// Whether there is nobody.
    pub const fn is_empty(&self) -> bool {
        self.0[0] == 0
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn who_goes_in_comes_out() {
        let ids: Vec<u32> = [7, 1 << 20, 3, (1 << 20) - 1, 5, 1, 9].into();
        for count in 0..=ids.len() {
            let formers = Formers::new(ids[..count].iter().copied());
            let kept = &ids[..count.min(FORMERS_MAX)];
            assert!(formers.iter().eq(kept.iter().copied()), "{count}");
            assert_eq!(formers.is_empty(), count == 0);
        }
    }
}

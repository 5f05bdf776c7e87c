//! A service's table as the daemon keeps it: mostly one byte a slot instead of eight.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use lb_common::abi::Slot;

/// The slots of a table. Each distinct one is kept once, and for every slot which of these it is: one byte where there
/// are at most 256, as with 256 backends outside of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    kinds: Vec<Slot>,
    which: Which,
}

/// Indices into `kinds`.
#[derive(Debug, Clone, PartialEq)]
enum Which {
    Bytes(Box<[u8]>),
    Words(Box<[u16]>),
    Wide(Box<[u32]>),
}

impl Packed {
    /// Number of slots.
    pub fn len(&self) -> usize {
        match &self.which {
            Which::Bytes(which) => which.len(),
            Which::Words(which) => which.len(),
            Which::Wide(which) => which.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kind(&self, index: usize) -> Option<usize> {
        match &self.which {
            Which::Bytes(which) => which.get(index).map(|kind| usize::from(*kind)),
            Which::Words(which) => which.get(index).map(|kind| usize::from(*kind)),
            Which::Wide(which) => which.get(index).map(|kind| *kind as usize),
        }
    }

    /// A slot.
    pub fn get(&self, index: usize) -> Option<Slot> {
        Some(self.kinds[self.kind(index)?])
    }

    /// All slots in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The distinct slots, in no order.
    pub fn kinds(&self) -> &[Slot] {
        &self.kinds
    }

    /// Other values for some slots: index and slot. One past the end is left out.
    pub fn change(&mut self, changes: &[(u32, Slot)]) {
        let mut slots: Vec<Slot> = self.iter().collect();
        for (index, slot) in changes {
            if let Some(place) = slots.get_mut(*index as usize) {
                *place = *slot;
            }
        }
        *self = slots.into_iter().collect();
    }
}

/// A hash of slots, whose words nobody outside chooses: a table has a hundred thousand of them.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        // An odd number whose product reaches all upper bits, which are then brought down as well.
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl FromIterator<Slot> for Packed {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut kinds = Vec::new();
        let mut numbers: HashMap<u64, u32, BuildHasherDefault<Spread>> = HashMap::default();
        let which: Vec<u32> = slots
            .into_iter()
            .map(|slot| {
                *numbers.entry(slot.0).or_insert_with(|| {
                    kinds.push(slot);
                    kinds.len() as u32 - 1
                })
            })
            .collect();
        kinds.shrink_to_fit();
        let which = match kinds.len() {
            0..=0x100 => Which::Bytes(which.into_iter().map(|kind| kind as u8).collect()),
            0x101..=0x1_0000 => Which::Words(which.into_iter().map(|kind| kind as u16).collect()),
            _ => Which::Wide(which.into_boxed_slice()),
        };
        Self { kinds, which }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u32) -> Slot {
        Slot::new(number + 1, number % 7 + 1, number.is_multiple_of(2))
    }

    #[test]
    fn what_goes_in_comes_out() {
        for distinct in [1, 255, 256, 257, 65_535, 65_536, 65_537] {
            let slots: Vec<Slot> = (0..70_000).map(|n| slot(n % distinct)).collect();
            let packed: Packed = slots.iter().copied().collect();
            assert_eq!(packed.len(), slots.len());
            assert_eq!(packed.kinds().len(), distinct as usize);
            assert!(packed.iter().eq(slots.iter().copied()), "{distinct}");
            assert_eq!(packed.get(69_999), slots.last().copied());
            assert_eq!(packed.get(70_000), None);
        }
        let none: Packed = [].into_iter().collect();
        assert!(none.is_empty() && none.get(0).is_none());
    }

    #[test]
    fn a_backend_or_a_hundred_take_a_byte_a_slot() {
        let packed: Packed = (0..32_749).map(|n| slot(n % 100)).collect();
        assert!(matches!(packed.which, Which::Bytes(_)));
        let packed: Packed = (0..32_749).map(|n| slot(n % 300)).collect();
        assert!(matches!(packed.which, Which::Words(_)));
    }

    #[test]
    fn single_slots_change() {
        let mut packed: Packed = (0..300).map(|n| slot(n % 256)).collect();
        packed.change(&[(7, slot(1000)), (9, slot(3)), (300, slot(4))]);
        let expected = (0..300).map(|n| match n {
            7 => slot(1000),
            9 => slot(3),
            n => slot(n % 256),
        });
        assert!(packed.iter().eq(expected));
    }
}

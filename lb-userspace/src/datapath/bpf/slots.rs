//! Where in the slots map each service's table is: a first-fit allocator over what the services' records say.

use lb_common::abi::Slot;

use super::Parts;
use crate::datapath::Result;

/// A part of the slots map: first slot, number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// First slot.
    pub first: u32,
    /// Number of slots.
    pub slots: u32,
}

impl Region {
    /// From the word in a service's record; `None` when it has no table.
    pub fn from_word(word: u64) -> Option<Self> {
        let slots = word as u32;
        (slots != 0).then_some(Self {
            first: (word >> 32) as u32,
            slots,
        })
    }

    /// Its slots, counted over all services.
    pub const fn range(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.slots
    }

    /// Its slots as they are now.
    pub fn read(&self, map: &Parts<Slot>) -> Result<Vec<Slot>> {
        let part = map.part(self.range())?;
        self.range().map(|place| part.read(place)).collect()
    }
}

/// The first free place for `wanted` slots in a map of `capacity`, beside the regions in use.
pub fn allocate(mut used: Vec<Region>, capacity: u32, wanted: u32) -> Option<Region> {
    used.sort_unstable();
    let mut start = 0u32;
    for region in used {
        if region.first.checked_sub(start)? >= wanted {
            break;
        }
        start = region.first.checked_add(region.slots)?;
    }
    (start.checked_add(wanted)? <= capacity).then_some(Region {
        first: start,
        slots: wanted,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_gap_is_taken() {
        let used = vec![
            Region {
                first: 10,
                slots: 5,
            },
            Region { first: 0, slots: 5 },
        ];
        assert_eq!(
            allocate(used.clone(), 20, 5),
            Some(Region { first: 5, slots: 5 })
        );
        assert_eq!(
            allocate(used.clone(), 21, 6),
            Some(Region {
                first: 15,
                slots: 6
            })
        );
        assert_eq!(allocate(used, 20, 6), None);
    }

    proptest! {
        #[test]
        fn regions_never_overlap(sizes in prop::collection::vec((1u32..50, any::<bool>()), 0..60)) {
            let mut used: Vec<Region> = Vec::new();
            for (wanted, free_one) in sizes {
                if let Some(region) = allocate(used.clone(), 300, wanted) {
                    prop_assert!(region.first + region.slots <= 300);
                    for other in &used {
                        prop_assert!(region.first + region.slots <= other.first || other.first + other.slots <= region.first);
                    }
                    used.push(region);
                }
                if free_one && !used.is_empty() {
                    used.remove(used.len() / 2);
                }
            }
        }
    }
}

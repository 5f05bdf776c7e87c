//! The address index: which service a destination names, which service and backend a source names.
//!
//! One open-addressed table, 32 bytes an entry, read with one or two cache lines and no helper call. The map has room for
//! two: the daemon builds the one that is not live and publishes it with one word
//! ([`crate::abi::ControlRecord::index`]); an entry never changes while it can be read.

use crate::{Addr, limits::INDEX_PROBES};

/// What an entry says.
pub mod kind {
    /// Nothing: the end of a probe.
    pub const EMPTY: u8 = 0;
    /// A destination that is a service.
    pub const SERVICE: u8 = 1;
    /// A source that is a backend of a `nat` service.
    pub const REPLY: u8 = 2;
    /// A destination address that services have, whatever the port; port and protocol are 0. Names the service that
    /// echo requests are counted for.
    pub const VIP: u8 = 3;
    /// A destination address with a service on several of its ports. In place of a port there is the entry's number: an
    /// address has such entries 0, 1 and so on, at most [`crate::limits::RANGES_MAX`], the narrowest service first.
    pub const RANGE: u8 = 4;
    /// A source address that is a backend of a `nat` service on several ports; numbered like [`RANGE`].
    pub const REPLY_RANGE: u8 = 5;
    /// A server id of a QUIC service: in place of an address there are the service's id and the server id, see
    /// [`server_key`](super::server_key).
    pub const SERVER_ID: u8 = 6;
}

/// One entry.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexEntry {
    /// Address.
    pub address: Addr,
    /// Port, protocol and [`kind`], see [`selector`].
    pub selector: u64,
    /// Service id.
    pub service: u32,
    /// Backend id, for replies.
    pub backend: u32,
}

const _: () = assert!(size_of::<IndexEntry>() == 32);

/// Where the live index is, in one word, so that storing it publishes an index: its seed in bits 32 to 63, whether it has
/// ranges in bit 31, its first place in the map below: 0, or the length of an index, which is even.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live(pub u64);

/// [`Live`]: there are ranges.
const RANGES: u64 = 1 << 31;

impl Live {
    /// An index whose places depend on `seed`, and whose first is 0 or the length of an index.
    pub const fn new(seed: u32, first: u32) -> Self {
        Self(((seed as u64) << 32) | first as u64)
    }

    /// The same, and it says whether there are entries of [`kind::RANGE`].
    #[must_use]
    pub const fn with_ranges(self, ranges: bool) -> Self {
        if ranges {
            Self(self.0 | RANGES)
        } else {
            Self(self.0 & !RANGES)
        }
    }

    /// Whether there are entries of [`kind::RANGE`]: nobody else needs to look for them.
    #[inline(always)]
    pub const fn has_ranges(self) -> bool {
        self.0 & RANGES != 0
    }

    /// The seed of its places, with `node`'s own ([`crate::abi::ControlRecord::index_seed`]): odd, as that one is.
    #[inline(always)]
    pub const fn seed(self, node: u64) -> u64 {
        self.0 ^ node
    }

    /// Its first place in the map, where an index has so many entries less one.
    #[inline(always)]
    pub const fn first(self, mask: u32) -> u32 {
        // An AND with one bit: the verifier knows its result.
        self.0 as u32 & (mask + 1)
    }
}

/// The second half of a key: port (network order as loaded), IP protocol number, [`kind`].
#[inline(always)]
pub const fn selector(port: u16, protocol: u8, kind: u8) -> u64 {
    port as u64 | ((protocol as u64) << 16) | ((kind as u64) << 24)
}

/// Address and selector of a [`kind::SERVER_ID`].
#[inline(always)]
pub const fn server_key(service: u32, server: u64) -> (Addr, u64) {
    let address = Addr {
        high: service as u64,
        low: server,
    };
    (address, selector(0, 0, kind::SERVER_ID))
}

/// The [`kind`] out of a [`selector`].
pub const fn kind_of(selector: u64) -> u8 {
    (selector >> 24) as u8
}

/// How long an index is: a power of two, at least two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Length {
    /// 64 less its logarithm.
    pub shift: u32,
    /// One less.
    pub mask: u32,
}

impl Length {
    /// Of a table of so many entries.
    pub const fn new(entries: u32) -> Self {
        Self {
            shift: 64 - entries.ilog2(),
            mask: entries - 1,
        }
    }
}

/// Where the probe for a key begins: the upper bits of a product with the seed, an odd number ([`Live::seed`]). Whatever
/// two keys are, few seeds bring them together (Dietzfelbinger and others, "A reliable randomized algorithm for the
/// closest-pair problem", 1997). Not secret: only configured addresses are in the index.
#[inline(always)]
pub const fn position(seed: u64, address: &Addr, selector: u64, shift: u32) -> u32 {
    let key = selector.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ address.high.rotate_left(24);
    ((key ^ address.low).wrapping_mul(seed) >> shift) as u32
}

/// Puts an entry into a table whose length is a power of two. False when its probe is full: take another seed
/// or a larger table.
#[must_use]
pub fn insert(table: &mut [IndexEntry], seed: u64, entry: IndexEntry) -> bool {
    let length = Length::new(table.len() as u32);
    let start = position(seed, &entry.address, entry.selector, length.shift);
    for step in 0..INDEX_PROBES {
        let place = &mut table[(start.wrapping_add(step) & length.mask) as usize];
        if place.selector == 0 {
            *place = entry;
            return true;
        }
    }
    false
}

/// Finds a key by asking `read` for entries of a table of this length; `None` from `read` ends the search.
#[inline(always)]
pub fn find<'a>(
    seed: u64,
    length: Length,
    address: &Addr,
    selector: u64,
    read: impl Fn(u32) -> Option<&'a IndexEntry>,
) -> Option<&'a IndexEntry> {
    let mut place = position(seed, address, selector, length.shift);
    let mut step = 0;
    while step < INDEX_PROBES {
        let entry = read(place)?;
        if entry.selector == selector
            && entry.address.low == address.low
            && entry.address.high == address.high
        {
            return Some(entry);
        }
        if entry.selector == 0 {
            return None;
        }
        place = place.wrapping_add(1) & length.mask;
        step += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_was_put_in_and_nothing_else(
            seed: u64, keys in prop::collection::hash_set((any::<[u8; 4]>(), any::<u16>()), 0..200),
        ) {
            let mut table = vec![IndexEntry::default(); 1024];
            let keys: Vec<_> = keys.into_iter().collect();
            let (inside, outside) = keys.split_at(keys.len() / 2);
            let key = |&(v4, port): &([u8; 4], u16)| (Addr::from_v4(v4), selector(port, 6, kind::SERVICE));
            for (number, item) in inside.iter().enumerate() {
                let (address, selector) = key(item);
                let entry = IndexEntry { address, selector, service: number as u32, backend: 0 };
                prop_assume!(insert(&mut table, seed, entry));
            }
            let look = |item: &([u8; 4], u16)| {
                let (address, selector) = key(item);
                find(seed, Length::new(1024), &address, selector, |index| table.get(index as usize)).map(|entry| entry.service)
            };
            for (number, item) in inside.iter().enumerate() {
                prop_assert_eq!(look(item), Some(number as u32));
            }
            for item in outside {
                prop_assert_eq!(look(item), None);
            }
        }
    }

    #[test]
    fn neighbours_on_one_port_spread() {
        for make in [
            (|n| Addr::from_v4([10, 0, (n >> 8) as u8, n as u8])) as fn(u16) -> Addr,
            |n| Addr::from_v4([10, n as u8, (n >> 8) as u8, 1]),
            |n| {
                let mut bytes = [0xfd; 16];
                bytes[14..].copy_from_slice(&n.to_be_bytes());
                Addr::from_bytes(bytes)
            },
            |n| {
                let mut bytes = [0xfd; 16];
                bytes[4..6].copy_from_slice(&n.to_be_bytes());
                Addr::from_bytes(bytes)
            },
        ] {
            let mut table = vec![IndexEntry::default(); 4096];
            for n in 0..1000 {
                let entry = IndexEntry {
                    address: make(n),
                    selector: selector(8080, 6, kind::REPLY),
                    ..IndexEntry::default()
                };
                // Alone, an entry a quarter of the way to a full table finds room in nearly every seed.
                assert!(
                    insert(&mut table, 0x3f84_d5b5_b547_0917, entry),
                    "entry {n}"
                );
            }
        }
    }

    #[test]
    fn a_full_probe_is_refused() {
        let mut table = vec![IndexEntry::default(); 8];
        let entry = |n: u8| IndexEntry {
            address: Addr::from_v4([10, 0, 0, n]),
            selector: selector(80, 6, kind::SERVICE),
            ..IndexEntry::default()
        };
        for n in 0..8 {
            assert!(insert(&mut table, 1, entry(n)));
        }
        assert!(!insert(&mut table, 1, entry(8)));
    }
}

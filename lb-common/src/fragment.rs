//! What is remembered of first fragments, so that later ones, which have no ports, follow them.
//!
//! The table is one of flow entries ([`crate::entry`]): the source and the identification are kept whole; the hash, of
//! which 63 bits are kept as the tag, covers the destination and the protocol too, and 32 bits of another one stand
//! beside the identification. So one fragment is taken for another's with a chance of 1 in 2^95, and only at random:
//! both hashes are keyed.
//!
//! Of a packet of a `full-nat` service, which leaves with other addresses and another identification
//! ([`crate::identification`]), an entry says these too ([`Renewed`]): in fields that only flows use.

use core::ptr::NonNull;

use crate::{
    Addr,
    entry::{FlowEntry, FlowKey, Meta, age},
    hash::sip::{SipKey, sip13},
};

/// Fragments that can be remembered, a power of two. Where a group of them is full the oldest gives way: under a flood
/// of F first fragments a second to services, each is remembered for about this many over F seconds.
pub const REMEMBERED: u32 = 1 << 14;

/// Seconds that a packet's fragments have to arrive in (as Linux has for IPv4; RFC 8200 section 4.5 allows 60).
pub const SECONDS: u32 = 30;

/// Bit of a [`Meta`]'s state: the packet is an answer, on its way from the backend to a client.
pub const TO_CLIENT: u64 = 1;

/// A packet that came in fragments.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Keyed hash of all of it.
    pub hash: u64,
    /// Its place in a table of flows.
    pub flow: FlowKey,
}

/// The key of a packet (RFC 791 section 3.2, RFC 8200 section 4.5): `id` is its identification, `protocol` that of
/// IPv4, or 0 for IPv6, where it does not count. `seed` is secret.
#[inline(always)]
pub fn key(seed: u64, source: &Addr, destination: &Addr, id: u32, protocol: u8) -> Key {
    let first = SipKey {
        k0: seed,
        k1: 0x6672_6167_6d65_6e74,
    };
    let other = sip13(&first, destination, protocol as u32);
    let second = SipKey {
        k0: seed,
        k1: other,
    };
    Key {
        hash: sip13(&second, source, id),
        flow: FlowKey {
            client: *source,
            ports: id as u64 | (other & !0xffff_ffff),
        },
    }
}

/// What is remembered: the service, its backend, and which way.
#[inline(always)]
pub const fn meta(service: u32, backend: u32, way: u64) -> Meta {
    Meta::new(service, backend, way)
}

/// The service out of it.
#[inline(always)]
pub const fn service(meta: Meta) -> u32 {
    meta.isn()
}

/// What the later fragments of a `full-nat` packet are given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewed {
    /// The identification, as it lies in the packet.
    pub id: u32,
    /// Place of the allocation that has the addresses, in the table of ports.
    pub place: u32,
    /// The allocation's tag: when the place is another flow's, the addresses are not these any more.
    pub owner: u64,
}

/// What an entry says of this. Without an owner (0) it says nothing.
///
/// # Safety
/// The entry is one of a table of fragments.
#[inline(always)]
pub unsafe fn renewed(entry: NonNull<FlowEntry>) -> Renewed {
    unsafe {
        let place = entry.as_ptr();
        let owner = (&raw const (*place).heard).read_volatile();
        Renewed {
            id: (&raw const (*place).sequence).read_volatile(),
            place: (&raw const (*place).acknowledged).read_volatile(),
            owner,
        }
    }
}

/// Notes it in an entry. The owner comes last, so that nobody reads the new owner's name over what is not his yet.
///
/// # Safety
/// As for [`renewed`].
#[inline(always)]
pub unsafe fn set_renewed(entry: NonNull<FlowEntry>, renewed: &Renewed) {
    unsafe {
        let place = entry.as_ptr();
        (&raw mut (*place).heard).write_volatile(0);
        (&raw mut (*place).sequence).write_volatile(renewed.id);
        (&raw mut (*place).acknowledged).write_volatile(renewed.place);
        (&raw mut (*place).heard).write_volatile(renewed.owner);
    }
}

/// Whether a first fragment that was seen in the tick `opened` is still remembered.
#[inline(always)]
pub const fn is_remembered(opened: u32, now: u32, ticks_per_second: u32) -> bool {
    age(opened, now) <= ticks_per_second.wrapping_mul(SECONDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_part_counts(
            seed: u64, source: [u8; 16], destination: [u8; 16], id: u32, protocol: u8, other: u32, bit in 0..128_u32,
        ) {
            let flip = |bytes: [u8; 16]| (u128::from_be_bytes(bytes) ^ (1 << bit)).to_be_bytes();
            let of = |source, destination, id, protocol| {
                key(seed, &Addr::from_bytes(source), &Addr::from_bytes(destination), id, protocol)
            };
            let one = of(source, destination, id, protocol);
            prop_assert_eq!(one, of(source, destination, id, protocol));
            for different in [
                of(flip(source), destination, id, protocol),
                of(source, flip(destination), id, protocol),
                of(source, destination, id ^ (other | 1), protocol),
                of(source, destination, id, protocol ^ (other | 1) as u8),
            ] {
                prop_assert_ne!(one.hash, different.hash);
                prop_assert_ne!(one.hash | 1, different.hash | 1);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_read_back() {
        let meta = meta(4096, crate::limits::BACKEND_ID_MAX, TO_CLIENT);
        assert_eq!(service(meta), 4096);
        assert_eq!(meta.backend(), crate::limits::BACKEND_ID_MAX);
        assert!(meta.has(TO_CLIENT));
        let mut entry = FlowEntry::default();
        let given = Renewed {
            id: 0xdead_beef,
            place: 77,
            owner: u64::MAX,
        };
        // SAFETY: nobody else is at it.
        unsafe {
            assert_eq!(renewed(NonNull::from(&mut entry)).owner, 0);
            set_renewed(NonNull::from(&mut entry), &given);
            assert_eq!(renewed(NonNull::from(&mut entry)), given);
        }
    }

    #[test]
    fn it_is_remembered_for_its_time() {
        assert!(is_remembered(100, 100, 250) && is_remembered(100, 99, 250));
        assert!(
            is_remembered(100, 100 + 30 * 250, 250) && !is_remembered(100, 101 + 30 * 250, 250)
        );
        assert!(is_remembered(u32::MAX, 5, 250));
    }
}

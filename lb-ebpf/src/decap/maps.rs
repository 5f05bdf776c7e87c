//! The maps, and what the loader sets.

use crate::prefix;
use aya_ebpf::{
    macros::map,
    maps::{LpmTrie, PerCpuArray},
};
use lb_common::{Addr, tunnel::Decap};

/// Packets by [`Decap`].
#[map]
pub static DECAP_COUNTS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(Decap::ALL.len() as u32, 0);

/// Prefixes that tunnels may come from; IPv4 as mapped addresses.
#[map]
pub static DECAP_SOURCES: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1024, 1);

/// UDP port of the tunnel, network order as loaded; the loader sets it.
#[unsafe(no_mangle)]
static DECAP_PORT: u16 = 6080_u16.to_be();

/// Whether [`DECAP_SOURCES`] holds; the loader sets it when a prefix is given.
#[unsafe(no_mangle)]
static DECAP_CHECKS: u32 = 0;

/// UDP port of the tunnel, network order as loaded.
#[inline(always)]
pub fn port() -> u16 {
    // SAFETY: a read of a static; volatile, because the loader changes it behind the compiler's back.
    unsafe { core::ptr::read_volatile(&raw const DECAP_PORT) }
}

/// Whether tunnels may come from this address.
#[inline(always)]
pub fn is_allowed(source: &Addr) -> bool {
    // SAFETY: as above.
    let checks = unsafe { core::ptr::read_volatile(&raw const DECAP_CHECKS) };
    let mut place = prefix::Place::uninit();
    checks == 0 || DECAP_SOURCES.get(prefix::key(&mut place, source)).is_some()
}

//! Limits, and how they hang together. Checked at compile time where they depend on each other.

/// Version of every map layout in [`crate::abi`]. A daemon refuses pinned maps of another version.
pub const ABI_VERSION: u32 = 8;

/// Highest backend id that fits a slot or a flow entry (24 bits); id 0 means "none".
pub const BACKEND_ID_MAX: u32 = (1 << 24) - 1;

/// Most services a node can have. Service id 0 means "none" and counts what belongs to no service.
pub const SERVICES_MAX: u32 = 4096;

/// Entries of the flow and handshake tables that share a hash bucket.
pub const WAYS: u32 = 4;

/// An entry's time of its flow's last packet may be late by the idle timeout shifted right by this (1/32).
pub const SEEN_SHIFT: u32 = 5;

/// Ticks since an entry's time after which its flow has been silent for the idle timeout, however late that time is.
#[inline(always)]
#[must_use]
pub const fn silence(idle_ticks: u32) -> u32 {
    idle_ticks.saturating_add(idle_ticks >> SEEN_SHIFT)
}

/// An entry whose flow the base steers as well is not replaced by another such while it was seen within the idle
/// timeout shifted right by this (1/16; 19 s of 5 minutes). Longer than `seen` may be late.
pub const RECENT_SHIFT: u32 = 4;

/// Longest probe in the address index, in entries.
pub const INDEX_PROBES: u32 = 8;

/// Most services on several ports that share an address and a protocol, and most of them that share a `nat` backend.
pub const RANGES_MAX: u32 = 8;

/// Room for outcome counters per service (a power of two, at least the number of outcomes).
pub const OUTCOMES_MAX: u32 = 64;

/// The last place of a service's outcome counters: entries of its flows that gave way to others while they lived
/// ([`crate::entry::EntryTable::gave_way`]).
pub const GAVE_WAY: u32 = OUTCOMES_MAX - 1;

/// How far from its initial sequence number a packet may be and still complete a handshake, in bytes: an
/// initial window can not be scaled (RFC 7323 section 2.2), so 64 KiB covers all that can be in flight.
pub const HANDSHAKE_WINDOW: u32 = 1 << 16;

/// Most VLAN devices of a node that ebb sends by.
pub const VLANS_MAX: u32 = 4096;

/// Default entries a CPU may add to the flow table by adoption in one tick of the kernel's clock.
pub const ADOPTIONS_PER_TICK: u32 = 2000;

/// Default entries a CPU may add to the handshake table in one tick of the kernel's clock.
pub const OPENINGS_PER_TICK: u32 = 4000;

/// Packets that a CPU answers with an ICMP error in one tick of the kernel's clock (RFC 1812 section 4.3.2.8, RFC 4443
/// section 2.4 f). A host needs one for each path.
pub const ANSWERS_PER_TICK: u32 = 16;

const _: () = assert!(WAYS.is_power_of_two());
const _: () = assert!(RECENT_SHIFT < SEEN_SHIFT);
const _: () = assert!(OUTCOMES_MAX.is_power_of_two());
const _: () = assert!(crate::outcome::Outcome::COUNT as u32 <= GAVE_WAY);

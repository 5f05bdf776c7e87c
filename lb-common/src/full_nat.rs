//! Ports of the node for flows of `full-nat` services: who has which, and how one is found again.
//!
//! A backend tells flows apart by source address and port. So an allocation is the key of the way back: backend
//! address and port, node address and port, protocol. Each such key has exactly one place in the table (a hash of
//! all but the last bits of the node's port chooses a group of [`BLOCK`] places, those bits the place in it), and a place is taken by one compare-and-exchange of its tag. Two flows can therefore never have the same
//! port towards a backend, whatever the CPUs do at once.
//!
//! A flow's candidates follow from its own keyed hash: [`ROUNDS`] times a node address and a block of [`BLOCK`] ports
//! in a row, tried from a port on that the hash chooses too. A flow whose allocation was lost asks for the same
//! candidates in the same order, and gets the same port again unless another flow was faster. Port selection by a
//! keyed hash of the flow is RFC 6056 section 3.3.3.
//!
//! Nothing sweeps the table: how long an allocation holds is judged when another flow wants its place ([`lease`]). Where an
//! opening finds all its candidates held, it displaces the one that has waited longest for a first sign of one of its sides
//! ([`displace`]): so a flood of openings displaces openings of the flood, and a handshake has as long as the flood takes to
//! go through all such ports.

use core::ptr::{self, NonNull};

use crate::{
    Addr,
    entry::masked_age,
    hash::{
        reduce,
        sip::{SipKey, sip13},
    },
    mask,
    steer::tcp,
};

/// Ports in a row that make a block, and places in a group. A power of two.
pub const BLOCK: u32 = 4;

/// Blocks that a flow may have its port from. Many small blocks: of 8 by 4 candidates all are taken when the ports are
/// nearly used up, of 2 by 16 when a third of them are.
pub const ROUNDS: u32 = 8;

/// Most addresses of one family that ports can be of. A power of two.
pub const ADDRESSES_MAX: usize = 8;

/// Seconds that nobody else gets the port of a flow that both sides have closed: as long as Linux keeps a connection
/// in TIME-WAIT (RFC 9293 section 3.4.1 has two segment lifetimes).
pub const TIME_WAIT_SECONDS: u32 = 60;

/// Seconds that a port is kept for a flow which was reset, or of which one side has shown nothing yet (and which no opening
/// displaces). A flood of openings, or of packets to flows that do not exist, holds ports no longer than this.
pub const UNCONFIRMED_SECONDS: u32 = 10;

/// [`PortEntry::tag`] of a place that is being filled; no flow has it.
pub const TAG_BUSY: u64 = 2;

/// TCP option that names the client (kind): one of the two for experiments (RFC 4727 section 7), with the layout of
/// "TCP option address" as LVS and DPVS write it and their kernel modules read it: kind, length, port, address.
pub const OPTION_KIND: u8 = 254;

/// Length of that option with an IPv4 address.
pub const OPTION_V4: usize = 8;

/// Length of that option with an IPv6 address.
pub const OPTION_V6: usize = 20;

/// Most bytes of options in a TCP header (RFC 9293 section 3.1).
pub const OPTIONS_MAX: usize = 40;

/// One allocation.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortEntry {
    /// The flow's hash with its lowest bit set; 0 while free, [`TAG_BUSY`] while being filled.
    pub tag: u64,
    /// The client's address.
    pub client: Addr,
    /// The node's address.
    pub node: Addr,
    /// The client's port, network order as loaded.
    pub client_port: u16,
    /// The node's port, network order as loaded.
    pub node_port: u16,
    /// The backend's port, network order as loaded.
    pub backend_port: u16,
    /// What the client has sent, [`seen`].
    pub from_client: u8,
    /// What the backend has sent, [`seen`].
    pub from_server: u8,
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Tick of its last packet.
    pub seen: u32,
    /// Ticks after which an unseen flow of this service has ended.
    pub idle_ticks: u32,
}

/// Bits of what one side of a flow has sent.
pub mod seen {
    /// Something that keeps the flow alive: of the client anything but an opening, of the backend anything.
    pub const ALIVE: u8 = 1;
    /// A FIN.
    pub const FIN: u8 = 2;
    /// A RST, and nothing after it.
    pub const RESET: u8 = 4;
    /// Of the backend: more than the answer to an opening.
    pub const BEYOND: u8 = 8;
}

/// Where ports come from, for one family.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sources {
    /// Which ports, and how many addresses; a [`Sources::range`]. 0: no port may be given out.
    pub range: u64,
    /// Zero.
    pub reserved: [u64; 7],
    /// The node's addresses. With none of them, ports are of the address that the node has towards the backend.
    pub addresses: [Addr; ADDRESSES_MAX],
}

const _: () = assert!(size_of::<PortEntry>() == 64 && size_of::<Sources>() == 192);
const _: () = assert!(core::mem::offset_of!(PortEntry, service) == 48);
const _: () = assert!(BLOCK.is_power_of_two() && ADDRESSES_MAX.is_power_of_two());

impl Sources {
    /// The word for these ports, of which only whole blocks count, and so many addresses; 0 when there is no whole
    /// block.
    pub const fn range(first_port: u16, last_port: u16, addresses: usize) -> u64 {
        let first = (first_port as u32).div_ceil(BLOCK);
        let end = (last_port as u32 + 1) / BLOCK;
        if end <= first {
            return 0;
        }
        ((end - first) as u64) << 32 | (first as u64) << 8 | addresses as u64
    }

    #[inline(always)]
    const fn blocks(range: u64) -> u32 {
        (range >> 32) as u32
    }

    #[inline(always)]
    const fn first_block(range: u64) -> u32 {
        (range as u32) >> 8
    }

    /// How many ports of each address there are.
    pub const fn ports(range: u64) -> u32 {
        Self::blocks(range) * BLOCK
    }

    /// How many addresses are listed.
    #[inline(always)]
    pub const fn count(range: u64) -> u32 {
        range as u32 & 0xff
    }
}

/// The memory of a table of allocations.
pub trait PortTable {
    /// Number of places minus one; the number is a power of two, at least [`BLOCK`].
    fn mask(&self) -> u32;

    /// The place at `index`, or `None` past the end. The memory stays valid for as long as the packet is processed.
    fn entry(&self, index: u32) -> Option<NonNull<PortEntry>>;

    /// Atomically: if `*word == old` then `*word = new`; returns what was there. Orders all memory accesses.
    ///
    /// # Safety
    /// `word` is aligned and lies in a place of this table.
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64;
}

/// A flow that needs a port. Ports in network order as loaded. What is handed to the program that displaces another one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    /// Its keyed hash ([`crate::steer::flow_hash`]).
    pub hash: u64,
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: u16,
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// The backend's port.
    pub backend_port: u16,
    /// [`far_end`] of its backend.
    pub far_end: SipKey,
    /// The node's address towards the backend.
    pub own: Addr,
    /// The service's idle time in ticks.
    pub idle_ticks: u32,
}

/// Key of the places of all ports towards one backend address and port. `seed` is secret.
#[inline(always)]
pub fn far_end(seed: u64, backend: &Addr, port: u16, protocol: u8) -> SipKey {
    let key = SipKey {
        k0: seed,
        k1: 0x706f_7274_7320_6f66,
    };
    SipKey {
        k0: seed,
        k1: sip13(&key, backend, port as u32 | (protocol as u32) << 16),
    }
}

/// The first place of the group for a block of ports of this node address.
#[inline(always)]
fn group(far_end: &SipKey, node: &Addr, block: u32) -> u32 {
    sip13(far_end, node, block) as u32 & !(BLOCK - 1)
}

/// One round of a flow's candidates.
struct Round {
    node: Addr,
    block: u32,
    group: u32,
    /// The port in the block that is tried first.
    first: u32,
}

#[inline(always)]
fn round(sources: &Sources, flow: &Flow, number: u32) -> Option<Round> {
    let range = sources.range;
    if Sources::blocks(range) == 0 {
        return None;
    }
    // The hash's upper half has chosen the backend already.
    let mixed = (flow.hash ^ (number as u64).rotate_right(8)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let count = Sources::count(range);
    // The words, not where they are: of two places a verifier would go on from each.
    let own = mask::zero(u64::from(count));
    let address = &sources.addresses[reduce(mixed << 32, count) as usize & (ADDRESSES_MAX - 1)];
    let node = Addr {
        high: mask::select(own, flow.own.high, address.high),
        low: mask::select(own, flow.own.low, address.low),
    };
    let block = Sources::first_block(range) + reduce(mixed, Sources::blocks(range));
    Some(Round {
        node,
        block,
        group: group(&flow.far_end, &node, block),
        first: mixed as u32,
    })
}

impl Round {
    #[inline(always)]
    fn at(&self, step: u32) -> u32 {
        self.first.wrapping_add(step) & (BLOCK - 1)
    }

    /// Place of the candidate.
    #[inline(always)]
    fn place(&self, step: u32, mask: u32) -> u32 {
        (self.group | self.at(step)) & mask
    }

    /// Its port, network order as loaded.
    #[inline(always)]
    fn port(&self, step: u32) -> u16 {
        ((self.block * BLOCK + self.at(step)) as u16).to_be()
    }
}

#[inline(always)]
const fn tag(hash: u64) -> u64 {
    hash | 1
}

#[inline(always)]
unsafe fn tag_of(entry: NonNull<PortEntry>) -> u64 {
    unsafe { ptr::read_volatile(&raw const (*entry.as_ptr()).tag) }
}

/// One comparison of all, not one after another: see [`mask`].
#[inline(always)]
unsafe fn belongs(entry: NonNull<PortEntry>, flow: &Flow) -> bool {
    let differs = unsafe {
        let place = entry.as_ptr();
        (tag_of(entry) ^ tag(flow.hash))
            | ((*place).client.low ^ flow.client.low)
            | ((*place).client.high ^ flow.client.high)
            | u64::from((*place).client_port ^ flow.client_port)
            | u64::from((*place).backend_port ^ flow.backend_port)
            | u64::from((*place).service ^ flow.service)
            | u64::from((*place).backend ^ flow.backend)
    };
    differs == 0
}

/// The allocation that a flow has.
#[inline(always)]
pub fn find<T: PortTable>(table: &T, sources: &Sources, flow: &Flow) -> Option<NonNull<PortEntry>> {
    let mut number = 0;
    while number < ROUNDS {
        let round = round(sources, flow, number)?;
        let mut step = 0;
        while step < BLOCK {
            let entry = table.entry(round.place(step, table.mask()))?;
            // SAFETY: the table vouches for the entry.
            if unsafe { belongs(entry, flow) } {
                return Some(entry);
            }
            step += 1;
        }
        number += 1;
    }
    None
}

/// Whether the flow of a packet with these TCP flags (`None` of a datagram) may displace others: one that begins. Nobody knows a
/// flow in its midst by a new port.
#[inline(always)]
pub const fn may_displace(tcp_flags: Option<u8>) -> bool {
    match tcp_flags {
        Some(flags) => flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
        None => true,
    }
}

/// Makes an allocation for a flow that has none. `None` when all its candidates are taken.
#[inline(always)]
pub fn claim<T: PortTable>(
    table: &T,
    sources: &Sources,
    flow: &Flow,
    now: u32,
    ticks_per_second: u32,
) -> Option<NonNull<PortEntry>> {
    let mut number = 0;
    while number < ROUNDS {
        let round = round(sources, flow, number)?;
        let mut step = 0;
        while step < BLOCK {
            let entry = table.entry(round.place(step, table.mask()))?;
            // SAFETY: the table vouches for the entry.
            if unsafe { take::<T>(entry, now, ticks_per_second) } {
                // SAFETY: it is ours alone until the tag says otherwise.
                unsafe { fill::<T>(entry, flow, &round.node, round.port(step), now) };
                return Some(entry);
            }
            step += 1;
        }
        number += 1;
    }
    None
}

/// Makes an allocation for a flow whose candidates are all taken: the one that has waited longest to be confirmed loses its own.
/// `None` when all of them are confirmed, or the one has been confirmed meanwhile.
///
/// Not a part of [`claim`], which goes through the same candidates: a verifier would go through all that may become of one of
/// them together with all that may become of the others.
#[inline(always)]
pub fn displace<T: PortTable>(
    table: &T,
    sources: &Sources,
    flow: &Flow,
    now: u32,
) -> Option<NonNull<PortEntry>> {
    let longest = longest_waiting(table, sources, flow, now)?;
    let ticks = longest / CANDIDATES;
    if ticks == 0 {
        return None;
    }
    let round = round(sources, flow, longest % CANDIDATES / BLOCK)?;
    let step = longest % BLOCK;
    let entry = table.entry(round.place(step, table.mask()))?;
    // SAFETY: the table vouches for the entry; once its tag is taken it is ours alone.
    unsafe {
        let tag = &raw mut (*entry.as_ptr()).tag;
        let old = tag_of(entry);
        if old & 1 == 0
            || waiting(entry, now) != ticks
            || T::compare_exchange(tag, old, TAG_BUSY) != old
        {
            return None;
        }
        // Another CPU may have heard of it since.
        if waiting(entry, now) != ticks {
            T::compare_exchange(tag, TAG_BUSY, old);
            return None;
        }
        fill::<T>(entry, flow, &round.node, round.port(step), now);
    }
    Some(entry)
}

/// Candidates of a flow.
const CANDIDATES: u32 = ROUNDS * BLOCK;
const _: () = assert!(CANDIDATES.is_power_of_two());

/// Ticks that are told apart: as many as have room beside a candidate's number.
const WAITING_MAX: u32 = 0xff_ffff;

/// The candidate whose flow has waited longest to be confirmed: [`waiting`] times [`CANDIDATES`], and its number among these.
#[inline(always)]
fn longest_waiting<T: PortTable>(
    table: &T,
    sources: &Sources,
    flow: &Flow,
    now: u32,
) -> Option<u32> {
    let mut longest = 0;
    let mut number = 0;
    while number < ROUNDS {
        let round = round(sources, flow, number)?;
        let mut step = 0;
        while step < BLOCK {
            let entry = table.entry(round.place(step, table.mask()))?;
            // SAFETY: the table vouches for the entry.
            let ticks = unsafe { waiting(entry, now) };
            let found = i64::from((ticks * CANDIDATES) | (number * BLOCK) | step);
            // The larger one.
            let more = found - longest;
            longest += more & !(mask::negative(more) as i64);
            step += 1;
        }
        number += 1;
    }
    Some(longest as u32)
}

/// How long the flow at a place has waited to be confirmed, ticks and one; 0 when it is.
#[inline(always)]
unsafe fn waiting(entry: NonNull<PortEntry>, now: u32) -> u32 {
    // Read anew each time: other CPUs write to it.
    let (client, server, seen) = unsafe {
        let place = entry.as_ptr();
        (
            (&raw const (*place).from_client).read_volatile(),
            (&raw const (*place).from_server).read_volatile(),
            (&raw const (*place).seen).read_volatile(),
        )
    };
    let ticks = u64::from(masked_age(seen, now) & WAITING_MAX);
    let is_unconfirmed = mask::negative(i64::from(client & server & seen::ALIVE) - 1);
    ((ticks + 1) & is_unconfirmed) as u32
}

/// Marks a place as being filled, if it is free or its lease is over, and nobody else is faster.
#[inline(always)]
unsafe fn take<T: PortTable>(entry: NonNull<PortEntry>, now: u32, ticks_per_second: u32) -> bool {
    unsafe {
        let old = tag_of(entry);
        let over = over(&*entry.as_ptr(), now, ticks_per_second) & !mask::zero(old ^ TAG_BUSY);
        (over | mask::zero(old)) != 0
            && T::compare_exchange(&raw mut (*entry.as_ptr()).tag, old, TAG_BUSY) == old
    }
}

#[inline(always)]
unsafe fn fill<T: PortTable>(
    entry: NonNull<PortEntry>,
    flow: &Flow,
    node: &Addr,
    port: u16,
    now: u32,
) {
    unsafe {
        let place = entry.as_ptr();
        (*place).client = flow.client;
        (*place).node = *node;
        (*place).client_port = flow.client_port;
        (*place).node_port = port;
        (*place).backend_port = flow.backend_port;
        (*place).from_client = 0;
        (*place).from_server = 0;
        (*place).service = flow.service;
        (*place).backend = flow.backend;
        (*place).seen = now;
        (*place).idle_ticks = flow.idle_ticks;
        T::compare_exchange(&raw mut (*place).tag, TAG_BUSY, tag(flow.hash));
    }
}

/// How many ticks after its last packet a flow's port may be given to another flow.
#[inline(always)]
pub fn lease(entry: &PortEntry, ticks_per_second: u32) -> u32 {
    let either = u64::from(entry.from_client | entry.from_server);
    let both = u64::from(entry.from_client & entry.from_server);
    let unconfirmed = u64::from(UNCONFIRMED_SECONDS * ticks_per_second);
    let time_wait = u64::from(TIME_WAIT_SECONDS * ticks_per_second);
    let alive = mask::any(both, u64::from(seen::ALIVE));
    let open = mask::select(alive, u64::from(entry.idle_ticks), unconfirmed);
    let closed = mask::select(mask::any(both, u64::from(seen::FIN)), time_wait, open);
    let reset = mask::any(either, u64::from(seen::RESET));
    mask::select(reset, unconfirmed, closed) as u32
}

/// All bits where another flow may have the place.
#[inline(always)]
fn over(entry: &PortEntry, now: u32, ticks_per_second: u32) -> u64 {
    mask::more(masked_age(entry.seen, now), lease(entry, ticks_per_second))
}

/// An answer, as it arrives from a backend. Ports in network order as loaded.
pub struct Reply {
    /// [`far_end`] of its source.
    pub far_end: SipKey,
    /// Source port.
    pub backend_port: u16,
    /// Destination.
    pub node: Addr,
    /// Destination port.
    pub node_port: u16,
}

impl Reply {
    /// The only place that an allocation which it belongs to can have.
    #[inline(always)]
    pub fn place<T: PortTable>(&self, table: &T) -> u32 {
        let port = u16::from_be(self.node_port) as u32;
        let first = group(&self.far_end, &self.node, port / BLOCK);
        (first | port & (BLOCK - 1)) & table.mask()
    }
}

/// The allocation that an answer belongs to; the caller must still compare the backend's address and the protocol.
#[inline(always)]
pub fn owner<T: PortTable>(table: &T, reply: &Reply) -> Option<NonNull<PortEntry>> {
    let entry = table.entry(reply.place(table))?;
    // SAFETY: the table vouches for the entry.
    unsafe {
        let place = entry.as_ptr();
        let is_taken = tag_of(entry) & 1 != 0;
        (is_taken
            && (*place).node.low == reply.node.low
            && (*place).node.high == reply.node.high
            && (*place).node_port == reply.node_port
            && (*place).backend_port == reply.backend_port)
            .then_some(entry)
    }
}

/// The allocation at a place, as long as it is the one with this tag.
#[inline(always)]
pub fn held_at<T: PortTable>(table: &T, place: u32, tag: u64) -> Option<NonNull<PortEntry>> {
    let entry = table.entry(place & table.mask())?;
    // SAFETY: the table vouches for the entry. Tags are odd: 0 and `TAG_BUSY` are nobody's.
    (unsafe { tag_of(entry) } == tag && tag & 1 != 0).then_some(entry)
}

/// What the client has sent, after a packet with these TCP flags (0 of a datagram).
#[inline(always)]
pub const fn after_client(old: u8, flags: u8) -> u8 {
    if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        return old;
    }
    after(old, flags)
}

/// What the backend has sent, after a packet with these TCP flags (0 of a datagram).
#[inline(always)]
pub const fn after_server(old: u8, flags: u8) -> u8 {
    if flags & tcp::SYN != 0 {
        return after(old, flags);
    }
    after(old, flags) | seen::BEYOND
}

#[inline(always)]
const fn after(old: u8, flags: u8) -> u8 {
    if flags & tcp::RST != 0 {
        return old | seen::RESET;
    }
    // Whoever goes on has not been reset: a forged RST changes nothing for long.
    let fin = if flags & tcp::FIN != 0 { seen::FIN } else { 0 };
    (old & !seen::RESET) | seen::ALIVE | fin
}

/// What is handed to the program for packets to backends, of one that has been steered.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handed {
    /// Hash of its flow.
    pub hash: u64,
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Its [`crate::outcome::Outcome`] when all goes well.
    pub outcome: u32,
    /// Place of the program that is to go on with it, for the one that displaces another flow.
    pub back: u32,
}

#[cfg(test)]
mod tests;

//! Entries of the flow table and of the handshake table, and the set-associative table that both are.
//!
//! An entry is one cache line; [`WAYS`] entries that share a group are all the places a flow can be in. An
//! entry is claimed by one compare-and-exchange of its tag, filled, and made visible by a second one, so two
//! CPUs never fill one entry, and a reader never sees half of one.

use core::ptr::{self, NonNull};

use crate::{Addr, limits::WAYS, mask};

mod policy;

pub use policy::{FlowPolicy, HandshakePolicy, OldestPolicy, Policy, SCORE_DEAD, Score};

/// One flow, or one handshake.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowEntry {
    /// The flow's hash with its lowest bit set; 0 while free, [`TAG_BUSY`] while being filled.
    pub tag: u64,
    /// The client's address.
    pub client: Addr,
    /// Ports and service, see [`FlowKey::ports`].
    pub ports: u64,
    /// Initial sequence number, backend and state, see [`Meta`]. One word, so that they change together.
    pub meta: u64,
    /// Tick of its last packet; while it is not closing, up to 1/32 of the idle timeout early.
    pub seen: u32,
    /// Tick of its first packet.
    pub opened: u32,
    /// The client's next sequence number, as last seen.
    pub sequence: u32,
    /// The client's last acknowledgement: the next sequence number it expects from the server.
    pub acknowledged: u32,
    /// Where another node told of the flow: [`HEARD`], and in the lower half the tick of its last word; else 0.
    pub heard: u64,
}

/// Bit of [`FlowEntry::heard`].
pub const HEARD: u64 = 1 << 32;

impl FlowEntry {
    /// Whether another node told of the flow, and no packet of it has come by here since.
    #[must_use]
    pub const fn is_elsewhere(&self) -> bool {
        self.heard & HEARD != 0 && self.heard as u32 == self.seen
    }
}

const _: () = assert!(size_of::<FlowEntry>() == 64);

/// Tag of an entry that is being filled. No flow has it: their tags are odd.
pub const TAG_BUSY: u64 = 2;

/// The words of [`FlowEntry::meta`]: initial sequence number in bits 32 to 63, backend in 8 to 31, [`state`] in 0 to 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta(pub u64);

/// Bits of a [`Meta`]'s state.
pub mod state {
    /// The client has sent a FIN.
    pub const FIN_CLIENT: u64 = 1;
    /// The server has sent a FIN (seen in `nat` only).
    pub const FIN_SERVER: u64 = 2;
    /// Either side has sent a RST.
    pub const RESET: u64 = 4;
    /// Its close has been counted, or (handshake table) is counted by the flow's own entry.
    pub const CLOSE_COUNTED: u64 = 8;
    /// A SYN with another sequence number was seen: the handshake table may know a newer flow of this key.
    pub const REOPENED: u64 = 16;
    /// The initial sequence number is known.
    pub const ISN_KNOWN: u64 = 32;
    /// Its backend is not the base of its slot: without this entry the flow would break.
    pub const EXCEPTIONAL: u64 = 64;
    /// (handshake table) Its slot has moved on, and its flow has not been seen since: without this entry nobody would know
    /// that it was counted as open.
    pub const AWAITED: u64 = 64;
    /// (handshake table) The handshake is done, but the flow table had no room for the flow.
    pub const ESTABLISHED: u64 = 128;
    /// (flow table) Its backend is a guess: nothing was known of the flow, and its backend has not answered yet.
    pub const GUESSED: u64 = 128;
    /// All that say that the flow is closing or closed.
    pub const CLOSING: u64 = FIN_CLIENT | FIN_SERVER | RESET;
}

impl Meta {
    /// A word with these parts.
    #[inline(always)]
    pub const fn new(isn: u32, backend: u32, state: u64) -> Self {
        Self(
            ((isn as u64) << 32)
                | (((backend & crate::limits::BACKEND_ID_MAX) as u64) << 8)
                | (state & 0xff),
        )
    }

    /// Initial sequence number; meaningful with [`state::ISN_KNOWN`].
    #[inline(always)]
    pub const fn isn(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Backend id.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> 8) as u32 & crate::limits::BACKEND_ID_MAX
    }

    /// Whether any of these [`state`] bits is set.
    #[inline(always)]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits & 0xff != 0
    }

    /// With these [`state`] bits set.
    #[inline(always)]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | (bits & 0xff))
    }

    /// With these [`state`] bits cleared.
    #[inline(always)]
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !(bits & 0xff))
    }
}

/// What identifies a flow, always seen from the client.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey {
    /// The client's address.
    pub client: Addr,
    /// Client port, service port (both network order as loaded) and service id, see [`FlowKey::pack`].
    pub ports: u64,
}

impl FlowKey {
    /// Client port in bits 0 to 15, service port in 16 to 31, service id in 32 to 63.
    #[inline(always)]
    pub const fn pack(client_port: u16, service_port: u16, service: u32) -> u64 {
        client_port as u64 | ((service_port as u64) << 16) | ((service as u64) << 32)
    }

    /// Client port out of [`FlowKey::ports`], network order as loaded.
    pub const fn client_port(ports: u64) -> u16 {
        ports as u16
    }

    /// Service port out of [`FlowKey::ports`], network order as loaded.
    pub const fn service_port(ports: u64) -> u16 {
        (ports >> 16) as u16
    }

    /// Service id out of [`FlowKey::ports`].
    pub const fn service(ports: u64) -> u32 {
        (ports >> 32) as u32
    }
}

/// The memory of a table of entries.
pub trait EntryTable {
    /// Number of entries minus one; the number is a power of two, at least [`WAYS`].
    fn mask(&self) -> u32;

    /// The entry at `index`, or `None` past the end. The memory stays valid for as long as the packet is processed.
    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>>;

    /// Atomically: if `*word == old` then `*word = new`; returns what was there. Orders all memory accesses.
    ///
    /// # Safety
    /// `word` is aligned and lies in an entry of this table.
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64;

    /// An entry has given way to another although its flow lives, as far as anybody knows: of a flow with these
    /// [`FlowKey::ports`]. Until its next packet nobody sees it.
    #[inline(always)]
    fn gave_way(&self, _ports: u64) {}
}

/// Reads a field that others may be writing.
///
/// # Safety
/// `entry` came from [`EntryTable::entry`] for the packet being processed.
#[inline(always)]
pub unsafe fn meta(entry: NonNull<FlowEntry>) -> Meta {
    Meta(unsafe { ptr::read_volatile(&raw const (*entry.as_ptr()).meta) })
}

/// Stores a meta word.
///
/// # Safety
/// As for [`meta`].
#[inline(always)]
pub unsafe fn set_meta(entry: NonNull<FlowEntry>, meta: Meta) {
    unsafe { ptr::write_volatile(&raw mut (*entry.as_ptr()).meta, meta.0) }
}

/// Notes a packet at `now`; writes only what is more than `grain` ticks late, to keep the cache line clean.
///
/// # Safety
/// As for [`meta`].
#[inline(always)]
pub unsafe fn touch(entry: NonNull<FlowEntry>, now: u32, grain: u32) {
    unsafe {
        let seen = &raw mut (*entry.as_ptr()).seen;
        if now.wrapping_sub(ptr::read_volatile(seen)) > grain {
            ptr::write_volatile(seen, now);
        }
    }
}

/// Ticks from `then` to `now`; 0 when `then` is later, as another CPU's packet may be.
#[inline(always)]
pub const fn age(then: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if (age as i32) < 0 { 0 } else { age }
}

/// Whether a flow in this state is over. Where a mode does not show the answers, the client's FIN must do.
#[inline(always)]
pub const fn is_closed(meta: Meta, mode: u8) -> bool {
    let one_sided = !crate::abi::mode::is_two_way(mode);
    meta.has(state::RESET)
        || (meta.has(state::FIN_CLIENT) && (one_sided || meta.has(state::FIN_SERVER)))
}

/// The tag of a flow with this hash.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    hash | 1
}

/// Finds a flow.
#[inline(always)]
pub fn find<T: EntryTable>(table: &T, hash: u64, key: &FlowKey) -> Option<NonNull<FlowEntry>> {
    locate(table, hash, key).map(|(_, entry)| entry)
}

/// Finds a flow, and the index of its entry.
#[inline(always)]
pub fn locate<T: EntryTable>(
    table: &T,
    hash: u64,
    key: &FlowKey,
) -> Option<(u32, NonNull<FlowEntry>)> {
    let start = hash as u32 & table.mask();
    let wanted = tag(hash);
    let mut way = 0;
    while way < WAYS {
        let entry = table.entry(start ^ way)?;
        // SAFETY: the table vouches for the entry; the fields are read as words that others may write.
        unsafe {
            let place = entry.as_ptr();
            if ptr::read_volatile(&raw const (*place).tag) == wanted
                && (*place).client.low == key.client.low
                && (*place).ports == key.ports
                && (*place).client.high == key.client.high
            {
                return Some((start ^ way, entry));
            }
        }
        way += 1;
    }
    None
}

/// What a new entry holds.
pub struct NewEntry {
    /// Its meta word.
    pub meta: Meta,
    /// Tick of its first packet.
    pub opened: u32,
    /// Now.
    pub seen: u32,
}

/// Notes what another node says of a flow: an entry is made, or one of no packet but its word is brought up to date.
/// What this node has seen itself counts more. Whether there is an entry for the flow now.
pub fn hear<T: EntryTable, P: Policy>(
    table: &T,
    hash: u64,
    key: &FlowKey,
    new: &NewEntry,
    policy: &P,
) -> bool {
    let known = find(table, hash, key);
    let Some(entry) = known.or_else(|| insert(table, hash, key, new, policy)) else {
        return false;
    };
    // SAFETY: the entry was found for this flow. A packet that changes a word at the same time says more, and only
    // `seen` tells of one: if that is not what it was a moment ago, the entry is the packet's.
    unsafe {
        let place = entry.as_ptr();
        let now = ptr::read_volatile(place);
        if known.is_some() && !now.is_elsewhere() {
            return true;
        }
        set_meta(entry, new.meta);
        ptr::write_volatile(&raw mut (*place).heard, HEARD | u64::from(new.seen));
        ptr::write_volatile(&raw mut (*place).seen, new.seen);
    }
    true
}

/// Makes an entry for a flow that has none, replacing the one that gives way most readily.
///
/// `None` when none gives way, or another CPU was faster.
#[inline(always)]
pub fn insert<T: EntryTable, P: Policy>(
    table: &T,
    hash: u64,
    key: &FlowKey,
    new: &NewEntry,
    policy: &P,
) -> Option<NonNull<FlowEntry>> {
    let start = hash as u32 & table.mask();
    let (way, score, tag_before) = readiest(table, start, new.seen, policy)?;
    if score == 0 {
        return None;
    }
    let entry = table.entry(start ^ way)?;
    // SAFETY: as in `find`; the first exchange makes the entry ours alone until the second one.
    unsafe {
        let place = entry.as_ptr();
        let tag_word = &raw mut (*place).tag;
        if T::compare_exchange(tag_word, tag_before, TAG_BUSY) != tag_before {
            return None;
        }
        if tag_before != 0 && score & SCORE_DEAD == 0 {
            table.gave_way((*place).ports);
        }
        (*place).client = key.client;
        (*place).ports = key.ports;
        (*place).opened = new.opened;
        (*place).seen = new.seen;
        (*place).sequence = 0;
        (*place).acknowledged = 0;
        (*place).heard = 0;
        set_meta(entry, new.meta);
        T::compare_exchange(tag_word, TAG_BUSY, tag(hash));
    }
    Some(entry)
}

/// The entry of a group that gives way most readily, the first of several: its way, its score (0: none gives way) and its tag.
/// Without branches, see [`mask`].
#[inline(always)]
fn readiest<T: EntryTable, P: Policy>(
    table: &T,
    start: u32,
    now: u32,
    policy: &P,
) -> Option<(u32, Score, u64)> {
    // A score, and below it what is left of the ways: the first one has most.
    let mut best = 0;
    let mut best_tag = 0;
    let mut way = 0;
    while way < WAYS {
        let entry = table.entry(start ^ way)?;
        // SAFETY: as in `find`.
        let (tag, entry_meta, seen) = unsafe {
            let place = entry.as_ptr();
            (
                ptr::read_volatile(&raw const (*place).tag),
                meta(entry),
                ptr::read_volatile(&raw const (*place).seen),
            )
        };
        let taken =
            policy.score(entry_meta, masked_age(seen, now)) as u64 & !mask::zero(tag ^ TAG_BUSY);
        let score = taken | (mask::zero(tag) & Score::MAX as u64);
        let candidate = score * WAYS as u64 + (WAYS - 1 - way) as u64;
        let better = mask::negative(best as i64 - candidate as i64);
        best = mask::select(better, candidate, best);
        best_tag = mask::select(better, tag, best_tag);
        way += 1;
    }
    let way = WAYS - 1 - best as u32 % WAYS;
    Some((way, (best / WAYS as u64) as Score, best_tag))
}

/// The same as [`age`], without a branch.
#[inline(always)]
pub(crate) fn masked_age(then: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(then);
    age & !(mask::negative(age as i32 as i64) as u32)
}

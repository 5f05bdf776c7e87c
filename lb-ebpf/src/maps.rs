//! The maps. All are pinned by name; sizes are defaults that the loader overrides with the configured ones.
//!
//! Arrays that the daemon writes are memory-mapped by it (`BPF_F_MMAPABLE`, kernel 5.5): a record's word changes
//! with one store, a table of a million flows is looked through without a system call.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf},
};
use lb_common::{
    Addr,
    abi::{
        Allowance, BackendRecord, BackendStats, ClockReading, ControlRecord, Explanation,
        ServiceRecord, Slot, TooBig, VlanDevice, jump,
    },
    alert::Said,
    entry::FlowEntry,
    former::Formers,
    fragment,
    full_nat::{Flow, Handed, PortEntry, Sources},
    identification::{self, Lane},
    index::{self, IndexEntry, Length, Live},
    limits::{OUTCOMES_MAX, VLANS_MAX},
    protect::{Bucket, ClientRule},
    recent,
    trace::{TraceCounts, TraceFilter},
};

use crate::{known::Known, tables::loaded, trace::Traced};

/// A table: its map, its place in memory, and in the third static how many records that has, a power of two, less one; 0
/// where the kernel keeps no value as large as that and the map is an array of records. The loader sets it.
macro_rules! table {
    ($(#[$doc:meta])* $array:ident, $known:ident, $section:literal, $mask:ident: $record:ty, $entries:expr) => {
        $(#[$doc])*
        #[map]
        static $array: Array<$record> = Array::pinned($entries, BPF_F_MMAPABLE);

        #[unsafe(link_section = $section)]
        static $known: Known<$record> = Known::new();

        #[unsafe(no_mangle)]
        static $mask: u32 = 0;
    };
}

/// Record of a table, by an index that the daemon has given: of one past the table's end it is that of another.
macro_rules! record {
    ($array:ident, $known:ident, $mask:ident, $index:expr) => {
        match loaded!($mask) {
            0 => $array.get($index),
            mask => Some($known.get($index, mask)),
        }
    };
}

/// The node's control record.
#[map]
static CONTROL: Array<ControlRecord> = Array::pinned(1, BPF_F_MMAPABLE);

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.CONTROL")]
static CONTROL_KNOWN: Known<ControlRecord> = Known::new();

table! {
    /// Room for two address indices, one of them live.
    INDEX, INDEX_KNOWN, ".bss.INDEX", INDEX_PLACES: IndexEntry, 1 << 17
}

table! {
    /// Services by id.
    SERVICES, SERVICES_KNOWN, ".bss.SERVICES", SERVICES_PLACES: ServiceRecord, 1024
}

table! {
    /// Backends by id.
    BACKENDS, BACKENDS_KNOWN, ".bss.BACKENDS", BACKENDS_PLACES: BackendRecord, 16_384
}

table! {
    /// Slots of all services; a service's record says where its own are.
    SLOTS, SLOTS_KNOWN, ".bss.SLOTS", SLOTS_PLACES: Slot, 1 << 20
}

table! {
    /// Beside the flow table: of which flows the entries were seen to a moment ago. (Mapped into memory by nobody, but only
    /// such an array begins at a page, so that a group never lies on two cache lines.)
    RECENT, RECENT_KNOWN, ".bss.RECENT", RECENT_PLACES: recent::Group, 1 << 16
}

/// [`Length`] of an address index; the loader sets it with the map's size, as it does those below.
#[unsafe(no_mangle)]
static INDEX_SHIFT: u32 = 63;

/// The same.
#[unsafe(no_mangle)]
static INDEX_MASK: u32 = 1;

/// The node's control record.
#[inline(always)]
pub fn control() -> &'static ControlRecord {
    CONTROL_KNOWN.first()
}

/// A service's record.
#[inline(always)]
pub fn service(id: u32) -> Option<&'static ServiceRecord> {
    record!(SERVICES, SERVICES_KNOWN, SERVICES_PLACES, id)
}

/// A backend's record.
#[inline(always)]
pub fn backend(id: u32) -> Option<&'static BackendRecord> {
    record!(BACKENDS, BACKENDS_KNOWN, BACKENDS_PLACES, id)
}

/// A backend's record, by an id that a packet names: one past the table's end is nobody's.
#[inline(always)]
pub fn backend_named(id: u32) -> Option<&'static BackendRecord> {
    let mask = loaded!(BACKENDS_PLACES);
    if mask != 0 && id > mask {
        return None;
    }
    backend(id)
}

/// A slot, by its place among those of all services.
#[inline(always)]
pub fn slot(place: u32) -> Option<Slot> {
    record!(SLOTS, SLOTS_KNOWN, SLOTS_PLACES, place).copied()
}

/// What is noted beside a group of the flow table's entries.
#[inline(always)]
pub fn recent(group: u32) -> Option<NonNull<recent::Group>> {
    match loaded!(RECENT_PLACES) {
        0 => RECENT.get_ptr_mut(group).and_then(NonNull::new),
        mask => Some(RECENT_KNOWN.pointer(group, mask)),
    }
}

/// What the live address index says of a key.
#[inline(always)]
pub fn find(control: &ControlRecord, address: &Addr, selector: u64) -> Option<&'static IndexEntry> {
    let live = Live(control.index);
    let length = Length {
        shift: loaded!(INDEX_SHIFT),
        mask: loaded!(INDEX_MASK),
    };
    let (seed, first) = (live.seed(control.index_seed), live.first(length.mask));
    index::find(seed, length, address, selector, |place| {
        if loaded!(INDEX_PLACES) == 0 {
            return INDEX.get(first + place);
        }
        // SAFETY: a place below that length, in either half.
        Some(unsafe { INDEX_KNOWN.get_unchecked(first + place) })
    })
}

/// Who owned a slot between its base and its current owner, by the slot's place in [`SLOTS`]. Read where a flow has lost its
/// entry, and only of slots that say that there is somebody. Rows take memory as they come.
#[map]
pub static FORMERS: HashMap<u32, Formers> = HashMap::pinned(1 << 18, BPF_F_NO_PREALLOC);

/// The flow table.
#[map]
pub static FLOWS: Array<FlowEntry> = Array::pinned(1 << 18, BPF_F_MMAPABLE);

/// The handshake table.
#[map]
pub static HANDSHAKES: Array<FlowEntry> = Array::pinned(1 << 16, BPF_F_MMAPABLE);

/// Ports of the node that flows of `full-nat` services have.
#[map]
pub static PORTS: Array<PortEntry> = Array::pinned(1 << 16, BPF_F_MMAPABLE);

/// Where such ports come from: for IPv4 now and before the last change, then the same for IPv6.
#[map]
pub static SOURCES: Array<Sources> = Array::pinned(4, BPF_F_MMAPABLE);

/// What the programs for `full-nat` are told. Pinned: while the program is replaced, the old one hands over to new ones.
#[map]
pub static HANDED: PerCpuArray<Handed> = PerCpuArray::pinned(1, 0);

/// Who wants a port and finds none free. Pinned for the same reason.
#[map]
pub static WANTED: PerCpuArray<Flow> = PerCpuArray::pinned(1, 0);

/// VLAN devices by interface index.
#[map]
pub static VLANS: HashMap<u32, VlanDevice> = HashMap::pinned(VLANS_MAX, 0);

/// First fragments that were steered.
#[map]
pub static FRAGMENTS: Array<FlowEntry> = Array::pinned(fragment::REMEMBERED, 0);

/// Where the identifications of fragmented packets come from that leave under another address than they came with.
#[map]
pub static IDENTIFICATIONS: Array<Lane> = Array::pinned(identification::LANES, 0);

/// Packets by service and outcome: index `service * OUTCOMES_MAX + outcome`.
#[map]
pub static OUTCOMES: PerCpuArray<u64> = PerCpuArray::pinned(1024 * OUTCOMES_MAX, 0);

/// What was done for each backend.
#[map]
pub static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::pinned(16_384, 0);

/// [`lb_common::alert::Alert`]s. Pinned: programs that trace write to it as well. (The loader gives it its size.)
#[map]
pub static ALERTS: RingBuf = RingBuf::pinned(4096, 0);

/// What each CPU wrote to it lately.
#[map]
pub static SAID: PerCpuArray<Said> = PerCpuArray::pinned(1, 0);

/// Allowance of new entries.
#[map]
pub static ALLOWANCE: PerCpuArray<Allowance> = PerCpuArray::pinned(1, 0);

/// What is left of each service's limit of new flows; index 0 is the CPU's own.
#[map]
pub static FLOW_LIMITS: PerCpuArray<Bucket> = PerCpuArray::pinned(1024, 0);

/// Prefixes of clients, one of two tries that take turns.
#[map]
pub static CLIENTS_1: LpmTrie<[u8; 16], ClientRule> = LpmTrie::pinned(65_536, 0);

/// The other one.
#[map]
pub static CLIENTS_2: LpmTrie<[u8; 16], ClientRule> = LpmTrie::pinned(65_536, 0);

/// The first fragment that a CPU is at. (It lasts through all of the program, whose stack is too small for that.)
#[map]
pub static FRAGMENT_KEY: PerCpuArray<fragment::Key> = PerCpuArray::with_max_entries(1, 0);

/// A word per CPU to pass a value through, see `thorough::forget`.
#[map]
pub static SCRATCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What `too_big` is told.
#[map]
pub static TOO_BIG: PerCpuArray<TooBig> = PerCpuArray::with_max_entries(1, 0);

/// Answer of the program `explain`.
#[map]
pub static EXPLANATION: Array<Explanation> = Array::with_max_entries(1, 0);

/// Answer of the program `clock`.
#[map]
pub static CLOCK: Array<ClockReading> = Array::with_max_entries(1, 0);

/// Programs that take over the rare packets, by [`jump`]. Pinned, because the kernel empties it when its last user
/// in user space is gone.
#[map]
pub static JUMPS: ProgramArray = ProgramArray::pinned(jump::PLACES, 0);

/// What a trace shows. Of the tracing instance alone, as are the maps below.
#[map]
pub static TRACE_FILTER: Array<TraceFilter> = Array::with_max_entries(1, 0);

/// The packet that a CPU is at. Pinned: while a program that logs is replaced, the old one hands over to the new one's
/// `report`.
#[map]
pub static TRACED: PerCpuArray<Traced> = PerCpuArray::pinned(1, 0);

/// What became of the packets. (The loader gives it its size.)
#[map]
pub static TRACE_RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How many, and how many there was no room for.
#[map]
pub static TRACE_COUNTS: PerCpuArray<TraceCounts> = PerCpuArray::with_max_entries(1, 0);

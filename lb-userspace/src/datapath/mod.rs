//! The maps and programs in the kernel, behind one interface.
//!
//! The daemon speaks only to [`Datapath`]: `bpf` is the real one, `fake` lives in memory and can be told to fail.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lb_common::{
    abi::{BackendRecord, BackendStats, Explanation, Known, ServiceRecord, Slot},
    entry::{FlowEntry, FlowKey, FlowPolicy, NewEntry},
    former::Formers,
    full_nat::Sources,
    index::IndexEntry,
    outcome::Outcome,
    trace::TraceFilter,
};
use serde::{Deserialize, Serialize};

use crate::model::{
    observed::Vlans,
    spec::{ClientAction, ClientRules, Prefix, Protocol},
};

pub mod bpf;
pub mod decap;
pub mod fake;
pub mod object;
pub mod pass;
pub mod segment;
pub mod trace;
mod xdp_link;

/// Counts of one service's packets by [`Outcome`], summed over all CPUs.
pub type Outcomes = [u64; Outcome::COUNT];

/// Why an operation on the data plane failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A map has no room left.
    #[error("{what} full: {used} of {capacity} in use, {wanted} more wanted")]
    Full {
        /// Which map.
        what: &'static str,
        /// In use.
        used: u32,
        /// Size.
        capacity: u32,
        /// Asked for.
        wanted: u32,
    },
    /// An id past the end of its map.
    #[error("{what} {id} is out of range (capacity {capacity})")]
    OutOfRange {
        /// What kind of id.
        what: &'static str,
        /// The id.
        id: u32,
        /// Size of its map.
        capacity: u32,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Kernel {
        /// What was attempted.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// There is no such interface, and there was none when the program was put on its interfaces before.
    #[error("there is no interface {interface}")]
    NoInterface {
        /// The name asked for.
        interface: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Pinned maps are of another version.
    #[error("the pinned maps have layout version {found}, this ebb has {expected}")]
    Layout {
        /// Version found.
        found: u32,
        /// Version of this build.
        expected: u32,
    },
    /// Anything that has no kind of its own.
    #[error("{0}")]
    Other(String),
}

/// Result of an operation on the data plane.
pub type Result<T> = std::result::Result<T, Error>;

/// The two tables of flow entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Table {
    /// Exact flows.
    Flows,
    /// Openings.
    Handshakes,
}

/// [`lb_common::entry::EntryTable::compare_exchange`] over this process's memory.
///
/// # Safety
/// `word` is aligned and valid, and whoever else uses it meanwhile does so by atomic accesses.
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    // SAFETY: the caller vouches for the word.
    let word = unsafe { AtomicU64::from_ptr(word) };
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        .unwrap_or_else(|found| found)
}

/// What a scan does with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it.
    Keep,
    /// Free it, unless it has become another flow meanwhile.
    Remove,
    /// Set these state bits ([`lb_common::entry::state`]), unless it has changed meanwhile.
    Set(u64),
}

/// One interface that the program runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// The kernel's id of the program that it runs now.
    #[serde(default)]
    pub program: Option<u32>,
}

/// A configured interface that the program does not run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Interface name.
    pub interface: String,
    /// Why not.
    pub why: String,
}

/// A packet for [`Datapath::explain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Client.
    pub client: std::net::SocketAddr,
    /// Service.
    pub vip: std::net::SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Of TCP: whether it is a SYN; else a plain ACK.
    pub opening: bool,
}

/// The maps and programs of one node. Every write is idempotent: doing it twice is doing it once.
///
/// Ids: services 1.., backends 1..; 0 means none.
pub trait Datapath: Send {
    /// Writes a backend's record.
    fn put_backend(&mut self, id: u32, record: &BackendRecord) -> Result<()>;

    /// Reads a backend's record; all zero where there is none.
    fn backend(&self, id: u32) -> Result<BackendRecord>;

    /// Writes a service's record. Its `table` word is left as it stands in the map; zero for a new one.
    fn put_service(&mut self, id: u32, record: &ServiceRecord) -> Result<()>;

    /// Reads a service's record; all zero where there is none.
    fn service(&self, id: u32) -> Result<ServiceRecord>;

    /// Clears a service's record, frees its slots.
    fn remove_service(&mut self, id: u32) -> Result<()>;

    /// Publishes a service's whole table with one store, and returns when no packet in flight can still see the old one.
    /// `formers`: the former owners of every slot that says that it has some.
    /// `Full` when there is no room for both tables at once.
    fn publish_table(
        &mut self,
        service: u32,
        slots: &[Slot],
        formers: &[(u32, Formers)],
    ) -> Result<()>;

    /// Reads a service's table; empty where it has none.
    fn table(&self, service: u32) -> Result<Vec<Slot>>;

    /// Reads the former owners of its slots, of each that says that it has some.
    fn formers(&self, service: u32) -> Result<Vec<(u32, Formers)>>;

    /// Stores single slots of the live table in place, each with one store: `(index, slot)`.
    fn put_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()>;

    /// Publishes the address index whole.
    fn publish_index(&mut self, entries: &[IndexEntry]) -> Result<()>;

    /// Replaces the prefixes of clients, all at once. Their counters begin anew.
    fn publish_clients(&mut self, rules: &ClientRules) -> Result<()>;

    /// The prefixes of clients, each with the packets that it decided on since they were published.
    fn clients(&self) -> Result<Vec<(Prefix, ClientAction, u64)>>;

    /// Sets how many flows a CPU lets begin in a second, over all services; 0 for no limit.
    fn put_flow_limit(&mut self, flows_per_second: u32) -> Result<()>;

    /// Sets the node's [`lb_common::abi::control_flags`].
    fn put_node_flags(&mut self, flags: u32) -> Result<()>;

    /// Sets where ports for `full-nat` come from: for IPv4, for IPv6. Flows that have one by the last setting keep it.
    fn put_sources(&mut self, sources: &[Sources; 2]) -> Result<()>;

    /// Replaces the list of the node's VLAN devices.
    fn put_vlans(&mut self, vlans: &Vlans) -> Result<()>;

    /// Returns when every packet that was being processed at the call has left the program.
    fn barrier(&mut self) -> Result<()>;

    /// Shows every entry in use to `visit` and does as it says, for as long as `goes_on`, which is asked at least once a
    /// millisecond or so. Returns whether all were shown. Entries may change while they are looked at.
    fn scan_while(
        &mut self,
        table: Table,
        goes_on: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(&FlowEntry) -> Verdict,
    ) -> Result<bool>;

    /// The same to the end.
    fn scan(&mut self, table: Table, visit: &mut dyn FnMut(&FlowEntry) -> Verdict) -> Result<()> {
        self.scan_while(table, &|| true, visit).map(drop)
    }

    /// What was noted last of flows that were lost. All zero in maps that no daemon has looked at.
    fn known(&self) -> Result<Known>;

    /// Notes it, where it stays for as long as the maps.
    fn note_known(&mut self, known: &Known) -> Result<()>;

    /// Enters a flow that another node tells of ([`lb_common::entry::hear`]). False where there is no room for it.
    fn hear(
        &mut self,
        hash: u64,
        key: &FlowKey,
        new: &NewEntry,
        policy: &FlowPolicy,
    ) -> Result<bool>;

    /// A backend's counters, summed over all CPUs.
    fn backend_stats(&self, id: u32) -> Result<BackendStats>;

    /// Zeroes a backend's counters (before its id is used again).
    fn reset_backend_stats(&mut self, id: u32) -> Result<()>;

    /// A service's outcomes; service 0: packets that belong to none.
    fn outcomes(&self, service: u32) -> Result<Outcomes> {
        let mut counts = [0; Outcome::COUNT];
        for (count, outcome) in counts.iter_mut().zip(Outcome::ALL) {
            *count = self.outcome(service, *outcome)?;
        }
        Ok(counts)
    }

    /// One of them.
    fn outcome(&self, service: u32, outcome: Outcome) -> Result<u64>;

    /// Entries of the service's flows that gave way to others while they lived.
    fn gave_way(&self, service: u32) -> Result<u64>;

    /// The kernel's clock, as in [`FlowEntry::seen`].
    fn now_ticks(&self) -> u32;

    /// Its rate.
    fn ticks_per_second(&self) -> u32;

    /// Asks the loaded program where a packet would go; leaves no trace.
    fn explain(&self, question: &Question) -> Result<Explanation>;

    /// The same of a QUIC service: for the first packet of a new connection, or for a later one with the connection id `id`,
    /// of at most 20 bytes.
    fn explain_quic(&self, question: &Question, id: &[u8]) -> Result<Explanation>;

    /// Has the program take this frame as if it had just come, and send it on (kernel 5.18).
    fn inject(&self, frame: &[u8]) -> Result<()>;

    /// What loads a tracing program for these maps.
    fn prepare_trace(&self) -> Result<trace::Prepare>;

    /// Puts a tracing program in front: from here on the packets that `filter` wants make records. All interfaces or
    /// none.
    fn begin_trace(&mut self, program: trace::TracingProgram, filter: &TraceFilter) -> Result<()>;

    /// Puts the plain program back on every interface.
    fn end_trace(&mut self) -> Result<()>;

    /// The kernel's id of the plain program.
    fn program_id(&self) -> Option<u32>;

    /// Where the program runs.
    fn attachments(&self) -> Vec<Attachment>;

    /// Where it should run but does not.
    fn missing(&self) -> Vec<Missing>;

    /// Looks which configured interfaces there are now: the program goes onto those that came back. Failures are told
    /// by [`Datapath::missing`].
    fn follow_interfaces(&mut self);

    /// A duration in ticks, rounded up.
    fn ticks(&self, duration: Duration) -> u32 {
        let ticks = duration.as_millis() * u128::from(self.ticks_per_second());
        u32::try_from(ticks.div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

//! A data plane in memory: the steering rule itself over plain tables, for tests and the simulator. Writes can be
//! told to fail.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, HashMap},
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use lb_common::{
    abi::{
        BackendRecord, BackendStats, Explanation, Known, ServiceRecord, Slot, Standing,
        backend_flags,
    },
    entry::{self, EntryTable, FlowEntry, FlowKey, FlowPolicy, Meta, NewEntry},
    former::Formers,
    full_nat::Sources,
    index::IndexEntry,
    limits::WAYS,
    outcome::Outcome,
    recent,
    steer::{Count, Decision, Env, Packet, at_once, note_reply, steer, tcp},
    trace::TraceFilter,
};

use crate::model::{
    observed::Vlans,
    spec::{ClientAction, ClientRules, Prefix},
};

use super::{
    Attachment, Datapath, Error, Missing, Outcomes, Question, Result, Table, Verdict,
    compare_exchange,
    trace::{Prepare, Tracer, TracingProgram},
};
use crate::model::spec::Protocol;

mod trace;

/// Ticks in a second of the fake's clock.
pub const TICKS_PER_SECOND: u32 = 100;

/// Bits of a slot's place that belong to the slot; the service's id is above them.
const SLOT_BITS: u32 = 20;

/// Handle of a data plane in memory; clones share it.
#[derive(Clone)]
pub struct Fake(Arc<Mutex<Memory>>);

/// Sizes of a [`Fake`]'s tables.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Flow entries, a power of two.
    pub flows: u32,
    /// Handshake entries, a power of two.
    pub handshakes: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            flows: 1 << 14,
            handshakes: 1 << 13,
        }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// The outcome.
    pub outcome: Outcome,
    /// Who got it; 0 for nobody.
    pub backend: u32,
    /// Its slot.
    pub slot: u32,
}

struct Memory {
    backends: HashMap<u32, BackendRecord>,
    services: BTreeMap<u32, ServiceRecord>,
    tables: BTreeMap<u32, Vec<Slot>>,
    /// By service and slot.
    formers: HashMap<(u32, u32), Formers>,
    index: Vec<IndexEntry>,
    clients: ClientRules,
    flows: Entries,
    /// Beside them.
    recent: Box<[UnsafeCell<recent::Group>]>,
    handshakes: Entries,
    stats: RefCell<HashMap<u32, BackendStats>>,
    outcomes: RefCell<HashMap<u32, Outcomes>>,
    now: u32,
    started: Option<Instant>,
    adoptions_left: Cell<u64>,
    openings_left: Cell<u64>,
    writes: u64,
    faults: Faults,
    /// A trace that is prepared, or runs.
    trace: Option<trace::Shown>,
    is_tracing: bool,
    known: Known,
}

/// Which writes fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Faults {
    None,
    /// The write with this number and all after it, until told otherwise.
    From(u64),
    /// One in so many, drawn from a seed.
    OneIn(u32, u64),
}

/// A table of entries in memory, and how many of each service gave way to others while their flows lived.
struct Entries(Box<[UnsafeCell<FlowEntry>]>, RefCell<HashMap<u32, u64>>);

impl Entries {
    fn new(size: u32) -> Self {
        let size = size.next_power_of_two().max(WAYS);
        Self(
            (0..size)
                .map(|_| UnsafeCell::new(FlowEntry::default()))
                .collect(),
            RefCell::default(),
        )
    }

    fn get_mut(&mut self) -> impl Iterator<Item = &mut FlowEntry> {
        self.0.iter_mut().map(UnsafeCell::get_mut)
    }
}

impl EntryTable for Entries {
    fn mask(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        NonNull::new(self.0.get(index as usize)?.get())
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        // SAFETY: the caller vouches for the word; it lives as long as the table.
        unsafe { compare_exchange(word, old, new) }
    }

    fn gave_way(&self, ports: u64) {
        let service = FlowKey::service(ports);
        *self.1.borrow_mut().entry(service).or_default() += 1;
    }
}

/// The surroundings of a packet; `WRITES` tells a real one from a question.
struct Surroundings<'a, const WRITES: bool>(&'a Memory);

impl<const WRITES: bool> Env for Surroundings<'_, WRITES> {
    type Flows = Entries;
    type Handshakes = Entries;
    const WRITES: bool = WRITES;

    fn flows(&self) -> &Entries {
        &self.0.flows
    }

    fn handshakes(&self) -> &Entries {
        &self.0.handshakes
    }

    fn recent(&self, group: u32) -> Option<NonNull<recent::Group>> {
        NonNull::new(self.0.recent.get(group as usize)?.get())
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let table = self.0.tables.get(&(index >> SLOT_BITS))?;
        table
            .get((index & ((1 << SLOT_BITS) - 1)) as usize)
            .copied()
    }

    fn formers(&self, index: u32) -> Formers {
        let key = (index >> SLOT_BITS, index & ((1 << SLOT_BITS) - 1));
        self.0.formers.get(&key).copied().unwrap_or_default()
    }

    fn standing(&self, backend: u32) -> Standing {
        let record = self.0.backends.get(&backend);
        record.map_or(Standing::default(), BackendRecord::standing)
    }

    fn now(&self) -> u32 {
        self.0.ticks()
    }

    fn may_adopt(&self, _now: u32) -> bool {
        take(&self.0.adoptions_left)
    }

    fn may_open(&self, _now: u32) -> bool {
        take(&self.0.openings_left)
    }

    fn may_begin(&self, _id: u32, _service: &ServiceRecord) -> bool {
        true
    }

    fn count(&self, backend: u32, what: Count) {
        if !WRITES {
            return;
        }
        let mut stats = self.0.stats.borrow_mut();
        let stats = stats.entry(backend).or_default();
        match what {
            Count::Opened => stats.opened += 1,
            Count::Closed => stats.closed += 1,
            Count::Adopted => stats.adopted += 1,
            Count::Retransmit => stats.retransmits += 1,
            Count::Refused => {}
        }
    }
}

fn take(left: &Cell<u64>) -> bool {
    let had = left.get();
    left.set(had.saturating_sub(1));
    had > 0
}

impl Memory {
    fn ticks(&self) -> u32 {
        let passed = self.started.map_or(0, |started| {
            started.elapsed().as_millis() as u32 / (1000 / TICKS_PER_SECOND)
        });
        self.now.wrapping_add(passed)
    }

    fn record(&self, service: u32) -> Option<ServiceRecord> {
        let mut record = *self.services.get(&service)?;
        let slots = self.tables.get(&service)?.len() as u32;
        record.table = ServiceRecord::table_word(service << SLOT_BITS, slots);
        Some(record)
    }

    /// Fails when it is this write's turn.
    fn write(&mut self, what: &str) -> Result<()> {
        self.writes += 1;
        let fails = match &mut self.faults {
            Faults::None => false,
            Faults::From(first) => self.writes >= *first,
            Faults::OneIn(rate, seed) => {
                *seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((*seed >> 33) as u32).is_multiple_of(*rate)
            }
        };
        if fails {
            Err(Error::Other(format!("{what}: told to fail")))
        } else {
            Ok(())
        }
    }

    fn decide(&self, service: u32, packet: &Packet) -> Option<(Delivered, Decision)> {
        let record = self.record(service)?;
        let decision = self.steer(service, &record, packet);
        let backend = self
            .backends
            .get(&decision.backend)
            .copied()
            .unwrap_or_default();
        let cut = backend.cuts(decision.hash);
        let outcome = if cut && backend.flags & backend_flags::CUT_RESET != 0 {
            if backend.flags & backend_flags::DEAD == 0 {
                Outcome::ResetDeadline
            } else {
                Outcome::ResetDead
            }
        } else if cut && backend.flags & backend_flags::CUT_DROP != 0 {
            Outcome::DropDeadline
        } else {
            decision.outcome
        };
        let reached = if outcome.is_forward() {
            decision.backend
        } else {
            0
        };
        let delivered = Delivered {
            outcome,
            backend: reached,
            slot: decision.slot_index,
        };
        Some((delivered, decision))
    }

    /// As the program does it: at once where that is possible. What is decided at once is what the whole rule would
    /// have decided.
    fn steer(&self, service: u32, record: &ServiceRecord, packet: &Packet) -> Decision {
        let surroundings = Surroundings::<true>(self);
        let whole = steer(&Surroundings::<false>(self), service, record, packet);
        let is_ready = |id| {
            let flags = surroundings.backend_flags(id) | backend_flags::NEXT_HOP;
            backend_flags::is_ready(flags).then_some(())
        };
        match at_once(&surroundings, service, record, packet, is_ready) {
            Some((decision, ())) => {
                // An entry that has given way to another is still spoken for a moment, by its flow's base.
                let outcome = match whole.outcome {
                    Outcome::ForwardBase if decision.outcome == Outcome::ForwardFlow => {
                        Outcome::ForwardFlow
                    }
                    other => other,
                };
                let wanted = Decision { outcome, ..whole };
                assert_eq!(decision, wanted, "decided at once for {packet:?}");
                decision
            }
            None => steer(&surroundings, service, record, packet),
        }
    }

    fn table_of(&mut self, table: Table) -> &mut Entries {
        match table {
            Table::Flows => &mut self.flows,
            Table::Handshakes => &mut self.handshakes,
        }
    }
}

impl Fake {
    /// An empty one, whose clock stands at tick 1000 until it is moved.
    pub fn new(sizes: Sizes) -> Self {
        let flows = Entries::new(sizes.flows);
        let groups = 0..flows.0.len() / WAYS as usize;
        Self(Arc::new(Mutex::new(Memory {
            backends: HashMap::new(),
            services: BTreeMap::new(),
            tables: BTreeMap::new(),
            formers: HashMap::new(),
            index: Vec::new(),
            clients: ClientRules::default(),
            flows,
            recent: groups.map(|_| UnsafeCell::default()).collect(),
            handshakes: Entries::new(sizes.handshakes),
            stats: RefCell::default(),
            outcomes: RefCell::default(),
            now: 1000,
            started: None,
            adoptions_left: Cell::new(u64::MAX),
            openings_left: Cell::new(u64::MAX),
            writes: 0,
            faults: Faults::None,
            trace: None,
            is_tracing: false,
            known: Known::default(),
        })))
    }

    /// The same with a clock that runs.
    pub fn running(sizes: Sizes) -> Self {
        let fake = Self::new(sizes);
        fake.memory().started = Some(Instant::now());
        fake
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet from a client; `None` when there is no such service.
    pub fn packet(&self, service: u32, packet: &Packet) -> Option<Delivered> {
        let memory = self.memory();
        let (delivered, _) = memory.decide(service, packet)?;
        let mut outcomes = memory.outcomes.borrow_mut();
        outcomes.entry(service).or_insert([0; Outcome::COUNT])[delivered.outcome as usize] += 1;
        let mut stats = memory.stats.borrow_mut();
        if delivered.backend != 0 {
            stats.entry(delivered.backend).or_default().packets += 1;
        }
        if let (true, Some(trace), Some(record)) = (
            memory.is_tracing,
            &memory.trace,
            memory.services.get(&service),
        ) {
            trace.show(service, record, packet, &delivered);
        }
        Some(delivered)
    }

    /// The backend that a packet would go to, 0 for none; nothing is changed or counted.
    pub fn ask(&self, service: u32, packet: &Packet) -> Option<u32> {
        let memory = self.memory();
        let record = memory.record(service)?;
        let decision = steer(&Surroundings::<false>(&memory), service, &record, packet);
        Some(decision.backend)
    }

    /// Whether packets go through the tracing program.
    pub fn is_tracing(&self) -> bool {
        self.memory().is_tracing
    }

    /// An answer of `backend`; `packet` is named from the client's side, with the answer's flags. Whether it goes on.
    pub fn reply(&self, service: u32, packet: &Packet, backend: u32) -> bool {
        let memory = self.memory();
        let Some(record) = memory.record(service) else {
            return true;
        };
        note_reply(
            &Surroundings::<true>(&memory),
            service,
            &record,
            packet,
            backend,
        )
    }

    /// Moves the clock on.
    pub fn advance(&self, ticks: u32) {
        let mut memory = self.memory();
        memory.now = memory.now.wrapping_add(ticks);
    }

    /// Lets so many more openings and adoptions be recorded.
    pub fn allow(&self, openings: u64, adoptions: u64) {
        let memory = self.memory();
        memory.openings_left.set(openings);
        memory.adoptions_left.set(adoptions);
    }

    /// From the `nth` write on (1 is the next), every write fails; `None`: none does.
    pub fn fail_from(&self, nth: Option<u64>) {
        let mut memory = self.memory();
        memory.faults = nth.map_or(Faults::None, |nth| Faults::From(memory.writes + nth));
    }

    /// One write in `rate` fails, drawn from `seed`.
    pub fn fail_one_in(&self, rate: u32, seed: u64) {
        self.memory().faults = Faults::OneIn(rate.max(1), seed);
    }

    /// How many writes there have been.
    pub fn writes(&self) -> u64 {
        self.memory().writes
    }

    /// Loses the whole flow table.
    pub fn forget_flows(&self) {
        for entry in self.memory().flows.get_mut() {
            *entry = FlowEntry::default();
        }
    }

    /// Loses the whole handshake table.
    pub fn forget_handshakes(&self) {
        for entry in self.memory().handshakes.get_mut() {
            *entry = FlowEntry::default();
        }
    }

    /// Every entry of a table.
    pub fn entries(&self, table: Table) -> Vec<FlowEntry> {
        let mut memory = self.memory();
        memory
            .table_of(table)
            .get_mut()
            .filter(|entry| entry.tag != 0)
            .map(|entry| *entry)
            .collect()
    }

    /// The live index.
    pub fn index(&self) -> Vec<IndexEntry> {
        self.memory().index.clone()
    }
}

/// Entries that a scan shows without asking whether it goes on.
const SHOWN_AT_ONCE: u32 = 8;

impl Datapath for Fake {
    fn put_backend(&mut self, id: u32, record: &BackendRecord) -> Result<()> {
        let mut memory = self.memory();
        memory.write("put_backend")?;
        memory.backends.insert(id, *record);
        Ok(())
    }

    fn backend(&self, id: u32) -> Result<BackendRecord> {
        Ok(self.memory().backends.get(&id).copied().unwrap_or_default())
    }

    fn put_service(&mut self, id: u32, record: &ServiceRecord) -> Result<()> {
        let mut memory = self.memory();
        memory.write("put_service")?;
        memory.services.insert(id, *record);
        Ok(())
    }

    fn service(&self, id: u32) -> Result<ServiceRecord> {
        let memory = self.memory();
        Ok(memory
            .record(id)
            .or_else(|| memory.services.get(&id).copied())
            .unwrap_or_default())
    }

    fn remove_service(&mut self, id: u32) -> Result<()> {
        let mut memory = self.memory();
        memory.write("remove_service")?;
        memory.services.remove(&id);
        memory.tables.remove(&id);
        Ok(())
    }

    fn publish_table(
        &mut self,
        service: u32,
        slots: &[Slot],
        formers: &[(u32, Formers)],
    ) -> Result<()> {
        let mut memory = self.memory();
        memory.write("publish_table")?;
        memory.tables.insert(service, slots.to_vec());
        memory.formers.retain(|(id, _), _| *id != service);
        let formers = formers.iter();
        memory
            .formers
            .extend(formers.map(|(index, formers)| ((service, *index), *formers)));
        Ok(())
    }

    fn formers(&self, service: u32) -> Result<Vec<(u32, Formers)>> {
        let memory = self.memory();
        let slots = memory.tables.get(&service).map_or(&[][..], |slots| slots);
        let says_so = |index: u32| {
            slots
                .get(index as usize)
                .is_some_and(|slot| slot.has_formers())
        };
        let all = memory.formers.iter();
        let mut own: Vec<_> = all
            .filter(|((id, index), _)| *id == service && says_so(*index))
            .map(|((_, index), formers)| (*index, *formers))
            .collect();
        own.sort_unstable_by_key(|(index, _)| *index);
        Ok(own)
    }

    fn table(&self, service: u32) -> Result<Vec<Slot>> {
        Ok(self
            .memory()
            .tables
            .get(&service)
            .cloned()
            .unwrap_or_default())
    }

    fn put_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        let mut memory = self.memory();
        for (index, slot) in slots {
            // Slot by slot: a failure may leave some of them written.
            memory.write("put_slots")?;
            let place = memory
                .tables
                .get_mut(&service)
                .and_then(|table| table.get_mut(*index as usize));
            let Some(place) = place else {
                return Err(Error::OutOfRange {
                    what: "slot",
                    id: *index,
                    capacity: 0,
                });
            };
            *place = *slot;
        }
        Ok(())
    }

    fn publish_index(&mut self, entries: &[IndexEntry]) -> Result<()> {
        let mut memory = self.memory();
        memory.write("publish_index")?;
        memory.index = entries.to_vec();
        Ok(())
    }

    fn publish_clients(&mut self, rules: &ClientRules) -> Result<()> {
        let mut memory = self.memory();
        memory.write("publish the clients")?;
        memory.clients = rules.clone();
        Ok(())
    }

    fn clients(&self) -> Result<Vec<(Prefix, ClientAction, u64)>> {
        let memory = self.memory();
        let rules = memory.clients.0.iter();
        Ok(rules
            .map(|(prefix, action)| (*prefix, *action, 0))
            .collect())
    }

    fn put_flow_limit(&mut self, _flows_per_second: u32) -> Result<()> {
        self.memory().write("put the limit of new flows")
    }

    fn put_sources(&mut self, _sources: &[Sources; 2]) -> Result<()> {
        self.memory().write("put the sources of ports")
    }

    fn put_node_flags(&mut self, _flags: u32) -> Result<()> {
        self.memory().write("put the node's flags")
    }

    fn put_vlans(&mut self, _vlans: &Vlans) -> Result<()> {
        self.memory().write("put the VLAN devices")
    }

    fn barrier(&mut self) -> Result<()> {
        self.memory().write("barrier")
    }

    fn known(&self) -> Result<Known> {
        Ok(self.memory().known)
    }

    fn note_known(&mut self, known: &Known) -> Result<()> {
        let mut memory = self.memory();
        // A store to memory does not fail now and then, as system calls do; dying before it is another matter.
        if matches!(memory.faults, Faults::From(_)) {
            memory.write("note_known")?;
        }
        memory.known = *known;
        Ok(())
    }

    fn scan_while(
        &mut self,
        table: Table,
        goes_on: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(&FlowEntry) -> Verdict,
    ) -> Result<bool> {
        let mut memory = self.memory();
        memory.write("scan")?;
        let mut removed = Vec::new();
        let (mut all, mut shown) = (true, 0);
        let entries = memory.table_of(table).get_mut();
        for (index, entry) in entries.enumerate().filter(|(_, entry)| entry.tag != 0) {
            // Who is cut short has seen something, and freed what he was shown first.
            if (shown >= SHOWN_AT_ONCE || !removed.is_empty()) && !goes_on() {
                all = false;
                break;
            }
            shown += 1;
            match visit(entry) {
                Verdict::Keep => {}
                Verdict::Remove => {
                    *entry = FlowEntry::default();
                    removed.push(index);
                }
                Verdict::Set(bits) => entry.meta = Meta(entry.meta).with(bits).0,
            }
        }
        if table == Table::Flows {
            let ways = WAYS as usize;
            for index in removed {
                memory.recent[index / ways].get_mut().0[index % ways] = 0;
            }
        }
        Ok(all)
    }

    fn hear(
        &mut self,
        hash: u64,
        key: &FlowKey,
        new: &NewEntry,
        policy: &FlowPolicy,
    ) -> Result<bool> {
        let mut memory = self.memory();
        memory.write("hear")?;
        Ok(entry::hear(&memory.flows, hash, key, new, policy))
    }

    fn backend_stats(&self, id: u32) -> Result<BackendStats> {
        Ok(self
            .memory()
            .stats
            .borrow()
            .get(&id)
            .copied()
            .unwrap_or_default())
    }

    fn reset_backend_stats(&mut self, id: u32) -> Result<()> {
        let mut memory = self.memory();
        memory.write("reset_backend_stats")?;
        memory.stats.borrow_mut().remove(&id);
        Ok(())
    }

    fn outcome(&self, service: u32, outcome: Outcome) -> Result<u64> {
        let memory = self.memory();
        let outcomes = memory.outcomes.borrow();
        let counts = outcomes.get(&service);
        Ok(counts.map_or(0, |counts| counts[outcome as usize]))
    }

    fn gave_way(&self, service: u32) -> Result<u64> {
        let memory = self.memory();
        let counts = memory.flows.1.borrow();
        Ok(counts.get(&service).copied().unwrap_or(0))
    }

    fn now_ticks(&self) -> u32 {
        self.memory().ticks()
    }

    fn ticks_per_second(&self) -> u32 {
        TICKS_PER_SECOND
    }

    /// Without a reader of connection ids: as a datagram.
    fn explain_quic(&self, question: &Question, _: &[u8]) -> Result<Explanation> {
        self.explain(question)
    }

    fn explain(&self, question: &Question) -> Result<Explanation> {
        let memory = self.memory();
        let (address, port) = (question.vip.ip().into(), question.vip.port().to_be());
        let found = memory.services.iter().find(|(_, record)| {
            (record.vip, record.port, record.protocol)
                == (address, port, question.protocol.number())
        });
        let Some((id, record)) = found.and_then(|(id, _)| Some((*id, memory.record(*id)?))) else {
            return Ok(Explanation {
                outcome: Outcome::PassNoService as u32,
                ..Explanation::default()
            });
        };
        let packet = Packet {
            client: question.client.ip().into(),
            client_port: question.client.port().to_be(),
            service_port: port,
            flags: match (question.protocol, question.opening) {
                (Protocol::Udp, _) => 0,
                (Protocol::Tcp, true) => tcp::SYN,
                (Protocol::Tcp, false) => tcp::ACK,
            },
            ..Packet::default()
        };
        let decision = steer(&Surroundings::<false>(&memory), id, &record, &packet);
        Ok(Explanation {
            outcome: decision.outcome as u32,
            service: id,
            slot_index: decision.slot_index,
            backend: decision.backend,
            slot: decision.slot.0,
            hash: decision.hash,
        })
    }

    fn attachments(&self) -> Vec<Attachment> {
        vec![Attachment {
            interface: "fake0".to_owned(),
            ifindex: 1,
            mode: "native".to_owned(),
            program: self.program_id(),
        }]
    }

    fn missing(&self) -> Vec<Missing> {
        Vec::new()
    }

    fn follow_interfaces(&mut self) {}

    fn inject(&self, _frame: &[u8]) -> Result<()> {
        Ok(())
    }

    fn prepare_trace(&self) -> Result<Prepare> {
        let fake = self.clone();
        Ok(Box::new(move || {
            let (shown, seen) = trace::pair().map_err(|error| Error::Other(error.to_string()))?;
            fake.memory().trace = Some(shown);
            Ok(Tracer {
                program: TracingProgram::Fake,
                records: Box::new(seen),
            })
        }))
    }

    fn begin_trace(&mut self, _program: TracingProgram, filter: &TraceFilter) -> Result<()> {
        let mut memory = self.memory();
        memory.write("trace")?;
        if let Some(trace) = &mut memory.trace {
            trace.set_filter(*filter);
        }
        memory.is_tracing = true;
        Ok(())
    }

    fn end_trace(&mut self) -> Result<()> {
        let mut memory = self.memory();
        memory.write("trace")?;
        (memory.is_tracing, memory.trace) = (false, None);
        Ok(())
    }

    fn program_id(&self) -> Option<u32> {
        Some(if self.memory().is_tracing { 2 } else { 1 })
    }
}

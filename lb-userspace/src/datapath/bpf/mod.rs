//! The data plane in the kernel.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{
        BackendRecord, BackendStats, ClockReading, ControlRecord, Explanation, Known,
        ServiceRecord, Slot, VlanDevice, jump,
    },
    entry::{self, EntryTable, FlowEntry, FlowKey, FlowPolicy, Meta, NewEntry},
    former::Formers,
    full_nat::{PortEntry, Sources},
    index::{self, IndexEntry, Live, kind},
    limits::{ABI_VERSION, ADOPTIONS_PER_TICK, GAVE_WAY, OPENINGS_PER_TICK, OUTCOMES_MAX, WAYS},
    outcome::Outcome,
    recent,
    trace::{TraceFilter, look},
};

use super::{
    Attachment, Datapath, Error, Missing, Question, Result, Table, Verdict, compare_exchange,
    trace::{Prepare, TracingProgram},
};
use crate::{
    model::{
        observed::Vlans,
        spec::{Capacity, ClientAction, ClientRules, Prefix, XdpMode},
    },
    step::{Step, step},
};

mod attach;
mod barrier;
mod clients;
mod formers;
mod frame;
mod known;
mod load;
mod mapped;
mod pinned;
mod ports;
mod slots;
mod tracing;
mod verified;

use attach::Interfaces;
use barrier::Barrier;
pub use known::{service_tables, slots_of};
pub(in crate::datapath) use load::verify;
use mapped::{Mapped, Parts};
pub use pinned::forget as forget_maps;
use slots::Region;
pub use tracing::Tracing;
pub use verified::{INSTRUCTIONS_MAX, Verified, try_out};

/// What [`BpfDatapath::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory on a bpffs for maps and links; made when absent.
    pub pins: PathBuf,
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    /// How.
    pub mode: XdpMode,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Log every decision.
    pub trace: bool,
    /// Largest value of a map, in bytes. Tables that are larger, or larger than what the kernel takes, cost a packet a little
    /// more.
    pub value_max: u32,
}

/// For [`Options::value_max`]: what the verifier knows of places in a value goes up to 2^29 bytes (`BPF_MAX_VAR_OFF`).
pub const VALUE_MAX: u32 = 1 << 28;

/// The pinned map of the tracing instance's jumps.
const JUMPS_TRACING: &str = "JUMPS-tracing";

/// Room for a trace's records, in bytes: some 40 000 packets without their frames, 1000 with both.
const ALERT_RING_BYTES: u32 = 1 << 16;

/// Bytes of the ring that a trace is read from.
const TRACE_RING_BYTES: u32 = 1 << 22;

/// The object is loaded once for good, and a second time while somebody looks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instance {
    /// The one that runs.
    Plain,
    /// The same, which logs every decision.
    Logging,
    /// The one that shows what it does.
    Tracing,
}

impl Instance {
    /// The programs that it needs.
    fn programs(self) -> impl Iterator<Item = &'static str> {
        let own: &[&str] = match self {
            Self::Plain => &["ebb", "explain", "explain_quic", "clock"],
            Self::Logging => &["ebb", "explain", "explain_quic", "clock", "report"],
            Self::Tracing => &["traced", "report", "ebb"],
        };
        let tail_called = jump::PROGRAMS.iter().map(|(_, name)| *name);
        own.iter().copied().chain(tail_called)
    }

    /// What the programs are told of who looks on.
    const fn look(self) -> u32 {
        match self {
            Self::Plain => look::NOBODY,
            Self::Logging => look::LOG,
            Self::Tracing => look::TRACE,
        }
    }
}

/// The program and its maps.
pub struct BpfDatapath {
    options: Options,
    tracing: Option<Box<Tracing>>,
    ebpf: Ebpf,
    control: Mapped<ControlRecord>,
    index: Parts<IndexEntry>,
    services: Mapped<ServiceRecord>,
    backends: Parts<BackendRecord>,
    slots: Parts<Slot>,
    formers: formers::Rows,
    flows: Parts<FlowEntry>,
    recent: Parts<recent::Group>,
    handshakes: Parts<FlowEntry>,
    ports: Parts<PortEntry>,
    sources: Mapped<Sources>,
    outcomes: PerCpuArray<MapData, u64>,
    /// By service: entries that gave way to what other nodes said.
    gave_way: BTreeMap<u32, u64>,
    stats: PerCpuArray<MapData, Pod<BackendStats>>,
    clients: clients::Tries,
    barrier: Barrier,
    ticks_per_second: u32,
    /// None while the program is not on any yet.
    interfaces: Option<Interfaces>,
}

/// A plain record as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pod<T>(T);

// SAFETY: plain integers without padding, as asserted in lb-common.
unsafe impl aya::Pod for Pod<BackendStats> {}
// SAFETY: as above.
unsafe impl aya::Pod for Pod<Explanation> {}
// SAFETY: as above.
unsafe impl aya::Pod for Pod<ClockReading> {}
// SAFETY: as above.
unsafe impl aya::Pod for Pod<VlanDevice> {}

/// Entries of the address index for this many services and backends: 4 of 15 at most are in use, of which one seed in five
/// leaves no probe too long. With the default sizes the two halves are 4 MiB, all that Linux 6.1 keeps in a value.
fn index_length(capacity: &Capacity) -> u32 {
    let entries = u64::from(capacity.services + capacity.backends);
    let length = (entries * 15).div_ceil(4).next_power_of_two();
    u32::try_from(length).unwrap_or(1 << 31).max(1024)
}

/// Name, entries and what they are called in the configuration, of each map whose number of entries is configured.
fn sizes(capacity: &Capacity) -> [(&'static str, u32, &'static str); 7] {
    [
        ("FORMERS", capacity.slots.min(formers::ROWS_MAX), "slots"),
        ("FLOWS", capacity.flows, "flows"),
        ("HANDSHAKES", capacity.handshakes, "handshakes"),
        ("PORTS", capacity.ports, "ports"),
        (
            "OUTCOMES",
            (capacity.services + 1) * OUTCOMES_MAX,
            "services",
        ),
        ("BACKEND_STATS", capacity.backends + 1, "backends"),
        ("FLOW_LIMITS", capacity.services + 1, "services"),
    ]
}

impl BpfDatapath {
    /// Loads the program from `object`, takes over the maps that are pinned, and attaches it.
    ///
    /// Where an older program of ebb runs already, it is replaced atomically and keeps its maps.
    pub fn open(object: &[u8], options: &Options) -> Result<Self> {
        make_directory(&options.pins)?;
        pinned::check_layout(&options.pins)?;
        check_pinned_sizes(&options.pins, &options.capacity)?;
        let mut datapath = Self::load(object, options)?;
        datapath.take_over_control()?;
        datapath.tidy_formers()?;
        let program = program(&mut datapath.ebpf, "ebb")?;
        let wanted = &options.interfaces;
        let interfaces = Interfaces::open(program, &options.pins, wanted, options.mode)?;
        datapath.interfaces = Some(interfaces);
        // Not before: the programs of a trace whose daemon was killed need it until they are replaced.
        tracing::remove(&options.pins.join(JUMPS_TRACING))?;
        Ok(datapath)
    }

    fn load(object: &[u8], options: &Options) -> Result<Self> {
        let instance = if options.trace {
            Instance::Logging
        } else {
            Instance::Plain
        };
        let mut ebpf = load_object(object, options, instance)?;
        fill_jumps(&mut ebpf, instance)?;
        let outcomes = PerCpuArray::try_from(take(&mut ebpf, "OUTCOMES")?).map_err(map_error)?;
        let stats = PerCpuArray::try_from(take(&mut ebpf, "BACKEND_STATS")?).map_err(map_error)?;
        let clients = clients::Tries::new(&mut ebpf)?;
        let formers = formers::Rows::new(&mut ebpf)?;
        Ok(Self {
            control: mapped(&ebpf, "CONTROL")?,
            index: Parts::new("INDEX", array(&ebpf, "INDEX")?)?,
            services: mapped(&ebpf, "SERVICES")?,
            backends: Parts::new("BACKENDS", array(&ebpf, "BACKENDS")?)?
                .of(options.capacity.backends + 1),
            slots: Parts::new("SLOTS", array(&ebpf, "SLOTS")?)?.of(options.capacity.slots),
            formers,
            flows: Parts::new("FLOWS", array(&ebpf, "FLOWS")?)?,
            recent: Parts::new("RECENT", array(&ebpf, "RECENT")?)?,
            handshakes: Parts::new("HANDSHAKES", array(&ebpf, "HANDSHAKES")?)?,
            ports: Parts::new("PORTS", array(&ebpf, "PORTS")?)?,
            sources: mapped(&ebpf, "SOURCES")?,
            outcomes,
            gave_way: BTreeMap::new(),
            stats,
            clients,
            barrier: Barrier::new()?,
            ticks_per_second: 0,
            interfaces: None,
            options: options.clone(),
            tracing: None,
            ebpf,
        })
    }

    /// Initialises the control record of new maps, takes that of old ones.
    fn take_over_control(&mut self) -> Result<()> {
        let found = self.control.read(0)?;
        self.ticks_per_second = if found.ticks_per_second != 0 {
            found.ticks_per_second
        } else {
            self.measure_ticks()?
        };
        let fresh = found.abi_version == 0;
        let control = ControlRecord {
            index: if fresh {
                Live::new(0, 0).0
            } else {
                found.index
            },
            index_seed: if fresh {
                rand::random::<u64>() | 1
            } else {
                found.index_seed
            },
            abi_version: ABI_VERSION,
            ticks_per_second: self.ticks_per_second,
            adoptions_per_tick: ADOPTIONS_PER_TICK,
            openings_per_tick: OPENINGS_PER_TICK,
            flows_per_second: found.flows_per_second,
            clients: found.clients,
            flags: found.flags,
            vlans: found.vlans,
            known: found.known,
        };
        self.control.write_all(0, &control)
    }

    /// The rate of the kernel's ticks (CONFIG_HZ), which the kernel tells nobody: measured over 100 ms.
    fn measure_ticks(&self) -> Result<u32> {
        let first = self.clock()?;
        let mut last = first;
        while last.nanoseconds.saturating_sub(first.nanoseconds) < 100_000_000 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            last = self.clock()?;
        }
        let rate =
            (last.ticks - first.ticks) as f64 * 1e9 / (last.nanoseconds - first.nanoseconds) as f64;
        let distance = |hz: &u32| ((f64::from(*hz) - rate).abs() * 1000.0) as u64;
        Ok([100, 250, 300, 1000]
            .into_iter()
            .min_by_key(distance)
            .unwrap_or(250))
    }

    fn clock(&self) -> Result<ClockReading> {
        self.run("clock", &[0; 64])?;
        let map: Array<_, Pod<ClockReading>> =
            Array::try_from(map(&self.ebpf, "CLOCK")?).map_err(map_error)?;
        Ok(map.get(&0, 0).map_err(map_error)?.0)
    }

    /// Asks one of the programs that explain.
    fn ask(&self, program: &str, question: &Question, data: &[u8]) -> Result<Explanation> {
        let frame = frame::packet(question, data).ok_or_else(|| {
            Error::Other(format!(
                "{} and {} are of different families",
                question.client, question.vip
            ))
        })?;
        self.run(program, &frame)?;
        let map: Array<_, Pod<Explanation>> =
            Array::try_from(map(&self.ebpf, "EXPLANATION")?).map_err(map_error)?;
        Ok(map.get(&0, 0).map_err(map_error)?.0)
    }

    /// Runs one of the object's programs on a frame (BPF_PROG_TEST_RUN); returns its verdict.
    fn run(&self, name: &str, frame: &[u8]) -> Result<u32> {
        let program = self.loaded(name)?;
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).map_err(|error| {
            Error::Other(format!("running the program {name}: {}", chain(&error)))
        })?;
        Ok(result.return_value)
    }

    /// The loaded balancer, for tests and benchmarks that run it by hand.
    pub fn program(&self) -> Result<&Xdp> {
        self.loaded("ebb")
    }

    /// What packets meet first: the balancer, or while a trace runs the program in front of it.
    pub fn front(&self) -> Result<&Xdp> {
        match &self.tracing {
            Some(tracing) => tracing.front(),
            None => self.program(),
        }
    }

    /// Has the trace that runs show other packets.
    ///
    /// # Errors
    /// None runs, or the kernel's.
    pub fn change_trace(&mut self, filter: &TraceFilter) -> Result<()> {
        let none = || Error::Other("no trace runs".into());
        self.tracing.as_mut().ok_or_else(none)?.set_filter(filter)
    }

    /// Any of the loaded programs ([`program_names`]).
    pub fn program_named(&self, name: &str) -> Result<&Xdp> {
        self.loaded(name)
    }

    fn loaded(&self, name: &str) -> Result<&Xdp> {
        loaded(&self.ebpf, name)
    }

    /// Sets how many handshakes, and how many adoptions, each CPU records in one tick.
    pub fn set_limits(&mut self, openings_per_tick: u32, adoptions_per_tick: u32) -> Result<()> {
        let control = ControlRecord {
            openings_per_tick,
            adoptions_per_tick,
            ..self.control.read(0)?
        };
        self.control.write_all(0, &control)
    }

    /// The loaded balancer's descriptor.
    fn plain(&self) -> Result<ProgramFd> {
        let fd = self.program()?.fd();
        fd.map_err(|error| Error::Other(format!("program ebb: {}", chain(&error))))?
            .try_clone()
            .map_err(|source| Error::Kernel {
                what: "naming the program ebb".into(),
                source,
            })
    }

    /// The object itself: for its log, and for whoever attaches its programs by hand.
    /// The ring of [`lb_common::alert::Alert`]s, once.
    pub fn take_alerts(&mut self) -> Result<aya::maps::RingBuf<aya::maps::MapData>> {
        aya::maps::RingBuf::try_from(take(&mut self.ebpf, "ALERTS")?).map_err(map_error)
    }

    /// What the program was loaded from.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn regions(&self) -> Result<Vec<Region>> {
        let mut regions = Vec::new();
        for id in 0..self.services.len() {
            regions.extend(Region::from_word(
                self.services.words(id)?[0].load(Ordering::Acquire),
            ));
        }
        Ok(regions)
    }

    fn region(&self, service: u32) -> Result<Option<Region>> {
        Ok(Region::from_word(
            self.services.words(service)?[0].load(Ordering::Acquire),
        ))
    }

    /// Places of a table's slots that say that they have former owners.
    fn with_formers(&self, region: Region) -> Result<Vec<u32>> {
        let part = self.slots.part(region.range())?;
        let mut places = Vec::new();
        for place in region.range() {
            if part.read(place)?.has_formers() {
                places.push(place);
            }
        }
        Ok(places)
    }

    /// Forgets the former owners of the slots of a table that no packet sees any more.
    fn forget_formers(&mut self, table: Option<Region>) -> Result<()> {
        let Some(region) = table else {
            return Ok(());
        };
        let places = self.with_formers(region)?;
        self.formers.remove(places)
    }

    /// Forgets those that a daemon before has left behind: of places that no table has now.
    fn tidy_formers(&mut self) -> Result<()> {
        let mut left = self.formers.places()?;
        if left.is_empty() {
            return Ok(());
        }
        let tables = self.regions()?;
        left.retain(|place| !tables.iter().any(|table| table.range().contains(place)));
        self.formers.remove(left)
    }

    /// Nobody has lately seen to these entries, in ascending order within [`SCANNED_AT_ONCE`].
    fn forget_recent(&self, entries: &[u32]) -> Result<()> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        let part = self.recent.part(first / WAYS..last / WAYS + 1)?;
        for index in entries {
            // With those of the group's other entries, two to a word.
            for words in part.words(index / WAYS)? {
                words.store(0, Ordering::Release);
            }
        }
        Ok(())
    }

    /// One of a service's counters.
    fn of_service(&self, service: u32, place: u32) -> Result<u64> {
        let place = service * OUTCOMES_MAX + place;
        let counts = self.outcomes.get(&place, 0).map_err(map_error)?;
        Ok(counts.iter().sum())
    }

    fn table_of(&self, table: Table) -> &Parts<FlowEntry> {
        match table {
            Table::Flows => &self.flows,
            Table::Handshakes => &self.handshakes,
        }
    }
}

/// Removes everything that is pinned in `pins`: the program comes off its interfaces, and all flows are forgotten.
pub fn remove_pins(pins: &Path) -> io::Result<()> {
    if !pins.exists() {
        return Ok(());
    }
    pinned::forget_known(pins);
    for entry in fs::read_dir(pins)? {
        step(Step::Pin);
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(pins)
}

fn make_directory(pins: &Path) -> Result<()> {
    fs::create_dir_all(pins).map_err(|source| Error::Kernel {
        what: format!("creating {} (is a bpffs mounted there?)", pins.display()),
        source,
    })
}

/// A map keeps its size while it is pinned; another size asked for is an error, not a surprise.
fn check_pinned_sizes(pins: &Path, capacity: &Capacity) -> Result<()> {
    let differs = |name: &str, found: u64, wanted: u32, setting: &str| {
        Err(Error::Other(format!(
            "the pinned map {name} has {found} entries, capacity.{setting} now asks for {wanted}; \
             sizes change only after `ebb stop --detach`, which forgets all flows"
        )))
    };
    for (name, wanted, setting) in sizes(capacity) {
        let entries = pinned::info(pins, name)?.map(|info| info.max_entries());
        if let Some(found) = entries.filter(|found| *found != wanted) {
            return differs(name, found.into(), wanted, setting);
        }
    }
    for table in known::tables(capacity) {
        let found = pinned::info(pins, table.name)?;
        if let Some(found) = found.and_then(|info| table.other_records(&info)) {
            return differs(table.name, found, table.records, table.setting);
        }
    }
    Ok(())
}

fn map_error(error: aya::maps::MapError) -> Error {
    Error::Other(chain(&error))
}

/// An error's message with those of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// The programs of the object: the balancer, those it hands rare packets to, and those run by hand.
pub fn program_names() -> impl Iterator<Item = &'static str> {
    Instance::Plain.programs()
}

/// Creates the maps that are not pinned yet, and loads the programs of an instance.
fn load_object(object: &[u8], options: &Options, instance: Instance) -> Result<Ebpf> {
    let capacity = &options.capacity;
    let (flow_mask, handshake_mask) = (capacity.flows - 1, capacity.handshakes - 1);
    let ports_mask = capacity.ports - 1;
    let index = index::Length::new(index_length(capacity));
    let tables = known::open(options)?;
    let masks: Vec<_> = tables.iter().filter_map(known::Opened::mask).collect();
    let look = instance.look();
    let mut loader = EbpfLoader::new();
    loader
        .default_map_pin_directory(&options.pins)
        .map_max_entries("ALERTS", ALERT_RING_BYTES)
        .override_global("INDEX_SHIFT", &index.shift, true)
        .override_global("INDEX_MASK", &index.mask, true)
        .override_global("FLOW_MASK", &flow_mask, true)
        .override_global("HANDSHAKE_MASK", &handshake_mask, true)
        .override_global("PORTS_MASK", &ports_mask, true)
        .override_global("TRACE", &look, true);
    for (name, mask) in &masks {
        loader.override_global(name, mask, true);
    }
    for (name, entries, _) in sizes(capacity) {
        loader.map_max_entries(name, entries);
    }
    if instance == Instance::Tracing {
        loader
            .map_pin_path("JUMPS", options.pins.join(JUMPS_TRACING))
            .map_max_entries("TRACE_RING", TRACE_RING_BYTES);
    }
    // It makes the maps that are missing, and pins each.
    step(Step::Pin);
    let mut ebpf = loader
        .load(object)
        .map_err(|error| Error::Other(format!("loading the maps: {}", chain(&error))))?;
    for table in &tables {
        table.put(&ebpf)?;
    }
    let names: Vec<&str> = instance.programs().collect();
    load::all(&mut ebpf, &names)?;
    Ok(ebpf)
}

fn loaded<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    ebpf.program(name)
        .ok_or_else(|| Error::Other(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|error| Error::Other(format!("program {name}: {error}")))
}

/// Lays the tail-called programs into their places, each with one atomic exchange.
fn fill_jumps(ebpf: &mut Ebpf, instance: Instance) -> Result<()> {
    let mut jumps = ProgramArray::try_from(take(ebpf, "JUMPS")?).map_err(map_error)?;
    let report = [(jump::REPORT, "report")];
    let own: &[_] = match instance {
        Instance::Logging => &report,
        _ => &[],
    };
    for (place, name) in jump::PROGRAMS.iter().chain(own) {
        let fd = program(ebpf, name)?
            .fd()
            .map_err(|error| Error::Other(format!("program {name}: {}", chain(&error))))?;
        step(Step::Jump);
        jumps.set(*place, fd, 0).map_err(map_error)?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    ebpf.program_mut(name)
        .ok_or_else(|| Error::Other(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|error| Error::Other(format!("program {name}: {error}")))
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Map> {
    ebpf.map(name)
        .ok_or_else(|| Error::Other(format!("the object has no map {name}")))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .ok_or_else(|| Error::Other(format!("the object has no map {name}")))
}

/// Entries of a flow table that are in memory together while it is looked through: 1 MiB.
const SCANNED_AT_ONCE: u32 = 1 << 14;

/// Lets `visit` see an entry, and does what it says. Whether the entry was removed.
fn scan_entry(
    table: &Mapped<FlowEntry>,
    index: u32,
    visit: &mut dyn FnMut(&FlowEntry) -> Verdict,
) -> Result<bool> {
    let words = table.words(index)?;
    let tag = words[0].load(Ordering::Acquire);
    // Free, or being filled right now: it will be seen next time.
    if tag & 1 == 0 {
        return Ok(false);
    }
    let entry = table.read(index)?;
    if entry.tag != tag || words[0].load(Ordering::Acquire) != tag {
        return Ok(false);
    }
    let meta_word = &words[std::mem::offset_of!(FlowEntry, meta) / 8];
    match visit(&entry) {
        Verdict::Keep => {}
        // Whoever changed the word meanwhile has just seen the flow; it stays.
        Verdict::Remove => {
            step(Step::Entry);
            let freed = words[0].compare_exchange(tag, 0, Ordering::AcqRel, Ordering::Relaxed);
            return Ok(freed.is_ok());
        }
        Verdict::Set(bits) => {
            step(Step::Entry);
            let new = Meta(entry.meta).with(bits).0;
            let _ =
                meta_word.compare_exchange(entry.meta, new, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    Ok(false)
}

/// The places that a flow can be in, with the programs that fill them at the same time.
struct Group {
    part: Mapped<FlowEntry>,
    /// Entries of the whole table minus one.
    mask: u32,
    /// The service whose flow has given way.
    gave_way: Cell<Option<u32>>,
}

impl EntryTable for Group {
    fn mask(&self) -> u32 {
        self.mask
    }

    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        let words = self.part.words(index).ok()?;
        NonNull::new(words.as_ptr().cast_mut().cast())
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        step(Step::Entry);
        // SAFETY: the caller vouches for the word; it is mapped for as long as the group lives.
        unsafe { compare_exchange(word, old, new) }
    }

    fn gave_way(&self, ports: u64) {
        self.gave_way.set(Some(FlowKey::service(ports)));
    }
}

fn mapped<T: mapped::Words>(ebpf: &Ebpf, name: &'static str) -> Result<Mapped<T>> {
    Mapped::new(name, array(ebpf, name)?)
}

fn array<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match map(ebpf, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(Error::Other(format!("{name} is not an array"))),
    }
}

impl Datapath for BpfDatapath {
    fn put_backend(&mut self, id: u32, record: &BackendRecord) -> Result<()> {
        // Word 4 holds the flags: a new record is complete before they say so.
        self.backends
            .one(id)?
            .write(id, record, 0..size_of::<BackendRecord>() / 8, 4)
    }

    fn backend(&self, id: u32) -> Result<BackendRecord> {
        self.backends.one(id)?.read(id)
    }

    fn put_service(&mut self, id: u32, record: &ServiceRecord) -> Result<()> {
        // The word of port, protocol, mode and flags last, as of a backend.
        let last = std::mem::offset_of!(ServiceRecord, port) / 8;
        self.services
            .write(id, record, 1..size_of::<ServiceRecord>() / 8, last)
    }

    fn service(&self, id: u32) -> Result<ServiceRecord> {
        self.services.read(id)
    }

    fn remove_service(&mut self, id: u32) -> Result<()> {
        let before = self.region(id)?;
        step(Step::Publish);
        self.services.words(id)?[0].store(0, Ordering::Release);
        self.barrier.wait()?;
        self.forget_formers(before)?;
        self.services.write_all(id, &ServiceRecord::default())
    }

    fn publish_table(
        &mut self,
        service: u32,
        table: &[Slot],
        formers: &[(u32, Formers)],
    ) -> Result<()> {
        let wanted = table.len() as u32;
        let used = self.regions()?;
        let in_use = used.iter().map(|region| region.slots).sum();
        let full = || Error::Full {
            what: "slots",
            used: in_use,
            capacity: self.slots.len(),
            wanted,
        };
        let region = slots::allocate(used, self.slots.len(), wanted).ok_or_else(full)?;
        let part = self.slots.part(region.range())?;
        for (word, slot) in part.words_of(region.range())?.iter().zip(table) {
            step(Step::HiddenSlot);
            word.store(slot.0, Ordering::Relaxed);
        }
        // Beside the slots, and hidden as these are until the word below names their place.
        self.formers.write(region.first, formers)?;
        let before = self.region(service)?;
        let word = ServiceRecord::table_word(region.first, region.slots);
        step(Step::Publish);
        self.services.words(service)?[0].store(word, Ordering::Release);
        self.barrier.wait()?;
        self.forget_formers(before)
    }

    fn table(&self, service: u32) -> Result<Vec<Slot>> {
        let Some(region) = self.region(service)? else {
            return Ok(Vec::new());
        };
        region.read(&self.slots)
    }

    fn formers(&self, service: u32) -> Result<Vec<(u32, Formers)>> {
        let Some(region) = self.region(service)? else {
            return Ok(Vec::new());
        };
        let mut formers = Vec::new();
        for place in self.with_formers(region)? {
            if let Some(owners) = self.formers.read(place)? {
                formers.push((place - region.first, owners));
            }
        }
        Ok(formers)
    }

    fn put_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        let Some(region) = self.region(service)? else {
            return Ok(());
        };
        let part = self.slots.part(region.range())?;
        let mut forgotten = Vec::new();
        for (index, slot) in slots {
            if *index >= region.slots {
                return Err(Error::OutOfRange {
                    what: "slot",
                    id: *index,
                    capacity: region.slots,
                });
            }
            let place = region.first + index;
            if part.read(place)?.has_formers() && !slot.has_formers() {
                forgotten.push(place);
            }
            step(Step::LiveSlot);
            part.words(place)?[0].store(slot.0, Ordering::Release);
        }
        // A packet that still saw the old word finds nobody there, which is so now.
        self.formers.remove(forgotten)
    }

    fn publish_index(&mut self, entries: &[IndexEntry]) -> Result<()> {
        let control = self.control.read(0)?;
        let length = self.index.len() / 2;
        let live = Live(control.index).first(length - 1);
        let first = if live == 0 { length } else { 0 };
        let full = || Error::Full {
            what: "address index",
            used: 0,
            capacity: length / 15 * 4,
            wanted: entries.len() as u32,
        };
        let (live, table) =
            build_index(length, first, control.index_seed, entries).ok_or_else(full)?;
        let range = first..first + length;
        let part = self.index.part(range.clone())?;
        for (place, entry) in range.zip(&table) {
            // Nearly all are empty: one step for a thousand of those will do.
            if *entry != IndexEntry::default() || place % 1024 == 0 {
                step(Step::HiddenEntry);
            }
            part.fill(place, entry)?;
        }
        drop(part);
        step(Step::Publish);
        self.control.words(0)?[0].store(live.0, Ordering::Release);
        self.barrier.wait()
    }

    fn publish_clients(&mut self, rules: &ClientRules) -> Result<()> {
        let live = self.control.read(0)?.clients;
        let next = self.clients.fill(live, rules)?;
        let control = ControlRecord {
            clients: next,
            ..self.control.read(0)?
        };
        self.control.write_all(0, &control)?;
        // The other trie may be emptied for the next list once nobody looks into it.
        self.barrier.wait()
    }

    fn clients(&self) -> Result<Vec<(Prefix, ClientAction, u64)>> {
        self.clients.read(self.control.read(0)?.clients)
    }

    fn put_flow_limit(&mut self, flows_per_second: u32) -> Result<()> {
        let control = ControlRecord {
            flows_per_second,
            ..self.control.read(0)?
        };
        self.control.write_all(0, &control)
    }

    fn put_vlans(&mut self, vlans: &Vlans) -> Result<()> {
        let map = self
            .ebpf
            .map_mut("VLANS")
            .ok_or_else(|| Error::Other("the object has no map VLANS".into()))?;
        let mut map: HashMap<_, u32, Pod<VlanDevice>> =
            HashMap::try_from(map).map_err(map_error)?;
        for (ifindex, device) in vlans {
            step(Step::Call);
            map.insert(ifindex, Pod(*device), 0).map_err(map_error)?;
        }
        let known: Vec<u32> = map
            .keys()
            .collect::<std::result::Result<_, _>>()
            .map_err(map_error)?;
        for ifindex in known.iter().filter(|ifindex| !vlans.contains_key(ifindex)) {
            step(Step::Call);
            map.remove(ifindex).map_err(map_error)?;
        }
        let control = ControlRecord {
            vlans: vlans.len() as u32,
            ..self.control.read(0)?
        };
        self.control.write_all(0, &control)
    }

    fn put_sources(&mut self, sources: &[Sources; 2]) -> Result<()> {
        ports::put_sources(&self.sources, sources)
    }

    fn put_node_flags(&mut self, flags: u32) -> Result<()> {
        let control = ControlRecord {
            flags,
            ..self.control.read(0)?
        };
        self.control.write_all(0, &control)
    }

    fn barrier(&mut self) -> Result<()> {
        self.barrier.wait()
    }

    fn known(&self) -> Result<Known> {
        Ok(self.control.read(0)?.known)
    }

    fn note_known(&mut self, known: &Known) -> Result<()> {
        let control = ControlRecord {
            known: *known,
            ..self.control.read(0)?
        };
        let first = std::mem::offset_of!(ControlRecord, known) / 8;
        self.control.note(0, &control, first)
    }

    fn scan_while(
        &mut self,
        table: Table,
        goes_on: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(&FlowEntry) -> Verdict,
    ) -> Result<bool> {
        let entries = self.table_of(table);
        for first in (0..entries.len()).step_by(SCANNED_AT_ONCE as usize) {
            if !goes_on() {
                return Ok(false);
            }
            let range = first..(first + SCANNED_AT_ONCE).min(entries.len());
            let part = entries.part(range.clone())?;
            let mut removed = Vec::new();
            for index in range {
                if scan_entry(&part, index, visit)? {
                    removed.push(index);
                }
            }
            if table == Table::Flows {
                self.forget_recent(&removed)?;
            }
        }
        Ok(true)
    }

    fn hear(
        &mut self,
        hash: u64,
        key: &FlowKey,
        new: &NewEntry,
        policy: &FlowPolicy,
    ) -> Result<bool> {
        let first = (hash as u32 & (self.flows.len() - 1)) & !(WAYS - 1);
        let group = Group {
            part: self.flows.part(first..first + WAYS)?,
            mask: self.flows.len() - 1,
            gave_way: Cell::new(None),
        };
        let is_there = entry::hear(&group, hash, key, new, policy);
        if let Some(service) = group.gave_way.get() {
            *self.gave_way.entry(service).or_default() += 1;
        }
        Ok(is_there)
    }

    fn backend_stats(&self, id: u32) -> Result<BackendStats> {
        let values = self.stats.get(&id, 0).map_err(map_error)?;
        Ok(values
            .iter()
            .fold(BackendStats::default(), |sum, Pod(cpu)| BackendStats {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                opened: sum.opened + cpu.opened,
                closed: sum.closed + cpu.closed,
                adopted: sum.adopted + cpu.adopted,
                retransmits: sum.retransmits + cpu.retransmits,
                reply_packets: sum.reply_packets + cpu.reply_packets,
                reply_bytes: sum.reply_bytes + cpu.reply_bytes,
            }))
    }

    fn reset_backend_stats(&mut self, id: u32) -> Result<()> {
        let count = self.stats.get(&id, 0).map_err(map_error)?.len();
        let zeroes = vec![Pod(BackendStats::default()); count];
        let values = aya::maps::PerCpuValues::try_from(zeroes).map_err(|source| Error::Kernel {
            what: "counting the CPUs".into(),
            source,
        })?;
        step(Step::Call);
        self.stats.set(id, values, 0).map_err(map_error)
    }

    fn outcome(&self, service: u32, outcome: Outcome) -> Result<u64> {
        self.of_service(service, outcome as u32)
    }

    fn gave_way(&self, service: u32) -> Result<u64> {
        let to_heard = self.gave_way.get(&service).copied().unwrap_or(0);
        Ok(self.of_service(service, GAVE_WAY)? + to_heard)
    }

    fn now_ticks(&self) -> u32 {
        self.clock().map_or(0, |reading| reading.ticks as u32)
    }

    fn ticks_per_second(&self) -> u32 {
        self.ticks_per_second
    }

    fn explain(&self, question: &Question) -> Result<Explanation> {
        self.ask("explain", question, &[])
    }

    fn explain_quic(&self, question: &Question, id: &[u8]) -> Result<Explanation> {
        self.ask("explain_quic", question, &frame::quic(question.opening, id))
    }

    fn attachments(&self) -> Vec<Attachment> {
        let interfaces = self.interfaces.iter();
        interfaces.flat_map(Interfaces::attached).collect()
    }

    fn missing(&self) -> Vec<Missing> {
        let interfaces = self.interfaces.iter();
        interfaces
            .flat_map(|interfaces| interfaces.missing().to_vec())
            .collect()
    }

    fn follow_interfaces(&mut self) {
        let program = match &mut self.tracing {
            Some(tracing) => tracing.entry(),
            None => program(&mut self.ebpf, "ebb"),
        };
        // The program was there when it was put on its interfaces.
        if let (Some(interfaces), Ok(program)) = (&mut self.interfaces, program) {
            interfaces.follow(program);
        }
    }

    fn inject(&self, frame: &[u8]) -> Result<()> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        let sent = self.program()?.test_run(options);
        sent.map(drop)
            .map_err(|error| Error::Other(format!("sending a frame: {}", chain(&error))))
    }

    fn prepare_trace(&self) -> Result<Prepare> {
        let (plain, options) = (self.plain()?, self.options.clone());
        Ok(Box::new(move || Tracing::load(&options, &plain)))
    }

    fn begin_trace(&mut self, program: TracingProgram, filter: &TraceFilter) -> Result<()> {
        let TracingProgram::Bpf(mut tracing) = program else {
            return Err(Error::Other("a tracing program of another kind".into()));
        };
        tracing.set_filter(filter)?;
        let switched = match &self.interfaces {
            Some(interfaces) => interfaces.switch(tracing.entry()?),
            None => Ok(()),
        };
        self.tracing = Some(tracing);
        switched.or_else(|error| self.end_trace().and(Err(error)))
    }

    fn end_trace(&mut self) -> Result<()> {
        if let Some(interfaces) = &self.interfaces {
            interfaces.switch(program(&mut self.ebpf, "ebb")?)?;
        }
        self.tracing = None;
        Ok(())
    }

    fn program_id(&self) -> Option<u32> {
        Some(self.program().ok()?.info().ok()?.id())
    }
}

/// An index of these entries, with the first of random seeds that leaves no probe too long.
fn build_index(
    length: u32,
    first: u32,
    node_seed: u64,
    entries: &[IndexEntry],
) -> Option<(Live, Vec<IndexEntry>)> {
    if entries.len() > length as usize / 2 {
        return None;
    }
    let ranges = entries
        .iter()
        .any(|entry| index::kind_of(entry.selector) == kind::RANGE);
    (0..1000).find_map(|_| {
        let live = Live::new(rand::random(), first).with_ranges(ranges);
        let mut table = vec![IndexEntry::default(); length as usize];
        let seed = live.seed(node_seed);
        let fits = entries
            .iter()
            .all(|entry| index::insert(&mut table, seed, *entry));
        fits.then_some((live, table))
    })
}

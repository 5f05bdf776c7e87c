//! The owner of the node: it holds the state, writes changes down, and brings the maps to what the state says.
//!
//! Everything here runs to its end when called; time is an argument. The loop around it is in [`super::core`].

mod admin;
pub mod commands;
mod doubt;
mod drain_views;
mod drains;
mod look;
mod loss;
mod nudge;
pub mod pressing;
mod share;
mod speech;
mod suspect;
mod trace;
mod views;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_common::{
    abi::{Slot, backend_flags},
    entry::state as entry_state,
};

pub use suspect::Suspicion;
pub use trace::{Names, Reserved};
pub use views::Facts;

use super::journal::Log;
use crate::{
    datapath::{self, Datapath, Table, Verdict},
    model::{
        census::{self, Census, Fate, Times},
        compose,
        desired::{self, Desired, Node},
        former,
        observed::{Health, Hop, Observed, Way},
        packed::Packed,
        plan::{Installed, Owners, Write, plan},
        spec::Spec,
        state::{Composition, MANY, Op, Service, State, pack},
    },
};

/// Why a change did not take effect.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be written down; nothing has changed.
    #[error("the journal could not be written: {0}")]
    Journal(#[from] std::io::Error),
    /// It is written down, but not all of it is in the maps yet. It is tried again.
    #[error("the maps could not be written: {0}")]
    Maps(#[from] datapath::Error),
}

/// How long a closed flow keeps its entry, for stragglers.
const KEEP: Duration = Duration::from_secs(12);

/// A flow whose backend has been asked for this long in vain has its client asked for a packet, with each look. Two tries of his own
/// come before.
const SOUGHT_AFTER: Duration = Duration::from_millis(300);

/// For so long: eight backends can be asked in it. Of forged segments, which make such flows as well, no more comes.
const SOUGHT_UNTIL: Duration = Duration::from_secs(5);

/// The owner of the node.
pub struct Engine {
    /// What is remembered.
    state: State,
    /// What is seen.
    observed: Observed,
    /// The configuration that the state follows.
    spec: Spec,
    seed: [u8; 16],
    datapath: Box<dyn Datapath>,
    log: Box<dyn Log>,
    installed: Installed,
    /// Tables whose last write failed: what they hold must be read before the next one.
    doubtful: BTreeSet<u32>,
    /// The maps are not what the state says.
    behind: bool,
    /// Changes since the start of which backends there are, where, and how they are checked.
    member_changes: u64,
    /// When the engine began, Unix milliseconds.
    began_ms: u64,
    /// When each service's table was written last.
    published_ms: BTreeMap<u32, u64>,
    /// What each service's table in the maps was made of. Missing where that is not known.
    made_of: BTreeMap<u32, former::MadeOf>,
    /// What tables were in between, while changes overlap.
    passed: former::Tables,
    last_look: look::Look,
    losses: loss::Losses,
    unlisted: loss::Unlisted,
    /// A table was published after the last look.
    look_is_old: bool,
    /// Commands that wait.
    pressing: pressing::Pressing,
    /// Since when looks of ticks have given way to commands; `None` once one was done to its end.
    gives_way_since_ms: Option<u64>,
    next_look_ms: u64,
    next_sweep_ms: u64,
    /// What is seen of the drains under way, by their numbers.
    watches: BTreeMap<u64, watch::Watch>,
    /// Clients that are asked for a packet.
    nudges: nudge::Nudges,
    /// What is known of openings that met nobody.
    suspects: suspect::Suspects,
    /// What the prober is asked.
    doubts: doubt::Doubts,
    /// Why the maps are behind.
    trouble: Option<String>,
    /// Why the configuration of the start is not followed.
    unfollowed: Option<String>,
    /// Warnings of the start.
    notes: Vec<String>,
    /// The trace that runs.
    trace: Option<trace::Trace>,
    /// Traces so far.
    traces: u64,
    /// What other nodes are told.
    sharing: Option<share::Sharing>,
}

impl Engine {
    /// Takes over a node: reads what the maps hold. Nothing is written before [`Engine::begin`].
    pub fn new(
        state: State,
        spec: Spec,
        seed: [u8; 16],
        datapath: Box<dyn Datapath>,
        log: Box<dyn Log>,
    ) -> Result<Self, datapath::Error> {
        let installed = read_installed(&state, datapath.as_ref())?;
        let mut engine = Self {
            observed: Observed::default(),
            state,
            spec,
            seed,
            datapath,
            log,
            installed,
            doubtful: BTreeSet::new(),
            behind: true,
            member_changes: 0,
            began_ms: 0,
            published_ms: BTreeMap::new(),
            made_of: BTreeMap::new(),
            passed: former::Tables::default(),
            last_look: look::Look::default(),
            losses: loss::Losses::default(),
            unlisted: loss::Unlisted::default(),
            look_is_old: true,
            pressing: pressing::Pressing::default(),
            gives_way_since_ms: None,
            sharing: None,
            next_look_ms: 0,
            next_sweep_ms: 0,
            watches: BTreeMap::new(),
            nudges: nudge::Nudges::default(),
            suspects: suspect::Suspects::default(),
            doubts: doubt::Doubts::default(),
            trouble: None,
            unfollowed: None,
            notes: Vec::new(),
            trace: None,
            traces: 0,
        };
        engine.presume_health();
        engine.presume_ways();
        Ok(engine)
    }

    /// Adds warnings of the start to the status.
    pub fn note(&mut self, warnings: Vec<String>) {
        self.notes.extend(warnings);
    }

    /// After a restart who took flows goes on taking them until a probe says otherwise.
    fn presume_health(&mut self) {
        for service in self.state.services.values() {
            for share in &service.current {
                self.observed
                    .health
                    .insert(share.backend, (Health::Presumed, None));
            }
        }
    }

    /// After a restart frames go on where they went until the kernel's answer is there: without this, every packet
    /// would be dropped in between.
    fn presume_ways(&mut self) {
        for (_, _, id, backend) in self.state.backends() {
            let Some(record) = self.installed.backends.get(&id) else {
                continue;
            };
            let address = backend.spec.address.ip();
            if record.flags & backend_flags::NEXT_HOP == 0 || record.address != address.into() {
                continue;
            }
            // Of another service's backend at the same address it may be known as well.
            let before = match self.observed.ways.get(&address) {
                Some(Way::Known(hop)) => hop.source,
                Some(Way::Unknown(_)) | None => None,
            };
            let mac = |from: usize| std::array::from_fn(|n| record.ethernet[from + n]);
            let hop = Hop {
                ifindex: record.ifindex,
                source_mac: mac(6),
                destination_mac: mac(0),
                mtu: record.mtu,
                source: (record.tunnel_source != lb_common::Addr::default())
                    .then(|| record.tunnel_source.into())
                    .or(before),
                vlan: record.vlan,
            };
            self.observed.ways.insert(address, Way::Known(hop));
        }
    }

    /// What tells it of commands that wait.
    pub fn pressing(&self) -> pressing::Pressing {
        self.pressing.clone()
    }

    /// What is remembered.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What has been written to the maps.
    pub const fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Whether something is under way that wants frequent ticks.
    pub fn is_busy(&self) -> bool {
        let unsettled = |service: &Service| service.is_draining() || service.current.is_empty();
        self.behind
            || self.last_look.sought > 0
            || self.state.services.values().any(|found| unsettled(found))
    }

    /// Writes `ops` down, with the changes of composition that follow from them, carries them out and brings the
    /// maps up to date.
    fn commit(&mut self, mut ops: Vec<Op>, now_ms: u64) -> Result<(), Fault> {
        // Mostly nothing changes, and a node's state is large.
        let mut next = (!ops.is_empty()).then(|| self.state.with(&ops));
        let composed = self.compositions(next.as_ref().unwrap_or(&self.state), now_ms);
        if !composed.is_empty() {
            let next = next.get_or_insert_with(|| self.state.clone());
            composed.iter().for_each(|op| next.apply(op));
            ops.extend(composed);
        }
        if let Some(next) = next {
            let began = Instant::now();
            self.log.append(&ops)?;
            tracing::debug!(operations = ops.len(), took = ?began.elapsed(), "written down");
            self.state = next;
            self.member_changes += u64::from(ops.iter().any(Op::concerns_members));
            self.behind = true;
            if let Err(error) = self.log.offer(&self.state) {
                tracing::warn!("the journal could not be replaced by a snapshot: {error}");
            }
        }
        self.converge(now_ms)
    }

    /// The changes of composition that are due.
    fn compositions(&self, state: &State, now_ms: u64) -> Vec<Op> {
        let services = state.services.iter();
        services
            .filter_map(|(name, service)| compose::compose(name, service, &self.observed, now_ms))
            .collect()
    }

    /// Counts changes of which backends there are, where, and how they are checked.
    pub const fn member_changes(&self) -> u64 {
        self.member_changes
    }

    /// Brings the maps to what the state says.
    pub fn converge(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.behind = true;
        let result = self.write_all(now_ms);
        match &result {
            Ok(()) => {
                self.behind = false;
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(format!("the maps are behind the state: {error}")),
        }
        result.map_err(Fault::Maps)
    }

    fn write_all(&mut self, now_ms: u64) -> datapath::Result<()> {
        let began = Instant::now();
        self.read_doubtful()?;
        let ticks = |duration| self.datapath.ticks(duration);
        let node = Node {
            seed: &self.seed,
            ticks: &ticks,
        };
        let mut desired = desired::desired(&self.state, &self.observed, &node, now_ms);
        // What the configuration says of the node alone is no part of the state.
        desired.clients = self.spec.clients.clone();
        desired.flow_limit = self.spec.new_flows_per_core;
        desired.node_flags = desired::node_flags(&self.spec);
        desired.sources = desired::sources(&self.spec);
        let worked_out = began.elapsed();
        self.keep_passed();
        let writes = plan(&desired, &self.installed, &mut |id| {
            self.owners(id, &desired)
        });
        let count = writes.len();
        let planned = began.elapsed();
        for write in writes {
            self.write(&write, now_ms)?;
            self.installed.note(write);
        }
        self.note_tables(&desired);
        if count >= MANY {
            pack(&mut self.installed.backends);
        }
        if count > 0 {
            let (plan, all) = (planned - worked_out, began.elapsed() - planned);
            tracing::debug!(desired = ?worked_out, ?plan, writes = count, took = ?all, "maps are up to date");
        }
        Ok(())
    }

    /// Who should own the slots of a service; `None` where its table says so already.
    fn owners(&self, id: u32, desired: &Desired) -> Option<Owners> {
        let service = self.state.services.values().find(|found| found.id == id)?;
        if is_made_of(&self.made_of, service, desired) {
            return None;
        }
        let made_of = self.made_of.get(&id).zip(self.installed.tables.get(&id));
        let build = |composition: &Composition| match made_of {
            // A change of one half leaves the other as it is, or makes it what the first was.
            Some((made_of, table)) if made_of.current == *composition => {
                table.iter().map(Slot::current).collect()
            }
            Some((made_of, table)) if made_of.base == *composition => {
                table.iter().map(Slot::base).collect()
            }
            _ => compose::build(&self.seed, service, composition),
        };
        let current: Vec<u32> = build(&service.current);
        let base: Option<Vec<u32>> =
            (service.base != service.current).then(|| build(&service.base));
        let now = (&current[..], base.as_deref().unwrap_or(&current));
        let formers = self
            .passed
            .owners(service, now, &|id| desired.can_have_flows(id), build);
        Some(Owners {
            current,
            base,
            formers,
        })
    }

    /// Remembers of the tables that stand what the next ones may need of them.
    fn keep_passed(&mut self) {
        for service in self.state.services.values() {
            let id = service.id;
            let (Some(made_of), Some(table)) =
                (self.made_of.get(&id), self.installed.tables.get(&id))
            else {
                continue;
            };
            if made_of.base == service.base && service.passed.contains(&made_of.current) {
                self.passed.keep(id, made_of, table);
            }
        }
        self.passed
            .tidy(self.state.services.values().map(|service| &**service));
    }

    /// All tables are as the state says.
    fn note_tables(&mut self, desired: &Desired) {
        for service in self.state.services.values() {
            if !is_made_of(&self.made_of, service, desired) {
                let made_of = former::MadeOf::of(service, &|id| desired.can_have_flows(id));
                self.made_of.insert(service.id, made_of);
            }
        }
    }

    fn read_doubtful(&mut self) -> datapath::Result<()> {
        while let Some(service) = self.doubtful.first().copied() {
            let slots = self.datapath.table(service)?;
            let formers = self.datapath.formers(service)?;
            self.note_table(service, slots);
            self.installed.set_formers(service, formers);
            self.doubtful.remove(&service);
        }
        Ok(())
    }

    fn note_table(&mut self, service: u32, slots: Vec<Slot>) {
        if slots.is_empty() {
            self.installed.tables.remove(&service);
        } else {
            self.installed
                .tables
                .insert(service, slots.into_iter().collect());
        }
    }

    fn write(&mut self, write: &Write, now_ms: u64) -> datapath::Result<()> {
        match write {
            Write::Backend(id, record) => {
                if !self.installed.backends.contains_key(id) {
                    // Whoever had the id before has nothing to do with this one.
                    self.datapath.reset_backend_stats(*id)?;
                }
                self.datapath.put_backend(*id, record)
            }
            Write::Service(id, record) => self.datapath.put_service(*id, record),
            Write::Index(index) => {
                self.datapath.publish_index(index)?;
                self.datapath.barrier()
            }
            Write::Clients(rules) => self.datapath.publish_clients(rules),
            Write::FlowLimit(limit) => self.datapath.put_flow_limit(*limit),
            Write::Sources(sources) => self.datapath.put_sources(sources),
            Write::NodeFlags(flags) => self.datapath.put_node_flags(*flags),
            Write::Vlans(vlans) => self.datapath.put_vlans(vlans),
            Write::NoService(id) => {
                self.made_of.remove(id);
                self.datapath.remove_service(*id)
            }
            Write::Table {
                service,
                slots,
                formers,
                rebased,
            } => {
                if *rebased || self.is_datagram(*service) {
                    self.prepare(*service, slots, now_ms)?;
                }
                self.doubtful.insert(*service);
                self.made_of.remove(service);
                self.look_is_old = true;
                let whole: Vec<_> = slots.iter().collect();
                self.datapath.publish_table(*service, &whole, formers)?;
                self.doubtful.remove(service);
                self.published_ms.insert(*service, now_ms);
                // Entries made while the table was replaced were marked by the old one.
                self.next_look_ms = now_ms;
                Ok(())
            }
        }
    }

    fn is_datagram(&self, service: u32) -> bool {
        let record = self.installed.services.get(&service);
        record.is_some_and(census::is_datagram)
    }

    /// Marks the flows whose packets would go elsewhere without their entries, before the table that does it is
    /// published: from then on these are what keeps them alive, and must not give way to others.
    fn prepare(&mut self, service: u32, slots: &Packed, now_ms: u64) -> datapath::Result<()> {
        let since = self.tracked_since(now_ms);
        let mut census =
            Census::new(&self.installed, self.times(), &since).with_table(service, slots);
        self.datapath
            .scan(Table::Flows, &mut |entry| match census.flow(entry) {
                Fate::Mark => Verdict::Set(entry_state::EXCEPTIONAL),
                Fate::Keep | Fate::Remove | Fate::Await => Verdict::Keep,
            })
    }

    /// Ticks since each service's table was published.
    fn tracked_since(&self, now_ms: u64) -> BTreeMap<u32, u32> {
        let since = |id: &u32| {
            let published = self.published_ms.get(id).copied().unwrap_or(self.began_ms);
            let passed = Duration::from_millis(now_ms.saturating_sub(published));
            (*id, self.datapath.ticks(passed))
        };
        self.installed.services.keys().map(since).collect()
    }

    fn times(&self) -> Times {
        Times {
            now: self.datapath.now_ticks(),
            linger: self.datapath.ticks(crate::model::census::LINGER),
            keep: self.datapath.ticks(KEEP),
            sought: (
                self.datapath.ticks(SOUGHT_AFTER),
                self.datapath.ticks(SOUGHT_UNTIL),
            ),
        }
    }
}

/// Reads what the maps hold of what the state knows.
fn read_installed(state: &State, datapath: &dyn Datapath) -> Result<Installed, datapath::Error> {
    let mut installed = Installed::default();
    let services = state
        .services
        .values()
        .map(|service| service.id)
        .chain(state.retired.iter().copied());
    for id in services {
        let mut record = datapath.service(id)?;
        let slots = datapath.table(id)?;
        if record == lb_common::abi::ServiceRecord::default() && slots.is_empty() {
            continue;
        }
        record.table = lb_common::abi::ServiceRecord::table_word(0, slots.len() as u32);
        installed.services.insert(id, record);
        if !slots.is_empty() {
            installed.tables.insert(id, slots.into_iter().collect());
            installed.set_formers(id, datapath.formers(id)?);
        }
    }
    for (_, _, id, _) in state.backends() {
        let record = datapath.backend(id)?;
        if record != lb_common::abi::BackendRecord::default() {
            installed.backends.insert(id, record);
        }
    }
    Ok(installed)
}

/// Whether the service's table was made of what it should be made of.
fn is_made_of(
    made_of: &BTreeMap<u32, former::MadeOf>,
    service: &Service,
    desired: &Desired,
) -> bool {
    let made_of = made_of.get(&service.id);
    made_of.is_some_and(|made_of| made_of.is_of(service, &|id| desired.can_have_flows(id)))
}

//! A look at every entry of the flow tables: who has which flows, which slots still need the flow table, which
//! entries have outlived their use.
//!
//! Handshakes are to be looked at before flows: an entry only ever wanders from the handshake table to the flow
//! table, so none is missed.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    Addr,
    abi::{ServiceRecord, Slot, backend_flags, mode, service_flags},
    entry::{FlowEntry, FlowKey, Meta, age as ticks_since, is_closed, state},
    limits::silence,
    steer::{slot_index, unlisted_owner},
};

use crate::model::{ages::Ages, packed::Packed, plan::Installed};

/// How long a closing flow may be unseen and still count as alive.
pub const LINGER: std::time::Duration = std::time::Duration::from_secs(2);

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Keep,
    /// Free it.
    Remove,
    /// Mark it as exceptional.
    Mark,
    /// Have it stay until its flow is seen ([`state::AWAITED`]).
    Await,
}

/// A flow that the tables alone would take elsewhere: client, [`FlowKey::ports`], backend.
pub type Exception = (Addr, u64, u32);

/// Times, in ticks of the kernel's clock.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Now.
    pub now: u32,
    /// How long an unseen closing flow counts as alive.
    pub linger: u32,
    /// How long an unseen closed flow keeps its entry, for stragglers.
    pub keep: u32,
    /// Since when, and for how long, a flow's backend has been asked for when its client is to be heard from.
    pub sought: (u32, u32),
}

/// Most flows that a look says are sought: as many as can be dealt with until the next one.
pub const SOUGHT_MAX: usize = 1000;

/// A backend's flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Live flows listed.
    pub listed: u64,
    /// Those of them whose opening was counted and whose close was not yet.
    pub counted_open: u64,
    /// Those of them that have closed and are kept for stragglers only.
    pub closed: u64,
    /// Flows that were not seen for the idle timeout, and whose entries this look has freed.
    pub idle_expired: u64,
    /// Age of the oldest live flow, in ticks.
    pub longest: u32,
    /// Entries in either table that go on naming it.
    pub entries: u64,
}

/// Ages of a draining backend's flows, of those whose opening was seen, milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowAges {
    /// Live ones, now.
    pub live: Ages,
    /// Those that have closed since the drain began and are listed still, when they closed.
    pub closed: Ages,
    /// Those whose entries this look has freed, when they closed or were last seen.
    pub freed: Ages,
}

/// Draining backends, whose flows' ages are wanted.
#[derive(Debug, Default)]
pub struct Watched {
    /// By backend id: ticks since its drain began.
    since: Vec<Option<u32>>,
    ticks_per_second: u32,
}

impl Watched {
    /// Of these backends, each with the ticks since its drain began.
    pub fn new(drains: impl IntoIterator<Item = (u32, u32)>, ticks_per_second: u32) -> Self {
        let mut since = Vec::new();
        for (backend, ticks) in drains {
            let place = backend as usize;
            since.resize(since.len().max(place + 1), None);
            since[place] = Some(ticks);
        }
        Self {
            since,
            ticks_per_second: ticks_per_second.max(1),
        }
    }

    fn since(&self, backend: u32) -> Option<u32> {
        self.since.get(backend as usize).copied().flatten()
    }

    fn ms(&self, ticks: u32) -> u64 {
        u64::from(ticks) * 1000 / u64::from(self.ticks_per_second)
    }
}

/// A service as the census needs it.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    record: &'a ServiceRecord,
    slots: &'a Packed,
    /// Ticks since its table was published.
    tracked_since: u32,
}

/// A service with its id, and a slot of it with its index.
type Place<'a> = (View<'a>, u32, Option<(u32, Slot)>);

/// The look. What every entry asks for lies in arrays, by id: there may be millions of entries.
#[derive(Debug)]
pub struct Census<'a> {
    services: Vec<Option<View<'a>>>,
    /// Whether a backend is there and has not ended.
    alive: Vec<bool>,
    times: Times,
    watched: Watched,
    tallies: Vec<Tally>,
    /// Ages of the flows of backends that are watched, by backend.
    pub ages: BTreeMap<u32, FlowAges>,
    /// Slots with entries that are not their base's, by service and slot.
    pub exceptional: BTreeSet<(u32, u32)>,
    /// Whether [`Self::exceptions`] are wanted.
    pub lists_exceptions: bool,
    /// Live flows of this node's own that are not their base's.
    pub exceptions: Vec<Exception>,
    /// Entries in use in the flow table.
    pub flows: u64,
    /// Entries of the flow table that are to be removed.
    pub freed: u64,
    /// Entries in use in the handshake table.
    pub handshakes: u64,
    /// Those of them whose flows are awaited.
    pub awaited: u64,
    /// How many more there may be of them.
    await_max: u64,
    /// Flows whose backend has been asked for in vain for a while ([`state::GUESSED`]), at most [`SOUGHT_MAX`] of them: client and
    /// [`FlowKey::ports`].
    pub sought: Vec<(Addr, u64)>,
}

impl<'a> Census<'a> {
    /// A look at what is installed. Entries of backends that have ended mean nobody. `tracked_since`: ticks since each
    /// service's table was published; its tracked slots have been so for at least as long.
    pub fn new(
        installed: &'a Installed,
        times: Times,
        tracked_since: &'a BTreeMap<u32, u32>,
    ) -> Self {
        let ids = installed.services.last_key_value();
        let mut services = vec![None; ids.map_or(0, |(last, _)| *last as usize + 1)];
        for (id, record) in &installed.services {
            services[*id as usize] = installed.tables.get(id).map(|slots| View {
                record,
                slots,
                tracked_since: tracked_since.get(id).copied().unwrap_or(0),
            });
        }
        let ids = installed.backends.last_key_value();
        let mut alive = vec![false; ids.map_or(0, |(last, _)| *last as usize + 1)];
        for (id, record) in &installed.backends {
            alive[*id as usize] = record.flags & backend_flags::ENDED == 0;
        }
        Self {
            services,
            tallies: vec![Tally::default(); alive.len()],
            alive,
            times,
            watched: Watched::default(),
            ages: BTreeMap::new(),
            exceptional: BTreeSet::new(),
            lists_exceptions: false,
            exceptions: Vec::new(),
            flows: 0,
            freed: 0,
            handshakes: 0,
            awaited: 0,
            await_max: 0,
            sought: Vec::new(),
        }
    }

    /// What was found, by backend.
    pub fn tallies(&self) -> BTreeMap<u32, Tally> {
        let found = self.tallies.iter().enumerate();
        found
            .filter(|(_, tally)| **tally != Tally::default())
            .map(|(id, tally)| (id as u32, *tally))
            .collect()
    }

    /// The same, as if `slots` were the table of `service`.
    #[must_use]
    pub fn with_table(mut self, service: u32, slots: &'a Packed) -> Self {
        if let Some(Some(view)) = self.services.get_mut(service as usize) {
            view.slots = slots;
        }
        self
    }

    /// The same, with the ages of these backends' flows.
    #[must_use]
    pub fn watching(mut self, watched: Watched) -> Self {
        self.watched = watched;
        self
    }

    /// The same, with at most so many more flows awaited: each takes a place from new openings.
    #[must_use]
    pub fn awaiting(mut self, most: u64) -> Self {
        self.await_max = most;
        self
    }

    /// Looks at an entry of the handshake table.
    pub fn handshake(&mut self, entry: &FlowEntry) -> Fate {
        let meta = Meta(entry.meta);
        let Some((view, service, slot)) = self.place(entry, meta) else {
            return Fate::Remove;
        };
        self.handshakes += 1;
        let tally = &mut self.tallies[meta.backend() as usize];
        tally.entries += 1;
        let age = ticks_since(entry.seen, self.times.now);
        let alive = !meta.has(state::CLOSE_COUNTED) && age <= view.record.idle_ticks;
        let ends = meta.has(state::RESET) || meta.has(state::CLOSING) && age > self.times.linger;
        if alive && !ends && meta.has(state::ESTABLISHED) {
            // It stands for its flow, which found no room in the flow table.
            tally.listed += 1;
            tally.counted_open += 1;
            tally.longest = tally.longest.max(ticks_since(entry.opened, self.times.now));
        }
        let Some((index, slot)) = slot.filter(|_| alive) else {
            return Fate::Keep;
        };
        if slot.base() != meta.backend() {
            self.exceptional.insert((service, index));
        } else if slot.is_moved() && !ends && !meta.has(state::ESTABLISHED) {
            return self.awaits(meta);
        }
        Fate::Keep
    }

    /// What to do with the opening of a flow that is its base's, in a slot that has moved on. Its next packet makes it an entry in
    /// the flow table, which then accounts for its close; until then a flood of openings must not take this one away.
    fn awaits(&mut self, meta: Meta) -> Fate {
        if meta.has(state::AWAITED) {
            self.awaited += 1;
            return Fate::Keep;
        }
        if self.await_max == 0 {
            return Fate::Keep;
        }
        self.await_max -= 1;
        self.awaited += 1;
        Fate::Await
    }

    /// Looks at an entry of the flow table.
    pub fn flow(&mut self, entry: &FlowEntry) -> Fate {
        let fate = self.fate_of_flow(entry);
        self.freed += u64::from(fate == Fate::Remove);
        fate
    }

    fn fate_of_flow(&mut self, entry: &FlowEntry) -> Fate {
        let meta = Meta(entry.meta);
        let Some((view, service, slot)) = self.place(entry, meta) else {
            return Fate::Remove;
        };
        let record = view.record;
        let Some((index, slot)) = slot else {
            return Fate::Remove;
        };
        let tracked = slot.is_tracked() || record.flags & service_flags::TRACK_ALL != 0;
        if !tracked && slot.base() != meta.backend() {
            // Nobody asks for it; if it were alive, it would be broken already.
            return Fate::Remove;
        }
        let age = ticks_since(entry.seen, self.times.now);
        // In a slot that is not tracked only a close is noted, so an entry is not known to be idle before its slot
        // has been tracked for that long. It stays because it accounts for its flow's close.
        let since = view.tracked_since;
        let unseen = if is_datagram(record) {
            age
        } else if tracked {
            age.min(since)
        } else {
            0
        };
        let closing = meta.has(state::CLOSING);
        let tally = &mut self.tallies[meta.backend() as usize];
        // Another node has that flow: it keeps its entry, and is none of this node's flows.
        let elsewhere = entry.is_elsewhere();
        let over = (is_closed(meta, record.mode) && age > self.times.keep)
            || unseen > silence(record.idle_ticks);
        if over {
            if !closing && !elsewhere {
                tally.idle_expired += 1;
            }
            self.note_age(entry, record, Stage::Freed);
            return Fate::Remove;
        }
        self.flows += 1;
        tally.entries += 1;
        let alive = !elsewhere && !meta.has(state::RESET) && (!closing || age <= self.times.linger);
        if alive {
            tally.listed += 1;
            let counted = meta.has(state::ISN_KNOWN) && !meta.has(state::CLOSE_COUNTED);
            tally.counted_open += u64::from(counted);
            tally.closed += u64::from(meta.has(state::CLOSE_COUNTED));
            tally.longest = tally.longest.max(ticks_since(entry.opened, self.times.now));
        }
        self.note_age(
            entry,
            record,
            if alive { Stage::Live } else { Stage::Closed },
        );
        self.note_sought(entry, record, meta);
        if unlisted_owner(record, slot) == meta.backend() {
            return Fate::Keep;
        }
        self.exceptional.insert((service, index));
        if self.lists_exceptions && alive && !meta.has(state::GUESSED) {
            self.exceptions
                .push((entry.client, entry.ports, meta.backend()));
        }
        // A guess must be able to give way until its backend has answered: forged segments make guesses.
        if meta.has(state::EXCEPTIONAL | state::GUESSED) {
            Fate::Keep
        } else {
            Fate::Mark
        }
    }

    /// Keeps a flow whose backend is being asked for, where the answers say who has it.
    fn note_sought(&mut self, entry: &FlowEntry, record: &ServiceRecord, meta: Meta) {
        let (least, most) = self.times.sought;
        let age = ticks_since(entry.opened, self.times.now);
        let is_sought = meta.has(state::GUESSED) && !meta.has(state::CLOSING);
        let is_due = (least..most).contains(&age) && self.sought.len() < SOUGHT_MAX;
        if is_sought && is_due && mode::is_two_way(record.mode) {
            self.sought.push((entry.client, entry.ports));
        }
    }

    /// Keeps the age of a flow of a watched backend, where its opening was seen. What had closed before the drain began
    /// is none of its flows.
    fn note_age(&mut self, entry: &FlowEntry, record: &ServiceRecord, stage: Stage) {
        let meta = Meta(entry.meta);
        let Some(since) = self.watched.since(meta.backend()) else {
            return;
        };
        let before = meta.has(state::CLOSING) && ticks_since(entry.seen, self.times.now) > since;
        if before || !(meta.has(state::ISN_KNOWN) || is_datagram(record)) {
            return;
        }
        let ages = self.ages.entry(meta.backend()).or_default();
        let (ages, until) = match stage {
            Stage::Live => (&mut ages.live, self.times.now),
            Stage::Closed => (&mut ages.closed, entry.seen),
            Stage::Freed => (&mut ages.freed, entry.seen),
        };
        ages.add(self.watched.ms(ticks_since(entry.opened, until)));
    }

    /// The service of an entry with its id, and the entry's slot; `None` when the entry means nobody.
    fn place(&self, entry: &FlowEntry, meta: Meta) -> Option<Place<'a>> {
        let service = FlowKey::service(entry.ports);
        let view = (*self.services.get(service as usize)?)?;
        if !*self.alive.get(meta.backend() as usize)? {
            return None;
        }
        let key = FlowKey {
            client: entry.client,
            ports: entry.ports,
        };
        // The slot is chosen by the hash's upper half, and the tag differs from the hash in its lowest bit only.
        let index = slot_index(view.record, &key, entry.tag);
        let slot = view.slots.get(index as usize);
        Some((view, service, slot.map(|slot| (index, slot))))
    }
}

/// How far a flow is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Live,
    Closed,
    Freed,
}

/// Whether its flows have neither an opening nor a closing packet, and every one of them has an entry.
pub const fn is_datagram(record: &ServiceRecord) -> bool {
    record.flags & service_flags::DATAGRAM != 0
}

/// Flows that may live unseen, of a backend with these counters: opened here, not seen to close, not listed.
///
/// Never too few: a close counts only where the opening did (an entry whose opening nobody remembers may be of a flow
/// that another node opened), and a listed flow is subtracted only then.
pub fn unseen(tally: &Tally, opened: u64, closed: u64, forgiven: u64) -> u64 {
    let open = opened.saturating_sub(closed).saturating_sub(forgiven);
    open.saturating_sub(tally.counted_open)
}

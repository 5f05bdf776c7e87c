//! From what is installed to what is desired: the writes, in an order that never lets a packet meet half a change.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{BackendRecord, ServiceRecord, Slot, mode},
    former::Formers,
    full_nat::Sources,
    index::IndexEntry,
};

use super::{
    desired::Desired,
    former::{self, FormerOwners},
    observed::Vlans,
    packed::Packed,
    spec::ClientRules,
};

/// What has been written: noted only after a write succeeded.
#[derive(Debug, Clone, Default)]
pub struct Installed {
    /// Backends by id.
    pub backends: BTreeMap<u32, BackendRecord>,
    /// Services by id.
    pub services: BTreeMap<u32, ServiceRecord>,
    /// Tables by service id.
    pub tables: BTreeMap<u32, Packed>,
    /// Former owners of slots by service id, where there are any.
    pub formers: BTreeMap<u32, FormerOwners>,
    /// The index; `None` when it is not known.
    pub index: Option<Vec<IndexEntry>>,
    /// Client prefixes; `None` when they are not known.
    pub clients: Option<ClientRules>,
    /// The node's limit of new flows; `None` when it is not known.
    pub flow_limit: Option<u32>,
    /// The node's flags; `None` when they are not known.
    pub node_flags: Option<u32>,
    /// Where ports for `full-nat` come from; `None` when that is not known.
    pub sources: Option<[Sources; 2]>,
    /// The node's VLAN devices; `None` when it is not known which were written.
    pub vlans: Option<Vlans>,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A backend's record; an empty one clears it.
    Backend(u32, BackendRecord),
    /// A service's table. `rebased`: the base of some slot changes, which the flow table must be prepared for.
    Table {
        /// Service id.
        service: u32,
        /// The new table.
        slots: Packed,
        /// Former owners of its slots.
        formers: FormerOwners,
        /// See above.
        rebased: bool,
    },
    /// A service's record.
    Service(u32, ServiceRecord),
    /// The address index.
    Index(Vec<IndexEntry>),
    /// Client prefixes.
    Clients(ClientRules),
    /// The node's limit of new flows.
    FlowLimit(u32),
    /// The node's flags.
    NodeFlags(u32),
    /// Where ports for `full-nat` come from.
    Sources(Box<[Sources; 2]>),
    /// The node's VLAN devices.
    Vlans(Vlans),
    /// A service is gone.
    NoService(u32),
}

/// Who owns a service's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// Who takes new flows, by slot.
    pub current: Vec<u32>,
    /// Who owns flows without an entry, by slot; `None`: the same.
    pub base: Option<Vec<u32>>,
    /// Who owned slots in between.
    pub formers: FormerOwners,
}

impl Owners {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let base = self.base.as_ref().unwrap_or(&self.current);
        let owners = self.current.iter().zip(base);
        let slots = owners.map(|(current, base)| Slot::new(*current, *base, false));
        former::flagged(slots, &self.formers)
    }
}

/// The writes that lead from `installed` to `desired`. `owners` says who should own the slots of a service with this
/// id, or `None` where its table is known to say so already: tables are large, and seldom change.
///
/// Adding: backends, table, service, index. Removing: index, service, table with it, backends. A backend's record is written before
/// the table that no longer names it, so that `ACCEPTING` is never set on one that takes no flows.
pub fn plan(
    desired: &Desired,
    installed: &Installed,
    owners: &mut dyn FnMut(u32) -> Option<Owners>,
) -> Vec<Write> {
    let mut writes = Vec::new();
    // First, so that a new service never serves whom it must not.
    if installed.clients.as_ref() != Some(&desired.clients) {
        writes.push(Write::Clients(desired.clients.clone()));
    }
    if installed.flow_limit != Some(desired.flow_limit) {
        writes.push(Write::FlowLimit(desired.flow_limit));
    }
    if installed.node_flags != Some(desired.node_flags) {
        writes.push(Write::NodeFlags(desired.node_flags));
    }
    if installed.sources != Some(desired.sources) {
        writes.push(Write::Sources(Box::new(desired.sources)));
    }
    if let Some(vlans) = &desired.vlans
        && installed.vlans.as_ref() != Some(vlans)
    {
        writes.push(Write::Vlans(vlans.clone()));
    }
    for (id, record) in &desired.backends {
        if installed.backends.get(id) != Some(record) {
            writes.push(Write::Backend(*id, *record));
        }
    }
    for (id, record) in &desired.services {
        let table = owners(*id);
        let write = |owners| table_write((*id, record), owners, installed, desired);
        writes.extend(table.and_then(write));
        if installed.services.get(id) != Some(record) {
            writes.push(Write::Service(*id, *record));
        }
    }
    if installed.index.as_ref() != Some(&desired.index) {
        writes.push(Write::Index(desired.index.clone()));
    }
    let known: BTreeSet<u32> = installed
        .services
        .keys()
        .chain(installed.tables.keys())
        .copied()
        .collect();
    let gone = known
        .into_iter()
        .filter(|id| !desired.services.contains_key(id));
    writes.extend(gone.map(Write::NoService));
    let gone = installed
        .backends
        .keys()
        .filter(|id| !desired.backends.contains_key(id));
    writes.extend(gone.map(|id| Write::Backend(*id, BackendRecord::default())));
    writes
}

fn table_write(
    (id, record): (u32, &ServiceRecord),
    mut owners: Owners,
    installed: &Installed,
    desired: &Desired,
) -> Option<Write> {
    let old = installed.tables.get(&id);
    let Some(old) = old.filter(|old| old.len() == owners.current.len()) else {
        return Some(Write::Table {
            service: id,
            slots: owners.slots().collect(),
            formers: owners.formers,
            rebased: false,
        });
    };
    let formers = installed.formers.get(&id);
    let none = FormerOwners::new();
    let formers = formers.unwrap_or(&none);
    if mode::is_two_way(record.mode) {
        let can = |backend| desired.can_have_flows(backend);
        owners.formers = with_kept(&owners, old, formers, &can);
    }
    let (mut rebased, mut changed) = (false, *formers != owners.formers);
    let slots = owners.slots().zip(old.iter()).map(|(new, old)| {
        rebased |= new.base() != old.base();
        changed |= new.current() != old.current();
        with_flag(new, old)
    });
    let slots = slots.collect();
    (rebased || changed).then_some(Write::Table {
        service: id,
        slots,
        formers: owners.formers,
        rebased,
    })
}

/// The former owners of the slots, with those whose flows may outlive the change that made them: where a flag says that
/// there may be any, whoever owned the slot before, as far as he `can` still have flows. While the entries of such flows stand nobody
/// has to know; where they are lost, the answers of these show where their flows are.
fn with_kept(
    owners: &Owners,
    old: &Packed,
    old_formers: &FormerOwners,
    can: &dyn Fn(u32) -> bool,
) -> FormerOwners {
    let mut own = owners.formers.iter().peekable();
    let mut before = old_formers.iter().peekable();
    let mut all = Vec::new();
    for (index, (new, old)) in (0..).zip(owners.slots().zip(old.iter())) {
        let of_slot = |formers: &mut std::iter::Peekable<std::slice::Iter<(u32, Formers)>>| {
            let row = formers.next_if(|(place, _)| *place == index);
            row.map_or(Formers::NONE, |(_, formers)| *formers)
        };
        let (own, before) = (of_slot(&mut own), of_slot(&mut before));
        if !with_flag(new, old).has_exceptions() {
            if !own.is_empty() {
                all.push((index, own));
            }
            continue;
        }
        let mut found: Vec<u32> = own.iter().collect();
        for backend in [old.current(), old.base()].into_iter().chain(before.iter()) {
            let known = backend == new.base() || backend == new.current();
            if backend != 0 && !known && !found.contains(&backend) && can(backend) {
                found.push(backend);
            }
        }
        if !found.is_empty() {
            all.push((index, Formers::new(found)));
        }
    }
    all
}

/// A flag stands until a look at the flow table clears it. A slot that was moved gets one when it is moved no more, or has
/// another base: the flows that began in the meantime are not its base's.
fn with_flag(new: Slot, old: Slot) -> Slot {
    let uncovered = old.is_moved() && (!new.is_moved() || new.base() != old.base());
    let slot = Slot::new(new.current(), new.base(), old.has_exceptions() || uncovered);
    if new.has_formers() {
        slot.with_formers()
    } else {
        slot
    }
}

impl Installed {
    /// Notes a write that succeeded.
    pub fn note(&mut self, write: Write) {
        match write {
            Write::Backend(id, record) if record == BackendRecord::default() => {
                self.backends.remove(&id);
            }
            Write::Backend(id, record) => {
                self.backends.insert(id, record);
            }
            Write::Table {
                service,
                slots,
                formers,
                ..
            } => {
                self.tables.insert(service, slots);
                self.set_formers(service, formers);
            }
            Write::Service(id, record) => {
                self.services.insert(id, record);
            }
            Write::Index(index) => self.index = Some(index),
            Write::Clients(rules) => self.clients = Some(rules),
            Write::FlowLimit(limit) => self.flow_limit = Some(limit),
            Write::NodeFlags(flags) => self.node_flags = Some(flags),
            Write::Sources(sources) => self.sources = Some(*sources),
            Write::Vlans(vlans) => self.vlans = Some(vlans),
            Write::NoService(id) => {
                self.services.remove(&id);
                self.tables.remove(&id);
                self.formers.remove(&id);
            }
        }
    }

    /// Notes that some slots are no more than these now, in the order of their index.
    pub fn change(&mut self, service: u32, slots: &[(u32, Slot)]) {
        if let Some(table) = self.tables.get_mut(&service) {
            table.change(slots);
        }
        if let Some(mut formers) = self.formers.remove(&service) {
            formers.retain(|(index, _)| {
                let changed = slots.binary_search_by_key(index, |(changed, _)| *changed);
                changed.is_err()
            });
            self.set_formers(service, formers);
        }
    }

    /// Notes former owners of a service's slots.
    pub fn set_formers(&mut self, service: u32, formers: FormerOwners) {
        if formers.is_empty() {
            self.formers.remove(&service);
        } else {
            self.formers.insert(service, formers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_cover_what_the_base_does_not() {
        #[rustfmt::skip]
        let rows = [
            ("never moved", Slot::new(1, 1, false), Slot::new(1, 1, false), false),
            ("moves now", Slot::new(1, 1, false), Slot::new(2, 1, false), false),
            ("moves on", Slot::new(2, 1, false), Slot::new(3, 1, false), false),
            ("moves back", Slot::new(2, 1, false), Slot::new(1, 1, false), true),
            ("settles", Slot::new(2, 1, false), Slot::new(2, 2, false), true),
            ("flag stands", Slot::new(1, 1, true), Slot::new(1, 1, false), true),
            ("flag stands while moved", Slot::new(1, 1, true), Slot::new(2, 1, false), true),
        ];
        for (what, old, new, flag) in rows {
            assert_eq!(with_flag(new, old).has_exceptions(), flag, "{what}");
        }
    }

    /// Who owned a slot before is remembered where a flag stands, as far as he is there.
    #[test]
    fn whose_flows_may_live_on_is_remembered() {
        let none: &[u32] = &[];
        #[rustfmt::skip]
        let rows = [
            ("never moved", Slot::new(1, 1, false), Slot::new(1, 1, false), none, none, none),
            ("moves now", Slot::new(1, 1, false), Slot::new(2, 1, false), none, none, none),
            ("in between", Slot::new(2, 1, false), Slot::new(3, 1, false), none, &[2], &[2]),
            ("settles", Slot::new(2, 1, false), Slot::new(2, 2, false), none, none, &[1]),
            ("settles after more", Slot::new(3, 1, false), Slot::new(3, 3, false), &[2], none, &[1, 2]),
            ("taken back", Slot::new(2, 1, false), Slot::new(1, 1, false), none, &[2], &[2]),
            ("stands", Slot::new(1, 1, true), Slot::new(1, 1, false), &[2, 3], none, &[2, 3]),
            ("moves again", Slot::new(1, 1, true), Slot::new(2, 1, false), &[2, 3], none, &[3]),
            ("is over", Slot::new(1, 1, false), Slot::new(1, 1, false), &[2], none, none),
            ("has ended", Slot::new(9, 1, false), Slot::new(1, 1, false), &[8, 2], none, &[2]),
        ];
        for (what, old, new, before, own, kept) in rows {
            let rows = |ids: &[u32]| -> FormerOwners {
                let formers = Formers::new(ids.iter().copied());
                Vec::from_iter((!ids.is_empty()).then_some((1, formers)))
            };
            // Its neighbours are nobody's.
            let slots = |slot: Slot| [Slot::new(7, 7, false), slot, Slot::new(7, 7, false)];
            let owners = Owners {
                current: slots(new).map(Slot::current).to_vec(),
                base: Some(slots(new).map(Slot::base).to_vec()),
                formers: rows(own),
            };
            let found = with_kept(
                &owners,
                &slots(old).into_iter().collect(),
                &rows(before),
                &|backend| backend < 8,
            );
            assert_eq!(found, rows(kept), "{what}");
        }
    }
}

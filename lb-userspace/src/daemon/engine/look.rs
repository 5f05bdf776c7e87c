//! The regular look at the flow tables, and what follows from it: flags cleared, ids freed, drains moved on,
//! changes settled.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{abi::Slot, entry::state as entry_state, outcome::Outcome};

use super::{Engine, Fault, loss::Losses, pressing::PATIENCE_MS};
use crate::{
    datapath::{self, Table, Verdict},
    model::{
        census::{Census, Fate, Tally},
        compose, death,
        drain::{Admin, Sight, as_ms},
        state::{Backend, Op, Service},
    },
};

/// Time between two looks while a drain is under way, milliseconds.
const DRAIN_LOOK_MS: u64 = 200;

/// Time between two looks otherwise, milliseconds.
const LOOK_MS: u64 = 5_000;

/// Free places of the flow table that are looked at in a millisecond, roughly.
const PLACES_A_MS: u64 = 200_000;

/// Flows that are looked at in a millisecond, roughly.
const FLOWS_A_MS: u64 = 15_000;

/// While a drain is under way, looks take no more than one in so many parts of the time.
const LOOK_SHARE: u64 = 10;

/// One in so many places of the handshake table may be kept for flows that are awaited. With more, openings of clients would
/// find no place where forged ones have filled the table before a drain.
const AWAITED_SHARE: u64 = 16;

/// What the last look saw.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// By backend.
    pub tallies: BTreeMap<u32, Tally>,
    /// Slots with flows that are not their base's, by service and slot.
    pub exceptional: BTreeSet<(u32, u32)>,
    /// Entries in use in the flow table.
    pub flows: u64,
    /// Entries in use in the handshake table.
    pub handshakes: u64,
    /// Those of them whose flows are awaited.
    pub awaited: u64,
    /// Flows whose clients were asked for a packet, because their backend is not known.
    pub sought: usize,
    /// When it was, Unix milliseconds.
    pub at_ms: u64,
}

impl Engine {
    /// Moves everything on that time moves on. Failures are kept for the status and tried again.
    pub fn tick(&mut self, now_ms: u64) {
        self.follow_configuration(now_ms);
        let result = self.try_tick(now_ms);
        if let Err(error) = result {
            tracing::warn!("{error}");
            self.trouble = Some(error.to_string());
        }
        // What could not be granted before may be possible by now.
        self.follow_speech(now_ms);
    }

    fn try_tick(&mut self, now_ms: u64) -> Result<(), Fault> {
        let cutting = |backend: &Backend| {
            backend
                .admin
                .draining()
                .is_some_and(|drain| drain.cutting.is_some())
        };
        let cuts = self
            .state
            .backends()
            .any(|(_, _, _, backend)| cutting(backend));
        let composes = self.state.services.iter().any(|(name, service)| {
            compose::compose(name, service, &self.observed, now_ms).is_some()
        });
        if self.behind || cuts || composes {
            self.commit(Vec::new(), now_ms)?;
        }
        self.weigh_openings(now_ms)?;
        self.nudge(now_ms)?;
        self.finish_trace();
        if now_ms < self.next_look_ms {
            return Ok(());
        }
        let draining = self
            .state
            .services
            .values()
            .any(|service| service.is_draining());
        if !self.look_between_commands(now_ms)? {
            self.next_look_ms = now_ms;
            return Ok(());
        }
        // Where a look takes long, commands must not find the daemon looking most of the time.
        let rest = self.look_ms().saturating_mul(LOOK_SHARE - 1);
        self.next_look_ms = now_ms
            + if draining || self.last_look.sought > 0 {
                rest.clamp(DRAIN_LOOK_MS, LOOK_MS)
            } else {
                LOOK_MS
            };
        self.question_empty(now_ms);
        self.step_drains(now_ms)?;
        if now_ms >= self.next_sweep_ms {
            self.next_sweep_ms = now_ms + LOOK_MS;
            if !self.datapath.missing().is_empty() {
                // What kept the program off an interface may have gone without a word.
                self.follow_interfaces();
            }
            self.clear_flags(now_ms)?;
            self.free_ids(now_ms)?;
        }
        self.settle(now_ms)
    }

    /// Roughly how long a look takes, milliseconds. By what there is to look at and not by the clock, so that a daemon
    /// does the same at each try, however busy its machine is.
    pub(super) fn look_ms(&self) -> u64 {
        u64::from(self.spec.node.capacity.flows) / PLACES_A_MS + self.last_look.flows / FLOWS_A_MS
    }

    /// Has the program follow interfaces that have gone or come back.
    pub fn follow_interfaces(&mut self) {
        let (attached, missing) = (self.datapath.attachments(), self.datapath.missing());
        self.datapath.follow_interfaces();
        for new in self.datapath.attachments() {
            if !attached.contains(&new) {
                tracing::info!("XDP program on {}, {} mode", new.interface, new.mode);
            }
        }
        for new in self.datapath.missing() {
            if !missing.contains(&new) {
                tracing::warn!("interface {}: {}", new.interface, new.why);
            }
        }
    }

    /// Looks at every entry, unless a command comes meanwhile: what it changes may be what the look is about. Returns
    /// whether all were looked at; else it is to be done again from the beginning.
    fn look_between_commands(&mut self, now_ms: u64) -> Result<bool, Fault> {
        let since = *self.gives_way_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since) > PATIENCE_MS {
            self.look(now_ms)?;
            return Ok(true);
        }
        let pressing = self.pressing.clone();
        self.look_while(now_ms, &|| !pressing.any())
    }

    /// Looks at every entry.
    pub(super) fn look(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.look_while(now_ms, &|| true).map(drop)
    }

    /// Takes over what the maps say of flows that were lost, before anything is written to them.
    pub(super) fn recall_losses(&mut self, now_ms: u64) -> datapath::Result<()> {
        self.losses = Losses::recall(&self.datapath.known()?, now_ms);
        let mut services = self.state.services.values();
        let has_run = services.any(|service| !service.current.is_empty());
        if !has_run {
            self.losses.begin();
        } else if self.installed.tables.is_empty() || !self.losses.has_evidence() {
            // Maps that are new, some of them at least, or of an ebb that noted nothing.
            self.losses.forgotten(now_ms);
        }
        self.note_losses();
        Ok(())
    }

    /// Has the next daemon know what this one knows.
    fn note_losses(&mut self) {
        if let Err(error) = self.datapath.note_known(&self.losses.known()) {
            tracing::warn!("what is known of flows could not be noted: {error}");
        }
    }

    fn look_while(&mut self, now_ms: u64, goes_on: &dyn Fn() -> bool) -> Result<bool, Fault> {
        self.read_doubtful()?;
        let began = std::time::Instant::now();
        let since = self.tracked_since(now_ms);
        let watched = self.watched(now_ms);
        let most = u64::from(self.spec.node.capacity.handshakes) / AWAITED_SHARE;
        let mut census = Census::new(&self.installed, self.times(), &since)
            .watching(watched)
            .awaiting(most.saturating_sub(self.last_look.awaited));
        census.lists_exceptions = self.sharing.is_some();
        let datapath = &mut self.datapath;
        let all = datapath.scan_while(Table::Handshakes, goes_on, &mut |entry| {
            verdict(census.handshake(entry))
        })? && datapath.scan_while(Table::Flows, goes_on, &mut |entry| {
            verdict(census.flow(entry))
        })?;
        if !all {
            self.losses.freed(census.freed);
            let (tallies, ages) = (census.tallies(), census.ages);
            self.note_freed(&tallies, &ages);
            self.note_losses();
            tracing::debug!(took = ?began.elapsed(), "a look gives way to a command");
            return Ok(false);
        }
        self.gives_way_since_ms = None;
        self.losses.freed(census.freed);
        if self.losses.looked(census.flows, now_ms) {
            tracing::warn!(
                "entries of flows were lost: drains and changes wait for them to be seen again"
            );
        }
        let look = Look {
            tallies: census.tallies(),
            exceptional: census.exceptional,
            flows: census.flows,
            handshakes: census.handshakes,
            awaited: census.awaited,
            sought: census.sought.len(),
            at_ms: now_ms,
        };
        let (ages, exceptions, sought) = (census.ages, census.exceptions, census.sought);
        self.last_look = look;
        self.look_is_old = false;
        self.note_losses();
        self.count_unlisted(now_ms)?;
        self.watch_drains(ages, now_ms);
        self.tell(&exceptions, now_ms);
        self.ask_clients(sought);
        tracing::debug!(flows = self.last_look.flows, took = ?began.elapsed(), "looked");
        Ok(true)
    }

    /// Asks whether flows went on without an entry, of services for which that matters.
    fn count_unlisted(&mut self, now_ms: u64) -> datapath::Result<()> {
        let services = self.state.services.values();
        let matters = services.filter(|service| service.is_changing() || service.is_draining());
        let wanted: BTreeSet<u32> = matters.map(|service| service.id).collect();
        self.unlisted.keep(|service| wanted.contains(&service));
        for service in wanted {
            let mut count = self.datapath.gave_way(service)?;
            for outcome in [Outcome::ForwardUnlisted, Outcome::ForwardAskingUnlisted] {
                count += self.datapath.outcome(service, outcome)?;
            }
            self.unlisted.counted(service, count, now_ms);
        }
        Ok(())
    }

    /// When flows of a service were last known to live that no look sees: their entries were lost, or they got none.
    fn unlisted_ms(&self, service: &Service) -> u64 {
        let last_ms = self.unlisted.last_ms(service.id);
        self.losses.lost_ms().max(last_ms)
    }

    /// Clears the flag of every unmoved slot that has no flow but its base's.
    pub(super) fn clear_flags(&mut self, now_ms: u64) -> Result<(), Fault> {
        if self.look_is_old {
            // Flows may have begun between the look and the table that stands now.
            if !self.look_between_commands(now_ms)? {
                self.next_sweep_ms = now_ms;
                return Ok(());
            }
        }
        let services: Vec<u32> = self.installed.tables.keys().copied().collect();
        for service in services {
            let cleared = self.clearable(service, now_ms);
            if cleared.is_empty() {
                continue;
            }
            self.doubtful.insert(service);
            self.datapath.put_slots(service, &cleared)?;
            self.doubtful.remove(&service);
            self.installed.change(service, &cleared);
        }
        Ok(())
    }

    fn clearable(&self, id: u32, now_ms: u64) -> Vec<(u32, Slot)> {
        let Some(table) = self.installed.tables.get(&id) else {
            return Vec::new();
        };
        let service = self.state.services.values().find(|found| found.id == id);
        // Of flows whose entries were lost the former owners are asked; first they must have been seen again.
        let forgets = service.is_none_or(|service| {
            let idle_ms = as_ms(service.spec.idle_timeout);
            !service.is_changing() && now_ms >= self.unlisted_ms(service).saturating_add(idle_ms)
        });
        let flagged = |slot: &Slot| {
            slot.has_exceptions() && !slot.is_moved() && (forgets || !slot.has_formers())
        };
        if !table.kinds().iter().any(flagged) {
            return Vec::new();
        }
        let slots = table.iter().enumerate().filter(|(_, slot)| flagged(slot));
        slots
            .map(|(index, slot)| (index as u32, Slot::new(slot.current(), slot.base(), false)))
            .filter(|(index, _)| !self.last_look.exceptional.contains(&(id, *index)))
            .collect()
    }

    /// Gives ids back that nothing names any more.
    fn free_ids(&mut self, now_ms: u64) -> Result<(), Fault> {
        let unused = |(name, service, id, backend): (&String, &Service, u32, &Backend)| {
            let composed = service
                .current
                .iter()
                .chain(&service.base)
                .chain(service.passed.iter().flatten())
                .any(|share| share.backend == id);
            (backend.admin == Admin::Removed && !composed).then(|| (name.clone(), service.id, id))
        };
        let candidates: Vec<_> = self.state.backends().filter_map(unused).collect();
        if self.behind || (candidates.is_empty() && self.state.retired.is_empty()) {
            return Ok(());
        }
        // Packets that saw them are through after this, so no entry is made that the look does not see.
        self.datapath.barrier()?;
        if !self.look_between_commands(now_ms)? {
            self.next_sweep_ms = now_ms;
            return Ok(());
        }
        let mut ops: Vec<Op> = Vec::new();
        let mut renewed = BTreeSet::new();
        for (service, service_id, backend) in candidates {
            let in_table = self.installed.tables.get(&service_id).is_some_and(|table| {
                let mut kinds = table.kinds().iter();
                kinds.any(|slot| slot.current() == backend || slot.base() == backend)
            });
            let formers = self.installed.formers.get(&service_id);
            let was_in_table = formers.is_some_and(|formers| {
                let mut owners = formers.iter().flat_map(|(_, owners)| owners.iter());
                owners.any(|owner| owner == backend)
            });
            let entries = self
                .last_look
                .tallies
                .get(&backend)
                .map_or(0, |tally| tally.entries);
            if !in_table && entries == 0 {
                if was_in_table {
                    renewed.insert(service_id);
                } else {
                    ops.push(Op::BackendForgotten { service, backend });
                }
            }
        }
        let retired = self.state.retired.iter();
        ops.extend(retired.map(|id| Op::ServiceForgotten { id: *id }));
        // Where only former owners are left of it, the table is worked out anew, without those that have ended.
        for service in &renewed {
            self.made_of.remove(service);
        }
        if ops.is_empty() && renewed.is_empty() {
            Ok(())
        } else {
            self.commit(ops, now_ms)
        }
    }

    /// Settles the changes that have waited long enough.
    fn settle(&mut self, now_ms: u64) -> Result<(), Fault> {
        if self.behind {
            return Ok(());
        }
        let ready = |service: &Service| {
            let published = self.published_ms.get(&service.id).copied().unwrap_or(0);
            // Flows whose entries were lost, or that got none, must be seen again.
            let since = published.max(self.unlisted_ms(service));
            let waited = now_ms >= since.saturating_add(as_ms(service.spec.idle_timeout));
            compose::settles(service, now_ms) && waited
        };
        let services = self
            .state
            .services
            .iter()
            .filter(|(_, service)| ready(service));
        let ops: Vec<Op> = services
            .map(|(name, _)| Op::Settled {
                service: name.clone(),
            })
            .collect();
        if ops.is_empty() {
            return Ok(());
        }
        self.commit(ops, now_ms)?;
        if self.look_between_commands(now_ms)? {
            self.clear_flags(now_ms)?;
        } else {
            self.next_sweep_ms = now_ms;
        }
        Ok(())
    }

    /// What is known of a backend's flows.
    pub(super) fn sight(&self, service: &Service, id: u32, backend: &Backend) -> Sight {
        let tally = self.last_look.tallies.get(&id).copied().unwrap_or_default();
        let stats = self.datapath.backend_stats(id).unwrap_or_default();
        let forgiven = if stats.opened >= backend.forgiven.opened {
            backend.forgiven.flows
        } else {
            0
        };
        let unseen = if service.spec.is_datagram() {
            0
        } else {
            crate::model::census::unseen(&tally, stats.opened, stats.closed, forgiven)
        };
        // Flows that this drain has already given up are not waited for again.
        let given_up = backend
            .admin
            .draining()
            .map_or(0, |drain| drain.progress.idle_expired);
        let silence = self.observed.silence.get(&id);
        let watch = backend
            .admin
            .draining()
            .and_then(|drain| self.watches.get(&drain.id));
        let before = silence.zip(watch);
        Sight {
            silent: silence.is_some(),
            dead: death::has_died(service, &self.observed, id),
            before: before.map_or(0, |(silence, watch)| watch.left_at(silence.since_ms)),
            doubtful: false,
            lost_ms: self.unlisted_ms(service),
            counted_since_ms: self.losses.counted_since_ms(),
            listed: tally.listed,
            unseen: unseen.saturating_sub(given_up),
            closed: tally.closed,
            down: compose::health(service, &self.observed, id)
                == crate::model::observed::Health::Down,
        }
    }
}

fn verdict(fate: Fate) -> Verdict {
    match fate {
        Fate::Keep => Verdict::Keep,
        Fate::Remove => Verdict::Remove,
        Fate::Mark => Verdict::Set(entry_state::EXCEPTIONAL),
        Fate::Await => Verdict::Set(entry_state::AWAITED),
    }
}

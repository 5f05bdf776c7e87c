//! Commands and events, from the request to the maps.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Engine, Fault};
use crate::{
    api::ClientPrefix,
    datapath::{self, Table, Verdict},
    model::{
        ages::Ages,
        command::{self, Result, Selection, Target, Terms},
        compose,
        drain::{By, Draining, Sight},
        observed::{Health, Vlans, Way},
        refused::{Refused, RefusedKind},
        reload,
        spec::{BackendSpec, Spec},
        state::{Op, State},
    },
};

/// Longest look that a command does before it returns, milliseconds.
const PROMPT_MS: u64 = 10;

impl Engine {
    /// Brings the node to the configuration and the maps to the state, after the start.
    pub fn begin(&mut self, now_ms: u64) -> Result<Vec<String>> {
        self.began_ms = now_ms;
        if self.state == State::default() {
            self.forget_entries()
                .map_err(|error| failed("start", &error.into()))?;
        }
        self.recall_losses(now_ms)
            .map_err(|error| failed("start", &error.into()))?;
        let changes = reload::reload(&self.state, &self.spec, now_ms)?;
        match self.commit(changes.ops, now_ms) {
            Ok(()) => {
                self.forget_followed();
                Ok(changes.words)
            }
            // A node that forwards goes on as it was: nobody is helped if there is no daemon either.
            Err(fault @ Fault::Journal(_)) if self.state != State::default() => {
                tracing::warn!("the configuration is not followed yet: {fault}");
                self.unfollowed = Some(format!("the configuration is not followed yet: {fault}"));
                self.converge(now_ms)
                    .map_err(|fault| failed("start", &fault))?;
                Ok(Vec::new())
            }
            Err(fault) => Err(failed("start", &fault)),
        }
    }

    /// Forgets the backends of a configuration that is followed: they are in the state.
    fn forget_followed(&mut self) {
        let services = self.spec.services.values_mut();
        let pools = services.flat_map(|service| service.pools.values_mut());
        pools.for_each(|pool| pool.backends.clear());
    }

    /// Tries again to follow the configuration of the start, where that could not be written down.
    pub(super) fn follow_configuration(&mut self, now_ms: u64) {
        if self.unfollowed.is_none() {
            return;
        }
        let followed = reload::reload(&self.state, &self.spec, now_ms)
            .map_err(|refused| refused.to_string())
            .and_then(|changes| {
                let done = self.commit(changes.ops, now_ms);
                done.map_err(|fault| fault.to_string())
            });
        self.unfollowed = followed
            .err()
            .map(|why| format!("the configuration is not followed yet: {why}"));
    }

    /// Frees every entry. Where nothing is remembered, entries from an earlier life may name ids that mean others now.
    fn forget_entries(&mut self) -> datapath::Result<()> {
        for table in [Table::Handshakes, Table::Flows] {
            self.datapath.scan(table, &mut |_| Verdict::Remove)?;
        }
        Ok(())
    }

    /// Begins a drain; returns its number. When this returns, no new flow goes to the backend.
    pub fn drain(&mut self, path: &str, terms: Terms, now_ms: u64) -> Result<u64> {
        let drains = self.drain_all(&Selection::one(path), terms, now_ms)?;
        Ok(drains.first().copied().unwrap_or_default())
    }

    /// Begins the drains of a selection, all or none; returns their numbers.
    pub fn drain_all(
        &mut self,
        selection: &Selection,
        terms: Terms,
        now_ms: u64,
    ) -> Result<Vec<u64>> {
        let planned = command::drain(&self.state, &self.observed, selection, terms, now_ms)?;
        let what = format!("drain {}", selection.words());
        self.carry_out(&what, planned.ops, now_ms)?;
        // Counted after they are in effect: from here on the number can only fall. Where that takes long nobody waits
        // for it; the next tick does it.
        let counted = if self.look_ms() > PROMPT_MS {
            Ok(())
        } else {
            self.look(now_ms)
                .and_then(|()| self.count_start(&planned.backends, now_ms))
        };
        if let Err(error) = counted {
            tracing::warn!("{what}: the flows could not be counted yet: {error}");
        }
        let number = |(service, id): &(String, u32)| {
            let backend = self.state.services.get(service)?.backends.get(id)?;
            backend.last_drain
        };
        Ok(planned.backends.iter().filter_map(number).collect())
    }

    fn count_start(
        &mut self,
        backends: &[(String, u32)],
        now_ms: u64,
    ) -> std::result::Result<(), Fault> {
        let mut ops = Vec::new();
        for (name, id) in backends {
            let Some(service) = self.state.services.get(name) else {
                continue;
            };
            let Some(backend) = service.backends.get(id) else {
                continue;
            };
            let drain = backend.admin.draining();
            if drain.is_some_and(|drain| drain.at_start.is_none()) {
                ops.push(Op::DrainCounted {
                    service: name.clone(),
                    backend: *id,
                    flows: self.sight(service, *id, backend).left(),
                });
            }
        }
        if ops.is_empty() {
            return Ok(());
        }
        self.commit(ops, now_ms)
    }

    /// Takes a drain back, as the operator.
    pub fn undrain(&mut self, path: &str, now_ms: u64) -> Result<String> {
        self.undrain_all(&Selection::one(path), By::Operator, now_ms)
    }

    /// Takes the drains of a selection back, all or none; of a backend's own side those that it may.
    pub fn undrain_all(&mut self, selection: &Selection, by: By, now_ms: u64) -> Result<String> {
        let words = selection.words();
        // Refused before anything is looked at.
        let planned = command::undrain(&self.state, selection, by, &unseen, now_ms)?;
        if planned.ops.is_empty() {
            return Ok(planned.kept.join("; "));
        }
        self.look(now_ms).map_err(|fault| failed(&words, &fault))?;
        let seen = |target: &Target, drain: &Draining| self.seen(target, drain);
        let mut planned = command::undrain(&self.state, selection, by, &seen, now_ms)?;
        if by == By::Operator {
            let overruled = planned.backends.iter();
            let overruled: Vec<Op> = overruled
                .filter_map(|(service, id)| self.overrules(service, *id))
                .collect();
            planned.ops.extend(overruled);
        }
        self.carry_out(&format!("undrain {words}"), planned.ops, now_ms)?;
        let mut told = planned.kept;
        told.insert(0, self.are(&planned.backends));
        Ok(told.join("; "))
    }

    /// What the last look knows of a draining backend.
    pub(super) fn seen(&self, target: &Target, drain: &Draining) -> (Draining, Sight, Ages) {
        let progress = self.progress(drain);
        let sight = self.sight(target.service, target.id, target.backend);
        let drain = Draining {
            progress,
            ..drain.clone()
        };
        let ages = self.listed_ages(drain.id);
        (drain, sight, ages)
    }

    /// Removes a backend.
    pub fn remove(&mut self, path: &str, force: bool, now_ms: u64) -> Result<String> {
        command::find(&self.state, path)?;
        self.look(now_ms).map_err(|fault| failed(path, &fault))?;
        let target = command::find(&self.state, path)?;
        let sight = self.sight(target.service, target.id, target.backend);
        let drain = target.backend.admin.draining();
        let ages = drain.map_or_else(Ages::default, |drain| self.listed_ages(drain.id));
        let ops = command::remove(&self.state, path, force, (sight, &ages), now_ms)?;
        self.carry_out(&format!("remove {path}"), ops, now_ms)?;
        Ok(format!("{path} is removed"))
    }

    /// Adds a backend.
    pub fn add(&mut self, path: &str, spec: BackendSpec, now_ms: u64) -> Result<String> {
        let ops = command::add(&self.state, &self.spec.node.capacity, path, spec)?;
        self.carry_out(&format!("add {path}"), ops, now_ms)?;
        Ok(format!(
            "{path} is added; it takes new flows as soon as it is up"
        ))
    }

    /// Whether there is a backend at `SERVICE/POOL/BACKEND` with this address. A port of 0 is the service's own.
    pub fn has(&self, path: &str, address: SocketAddr) -> bool {
        let mut parts = path.split('/');
        let names = (parts.next(), parts.next(), parts.next());
        let (Some(service), Some(pool), Some(name)) = names else {
            return false;
        };
        let Some(service) = self.state.services.get(service) else {
            return false;
        };
        let mut backends = service.live_backends().map(|(_, backend)| backend);
        backends.any(|backend| {
            let known = backend.spec.address;
            let same_port = address.port() == 0 || address.port() == known.port();
            backend.name == name && backend.pool == pool && known.ip() == address.ip() && same_port
        })
    }

    /// Sends new flows to another pool.
    pub fn switch(
        &mut self,
        service: &str,
        pool: &str,
        force: bool,
        now_ms: u64,
    ) -> Result<String> {
        let ops = command::switch(&self.state, &self.observed, service, pool, force)?;
        self.carry_out(&format!("switch {service} to {pool}"), ops, now_ms)?;
        Ok(format!("new flows of {service} go to pool {pool}"))
    }

    /// What a new configuration would change.
    pub fn plan_reload(&self, spec: &Spec, now_ms: u64) -> Result<Vec<String>> {
        self.check_node(spec)?;
        let mut words = reload::reload(&self.state, spec, now_ms)?.words;
        words.extend(reload::node_words(&self.spec, spec));
        Ok(words)
    }

    /// Follows a new configuration, whole or not at all.
    pub fn reload(&mut self, spec: Spec, now_ms: u64) -> Result<Vec<String>> {
        self.check_node(&spec)?;
        let changes = reload::reload(&self.state, &spec, now_ms)?;
        let mut words = changes.words;
        words.extend(reload::node_words(&self.spec, &spec));
        let before = std::mem::replace(&mut self.spec, spec);
        if let Err(fault) = self.commit(changes.ops, now_ms) {
            if matches!(fault, Fault::Journal(_)) {
                self.spec = before;
            }
            return Err(failed("reload", &fault));
        }
        self.unfollowed = None;
        self.forget_followed();
        Ok(words)
    }

    /// The prefixes of clients, with the packets that each decided on, the busiest first.
    pub fn clients(&self) -> Result<Vec<ClientPrefix>> {
        let mut rules = self
            .datapath
            .clients()
            .map_err(|error| failed("clients", &error.into()))?;
        rules.sort_by_key(|(prefix, _, packets)| (std::cmp::Reverse(*packets), *prefix));
        let view = |(prefix, action, packets)| ClientPrefix {
            prefix,
            action,
            packets,
        };
        Ok(rules.into_iter().map(view).collect())
    }

    fn check_node(&self, spec: &Spec) -> Result<()> {
        if spec.node == self.spec.node {
            return Ok(());
        }
        let error = "reload: interfaces, xdp_mode, hash_seed_file, capacity and share can not change while ebb runs";
        Err(Refused::conflict(error)
            .hint("restart ebb to change them; forwarding goes on meanwhile"))
    }

    pub(super) fn carry_out(&mut self, what: &str, ops: Vec<Op>, now_ms: u64) -> Result<()> {
        self.commit(ops, now_ms)
            .map_err(|fault| failed(what, &fault))
    }

    /// Takes in what a health check found. Unknown names are those of backends removed meanwhile.
    ///
    /// Returns whether it makes a difference: then [`Engine::after_events`] is to follow. So of the others here.
    pub fn note_health(
        &mut self,
        service: &str,
        backend: &str,
        health: Health,
        reason: Option<String>,
    ) -> bool {
        let Some(id) = self.id_of(service, backend) else {
            return false;
        };
        let known = self.observed.health.get(&id).map(|(health, _)| *health);
        if health == Health::Starting && known == Some(Health::Presumed) {
            return false;
        }
        // A verdict is more than a suspicion.
        self.observed.suspects.remove(&id);
        self.observed.health.insert(id, (health, reason));
        known != Some(health)
    }

    /// Takes in the way to an address.
    pub fn note_way(&mut self, address: IpAddr, way: Way) -> bool {
        let old = self.observed.ways.insert(address, way.clone());
        old != Some(way)
    }

    /// Takes in the node's VLAN devices.
    pub fn note_vlans(&mut self, vlans: Vlans) -> bool {
        let vlans = Some(vlans);
        let differs = self.observed.vlans != vlans;
        self.observed.vlans = vlans;
        differs
    }

    /// The same as [`Engine::note_health`] and all that follows from it.
    pub fn health(
        &mut self,
        service: &str,
        backend: &str,
        health: Health,
        reason: Option<String>,
        now_ms: u64,
    ) {
        if self.note_health(service, backend, health, reason) {
            self.after_events(now_ms);
        }
    }

    /// The same as [`Engine::note_way`] and all that follows from it.
    pub fn way(&mut self, address: IpAddr, way: Way, now_ms: u64) {
        if self.note_way(address, way) {
            self.after_events(now_ms);
        }
    }

    /// Does what follows from events that make a difference, once for as many as have come.
    pub fn after_events(&mut self, now_ms: u64) {
        self.forget_unknown();
        if let Err(fault) = self.commit(Vec::new(), now_ms) {
            tracing::warn!("{fault}");
            self.trouble = Some(fault.to_string());
        }
        self.follow_speech(now_ms);
    }

    /// Drops what was seen of backends that are no more.
    fn forget_unknown(&mut self) {
        let ids: std::collections::BTreeSet<u32> =
            self.state.backends().map(|(_, _, id, _)| id).collect();
        self.observed.health.retain(|id, _| ids.contains(id));
        self.observed.heard.retain(|id, _| ids.contains(id));
        self.observed.silence.retain(|id, _| ids.contains(id));
        self.observed.suspects.retain(|id| ids.contains(id));
        let addresses = self.addresses();
        self.observed
            .ways
            .retain(|address, _| addresses.contains(address));
    }

    /// Addresses whose ways matter.
    pub fn addresses(&self) -> std::collections::BTreeSet<IpAddr> {
        let live = self
            .state
            .services
            .values()
            .flat_map(|service| service.live_backends());
        live.map(|(_, backend)| backend.spec.address.ip()).collect()
    }

    /// Backends that are to be checked.
    pub fn targets(&self) -> Vec<ProbeTarget> {
        let services = self
            .state
            .services
            .iter()
            .filter(|(_, service)| compose::is_checked(&service.spec.health));
        services
            .flat_map(|(name, service)| {
                let health = Arc::new(service.spec.health.clone());
                service
                    .live_backends()
                    .map(move |(_, backend)| ProbeTarget {
                        service: name.clone(),
                        backend: backend.name.clone(),
                        address: backend.spec.address,
                        health: Arc::clone(&health),
                    })
            })
            .collect()
    }
}

/// A backend to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// Service.
    pub service: String,
    /// Backend.
    pub backend: String,
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// How it is checked; shared by the service's backends.
    pub health: Arc<crate::model::spec::HealthSpec>,
}

/// Nothing has been looked at yet.
pub(super) fn unseen(_: &Target, drain: &Draining) -> (Draining, Sight, Ages) {
    (drain.clone(), Sight::default(), Ages::default())
}

pub(super) fn failed(what: &str, fault: &Fault) -> Refused {
    let hint = match fault {
        Fault::Journal(_) => "nothing has changed; make room on the disk of the state directory",
        Fault::Maps(_) => "it is written down and tried again until it succeeds; see `ebb status`",
    };
    Refused::new(RefusedKind::Failed, format!("{what}: {fault}")).hint(hint)
}

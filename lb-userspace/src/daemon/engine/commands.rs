//! Commands and events, from the request to the maps.

use std::net::IpAddr;

use super::{Engine, Fault};
use crate::{
    api::ClientPrefix,
    datapath::{self, Table, Verdict},
    model::{
        command::{self, Result, Terms},
        compose,
        observed::{Health, Vlans, Way},
        refused::{Refused, RefusedKind},
        reload,
        spec::{BackendSpec, Spec},
        state::{Op, State},
    },
};

impl Engine {
    /// Brings the node to the configuration and the maps to the state, after the start.
    pub fn begin(&mut self, now_ms: u64) -> Result<Vec<String>> {
        self.began_ms = now_ms;
        if self.state == State::default() {
            self.forget_entries()
                .map_err(|error| failed("start", &error.into()))?;
        }
        let changes = reload::reload(&self.state, &self.spec, now_ms)?;
        self.carry_out("start", changes.ops, now_ms)?;
        Ok(changes.words)
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
        let ops = command::drain(&self.state, &self.observed, path, terms, now_ms)?;
        self.carry_out(&format!("drain {path}"), ops, now_ms)?;
        // Counted after it is in effect: from here on the number can only fall.
        if let Err(error) = self
            .look(now_ms)
            .and_then(|()| self.count_start(path, now_ms))
        {
            tracing::warn!("the flows of {path} could not be counted yet: {error}");
        }
        let target = command::find(&self.state, path)?;
        Ok(target.backend.last_drain.unwrap_or_default())
    }

    fn count_start(&mut self, path: &str, now_ms: u64) -> std::result::Result<(), Fault> {
        let Ok(target) = command::find(&self.state, path) else {
            return Ok(());
        };
        if target
            .backend
            .admin
            .draining()
            .is_none_or(|drain| drain.at_start.is_some())
        {
            return Ok(());
        }
        let op = Op::DrainCounted {
            service: target.name.to_owned(),
            backend: target.id,
            flows: self.sight(target.service, target.id, target.backend).left(),
        };
        self.commit(vec![op], now_ms)
    }

    /// Takes a drain back.
    pub fn undrain(&mut self, path: &str, now_ms: u64) -> Result<String> {
        let sight = self.fresh_sight(path, now_ms)?;
        let ops = command::undrain(&self.state, path, sight, now_ms)?;
        self.carry_out(&format!("undrain {path}"), ops, now_ms)?;
        Ok(format!("{path} is active"))
    }

    /// Removes a backend.
    pub fn remove(&mut self, path: &str, force: bool, now_ms: u64) -> Result<String> {
        let sight = self.fresh_sight(path, now_ms)?;
        let ops = command::remove(&self.state, path, force, sight, now_ms)?;
        self.carry_out(&format!("remove {path}"), ops, now_ms)?;
        Ok(format!("{path} is removed"))
    }

    fn fresh_sight(&mut self, path: &str, now_ms: u64) -> Result<crate::model::drain::Sight> {
        command::find(&self.state, path)?;
        self.look(now_ms).map_err(|fault| failed(path, &fault))?;
        let target = command::find(&self.state, path)?;
        Ok(self.sight(target.service, target.id, target.backend))
    }

    /// Adds a backend.
    pub fn add(&mut self, path: &str, spec: BackendSpec, now_ms: u64) -> Result<String> {
        let ops = command::add(&self.state, &self.spec.node.capacity, path, spec)?;
        self.carry_out(&format!("add {path}"), ops, now_ms)?;
        Ok(format!(
            "{path} is added; it takes new flows as soon as it is up"
        ))
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
        self.spec = spec;
        self.carry_out("reload", changes.ops, now_ms)?;
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
        let error = "reload: interfaces, xdp_mode, hash_seed_file and capacity can not change while ebb runs";
        Err(Refused::conflict(error)
            .hint("restart ebb to change them; forwarding goes on meanwhile"))
    }

    fn carry_out(&mut self, what: &str, ops: Vec<Op>, now_ms: u64) -> Result<()> {
        self.commit(ops, now_ms)
            .map_err(|fault| failed(what, &fault))
    }

    /// Takes in what a health check found. Unknown names are those of backends removed meanwhile.
    pub fn health(
        &mut self,
        service: &str,
        backend: &str,
        health: Health,
        reason: Option<String>,
        now_ms: u64,
    ) {
        let found = self
            .state
            .services
            .get(service)
            .and_then(|service| service.backend(backend));
        let Some((id, _)) = found else { return };
        let known = self.observed.health.get(&id).map(|(health, _)| *health);
        if health == Health::Starting && known == Some(Health::Presumed) {
            return;
        }
        self.observed.health.insert(id, (health, reason));
        if known != Some(health) {
            self.after_event(now_ms);
        }
    }

    /// Takes in the way to an address.
    pub fn way(&mut self, address: IpAddr, way: Way, now_ms: u64) {
        let old = self.observed.ways.insert(address, way.clone());
        if old != Some(way) {
            self.after_event(now_ms);
        }
    }

    /// Takes in the node's VLAN devices.
    pub fn vlans(&mut self, vlans: Vlans, now_ms: u64) {
        let vlans = Some(vlans);
        if self.observed.vlans != vlans {
            self.observed.vlans = vlans;
            self.after_event(now_ms);
        }
    }

    fn after_event(&mut self, now_ms: u64) {
        self.forget_unknown();
        if let Err(fault) = self.commit(Vec::new(), now_ms) {
            tracing::warn!("{fault}");
            self.trouble = Some(fault.to_string());
        }
    }

    /// Drops what was seen of backends that are no more.
    fn forget_unknown(&mut self) {
        let ids: std::collections::BTreeSet<u32> =
            self.state.backends().map(|(_, _, id, _)| id).collect();
        self.observed.health.retain(|id, _| ids.contains(id));
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
                service
                    .live_backends()
                    .map(move |(_, backend)| ProbeTarget {
                        service: name.clone(),
                        backend: backend.name.clone(),
                        address: backend.spec.address,
                        health: service.spec.health.clone(),
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
    /// How it is checked.
    pub health: crate::model::spec::HealthSpec,
}

fn failed(what: &str, fault: &Fault) -> Refused {
    let hint = match fault {
        Fault::Journal(_) => "nothing has changed; make room on the disk of the state directory",
        Fault::Maps(_) => "it is written down and tried again until it succeeds; see `ebb status`",
    };
    Refused::new(RefusedKind::Failed, format!("{what}: {fault}")).hint(hint)
}

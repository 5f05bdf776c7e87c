//! What a node must remember: services, backends with their ids, drains, compositions. Everything in here outlasts a
//! restart; it changes only through [`Op`]s, which the journal writes down before they take effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    drain::{Admin, By, Change, Cutting, Drained, Draining, Ended, Progress},
    former,
    spec::{BackendSpec, ServiceSpec},
};

/// Receipts kept.
pub const RECEIPTS_MAX: usize = 1000;

/// How long a receipt is kept at least until another drain ends, milliseconds: 30 days.
pub const RECEIPT_AGE_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

/// Changes at a time that leave a map in need of [`pack`].
pub const MANY: usize = 64;

/// Has a map take no more room than its entries need. Where they came one after the other in the order of their keys,
/// nearly half of it is empty.
pub fn pack<K: Ord, T>(map: &mut BTreeMap<K, T>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// A whole node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Services by name. A copy of the state shares those that it does not change.
    pub services: BTreeMap<String, Arc<Service>>,
    /// Ids of removed services that the maps may still name.
    pub retired: BTreeSet<u32>,
    /// Number of the last drain.
    pub last_drain: u64,
    /// Drains that are over, the oldest first; at most [`RECEIPTS_MAX`], none older than [`RECEIPT_AGE_MAX_MS`] when
    /// the last one ended. Shared, because a state is copied for every change.
    #[serde(with = "shared")]
    pub ended: Vec<Arc<Ended>>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its id in the maps.
    pub id: u32,
    /// Slots of its table. Never changes: a flow's slot depends on it.
    pub slots: u32,
    /// As configured. Its pools are those of the configuration; who is in them now is in `backends`.
    pub spec: ServiceSpec,
    /// The pool that was switched to by hand, where that is not the configured one.
    pub hand_pool: Option<String>,
    /// Names of configured backends that were removed by hand.
    pub removed_by_hand: BTreeSet<String>,
    /// Backends by id, removed ones until their id is free again.
    pub backends: BTreeMap<u32, Backend>,
    /// Who takes new flows.
    pub current: Composition,
    /// Who took them before the last unfinished change.
    pub base: Composition,
    /// Who took them in between, while changes overlapped: the last one first, none twice, at most
    /// [`former::PASSED_MAX`].
    #[serde(default)]
    pub passed: Vec<Composition>,
    /// When `current` changed last, Unix milliseconds.
    pub last_change_ms: u64,
    /// When the service was made, Unix milliseconds.
    pub created_ms: u64,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Name, unique among the service's backends that are not removed.
    pub name: String,
    /// Pool.
    pub pool: String,
    /// Address and weight.
    pub spec: BackendSpec,
    /// The weight that was set by hand, in place of the one above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_weight: Option<u32>,
    /// Where it came from.
    pub origin: Origin,
    /// What the operator wants of it.
    pub admin: Admin,
    /// It is to be removed once its drain has ended.
    pub leaving: bool,
    /// Number of its last drain.
    pub last_drain: Option<u64>,
    /// Flows that count as open although they ended unseen.
    pub forgiven: Forgiven,
    /// It asked for a drain and an operator took that back: what it asks for is not done until it has asked for nothing.
    #[serde(default)]
    pub overruled: bool,
}

/// Flows counted as opened that ended without being seen to: known once a drain has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Forgiven {
    /// How many.
    pub flows: u64,
    /// What the `opened` counter was then. A smaller one means that the counters began anew.
    pub opened: u64,
}

/// Where a backend came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration.
    Config,
    /// A command.
    Hand,
}

/// Who shares a table, in the order of their ids.
pub type Composition = Vec<Share>;

/// One backend's part in a composition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Share {
    /// Backend id.
    pub backend: u32,
    /// Its weight.
    pub weight: u32,
}

/// A change of the [`State`]. `service` and `backend` name things that exist; where one does not, nothing happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are those of the types above")]
pub enum Op {
    /// A new service.
    ServiceAdded {
        id: u32,
        slots: u32,
        spec: Box<ServiceSpec>,
        at_ms: u64,
    },
    /// Other settings of a service.
    ServiceChanged { spec: Box<ServiceSpec> },
    /// A service is gone; its id is held back.
    ServiceRemoved { service: String },
    /// The maps do not name the id any more.
    ServiceForgotten { id: u32 },
    /// A new backend.
    BackendAdded {
        service: String,
        id: u32,
        name: String,
        pool: String,
        spec: BackendSpec,
        origin: Origin,
    },
    /// Another weight or origin of a backend.
    BackendChanged {
        service: String,
        backend: u32,
        spec: BackendSpec,
        origin: Origin,
    },
    /// A weight is set by hand; `None`: the one that it came with holds again.
    Weighted {
        service: String,
        backend: u32,
        weight: Option<u32>,
    },
    /// Whether a backend is to be removed once drained.
    Leaving {
        service: String,
        backend: u32,
        leaving: bool,
    },
    /// A drain begins, or its terms change.
    Drain {
        service: String,
        backend: u32,
        drain: Draining,
    },
    /// A drain's flows were counted.
    DrainCounted {
        service: String,
        backend: u32,
        flows: u64,
    },
    /// A drain's progress.
    DrainProgress {
        service: String,
        backend: u32,
        progress: Progress,
    },
    /// A drain's deadline has passed.
    DrainCut {
        service: String,
        backend: u32,
        cutting: Cutting,
    },
    /// A drain is over.
    DrainEnded {
        service: String,
        backend: u32,
        drained: Drained,
        ended: Box<Ended>,
        forgiven: Forgiven,
    },
    /// A backend is active again; with the end of the drain that it was in.
    Activated {
        service: String,
        backend: u32,
        ended: Option<Box<Ended>>,
    },
    /// A backend is put aside; with the end of the drain that it was in.
    Maintained {
        service: String,
        backend: u32,
        ended: Option<Box<Ended>>,
    },
    /// A drain, under way or ended, is somebody else's from now on.
    DrainAdopted {
        service: String,
        backend: u32,
        by: By,
    },
    /// Whether what the backend asks for is not done.
    Overruled {
        service: String,
        backend: u32,
        overruled: bool,
    },
    /// A backend is gone; its id is held back.
    BackendRemoved {
        service: String,
        backend: u32,
        by_hand: bool,
    },
    /// The maps do not name the id any more.
    BackendForgotten { service: String, backend: u32 },
    /// New flows go to another pool; `None`: the configured one.
    Switched {
        service: String,
        pool: Option<String>,
    },
    /// Who takes new flows.
    Composed {
        service: String,
        current: Composition,
        at_ms: u64,
    },
    /// The change is over: `base` becomes `current`.
    Settled { service: String },
}

impl State {
    /// This state with `ops` carried out.
    #[must_use]
    pub fn with(&self, ops: &[Op]) -> Self {
        let mut next = self.clone();
        ops.iter().for_each(|op| next.apply(op));
        if ops.len() >= MANY {
            next.services.values_mut().for_each(|service| {
                pack(&mut Arc::make_mut(service).backends);
            });
        }
        next
    }

    /// Carries out `op`.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::ServiceAdded {
                id,
                slots,
                spec,
                at_ms,
            } => {
                let service = Service::new(*id, *slots, (**spec).clone(), *at_ms);
                self.services.insert(spec.name.clone(), Arc::new(service));
            }
            Op::ServiceRemoved { service } => {
                if let Some(service) = self.services.remove(service) {
                    self.retired.insert(service.id);
                }
            }
            Op::ServiceForgotten { id } => {
                self.retired.remove(id);
            }
            Op::ServiceChanged { spec } => {
                if let Some(service) = self.services.get_mut(&spec.name) {
                    Arc::make_mut(service).spec = (**spec).clone();
                }
            }
            Op::Drain { drain, .. } => {
                self.last_drain = self.last_drain.max(drain.id);
                self.apply_inside(op);
            }
            Op::DrainEnded { ended, .. } => {
                self.keep(ended);
                self.apply_inside(op);
            }
            Op::Activated { ended, .. } | Op::Maintained { ended, .. } => {
                if let Some(ended) = ended {
                    self.keep(ended);
                }
                self.apply_inside(op);
            }
            Op::BackendAdded { .. }
            | Op::BackendChanged { .. }
            | Op::Weighted { .. }
            | Op::Leaving { .. }
            | Op::DrainCounted { .. }
            | Op::DrainProgress { .. }
            | Op::DrainCut { .. }
            | Op::DrainAdopted { .. }
            | Op::Overruled { .. }
            | Op::BackendRemoved { .. }
            | Op::BackendForgotten { .. }
            | Op::Switched { .. }
            | Op::Composed { .. }
            | Op::Settled { .. } => self.apply_inside(op),
        }
    }

    fn keep(&mut self, ended: &Ended) {
        let oldest_ms = ended.ended_ms.saturating_sub(RECEIPT_AGE_MAX_MS);
        self.ended.retain(|old| old.ended_ms >= oldest_ms);
        self.ended.push(Arc::new(ended.clone()));
        let surplus = self.ended.len().saturating_sub(RECEIPTS_MAX);
        self.ended.drain(..surplus);
    }

    fn apply_inside(&mut self, op: &Op) {
        let Some(service) = op.service().and_then(|name| self.services.get_mut(name)) else {
            return;
        };
        Arc::make_mut(service).apply(op);
    }

    /// The service with this id.
    pub fn service_by_id(&self, id: u32) -> Option<(&String, &Service)> {
        let services = self.services.iter();
        services
            .map(|(name, service)| (name, &**service))
            .find(|(_, service)| service.id == id)
    }

    /// Every backend of every service, removed ones too.
    pub fn backends(&self) -> impl Iterator<Item = (&String, &Service, u32, &Backend)> {
        self.services.iter().flat_map(|(name, service)| {
            let backends = service.backends.iter();
            backends.map(move |(id, backend)| (name, &**service, *id, backend))
        })
    }

    /// The lowest backend ids that are free, above 0.
    pub fn free_backend_ids(&self) -> impl Iterator<Item = u32> {
        let taken: BTreeSet<u32> = self.backends().map(|(_, _, id, _)| id).collect();
        (1..).filter(move |id| !taken.contains(id))
    }

    /// The lowest service ids that are free, above 0.
    pub fn free_service_ids(&self) -> impl Iterator<Item = u32> {
        let mut taken = self.retired.clone();
        taken.extend(self.services.values().map(|service| service.id));
        (1..).filter(move |id| !taken.contains(id))
    }
}

/// A list of shared things, written as the things themselves.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(
        list: &[Arc<T>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|one| &**one))
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Arc<T>>, D::Error> {
        let list = Vec::<T>::deserialize(deserializer)?;
        Ok(list.into_iter().map(Arc::new).collect())
    }
}

impl Op {
    /// Whether it may change which backends there are, where, or how they are checked.
    pub const fn concerns_members(&self) -> bool {
        matches!(
            self,
            Self::ServiceAdded { .. }
                | Self::ServiceChanged { .. }
                | Self::ServiceRemoved { .. }
                | Self::BackendAdded { .. }
                | Self::BackendChanged { .. }
                | Self::BackendRemoved { .. }
        )
    }

    fn service(&self) -> Option<&str> {
        match self {
            Self::ServiceAdded { .. }
            | Self::ServiceChanged { .. }
            | Self::ServiceForgotten { .. } => None,
            Self::ServiceRemoved { service }
            | Self::BackendAdded { service, .. }
            | Self::BackendChanged { service, .. }
            | Self::Weighted { service, .. }
            | Self::Leaving { service, .. }
            | Self::Drain { service, .. }
            | Self::DrainCounted { service, .. }
            | Self::DrainProgress { service, .. }
            | Self::DrainCut { service, .. }
            | Self::DrainEnded { service, .. }
            | Self::DrainAdopted { service, .. }
            | Self::Overruled { service, .. }
            | Self::Activated { service, .. }
            | Self::Maintained { service, .. }
            | Self::BackendRemoved { service, .. }
            | Self::BackendForgotten { service, .. }
            | Self::Switched { service, .. }
            | Self::Composed { service, .. }
            | Self::Settled { service } => Some(service),
        }
    }
}

impl Service {
    fn new(id: u32, slots: u32, spec: ServiceSpec, created_ms: u64) -> Self {
        Self {
            id,
            slots,
            spec,
            hand_pool: None,
            removed_by_hand: BTreeSet::new(),
            backends: BTreeMap::new(),
            current: Composition::new(),
            base: Composition::new(),
            passed: Vec::new(),
            last_change_ms: created_ms,
            created_ms,
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::BackendAdded {
                id,
                name,
                pool,
                spec,
                origin,
                ..
            } => {
                self.removed_by_hand.remove(name);
                self.backends
                    .insert(*id, Backend::new(name, pool, *spec, *origin));
            }
            Op::BackendChanged {
                backend,
                spec,
                origin,
                ..
            } => self.edit(*backend, |b| {
                b.spec = *spec;
                b.origin = *origin;
            }),
            Op::Weighted {
                backend, weight, ..
            } => self.edit(*backend, |b| b.hand_weight = *weight),
            Op::Leaving {
                backend, leaving, ..
            } => self.edit(*backend, |b| b.leaving = *leaving),
            Op::Drain { backend, drain, .. } => self.edit(*backend, |b| {
                b.change(Change::Drain(drain.clone()));
                b.last_drain = b.admin.draining().map(|drain| drain.id);
            }),
            Op::DrainCounted { backend, flows, .. } => {
                self.edit(*backend, |b| b.change(Change::Counted(*flows)))
            }
            Op::DrainProgress {
                backend, progress, ..
            } => {
                self.edit(*backend, |b| b.change(Change::Progress(progress.clone())));
            }
            Op::DrainCut {
                backend, cutting, ..
            } => self.edit(*backend, |b| b.change(Change::Cut(*cutting))),
            Op::DrainEnded {
                backend,
                drained,
                forgiven,
                ..
            } => self.edit(*backend, |b| {
                b.change(Change::End(drained.clone()));
                b.forgiven = *forgiven;
            }),
            Op::DrainAdopted { backend, by, .. } => {
                self.edit(*backend, |b| b.change(Change::Adopt(*by)));
            }
            Op::Overruled {
                backend, overruled, ..
            } => self.edit(*backend, |b| b.overruled = *overruled),
            Op::Activated { backend, .. } => self.edit(*backend, |b| {
                b.change(Change::Activate);
                b.leaving = false;
            }),
            Op::Maintained { backend, .. } => self.edit(*backend, |b| {
                b.change(Change::Maintain);
                b.leaving = false;
            }),
            Op::BackendRemoved {
                backend, by_hand, ..
            } => {
                let configured = self
                    .backends
                    .get(backend)
                    .filter(|b| *by_hand && b.origin == Origin::Config);
                if let Some(backend) = configured {
                    self.removed_by_hand.insert(backend.name.clone());
                }
                self.edit(*backend, |b| b.change(Change::Remove));
            }
            Op::BackendForgotten { backend, .. } => {
                self.backends.remove(backend);
            }
            Op::Switched { pool, .. } => self.hand_pool.clone_from(pool),
            Op::Composed { current, at_ms, .. } => {
                if self.base.is_empty() {
                    // Nobody can have flows yet.
                    self.base.clone_from(current);
                }
                former::note(&mut self.passed, &self.current, current, &self.base);
                self.current.clone_from(current);
                self.last_change_ms = *at_ms;
            }
            Op::Settled { .. } => {
                self.base.clone_from(&self.current);
                self.passed.clear();
            }
            Op::ServiceAdded { .. }
            | Op::ServiceChanged { .. }
            | Op::ServiceRemoved { .. }
            | Op::ServiceForgotten { .. } => {}
        }
    }

    fn edit(&mut self, backend: u32, edit: impl FnOnce(&mut Backend)) {
        if let Some(backend) = self.backends.get_mut(&backend) {
            edit(backend);
        }
    }

    /// The pool whose backends take new flows.
    pub fn active_pool(&self) -> &str {
        self.hand_pool.as_deref().unwrap_or(&self.spec.active_pool)
    }

    /// The backend with this name that is not removed.
    pub fn backend(&self, name: &str) -> Option<(u32, &Backend)> {
        self.live_backends()
            .find(|(_, backend)| backend.name == name)
    }

    /// Backends that are not removed.
    pub fn live_backends(&self) -> impl Iterator<Item = (u32, &Backend)> {
        let backends = self.backends.iter().map(|(id, backend)| (*id, backend));
        backends.filter(|(_, backend)| backend.admin != Admin::Removed)
    }

    /// Whether a change has not settled yet, be it that it was taken back.
    pub fn is_changing(&self) -> bool {
        self.current != self.base || !self.passed.is_empty()
    }

    /// Whether a drain is under way.
    pub fn is_draining(&self) -> bool {
        self.backends
            .values()
            .any(|backend| backend.admin.draining().is_some())
    }
}

impl Backend {
    fn new(name: &str, pool: &str, spec: BackendSpec, origin: Origin) -> Self {
        Self {
            name: name.to_owned(),
            pool: pool.to_owned(),
            spec,
            hand_weight: None,
            origin,
            admin: Admin::Active,
            leaving: false,
            last_drain: None,
            forgiven: Forgiven::default(),
            overruled: false,
        }
    }

    /// Its share relative to the others of its pool; with 0 it takes no new flows, as outside of the table.
    pub fn weight(&self) -> u32 {
        self.hand_weight.unwrap_or(self.spec.weight)
    }

    /// Whether new flows are meant for it, as far as the operator has a say.
    pub fn is_wanted(&self) -> bool {
        self.admin == Admin::Active && self.weight() > 0
    }

    fn change(&mut self, change: Change) {
        let admin = std::mem::take(&mut self.admin);
        self.admin = admin.transition(change);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        ages::Ages,
        drain::{End, Reason},
        spec::OnDeadline,
    };

    fn ended(id: u64, ended_ms: u64) -> Op {
        let drain = Draining {
            id,
            by: By::Operator,
            since_ms: 0,
            deadline_ms: 0,
            on_deadline: OnDeadline::Reset,
            spread: Duration::ZERO,
            at_start: None,
            progress: Progress::default(),
            cutting: None,
            maintained: false,
        };
        let receipt = drain.receipt(
            "web/b1".to_owned(),
            End::of(Reason::Undrained),
            &Ages::default(),
            ended_ms,
        );
        Op::Activated {
            service: "web".to_owned(),
            backend: 1,
            ended: Some(Box::new(Ended {
                drain,
                reason: Reason::Undrained,
                ended_ms,
                receipt,
            })),
        }
    }

    #[test]
    fn receipts_are_kept_in_number_and_age() {
        let mut state = State::default();
        let many = RECEIPTS_MAX as u64 + 7;
        (1..=many).for_each(|id| state.apply(&ended(id, 1000)));
        assert_eq!(state.ended.len(), RECEIPTS_MAX);
        assert_eq!(state.ended[0].drain.id, 8);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        state.apply(&ended(many + 1, 1000 + RECEIPT_AGE_MAX_MS));
        assert_eq!(state.ended.len(), RECEIPTS_MAX);
        state.apply(&ended(many + 2, 1001 + RECEIPT_AGE_MAX_MS));
        assert_eq!(state.ended.len(), 2, "what is older than 30 days goes");
    }
}

//! From a new configuration to operations on the state: all of it or none.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    command::{Result, Target, Terms, back, begin, check_address, free_backend_ids, taken_back},
    drain::{Admin, By},
    refused::Refused,
    spec::{BackendSpec, Capacity, OutOfOrder, ServiceSpec, Spec},
    state::{Op, Origin, Service, State},
    table,
};

/// What a reload does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// The operations.
    pub ops: Vec<Op>,
    /// The same for people.
    pub words: Vec<String>,
}

impl Changes {
    fn push(&mut self, op: Op, words: String) {
        self.ops.push(op);
        self.words.push(words);
    }
}

/// Works out what leads from `state` to `spec`.
///
/// # Errors
/// A change that would break flows, or for which the maps have no room.
pub fn reload(state: &State, spec: &Spec, now_ms: u64) -> Result<Changes> {
    check_slots(state, spec)?;
    let mut ids = Ids::new(state, &spec.node.capacity, spec)?;
    let mut changes = Changes::default();
    for (name, service) in &spec.services {
        match state.services.get(name) {
            None => add_service(service, &mut ids, now_ms, &mut changes),
            Some(old) => change_service(state, name, old, service, &mut ids, now_ms, &mut changes)?,
        }
    }
    for name in state
        .services
        .keys()
        .filter(|name| !spec.services.contains_key(*name))
    {
        changes.push(
            Op::ServiceRemoved {
                service: name.clone(),
            },
            format!("remove service {name}"),
        );
    }
    number_drains(state, &mut changes.ops);
    Ok(changes)
}

/// What a reload does to the settings that belong to no service and can change while ebb runs.
pub fn node_words(old: &Spec, new: &Spec) -> Vec<String> {
    let mut words = Vec::new();
    if old.clients != new.clients {
        let (before, after) = (old.clients.0.len(), new.clients.0.len());
        words.push(format!("replace {before} prefixes of clients by {after}"));
    }
    if old.new_flows_per_core != new.new_flows_per_core {
        words.push(match new.new_flows_per_core {
            0 => "lift the node's limit of new flows".to_owned(),
            limit => format!("limit new flows to {limit} a second and core"),
        });
    }
    if old.fragments_out_of_order != new.fragments_out_of_order {
        words.push(match new.fragments_out_of_order {
            OutOfOrder::Pass => "pass fragments that are out of order".to_owned(),
            OutOfOrder::Drop => "drop fragments that are out of order".to_owned(),
        });
    }
    words
}

/// Free ids, enough for the whole reload.
struct Ids {
    backends: std::vec::IntoIter<u32>,
    services: std::vec::IntoIter<u32>,
}

impl Ids {
    fn new(state: &State, capacity: &Capacity, spec: &Spec) -> Result<Self> {
        let new_services: Vec<_> = spec
            .services
            .keys()
            .filter(|name| !state.services.contains_key(*name))
            .collect();
        let is_new = |service: &str, backend: &str| {
            state.services.get(service).is_none_or(|service| {
                service.backend(backend).is_none() && !service.removed_by_hand.contains(backend)
            })
        };
        let new_backends = spec
            .services
            .iter()
            .flat_map(|(name, service)| {
                named(service)
                    .into_keys()
                    .filter(move |backend| is_new(name, backend))
            })
            .count();
        let services: Vec<u32> = state
            .free_service_ids()
            .take_while(|id| *id <= capacity.services)
            .take(new_services.len())
            .collect();
        if services.len() < new_services.len() {
            let error = format!(
                "no room for {} more services: capacity.services is {}",
                new_services.len(),
                capacity.services
            );
            return Err(Refused::conflict(error).hint("raise capacity.services and restart"));
        }
        Ok(Self {
            backends: free_backend_ids(state, capacity, new_backends)?.into_iter(),
            services: services.into_iter(),
        })
    }
}

/// Backends of a configured service by name, with their pools.
fn named(spec: &ServiceSpec) -> BTreeMap<&str, (&str, BackendSpec)> {
    let mut all = BTreeMap::new();
    for (pool, contents) in &spec.pools {
        for (name, backend) in &contents.backends {
            all.insert(name.as_str(), (pool.as_str(), *backend));
        }
    }
    all
}

/// Slots of a new service.
fn slots_of(spec: &ServiceSpec) -> u32 {
    spec.slots
        .unwrap_or_else(|| table::choose_slots(named(spec).len()))
}

/// The slot map must hold every table, and the largest twice while it is replaced.
fn check_slots(state: &State, spec: &Spec) -> Result<()> {
    let slots = |(name, new): (&String, &ServiceSpec)| {
        let kept = state.services.get(name).map(|old| old.slots);
        u64::from(kept.unwrap_or_else(|| slots_of(new)))
    };
    let all: u64 = spec.services.iter().map(slots).sum();
    let most = spec.services.iter().map(slots).max().unwrap_or(0);
    let room = u64::from(spec.node.capacity.slots);
    if all + most <= room {
        return Ok(());
    }
    let error = format!(
        "the tables need {} slots (the largest counted twice), capacity.slots is {room}",
        all + most
    );
    Err(Refused::conflict(error)
        .hint("raise capacity.slots and restart, or set fewer slots for the services"))
}

fn add_service(spec: &ServiceSpec, ids: &mut Ids, now_ms: u64, changes: &mut Changes) {
    let Some(id) = ids.services.next() else {
        return;
    };
    let op = Op::ServiceAdded {
        id,
        slots: slots_of(spec),
        spec: Box::new(spec.clone()),
        at_ms: now_ms,
    };
    changes.push(op, format!("add service {} on {}", spec.name, listen(spec)));
    for (name, (pool, backend)) in named(spec) {
        add_backend(&spec.name, pool, name, backend, ids, changes);
    }
}

/// `ADDRESS:PORTS/PROTOCOL`.
pub fn listen(spec: &ServiceSpec) -> String {
    spec.listen.to_string()
}

fn add_backend(
    service: &str,
    pool: &str,
    name: &str,
    spec: BackendSpec,
    ids: &mut Ids,
    changes: &mut Changes,
) {
    let Some(id) = ids.backends.next() else {
        return;
    };
    let op = Op::BackendAdded {
        service: service.to_owned(),
        id,
        name: name.to_owned(),
        pool: pool.to_owned(),
        spec,
        origin: Origin::Config,
    };
    changes.push(
        op,
        format!("add backend {service}/{pool}/{name} at {}", spec.address),
    );
}

fn change_service(
    state: &State,
    name: &str,
    old: &Service,
    new: &ServiceSpec,
    ids: &mut Ids,
    now_ms: u64,
    changes: &mut Changes,
) -> Result<()> {
    check_same(name, old, new)?;
    let wanted = named(new);
    if settings(&old.spec) != settings(new) || pools(&old.spec) != pools(new) {
        let words = format!("change settings of service {name}");
        changes.push(
            Op::ServiceChanged {
                spec: Box::new(new.clone()),
            },
            words,
        );
    } else if old.spec != *new {
        // Its backends changed alone; they are told one by one below.
        changes.ops.push(Op::ServiceChanged {
            spec: Box::new(new.clone()),
        });
    }
    for (&backend, &(pool, spec)) in &wanted {
        keep_backend(name, old, pool, backend, spec, ids, now_ms, changes)?;
    }
    for (id, backend) in old.live_backends() {
        let left = backend.origin == Origin::Config && !wanted.contains_key(backend.name.as_str());
        if left && !backend.leaving {
            let target = Target {
                name,
                service: old,
                id,
                backend,
            };
            leave(state, &target, now_ms, changes);
        }
    }
    Ok(())
}

/// A backend that left the configuration is drained, not dropped.
fn leave(state: &State, target: &Target, now_ms: u64, changes: &mut Changes) {
    let words = format!("drain and remove backend {}", target.path());
    let leaving = Op::Leaving {
        service: target.name.to_owned(),
        backend: target.id,
        leaving: true,
    };
    changes.push(leaving, words);
    if matches!(target.backend.admin, Admin::Active | Admin::Maintenance) {
        let terms = Terms {
            by: By::Configuration,
            ..Terms::default()
        };
        changes.ops.push(begin(state, target, terms, now_ms));
    }
}

/// Every drain of one reload gets a number of its own.
fn number_drains(state: &State, ops: &mut [Op]) {
    let mut last = state.last_drain;
    for op in ops {
        if let Op::Drain { drain, .. } = op {
            last += 1;
            drain.id = last;
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one place, one backend: its old self, its new self, and where the changes go"
)]
fn keep_backend(
    service: &str,
    old: &Service,
    pool: &str,
    name: &str,
    spec: BackendSpec,
    ids: &mut Ids,
    now_ms: u64,
    changes: &mut Changes,
) -> Result<()> {
    let Some((id, backend)) = old.backend(name) else {
        if !old.removed_by_hand.contains(name) {
            check_address(old, name, spec.address)?;
            add_backend(service, pool, name, spec, ids, changes);
        }
        return Ok(());
    };
    if backend.pool != pool || backend.spec.address != spec.address {
        let error = format!(
            "backend {service}/{name} would move from {} in pool {} to {} in pool {pool}",
            backend.spec.address, backend.pool, spec.address
        );
        return Err(Refused::conflict(error).hint(
            "its flows would break: give the new one another name, and the old one is drained",
        ));
    }
    if backend.spec.weight != spec.weight || backend.origin != Origin::Config {
        let op = Op::BackendChanged {
            service: service.to_owned(),
            backend: id,
            spec,
            origin: Origin::Config,
        };
        let by_hand = match backend.hand_weight {
            Some(weight) => format!(" ({weight}, set by hand, stays)"),
            None => String::new(),
        };
        changes.push(
            op,
            format!(
                "change backend {service}/{name}: weight {} to {}{by_hand}",
                backend.spec.weight, spec.weight
            ),
        );
    }
    if backend.leaving {
        let target = Target {
            name: service,
            service: old,
            id,
            backend,
        };
        return_to(&target, now_ms, changes);
    }
    Ok(())
}

/// It has come back. Where the drain was the configuration's, it is taken back with it; whoever else asked for one has not
/// changed his mind.
fn return_to(target: &Target, now_ms: u64, changes: &mut Changes) {
    if target.backend.admin.drained_by() == Some(By::Configuration) {
        let op = back(target, taken_back(target, now_ms));
        changes.push(op, format!("undrain backend {}", target.path()));
    } else {
        let op = Op::Leaving {
            service: target.name.to_owned(),
            backend: target.id,
            leaving: false,
        };
        changes.push(op, format!("keep backend {}", target.path()));
    }
}

fn check_same(name: &str, old: &Service, new: &ServiceSpec) -> Result<()> {
    let hint = format!(
        "give the new service another name, or remove service {name}, reload, and add it again"
    );
    let refuse = |what: &str| {
        Err(Refused::conflict(format!(
            "service {name}: {what} can not change while it lives"
        ))
        .hint(&hint))
    };
    if old.spec.listen != new.listen {
        return refuse("listen");
    }
    if old.spec.quic != new.quic {
        return refuse("quic");
    }
    if old.spec.forward != new.forward {
        return refuse("forward");
    }
    if old.spec.affinity != new.affinity {
        return refuse("affinity");
    }
    if new.slots.is_some_and(|slots| slots != old.slots) {
        return refuse(&format!("its number of slots ({})", old.slots));
    }
    let pools: BTreeSet<&String> = new.pools.keys().collect();
    match &old.hand_pool {
        Some(pool) if !pools.contains(pool) => Err(Refused::conflict(format!(
            "service {name}: pool {pool} takes the new flows and is missing in the configuration"
        ))
        .hint(format!(
            "switch it to another pool first: `ebb deploy {name} --to POOL`"
        ))),
        _ => Ok(()),
    }
}

/// A service's settings without its backends.
fn settings(spec: &ServiceSpec) -> ServiceSpec {
    ServiceSpec {
        pools: BTreeMap::new(),
        ..spec.clone()
    }
}

/// A service's pools without their backends.
fn pools(spec: &ServiceSpec) -> Vec<(&String, &Option<String>)> {
    spec.pools
        .iter()
        .map(|(name, pool)| (name, &pool.version))
        .collect()
}

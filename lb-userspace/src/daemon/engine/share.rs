//! Which flows other nodes are told of, and what is done with those that they tell of.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lb_common::{
    Addr,
    entry::{FlowKey, FlowPolicy, Meta, NewEntry, state},
    steer::{flow_hash, slot_index, unlisted_owner},
};
use tokio::sync::mpsc;

use super::Engine;
use crate::{
    api::ShareStatus,
    daemon::share::Counts,
    datapath,
    model::{
        census::Exception,
        share::{SharedFlow, backend_digest, service_digest},
        spec::Forward,
    },
};

/// How often a flow is told of again while it lives, milliseconds.
const AGAIN_MS: u64 = 5_000;

/// Flows that are told of after one look; the rest comes after the next.
const AT_ONCE: usize = 4_096;

/// Flows of which is remembered when they were told. More exceptional ones are told at each look, as far as there is room.
const REMEMBERED: usize = 1 << 18;

/// What the engine needs for it.
pub(super) struct Sharing {
    outbox: mpsc::Sender<Vec<SharedFlow>>,
    counts: Arc<Counts>,
    /// When each flow was told of, Unix milliseconds.
    told: HashMap<(Addr, u64), u64>,
    names: Names,
}

/// Ids by what messages call services and backends.
#[derive(Default)]
struct Names {
    /// The engine's count of changes that this is of.
    of: Option<u64>,
    services: BTreeMap<u64, u32>,
    backends: BTreeMap<u64, u32>,
    /// The other way round, by backend id.
    called: BTreeMap<u32, (u64, u64)>,
}

impl Engine {
    /// From now on other nodes are told of exceptional flows, by `outbox`.
    pub fn share(&mut self, outbox: mpsc::Sender<Vec<SharedFlow>>, counts: Arc<Counts>) {
        self.sharing = Some(Sharing {
            outbox,
            counts,
            told: HashMap::new(),
            names: Names::default(),
        });
    }

    /// What is told and heard; `None` where nothing is shared.
    pub(super) fn share_status(&self) -> Option<ShareStatus> {
        let sharing = self.sharing.as_ref()?;
        let settings = self.spec.node.share.as_ref()?;
        Some(sharing.counts.status(settings))
    }

    /// Tells other nodes of what a look has found.
    pub(super) fn tell(&mut self, exceptions: &[Exception], now_ms: u64) {
        self.renew_names();
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let due = |told: Option<&u64>| told.is_none_or(|at| now_ms.saturating_sub(*at) >= AGAIN_MS);
        let mut told = HashMap::with_capacity(exceptions.len().min(REMEMBERED));
        let mut flows = Vec::new();
        for (client, ports, backend) in exceptions {
            let key = (*client, *ports);
            let before = sharing.told.get(&key);
            let mut at = before.copied();
            if flows.len() < AT_ONCE
                && due(before)
                && let Some(flow) = sharing.names.flow(*client, *ports, *backend)
            {
                flows.push(flow);
                at = Some(now_ms);
            }
            if let Some(at) = at
                && told.len() < REMEMBERED
            {
                told.insert(key, at);
            }
        }
        if flows.is_empty() || sharing.outbox.try_send(flows).is_ok() {
            sharing.told = told;
        }
    }

    /// Enters the flows that another node tells of, where this one's tables would take them elsewhere.
    pub fn hear(&mut self, flows: &[SharedFlow]) {
        self.renew_names();
        for flow in flows {
            if let Err(error) = self.hear_one(flow) {
                tracing::warn!("share: {error}");
                self.trouble = Some(error.to_string());
                return;
            }
        }
    }

    fn hear_one(&mut self, flow: &SharedFlow) -> Result<(), datapath::Error> {
        let Some((service, backend)) = self.sharing.as_ref().and_then(|it| it.names.ids(flow))
        else {
            return Ok(());
        };
        let Some(record) = self.installed.services.get(&service) else {
            return Ok(());
        };
        let key = FlowKey {
            client: flow.client,
            ports: FlowKey::pack(flow.client_port, flow.service_port, service),
        };
        let hash = flow_hash(record, &key);
        let index = slot_index(record, &key, hash);
        let table = self.installed.tables.get(&service);
        let Some(slot) = table.and_then(|table| table.get(index as usize)) else {
            return Ok(());
        };
        // Nobody would ask for an entry in a slot that is not tracked; if a change is on its way here, it is told again.
        if !slot.is_tracked() || unlisted_owner(record, slot) == backend {
            return Ok(());
        }
        let now = self.datapath.now_ticks();
        let new = NewEntry {
            meta: Meta::new(0, backend, state::EXCEPTIONAL),
            opened: now,
            seen: now,
        };
        let policy = FlowPolicy {
            idle_ticks: record.idle_ticks,
            linger_ticks: record.linger_ticks,
            is_urgent: true,
        };
        let entered = self.datapath.hear(hash, &key, &new, &policy)?;
        if entered && let Some(sharing) = &self.sharing {
            sharing.counts.entered();
        }
        Ok(())
    }

    fn renew_names(&mut self) {
        let changes = self.member_changes;
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        if sharing.names.of == Some(changes) {
            return;
        }
        let mut names = Names {
            of: Some(changes),
            ..Names::default()
        };
        for (name, service, id, backend) in self.state.backends() {
            // Ports of the node's own are part of such flows.
            if service.spec.forward == Forward::FullNat {
                continue;
            }
            let called = (
                service_digest(name),
                backend_digest(name, &backend.name, backend.spec.address),
            );
            names.services.insert(called.0, service.id);
            names.backends.insert(called.1, id);
            names.called.insert(id, called);
        }
        sharing.names = names;
    }
}

impl Names {
    fn flow(&self, client: Addr, ports: u64, backend: u32) -> Option<SharedFlow> {
        let (service, backend) = *self.called.get(&backend)?;
        Some(SharedFlow {
            client,
            client_port: FlowKey::client_port(ports),
            service_port: FlowKey::service_port(ports),
            service,
            backend,
        })
    }

    fn ids(&self, flow: &SharedFlow) -> Option<(u32, u32)> {
        Some((
            *self.services.get(&flow.service)?,
            *self.backends.get(&flow.backend)?,
        ))
    }
}

//! Makes the health checks and tells the changes of health they lead to.
//!
//! One task a target holds its [`HealthState`]; each of its checks has at most one probe under way. A probe goes to the
//! backend's own address, from this node's own address, also in `l2` mode: there the backend owns the VIP as well, but
//! a packet to the VIP could reach any backend, so what is asked is the backend. A service in `l2` mode therefore has to
//! listen on the backend's own address too (or on every address), or its checks have to name a port where something does.
//!
//! The first probe of a target starts at once; the later ones at a time within the period that depends on the
//! target's name alone, so that the probes of many backends spread over it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::sleep_until,
};

use crate::model::{
    health::{Check, HealthChange, HealthState, Observation},
    spec::{HealthSpec, ProbeSpec},
};

mod probe;
mod schedule;
#[cfg(test)]
mod tests;

/// Probes under way at once, over all targets; each holds a socket. Further ones wait their turn, in order, and their
/// timeout starts when it comes.
pub const PROBES_AT_ONCE: usize = 1024;

/// A target's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    /// Service.
    pub service: String,
    /// Backend, unique within the service.
    pub backend: String,
}

/// What is probed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The backend's own address and port.
    pub address: SocketAddr,
    /// Its checks; one that names a port is made there.
    pub health: HealthSpec,
}

/// A change of a target's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEvent {
    /// The target.
    pub key: TargetKey,
    /// Its address. An event of a target that was replaced meanwhile may still be on its way; this tells it apart.
    pub address: SocketAddr,
    /// The change. The first one of every target starts from `Starting`.
    pub change: HealthChange,
}

/// The prober. Dropping it ends all probes.
#[derive(Debug)]
pub struct Prober {
    runtime: Handle,
    events: mpsc::Sender<HealthEvent>,
    turns: Arc<Semaphore>,
    epoch: Instant,
    running: BTreeMap<TargetKey, Running>,
}

#[derive(Debug)]
struct Running {
    target: Target,
    task: AbortHandle,
}

impl Prober {
    /// A prober without targets. Its tasks run in the runtime this is called in and wait while `events` is full.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(events: mpsc::Sender<HealthEvent>) -> Self {
        Self {
            runtime: Handle::current(),
            events,
            turns: Arc::new(Semaphore::new(PROBES_AT_ONCE)),
            epoch: Instant::now(),
            running: BTreeMap::new(),
        }
    }

    /// Replaces the set of targets.
    ///
    /// An unchanged target keeps its state and its rhythm. One that is new, or has another address or other checks,
    /// starts anew; one that is gone is forgotten, its probe under way included.
    pub fn set_targets(&mut self, targets: BTreeMap<TargetKey, Target>) {
        self.running.retain(|key, running| {
            let unchanged = targets.get(key) == Some(&running.target);
            if !unchanged {
                running.task.abort();
            }
            unchanged
        });
        for (key, target) in targets {
            if !self.running.contains_key(&key) {
                let task = self.spawn(key.clone(), target.clone());
                self.running.insert(key, Running { target, task });
            }
        }
    }

    fn spawn(&self, key: TargetKey, target: Target) -> AbortHandle {
        let runner = Runner {
            phase: schedule::phase(&key.service, &key.backend),
            state: HealthState::new(target.health),
            key,
            address: target.address,
            turns: Arc::clone(&self.turns),
            events: self.events.clone(),
            epoch: self.epoch,
        };
        self.runtime.spawn(runner.run()).abort_handle()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

/// One target's task.
struct Runner {
    key: TargetKey,
    address: SocketAddr,
    state: HealthState,
    phase: u64,
    turns: Arc<Semaphore>,
    events: mpsc::Sender<HealthEvent>,
    epoch: Instant,
}

/// A probe that was due.
struct Made {
    check: Check,
    due: Instant,
    /// `None`: this node could not make it.
    observation: Option<Observation>,
}

impl Runner {
    /// Runs until it is aborted, nobody listens any more, or there is nothing left to check.
    async fn run(mut self) {
        if let Some(change) = self.state.unchecked() {
            let _ = self.tell(change).await;
            return;
        }
        let mut probes = FuturesUnordered::new();
        self.begin(&mut probes);
        while let Some(made) = probes.next().await {
            let before = self.state.checks();
            let observed = made
                .observation
                .and_then(|observation| self.state.observe(made.check, observation));
            if let Some(change) = observed
                && self.tell(change).await.is_err()
            {
                return;
            }
            if self.state.checks() != before {
                probes.clear();
                self.begin(&mut probes);
            } else if let Some(spec) = self.state.spec_of(made.check) {
                let next = schedule::next(
                    self.epoch,
                    self.phase,
                    spec.period,
                    made.due,
                    Instant::now(),
                );
                probes.push(self.probe(made.check, spec.clone(), next));
            }
        }
    }

    /// The first probe of every check to be made now, at once.
    fn begin(&self, probes: &mut FuturesUnordered<BoxFuture<'static, Made>>) {
        for check in self.state.checks() {
            if let Some(spec) = self.state.spec_of(check) {
                probes.push(self.probe(check, spec.clone(), Instant::now()));
            }
        }
    }

    fn probe(&self, check: Check, spec: ProbeSpec, due: Instant) -> BoxFuture<'static, Made> {
        let mut address = self.address;
        if let Some(port) = spec.port {
            address.set_port(port);
        }
        let turns = Arc::clone(&self.turns);
        Box::pin(async move {
            sleep_until(due.into()).await;
            // The semaphore is never closed; without a turn the probe would only be one too many.
            let _turn = turns.acquire().await;
            let timeout = spec.timeout.max(Duration::from_millis(1));
            let observation = probe::observe(&spec.kind, address, timeout).await;
            Made {
                check,
                due,
                observation,
            }
        })
    }

    async fn tell(&self, change: HealthChange) -> Result<(), mpsc::error::SendError<HealthEvent>> {
        let event = HealthEvent {
            key: self.key.clone(),
            address: self.address,
            change,
        };
        self.events.send(event).await
    }
}

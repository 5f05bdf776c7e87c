//! Makes the health checks and tells the changes of health they lead to.
//!
//! One task keeps the [`HealthState`](crate::model::health::HealthState) of every target and a queue of what is due;
//! each check has at most one probe under way, which is a task of its own only then. A probe goes to the
//! backend's own address, from this node's own address, also in `l2` mode: there the backend owns the VIP as well, but
//! a packet to the VIP could reach any backend, so what is asked is the backend. A service in `l2` mode therefore has to
//! listen on the backend's own address too (or on every address), or its checks have to name a port where something does.
//!
//! The first probe of a target starts at once; the later ones at a time within the period that depends on the
//! target's name alone, so that the probes of many backends spread over it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::AbortHandle};

use crate::model::{
    health::HealthChange,
    spec::HealthSpec,
    state::{MANY, pack},
};

mod driver;
mod probe;
mod schedule;
#[cfg(test)]
mod tests;
mod voice;

use driver::{Driver, Number, Order};
pub use voice::Said;

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
    pub health: Arc<HealthSpec>,
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
    /// Time since the start of the last probe that was answered, well or not; zero when none has been.
    pub unanswered: Duration,
}

/// Something that a target said for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechEvent {
    /// The target.
    pub key: TargetKey,
    /// What.
    pub said: Said,
}

/// The prober. Dropping it ends all probes.
#[derive(Debug)]
pub struct Prober {
    orders: mpsc::UnboundedSender<Order>,
    running: BTreeMap<Arc<TargetKey>, (Number, Target)>,
    next: Number,
    driver: AbortHandle,
}

impl Prober {
    /// A prober without targets. Its tasks run in the runtime this is called in and wait while `events` or `speech` is full.
    /// `answers` gets the names of targets that were asked out of turn, as they answer.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(
        events: mpsc::Sender<HealthEvent>,
        speech: mpsc::Sender<SpeechEvent>,
        answers: mpsc::UnboundedSender<TargetKey>,
    ) -> Self {
        Self::with_turns(events, speech, answers, PROBES_AT_ONCE)
    }

    fn with_turns(
        events: mpsc::Sender<HealthEvent>,
        speech: mpsc::Sender<SpeechEvent>,
        answers: mpsc::UnboundedSender<TargetKey>,
        at_once: usize,
    ) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let driver = Driver::new(received, events, speech, answers, at_once);
        Self {
            orders,
            running: BTreeMap::new(),
            next: 0,
            driver: tokio::spawn(driver.run()).abort_handle(),
        }
    }

    /// Replaces the set of targets.
    ///
    /// An unchanged target keeps its state and its rhythm. One that is new, or has another address or other checks,
    /// starts anew; one that is gone is forgotten, its probe under way included.
    pub fn set_targets(&mut self, targets: BTreeMap<TargetKey, Target>) {
        let orders = &self.orders;
        // The driver is gone only when nobody listens to it.
        let order = |order| drop(orders.send(order));
        self.running.retain(|key, (number, target)| {
            let unchanged = targets.get(&**key) == Some(target);
            if !unchanged {
                order(Order::Forget(*number));
            }
            unchanged
        });
        let many = targets.len() >= self.running.len() + MANY;
        for (key, target) in targets {
            if !self.running.contains_key(&key) {
                self.next += 1;
                let key = Arc::new(key);
                order(Order::Begin(self.next, Arc::clone(&key), target.clone()));
                self.running.insert(key, (self.next, target));
            }
        }
        if many {
            pack(&mut self.running);
        }
    }
}

impl Prober {
    /// Probes a target out of turn, and then in a quick rhythm for as long as it is silent and that has not brought it
    /// down. Its first answer of a probe that began after this is told, well or not.
    pub fn probe_now(&self, key: &TargetKey) {
        if let Some((number, _)) = self.running.get(key) {
            drop(self.orders.send(Order::Ask(*number)));
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

//! The loop that owns the engine: commands, events and time come in, one after the other.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    clock::Clock,
    engine::{Engine, Suspicion, commands::ProbeTarget, pressing::Pressing},
    heap::Heap,
};
use crate::datapath::segment::Segment;
use crate::model::{
    observed::{Health, Silence, Vlans, Way},
    refused::{Refused, RefusedKind},
    speech::Wish,
};

/// Commands that may wait.
const JOBS_MAX: usize = 64;

/// Events that are taken in together at most.
const EVENTS_AT_ONCE: usize = 1024;

/// Time between two ticks while something is under way.
const BUSY_TICK: Duration = Duration::from_millis(100);

/// Time between two ticks otherwise.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A health check came to a verdict.
    Health {
        /// Service.
        service: String,
        /// Backend.
        backend: String,
        /// The verdict.
        health: Health,
        /// What the probe said.
        reason: Option<String>,
        /// Set when nobody answers there.
        silence: Option<Silence>,
    },
    /// A probe that was asked for was answered.
    Answered {
        /// Service.
        service: String,
        /// Backend.
        backend: String,
    },
    /// A backend said something for itself.
    Said {
        /// Service.
        service: String,
        /// Backend.
        backend: String,
        /// What it asks for from now on, where that is new.
        wish: Option<Wish>,
        /// Words that were not understood.
        not_understood: String,
    },
    /// A client was reset at a deadline, and the backend is to be told.
    Cut {
        /// Service id.
        service: u32,
        /// The client.
        client: SocketAddr,
        /// The service's port.
        port: u16,
        /// The sequence number that the backend expects.
        sequence: u32,
    },
    /// A backend has refused an opening.
    Refused {
        /// Its id.
        backend: u32,
    },
    /// The way to an address has changed.
    NextHop {
        /// The address.
        address: IpAddr,
        /// The way.
        way: Way,
    },
    /// Interfaces have come, gone or changed.
    Links {
        /// Those of them that are VLAN devices.
        vlans: Vlans,
    },
}

/// The daemon's connections to whoever looks at the world for it.
pub struct Ports {
    /// What they see.
    pub events: mpsc::Receiver<Event>,
    /// Told whenever the set of addresses whose ways matter changes.
    pub watch_addresses: Box<dyn FnMut(BTreeSet<IpAddr>) + Send>,
    /// Told the backends to check, whenever they may have changed.
    pub set_targets: Box<dyn FnMut(Vec<ProbeTarget>) + Send>,
    /// Given segments to send.
    pub send: Box<dyn FnMut(Vec<Segment>) + Send>,
    /// Asked to probe a backend (service and name) now. It says [`Event::Answered`] once it is answered.
    pub probe_now: Box<dyn FnMut(String, String) + Send>,
}

type Job = Box<dyn FnOnce(&mut Engine, u64) + Send>;

/// Gives work to the core.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    pressing: Pressing,
    changes: watch::Receiver<u64>,
}

impl Handle {
    /// Lets the core do `work` and returns its result.
    pub async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine, u64) -> R + Send + 'static,
    ) -> Result<R, Refused> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |engine, now_ms| {
            // Whoever asked may have gone away; the work is done all the same.
            let _ = reply.send(work(engine, now_ms));
        });
        let stopping = || Refused::new(RefusedKind::Failed, "the daemon is stopping");
        self.jobs.send(job).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// The same for work that changes what packets meet: looks at the flow tables give way to it.
    pub async fn command<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine, u64) -> R + Send + 'static,
    ) -> Result<R, Refused> {
        let pressed = self.pressing.press();
        self.call(move |engine, now_ms| {
            // Its turn has come.
            drop(pressed);
            work(engine, now_ms)
        })
        .await
    }

    /// Told after every tick: drains end at one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// The loop's data.
pub struct Core {
    engine: Engine,
    clock: Arc<dyn Clock>,
    ports: Ports,
    jobs: mpsc::Receiver<Job>,
    changed: watch::Sender<u64>,
    addresses: BTreeSet<IpAddr>,
    /// The engine's count of changes of members when the ports were told.
    told: Option<u64>,
    watchdog: Option<Duration>,
    last_sign: Instant,
    heap: Heap,
}

impl Core {
    /// A core that has not begun yet.
    pub fn new(engine: Engine, clock: Arc<dyn Clock>, ports: Ports) -> (Self, Handle) {
        let (sender, jobs) = mpsc::channel(JOBS_MAX);
        let (changed, changes) = watch::channel(0);
        let pressing = engine.pressing();
        let core = Self {
            engine,
            clock,
            ports,
            jobs,
            changed,
            addresses: BTreeSet::new(),
            told: None,
            watchdog: sd_notify::watchdog_enabled(),
            last_sign: Instant::now(),
            heap: Heap::begin(),
        };
        let handle = Handle {
            jobs: sender,
            pressing,
            changes,
        };
        (core, handle)
    }

    /// Runs until `stopped` says so. Jobs that wait are done first.
    pub async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut events_end = false;
        let mut events = Vec::new();
        let mut next_tick = tokio::time::Instant::now();
        self.announce();
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => break,
                () = tokio::time::sleep_until(next_tick) => {
                    self.engine.tick(self.clock.now_ms());
                    self.sign_of_life();
                    self.heap.tidy();
                    // Not after jobs: those who wait ask again, and would wake each other for ever.
                    self.changed.send_modify(|count| *count = count.wrapping_add(1));
                    next_tick = tokio::time::Instant::now() + if self.engine.is_busy() { BUSY_TICK } else { IDLE_TICK };
                }
                Some(job) = self.jobs.recv() => {
                    job(&mut self.engine, self.clock.now_ms());
                    // What it began may want looking after sooner than the next idle tick.
                    next_tick = next_tick.min(tokio::time::Instant::now() + BUSY_TICK);
                }
                count = self.ports.events.recv_many(&mut events, EVENTS_AT_ONCE), if !events_end => {
                    events_end = count == 0;
                    self.take_in(events.drain(..));
                }
            }
            self.announce();
        }
        while let Ok(job) = self.jobs.try_recv() {
            job(&mut self.engine, self.clock.now_ms());
        }
        self.engine.end_any_trace();
    }

    /// A node with many backends sees many events at its start: what follows from them is worked out once for all
    /// that have come.
    fn take_in(&mut self, events: impl Iterator<Item = Event>) {
        // Not `any`: every one of them is to be noted.
        if events.fold(false, |any, event| self.note(event) | any) {
            self.engine.after_events(self.clock.now_ms());
        }
    }

    fn note(&mut self, event: Event) -> bool {
        match event {
            Event::Health {
                service,
                backend,
                health,
                reason,
                silence,
            } => {
                let silent = self.engine.note_silence(&service, &backend, silence);
                self.engine.note_health(&service, &backend, health, reason) | silent
            }
            Event::Said {
                service,
                backend,
                wish,
                not_understood,
            } => self
                .engine
                .note_said(&service, &backend, wish, &not_understood),
            Event::Answered { service, backend } => {
                let now_ms = self.clock.now_ms();
                self.engine.note_answer(&service, &backend, now_ms)
            }
            Event::Cut {
                service,
                client,
                port,
                sequence,
            } => {
                self.engine
                    .reset_backend_of(service, client, port, sequence);
                false
            }
            Event::Refused { backend } => {
                let now_ms = self.clock.now_ms();
                self.engine.suspect(backend, Suspicion::Refused, now_ms)
            }
            Event::NextHop { address, way } => self.engine.note_way(address, way),
            Event::Links { vlans } => {
                self.engine.follow_interfaces();
                self.engine.note_vlans(vlans)
            }
        }
    }

    /// Tells everybody what has changed.
    fn announce(&mut self) {
        let segments = self.engine.take_segments();
        if !segments.is_empty() {
            (self.ports.send)(segments);
        }
        for (service, backend) in self.engine.take_questions() {
            (self.ports.probe_now)(service, backend);
        }
        let changes = Some(self.engine.member_changes());
        if self.told == changes {
            return;
        }
        self.told = changes;
        let addresses = self.engine.addresses();
        if addresses != self.addresses {
            self.addresses.clone_from(&addresses);
            (self.ports.watch_addresses)(addresses);
        }
        (self.ports.set_targets)(self.engine.targets());
    }

    /// The watchdog hears from this loop alone: if it hangs, so does ebb.
    fn sign_of_life(&mut self) {
        let Some(period) = self.watchdog else { return };
        if self.last_sign.elapsed() >= period / 4 {
            self.last_sign = Instant::now();
            super::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

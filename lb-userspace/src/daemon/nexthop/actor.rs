//! The task that joins notifications, lookups and the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, sleep_until},
};

use super::{
    Links, Resolution,
    attempts::Attempts,
    kernel::{Kernel, KernelError},
    monitor::{Monitor, RECEIVE_BUFFER_BYTES},
    path_mtu::{Listener, Told},
    table::{Change, NeighbourKey, Table},
};

/// Shortest time between two rounds of lookups, so that a routing daemon at work costs little.
const LOOKUP_GAP: Duration = Duration::from_millis(20);
/// Lookups under way at once; their answers have to fit into the socket's default buffer.
const LOOKUPS_AT_ONCE: usize = 8;
/// Everything is read anew this often, for what the kernel does not announce (learned path MTUs).
const SWEEP: Duration = Duration::from_secs(30);
/// Wait before sockets that failed are opened anew.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// State of the task.
pub struct Actor {
    watched: BTreeSet<IpAddr>,
    watch: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    verify: mpsc::Receiver<IpAddr>,
    events: mpsc::Sender<(IpAddr, Resolution)>,
    links: watch::Sender<Links>,
    kernel: Kernel,
    monitor: Monitor,
    listener: Listener,
    table: Table,
    attempts: Attempts,
    /// What was told last, for every watched address that has been told of.
    told: BTreeMap<IpAddr, Resolution>,
    /// Watched addresses whose route is to be looked up.
    lookups: BTreeSet<IpAddr>,
    next_lookups: Instant,
    next_sweep: Instant,
    /// Links and neighbours are to be read anew.
    lost: bool,
}

/// Why a step could not be completed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("the receiver of the events is gone")]
    Unheard,
    #[error("{0}")]
    Kernel(#[from] KernelError),
}

impl Actor {
    /// Opens the sockets.
    pub fn open(
        watch: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
        verify: mpsc::Receiver<IpAddr>,
        events: mpsc::Sender<(IpAddr, Resolution)>,
        links: watch::Sender<Links>,
    ) -> io::Result<Self> {
        let (monitor, kernel) = open_sockets()?;
        let now = Instant::now();
        Ok(Self {
            watched: BTreeSet::new(),
            watch,
            verify,
            events,
            links,
            kernel,
            monitor,
            listener: Listener::open(),
            table: Table::default(),
            attempts: Attempts::default(),
            told: BTreeMap::new(),
            lookups: BTreeSet::new(),
            next_lookups: now,
            next_sweep: now + SWEEP,
            lost: true,
        })
    }

    /// Runs until the handle or the receiver of the events is dropped.
    pub async fn run(mut self) {
        loop {
            match self.settle().await {
                Ok(()) => {}
                Err(StepError::Unheard) => return,
                Err(StepError::Kernel(error)) => self.reopen(&error.to_string()).await,
            }
            let wake = self.wake();
            tokio::select! {
                watched = self.watch.recv() => match watched {
                    Some(watched) => self.rewatch(watched),
                    None => return,
                },
                Some(address) = self.verify.recv() => self.verify(address).await,
                changes = self.monitor.changes() => match changes {
                    Ok(changes) => self.apply(&changes),
                    Err(error) => self.reopen(&error.to_string()).await,
                },
                told = self.listener.told() => self.too_big(told),
                () = self.events.closed() => return,
                () = sleep_until(wake.into()) => {}
            }
        }
    }

    fn wake(&self) -> Instant {
        let lookups = (!self.lookups.is_empty()).then_some(self.next_lookups);
        [lookups, self.attempts.next(), self.table.learned.next()]
            .into_iter()
            .flatten()
            .fold(self.next_sweep, Instant::min)
    }

    fn rewatch(&mut self, watched: BTreeSet<IpAddr>) {
        self.table.keep_routes(&watched);
        self.table.learned.keep(&watched, Instant::now());
        self.told.retain(|address, _| watched.contains(address));
        self.lookups.retain(|address| watched.contains(address));
        self.lookups.extend(watched.difference(&self.watched));
        self.watched = watched;
    }

    fn links_changed(&self) {
        let vlans = self.table.vlans();
        self.links.send_modify(|links| {
            links.changes = links.changes.wrapping_add(1);
            links.vlans = vlans;
        });
    }

    fn look_up_all(&mut self) {
        self.lookups.extend(&self.watched);
    }

    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Link(ifindex, link) => {
                    // Routes that go with a link are not all announced.
                    if self.table.set_link(ifindex, link) {
                        self.look_up_all();
                        self.links_changed();
                    }
                }
                Change::Neighbour(key, entry) => self.table.set_neighbour(key, entry),
                Change::Routes(prefix) => {
                    self.lookups.extend(
                        self.watched
                            .iter()
                            .filter(|address| prefix.contains(**address)),
                    );
                }
                Change::AllRoutes => self.look_up_all(),
                Change::Lost => self.lost = true,
            }
        }
    }

    /// Takes in what a router said of a packet on the way to a watched address.
    fn too_big(&mut self, told: Told) {
        let Some(Resolution::Resolved(hop)) = self.told.get(&told.to) else {
            return;
        };
        if self.table.learned.note(told, hop.mtu, Instant::now()) {
            tracing::info!(address = %told.to, mtu = told.mtu, "a router on the way to a backend takes no larger packets");
        }
    }

    /// Brings the table up to date, tells what changed, and asks the kernel for what is wanting.
    async fn settle(&mut self) -> Result<(), StepError> {
        let now = Instant::now();
        self.table.learned.keep(&self.watched, now);
        if self.lost || self.next_sweep <= now {
            self.read_anew().await?;
            self.next_sweep = now + SWEEP;
        }
        if !self.lookups.is_empty() && self.next_lookups <= now {
            self.look_up().await?;
            self.next_lookups = Instant::now() + LOOKUP_GAP;
        }
        let wanting = self.tell().await?;
        let due = self.attempts.due(&wanting, Instant::now());
        self.ask(&due.ask).await;
        if due.fruitless.is_empty() {
            return Ok(());
        }
        for key in due.fruitless {
            self.table.give_up(key);
        }
        self.tell().await.map(drop)
    }

    /// Has the kernel resolve these. One that cannot be asked for (the kernel's table is full) is asked for again.
    async fn ask(&self, keys: &[NeighbourKey]) {
        let mut failed = 0u32;
        let mut last = None;
        for key in keys {
            if let Err(error) = self.kernel.resolve(*key).await {
                failed += 1;
                last = Some((key, error));
            }
        }
        if let Some((key, error)) = last {
            tracing::warn!(failed, ifindex = key.ifindex, address = %key.address, %error, "cannot have neighbours resolved");
        }
    }

    /// Dumps links and neighbours. The subscription is older than the dump, so what changes meanwhile comes after it.
    async fn read_anew(&mut self) -> Result<(), KernelError> {
        let links = self.kernel.links().await?;
        let neighbours = self.kernel.neighbours().await?;
        if self.table.replace_links(links) {
            self.links_changed();
        }
        self.table.replace_neighbours(&neighbours);
        self.look_up_all();
        self.lost = false;
        Ok(())
    }

    async fn look_up(&mut self) -> Result<(), KernelError> {
        let kernel = &self.kernel;
        let mut routes = stream::iter(std::mem::take(&mut self.lookups))
            .map(async |address| (address, kernel.route(address).await))
            .buffer_unordered(LOOKUPS_AT_ONCE);
        while let Some((address, route)) = routes.next().await {
            match route {
                Ok(route) => self.table.set_route(address, route),
                Err(error) => {
                    // What was not looked up is looked up with all others after the sockets are opened anew.
                    self.lost = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells every resolution that differs from the one told before; returns the neighbours that want the kernel.
    async fn tell(&mut self) -> Result<BTreeSet<NeighbourKey>, StepError> {
        let mut used = BTreeSet::new();
        let mut wanting = BTreeSet::new();
        let mut news = Vec::new();
        for address in self.watched.iter().copied() {
            let Some(answer) = self.table.resolve(address) else {
                continue;
            };
            used.extend(answer.neighbour);
            wanting.extend(answer.neighbour.filter(|_| answer.wanting));
            if self.told.insert(address, answer.resolution) != Some(answer.resolution) {
                news.push((address, answer.resolution));
            }
        }
        self.table.keep_remembered(&used);
        for event in news {
            self.events
                .send(event)
                .await
                .map_err(|_| StepError::Unheard)?;
        }
        Ok(wanting)
    }

    async fn verify(&mut self, address: IpAddr) {
        let Some(answer) = self.table.resolve(address) else {
            return;
        };
        let Some(key) = answer.neighbour.filter(|_| answer.verifiable) else {
            return;
        };
        if let Err(error) = self.kernel.verify(key).await {
            tracing::debug!(ifindex = key.ifindex, address = %key.address, %error, "cannot have a neighbour verified");
        }
    }

    /// Opens the sockets anew, however often it takes, and reads everything anew.
    async fn reopen(&mut self, why: &str) {
        tracing::warn!(why, "netlink failed; opening its sockets anew");
        self.lost = true;
        loop {
            sleep(REOPEN_WAIT).await;
            match open_sockets() {
                Ok((monitor, kernel)) => {
                    (self.monitor, self.kernel) = (monitor, kernel);
                    return;
                }
                Err(error) => tracing::warn!(%error, "netlink sockets cannot be opened"),
            }
        }
    }
}

/// The subscription first, so that nothing can happen unseen between it and the first dump.
fn open_sockets() -> io::Result<(Monitor, Kernel)> {
    Ok((Monitor::open(RECEIVE_BUFFER_BYTES)?, Kernel::open()?))
}

//! The load generator: long connections with checked traffic on them, and short requests all the time.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Broken, Connection, Failure, Flow, Length, Report, Sample, connection::Reason};
use crate::{clock, lab::Netns, wire};

/// Flows and samples beyond these are counted, not listed.
const FLOWS_MAX: usize = 4 << 20;
const SAMPLES_MAX: usize = 36_000;
/// Time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// What load is made.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where connections go.
    pub target: SocketAddr,
    /// Source addresses, taken in turn; the kernel's choice when empty.
    pub sources: Vec<IpAddr>,
    /// Long connections held.
    pub long: usize,
    /// Time over which they are opened.
    pub ramp: Duration,
    /// Time between two frames on a long connection (a quarter more or less).
    pub echo_every: Duration,
    /// Least and greatest payload of a frame, bytes.
    pub echo_bytes: (u16, u16),
    /// Short requests begun each second; 0 for none.
    pub short_per_second: f64,
    /// Short requests under way at most.
    pub short_concurrency: usize,
    /// Least and greatest body of a short request, bytes.
    pub short_bytes: (u64, u64),
    /// Time in which any answer must be there.
    pub limit: Duration,
}

impl LoadOptions {
    /// 300 long connections with about 1500 frames a second, and 100 short requests a second.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            sources: Vec::new(),
            long: 300,
            ramp: Duration::from_secs(1),
            echo_every: Duration::from_millis(200),
            echo_bytes: (16, 3000),
            short_per_second: 100.0,
            short_concurrency: 64,
            short_bytes: (1, 20_000),
            limit: Duration::from_secs(10),
        }
    }
}

/// A long connection that is open.
struct Held {
    backend: Arc<str>,
    /// When the last question was asked that has been answered, ns of `CLOCK_MONOTONIC`.
    answered_ns: u64,
    close: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct State {
    now: Sample,
    requests_skipped: u64,
    held: HashMap<u64, Held>,
    /// When the connections were begun whose handshake is under way.
    opening: HashMap<u64, u64>,
    broken: Vec<Broken>,
    flows: Vec<Flow>,
    samples: Vec<Sample>,
    /// Tasks that own a connection.
    tasks: usize,
    short_in_flight: usize,
}

struct Shared {
    options: LoadOptions,
    state: Mutex<State>,
    changed: Condvar,
    /// Nothing new is begun.
    stopping: AtomicBool,
    /// Long connections close after their next answer.
    closing_all: AtomicBool,
    next_id: AtomicU64,
}

/// Looks at a load.
#[derive(Clone)]
pub struct Watch(Arc<Shared>);

impl Watch {
    /// Where connections are now.
    #[must_use]
    pub fn now(&self) -> Sample {
        self.0.lock().current()
    }
}

/// A running load. Dropping it without [`Load::stop`] ends everything at once.
pub struct Load {
    shared: Arc<Shared>,
    handle: Handle,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts the load in a network namespace, on one thread of its own.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made, or it cannot enter the namespace.
    pub fn start(netns: &Netns, options: LoadOptions) -> Result<Self> {
        let shared = Arc::new(Shared {
            options,
            state: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            closing_all: AtomicBool::new(false),
            next_id: AtomicU64::new(0),
        });
        let (quit, quit_asked) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let (netns, inner) = (netns.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            let ready = netns.enter().and_then(|()| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
            });
            let runtime = match ready {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let _ = tell.send(Ok(runtime.handle().clone()));
            runtime.block_on(async {
                tokio::spawn(sample(Arc::clone(&inner)));
                tokio::spawn(short_requests(Arc::clone(&inner)));
                tokio::spawn(ramp(Arc::clone(&inner)));
                let _ = quit_asked.await;
            });
        })?;
        let handle = told
            .recv()
            .context("the load's thread ended")?
            .context("start the load")?;
        Ok(Self {
            shared,
            handle,
            quit: Some(quit),
            thread: Some(thread),
        })
    }

    /// A look at the load that outlasts it.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.shared))
    }

    /// Where connections are now.
    #[must_use]
    pub fn now(&self) -> Sample {
        self.shared.lock().current()
    }

    /// Every connection begun so far.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.lock().flows.clone()
    }

    /// Every connection broken so far.
    #[must_use]
    pub fn broken(&self) -> Vec<Broken> {
        self.shared.lock().broken.clone()
    }

    /// Waits until `done` holds for the current sample; whether it did within `limit`.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&Sample) -> bool) -> bool {
        self.wait_state(limit, |state| done(&state.current()))
    }

    /// A moment (ns of `CLOCK_MONOTONIC`) with a clean cut: of every connection begun before it the handshake is over
    /// when this returns. `None` if one is still under way after `limit`.
    ///
    /// What is changed after this returns can not have had a say in where those connections went, though the client may
    /// have been kept from sending for long after it noted their beginning.
    #[must_use]
    pub fn moment(&self, limit: Duration) -> Option<u64> {
        let at = {
            // Beginnings are noted under the same lock.
            let _state = self.shared.lock();
            clock::now_ns()
        };
        let is_over = |state: &State| state.opening.values().all(|&started_ns| started_ns >= at);
        self.wait_state(limit, is_over).then_some(at)
    }

    fn wait_state(&self, limit: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if done(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until `n` long connections are open.
    pub fn wait_long(&self, n: usize, limit: Duration) -> bool {
        self.wait(limit, |now| now.long.values().sum::<usize>() >= n)
    }

    /// Waits until every long connection has asked something from now on, and has its answer. Whether one breaks meanwhile
    /// makes no difference.
    pub fn wait_answered(&self, limit: Duration) -> bool {
        let at = clock::now_ns();
        self.wait_state(limit, |state| {
            state.held.values().all(|held| held.answered_ns >= at)
        })
    }

    /// Opens `n` more long connections at once.
    pub fn open_long(&self, n: usize) {
        for _ in 0..n {
            self.shared.spawn_long(&self.handle);
        }
    }

    /// Lets clients close a share of their long connections (those on `backend`, or all) in good order, spread
    /// over a time, as users leave. With `reopen` each opens a new one right after. Returns how many are closed
    /// at once; it does not wait for them.
    pub fn close_long(
        &self,
        backend: Option<&str>,
        share: f64,
        over: Duration,
        reopen: bool,
    ) -> usize {
        let mut chosen: Vec<u64> = {
            let state = self.shared.lock();
            let fits = |held: &&Held| {
                backend.is_none_or(|name| &*held.backend == name) && held.close.is_some()
            };
            state
                .held
                .iter()
                .filter(|(_, held)| fits(held))
                .map(|(&id, _)| id)
                .collect()
        };
        // Hash map order is as good as a lottery, but ids make a run easier to follow.
        chosen.sort_unstable_by_key(|id| id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let n = (chosen.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
        chosen.truncate(n);
        let shared = Arc::clone(&self.shared);
        self.handle.spawn(async move {
            let step = over / u32::try_from(n.max(1)).unwrap_or(u32::MAX);
            for id in chosen {
                shared.ask_to_close(id);
                if reopen {
                    shared.spawn_long(&Handle::current());
                }
                tokio::time::sleep(step).await;
            }
        });
        n
    }

    /// Ends the load: no more short requests, every long connection closed by the client in good order over
    /// `over`. Connections that do not end within the options' limit after that count as broken.
    #[must_use]
    pub fn stop(mut self, over: Duration) -> Report {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.close_long(None, 1.0, over, false);
        if !self.wait_idle(over) {
            // Those that were still being opened when the closing began.
            self.shared.closing_all.store(true, Ordering::Relaxed);
            self.wait_idle(self.shared.options.limit * 2);
        }
        self.end_thread();
        self.shared.report()
    }

    /// Waits until no connection is left; whether that was so within `limit`.
    fn wait_idle(&self, limit: Duration) -> bool {
        self.wait_state(limit, |state| state.tasks == 0)
    }

    fn end_thread(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.end_thread();
    }
}

impl State {
    fn current(&self) -> Sample {
        let mut long = BTreeMap::new();
        for held in self.held.values() {
            *long.entry(Arc::clone(&held.backend)).or_default() += 1;
        }
        Sample {
            at_ns: clock::now_ns(),
            long,
            ..self.now.clone()
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.lock());
        self.changed.notify_all();
    }

    /// Opens connection `id`; its beginning is noted in `started_ns` just before.
    async fn open(&self, id: u64, started_ns: &mut u64) -> Result<Connection, Failure> {
        {
            let mut state = self.lock();
            *started_ns = clock::now_ns();
            state.opening.insert(id, *started_ns);
        }
        let LoadOptions { target, limit, .. } = self.options;
        let source = self.source(id);
        let opened = Connection::open(source, target, limit).await;
        self.change(|state| {
            state.opening.remove(&id);
        });
        opened
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn ask_to_close(&self, id: u64) {
        if let Some(close) = self
            .lock()
            .held
            .get_mut(&id)
            .and_then(|held| held.close.take())
        {
            let _ = close.send(());
        }
    }

    fn source(&self, id: u64) -> Option<SocketAddr> {
        let sources = &self.options.sources;
        let index = usize::try_from(id)
            .unwrap_or(0)
            .checked_rem(sources.len())?;
        Some(SocketAddr::new(sources[index], 0))
    }

    fn spawn_long(self: &Arc<Self>, handle: &Handle) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(self);
        shared.lock().tasks += 1;
        handle.spawn(async move {
            long_connection(&shared, id).await;
            shared.change(|state| state.tasks -= 1);
        });
    }

    fn note_answer(&self, id: u64, asked_ns: u64) {
        let mut state = self.lock();
        state.now.frames += 1;
        if let Some(held) = state.held.get_mut(&id) {
            held.answered_ns = asked_ns;
        }
    }

    fn note_flow(&self, flow: Flow) {
        let mut state = self.lock();
        if state.flows.len() < FLOWS_MAX {
            state.flows.push(flow);
        }
    }

    fn note_broken(&self, length: Length, seen: &Seen, failure: Failure) {
        self.change(|state| {
            match length {
                Length::Long => state.now.broken += 1,
                Length::Short => state.now.requests_failed += 1,
            }
            state.broken.push(Broken {
                length,
                local: seen.local,
                backend: seen.backend.clone(),
                reason: failure.reason,
                detail: failure.detail,
                started_ns: seen.started_ns,
                broken_ns: clock::now_ns(),
            });
        });
    }

    fn report(&self) -> Report {
        let mut state = self.lock();
        let now = state.current();
        let mut broken = std::mem::take(&mut state.broken);
        // What is neither finished nor broken was given up when the time for the end had passed.
        let lost = now.opened - now.finished - now.broken;
        for _ in 0..lost {
            broken.push(Broken {
                length: Length::Long,
                local: None,
                backend: None,
                reason: Reason::Timeout,
                detail: "still open when the load was stopped".into(),
                started_ns: now.at_ns,
                broken_ns: now.at_ns,
            });
        }
        let mut flows = std::mem::take(&mut state.flows);
        flows.sort_by_key(|flow| flow.started_ns);
        let mut samples = std::mem::take(&mut state.samples);
        samples.push(now.clone());
        Report {
            opened: now.opened,
            finished: now.finished,
            broken,
            requests_ok: now.requests_ok,
            requests_failed: now.requests_failed,
            requests_skipped: state.requests_skipped,
            frames: now.frames,
            flows,
            samples,
        }
    }
}

/// What is known of a connection while it lasts.
#[derive(Default)]
struct Seen {
    started_ns: u64,
    local: Option<SocketAddr>,
    backend: Option<Arc<str>>,
}

async fn sample(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        ticks.tick().await;
        shared.change(|state| {
            if state.samples.len() < SAMPLES_MAX {
                let now = state.current();
                state.samples.push(now);
            }
        });
    }
}

async fn ramp(shared: Arc<Shared>) {
    let n = shared.options.long;
    let step = shared.options.ramp / u32::try_from(n.max(1)).unwrap_or(u32::MAX);
    let start = tokio::time::Instant::now();
    for i in 0..n {
        if shared.stopping() {
            return;
        }
        shared.spawn_long(&Handle::current());
        tokio::time::sleep_until(start + step * u32::try_from(i + 1).unwrap_or(u32::MAX)).await;
    }
}

async fn short_requests(shared: Arc<Shared>) {
    let rate = shared.options.short_per_second;
    if rate <= 0.0 {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    while !shared.stopping() {
        ticks.tick().await;
        {
            let mut state = shared.lock();
            if state.short_in_flight >= shared.options.short_concurrency {
                state.requests_skipped += 1;
                continue;
            }
            state.short_in_flight += 1;
            state.tasks += 1;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            short_request(&shared).await;
            shared.change(|state| {
                state.tasks -= 1;
                state.short_in_flight -= 1;
            });
        });
    }
}

async fn short_request(shared: &Shared) {
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    let mut seen = Seen::default();
    let result = short_exchange(shared, id, &mut seen).await;
    if let Some(local) = seen.local {
        shared.note_flow(Flow {
            length: Length::Short,
            started_ns: seen.started_ns,
            local,
            backend: seen.backend.clone(),
        });
    }
    match (result, seen.backend.clone()) {
        (Ok(()), Some(backend)) => shared.change(|state| {
            state.now.requests_ok += 1;
            *state.now.short.entry(backend).or_default() += 1;
        }),
        (Ok(()), None) => {}
        (Err(failure), _) => shared.note_broken(Length::Short, &seen, failure),
    }
}

async fn short_exchange(shared: &Shared, id: u64, seen: &mut Seen) -> Result<(), Failure> {
    let options = &shared.options;
    let mut connection = shared.open(id, &mut seen.started_ns).await?;
    seen.local = Some(connection.local());
    let (least, most) = options.short_bytes;
    let answer = connection
        .get_bytes(between(id, least, most), id, true)
        .await?;
    seen.backend = Some(answer.backend);
    connection.close().await
}

async fn long_connection(shared: &Arc<Shared>, id: u64) {
    shared.change(|state| state.now.opened += 1);
    let mut seen = Seen::default();
    let result = long_exchange(shared, id, &mut seen).await;
    shared.change(|state| {
        state.held.remove(&id);
        if result.is_ok() {
            state.now.finished += 1;
        }
    });
    if let Err(failure) = result {
        shared.note_broken(Length::Long, &seen, failure);
    }
}

async fn long_exchange(shared: &Arc<Shared>, id: u64, seen: &mut Seen) -> Result<(), Failure> {
    let options = &shared.options;
    let mut connection = shared.open(id, &mut seen.started_ns).await?;
    seen.local = Some(connection.local());
    let upgraded = connection.upgrade(id).await;
    seen.backend = connection.first().map(|first| Arc::clone(&first.backend));
    shared.note_flow(Flow {
        length: Length::Long,
        started_ns: seen.started_ns,
        local: connection.local(),
        backend: seen.backend.clone(),
    });
    let backend = upgraded?.backend;
    let (close, mut close_asked) = oneshot::channel();
    shared.change(|state| {
        state.held.insert(
            id,
            Held {
                backend,
                answered_ns: 0,
                close: Some(close),
            },
        );
    });
    let (least, most) = options.echo_bytes;
    for turn in id.. {
        let length = between(
            turn,
            u64::from(least),
            u64::from(most).min(wire::PAYLOAD_MAX as u64),
        );
        let asked_ns = clock::now_ns();
        connection
            .echo(u16::try_from(length).unwrap_or(u16::MAX))
            .await?;
        shared.note_answer(id, asked_ns);
        if shared.closing_all.load(Ordering::Relaxed) {
            break;
        }
        let every = u64::try_from(options.echo_every.as_micros()).unwrap_or(u64::MAX);
        let pause = Duration::from_micros(between(turn, every - every / 4, every + every / 4));
        tokio::select! {
            _ = &mut close_asked => break,
            failure = connection.unasked() => return Err(failure),
            () = tokio::time::sleep(pause) => {}
        }
    }
    connection.close().await
}

/// A number from `least` to `most`, the same for the same `key`.
fn between(key: u64, least: u64, most: u64) -> u64 {
    let mut bytes = [0; 8];
    crate::pattern::fill(key, 0, &mut bytes);
    least + u64::from_le_bytes(bytes) % (most.max(least) - least + 1)
}

/// Allows this process as many open files as the hard limit does; thousands of connections need them.
///
/// # Errors
/// The kernel's.
pub fn raise_open_files() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

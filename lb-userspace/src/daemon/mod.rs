//! The parts of ebb that run: they own sockets, tasks and the clock, and carry out what `model` decides.

mod alerts;
pub mod assemble;
pub mod clock;
pub mod control;
pub mod core;
pub mod engine;
pub mod heap;
pub mod journal;
pub mod nexthop;
mod own_ports;
pub mod prober;
mod raw;
pub mod seed;
pub mod share;
pub mod socket;
pub mod trace;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

use self::{
    clock::{Clock, SteadyClock},
    core::{Core, Ports},
    engine::{Engine, Facts},
    journal::Journal,
};
use crate::{
    api::Refusal,
    datapath::Datapath,
    model::{self, spec::Spec, state::State},
};

/// Reads a configuration file; a refusal names every problem with its place.
pub type Loader = Arc<dyn Fn(&Path) -> Result<Spec, Refusal> + Send + Sync>;

/// Where a daemon finds its things.
#[derive(Clone)]
pub struct RunOptions {
    /// Configuration file.
    pub config: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Directory of the journal.
    pub state_dir: PathBuf,
    /// Reads the configuration.
    pub load: Loader,
    /// How it is told to stop from within.
    pub stop: StopOrder,
}

/// The order to stop, given over the control socket.
#[derive(Clone, Default)]
pub struct StopOrder(Arc<watch::Sender<Option<Stop>>>);

/// What is left behind when the daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Everything in the kernel; it goes on forwarding.
    Keep,
    /// Nothing.
    Detach,
}

impl StopOrder {
    /// Gives the order.
    pub fn give(&self, detach: bool) {
        self.0
            .send_replace(Some(if detach { Stop::Detach } else { Stop::Keep }));
    }

    /// Whether nothing is to be left in the kernel.
    pub fn is_detach(&self) -> bool {
        *self.0.borrow() == Some(Stop::Detach)
    }

    async fn given(&self) {
        // The sender is `self`; it can not go away.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }
}

/// Longest time that requests under way may take at the end.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// Runs a daemon until it is told to stop: by SIGTERM, SIGINT, or `stop`. The maps go on forwarding afterwards.
///
/// `datapath` is called once the configuration is known to be good and no other daemon has the state directory.
///
/// # Errors
/// Whatever keeps it from starting. A [`Refusal`] inside says what to do about it: a bad configuration, or one that the
/// state of things forbids.
pub async fn run(
    options: RunOptions,
    datapath: impl FnOnce(&Spec) -> anyhow::Result<Box<dyn Datapath>>,
    ports: Ports,
    steady: Arc<SteadyClock>,
) -> anyhow::Result<()> {
    // Before anybody can know that it runs: a signal without a handler would kill it.
    let mut signals = Signals::listen().context("signals")?;
    let spec = (options.load)(&options.config)?;
    let seed = seed::read_or_make(&spec.node.hash_seed_file)
        .with_context(|| format!("hash seed file {}", spec.node.hash_seed_file.display()))?;
    let shared_ports = own_ports::warnings(&spec);
    let opened = Journal::open(&options.state_dir).context("journal")?;
    let clock_note = resume(&steady, &options.state_dir, &opened.state);
    let clock: Arc<dyn Clock> = steady.clone();
    let datapath = datapath(&spec)?;
    let share = spec.node.share.clone();
    let mut engine = Engine::new(opened.state, spec, seed, datapath, Box::new(opened.journal))
        .context("maps")?;
    engine.note(opened.warnings);
    engine.note(shared_ports);
    engine.note(clock_note);
    for change in engine.begin(clock.now_ms()).map_err(Refusal::from)? {
        tracing::info!("{change}");
    }
    let listener = socket::listen(&options.socket).context("control socket")?;
    let sharing = share.map(|settings| {
        let (outbox, outgoing) = mpsc::channel(share::BATCHES_WAITING);
        let counts = Arc::<share::Counts>::default();
        engine.share(outbox, Arc::clone(&counts));
        (settings, outgoing, counts)
    });
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_ms: clock.now_ms(),
        config: options.config.display().to_string(),
    };
    let (core, handle) = Core::new(engine, Arc::clone(&clock), ports);
    if let Some((settings, outgoing, counts)) = sharing {
        let listen = settings.listen;
        let key = model::share::Key::of(&seed);
        share::start(
            settings,
            key,
            outgoing,
            handle.clone(),
            // Nodes compare their clocks.
            Arc::clone(steady.wall()),
            counts,
        )
        .await
        .with_context(|| format!("share: listen on {listen}"))?;
    }
    let (stopping, stopped) = watch::channel(false);
    // On a thread of its own: it works for long at a time, and whoever waits for the same thread would wait with it,
    // an answer that is on its way out not least.
    let core = tokio::task::spawn_blocking({
        let (runtime, stopped) = (tokio::runtime::Handle::current(), stopped.clone());
        move || runtime.block_on(core.run(stopped))
    });
    let control = control::Control {
        handle: handle.clone(),
        facts: Arc::new(facts),
        options: options.clone(),
        stopped: stopped.clone(),
    };
    let server = tokio::spawn(control::serve(listener, control.clone(), stopped));
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("ready on {}", options.socket.display());
    wait(&control, &mut signals).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    let _ = stopping.send(true);
    if tokio::time::timeout(SHUTDOWN_TIME, server).await.is_err() {
        tracing::warn!("requests were still under way after {SHUTDOWN_TIME:?} and were cut short");
    }
    core.await.context("the core loop")?;
    socket::remove(&options.socket);
    Ok(())
}

/// A difference between the wall clock and the daemon's that is worth a word, milliseconds.
const CLOCK_APART_MS: i64 = 1000;

/// Goes on by the clock of the daemon before while drains and changes are under way; returns what is to be said of it.
fn resume(clock: &SteadyClock, directory: &Path, state: &State) -> Vec<String> {
    let mut services = state.services.values();
    let goes_on = services.any(|service| service.is_draining() || service.is_changing());
    match clock.resume(directory, goes_on) {
        Ok(ahead_ms) if ahead_ms.abs() >= CLOCK_APART_MS => {
            let seconds = ahead_ms as f64 / 1000.0;
            vec![format!(
                "the wall clock was set by {seconds:+.1} s since drains began that are under way; they keep the time that they were given"
            )]
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![format!(
            "the clock's file in {} can not be written: {error}",
            directory.display()
        )],
    }
}

/// The signals that mean something to the daemon.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on none of them is lost, and none ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Waits for the order to stop; reloads at every SIGHUP.
async fn wait(control: &control::Control, signals: &mut Signals) {
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => reload(control).await,
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            () = control.options.stop.given() => return,
        }
    }
}

async fn reload(control: &control::Control) {
    match sd_notify::NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[sd_notify::NotifyState::Reloading, now]),
        Err(_) => notify(&[sd_notify::NotifyState::Reloading]),
    }
    match control::reload(control, false).await {
        Ok(reloaded) => reloaded
            .changes
            .iter()
            .for_each(|change| tracing::info!("{change}")),
        Err(refused) => tracing::error!("the configuration stays as it was: {}", refused.error),
    }
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells the service manager, where there is one.
pub(crate) fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager could not be told: {error}");
    }
}

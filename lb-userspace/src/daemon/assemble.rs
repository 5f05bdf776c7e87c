//! Puts the daemon together: the data plane in the kernel, the prober, the resolver of next hops, and the core that
//! they all report to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::{
    Loader, RunOptions, StopOrder, alerts,
    clock::{Clock, SteadyClock, WallClock},
    core::{Event, Ports},
    engine::commands::ProbeTarget,
    nexthop::{NextHop, Resolution, Resolver},
    prober::{HealthEvent, Prober, SpeechEvent, Target, TargetKey},
};
use crate::{
    api::Refusal,
    config,
    datapath::{
        self, Datapath,
        bpf::{self, BpfDatapath, Options, VALUE_MAX},
        object,
    },
    model::{
        health,
        observed::{Health, Hop, Silence, Way},
        spec::Spec,
    },
};

/// Events of one kind that may wait for the core.
const EVENTS_WAITING: usize = 1024;

/// What `ebb run` needs to know.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Configuration file.
    pub config: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Directory on a BPF file system for maps and links.
    pub pins: PathBuf,
    /// Directory of the journal.
    pub state_dir: PathBuf,
    /// Forget the maps that are there, and all flows with them.
    pub afresh: bool,
    /// Log every decision of the data plane. For looking at a lab; it costs far more than the decision.
    pub trace: bool,
}

/// Runs the daemon until it is told to stop. Forwarding goes on afterwards, unless the order was to detach.
///
/// # Errors
/// Whatever keeps it from starting; a [`Refusal`] inside is a bad configuration.
pub fn run_node(options: &NodeOptions) -> anyhow::Result<()> {
    super::heap::configure();
    let runtime = runtime()?;
    let wall = Arc::new(WallClock);
    let detach = runtime.block_on(run(options, |spec| load(options, spec), wall))?;
    if detach {
        bpf::remove_pins(&options.pins)
            .with_context(|| format!("removing {}", options.pins.display()))?;
        tracing::info!("detached: nothing is forwarded any more");
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the daemon's threads")
}

/// The data plane of a node: loaded, on its interfaces, and nobody there to run it yet.
///
/// # Errors
/// The configuration is bad, or the data plane can not be loaded.
pub fn load_node(options: &NodeOptions) -> anyhow::Result<BpfDatapath> {
    let spec = loader()(&options.config)?;
    load(options, &spec)
}

/// Runs the daemon over a data plane that [`load_node`] has loaded, by another wall clock.
///
/// # Errors
/// As of [`run_node`].
pub fn run_loaded(
    options: &NodeOptions,
    datapath: BpfDatapath,
    wall: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let runtime = runtime()?;
    runtime.block_on(run(options, |_| Ok(datapath), wall))?;
    Ok(())
}

async fn run(
    options: &NodeOptions,
    datapath: impl FnOnce(&Spec) -> anyhow::Result<BpfDatapath>,
    wall: Arc<dyn Clock>,
) -> anyhow::Result<bool> {
    let clock = Arc::new(SteadyClock::new(wall));
    let stop = StopOrder::default();
    let run_options = RunOptions {
        config: options.config.clone(),
        socket: options.socket.clone(),
        state_dir: options.state_dir.clone(),
        load: loader(),
        stop: stop.clone(),
    };
    let (ports, events) = ports(&clock)?;
    let open = |spec: &Spec| begin(options, datapath(spec)?, events);
    super::run(run_options, open, ports, clock).await?;
    Ok(stop.is_detach())
}

fn load(options: &NodeOptions, spec: &Spec) -> anyhow::Result<BpfDatapath> {
    let bpf_options = Options {
        pins: options.pins.clone(),
        interfaces: spec.node.interfaces.clone(),
        mode: spec.node.xdp_mode,
        capacity: spec.node.capacity,
        trace: options.trace,
        value_max: VALUE_MAX,
    };
    if options.afresh {
        bpf::forget_maps(&options.pins)
            .with_context(|| format!("forgetting the maps in {}", options.pins.display()))?;
    }
    let datapath =
        BpfDatapath::open(object::XDP, &bpf_options).map_err(|error| explained(options, error))?;
    super::heap::set_aside(object::XDP);
    Ok(datapath)
}

/// Says where it is, and has it heard from here on.
fn begin(
    options: &NodeOptions,
    mut datapath: BpfDatapath,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<Box<dyn Datapath>> {
    for attachment in datapath.attachments() {
        let (interface, mode) = (&attachment.interface, &attachment.mode);
        tracing::info!("XDP program on {interface}, {mode} mode");
        if mode != "native" {
            tracing::warn!(
                "{interface}: generic mode is slow; its driver has no native XDP, or refused it"
            );
        }
    }
    for missing in datapath.missing() {
        tracing::warn!("interface {}: {}", missing.interface, missing.why);
    }
    alerts::start(&mut datapath, events).context("the data plane's alerts")?;
    if options.trace {
        start_log(&mut datapath);
    }
    Ok(Box::new(datapath))
}

/// What to do about an error of the start, where that can be said.
fn explained(options: &NodeOptions, error: datapath::Error) -> anyhow::Error {
    let config = options.config.display();
    let hint = match &error {
        datapath::Error::NoInterface { known, .. } if known.is_empty() => {
            format!("there is none but the loopback; mend `interfaces` in {config}")
        }
        datapath::Error::NoInterface { known, .. } => format!(
            "there are {}; mend `interfaces` in {config}",
            known.join(", ")
        ),
        datapath::Error::Layout { .. } => format!(
            "what runs goes on forwarding; go back to the ebb that made {}, or start with --afresh, which forgets all flows",
            options.pins.display()
        ),
        _ => return error.into(),
    };
    let refusal = Refusal {
        error: error.to_string(),
        hint: Some(hint),
    };
    refusal.into()
}

/// Hands the data plane's log lines on to this process's log.
fn start_log(datapath: &mut BpfDatapath) {
    let logger = aya_log::EbpfLogger::init(datapath.ebpf_mut())
        .map_err(|error| error.to_string())
        .and_then(|logger| {
            // SAFETY: the logger owns its descriptor, which is the same for as long as it lives.
            unsafe { tokio::io::unix::AsyncFd::register(logger) }.map_err(|error| error.to_string())
        });
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(error) => {
            return tracing::warn!("the data plane's decisions can not be logged: {error}");
        }
    };
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}

/// Reads a configuration; its problems become a refusal that names every place.
fn loader() -> Loader {
    Arc::new(|path: &Path| {
        config::load(path).map_err(|error| Refusal {
            error: error.to_string(),
            hint: Some(format!("mend it, then try `ebb check {}`", path.display())),
        })
    })
}

/// Starts whoever looks at the world, and joins their reports to one stream of events.
fn ports(clock: &Arc<SteadyClock>) -> anyhow::Result<(Ports, mpsc::Sender<Event>)> {
    let (events, receiver) = mpsc::channel(EVENTS_WAITING);
    let (ways, mut changed_ways) = mpsc::channel(EVENTS_WAITING);
    let (verdicts, mut changed_health) = mpsc::channel(EVENTS_WAITING);
    let resolver =
        Arc::new(Resolver::start(ways).context("asking the kernel for routes and neighbours")?);
    let (speech, mut said) = mpsc::channel(EVENTS_WAITING);
    let (answers, mut answered) = mpsc::unbounded_channel();
    let prober = Arc::new(Mutex::new(Prober::start(verdicts, speech, answers)));

    let speech_events = events.clone();
    tokio::spawn(async move {
        while let Some(event) = said.recv().await {
            if speech_events.send(speech_event(event)).await.is_err() {
                return;
            }
        }
    });
    let asked = Arc::clone(&prober);
    let answer_events = events.clone();
    tokio::spawn(async move {
        while let Some(key) = answered.recv().await {
            let TargetKey { service, backend } = key;
            let event = Event::Answered { service, backend };
            if answer_events.send(event).await.is_err() {
                return;
            }
        }
    });

    let mut links = resolver.links();
    let link_events = events.clone();
    tokio::spawn(async move {
        while links.changed().await.is_ok() {
            let vlans = links.borrow_and_update().vlans.clone();
            if link_events.send(Event::Links { vlans }).await.is_err() {
                return;
            }
        }
    });
    let way_events = events.clone();
    tokio::spawn(async move {
        while let Some((address, resolution)) = changed_ways.recv().await {
            let event = Event::NextHop {
                address,
                way: way(resolution),
            };
            if way_events.send(event).await.is_err() {
                return;
            }
        }
    });
    let suspicious = Arc::clone(&resolver);
    let health_clock = Arc::clone(clock);
    let more_events = events.clone();
    tokio::spawn(async move {
        while let Some(event) = changed_health.recv().await {
            if event.change.to == health::Health::Down {
                // A server that was replaced without a word has another MAC: let the kernel ask again.
                suspicious.verify(event.address.ip());
            }
            if events
                .send(health_event(event, health_clock.now_ms()))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let segments = super::raw::start().context("a thread for raw sockets")?;
    let ports = Ports {
        // The thread ends after whoever gives it work.
        send: Box::new(move |batch| drop(segments.send(batch))),
        events: receiver,
        watch_addresses: Box::new(move |addresses: BTreeSet<IpAddr>| resolver.watch(addresses)),
        set_targets: Box::new(move |targets| lock(&prober).set_targets(keyed(targets))),
        probe_now: Box::new(move |service, backend| {
            lock(&asked).probe_now(&TargetKey { service, backend });
        }),
    };
    Ok((ports, more_events))
}

/// The prober. Whoever panicked with it in hand left it whole.
fn lock(prober: &Mutex<Prober>) -> MutexGuard<'_, Prober> {
    prober.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keyed(targets: Vec<ProbeTarget>) -> BTreeMap<TargetKey, Target> {
    let pair = |target: ProbeTarget| {
        let key = TargetKey {
            service: target.service,
            backend: target.backend,
        };
        (
            key,
            Target {
                address: target.address,
                health: target.health,
            },
        )
    };
    targets.into_iter().map(pair).collect()
}

fn way(resolution: Resolution) -> Way {
    match resolution {
        Resolution::Resolved(NextHop {
            ifindex,
            source_mac,
            destination_mac,
            mtu,
            source,
            vlan,
        }) => {
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            Way::Known(Hop {
                ifindex,
                source_mac,
                destination_mac,
                mtu,
                source,
                vlan,
            })
        }
        Resolution::Unresolved(reason) => Way::Unknown(reason.to_string()),
    }
}

fn speech_event(event: SpeechEvent) -> Event {
    Event::Said {
        service: event.key.service,
        backend: event.key.backend,
        wish: event.said.wish,
        not_understood: event.said.not_understood,
    }
}

fn health_event(event: HealthEvent, now_ms: u64) -> Event {
    let is_silent = event.change.dead
        || event.change.to == health::Health::Down && event.change.cause.is_silence();
    let since_ms = || {
        let ago = u64::try_from(event.unanswered.as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_sub(ago)
    };
    Event::Health {
        silence: is_silent.then(|| Silence {
            since_ms: since_ms(),
            dead: event.change.dead,
        }),
        service: event.key.service,
        backend: event.key.backend,
        health: match event.change.to {
            health::Health::Starting => Health::Starting,
            health::Health::Up => Health::Up,
            health::Health::Down => Health::Down,
        },
        reason: Some(event.change.cause.to_string()),
    }
}

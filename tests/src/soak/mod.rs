//! The soak: random operations and faults from a seed under live traffic, for as long as one likes, and a judge who
//! asks clients and servers only.
//!
//! Every connection checks every byte it gets and who answers. One that does not end as its client meant it to counts
//! as broken by ebb, unless its backend was killed, or a drain's deadline was there to cut it.

mod act;
mod fault;
mod judge;
mod plan;
mod summary;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::Value;

use crate::{
    client::{Load, LoadOptions, Report, raise_open_files},
    clock,
    scenario::{LIMIT, SHORT_AT_ONCE, Scene, Way, backends},
};

use judge::Ledger;
use plan::{Backend, View};

pub use summary::Summary;

/// Backends of both pools.
const BACKENDS: [&str; 7] = ["b1", "b2", "b3", "b4", "g1", "g2", "g3"];
/// Time over which a deadline cuts, as the service says.
const SPREAD: Duration = Duration::from_secs(1);
/// Pause between two steps, milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 150..900;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long.
    pub length: Duration,
    /// It goes on for longer, three times as long at most, until it has done so many operations: how many fit into a time is up
    /// to the machine, and to how many faults its seed draws, each of which takes some of it.
    pub operations: u64,
    /// Seed of what is done; when it happens is up to the machine.
    pub seed: u64,
    /// How packets travel.
    pub way: Way,
    /// Long connections held.
    pub connections: usize,
    /// Short requests begun each second.
    pub requests: f64,
    /// The flow table and the handshake table are lost, too.
    pub lose_tables: bool,
}

/// A soak under way.
struct Soak<'a> {
    options: &'a Options,
    scene: Scene,
    load: Load,
    random: SmallRng,
    ledger: Ledger,
    started: Instant,
    /// When the service was last seen without an unfinished change, ns of `CLOCK_MONOTONIC`.
    changing_since_ns: u64,
    tell: &'a mut dyn FnMut(&str),
}

/// Runs a soak; `tell` gets a line for each step.
///
/// # Errors
/// The lab fails, or the daemon does what it must not: ends, refuses what it should not, does not answer. Broken
/// connections are no errors here, see [`Summary::is_good`].
pub fn run(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Summary> {
    raise_open_files()?;
    let scene = Scene::with(
        options.way,
        &BACKENDS,
        |service| {
            service.more = format!(
                "drain = {{ timeout = \"10s\", on_deadline = \"reset\", spread = \"{}s\" }}",
                SPREAD.as_secs()
            );
        },
        "",
    )?;
    let load = Load::start(
        scene.lab.netns("client"),
        LoadOptions {
            long: options.connections,
            ramp: Duration::from_secs(2),
            echo_every: Duration::from_millis(200),
            short_per_second: options.requests,
            short_concurrency: SHORT_AT_ONCE,
            limit: LIMIT,
            ..LoadOptions::new(scene.target())
        },
    )?;
    ensure!(
        load.wait_long(options.connections, LIMIT),
        "the connections do not open: {:?}",
        load.broken()
    );
    let mut soak = Soak {
        options,
        scene,
        load,
        random: SmallRng::seed_from_u64(options.seed),
        ledger: Ledger::default(),
        started: Instant::now(),
        changing_since_ns: clock::now_ns(),
        tell,
    };
    soak.note_closed(0, 0)?;
    let lived = soak.live();
    let ended = lived.and_then(|()| soak.calm());
    soak.end(ended)
}

impl Soak<'_> {
    fn live(&mut self) -> Result<()> {
        while self.goes_on() {
            let at = clock::now_ns();
            let status = self.status()?;
            if status["services"][0]["changing"] != true {
                self.changing_since_ns = at;
            }
            let view = view(&status)?;
            let step = plan::next(&view, self.options.lose_tables, &mut self.random);
            self.say(&format!("{step}"));
            self.perform(&step)
                .with_context(|| format!("{step} (seed {})", self.options.seed))?;
            self.traffic()?;
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        let (elapsed, length) = (self.started.elapsed(), self.options.length);
        let done: u64 = self.ledger.operations.values().sum();
        elapsed < length || (done < self.options.operations && elapsed < 3 * length)
    }

    /// Some clients leave and come back, and a pause with traffic.
    fn traffic(&mut self) -> Result<()> {
        let open: usize = self.load.now().long.values().sum();
        self.load
            .open_long(self.options.connections.saturating_sub(open));
        let share = self.random.random_range(0.0..0.15);
        self.load
            .close_long(None, share, Duration::from_millis(300), true);
        let pause = Duration::from_millis(self.random.random_range(PAUSE_MS));
        self.load.wait(pause, |_| false);
        Ok(())
    }

    /// Everybody is up and answers again: what is still broken then is found.
    fn calm(&mut self) -> Result<()> {
        self.scene.wait_all_up()?;
        self.scene.traffic(&self.load, 20)
    }

    fn say(&mut self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let now = self.load.now();
        let open: usize = now.long.values().sum();
        (self.tell)(&format!(
            "{seconds:>7.1} s  {open:>5} open  {:>4} broken or cut  {what}",
            now.broken + now.requests_failed
        ));
    }

    fn status(&self) -> Result<Value> {
        self.scene.ebb.status()
    }

    /// Notes who may get new connections since a change: those that no longer may from `after` on, those that may
    /// again until `before`; ns of `CLOCK_MONOTONIC`.
    fn note_closed(&mut self, before: u64, after: u64) -> Result<()> {
        let status = self.status()?;
        let active = active_pool(&status).context("no active pool")?;
        let mut closed: BTreeSet<String> = BACKENDS.iter().map(|&name| name.to_owned()).collect();
        for backend in backends(&status) {
            let name = backend["name"].as_str().unwrap_or_default();
            let is_wanted = backend["admin"] == "active" && backend["weight"] != 0;
            if is_wanted && plan::pool_of(name) == active {
                closed.remove(name);
            }
        }
        self.ledger.closed.set(&closed, before, after);
        Ok(())
    }

    fn end(self, ended: Result<()>) -> Result<Summary> {
        let seconds = self.started.elapsed();
        let Self {
            scene,
            load,
            mut ledger,
            options,
            tell,
            ..
        } = self;
        let now = clock::now_ns();
        let report = load.stop(Duration::from_secs(2));
        for name in BACKENDS {
            if let Ok(stats) = scene.lab.stats(name, scene.service.backend_port) {
                ledger.stats.entry(name.to_owned()).or_default().push(stats);
            }
        }
        let summary = ledger.judge(options, &report, &[scene.client()], now, seconds);
        if !summary.is_good() {
            for line in clues(&scene, &report) {
                tell(&line);
            }
        }
        ended.with_context(|| format!("the soak could not go on; so far:\n{summary}"))?;
        Ok(summary)
    }
}

/// What a step can be chosen from.
fn view(status: &Value) -> Result<View> {
    let active = active_pool(status).context("no active pool")?;
    let mut known = BTreeMap::new();
    for backend in backends(status) {
        let name = backend["name"].as_str().context("a name")?.to_owned();
        known.insert(
            name,
            Backend {
                admin: backend["admin"].as_str().context("admin")?.to_owned(),
                weight: backend["weight"].as_u64().context("weight")?,
                is_up: backend["health"] == "up",
                flows: backend["flows"].as_u64().unwrap_or(0),
            },
        );
    }
    let removed = BACKENDS.iter().filter(|name| !known.contains_key(**name));
    Ok(View {
        removed: removed.map(|name| (*name).to_owned()).collect(),
        backends: known,
        active_pool: active,
    })
}

/// What the daemon says of connections that broke last.
fn clues(scene: &Scene, report: &Report) -> Vec<String> {
    let said = |line: &str| match scene.run(line) {
        Ok(said) => format!("{line}: {}{}", said.stdout.trim(), said.stderr.trim()),
        Err(error) => format!("{line}: {error:#}"),
    };
    let last = report.broken.iter().rev().filter_map(|broken| broken.local);
    let explained = last
        .take(5)
        .map(|local| said(&format!("explain web --from {local}")));
    std::iter::once(said("status --json"))
        .chain(explained)
        .collect()
}

fn active_pool(status: &Value) -> Option<String> {
    let pools = status["services"][0]["pools"].as_array()?;
    let active = pools.iter().find(|pool| pool["active"] == true)?;
    active["name"].as_str().map(str::to_owned)
}

//! A daemon that is killed at each step of what it does: each journal record, each write to a map. After each death the next
//! one must come to where the operation leads, or stand where it began; clients and servers see none of it.

mod first;
mod operations;

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Slot;
use lb_userspace::{
    datapath::bpf::{service_tables, slots_of},
    step::Step,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};

use crate::{
    client::{Load, LoadOptions},
    clock,
    lab::Fate,
    scenario::{LIMIT, SHORT_AT_ONCE, Scene, Way, backends},
};

pub use first::first_start;
pub use operations::{Goal, Operation, Request, all};

/// Backends of both pools; `g3` comes and goes.
const BACKENDS: [&str; 6] = ["b1", "b2", "b3", "g1", "g2", "g3"];
/// Long connections held all the time.
const LONG: usize = 100;
/// Short requests begun each second.
const SHORT: f64 = 200.0;
/// Short requests that must be answered while nobody is there.
const MEANWHILE: u64 = 3;
/// Steps in a row that do the same, beyond which a sample leaves out some of those in between.
const MANY: usize = 8;
/// How often an operation is done again that did not come to a step: some follow from it or not, as its ticks fall.
const TRIES: usize = 3;
/// Time between two looks for the end of an operation.
const SHORT_WHILE: Duration = Duration::from_millis(20);
/// Id of the service `web`, the first that there was.
const WEB: u32 = 1;
/// Time after an operation's answer in which steps that follow from it may still come: two ticks of a busy daemon.
const AFTERMATH: Duration = Duration::from_millis(220);

/// Which steps the daemon is killed at.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Where many in a row do the same, of how many of them one is taken; the first and the last always are.
    pub one_of: usize,
    /// How many at most.
    pub at_most: usize,
}

impl Sample {
    /// All of them.
    pub const ALL: Self = Self {
        one_of: 1,
        at_most: usize::MAX,
    };
}

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Sum {
    /// Name, steps that it has, steps at which the daemon died in it.
    pub operations: Vec<(&'static str, u64, u64)>,
    /// Connections that clients began.
    pub connections: usize,
    /// Answers on them, every byte checked.
    pub exchanges: u64,
    /// Connections and requests that broke.
    pub broken: usize,
    /// New connections where none should go.
    pub misplaced: usize,
    /// Time it took.
    pub took: Duration,
}

impl Sum {
    /// Deaths in all.
    #[must_use]
    pub fn deaths(&self) -> u64 {
        self.operations.iter().map(|(_, _, deaths)| deaths).sum()
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, steps, deaths) in &self.operations {
            writeln!(f, "{name:<12} {steps:>6} steps, killed at {deaths}")?;
        }
        let steps: u64 = self.operations.iter().map(|(_, steps, _)| steps).sum();
        write!(
            f,
            "{} operations, {steps} steps, killed {} times in {:.0} s; {} connections, {} exchanges, every byte checked: broken {}, misplaced {}",
            self.operations.len(),
            self.deaths(),
            self.took.as_secs_f64(),
            self.connections,
            self.exchanges,
            self.broken,
            self.misplaced,
        )
    }
}

/// What must be the same however often the daemon died on the way.
#[derive(Debug, Clone, PartialEq)]
struct End {
    state: Value,
    /// Who takes new flows, slot by slot.
    current: Vec<u32>,
}

/// A walk under way.
pub struct Walk {
    scene: Scene,
    fate: Fate,
    load: Load,
    random: SmallRng,
    sum: Sum,
    /// Who must get no new connection when, ns of `CLOCK_MONOTONIC`; since this load began.
    closed: BTreeMap<&'static str, Vec<Range<u64>>>,
    began: Instant,
}

impl Walk {
    /// Sets the scene; `seed` chooses the steps of samples. `slots` of the service, where not as many as is usual.
    ///
    /// # Errors
    /// The lab, the daemon or the load does not start.
    pub fn new(way: Way, slots: Option<u32>, seed: u64) -> Result<Self> {
        let (scene, fate) = scene(way, slots)?;
        let load = load(&scene)?;
        Ok(Self {
            scene,
            fate,
            load,
            random: SmallRng::seed_from_u64(seed),
            sum: Sum::default(),
            closed: BTreeMap::new(),
            began: Instant::now(),
        })
    }

    /// Walks an operation, at every step of it or at some.
    ///
    /// # Errors
    /// A daemon comes back as it must not, or not at all; naming the step.
    pub fn operation(&mut self, operation: &Operation, sample: Sample) -> Result<()> {
        let (steps, reference) = self.survive(operation)?;
        let listed = steps.len();
        let chosen = choose(&steps, sample, &mut self.random);
        let mut deaths = 0;
        for at in &chosen {
            let what = || {
                let doing = steps.get(at - 1);
                format!(
                    "{}: killed at step {at} of {listed}, {doing:?}",
                    operation.name
                )
            };
            for _ in 0..TRIES {
                if self.die(operation, *at, &reference).with_context(what)? {
                    deaths += 1;
                    break;
                }
            }
        }
        self.walked(operation.name, listed as u64, deaths)
    }

    /// Walks the start of a daemon that has had a predecessor: it loads the program anew, fills the jump table and puts the program
    /// in place of the one that runs.
    ///
    /// # Errors
    /// As of [`Self::operation`].
    pub fn start(&mut self, sample: Sample) -> Result<()> {
        let reference = self.where_it_stands()?;
        self.fate.load_anew(true);
        self.fate.kill9()?;
        self.fate.die_at(0, false);
        self.fate.revive(&self.scene.ebb)?;
        let (_, mut steps) = self.fate.taken();
        for kind in [Step::Program, Step::Jump, Step::Link] {
            ensure!(steps.contains(&kind), "a start without a step {kind:?}");
        }
        // What follows is what the daemon does at other times as well.
        let linked = steps.iter().rposition(|step| *step == Step::Link);
        steps.truncate(linked.map_or(0, |last| last + 1));
        let count = steps.len() as u64;
        let mut deaths = 0;
        for at in choose(&steps, sample, &mut self.random) {
            let what = || {
                format!(
                    "start: killed at step {at} of {count}, {:?}",
                    steps.get(at - 1)
                )
            };
            deaths += self.die_in_start(at, &reference).with_context(what)?;
        }
        self.fate.load_anew(false);
        self.walked("start", count, deaths)
    }

    /// What came of it all.
    #[must_use]
    pub fn end(self) -> Sum {
        self.sum
    }

    /// Everybody leaves, and it is judged what came of this operation; then others come.
    fn walked(&mut self, name: &'static str, steps: u64, deaths: u64) -> Result<()> {
        self.scene.traffic(&self.load, 20)?;
        let next = load(&self.scene)?;
        let report = std::mem::replace(&mut self.load, next).stop(Duration::from_millis(300));
        let sum = &mut self.sum;
        for (backend, windows) in std::mem::take(&mut self.closed) {
            let late = self.scene.begun_on_within(backend, &report, &windows)?;
            sum.misplaced += late.len();
            ensure!(late.is_empty(), "{name}: on {backend}: {:?}", late.first());
        }
        sum.operations.push((name, steps, deaths));
        sum.connections += report.flows.len();
        sum.exchanges += report.frames + report.requests_ok;
        sum.broken += report.broken.len();
        sum.took = self.began.elapsed();
        ensure!(report.is_clean(), "{name}: {}\n{sum}", report.summary());
        eprintln!(
            "{name}: killed at {deaths} of {steps} steps, after {:.0} s in all; {}",
            sum.took.as_secs_f64(),
            report.summary()
        );
        Ok(())
    }

    /// The operation without a death before its end, and a death right after it: its steps and where it leads.
    fn survive(&mut self, operation: &Operation) -> Result<(Vec<Step>, End)> {
        self.prepare(operation)?;
        self.fate.die_at(0, operation.goal == Goal::Answer);
        self.begin(operation)?;
        self.reach(operation)?;
        // What follows from it at the next ticks belongs to it.
        self.load.wait(AFTERMATH, |_| false);
        let (count, steps) = self.fate.taken();
        ensure!(
            count == steps.len() as u64,
            "{}: {count} steps are too many",
            operation.name
        );
        let reference = self.where_it_stands()?;
        self.fate.kill9()?;
        self.fate.revive(&self.scene.ebb)?;
        let after = self.where_it_stands()?;
        ensure!(
            after == reference,
            "{}: killed after it had returned: {after:?} instead of {reference:?}",
            operation.name
        );
        self.undo(operation)?;
        Ok((steps, reference))
    }

    /// The operation with a death at a step; whether it came.
    fn die(&mut self, operation: &Operation, at: usize, reference: &End) -> Result<bool> {
        let terms = self.prepare(operation)?;
        let before = self.where_it_stands()?;
        let from_ms = unix_ms();
        let entries = operation.goal == Goal::Answer;
        self.fate.die_at(u32::try_from(at)?, entries);
        let acknowledged = self.begin(operation).is_ok();
        let died = self.dies_in(operation)?;
        self.fate.die_at(0, true);
        // It may have come to the step just before it was let live.
        if !died && !self.fate.dies(SHORT_WHILE) {
            // It took fewer steps this time: where there is less to write.
            self.undo(operation)?;
            return Ok(false);
        }
        let until_ms = unix_ms();
        self.traffic_goes_on()?;
        self.fate.revive(&self.scene.ebb)?;
        let status = self.scene.ebb.status()?;
        let found = self.where_it_stands()?;
        if (operation.is_done)(&status) {
            operation.check_times(&status, from_ms..until_ms, &terms)?;
        } else {
            ensure!(
                !acknowledged || operation.goal != Goal::Answer,
                "it was acknowledged, and is not done"
            );
            ensure!(
                found == before || operation.goal != Goal::Answer,
                "neither done nor as before: {found:?} instead of {before:?}"
            );
            if operation.goal == Goal::Answer {
                self.begin(operation).context("once more")?;
            }
        }
        self.reach(operation)?;
        let status = self.scene.ebb.status()?;
        operation.check_terms(&status, &terms)?;
        let end = self.where_it_stands()?;
        ensure!(
            end == *reference,
            "it leads to {end:?} instead of {reference:?}"
        );
        let closed_from = clock::now_ns();
        self.undo_from(operation, closed_from)?;
        Ok(true)
    }

    /// A start that loads the program, with a death at a step; whether it came.
    fn die_in_start(&mut self, at: usize, reference: &End) -> Result<u64> {
        self.fate.kill9()?;
        self.fate.die_at(u32::try_from(at)?, false);
        let died = self.fate.ends_again(&self.scene.ebb, AFTERMATH)?;
        self.fate.die_at(0, true);
        if !died && !self.fate.dies(SHORT_WHILE) {
            return Ok(0);
        }
        self.traffic_goes_on()?;
        self.fate.revive(&self.scene.ebb)?;
        let end = self.where_it_stands()?;
        ensure!(
            end == *reference,
            "it leads to {end:?} instead of {reference:?}"
        );
        Ok(1)
    }

    /// Requests are answered, whoever is there.
    fn traffic_goes_on(&self) -> Result<()> {
        let answered = self.load.now().requests_ok + MEANWHILE;
        let goes_on = self.load.wait(LIMIT, |now| now.requests_ok >= answered);
        ensure!(
            goes_on,
            "no traffic while nobody is there: {:?}",
            self.load.broken()
        );
        Ok(())
    }

    /// Whether it dies before the operation is over, with what follows from it.
    fn dies_in(&self, operation: &Operation) -> Result<bool> {
        let deadline = Instant::now() + LIMIT;
        while operation.goal != Goal::Answer && !self.fate.dies(SHORT_WHILE) {
            ensure!(Instant::now() < deadline, "it neither ends nor dies");
            // Nobody answers who dies just now.
            if self
                .scene
                .ebb
                .status()
                .is_ok_and(|status| (operation.is_done)(&status))
            {
                break;
            }
        }
        Ok(self.fate.dies(AFTERMATH))
    }

    fn prepare(&mut self, operation: &Operation) -> Result<Value> {
        self.fate.die_at(0, true);
        if operation.goal == Goal::Settled {
            // What was undone before is a change as well.
            self.reach(operation)?;
        }
        for request in (operation.prepare)(&self.scene) {
            self.ask(&request)?;
        }
        if operation.goal == Goal::Settled {
            self.scene
                .wait_backend("b1", |b1| b1["admin"] == "drained")?;
        }
        let status = self.scene.ebb.status()?;
        Ok(crate::scenario::backend(&status, "b1").context("b1")?["drain"].clone())
    }

    fn begin(&self, operation: &Operation) -> Result<()> {
        match (operation.request)(&self.scene) {
            Some(request) => self.ask(&request),
            None => Ok(()),
        }
    }

    /// Waits until the operation is over.
    fn reach(&self, operation: &Operation) -> Result<()> {
        self.scene
            .ebb
            .wait_status(LIMIT, operation.is_done)
            .map(drop)
    }

    fn undo(&mut self, operation: &Operation) -> Result<()> {
        self.undo_from(operation, clock::now_ns())
    }

    fn undo_from(&mut self, operation: &Operation, closed_from: u64) -> Result<()> {
        if !operation.closed.is_empty() {
            let until = self.scene.moment(&self.load)?;
            for name in operation.closed {
                let windows = self.closed.entry(name).or_default();
                windows.push(closed_from..until);
            }
        }
        for request in (operation.undo)(&self.scene) {
            self.ask(&request).context("undo")?;
        }
        Ok(())
    }

    fn ask(&self, request: &Request) -> Result<()> {
        if let Some(text) = &request.file {
            std::fs::write(self.scene.ebb.config(), text)?;
        }
        let (status, said) = self
            .scene
            .ebb
            .reach()
            .post(request.path, &request.body.to_string())?;
        ensure!(status == 200, "{} {}: {said}", request.path, request.body);
        Ok(())
    }

    fn where_it_stands(&self) -> Result<End> {
        where_it_stands(&self.scene)
    }
}

/// Clients with long connections and short requests, which all have been answered.
fn load(scene: &Scene) -> Result<Load> {
    let options = LoadOptions {
        long: LONG,
        ramp: Duration::from_millis(300),
        echo_every: Duration::from_millis(100),
        echo_bytes: (16, 500),
        short_per_second: SHORT,
        short_concurrency: SHORT_AT_ONCE,
        short_bytes: (1, 2000),
        ..LoadOptions::new(scene.target())
    };
    let load = Load::start(scene.lab.netns("client"), options)?;
    ensure!(
        load.wait_long(LONG, LIMIT) && load.wait(LIMIT, |now| now.requests_ok > 10),
        "the load does not start: {:?}",
        load.broken()
    );
    Ok(load)
}

/// The scene of all walks: a daemon whose lives are decided over.
fn scene(way: Way, slots: Option<u32>) -> Result<(Scene, Fate)> {
    Scene::mortal(way, &BACKENDS, |service| {
        service.default_health = true;
        service.more = "health = \"none\"\nidle_timeout = \"2s\"\n\
            drain = { timeout = \"60s\", on_deadline = \"leave\" }"
            .into();
        if let Some(slots) = slots {
            service.more += &format!("\nslots = {slots}");
        }
        for (_, members) in &mut service.pools {
            members.retain(|name| name != "g3");
        }
    })
}

fn where_it_stands(scene: &Scene) -> Result<End> {
    let status = scene.ebb.status()?;
    Ok(End {
        state: state(&status),
        current: current(scene)?,
    })
}

/// Reads the table that packets see, of `web`.
fn current(scene: &Scene) -> Result<Vec<u32>> {
    let pins = scene.lab.pins().join("ebb");
    let table = service_tables(&pins)?[WEB as usize];
    let slots = slots_of(&pins, table)?;
    Ok(slots.into_iter().map(Slot::current).collect())
}

/// What a status says that must not depend on deaths.
fn state(status: &Value) -> Value {
    let services = status["services"].as_array().into_iter().flatten();
    let services: Vec<_> = services
        .map(|service| {
            let pools = service["pools"].as_array().into_iter().flatten();
            let pools: Vec<_> = pools
                .map(|pool| json!([pool["name"], pool["active"]]))
                .collect();
            json!([service["name"], pools])
        })
        .collect();
    let backends: Vec<_> = backends(status)
        .into_iter()
        .map(|backend| {
            json!([
                backend["name"],
                backend["address"],
                backend["admin"],
                backend["weight"],
                backend["accepting"],
                backend["drain"]["state"],
                backend["drain"]["on_deadline"],
            ])
        })
        .collect();
    json!([services, backends])
}

/// The steps of a sample, from 1.
fn choose(steps: &[Step], sample: Sample, random: &mut SmallRng) -> Vec<usize> {
    let rows = steps.chunk_by(|a, b| a == b);
    let mut chosen = Vec::new();
    let mut first = 1;
    for row in rows {
        let last = first + row.len() - 1;
        if row.len() <= MANY {
            chosen.extend(first..=last);
        } else {
            let between = sample.one_of.clamp(1, row.len() - 2);
            let offset = random.random_range(0..between);
            chosen.push(first);
            chosen.extend((first + 1 + offset..last).step_by(between));
            chosen.push(last);
        }
        first = last + 1;
    }
    while chosen.len() > sample.at_most {
        let out = random.random_range(0..chosen.len());
        chosen.remove(out);
    }
    chosen
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_ends_of_every_row() {
        let mut steps = vec![Step::JournalWrite, Step::JournalSync];
        steps.extend([Step::HiddenSlot; 100]);
        steps.push(Step::Publish);
        let mut random = SmallRng::seed_from_u64(7);
        let mut taken = |one_of, at_most| choose(&steps, Sample { one_of, at_most }, &mut random);
        let chosen = taken(usize::MAX, 100);
        assert_eq!(chosen.len(), 6, "{chosen:?}");
        for at in [1, 2, 3, 102, 103] {
            assert!(chosen.contains(&at), "{chosen:?}");
        }
        assert_eq!(taken(usize::MAX, 3).len(), 3);
        assert_eq!(taken(1, 200), (1..=103).collect::<Vec<_>>());
    }
}

//! `cargo xtask fuzz`: sound and broken packets through the loaded program, each judged by an oracle.
//!
//! An input begins as a sound frame of some [`shapes::Shape`], half of them are mutated ([`edits`]). The oracle reads
//! frames with its own parser ([`view`]) and sums checksums its own way ([`sums`]); [`oracle`] has the rules. A case
//! of a few inputs follows from the seed and its number alone, and runs over emptied tables, so it can be had again;
//! one that fails is made smaller ([`shrink`]).

pub mod case;
mod counters;
pub mod edits;
pub mod frame;
mod given;
mod numbered;
pub mod oracle;
mod quote;
pub mod report;
mod runner;
pub mod shapes;
mod shown;
mod shrink;
pub mod sums;
pub mod view;
pub mod world;

use std::{
    borrow::Cow,
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use lb_userspace::datapath::object;

use case::{CASE_INPUTS, Case};
use report::{Failure, Reached, Report, hex};
use runner::{Runner, Watch};

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Inputs at least; a case is run to its end.
    pub inputs: u64,
    /// The run's seed.
    pub seed: u64,
    /// Threads, each with a program and tables of its own.
    pub threads: usize,
    /// Another object file than the one that is built in.
    pub object: Option<PathBuf>,
    /// Through the tracing program, whose records are judged as well.
    pub tracing: bool,
}

impl Settings {
    fn object(&self) -> Result<Cow<'static, [u8]>> {
        ensure!(
            !self.tracing || self.object.is_none(),
            "the tracing program is that of the object that is built in"
        );
        let Some(path) = &self.object else {
            return Ok(Cow::Borrowed(object::XDP));
        };
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Cow::Owned(bytes))
    }
}

/// What the threads share.
struct Shared<'a> {
    settings: &'a Settings,
    object: &'a [u8],
    next: AtomicU64,
    stop: AtomicBool,
}

/// Fuzzes. Root is needed. Every thread moves into a network namespace of its own.
///
/// # Errors
/// Root is missing, or the kernel refuses something. A broken rule is not an error, but in the report.
pub fn run(settings: &Settings) -> Result<Report> {
    let shared = Shared {
        settings,
        object: &settings.object()?,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let start = Instant::now();
    let results: Vec<Result<(Reached, Option<Failure>)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.threads.max(1))
            .map(|_| scope.spawn(|| work(&shared)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a fuzzing thread panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let took = start.elapsed();
    let mut reached = Reached::default();
    let mut failures = Vec::new();
    for result in results {
        let (part, failure) = result?;
        reached.add(&part);
        failures.extend(failure);
    }
    let first = failures.into_iter().min_by_key(|failure| failure.case);
    Ok(Report::new(
        settings.seed,
        settings.threads,
        took,
        &reached,
        first,
    ))
}

fn work(shared: &Shared<'_>) -> Result<(Reached, Option<Failure>)> {
    let &Settings { inputs, seed, .. } = shared.settings;
    let mut runner = Runner::new(shared.object, shared.settings.tracing)
        .inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))?;
    let mut reached = Reached::default();
    let cases = inputs.div_ceil(CASE_INPUTS as u64);
    while !shared.stop.load(Ordering::Relaxed) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= cases {
            break;
        }
        let case = Case::new(&runner.world, seed, number);
        let note = |at: usize, outcome, _| reached.note(&case.inputs[at], outcome);
        if let Some(failed) = runner.run(&case, Watch::Quick, note)? {
            shared.stop.store(true, Ordering::Relaxed);
            let failure = match shrink::shrink(&mut runner, &case)? {
                Some((smaller, failed)) => Failure::new(seed, number, &smaller.inputs, &failed),
                None => Failure::new(seed, number, &case.inputs[..=failed.at], &failed),
            };
            return Ok((reached, Some(failure)));
        }
    }
    Ok((reached, None))
}

/// Runs one case again and tells its story: every input, its bytes and what became of them. Whether it was clean.
///
/// # Errors
/// As [`run`].
pub fn replay(settings: &Settings, number: u64) -> Result<(String, bool)> {
    let seed = settings.seed;
    let mut runner = Runner::new(&settings.object()?, settings.tracing)?;
    let case = Case::new(&runner.world, seed, number);
    let mut lines = Vec::new();
    let failed = runner.run(&case, Watch::Close, |at, outcome, verdict| {
        lines.push(format!(
            "{at:2} {} -> {verdict:?} {}",
            case.inputs[at],
            outcome.name()
        ));
    })?;
    let mut story = String::new();
    for (line, input) in lines.iter().zip(&case.inputs) {
        writeln!(story, "{line}\n     {}", hex(&input.bytes())).context("a string")?;
    }
    let Some(failed) = failed else {
        story.push_str("no rule was broken");
        return Ok((story, true));
    };
    writeln!(
        story,
        "out  {}\nbroken: {}",
        hex(&failed.seen.output),
        failed.broken
    )
    .context("a string")?;
    if let Some((smaller, failed)) = shrink::shrink(&mut runner, &case)? {
        let failure = Failure::new(seed, number, &smaller.inputs, &failed);
        writeln!(story, "smaller:").context("a string")?;
        for input in &failure.inputs {
            writeln!(story, "  sent  {input}").context("a string")?;
        }
        write!(
            story,
            "  in    {}\n  out   {}\n  {}\n  {}",
            failure.input, failure.output, failure.verdict, failure.broken
        )
        .context("a string")?;
    }
    Ok((story, false))
}

//! `cargo xtask bench`: what a packet costs in the loaded program.
//!
//! Method: a driver program writes the next flow's frame and tail-calls the measured program, as often as
//! BPF_PROG_TEST_RUN repeats it. A row is the thread's CPU time a packet, minus that of the same driver with a
//! program that only returns XDP_TX, measured right beside it. All rows are measured in every round, in another
//! order each time; a ratio is taken within its round, and the median of the rounds is what is reported. Every row is
//! proven: the bytes of frames on their own, and in the measured run the verdict and the counters of every packet.

mod cases;
mod driver;
mod floors;
mod flows;
mod frames;
mod live;
mod memory;
pub mod report;
mod rows;
mod services;
#[path = "../../../lb-ebpf/src/bench/shared.rs"]
pub mod shared;
mod tables;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

use driver::Driver;
use report::Report;
use rows::{Measured, Row};
use services::Node;

/// The floor that ratios are taken against.
pub const REFERENCE: &str = "hash + array + MAC rewrite";

/// The floor of what leaves in a tunnel.
pub const TUNNEL_REFERENCE: &str = "hash + array + 20-byte tunnel header";

/// The floor of what needs a flow's entry.
pub const LINE_REFERENCE: &str = "4-way cache line of a 1M table + MAC rewrite";

const REFERENCES: [&str; 3] = [REFERENCE, TUNNEL_REFERENCE, LINE_REFERENCE];

/// Address family of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        }
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Rounds; each measures every row once.
    pub rounds: usize,
    /// Numbers of flows, each at most 2^20.
    pub flows: Vec<u32>,
    /// Address families.
    pub families: Vec<Family>,
    /// Only rows whose name contains one of these (and the reference floors); empty: all.
    pub only: Vec<String>,
    /// CPU to run on; else the last one allowed.
    pub cpu: Option<usize>,
    /// Another object file than the one that is built in.
    pub object: Option<PathBuf>,
    /// Whether to send live frames over veth as well.
    pub live: bool,
    /// Say on stderr what is going on.
    pub progress: bool,
}

impl Settings {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Measures. Moves this thread into a network namespace of its own and onto one CPU. Root is needed.
pub fn run(settings: &Settings) -> Result<Report> {
    ensure!(settings.rounds > 0, "no rounds to measure");
    ensure!(
        settings
            .flows
            .iter()
            .all(|flows| (1..=shared::LARGE).contains(flows)),
        "a number of flows must be in 1..={}",
        shared::LARGE
    );
    let cpu = pin(settings.cpu)?;
    let mut node = Node::new(settings.object.as_deref())?;
    let mut driver = Driver::new()?;
    let rows = all_rows(settings, &node, &mut driver)?;
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); rows.len()];
    let mut order: Vec<usize> = (0..rows.len()).collect();
    // The order of rows is no secret; a fixed seed makes two runs alike.
    let mut random = SmallRng::seed_from_u64(1);
    for round in 0..settings.rounds {
        order.shuffle(&mut random);
        for (done, &number) in order.iter().enumerate() {
            let row = &rows[number];
            if settings.progress {
                eprint!(
                    "\r\x1b[Kround {}/{}  row {}/{}  {}",
                    round + 1,
                    settings.rounds,
                    done + 1,
                    rows.len(),
                    row.label()
                );
            }
            let result = rows::measure(row, &mut node, &mut driver, round == 0)
                .with_context(|| row.label())?;
            measured[number].push(result);
        }
    }
    if settings.progress {
        eprintln!("\r\x1b[K");
    }
    let live = if settings.live {
        live::run(settings, &mut node, &mut driver)?
    } else {
        Vec::new()
    };
    let table = tables::measure(&mut node, settings.rounds)?;
    report::build(settings.rounds, cpu, &node, &rows, &measured, live, table)
}

fn all_rows(settings: &Settings, node: &Node, driver: &mut Driver) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &flows in &settings.flows {
        for &family in &settings.families {
            rows.extend(floors::rows(family, flows));
            rows.extend(cases::rows(node, family, flows)?);
        }
    }
    rows.retain(|row| {
        settings.wants(&row.label())
            || matches!(&row.what, rows::What::Floor(name) if REFERENCES.contains(name))
    });
    floors::prepare(driver, &rows)?;
    Ok(rows)
}

/// Moves this thread to one CPU and returns its number.
fn pin(wanted: Option<usize>) -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("reading the CPU affinity")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = wanted.or(last).context("no CPU is allowed")?;
    let mut set = CpuSet::new();
    set.set(cpu).context("no such CPU")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))?;
    Ok(cpu)
}

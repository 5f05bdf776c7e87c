//! One row: what is measured, how it is proven, and the measurement.

use anyhow::{Result, anyhow, ensure};
use lb_common::outcome::Outcome;

use super::{
    Family,
    driver::{Driver, Run},
    frames::Frames,
    services::{Node, difference},
    shared::{self, Config},
};
use crate::{outer::Outer, packets::Segment, rig::Verdict};

/// Which program a row is about.
#[derive(Debug, Clone)]
pub enum What {
    /// A floor, by its name in the report.
    Floor(&'static str),
    /// ebb.
    Case {
        /// What kind of packet.
        kind: &'static str,
        /// Forwarding mode.
        mode: &'static str,
        /// Setting of the service.
        tracking: &'static str,
        /// Outcome that every packet must have.
        outcome: Outcome,
    },
}

/// What the tables hold before the measured run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// Does not matter.
    Any,
    /// An entry for each flow, made by the first packet of each.
    Filled,
    /// Nothing; every measured packet makes an entry.
    Empty,
}

/// How a frame must look afterwards: flow, the frame as it was.
pub type Expect = Box<dyn Fn(&Node, u32, Segment) -> Result<Segment>>;

/// A row.
pub struct Row {
    /// What it is about.
    pub what: What,
    /// Program of the bench's object; ebb when `None`.
    pub program: Option<&'static str>,
    /// Its frames.
    pub frames: Frames,
    /// Index of its service, if it has one.
    pub service: Option<usize>,
    /// Number of flows.
    pub flows: u32,
    /// What the tables hold.
    pub tables: Tables,
    /// Frames that make the entries, where it is not the row's own.
    pub fill: Option<Frames>,
    /// Whether the packet leaves in a tunnel: `expect` is about the packet inside, with the outer frame's addresses.
    pub is_tunnelled: bool,
    /// Verdict that every packet must have.
    pub verdict: Verdict,
    /// How the frame must look.
    pub expect: Expect,
}

/// Nanoseconds a packet in one round.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// The driver with a program that only returns.
    pub driver_ns: f64,
    /// The row, without the driver.
    pub net_ns: f64,
}

/// Packets before a measurement begins, so that caches and predictors know the program.
const WARM_UP: u32 = 4096;

impl Row {
    /// Family.
    pub fn family(&self) -> Family {
        self.frames.family()
    }

    /// For people.
    pub fn label(&self) -> String {
        let (family, flows) = (self.family().name(), flows_name(self.flows));
        match &self.what {
            What::Floor(name) => format!("floor {name} {family} {flows}"),
            What::Case {
                kind,
                mode,
                tracking,
                ..
            } => format!("{kind} {mode} {family} tracking={tracking} {flows}"),
        }
    }

    /// For the driver.
    fn config(&self) -> Config {
        Config {
            head: u32::from(self.is_tunnelled),
            ..self.frames.config(self.flows, 0)
        }
    }

    /// Packets of the measured run: each flow at least once, and enough for the clock.
    fn repeat(&self) -> u32 {
        match self.tables {
            Tables::Empty => self.flows - WARM_UP,
            _ => self.flows.max(1 << 18),
        }
    }
}

/// A number of flows as people say it.
pub fn flows_name(flows: u32) -> String {
    match flows {
        shared::LARGE => "1M".into(),
        65_536 => "64k".into(),
        other => other.to_string(),
    }
}

/// Measures a row once. With `prove` also frame by frame.
pub fn measure(row: &Row, node: &mut Node, driver: &mut Driver, prove: bool) -> Result<Measured> {
    let order = node.order(row.service, row.flows)?;
    driver.set_up(row.config(), &order)?;
    let driver_ns = driver_alone(row, driver)?;

    select(row, node, driver)?;
    driver.rewind(0);
    if row.tables != Tables::Any {
        node.clear()?;
    }
    match row.tables {
        // The proof comes first where it is the first packets that matter; it is part of the warm-up.
        Tables::Empty => {
            let proven = if prove { proof(row, node, driver)? } else { 0 };
            driver.run(WARM_UP - proven)?;
        }
        Tables::Filled => {
            if let Some(frames) = &row.fill {
                driver.set_up(frames.config(row.flows, 0), &order)?;
                driver.run(row.flows)?;
                driver.set_up(row.config(), &order)?;
            }
            // The first packet of a flow makes its entry, the second one finds it.
            driver.run(2 * row.flows.max(WARM_UP))?;
        }
        Tables::Any => {
            driver.run(row.flows.clamp(WARM_UP, 1 << 17))?;
        }
    }
    if prove && row.tables != Tables::Empty {
        proof(row, node, driver)?;
    }
    let before = node.outcomes(row.service)?;
    let repeat = row.repeat();
    let run = driver.run(repeat)?;
    let after = node.outcomes(row.service)?;
    check(row, node, &run)?;
    ensure!(driver.misses() == 0, "{} packets missed", driver.misses());
    if let What::Case { outcome, .. } = row.what {
        let counted = difference(&before, &after);
        ensure!(
            counted == [(outcome, u64::from(repeat))],
            "{repeat} packets were counted as {counted:?}, not all as {outcome:?}"
        );
    }
    let gross = run.cpu.as_nanos() as f64 / f64::from(repeat);
    Ok(Measured {
        driver_ns,
        net_ns: gross - driver_ns,
    })
}

/// What the driver costs with a program that does nothing. Where that of the row makes room in front, the driver gives
/// the room back, by a second call of the same helper: half of what a program that does only this costs more.
fn driver_alone(row: &Row, driver: &mut Driver) -> Result<f64> {
    let repeat = row.repeat().min(1 << 19);
    let mut alone = |program| {
        driver.select_own(program)?;
        driver.run(row.flows.clamp(WARM_UP, 1 << 16))?;
        let run = driver.run(repeat)?;
        anyhow::Ok(run.cpu.as_nanos() as f64 / f64::from(repeat))
    };
    let nothing = alone("floor_tx")?;
    Ok(if row.is_tunnelled {
        (nothing + alone("floor_grow")?) / 2.0
    } else {
        nothing
    })
}

fn select(row: &Row, node: &Node, driver: &mut Driver) -> Result<()> {
    match row.program {
        Some(name) => driver.select_own(name),
        None => driver.select(&node.program()?.fd()?.try_clone()?),
    }
}

/// Frames one by one: verdict and bytes of each. Returns how many.
fn proof(row: &Row, node: &Node, driver: &mut Driver) -> Result<u32> {
    let frames = 8;
    for _ in 0..frames {
        let run = driver.run(1)?;
        check(row, node, &run)?;
    }
    Ok(frames)
}

/// Compares a run's last frame with what it must be.
fn check(row: &Row, node: &Node, run: &Run) -> Result<()> {
    ensure!(
        run.verdict == row.verdict,
        "verdict {:?}, not {:?}",
        run.verdict,
        row.verdict
    );
    let number = match row.service {
        Some(service) => node.flow_at(service, row.flows, run.position),
        None => node.plain_at(row.flows, run.position),
    }?;
    let wanted = (row.expect)(node, number, row.frames.segment(number, run.made))?;
    let inside = if row.is_tunnelled {
        let outer =
            Outer::parse(&run.frame).map_err(|error| anyhow!("the outer frame: {error}"))?;
        Some(outer.inner_frame())
    } else {
        None
    };
    let frame = inside.as_ref().unwrap_or(&run.frame);
    let found = Segment::parse(frame).map_err(|error| anyhow!("the frame sent: {error}"))?;
    ensure!(
        found == wanted,
        "the frame of flow {number} is {found:?}, not {wanted:?}"
    );
    Ok(())
}

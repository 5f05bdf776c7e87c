//! What was measured, for people and for programs.

use std::fmt;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use lb_common::outcome::Outcome;
use serde::Serialize;

use super::{
    Family, LINE_REFERENCE, REFERENCE, TUNNEL_REFERENCE,
    rows::{Measured, Row, What, flows_name},
    services::Node,
    tables::TableCost,
};

/// All of it. Times in nanoseconds a packet; `net` is without the driver.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Kernel release.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// Number of the CPU that was used.
    pub cpu_number: usize,
    /// Rounds, over which medians are taken.
    pub rounds: usize,
    /// What the kernel made of the program.
    pub verifier: Verifier,
    /// The driver alone.
    pub driver: Vec<DriverCost>,
    /// Floors.
    pub floors: Vec<Floor>,
    /// ebb.
    pub cases: Vec<Case>,
    /// Live frames.
    pub live: Vec<Live>,
    /// A large service's table.
    pub table: TableCost,
}

/// What the kernel made of the program.
#[derive(Debug, Clone, Serialize)]
pub struct Verifier {
    /// Instructions that the verifier went through.
    pub instructions: u32,
    /// Size of the machine code.
    pub jited_bytes: u32,
}

/// Cost of the driver.
#[derive(Debug, Clone, Serialize)]
pub struct DriverCost {
    /// `v4` or `v6`.
    pub family: &'static str,
    /// Number of flows.
    pub flows: u32,
    /// Median.
    pub ns: f64,
}

/// A floor.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// What it does.
    pub name: &'static str,
    /// `v4` or `v6`.
    pub family: &'static str,
    /// Number of flows.
    pub flows: u32,
    /// Median.
    pub net_ns: f64,
    /// First and third quartile.
    pub quartiles_ns: [f64; 2],
}

/// A kind of packet in ebb.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// Kind of packet.
    pub kind: &'static str,
    /// `l2`, `nat`, `ipip`, `gue` or `none`.
    pub mode: &'static str,
    /// `v4` or `v6`.
    pub family: &'static str,
    /// `tcp`.
    pub proto: &'static str,
    /// `moved` or `full`.
    pub tracking: &'static str,
    /// Number of flows.
    pub flows: u32,
    /// Median.
    pub net_ns: f64,
    /// First and third quartile.
    pub quartiles_ns: [f64; 2],
    /// Median of what it was in each round, times that round's floor.
    pub ratio: f64,
    /// Which floor.
    pub floor: &'static str,
    /// Outcome that every measured packet was counted as.
    pub outcome: &'static str,
}

/// Live frames through a veth pair.
#[derive(Debug, Clone, Serialize)]
pub struct Live {
    /// Which program.
    pub program: &'static str,
    /// Number of flows.
    pub flows: u32,
    /// Million packets a second that arrived at the far end, the generator included; median.
    pub mpps: f64,
    /// Median of its share of the bare XDP_TX program's rate in the same round.
    pub ratio: f64,
    /// Share of the frames sent that did not arrive.
    pub lost: f64,
}

/// Median; the mean of the two in the middle of an even number.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A quantile, interpolated; NaN of nothing.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Two digits after the point are all that is there.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn net(measured: &[Measured]) -> Vec<f64> {
    measured.iter().map(|round| round.net_ns).collect()
}

fn quartiles(values: &[f64]) -> [f64; 2] {
    [0.25, 0.75].map(|share| rounded(quantile(values, share)))
}

/// Sums up.
pub fn build(
    rounds: usize,
    cpu_number: usize,
    node: &Node,
    rows: &[Row],
    measured: &[Vec<Measured>],
    live: Vec<Live>,
    table: TableCost,
) -> Result<Report> {
    let info = node.program()?.info()?;
    let mut report = Report {
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        cpu: cpu_model(),
        cpu_number,
        rounds,
        verifier: Verifier {
            instructions: info.verified_instruction_count().unwrap_or(0),
            jited_bytes: info.size_jitted(),
        },
        driver: driver_costs(rows, measured),
        floors: Vec::new(),
        cases: Vec::new(),
        live,
        table,
    };
    for (row, rounds) in rows.iter().zip(measured) {
        let values = net(rounds);
        let (family, flows) = (row.family().name(), row.flows);
        let (net_ns, quartiles_ns) = (rounded(median(&values)), quartiles(&values));
        match row.what {
            What::Floor(name) => report.floors.push(Floor {
                name,
                family,
                flows,
                net_ns,
                quartiles_ns,
            }),
            What::Case {
                kind,
                mode,
                tracking,
                outcome,
            } => report.cases.push(Case {
                kind,
                mode,
                family,
                proto: "tcp",
                tracking,
                flows,
                net_ns,
                quartiles_ns,
                ratio: ratio(row, &values, rows, measured),
                floor: floor_of(row),
                outcome: outcome.name(),
            }),
        }
    }
    Ok(report)
}

/// The floor that a row is compared with.
fn floor_of(row: &Row) -> &'static str {
    match row.what {
        _ if row.is_tunnelled => TUNNEL_REFERENCE,
        What::Case {
            outcome: Outcome::ForwardFlow,
            ..
        } => LINE_REFERENCE,
        _ => REFERENCE,
    }
}

fn ratio(row: &Row, values: &[f64], rows: &[Row], measured: &[Vec<Measured>]) -> f64 {
    let reference = rows.iter().zip(measured).find(|(other, _)| {
        matches!(other.what, What::Floor(name) if name == floor_of(row))
            && other.flows == row.flows
            && other.family() == row.family()
    });
    let Some((_, reference)) = reference else {
        return f64::NAN;
    };
    let ratios: Vec<f64> = values
        .iter()
        .zip(net(reference))
        .map(|(value, floor)| value / floor)
        .collect();
    rounded(median(&ratios))
}

fn driver_costs(rows: &[Row], measured: &[Vec<Measured>]) -> Vec<DriverCost> {
    let mut kinds: Vec<(Family, u32)> = Vec::new();
    for row in rows {
        if !kinds.contains(&(row.family(), row.flows)) {
            kinds.push((row.family(), row.flows));
        }
    }
    kinds
        .into_iter()
        .map(|(family, flows)| {
            let values: Vec<f64> = rows
                .iter()
                .zip(measured)
                .filter(|(row, _)| row.family() == family && row.flows == flows)
                .flat_map(|(_, rounds)| rounds.iter().map(|round| round.driver_ns))
                .collect();
            DriverCost {
                family: family.name(),
                flows,
                ns: rounded(median(&values)),
            }
        })
        .collect()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{}, kernel {}, CPU {}; {} rounds; net nanoseconds a packet (median)",
            self.cpu, self.kernel, self.cpu_number, self.rounds
        )?;
        writeln!(
            out,
            "program: {} instructions verified, {} bytes of machine code",
            self.verifier.instructions, self.verifier.jited_bytes
        )?;
        let flows = self.flows();
        writeln!(out, "\n{}", self.floor_table(&flows))?;
        if !self.cases.is_empty() {
            writeln!(
                out,
                "\n{}\n(x: times the floor \"{REFERENCE}\" with as many flows; tunnels: \"{TUNNEL_REFERENCE}\"; \
                 flows with an entry: \"{LINE_REFERENCE}\")",
                self.case_table(&flows)
            )?;
        }
        if !self.live.is_empty() {
            writeln!(out, "\n{}", self.live_table())?;
        }
        writeln!(out, "\n{}", self.table)
    }
}

impl Report {
    fn flows(&self) -> Vec<u32> {
        let mut flows: Vec<u32> = self.driver.iter().map(|cost| cost.flows).collect();
        flows.sort_unstable();
        flows.dedup();
        flows
    }

    fn floor_table(&self, flows: &[u32]) -> Table {
        let mut table = table(["floor", "family"], flows);
        let mut seen = Vec::new();
        for floor in &self.floors {
            if seen.contains(&(floor.name, floor.family)) {
                continue;
            }
            seen.push((floor.name, floor.family));
            let cells = flows.iter().map(|flows| {
                self.floors
                    .iter()
                    .find(|other| {
                        (other.name, other.family, other.flows)
                            == (floor.name, floor.family, *flows)
                    })
                    .map_or_else(String::new, |floor| format!("{:.1}", floor.net_ns))
            });
            table.add_row(
                [floor.name.to_string(), floor.family.to_string()]
                    .into_iter()
                    .chain(cells),
            );
        }
        align(table, 2)
    }

    fn case_table(&self, flows: &[u32]) -> Table {
        let mut table = table(["ebb", "mode", "family", "tracking"], flows);
        let key = |case: &Case| (case.kind, case.mode, case.family, case.tracking);
        let mut seen = Vec::new();
        for case in &self.cases {
            if seen.contains(&key(case)) {
                continue;
            }
            seen.push(key(case));
            let cells = flows.iter().map(|flows| {
                self.cases
                    .iter()
                    .find(|other| key(other) == key(case) && other.flows == *flows)
                    .map_or_else(String::new, |case| {
                        format!("{:.1} ({:.1}x)", case.net_ns, case.ratio)
                    })
            });
            table.add_row(
                [case.kind, case.mode, case.family, case.tracking]
                    .map(String::from)
                    .into_iter()
                    .chain(cells),
            );
        }
        align(table, 4)
    }

    fn live_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "live frames over veth",
            "flows",
            "Mpps",
            "share",
            "lost",
        ]);
        for live in &self.live {
            table.add_row([
                live.program.to_string(),
                flows_name(live.flows),
                format!("{:.2}", live.mpps),
                format!("{:.2}", live.ratio),
                format!("{:.2} %", live.lost * 100.0),
            ]);
        }
        align(table, 1)
    }
}

fn table<const N: usize>(left: [&str; N], flows: &[u32]) -> Table {
    let mut table = Table::new();
    let header = flows.iter().map(|flows| {
        let unit = if *flows == 1 { "flow" } else { "flows" };
        format!("{} {unit}", flows_name(*flows))
    });
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_header(left.map(String::from).into_iter().chain(header));
    table
}

fn align(mut table: Table, from: usize) -> Table {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quartiles(&[1.0, 2.0, 3.0, 4.0, 5.0]), [2.0, 4.0]);
        assert!(median(&[]).is_nan());
    }
}

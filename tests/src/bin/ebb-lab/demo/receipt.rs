//! What the demo hands out at its end.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use ebb_tests::client::Report;
use serde::Serialize;
use serde_json::{Value, json};

use super::status::{Status, drain_line};

/// One step of the demo.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// The command it shows, if any.
    pub command: Option<String>,
    /// Its duration.
    pub seconds: f64,
    /// Connections begun after the command took effect and accepted by a backend that should get no new ones, as
    /// the backends themselves recorded it.
    pub new_on_closed: usize,
    /// Connections begun in the same time that other backends answered.
    pub new_elsewhere: usize,
    /// Long connections by backend at its end.
    pub long_after: BTreeMap<Arc<str>, usize>,
}

/// The receipt.
pub struct Receipt {
    /// The client's account.
    pub report: Report,
    /// Wrong bytes that servers saw.
    pub corrupt: u64,
    /// What happened.
    pub steps: Vec<Step>,
    /// Receipts of the drains, as `ebb` gave them.
    pub drains: Vec<Value>,
    /// `ebb status --json` at the end.
    pub status: Status,
    /// Why the demo did not come to its end, if so.
    pub failure: Option<String>,
    /// Duration of it all.
    pub seconds: f64,
}

impl Receipt {
    /// Nothing broke, nobody was sent where nobody should go, and the packets did go through the program.
    pub fn is_clean(&self) -> bool {
        self.complaints().is_empty()
    }

    /// What is wrong, a line each.
    fn complaints(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.failure.iter().cloned().collect();
        let broken = &self.report.broken;
        lines.extend(broken.iter().take(20).map(ToString::to_string));
        if broken.len() > 20 {
            lines.push(format!("and {} more", broken.len() - 20));
        }
        if self.report.opened != self.report.finished + self.report.broken_long().count() as u64 {
            lines.push(format!("the account is wrong: {}", self.report.summary()));
        }
        if self.corrupt > 0 {
            lines.push(format!("{} wrong frames at the servers", self.corrupt));
        }
        for step in &self.steps {
            if step.new_on_closed > 0 {
                lines.push(format!(
                    "{}: {} new connections on a backend out of use",
                    step.name, step.new_on_closed
                ));
            }
            let moves = ["drain", "switch", "rollback"].contains(&step.name.as_str());
            if moves && step.new_elsewhere == 0 {
                lines.push(format!("{}: no new connections at all", step.name));
            }
        }
        match self.status.xdp_packets() {
            None => lines.push("ebb status names no packets in XDP".to_owned()),
            Some(0) => lines.push("not one packet went through the XDP program".to_owned()),
            Some(_) => {}
        }
        lines
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "connections": {
                "opened": self.report.opened,
                "finished": self.report.finished,
                "broken": self.report.broken_long().count(),
                "frames": self.report.frames,
            },
            "requests": { "ok": self.report.requests_ok, "failed": self.report.requests_failed },
            "drains": self.drains,
            "xdp": { "mode": self.status.xdp_mode(), "packets": self.status.xdp_packets() },
            "steps": self.steps,
            "complaints": self.complaints(),
            "seconds": self.seconds,
        })
    }

    /// For people.
    pub fn text(&self, colored: bool) -> String {
        let Report {
            opened,
            finished,
            frames,
            requests_ok,
            requests_failed,
            ..
        } = &self.report;
        let broken = self.report.broken_long().count();
        let mut text = String::from("\nreceipt\n");
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<12} {value}");
        };
        line(
            "connections",
            format!(
                "{opened} opened, {finished} finished, {broken} broken ({frames} exchanges on them, every byte checked)"
            ),
        );
        line(
            "requests",
            format!("{requests_ok} ok, {requests_failed} failed (a connection each)"),
        );
        for receipt in &self.drains {
            line("drain", drain_line(receipt));
        }
        for step in self
            .steps
            .iter()
            .filter(|step| step.new_elsewhere + step.new_on_closed > 0)
        {
            line(
                &step.name,
                format!(
                    "{} new connections, {} of them where none should go",
                    step.new_elsewhere + step.new_on_closed,
                    step.new_on_closed
                ),
            );
        }
        line(
            "xdp",
            format!(
                "{}, {} packets",
                self.status.xdp_mode().unwrap_or("?"),
                self.status
                    .xdp_packets()
                    .map_or_else(|| "?".to_owned(), |n| n.to_string())
            ),
        );
        line("time", format!("{:.1} s", self.seconds));
        let complaints = self.complaints();
        let (color, verdict) = match complaints.is_empty() {
            true => (32, "nothing broke"),
            false => (31, "NOT clean"),
        };
        let _ = match colored {
            true => writeln!(text, "\n\x1b[1;{color}m{verdict}\x1b[0m"),
            false => writeln!(text, "\n{verdict}"),
        };
        for complaint in complaints {
            let _ = writeln!(text, "  {complaint}");
        }
        text
    }
}

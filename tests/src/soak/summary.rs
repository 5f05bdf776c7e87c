//! What a soak ends with.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use crate::client::Reason;

/// Connections that a drain's deadline has cut.
#[derive(Debug, Clone, Serialize)]
pub struct Cut {
    /// Number of the drain.
    pub drain: u64,
    /// `SERVICE/BACKEND`.
    pub backend: String,
    /// As clients counted them.
    pub connections: u64,
    /// The drain's receipt.
    pub receipt: Option<Value>,
}

/// The end of a soak.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its seed.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Connections begun, long and short.
    pub connections: u64,
    /// The long ones of them.
    pub long_connections: u64,
    /// Long connections that their clients closed in good order.
    pub finished: u64,
    /// Short requests answered.
    pub requests: u64,
    /// Exchanges on long connections, every byte checked.
    pub exchanges: u64,
    /// Operations that were done, by kind.
    pub operations: BTreeMap<&'static str, u64>,
    /// Operations that were refused, by kind.
    pub refused: BTreeMap<&'static str, u64>,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Drains that were seen.
    pub drains: u64,
    /// Connections that nobody but ebb can have broken.
    pub broken: Vec<String>,
    /// New connections on backends that should not have got them.
    pub misplaced: Vec<String>,
    /// Frames that reached servers with a wrong byte.
    pub corrupt: u64,
    /// Connections that were cut on purpose.
    pub cut: Vec<Cut>,
    /// Connections that ended with their killed server.
    pub died: u64,
    /// Connections that broke because the tables were lost and nothing else held them, by how they ended: begun in an
    /// unfinished change.
    pub exposed: BTreeMap<Reason, Vec<String>>,
}

impl Summary {
    /// Nothing was broken by ebb.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken.is_empty() && self.misplaced.is_empty() && self.corrupt == 0
    }

    /// As JSON: `seed, connections, operations, faults, broken, cut` are numbers, `details` has all of it.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "connections": self.connections,
            "operations": total(&self.operations),
            "faults": total(&self.faults),
            "broken": self.broken.len(),
            "misplaced": self.misplaced.len(),
            "corrupt": self.corrupt,
            "cut": self.cut_connections(),
            "died": self.died,
            "exposed": self.exposed_connections(),
            "details": self,
        })
    }

    fn exposed_connections(&self) -> usize {
        self.exposed.values().map(Vec::len).sum()
    }

    fn cut_connections(&self) -> u64 {
        self.cut.iter().map(|cut| cut.connections).sum()
    }
}

impl Summary {
    fn write_exposed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.exposed_connections();
        if count == 0 && !self.faults.contains_key("tables lost") {
            return Ok(());
        }
        let ends = self.exposed.iter();
        let ends: Vec<String> = ends
            .map(|(reason, lines)| format!("; {} by {reason:?}", lines.len()).to_lowercase())
            .collect();
        writeln!(
            f,
            "exposed      {count} that began in an unfinished change, lost with the tables{}",
            ends.concat()
        )?;
        let lines = self.exposed.values().flatten();
        lines
            .take(20)
            .try_for_each(|line| writeln!(f, "             {line}"))
    }
}

fn total(counts: &BTreeMap<&'static str, u64>) -> u64 {
    counts.values().sum()
}

/// `12 (drain 5, switch 7)`.
fn counted(counts: &BTreeMap<&'static str, u64>) -> String {
    let parts: Vec<String> = counts
        .iter()
        .map(|(kind, n)| format!("{kind} {n}"))
        .collect();
    match parts.is_empty() {
        true => "0".into(),
        false => format!("{} ({})", total(counts), parts.join(", ")),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "soak         seed {}, {:.1} s", self.seed, self.seconds)?;
        writeln!(
            f,
            "connections  {} ({} long, {} of them closed by their clients; {} requests; {} exchanges, every byte checked)",
            self.connections, self.long_connections, self.finished, self.requests, self.exchanges
        )?;
        writeln!(f, "operations   {}", counted(&self.operations))?;
        if !self.refused.is_empty() {
            writeln!(f, "refused      {}", counted(&self.refused))?;
        }
        writeln!(f, "faults       {}", counted(&self.faults))?;
        writeln!(f, "died         {} with their killed servers", self.died)?;
        self.write_exposed(f)?;
        writeln!(
            f,
            "cut          {} on purpose, at the deadlines of {} of {} drains",
            self.cut_connections(),
            self.cut.len(),
            self.drains
        )?;
        for cut in &self.cut {
            let reset = cut.receipt.as_ref().map_or_else(String::new, |receipt| {
                format!("; its receipt: {} reset", receipt["reset"])
            });
            writeln!(
                f,
                "             drain {} of {}: {}{reset}",
                cut.drain, cut.backend, cut.connections
            )?;
        }
        writeln!(f, "misplaced    {}", self.misplaced.len())?;
        for one in self.misplaced.iter().take(10) {
            writeln!(f, "             {one}")?;
        }
        if self.corrupt > 0 {
            writeln!(f, "corrupt      {} frames", self.corrupt)?;
        }
        write!(f, "broken       {} by ebb", self.broken.len())?;
        for one in self.broken.iter().take(20) {
            write!(f, "\n             {one}")?;
        }
        Ok(())
    }
}

//! `ebb-lab soak`.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::ValueEnum;
use ebb_tests::{
    scenario::Way,
    soak::{self, Options},
};

/// How packets are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Backends answer through the balancer
    Nat,
    /// Backends own the VIP and answer directly
    L2,
}

/// Arguments of `ebb-lab soak`.
#[derive(Debug, clap::Args)]
pub struct Soak {
    /// How long it lasts
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seed of what is done [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How packets are forwarded
    #[arg(long, value_enum, default_value_t = Mode::Nat)]
    forward: Mode,
    /// Service, clients and backends speak IPv6
    #[arg(long)]
    ipv6: bool,
    /// Long connections held all the time
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Short requests a second, each a connection of its own
    #[arg(long, default_value_t = 200.0)]
    requests: f64,
    /// Also lose the flow table and the handshake table, in the middle of changes
    #[arg(long)]
    lose_tables: bool,
    /// The summary as JSON
    #[arg(long)]
    json: bool,
}

impl Soak {
    /// Soaks; exit code 1 when ebb broke a connection or sent a new one where none should go.
    pub fn run(self) -> Result<ExitCode> {
        let way = match (self.forward, self.ipv6) {
            (Mode::Nat, false) => Way::Nat,
            (Mode::Nat, true) => Way::NatV6,
            (Mode::L2, false) => Way::L2,
            (Mode::L2, true) => Way::L2V6,
        };
        let options = Options {
            length: Duration::from_secs(self.seconds),
            seed: self
                .seed
                .unwrap_or_else(|| u64::from(rand::random::<u32>())),
            way,
            connections: self.connections,
            requests: self.requests,
            operations: 0,
            lose_tables: self.lose_tables,
        };
        eprintln!("seed {}", options.seed);
        let summary = soak::run(&options, &mut |line| eprintln!("{line}"))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&summary.json())?);
        } else {
            println!("{summary}");
        }
        Ok(if summary.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

//! `cargo xtask bench` runs this.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use ebb_tests::bench::{self, Family, Settings};

/// Measure what a packet costs in ebb's loaded XDP program.
#[derive(Parser)]
#[command(name = "ebb-bench")]
struct Arguments {
    /// Rounds; medians are taken over them
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Three rounds, IPv4 alone unless --family says more: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    /// Numbers of flows, each at most 1048576
    #[arg(long, value_delimiter = ',', default_value = "1,65536,1048576")]
    flows: Vec<u32>,
    /// Address families [default: both]
    #[arg(long, value_enum)]
    family: Option<Families>,
    /// Only rows whose name contains this (may be repeated)
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// CPU to run on [default: the last one]
    #[arg(long)]
    cpu: Option<usize>,
    /// Measure another build of ebb's eBPF object
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// No live frames over veth
    #[arg(long)]
    no_live: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Families {
    V4,
    V6,
    Both,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let families = arguments.family.unwrap_or(if arguments.quick {
        Families::V4
    } else {
        Families::Both
    });
    let settings = Settings {
        rounds: if arguments.quick { 3 } else { arguments.rounds },
        flows: arguments.flows,
        families: match families {
            Families::V4 => vec![Family::V4],
            Families::V6 => vec![Family::V6],
            Families::Both => vec![Family::V4, Family::V6],
        },
        only: arguments.only,
        cpu: arguments.cpu,
        object: arguments.object,
        live: !arguments.no_live,
        progress: std::io::IsTerminal::is_terminal(&std::io::stderr()),
    };
    let printed = bench::run(&settings).and_then(|report| {
        if arguments.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if !nix::unistd::geteuid().is_root() {
                eprintln!("hint: run it as root");
            }
            ExitCode::FAILURE
        }
    }
}

//! `ebb-lab fuzz`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use ebb_tests::fuzz::{self, Settings};

/// Arguments of `ebb-lab fuzz`.
#[derive(Debug, clap::Args)]
pub struct Fuzz {
    /// Inputs to send
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Seed of the run [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Run this case of the seed alone and tell what becomes of each input
    #[arg(long, value_name = "NUMBER", requires = "seed")]
    case: Option<u64>,
    /// Threads, each with a loaded program of its own [default: as many as CPUs]
    #[arg(long)]
    threads: Option<usize>,
    /// Fuzz another build of ebb's eBPF object
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Through the tracing program (`ebb trace`), whose records are judged as well
    #[arg(long, conflicts_with = "object")]
    tracing: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
}

impl Fuzz {
    /// Fuzzes; exit code 1 when a rule was broken or not all was reached.
    pub fn run(self) -> Result<ExitCode> {
        let threads = match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        let settings = Settings {
            inputs: self.inputs,
            seed: self.seed.unwrap_or_else(rand::random),
            threads,
            object: self.object,
            tracing: self.tracing,
        };
        let good = if let Some(case) = self.case {
            let (story, good) = fuzz::replay(&settings, case)?;
            println!("{story}");
            good
        } else {
            let report = fuzz::run(&settings)?;
            if self.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("{report}");
            }
            report.is_good()
        };
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

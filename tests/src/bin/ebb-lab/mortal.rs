//! `ebb-lab mortal`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use ebb_tests::lab;
use lb_userspace::daemon::assemble::NodeOptions;

/// Arguments of `ebb-lab mortal`: those of `ebb run`, and where it is said when the daemon dies.
#[derive(Debug, clap::Args)]
pub struct Mortal {
    #[arg(long)]
    words: PathBuf,
    #[arg(long)]
    config: PathBuf,
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    pins: PathBuf,
    #[arg(long)]
    state_dir: PathBuf,
}

impl Mortal {
    /// Lives and dies.
    pub fn run(self) -> Result<ExitCode> {
        lb_userspace::cli::start_log();
        let options = NodeOptions {
            config: self.config,
            socket: self.socket,
            pins: self.pins,
            state_dir: self.state_dir,
            afresh: false,
            trace: false,
        };
        lab::live(&options, &self.words)?;
        Ok(ExitCode::SUCCESS)
    }
}

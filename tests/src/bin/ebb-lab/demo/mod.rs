//! `ebb-lab demo`: a drain, a blue-green switch and its rollback under real traffic, and the receipt.

mod picture;
mod receipt;
mod status;
mod story;

use std::{io::IsTerminal as _, process::ExitCode, thread};

use anyhow::{Context as _, Result};
use ebb_tests::{
    client::raise_open_files,
    config,
    lab::{Ebb, Lab},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::setting::{self, Setting};
use receipt::Receipt;

/// Arguments of `ebb-lab demo`.
#[derive(Debug, clap::Args)]
pub struct Demo {
    #[command(flatten)]
    setting: Setting,
    /// Print one JSON object instead of the receipt for people
    #[arg(long)]
    json: bool,
    /// Leave the lab up and say how to enter it
    #[arg(long)]
    keep: bool,
    /// Lines instead of a live picture
    #[arg(long)]
    no_tty: bool,
    /// Long-lived connections
    #[arg(long, default_value_t = 300)]
    connections: usize,
    /// Short requests a second
    #[arg(long, default_value_t = 100.0)]
    requests: f64,
}

impl Demo {
    /// Runs the demo; fails when a connection broke, a request failed or a new connection came to a wrong backend.
    pub fn run(self) -> Result<ExitCode> {
        raise_open_files()?;
        let lab = self.setting.lab(self.keep)?;
        remove_on_signal(lab.name().to_owned())?;
        let service = self.setting.service(&lab);
        let servers = lab.serve(service.backend_port)?;
        let ebb = Ebb::start(&lab, &config::file(&lab, std::slice::from_ref(&service)))?;
        let told = story::tell(&lab, &ebb, &service, &self);
        let receipt =
            told.with_context(|| format!("the daemon's log ends with{}", ebb.log_tail()))?;
        self.print(&receipt)?;
        if self.keep {
            eprint!("\n{}", setting::keep(lab, &service, servers, Some(ebb)));
        }
        Ok(if receipt.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn print(&self, receipt: &Receipt) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&receipt.json())?);
        } else {
            print!("{}", receipt.text(std::io::stdout().is_terminal()));
        }
        Ok(())
    }
}

/// Takes the lab down when the demo is interrupted; its children end with this process.
fn remove_on_signal(name: String) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        Lab::remove(&name);
        // As a shell reports an interrupted command.
        std::process::exit(130);
    });
    Ok(())
}

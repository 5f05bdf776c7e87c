//! `cargo xtask build`: the daemon in release mode.

use anyhow::Result;

use crate::{
    setup::{self, Purpose},
    shell::{self, Root},
};

/// Arguments of `build`.
#[derive(clap::Args)]
pub struct Args {
    /// Fail instead of installing what is missing
    #[arg(long)]
    no_install: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    setup::ready(Purpose::Build, !args.no_install)?;
    daemon()?;
    verify()
}

/// Prints what this kernel's verifier had to do for the programs. On machines without root for the asking, the tests
/// are the first to know.
fn verify() -> Result<()> {
    if shell::root() != Root::Already {
        eprintln!("verifier: not asked, as this is not root; `ebb verify` does so");
        return Ok(());
    }
    let run = ["run", "-q", "--release", "-p", "lb-userspace"];
    shell::run(
        shell::cargo()
            .args(run)
            .args(["--bin", "ebb", "--", "verify"])
            .current_dir(shell::repository()),
    )
}

/// Builds `target/release/ebb` with the programs of the lab: in one go, since cargo would build the daemon's crates a
/// second time for another selection of packages.
pub fn daemon_and_lab() -> Result<()> {
    shell::run(
        shell::cargo()
            .args([
                "build",
                "--release",
                "-p",
                "lb-userspace",
                "-p",
                "ebb-tests",
                "--bins",
            ])
            .current_dir(shell::repository()),
    )
}

/// Builds `target/release/ebb`.
pub fn daemon() -> Result<()> {
    shell::run(
        shell::cargo()
            .args(["build", "--release", "-p", "lb-userspace", "--bin", "ebb"])
            .current_dir(shell::repository()),
    )
}

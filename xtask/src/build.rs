//! `cargo xtask build`: the daemon in release mode.

use anyhow::Result;

use crate::{
    setup::{self, Purpose},
    shell,
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
    daemon()
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

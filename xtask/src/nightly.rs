//! Installing the compiler of the nightly way.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{ebpf, shell};

/// Installs rustup's nightly with the sources of `core`.
///
/// # Errors
///
/// rustup is not there, or failed.
pub fn install() -> Result<()> {
    let rustup = ebpf::program("rustup").context("rustup is not installed")?;
    let name = ebpf::nightly_name();
    shell::run(
        Command::new(rustup)
            .args(["toolchain", "install"])
            .arg(name)
            .args(["--profile", "minimal", "--component", "rust-src"]),
    )
}

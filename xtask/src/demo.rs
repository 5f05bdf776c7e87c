//! `cargo xtask demo`: drains and switches shown on real traffic.

use anyhow::Result;

use crate::passed::{self, Args};

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    passed::become_program("ebb-lab", Some("demo"), args)
}

//! `cargo xtask bench`: what a packet costs.

use anyhow::Result;

use crate::passed::{self, Args};

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    passed::become_program("ebb-bench", None, args)
}

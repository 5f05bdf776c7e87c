//! `cargo xtask soak`: random operations and faults under live traffic.

use anyhow::Result;

use crate::passed::{self, Args};

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    passed::become_program("ebb-lab", Some("soak"), args)
}

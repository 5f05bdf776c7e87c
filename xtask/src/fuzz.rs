//! `cargo xtask fuzz`: sound and broken packets through the loaded program.

use anyhow::Result;

use crate::passed::{self, Args};

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    passed::become_program("ebb-lab", Some("fuzz"), args)
}

//! `cargo xtask lab`: the demo's lab, to play in.

use anyhow::Result;

use crate::passed::{self, Args};

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    passed::become_program("ebb-lab", Some("lab"), args)
}

//! A short run of the fuzzer: no rule is broken, and all is reached that a run should reach. Needs root.

use anyhow::Result;
use ebb_tests::fuzz::{self, Settings};

/// Seed of the run: always the same inputs, so that a failure here is one of the change under test.
const SEED: u64 = 1;

#[test]
fn no_rule_is_broken_and_everything_is_reached() -> Result<()> {
    let report = fuzz::run(&Settings {
        inputs: 200_000,
        seed: SEED,
        threads: 2,
        object: None,
        tracing: false,
    })?;
    println!("{report}");
    assert!(report.is_good(), "{report}");
    Ok(())
}

/// The tracing program gives every packet the verdict and the bytes that the plain one must give it, and shows each once.
#[test]
fn tracing_changes_nothing_and_shows_everything() -> Result<()> {
    let report = fuzz::run(&Settings {
        inputs: 100_000,
        seed: SEED,
        threads: 2,
        object: None,
        tracing: true,
    })?;
    println!("{report}");
    assert!(report.is_good(), "{report}");
    Ok(())
}

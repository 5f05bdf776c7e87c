//! A short soak; `cargo xtask soak` is the long one.

use std::time::Duration;

use anyhow::Result;
use ebb_tests::{
    scenario::{Way, can_run},
    soak::{self, Options},
};

fn short(way: Way, seed: u64) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = Options {
        length: Duration::from_secs(25),
        seed,
        way,
        connections: 300,
        requests: 100.0,
        lose_tables: false,
    };
    let mut steps = Vec::new();
    let summary = soak::run(&options, &mut |line| steps.push(line.to_owned()))?;
    eprintln!("{summary}");
    assert!(summary.is_good(), "{}\n{summary}", steps.join("\n"));
    let done: u64 = summary.operations.values().sum();
    assert!(
        done >= 3 && summary.requests > 100 && summary.exchanges > 1000,
        "little happened: {summary}"
    );
    Ok(())
}

#[test]
#[ignore = "what happens when is up to the machine, and few seeds have been seen yet; run by name with --ignored"]
fn short_nat() -> Result<()> {
    short(Way::Nat, 1)
}

#[test]
#[ignore = "what happens when is up to the machine, and few seeds have been seen yet; run by name with --ignored"]
fn short_l2() -> Result<()> {
    short(Way::L2, 2)
}

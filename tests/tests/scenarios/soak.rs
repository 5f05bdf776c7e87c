//! A short soak; `cargo xtask soak` is the long one.

use std::time::Duration;

use anyhow::Result;
use ebb_tests::{
    scenario::{Way, can_run, seed_of_commit},
    soak::{self, Options},
};

/// Operations that a short soak does at least.
const ENOUGH: u64 = 5;

fn short(way: Way, seed: u64) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = Options {
        length: Duration::from_secs(20),
        seed,
        way,
        connections: 300,
        requests: 100.0,
        operations: ENOUGH,
        lose_tables: false,
    };
    let forward = way.forward();
    eprintln!(
        "again with: cargo xtask soak --seconds 20 --seed {seed} --forward {forward} --connections 300 --requests 100"
    );
    let mut steps = Vec::new();
    let summary = soak::run(&options, &mut |line| steps.push(line.to_owned()))?;
    eprintln!("{summary}");
    assert!(summary.is_good(), "{}\n{summary}", steps.join("\n"));
    let done: u64 = summary.operations.values().sum();
    assert!(
        done >= ENOUGH && summary.requests > 100 && summary.exchanges > 1000,
        "little happened: {summary}"
    );
    Ok(())
}

/// Another soak at each commit: every second one in `nat`, the others in `l2`.
#[test]
fn short_of_this_commit() -> Result<()> {
    let seed = seed_of_commit();
    let way = if seed.is_multiple_of(2) {
        Way::Nat
    } else {
        Way::L2
    };
    short(way, seed)
}

#[test]
#[ignore = "keeps the time bounded: `short_of_this_commit` runs one of these; `--ignored` runs this too"]
fn short_nat() -> Result<()> {
    short(Way::Nat, 1)
}

#[test]
#[ignore = "keeps the time bounded: `short_of_this_commit` runs one of these; `--ignored` runs this too"]
fn short_l2() -> Result<()> {
    short(Way::L2, 2)
}

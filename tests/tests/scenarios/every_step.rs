//! `kill -9` at each step of each operation: see [`ebb_tests::walk`].

use anyhow::Result;
use ebb_tests::{
    scenario::{Way, can_run},
    walk::{Goal, Sample, Walk, all, first_start},
};

const FEW: Sample = Sample {
    one_of: usize::MAX,
    at_most: 3,
};

/// All but of the thousands that fill a table which nobody sees yet.
const MANY: Sample = Sample {
    one_of: 50,
    at_most: 250,
};

/// Of deaths that take seconds each there are so many times fewer in a sample.
const SLOW: usize = 20;

/// The smallest table there is: each of its slots is a step of most operations.
const FEW_SLOTS: u32 = 101;

fn begin(way: Way, slots: Option<u32>) -> Result<Walk> {
    let seed = ebb_tests::scenario::seed_of_commit();
    eprintln!("seed {seed}");
    Walk::new(way, slots, seed)
}

fn walk(way: Way, slots: Option<u32>, sample: Sample) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut walk = begin(way, slots)?;
    for operation in all() {
        let at_most = match operation.goal {
            // Each waits for an idle timeout.
            Goal::Settled => sample.at_most.div_ceil(SLOW),
            Goal::Answer | Goal::Drained => sample.at_most,
        };
        walk.operation(&operation, Sample { at_most, ..sample })?;
    }
    // Each loads the program twice, which takes the verifier seconds.
    let at_most = sample.at_most.div_ceil(SLOW).max(2);
    walk.start(Sample { at_most, ..sample })?;
    let sum = walk.end();
    eprintln!("{sum}");
    assert_eq!((sum.broken, sum.misplaced), (0, 0), "{sum}");
    assert!(sum.deaths() >= all().len() as u64, "{sum}");
    Ok(())
}

/// A few steps of each operation, others at each commit.
#[test]
fn some_steps_nat() -> Result<()> {
    walk(Way::Nat, None, FEW)
}

#[test]
#[ignore = "takes some minutes; `--ignored` runs it"]
fn many_steps_nat() -> Result<()> {
    walk(Way::Nat, None, MANY)
}

#[test]
#[ignore = "takes some minutes; `--ignored` runs it"]
fn many_steps_l2() -> Result<()> {
    walk(Way::L2, None, MANY)
}

/// The very first start, which no packet depends on yet.
fn first(slots: Option<u32>, sample: Sample) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let seed = ebb_tests::scenario::seed_of_commit();
    let (steps, deaths) = first_start(Way::Nat, slots, sample, seed)?;
    eprintln!(
        "first start: {steps} steps, killed at {deaths}: each time the next start was as one from nothing"
    );
    assert!(deaths > 0, "of {steps} steps");
    Ok(())
}

#[test]
fn a_first_start_nat() -> Result<()> {
    first(None, Sample { at_most: 1, ..FEW })
}

#[test]
#[ignore = "takes many minutes: each death loads the program twice; `--ignored` runs it"]
fn every_first_start_nat() -> Result<()> {
    first(Some(FEW_SLOTS), Sample::ALL)
}

#[test]
#[ignore = "takes many minutes: each death loads the program twice; `--ignored` runs it"]
fn many_first_starts_nat() -> Result<()> {
    first(
        None,
        Sample {
            at_most: MANY.at_most / 5,
            ..MANY
        },
    )
}

/// The steps of a start that other operations do not have: programs, jump table, links.
#[test]
#[ignore = "takes some minutes: each death loads the program twice; `--ignored` runs it"]
fn every_start_l2() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut walk = begin(Way::L2, None)?;
    walk.start(Sample::ALL)?;
    let sum = walk.end();
    eprintln!("{sum}");
    assert_eq!((sum.broken, sum.misplaced), (0, 0), "{sum}");
    assert!(sum.deaths() > 0, "{sum}");
    Ok(())
}

#[test]
#[ignore = "takes many minutes: hundreds of steps; `--ignored` runs it"]
fn every_step_nat() -> Result<()> {
    walk(Way::Nat, Some(FEW_SLOTS), Sample::ALL)
}

#[test]
#[ignore = "takes many minutes: hundreds of steps; `--ignored` runs it"]
fn every_step_l2() -> Result<()> {
    walk(Way::L2, Some(FEW_SLOTS), Sample::ALL)
}

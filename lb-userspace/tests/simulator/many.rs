//! Ten million events, in many runs of different kinds. One of the seeds is the commit's hash, so that no two commits see the same.

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::*;

/// Events of all runs together.
const EVENTS: u64 = 10_000_000;

/// The kinds of runs.
fn plans() -> [Plan; 8] {
    let usual = Plan {
        name: "changes",
        packets_a_step: 60,
        ..Plan::default()
    };
    [
        usual,
        Plan {
            name: "health",
            health: true,
            restarts: true,
            ..usual
        },
        Plan {
            name: "faults",
            fault_one_in: Some(15),
            restarts: true,
            health: true,
            ..usual
        },
        Plan {
            name: "full",
            full: true,
            ..usual
        },
        Plan {
            name: "settling",
            command_one_in: 150,
            flows: 100,
            ..usual
        },
        Plan {
            name: "lost",
            loss_one_in: Some(25),
            command_one_in: 40,
            restarts: true,
            ..usual
        },
        Plan {
            name: "few",
            flows: 12,
            ..usual
        },
        Plan {
            name: "flood",
            flood: true,
            // So small that flows find their bucket full, and keep the place of their handshake.
            sizes: Sizes {
                flows: 1 << 11,
                handshakes: 1 << 11,
            },
            ..usual
        },
    ]
}

/// The first 15 hexadecimal digits of the commit's hash; `None` outside a repository.
fn commit() -> Option<u64> {
    let output = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    u64::from_str_radix(text.get(..15)?, 16).ok()
}

/// The runs in their order: every kind with the commit's seed, then every kind with each number.
fn run_of(number: u64, commit: Option<u64>) -> (Plan, u64) {
    let plans = plans();
    let kinds = plans.len() as u64;
    let plan = plans[(number % kinds) as usize];
    match (number / kinds, commit) {
        (0, Some(commit)) => (plan, commit),
        (round, _) => (plan, 1_000 + round),
    }
}

#[test]
#[ignore = "ten million events are for an optimised build: `cargo xtask test --stage simulate`"]
fn ten_million_events() {
    if let (Some(seed), Ok(name)) = (given(), std::env::var("EBB_SIM_PLAN")) {
        let plan = plans().into_iter().find(|plan| plan.name == name);
        let counts = Simulator::new(seed, plan.expect("a kind of run")).run();
        return println!("seed {seed}, {name}: {} events, 0 broken", counts.events);
    }
    let wanted = std::env::var("EBB_SIM_EVENTS").ok();
    let wanted = wanted.and_then(|text| text.parse().ok()).unwrap_or(EVENTS);
    let commit = commit();
    println!("seed of the commit: {commit:?}");
    let (next, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(Counts::default());
    let work = || {
        while events.load(Ordering::Relaxed) < wanted {
            let (plan, seed) = run_of(next.fetch_add(1, Ordering::Relaxed), commit);
            let counts = Simulator::new(seed, plan).run();
            events.fetch_add(counts.events, Ordering::Relaxed);
            println!(
                "seed {seed}, {}: {} events, 0 broken",
                plan.name, counts.events
            );
            sum.lock().expect("no run has failed").add(&counts);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            if let Err(panic) = handle.join() {
                // The others would go on for long, and what is to be known is said.
                events.store(u64::MAX, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
    let sum = sum.into_inner().expect("no run has failed");
    println!("{sum:?}");
    println!(
        "{} events in {} runs: 0 broken",
        sum.events,
        next.load(Ordering::Relaxed)
    );
    let kinds = [
        sum.restarts,
        sum.settled,
        sum.empty,
        sum.cut,
        sum.floods,
        sum.reloads,
        sum.weights,
        sum.maintained,
        sum.activated,
        sum.found_between,
    ];
    assert!(
        sum.events >= wanted && kinds.iter().all(|count| *count > 0),
        "{sum:?}"
    );
}

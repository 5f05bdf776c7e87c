//! Faults while two drains overlap, under load: floods, and a flow table too small for what is to be in it. Which
//! connections notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use ebb_tests::{
    flood::Kind,
    scenario::{Way, can_run},
};

use super::flood::{self, LASTS, PATIENCE};

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
struct Fault {
    name: &'static str,
    flood: Kind,
    /// Frames a second, each of another flow.
    per_second: u64,
    /// End of the configuration file.
    tail: &'static str,
}

const SYNS: Fault = Fault {
    name: "SYN flood",
    flood: Kind::Syn,
    per_second: flood::PER_SECOND,
    tail: "",
};
const ACKS: Fault = Fault {
    name: "ACK flood",
    flood: Kind::Ack,
    per_second: flood::PER_SECOND,
    tail: "",
};
/// In four seconds forty times the flows that there is room for; those in moved slots, half of them, are to be listed.
const OVERCOMMITTED: Fault = Fault {
    name: "flow table of 1024 places",
    flood: Kind::Ack,
    per_second: 10_000,
    tail: "\n[capacity]\nflows = 1024\n",
};

/// Two of four backends are drained, the second while the first still is and the fault goes on. Connections from before and
/// from in between live on, and none begins on a backend that is drained.
fn during_two_drains(way: Way, fault: Fault) -> Result<()> {
    const LONG: usize = 200;
    if !can_run() {
        return Ok(());
    }
    let (scene, _shedder) = flood::scene(way, &["b1", "b2", "b3", "b4"], fault.tail)?;
    let load = scene.patient_load(LONG, 30.0, PATIENCE)?;
    let began = scene.moment(&load)?;
    let before = scene.open_on("b1")?.len() + scene.open_on("b2")?.len();
    scene.ok("drain web/b1 --timeout 120s")?;
    let flood = flood::start(&scene, fault.flood, fault.per_second)?;
    // Users come and go meanwhile: these begin while one drain, or both, are under way.
    for (seconds, on) in [(1, "b3"), (2, "b4")] {
        load.close_long(Some(on), 0.5, Duration::from_millis(500), true);
        load.wait(LASTS / 4, |now| now.broken > 0);
        if seconds == 1 {
            scene.ok("drain web/b2 --timeout 120s")?;
        }
    }
    let both = scene.moment(&load)?;
    load.wait(LASTS / 2, |now| now.broken > 0);
    let sent = flood.stop()?;
    flood::all_alive(&scene, &load, LONG)?;
    let report = load.stop(Duration::from_millis(500));
    let old = report
        .broken
        .iter()
        .filter(|broken| broken.started_ns < began);
    let begun = report.flows.iter().filter(|flow| flow.started_ns >= began);
    let (old, begun) = (old.count(), begun.count());
    eprintln!(
        "{way:?}, {}: {} frames; of {LONG} long flows from before two drains ({before} on what is drained) {old} broke, of \
         {begun} begun during them {}",
        fault.name,
        sent.frames,
        report.broken.len() - old,
    );
    ensure!(report.is_clean(), "{}", report.summary());
    ensure!(sent.frames > 5_000, "no flood: {sent:?}");
    for name in ["b1", "b2"] {
        let window = both..ebb_tests::scenario::now();
        scene.none_begun_on(name, &report, window)?;
    }
    Ok(())
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_nat() -> Result<()> {
    during_two_drains(Way::Nat, SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_l2() -> Result<()> {
    during_two_drains(Way::L2, SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_an_ack_flood_nat() -> Result<()> {
    during_two_drains(Way::Nat, ACKS)
}

#[test]
fn two_drains_in_an_ack_flood_l2() -> Result<()> {
    during_two_drains(Way::L2, ACKS)
}

#[test]
fn two_drains_overcommitted_nat() -> Result<()> {
    during_two_drains(Way::Nat, OVERCOMMITTED)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_overcommitted_l2() -> Result<()> {
    during_two_drains(Way::L2, OVERCOMMITTED)
}

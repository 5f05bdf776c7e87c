//! Faults while two drains overlap, under load: floods, and a flow table too small for what is to be in it. Which
//! connections notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use ebb_tests::{
    client::Flow,
    flood::{Kind, Shedder},
    lab::{Answers, LabOptions, Topology, address::Family},
    scenario::{Scene, Way, can_run, now},
};

use super::{
    flood::{self, LASTS, PATIENCE},
    full_nat, tunnel,
};

const BACKENDS: [&str; 4] = ["b1", "b2", "b3", "b4"];

/// How packets get to backends.
#[derive(Debug, Clone, Copy)]
enum Mode {
    On(Way),
    FullNat,
    /// Through tunnels that end in `ebb decap`.
    Tunnel(&'static str, Family),
}

impl Mode {
    fn scene(self, tail: &str) -> Result<(Scene, Shedder)> {
        let bare = |options: LabOptions| LabOptions {
            pass_programs: false,
            ..options
        };
        let (lab, service) = match self {
            Self::On(way) => return flood::scene(way, &BACKENDS, tail),
            Self::FullNat => {
                let answers = Answers::ThroughBalancer;
                let options = bare(LabOptions::new(Topology::TwoArm, answers, &BACKENDS));
                full_nat::lab_with(options, Family::V4, |_| {})?
            }
            Self::Tunnel(forward, outer) => {
                let options = bare(tunnel::options(Some(tunnel::WIDE), &BACKENDS));
                let families = (Family::V4, outer);
                tunnel::lab_with(options, forward, families, "decap = \"ebb\"")?
            }
        };
        flood::scene_in(lab, service, tail)
    }
}

const IPIP: Mode = Mode::Tunnel("ipip", Family::V4);
const GUE: Mode = Mode::Tunnel("gue", Family::V6);

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
fn during_two_drains(mode: Mode, fault: Fault) -> Result<()> {
    const LONG: usize = 200;
    if !can_run() {
        return Ok(());
    }
    let (scene, shedder) = mode.scene(fault.tail)?;
    let load = scene.patient_load(LONG, 30.0, PATIENCE)?;
    let began = scene.moment(&load)?;
    // As the clients know it: in `full-nat` the servers do not see them.
    let long = load.now().long;
    let on = |name: &str| long.get(name).copied().unwrap_or(0);
    let before = on("b1") + on("b2");
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
    let (arrived, through) = shedder.arrived()?;
    let report = load.stop(Duration::from_millis(500));
    let old = report
        .broken
        .iter()
        .filter(|broken| broken.started_ns < began);
    let begun = report.flows.iter().filter(|flow| flow.started_ns >= began);
    let (old, begun) = (old.count(), begun.count());
    eprintln!(
        "{mode:?}, {}: {} frames, {arrived} came to backends and {through} got through; of {LONG} long flows from before two drains ({before} on what is drained) {old} broke, of \
         {begun} begun during them {}",
        fault.name,
        sent.frames,
        report.broken.len() - old,
    );
    ensure!(report.is_clean(), "{}", report.summary());
    ensure!(
        sent.frames > 5_000 && arrived > 1_000 && through > 0,
        "no flood: {sent:?}, {arrived} arrived"
    );
    for name in ["b1", "b2"] {
        scene.none_begun_on(name, &report, both..now())?;
        let answered = |flow: &&Flow| flow.backend.as_deref() == Some(name);
        let late = report.flows.iter().filter(answered);
        let late = late.filter(|flow| flow.started_ns > both).count();
        ensure!(late == 0, "{late} connections begun on {name}");
    }
    Ok(())
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_nat() -> Result<()> {
    during_two_drains(Mode::On(Way::Nat), SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_l2() -> Result<()> {
    during_two_drains(Mode::On(Way::L2), SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_in_an_ack_flood_nat() -> Result<()> {
    during_two_drains(Mode::On(Way::Nat), ACKS)
}

#[test]
fn two_drains_in_an_ack_flood_l2() -> Result<()> {
    during_two_drains(Mode::On(Way::L2), ACKS)
}

#[test]
fn two_drains_overcommitted_nat() -> Result<()> {
    during_two_drains(Mode::On(Way::Nat), OVERCOMMITTED)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn two_drains_overcommitted_l2() -> Result<()> {
    during_two_drains(Mode::On(Way::L2), OVERCOMMITTED)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_full_nat() -> Result<()> {
    during_two_drains(Mode::FullNat, SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_ipip() -> Result<()> {
    during_two_drains(IPIP, SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_a_syn_flood_gue() -> Result<()> {
    during_two_drains(GUE, SYNS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_an_ack_flood_full_nat() -> Result<()> {
    during_two_drains(Mode::FullNat, ACKS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_an_ack_flood_ipip() -> Result<()> {
    during_two_drains(IPIP, ACKS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_in_an_ack_flood_gue() -> Result<()> {
    during_two_drains(GUE, ACKS)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_overcommitted_full_nat() -> Result<()> {
    during_two_drains(Mode::FullNat, OVERCOMMITTED)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_overcommitted_ipip() -> Result<()> {
    during_two_drains(IPIP, OVERCOMMITTED)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn two_drains_overcommitted_gue() -> Result<()> {
    during_two_drains(GUE, OVERCOMMITTED)
}

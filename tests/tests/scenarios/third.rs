//! Changes that overlap in time, and the flow table and the handshake table are lost in each of them, and after: flows begun
//! in between are on backends that their slot names no more, neither as its base nor as its current owner.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Length, Load, Report},
    config::Service,
    lab::{Topology, address::Family},
    scenario::{LIMIT, Scene, Way, can_run, now},
};
use serde_json::Value;

use super::{full_nat, tunnel};

const BACKENDS: [&str; 4] = ["b1", "b2", "b3", "b4"];
/// A change settles when every flow has had this long to be seen.
const IDLE: &str = "idle_timeout = \"20s\"";
/// In `nat` each backend that is asked costs a retransmission, and each waits twice as long as the one before; who is met by
/// one loss after the other waits longest.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Long flows from before, and those that each change adds.
const BEFORE: usize = 120;
const MORE: usize = 80;

/// Commands, one after the other, that make one change; whom new flows must not go to from then on.
type Change = (&'static [&'static str], &'static [&'static str]);

/// Two drains, then others.
const TWO: &[Change] = &[
    (&["drain web/b1 --timeout 90s"], &["b1"]),
    (&["drain web/b2 --timeout 90s"], &["b1", "b2"]),
];

/// The same, then one taken back and another begun, then all taken back: slots whose base is the current owner again have
/// had three others.
const MANY: &[Change] = &[
    TWO[0],
    TWO[1],
    (
        &["undrain web/b1", "drain web/b3 --timeout 90s"],
        &["b2", "b3"],
    ),
    (&["undrain web/b2 web/b3"], &[]),
];

/// Both tables are lost, and everybody says something afterwards.
fn lose(scene: &Scene, load: &Load, gone: &mut (u32, u32)) -> Result<()> {
    let (flows, handshakes) = scene.lose_tables()?;
    *gone = (gone.0 + flows, gone.1 + handshakes);
    let before = load.now();
    let wanted = before.frames + 3 * before.long.values().sum::<usize>() as u64;
    let came = load.wait(LIMIT, |now| now.frames >= wanted || now.broken > 0);
    ensure!(came, "{:?}", load.now());
    Ok(())
}

fn survive(scene: &Scene, name: &str, changes: &[Change], by: &str) -> Result<()> {
    let load = scene.patient_load(BEFORE, 60.0, PATIENCE)?;
    let mut moments = vec![0, scene.moment(&load)?];
    let mut windows = Vec::new();
    let mut gone = (0, 0);
    for (commands, closed) in changes {
        for command in *commands {
            scene.ok(command)?;
        }
        let from = now();
        let wanted = load.now().long.values().sum::<usize>() + MORE;
        load.open_long(MORE);
        ensure!(load.wait_long(wanted, LIMIT), "{:?}", load.broken());
        moments.push(scene.moment(&load)?);
        lose(scene, &load, &mut gone)?;
        lose(scene, &load, &mut gone)?;
        windows.push((from..now(), *closed));
    }
    lose(scene, &load, &mut gone)?;
    assert!(gone.0 > 100 && gone.1 > 10, "little was lost: {gone:?}");
    let status = scene.ebb.status()?;
    let report = load.stop(Duration::from_millis(500));
    tell(name, &moments, &report, gone);
    ensure!(report.is_clean(), "{}", report.summary());
    for (window, closed) in windows {
        for backend in closed {
            scene.none_begun_on(backend, &report, window.clone())?;
        }
    }
    let saved = &status["services"][0]["outcomes"][by];
    assert!(saved.as_u64() > Some(0), "nothing needed {by}: {saved}");
    Ok(())
}

/// How many of those begun before, during the first change and so on broke.
pub(super) fn tell(name: &str, moments: &[u64], report: &Report, gone: (u32, u32)) {
    let ends = moments[1..].iter().copied().chain([u64::MAX]);
    let periods = moments.iter().copied().zip(ends);
    let words = periods.enumerate().map(|(number, (from, to))| {
        let when = |started: u64| (from..to).contains(&started);
        let begun = |length: Length| {
            let flows = report.flows.iter();
            flows
                .filter(|flow| when(flow.started_ns) && flow.length == length)
                .count()
        };
        let broken = report.broken.iter();
        let broken = broken.filter(|broken| when(broken.started_ns)).count();
        let when = match number {
            0 => "before".to_owned(),
            number => format!("in change {number}"),
        };
        let (long, short) = (begun(Length::Long), begun(Length::Short));
        format!("{when} {broken} of {long} long and {short} short")
    });
    let words: Vec<_> = words.collect();
    eprintln!(
        "{name}: lost {gone:?} entries; broken of those begun {}",
        words.join(", ")
    );
}

fn on(way: Way, changes: &[Change]) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.more.push('\n');
        service.more.push_str(IDLE);
    };
    let scene = Scene::with(way, &BACKENDS, edit, "")?;
    survive(&scene, &format!("{way:?}"), changes, "drop_second_chance")
}

#[test]
fn overlapping_changes_tables_lost_nat() -> Result<()> {
    on(Way::Nat, MANY)
}

#[test]
#[ignore = "keeps the time bounded: more changes run in CI; `--ignored` runs this too"]
fn two_drains_tables_lost_nat() -> Result<()> {
    on(Way::Nat, TWO)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn overlapping_changes_tables_lost_nat_v6() -> Result<()> {
    on(Way::NatV6, MANY)
}

/// Through tunnels that end in `ebb decap`.
fn through(forward: &str, families: (Family, Family), changes: &[Change]) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let more = format!("decap = \"ebb\"\n{IDLE}");
    let scene = tunnel::scene_with(forward, families, Some(tunnel::WIDE), &BACKENDS, &more)?;
    let name = format!("{forward} {families:?}");
    survive(&scene, &name, changes, "forward_second_chance")?;
    tunnel::none_refused(&scene, &BACKENDS)?;
    // Not only who owned slots before and after, but who did in between was asked.
    let back = tunnel::counted(&scene, "b2", "eth0", "sent_back").context("b2")?;
    ensure!(back > 0, "b2 has sent nothing back");
    Ok(())
}

#[test]
fn overlapping_changes_tables_lost_ipip() -> Result<()> {
    through("ipip", (Family::V4, Family::V4), MANY)
}

#[test]
#[ignore = "keeps the time bounded: more changes run in CI; `--ignored` runs this too"]
fn two_drains_tables_lost_ipip() -> Result<()> {
    through("ipip", (Family::V4, Family::V4), TWO)
}

#[test]
#[ignore = "keeps the time bounded: the same runs through the other tunnel; `--ignored` runs this too"]
fn two_drains_tables_lost_gue() -> Result<()> {
    through("gue", (Family::V4, Family::V6), TWO)
}

#[test]
#[ignore = "keeps the time bounded: the same runs through the other tunnel; `--ignored` runs this too"]
fn overlapping_changes_tables_lost_gue() -> Result<()> {
    through("gue", (Family::V4, Family::V6), MANY)
}

fn in_full_nat(changes: &[Change]) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.more = format!("drain = {{ timeout = \"90s\" }}\n{IDLE}");
    };
    let family = Family::V4;
    let scene = full_nat::scene_with(Topology::TwoArm, family, &BACKENDS, edit)?;
    survive(&scene, "full-nat", changes, "drop_second_chance")
}

#[test]
#[ignore = "keeps the time bounded: answers are judged as in `nat`; `--ignored` runs this too"]
fn overlapping_changes_tables_lost_full_nat() -> Result<()> {
    in_full_nat(MANY)
}

#[test]
#[ignore = "keeps the time bounded: answers are judged as in `nat`; `--ignored` runs this too"]
fn two_drains_tables_lost_full_nat() -> Result<()> {
    in_full_nat(TWO)
}

/// What the tables forget once the change has settled, nobody needs any more.
#[test]
#[ignore = "keeps the time bounded: waits for the change to settle; `--ignored` runs this too"]
fn overlapping_changes_settle_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.more.push('\n');
        service.more.push_str(IDLE);
    };
    let scene = Scene::with(Way::Nat, &BACKENDS, edit, "")?;
    let load = scene.patient_load(BEFORE, 60.0, PATIENCE)?;
    for (commands, _) in MANY {
        for command in *commands {
            scene.ok(command)?;
        }
        let wanted = load.now().long.values().sum::<usize>() + MORE;
        load.open_long(MORE);
        ensure!(load.wait_long(wanted, LIMIT), "{:?}", load.broken());
        lose(&scene, &load, &mut (0, 0))?;
    }
    let settled = |status: &Value| status["services"][0]["changing"] == false;
    scene.ebb.wait_status(LIMIT, settled)?;
    scene.traffic(&load, 50)?;
    let report = load.stop(Duration::from_millis(500));
    ensure!(report.is_clean(), "{}", report.summary());
    Ok(())
}

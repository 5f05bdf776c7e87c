//! The flow table and the handshake table are lost, several times, while a drain is under way, and the change settles
//! afterwards: which connections notice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::Length,
    config::Service,
    lab::{Topology, address::Family},
    scenario::{LIMIT, Scene, Way, can_run, check_sum, now},
};
use serde_json::Value;

use super::{full_nat, tunnel};

const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// A change settles when every flow has had this long to be seen.
const IDLE: &str = "idle_timeout = \"6s\"";

/// Who of those breaks that have begun during the drain. Of the others nobody may.
#[derive(Debug, Clone, Copy)]
enum Young {
    /// Some: nobody knows where they belong.
    Exposed,
    /// None, and this outcome of packets says why.
    Saved(&'static str),
}

/// Long flows that begin right after the drain has.
const YOUNG: usize = 60;

fn lost(scene: &Scene, name: &str, young: Young) -> Result<()> {
    let load = scene.load(200, 100.0)?;
    let began = scene.moment(&load)?;
    let before = load.now().long.values().sum::<usize>();
    scene.ok("drain web/b1 --timeout 60s")?;
    let from = now();
    // Every third or fourth of them is in a moved slot, where nothing but its entry says that it is not the base's.
    load.open_long(YOUNG);
    ensure!(load.wait_long(before + YOUNG, LIMIT), "{:?}", load.broken());
    let mut gone = (0, 0);
    for round in 0..4 {
        if round == 2 {
            // Connections of the other backends' users come and go too, b1's stay.
            load.close_long(Some("b2"), 0.3, Duration::from_millis(300), true);
        }
        let (flows, handshakes) = scene.lose_tables()?;
        gone = (gone.0 + flows, gone.1 + handshakes);
        let before = load.now();
        let came = load.wait(LIMIT, |now| now.frames >= before.frames + 600);
        ensure!(came, "{:?}", load.now());
    }
    assert!(gone.0 > 100 && gone.1 > 10, "little was lost: {gone:?}");
    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    if let Young::Saved(_) = young {
        // What the change is about is over; now it settles, and whoever is listed with the wrong backend would show.
        let settled = |status: &Value| status["services"][0]["changing"] == false;
        scene.ebb.wait_status(LIMIT, settled)?;
        scene.traffic(&load, 50)?;
    }
    let status = scene.ebb.status()?;
    let report = load.stop(Duration::from_millis(500));
    let (old, broken): (Vec<_>, Vec<_>) = report
        .broken
        .iter()
        .partition(|broken| broken.started_ns < began);
    let begun = |length: Length| {
        let flows = report.flows.iter();
        flows
            .filter(|flow| flow.started_ns > from && flow.length == length)
            .count()
    };
    eprintln!(
        "{name}: lost {gone:?} entries; of {before} long flows from before the drain {} broke, of {} short and {} long ones \
         begun during it {}",
        old.len(),
        begun(Length::Short),
        begun(Length::Long),
        broken.len()
    );
    assert!(old.is_empty(), "from before, such as {}", old[0]);
    if let Young::Saved(by) = young {
        assert!(broken.is_empty(), "begun during it, such as {}", broken[0]);
        let saved = &status["services"][0]["outcomes"][by];
        assert!(saved.as_u64() > Some(0), "nothing needed {by}: {saved}");
    }
    scene.none_begun_on("b1", &report, from..now())?;
    assert_eq!(drained.code, Some(0), "{drained}");
    check_sum(&drained.json()?)
}

fn on(way: Way, young: Young) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.more.push('\n');
        service.more.push_str(IDLE);
    };
    let scene = Scene::with(way, &BACKENDS, edit, "")?;
    lost(&scene, &format!("{way:?}"), young)
}

#[test]
fn tables_lost_nat() -> Result<()> {
    on(Way::Nat, Young::Saved("drop_second_chance"))
}

#[test]
fn tables_lost_l2() -> Result<()> {
    // In `l2` nobody sees the answers, and nobody can be asked.
    on(Way::L2, Young::Exposed)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn tables_lost_nat_v6() -> Result<()> {
    on(Way::NatV6, Young::Saved("drop_second_chance"))
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn tables_lost_l2_v6() -> Result<()> {
    on(Way::L2V6, Young::Exposed)
}

/// Through tunnels that end in `ebb decap`, which is asked for connections that nothing is known of.
fn through(forward: &str, families: (Family, Family)) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let more = format!("decap = \"ebb\"\n{IDLE}");
    let scene = tunnel::scene_with(forward, families, Some(tunnel::WIDE), &BACKENDS, &more)?;
    let name = format!("{forward} {families:?}");
    lost(&scene, &name, Young::Saved("forward_second_chance"))?;
    tunnel::none_refused(&scene, &BACKENDS)?;
    let back = tunnel::counted(&scene, "b1", "eth0", "sent_back").context("b1")?;
    ensure!(back > 0, "b1 has sent nothing back");
    Ok(())
}

#[test]
fn tables_lost_ipip() -> Result<()> {
    through("ipip", (Family::V4, Family::V4))
}

#[test]
fn tables_lost_gue() -> Result<()> {
    through("gue", (Family::V4, Family::V6))
}

#[test]
#[ignore = "keeps the time bounded: the same runs over other families; `--ignored` runs this too"]
fn tables_lost_ipip_4in6() -> Result<()> {
    through("ipip", (Family::V4, Family::V6))
}

#[test]
#[ignore = "keeps the time bounded: the same runs over other families; `--ignored` runs this too"]
fn tables_lost_gue_6in6() -> Result<()> {
    through("gue", (Family::V6, Family::V6))
}

/// In `full-nat` every flow has a port of the node's, which is kept.
#[test]
fn tables_lost_full_nat() -> Result<()> {
    in_full_nat(Family::V4)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn tables_lost_full_nat_v6() -> Result<()> {
    in_full_nat(Family::V6)
}

fn in_full_nat(family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = full_nat_scene(family)?;
    let name = format!("full-nat {family:?}");
    lost(&scene, &name, Young::Saved("drop_second_chance"))
}

fn full_nat_scene(family: Family) -> Result<Scene> {
    let edit = |service: &mut Service| {
        service.more = format!("drain = {{ timeout = \"60s\" }}\n{IDLE}");
    };
    full_nat::scene_with(Topology::TwoArm, family, &BACKENDS, edit)
}

/// A drain is taken back, and that has settled: flows that began during it are where their slots name nobody any more. Then the
/// tables are lost, more than once.
fn lost_later(scene: &Scene, name: &str) -> Result<()> {
    let load = scene.load(120, 50.0)?;
    let before = load.now().long.values().sum::<usize>();
    scene.ok("drain web/b1 --timeout 60s")?;
    load.open_long(YOUNG);
    ensure!(load.wait_long(before + YOUNG, LIMIT), "{:?}", load.broken());
    scene.ok("undrain web/b1")?;
    let settled = |status: &Value| status["services"][0]["changing"] == false;
    let saved = |status: &Value| {
        status["services"][0]["outcomes"]["drop_second_chance"]
            .as_u64()
            .unwrap_or(0)
    };
    let status = scene.ebb.wait_status(LIMIT, settled)?;
    let mut gone = (0, 0);
    for _ in 0..3 {
        let (flows, handshakes) = scene.lose_tables()?;
        gone = (gone.0 + flows, gone.1 + handshakes);
        scene.traffic(&load, 50)?;
        ensure!(
            load.wait_answered(LIMIT),
            "{:?}\n{}",
            load.broken(),
            scene.who_waits()
        );
    }
    let withheld = saved(&scene.ebb.status()?) - saved(&status);
    let report = load.stop(Duration::from_millis(500));
    eprintln!(
        "{name}: lost {gone:?} entries after the change had settled; of {} long flows {} broke, {withheld} resets withheld",
        before + YOUNG,
        report.broken.len()
    );
    ensure!(report.is_clean(), "{}", report.summary());
    // A third of the young ones, each time.
    ensure!(withheld > 20, "{withheld} resets were withheld");
    Ok(())
}

#[test]
fn tables_lost_later_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| service.more.push_str(&format!("\n{IDLE}"));
    lost_later(&Scene::with(Way::Nat, &BACKENDS, edit, "")?, "nat, later")
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn tables_lost_later_full_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    lost_later(&full_nat_scene(Family::V4)?, "full-nat, later")
}

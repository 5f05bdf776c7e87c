//! The tables are lost, several times, while the deadline of a drain cuts the flows of its backend: those that began during the
//! drain, on other backends, live on; those that the deadline is for are cut in its time.

use std::time::Duration;

use anyhow::{Result, ensure};
use ebb_tests::{
    client::Reason,
    config::Service,
    lab::{Topology, address::Family},
    scenario::{LIMIT, Scene, Way, can_run, joined, now},
};

use super::{full_nat, tunnel};

const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// Over which flows are cut.
const SPREAD: Duration = Duration::from_secs(4);
/// How much later the last may be.
const LATE: Duration = Duration::from_secs(2);
const DRAIN: &str = "drain = { timeout = \"60s\", spread = \"4s\" }";
/// Flows that begin during the drain. Every third or fourth of them is in a moved slot.
const YOUNG: usize = 120;
const LOSSES: usize = 6;

fn lost_while_cut(scene: &Scene, name: &str) -> Result<()> {
    let load = scene.load(200, 0.0)?;
    let began = scene.moment(&load)?;
    let at_first = load.now().long;
    let before = at_first.values().sum::<usize>();
    // As the clients know it: in `full-nat` the servers do not see them.
    let old = at_first.get("b1").copied().unwrap_or(0);
    ensure!(old > 0, "{at_first:?}");
    let waiting = scene.background("drain web/b1 --timeout 3s --on-deadline reset --wait --json");
    scene.wait_backend("b1", |b1| b1["admin"] == "draining")?;
    load.open_long(YOUNG);
    ensure!(load.wait_long(before + YOUNG, LIMIT), "{:?}", load.broken());
    let is_cutting = load.wait(LIMIT, |now| now.broken > 0);
    ensure!(is_cutting, "{:?}", load.now());
    let cut_from = now();
    for _ in 0..LOSSES {
        scene.lose_tables()?;
        // Every flow has been heard of about twice, or is waiting for an answer.
        let before = load.now();
        let came = load.wait(LIMIT, |now| now.frames >= before.frames + 400);
        ensure!(came, "{:?}", load.now());
    }
    let lost_until = now();
    let drained = joined(waiting)?;
    assert_eq!(drained.code, Some(3), "{drained}");
    let all_cut = load.wait(LIMIT, |now| now.broken >= old as u64);
    ensure!(all_cut, "{:?}", load.now());
    scene.traffic(&load, 0)?;
    let report = load.stop(Duration::from_millis(500));
    let (cut, others): (Vec<_>, Vec<_>) = report
        .broken
        .iter()
        .partition(|broken| broken.started_ns < began && broken.backend.as_deref() == Some("b1"));
    let last = cut.iter().map(|broken| broken.broken_ns).max().unwrap_or(0);
    let took = Duration::from_nanos(last.saturating_sub(cut_from));
    let young = report.flows.iter().filter(|flow| flow.started_ns > began);
    eprintln!(
        "{name}: {LOSSES} losses in the first {:?} of cutting; of {} flows on b1 {} were cut within {took:?}; of {} begun during \
         the drain and {} others {} broke",
        Duration::from_nanos(lost_until - cut_from),
        old,
        cut.len(),
        young.count(),
        before - old,
        others.len()
    );
    assert!(others.is_empty(), "such as {}", others[0]);
    assert_eq!(cut.len(), old);
    let odd = cut.iter().find(|broken| broken.reason != Reason::Reset);
    assert!(odd.is_none(), "{odd:?}");
    assert!(took <= SPREAD + LATE, "{took:?}");
    Ok(())
}

fn on(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| service.more = DRAIN.to_owned();
    let scene = Scene::with(way, &BACKENDS, edit, "")?;
    lost_while_cut(&scene, &format!("{way:?}"))
}

#[test]
fn tables_lost_in_a_cut_nat() -> Result<()> {
    on(Way::Nat)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn tables_lost_in_a_cut_nat_v6() -> Result<()> {
    on(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same rule as in `nat`; `--ignored` runs this too"]
fn tables_lost_in_a_cut_full_nat() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| service.more = DRAIN.to_owned();
    let scene = full_nat::scene_with(Topology::TwoArm, Family::V4, &BACKENDS, edit)?;
    lost_while_cut(&scene, "full-nat")
}

#[test]
fn tables_lost_in_a_cut_ipip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let more = format!("decap = \"ebb\"\n{DRAIN}");
    let families = (Family::V4, Family::V4);
    let scene = tunnel::scene_with("ipip", families, Some(tunnel::WIDE), &BACKENDS, &more)?;
    lost_while_cut(&scene, "ipip")
}

//! Backends that come and go, and changes one upon the other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    config::Service,
    scenario::{LIMIT, Scene, Way, backend, can_run, now},
};

/// A drain, an addition, a switch, an undrain and a switch back, each before the one before has settled.
fn overlapping(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| service.pools[0].1.retain(|name| name != "b4");
    let scene = Scene::with(way, &["b1", "b2", "b3", "b4", "g1", "g2"], edit, "")?;
    let load = scene.load(150, 120.0)?;
    let turnover = || -> Result<()> {
        load.close_long(None, 0.15, Duration::from_millis(300), true);
        scene.traffic(&load, 60)
    };
    let mut closed = Vec::new();

    scene.ok("drain web/b1")?;
    let drained = now();
    turnover()?;
    let at = scene.backend_at("b4");
    scene.ok(&format!("add web/blue/b4 {at}"))?;
    scene.wait_backend("b4", |b4| b4["accepting"] == true)?;
    turnover()?;
    let on_b4 = load.now().short.get("b4").copied().unwrap_or(0);
    assert!(on_b4 > 0, "b4 gets nothing: {:?}", load.now());
    scene.ok("switch web green")?;
    let green = now();
    turnover()?;
    let undrain = scene.moment(&load)?;
    closed.push(("b1", drained..undrain));
    scene.ok("undrain web/b1")?;
    turnover()?;
    // Back to blue: from here on b1 takes flows again, g1 and g2 do not.
    let back = scene.moment(&load)?;
    for name in ["b1", "b2", "b3", "b4"] {
        closed.push((name, green..back));
    }
    scene.ok("switch web blue")?;
    let blue = now();
    turnover()?;
    scene.ok("drain web/b2")?;
    let second = now();
    turnover()?;
    let end = now();
    for (name, from) in [("g1", blue), ("g2", blue), ("b2", second)] {
        closed.push((name, from..end));
    }
    let b1 = load.now().short.get("b1").copied().unwrap_or(0);
    let report = load.stop(Duration::from_millis(500));
    assert!(report.is_clean(), "{}", report.summary());
    for (name, window) in closed {
        scene
            .none_begun_on(name, &report, window.clone())
            .with_context(|| format!("{name} in {window:?}"))?;
    }
    assert!(
        !scene.begun_on("b1", &report, blue..end)?.is_empty(),
        "b1 is active again but gets nothing ({b1})"
    );
    Ok(())
}

#[test]
fn overlapping_nat() -> Result<()> {
    overlapping(Way::Nat)
}

#[test]
fn overlapping_l2() -> Result<()> {
    overlapping(Way::L2)
}

/// A backend is removed only when it has no flows, and its place is free for another.
fn removed_and_added(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let load = scene.load(90, 100.0)?;
    let said = scene.refused("remove web/b1", "remove web/b1: it is active")?;
    assert!(
        said.contains("hint: `ebb drain web/b1 --wait` first"),
        "{said}"
    );
    scene.ok("drain web/b1")?;
    let from = now();
    let said = scene.refused("remove web/b1", "it is draining and has ")?;
    assert!(said.contains("hint: wait for the drain to end"), "{said}");
    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    scene.ok("remove web/b1")?;
    scene
        .ebb
        .wait_status(LIMIT, |status| backend(status, "b1").is_none())?;
    scene.refused("drain web/b1", "b1")?;
    scene.traffic(&load, 50)?;
    let until = scene.moment(&load)?;

    // The same server under another name.
    let at = scene.backend_at("b1");
    let said = scene.refused(
        &format!("add web/blue/b2 {at}"),
        "has a backend of this name",
    )?;
    assert!(said.contains("hint: "), "{said}");
    scene.ok(&format!("add web/blue/b9 {at} --weight 2"))?;
    scene.wait_backend("b9", |b9| b9["accepting"] == true)?;
    let before = load.now();
    let came = load.wait(LIMIT, |now| now.short.get("b1") > before.short.get("b1"));
    ensure!(came, "b9 gets nothing: {:?}", load.now());
    load.close_long(None, 0.2, Duration::from_millis(300), true);
    scene.traffic(&load, 100)?;
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    scene.none_begun_on("b1", &report, from..until)
}

#[test]
fn removed_and_added_nat() -> Result<()> {
    removed_and_added(Way::Nat)
}

#[test]
fn removed_and_added_l2() -> Result<()> {
    removed_and_added(Way::L2)
}

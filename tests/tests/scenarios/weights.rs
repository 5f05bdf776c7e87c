//! Weights and maintenance by hand, overlapping with a drain, its end and an addition: flows stay where they began, new ones
//! follow the weights, and what was set outlasts a reload and the daemon.

use std::{ops::Range, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Load, Report},
    config::Service,
    scenario::{LIMIT, Scene, Way, backend, can_run, now},
};
use serde_json::Value;

use super::third;

const BACKENDS: [&str; 5] = ["b1", "b2", "b3", "b4", "b5"];
/// Long flows from before, and those that each change adds.
const BEFORE: usize = 120;
const MORE: usize = 60;
/// Short requests a second, and those of each change that shares are counted of.
const REQUESTS: f64 = 120.0;
const COUNTED: u64 = 300;

/// Commands that make one change, and the weights of those that take new flows from then on.
type Change = (&'static [&'static str], &'static [(&'static str, f64)]);

/// Each begins before the one before has settled.
const CHANGES: &[Change] = &[
    (
        &["weight web/b1 3"],
        &[("b1", 3.0), ("b2", 1.0), ("b3", 1.0), ("b4", 1.0)],
    ),
    (
        &["drain web/b2 --timeout 120s"],
        &[("b1", 3.0), ("b3", 1.0), ("b4", 1.0)],
    ),
    (
        &["add web/blue/b5 ADDRESS", "maintenance web/b3"],
        &[("b1", 3.0), ("b4", 1.0), ("b5", 1.0)],
    ),
    (
        &["undrain web/b2", "weight web/b4 0", "weight web/b5 2"],
        &[("b1", 3.0), ("b2", 1.0), ("b5", 2.0)],
    ),
    (
        &["activate web/b3", "weight web/b1 web/b4 web/b5 default"],
        &[
            ("b1", 1.0),
            ("b2", 1.0),
            ("b3", 1.0),
            ("b4", 1.0),
            ("b5", 1.0),
        ],
    ),
];

fn scene(way: Way, idle: &str) -> Result<Scene> {
    let edit = |service: &mut Service| {
        service.pools[0].1.retain(|name| name != "b5");
        service
            .more
            .push_str(&format!("\nidle_timeout = \"{idle}\""));
    };
    Scene::with(way, &BACKENDS, edit, "")
}

/// Makes a change and lets more flows begin; the time in which only those that it names got new ones.
fn change(scene: &Scene, load: &Load, (commands, takers): &Change) -> Result<Range<u64>> {
    for command in *commands {
        let at = scene.backend_at("b5").to_string();
        scene.ok(&command.replace("ADDRESS", &at))?;
    }
    for (name, _) in *takers {
        scene.wait_backend(name, |shown| shown["accepting"] == true)?;
    }
    let from = now();
    let wanted = load.now().long.values().sum::<usize>() + MORE;
    load.open_long(MORE);
    ensure!(load.wait_long(wanted, LIMIT), "{:?}", load.broken());
    scene.traffic(load, COUNTED)?;
    Ok(from..scene.moment(load)?)
}

/// New flows of this time went to those that take them, each to its weight, and to nobody else.
fn follow_weights(
    scene: &Scene,
    report: &Report,
    window: &Range<u64>,
    takers: &[(&str, f64)],
) -> Result<()> {
    for name in BACKENDS {
        if takers.iter().all(|(taker, _)| *taker != name) {
            scene.none_begun_on(name, report, window.clone())?;
        }
    }
    let begun = report
        .flows
        .iter()
        .filter(|flow| window.contains(&flow.started_ns));
    let begun: Vec<&str> = begun.filter_map(|flow| flow.backend.as_deref()).collect();
    let all: f64 = takers.iter().map(|(_, weight)| weight).sum();
    for (name, weight) in takers {
        let expected = weight / all;
        let own = begun.iter().filter(|taker| *taker == name).count();
        let share = own as f64 / begun.len() as f64;
        // Five times what chance does to so many flows, and half a percent that a table may be off.
        let chance = (expected * (1.0 - expected) / begun.len() as f64).sqrt();
        ensure!(
            (share - expected).abs() < 5.0 * chance + 0.005,
            "{name} got {own} of {} new flows, its share is {expected:.3}",
            begun.len()
        );
    }
    Ok(())
}

/// What the status says of a backend's weight: the one that holds, and the configuration's where it is another.
fn weight(scene: &Scene, name: &str) -> Result<(Value, Value)> {
    let status = scene.ebb.status()?;
    let shown = backend(&status, name).context("a backend")?;
    Ok((shown["weight"].clone(), shown["configured_weight"].clone()))
}

/// `between` happens after each change, and says how many entries of both tables it lost.
fn overlapping(
    scene: &mut Scene,
    name: &str,
    patience: Duration,
    mut between: impl FnMut(&mut Scene, &Load, usize) -> Result<(u32, u32)>,
) -> Result<(u32, u32)> {
    let load = scene.patient_load(BEFORE, REQUESTS, patience)?;
    let mut windows = Vec::new();
    let mut moments = vec![0, scene.moment(&load)?];
    let on_b3 = scene.open_on("b3")?.len();
    ensure!(on_b3 > 10, "{on_b3} flows on b3");
    let mut gone = (0, 0);
    for (number, one) in CHANGES.iter().enumerate() {
        windows.push(change(scene, &load, one)?);
        moments.push(scene.moment(&load)?);
        let (flows, handshakes) = between(scene, &load, number)?;
        gone = (gone.0 + flows, gone.1 + handshakes);
    }
    scene.traffic(&load, 50)?;
    let report = load.stop(Duration::from_millis(500));
    third::tell(name, &moments, &report, gone);
    ensure!(report.is_clean(), "{}", report.summary());
    for (window, (_, takers)) in windows.iter().zip(CHANGES) {
        follow_weights(scene, &report, window, takers)?;
    }
    Ok(gone)
}

/// Both tables are lost in each change.
fn tables_lost(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene(way, "20s")?;
    let between = |scene: &mut Scene, load: &Load, _| {
        let gone = scene.lose_tables()?;
        // Each backend that is asked for a flow in vain costs a retransmission, and each waits twice as long as the one
        // before: whoever were met by the next loss in the middle of that would in the end be silent for an idle timeout.
        if !load.wait_answered(third::PATIENCE / 2) {
            eprintln!("after {:?}:\n{}", third::PATIENCE / 2, scene.who_waits());
            let all = load.wait_answered(third::PATIENCE / 2);
            ensure!(all, "{:?}\n{}", load.broken(), scene.who_waits());
        }
        Ok(gone)
    };
    let name = format!("{way:?}, tables lost");
    let gone = overlapping(&mut scene, &name, third::PATIENCE, between)?;
    ensure!(gone.0 > 100 && gone.1 > 10, "little was lost: {gone:?}");
    let saved = &scene.ebb.status()?["services"][0]["outcomes"]["drop_second_chance"];
    ensure!(
        saved.as_u64() > Some(0),
        "no flow needed what the tables held"
    );
    Ok(())
}

#[test]
fn weights_tables_lost_nat() -> Result<()> {
    tables_lost(Way::Nat)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn weights_tables_lost_nat_v6() -> Result<()> {
    tables_lost(Way::NatV6)
}

/// The daemon is killed and the configuration read again in the middle; what was set by hand stays until it is taken back.
/// In the end all has settled, and everybody is where he was.
fn daemon_killed(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene(way, "8s")?;
    let between = |scene: &mut Scene, load: &Load, number| {
        if number == 2 {
            scene.ebb.kill9();
            scene.ebb.restart(&scene.lab)?;
            scene.wait_all_up()?;
            scene.ok("reload")?;
            scene.wait_backend("b3", |b3| b3["admin"] == "maintenance")?;
            ensure!(weight(scene, "b1")? == (3.into(), 1.into()));
            let shown = scene.ok("status web")?.stdout;
            let by_hand = "b1: weight 3 set by hand, 1 otherwise";
            ensure!(shown.contains(by_hand), "{shown}");
        }
        if number + 1 == CHANGES.len() {
            ensure!(weight(scene, "b1")? == (1.into(), Value::Null));
            let settled = |status: &Value| status["services"][0]["changing"] == false;
            scene.ebb.wait_status(LIMIT, settled)?;
        }
        scene.traffic(load, 50)?;
        Ok((0, 0))
    };
    let name = format!("{way:?}, daemon killed");
    overlapping(&mut scene, &name, Duration::from_secs(10), between).map(drop)
}

#[test]
fn weights_daemon_killed_l2() -> Result<()> {
    daemon_killed(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in the other mode; `--ignored` runs this too"]
fn weights_daemon_killed_nat() -> Result<()> {
    daemon_killed(Way::Nat)
}

/// Fewer than `min_available` are refused with the number, unless forced.
#[test]
fn weights_min_available() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| service.more.push_str("\nmin_available = 2");
    let scene = Scene::with(Way::Nat, &["b1", "b2", "b3"], edit, "")?;
    scene.ok("maintenance web/b1")?;
    let rest = "1 of 2 accepting backends of pool blue would remain, min_available is 2";
    for (line, command) in [
        ("weight web/b2 0", "weight 0 of"),
        ("maintenance web/b2", "maintenance"),
        ("drain web/b2", "drain"),
    ] {
        let said = scene.refused(line, &format!("{command} web/b2: {rest}"))?;
        ensure!(said.contains("or use --force"), "{said}");
    }
    scene.ok("weight web/b2 0 --force")?;
    let b2 = scene.wait_backend("b2", |b2| b2["accepting"] == false)?;
    ensure!(b2["admin"] == "active" && b2["weight"] == 0, "{b2}");
    scene.ok("weight web --pool blue default")?;
    scene.ok("activate web --pool blue")?;
    for name in ["b1", "b2"] {
        scene.wait_backend(name, |shown| shown["accepting"] == true)?;
    }
    Ok(())
}

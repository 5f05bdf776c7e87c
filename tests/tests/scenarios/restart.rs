//! The daemon is killed: forwarding goes on, and the next one goes on where it was.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use ebb_tests::{
    client::Reason,
    scenario::{LIMIT, Scene, Way, backend, can_run, check_sum, long_on, now},
};
use serde_json::Value;

/// What must be the same after a restart.
fn memory(status: &Value) -> Vec<Value> {
    ebb_tests::scenario::backends(status)
        .into_iter()
        .map(|backend| {
            let drain = &backend["drain"];
            serde_json::json!([
                backend["name"],
                backend["address"],
                backend["id"],
                backend["admin"],
                backend["weight"],
                drain["id"],
                drain["since_ms"],
                drain["deadline_ms"],
                drain["on_deadline"],
                drain["flows"]["at_start"],
            ])
        })
        .collect()
}

fn pools(status: &Value) -> Vec<(Value, Value)> {
    let pools = status["services"][0]["pools"].as_array();
    pools
        .into_iter()
        .flatten()
        .map(|pool| (pool["name"].clone(), pool["active"].clone()))
        .collect()
}

/// Killed right after a drain's command returned, with a switch and an added backend before: all is as before, and
/// the drain ends with a receipt.
fn killed_in_a_drain(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut ebb_tests::config::Service| service.pools[0].1.retain(|b| b != "b4");
    let mut scene = Scene::with(way, &["b1", "b2", "b3", "b4", "g1", "g2"], edit, "")?;
    scene.ok("switch web green")?;
    scene.ok("switch web blue")?;
    let address = scene.backend_at("b4");
    scene.ok(&format!("add web/blue/b4 {address}"))?;
    scene.wait_backend("b4", |b| b["accepting"] == true)?;
    let load = scene.load(120, 100.0)?;
    let syns_again = scene.syns_again()?;

    scene.ok("drain web/b1 --timeout 60s --on-deadline leave")?;
    let from = now();
    let before = scene.ebb.status()?;
    scene.ebb.kill9();
    // Nobody is there; users of b1 leave and come back.
    scene.traffic(&load, 100)?;
    load.close_long(Some("b1"), 0.5, Duration::from_millis(500), true);
    scene.traffic(&load, 50)?;
    scene.ebb.restart(&scene.lab)?;
    let after = scene.ebb.status()?;
    assert_eq!(memory(&after), memory(&before));
    assert_eq!(pools(&after), pools(&before));
    scene.traffic(&load, 50)?;

    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    let until = now();
    assert_eq!(drained.code, Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["flows_at_start"], receipt["finished"], "{receipt}");
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    assert_eq!(scene.syns_again()?, syns_again, "a SYN was lost");
    scene.none_begun_on("b1", &report, from..until)
}

#[test]
fn killed_in_a_drain_nat() -> Result<()> {
    killed_in_a_drain(Way::Nat)
}

#[test]
fn killed_in_a_drain_l2() -> Result<()> {
    killed_in_a_drain(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn killed_in_a_drain_nat_v6() -> Result<()> {
    killed_in_a_drain(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn killed_in_a_drain_l2_v6() -> Result<()> {
    killed_in_a_drain(Way::L2V6)
}

/// The deadline is an absolute time: it holds through a restart, and one that passed meanwhile is made good.
#[test]
fn deadlines_outlast_the_daemon() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(Way::Nat, &["b1", "b2", "b3"])?;
    let load = scene.load(60, 50.0)?;
    let on_b1 = long_on(&load, "b1");
    let drain = scene
        .ok("drain web/b1 --timeout 3s --on-deadline reset --json")?
        .json()?;
    scene.ebb.kill9();
    scene.traffic(&load, 20)?;
    scene.ebb.restart(&scene.lab)?;
    let drained = scene.run("drain web/b1 --wait --json")?;
    assert_eq!(drained.code, Some(3), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reset"], on_b1.len(), "{receipt}");
    // To the deadline, and a second in which flows are cut.
    let seconds = receipt["seconds"].as_f64().context("seconds")?;
    assert!(seconds >= 4.0, "{receipt}");
    let b1 = scene.wait_backend("b1", |b1| b1["admin"] == "drained")?;
    assert_eq!(b1["drain"]["deadline_ms"], drain["deadline_ms"], "{b1}");
    let cut = load.wait(LIMIT, |now| now.broken >= on_b1.len() as u64);
    assert!(cut, "{:?}", load.now());

    // The second deadline passes while nobody is there to see it.
    let on_b2 = long_on(&load, "b2");
    let drain = scene
        .ok("drain web/b2 --timeout 500ms --on-deadline leave --json")?
        .json()?;
    scene.ebb.kill9();
    let deadline_ms = drain["deadline_ms"].as_u64().context("deadline")?;
    while unix_ms() <= deadline_ms {
        scene.traffic(&load, 10)?;
    }
    scene.ebb.restart(&scene.lab)?;
    let b2 = scene.wait_backend("b2", |b2| b2["drain"]["state"] == "drained")?;
    assert_eq!(b2["drain"]["deadline_ms"], deadline_ms);
    check_sum(&b2["drain"]["receipt"])?;
    let flows = scene.ok("flows web/b2 --json")?.stdout;
    assert_eq!(
        b2["drain"]["receipt"]["left"],
        on_b2.len(),
        "{b2}\n{flows}\n{on_b2:?}"
    );

    scene.traffic(&load, 20)?;
    let report = load.stop(Duration::from_millis(300));
    assert_eq!(report.broken.len(), on_b1.len(), "{}", report.summary());
    let expected = |b: &ebb_tests::client::Broken| {
        b.reason == Reason::Reset && b.local.is_some_and(|local| on_b1.contains(&local))
    };
    assert!(report.broken.iter().all(expected), "{}", report.summary());
    Ok(())
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Killed at any moment of a switch: nothing breaks, and the next daemon knows one pool or the other.
fn killed_in_a_switch(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(way, &["b1", "b2", "g1", "g2"])?;
    let load = scene.load(80, 100.0)?;
    let syns_again = scene.syns_again()?;
    let mut closed = Vec::new();
    for (round, pool) in ["green", "blue", "green", "blue"].into_iter().enumerate() {
        let line = format!("switch web {pool}");
        let switching = scene.background(&line);
        // Moments from before the command has arrived to after it is done.
        let moment = Duration::from_millis(4 * round as u64 + 3);
        load.wait(moment, |_| false);
        scene.ebb.kill9();
        let said = thread::JoinHandle::join(switching)
            .map_err(|_| anyhow::anyhow!("the command's thread panicked"))??;
        scene.traffic(&load, 40)?;
        scene.ebb.restart(&scene.lab)?;
        let active = |status: &Value| -> Vec<Value> {
            let pools = pools(status).into_iter();
            pools
                .filter(|(_, on)| on == true)
                .map(|(name, _)| name)
                .collect()
        };
        let found = active(&scene.ebb.status()?);
        assert_eq!(found.len(), 1, "{found:?}");
        eprintln!(
            "round {round}: the command ended with {:?}, {found:?} is active",
            said.code
        );
        if said.code == Some(0) {
            assert_eq!(found[0], pool, "{said}");
        }
        // Of the pool that takes no flows the new daemon knows nothing yet.
        scene.wait_all_up()?;
        scene.ok(&line)?;
        let from = now();
        load.close_long(None, 0.2, Duration::from_millis(200), true);
        scene.traffic(&load, 60)?;
        let until = scene.moment(&load)?;
        let status = scene.ebb.status()?;
        assert_eq!(active(&status), [pool]);
        let other = if pool == "blue" {
            ["g1", "g2"]
        } else {
            ["b1", "b2"]
        };
        for name in other {
            let accepting = backend(&status, name).context("gone")?["accepting"].clone();
            assert_eq!(accepting, false, "{name}");
            closed.push((name, from..until));
        }
    }
    let report = load.stop(Duration::from_millis(300));
    assert!(report.is_clean(), "{}", report.summary());
    for (name, window) in closed {
        scene.none_begun_on(name, &report, window)?;
    }
    assert_eq!(scene.syns_again()?, syns_again, "a SYN was lost");
    Ok(())
}

#[test]
fn killed_in_a_switch_nat() -> Result<()> {
    killed_in_a_switch(Way::Nat)
}

#[test]
#[ignore = "keeps the time bounded: the same runs in `nat`; `--ignored` runs this too"]
fn killed_in_a_switch_l2() -> Result<()> {
    killed_in_a_switch(Way::L2)
}

/// The deadline passes while the pool is switched, and the daemon is killed in the middle of its cuts: whoever is still
/// there when the next one comes is told.
fn killed_while_it_cuts(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(way, &["b1", "b2", "b3", "g1", "g2"])?;
    let load = scene.load(120, 0.0)?;
    scene.ok("switch web green")?;
    scene.ok("drain web/b1 --timeout 2s --on-deadline reset")?;
    let on_b1 = long_on(&load, "b1").len();
    // The first of them are cut.
    load.wait(LIMIT, |now| now.broken > 0);
    scene.ebb.kill9();
    let cut = load.now().broken;
    load.wait(Duration::from_secs(2), |_| false);
    scene.ebb.restart(&scene.lab)?;
    let before = scene.ebb.status()?;
    let told = load.wait(LIMIT / 2, |now| now.broken >= on_b1 as u64);
    let after = scene.ebb.status()?;
    assert!(
        told,
        "{cut} of {on_b1} were cut before, {} in all; counted before {} and after {}",
        load.now().broken,
        before["services"][0]["outcomes"],
        after["services"][0]["outcomes"],
    );
    for broken in load.broken() {
        assert_eq!(broken.reason, Reason::Reset, "{broken}");
        assert_eq!(broken.backend.as_deref(), Some("b1"), "{broken}");
    }
    Ok(())
}

#[test]
fn killed_while_it_cuts_nat() -> Result<()> {
    killed_while_it_cuts(Way::Nat)
}

#[test]
fn killed_while_it_cuts_l2() -> Result<()> {
    killed_while_it_cuts(Way::L2)
}

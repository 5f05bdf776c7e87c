//! What ebb says against what clients and backends know.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::scenario::{LIMIT, Scene, Way, can_run};
use serde_json::Value;

fn explain(scene: &Scene, from: SocketAddr) -> Result<Value> {
    scene
        .ok(&format!("explain web --from {from} --json"))?
        .json()
}

/// `ebb explain` names the backend that then takes the connection, in peace and during a drain; `ebb flows` and
/// `ebb status` know the connections that clients and backends know.
fn agrees(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let client = scene.raw_client(0)?;
    let from = |port: u16| SocketAddr::new(client.address(), port);
    let mut open = Vec::new();
    for port in 42_000..42_015_u16 {
        let said = explain(&scene, from(port))?;
        let mut conversation = client.conversation(port, scene.target(), 1000)?;
        conversation.connect(LIMIT)?;
        let answer = conversation.get("/bytes/10?seed=1", LIMIT)?;
        assert_eq!(said["opening"]["backend"], answer.backend, "{said}");
        open.push((port, answer.backend, conversation));
    }
    let load = scene.load(60, 0.0)?;
    let on_b1 = scene.open_on("b1")?;
    let raw_on_b1 = open.iter().filter(|(_, name, _)| name == "b1").count();
    ensure!(
        on_b1.len() > 5 && raw_on_b1 > 0,
        "the slots are not shared out"
    );
    for name in ["b1", "b2", "b3"] {
        let raw = open.iter().filter(|(_, on, _)| on == name).count();
        let known = scene.open_on(name)?.len() + raw;
        // What the daemon knows is as old as its last look at the tables.
        scene
            .wait_backend(name, |b| b["flows"] == known)
            .with_context(|| format!("the clients have {known} connections on {name}"))?;
    }

    scene.ok("drain web/b1")?;
    for (port, name, conversation) in &mut open {
        let answer = conversation.get("/bytes/10?seed=2", LIMIT)?;
        assert_eq!(&answer.backend, name);
        let said = explain(&scene, from(*port))?;
        assert_eq!(said["established"]["backend"], answer.backend, "{said}");
    }
    for port in 43_000..43_015_u16 {
        let said = explain(&scene, from(port))?;
        assert_ne!(said["opening"]["backend"], "b1", "{said}");
        let mut conversation = client.conversation(port, scene.target(), 2000)?;
        conversation.connect(LIMIT)?;
        let answer = conversation.get("/bytes/10?seed=1", LIMIT)?;
        assert_eq!(said["opening"]["backend"], answer.backend, "{said}");
        let said = explain(&scene, from(port))?;
        assert_eq!(said["established"]["backend"], answer.backend, "{said}");
        conversation.close(LIMIT)?;
    }
    let mut known = on_b1;
    known.extend(
        open.iter()
            .filter(|(_, name, _)| name == "b1")
            .map(|(port, ..)| from(*port)),
    );
    // Each is listed once it has sent something since.
    let b1 = scene
        .wait_backend("b1", |b1| b1["drain"]["flows"]["listed"] == known.len())
        .with_context(|| format!("{} connections are listed", known.len()))?;
    assert_eq!(b1["flows"], known.len(), "{b1}");
    assert_eq!(b1["drain"]["flows"]["at_start"], known.len(), "{b1}");
    let listed = scene.ok("flows web/b1 --json")?.json()?;
    let flows = listed
        .as_array()
        .or_else(|| listed["flows"].as_array())
        .with_context(|| format!("no list of flows: {listed}"))?;
    let clients: BTreeSet<SocketAddr> = flows
        .iter()
        .filter(|flow| flow["phase"] == "established")
        .filter_map(|flow| flow["client"].as_str()?.parse().ok())
        .collect();
    assert_eq!(clients, known);
    let people = scene.ok("status web")?.stdout;
    assert!(
        people.contains("b1") && people.contains("draining"),
        "{people}"
    );
    let report = load.stop(Duration::from_millis(200));
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}

#[test]
fn agrees_nat() -> Result<()> {
    agrees(Way::Nat)
}

#[test]
fn agrees_l2() -> Result<()> {
    agrees(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn agrees_nat_v6() -> Result<()> {
    agrees(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn agrees_l2_v6() -> Result<()> {
    agrees(Way::L2V6)
}

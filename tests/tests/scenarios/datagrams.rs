//! UDP services: flows without opening or closing packets.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    datagram::{Client, Flow},
    scenario::{LIMIT, Scene, Way, can_run, check_sum, joined, now},
};

const EVERY: Duration = Duration::from_millis(100);

fn scene(way: Way) -> Result<Scene> {
    let udp = |service: &mut ebb_tests::config::Service| {
        service.protocol = "udp".into();
        service.more += "\nidle_timeout = \"2s\"";
    };
    Scene::with(way, &["b1", "b2", "b3"], udp, "")
}

/// A client with this many flows, each of which has had some answers.
fn client(scene: &Scene, flows: usize) -> Result<Client> {
    let client = Client::start(scene.lab.netns("client").clone(), scene.target(), EVERY);
    client.open(flows)?;
    answered(&client, 2)?;
    let shares = client.by_server();
    let fair = shares.len() == 3 && shares.values().all(|count| *count > flows / 6);
    ensure!(fair, "not shared out: {shares:?}");
    Ok(client)
}

fn answered(client: &Client, answers: u32) -> Result<()> {
    if client.wait_answers(answers, LIMIT) {
        return Ok(());
    }
    let flows = client.flows();
    let stuck = flows.iter().find(|flow| flow.answered < answers);
    anyhow::bail!("no answers: {stuck:?}")
}

fn on<'a>(flows: &'a [Flow], server: &str) -> Vec<&'a Flow> {
    let of = |flow: &&Flow| flow.server.as_deref() == Some(server);
    flows.iter().filter(of).collect()
}

/// No flow has moved, and every question was answered rightly.
fn unbroken(flows: &[Flow]) {
    for flow in flows {
        assert_eq!(flow.moves, [], "{flow:?}");
        assert_eq!((flow.wrong, flow.answered), (0, flow.sent), "{flow:?}");
    }
}

fn drain_under_load(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene(way)?;
    let client = client(&scene, 300)?;
    let old = on(&client.flows(), "b1").len();
    scene.wait_backend("b1", |b1| b1["flows"] == old)?;
    scene.ok("drain web/b1 --timeout 60s")?;
    let drained_from = now();
    client.open(200)?;
    answered(&client, 3)?;
    let b1 = scene.wait_backend("b1", |b1| b1["drain"]["flows"]["at_start"] == old)?;
    assert_eq!(
        (&b1["flows"], &b1["opened"]),
        (&old.into(), &old.into()),
        "{b1}"
    );

    scene.ebb.kill9();
    client.open(100)?;
    answered(&client, 5)?;
    scene.ebb.restart(&scene.lab)?;
    client.open(100)?;
    answered(&client, 5)?;
    let listed = scene.ok("flows web/b1 --json")?.json()?;
    let listed = listed.as_array().or_else(|| listed["flows"].as_array());
    assert_eq!(listed.context("no list of flows")?.len(), old);

    let waiting = scene.background("drain web/b1 --wait --json");
    assert_eq!(client.silence("b1"), old);
    let drained = joined(waiting)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reason"], "empty", "{receipt}");
    assert_eq!(receipt["flows_at_start"], old, "{receipt}");
    assert_eq!(receipt["idle_expired"], old, "{receipt}");
    let b1 = scene.wait_backend("b1", |b1| b1["admin"] == "drained")?;
    assert_eq!(
        (&b1["opened"], &b1["closed"]),
        (&old.into(), &old.into()),
        "{b1}"
    );

    let flows = client.stop()?;
    unbroken(&flows);
    let late: Vec<_> = on(&flows, "b1")
        .into_iter()
        .filter(|flow| flow.began_ns >= drained_from)
        .collect();
    assert_eq!(late.len(), 0, "begun on b1 after the drain: {late:?}");
    println!(
        "{} flows, {old} on the drained backend: 0 moved, 0 begun on it since, {} answers",
        flows.len(),
        flows
            .iter()
            .map(|flow| u64::from(flow.answered))
            .sum::<u64>()
    );
    Ok(())
}

#[test]
fn a_drain_moves_no_datagrams_nat() -> Result<()> {
    drain_under_load(Way::Nat)
}

#[test]
fn a_drain_moves_no_datagrams_l2() -> Result<()> {
    drain_under_load(Way::L2)
}

/// Without a change the table says where a flow is, whatever is lost. In a drain a flow of the draining backend whose
/// entry is lost can not be told from a new one: it goes where new ones go, once. The others stay.
#[test]
fn lost_entries_move_only_what_the_drain_moves() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Way::Nat)?;
    let client = client(&scene, 300)?;
    let (lost, _) = scene.lose_tables()?;
    ensure!(lost >= 300, "{lost} entries");
    answered(&client, 3)?;
    unbroken_so_far(&client.flows());

    scene.ok("drain web/b1 --timeout 60s")?;
    answered(&client, 2)?;
    client.open(100)?;
    answered(&client, 2)?;
    unbroken_so_far(&client.flows());
    let before = client.flows();
    scene.lose_tables()?;
    answered(&client, 3)?;
    let after = client.stop()?;
    let (mut left, mut collateral) = (0, 0);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((after.wrong, after.answered), (0, after.sent), "{after:?}");
        assert!(after.moves.len() <= 1, "{after:?}");
        if before.server.as_deref() == Some("b1") {
            assert_eq!(after.moves.len(), 1, "{after:?}");
            left += 1;
        } else {
            collateral += after.moves.len();
        }
    }
    // Flows begun during the drain are where new ones go.
    assert!(after[300..].iter().all(|flow| flow.moves.is_empty()));
    println!(
        "{left} of the draining backend moved once, {collateral} of {} others",
        400 - left
    );
    assert!(left > 50 && collateral * 50 <= 400 - left);
    Ok(())
}

fn unbroken_so_far(flows: &[Flow]) {
    assert!(
        flows
            .iter()
            .all(|flow| flow.moves.is_empty() && flow.wrong == 0)
    );
}

/// A datagram can not be reset: at the deadline its flow goes to another backend.
#[test]
fn at_the_deadline_flows_go_on_elsewhere() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Way::Nat)?;
    let client = client(&scene, 150)?;
    let old = on(&client.flows(), "b1").len();
    let drained = scene.run("drain web/b1 --timeout 2s --wait --json")?;
    assert_eq!(drained.code, Some(3), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reset"], old, "{receipt}");
    answered(&client, 3)?;
    let flows = client.stop()?;
    let moved = flows.iter().filter(|flow| !flow.moves.is_empty());
    assert_eq!(moved.clone().count(), old);
    for flow in moved {
        assert_eq!((flow.moves.len(), flow.moves[0].from.as_str()), (1, "b1"));
    }
    assert!(flows.iter().all(|flow| flow.answered == flow.sent));
    thread::yield_now();
    Ok(())
}

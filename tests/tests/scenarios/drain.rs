//! Drains: nothing breaks, nothing new comes, and the receipt is right.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    client::{
        Reason,
        raw::{Conversation, RawClient, flag},
    },
    scenario::{
        LIMIT, SHORT_AT_ONCE, Scene, Way, backend, can_run, check_sum, joined, long_on, now,
    },
};

/// A drain under load: nothing breaks, no connection begun after the command returned comes to the backend, and the
/// receipt accounts for what the backend had.
fn under_load(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let load = scene.load(150, 150.0)?;
    // All of these stay open through the command.
    let least = long_on(&load, "b1").len();
    scene.ok("drain web/b1 --timeout 60s")?;
    let from = now();
    scene.traffic(&load, 50)?;
    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    scene.traffic(&load, 50)?;
    let until = now();
    let status = scene.ebb.status()?;
    let report = load.stop(Duration::from_millis(500));

    assert!(report.is_clean(), "{}", report.summary());
    scene.none_begun_on("b1", &report, from..until)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    let at_start = receipt["flows_at_start"].as_u64().context("flows")? as usize;
    // And of the short ones there are no more at a time.
    let most = least + SHORT_AT_ONCE;
    assert!(
        (least..=most).contains(&at_start),
        "{least} to {most} flows at the start, the receipt says {receipt}"
    );
    assert_eq!(receipt["reason"], "empty");
    assert_eq!(receipt["finished"], at_start, "{receipt}");
    let b1 = backend(&status, "b1").context("b1")?;
    assert_eq!((&b1["admin"], &b1["flows"]), (&"drained".into(), &0.into()));
    Ok(())
}

#[test]
fn under_load_nat() -> Result<()> {
    under_load(Way::Nat)
}

#[test]
fn under_load_l2() -> Result<()> {
    under_load(Way::L2)
}

#[test]
fn under_load_nat_v6() -> Result<()> {
    under_load(Way::NatV6)
}

#[test]
fn under_load_l2_v6() -> Result<()> {
    under_load(Way::L2V6)
}

/// At the deadline, `reset` cuts exactly the connections of the draining backend, `leave` none.
fn deadline(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let load = scene.load(90, 0.0)?;

    let on_b1 = scene.open_on("b1")?;
    let waiting =
        scene.background("drain web/b1 --timeout 1500ms --on-deadline leave --wait --json");
    let left = joined(waiting)?;
    assert_eq!(left.code, Some(3), "{left}");
    let receipt = left.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["left"], on_b1.len(), "{receipt}");
    assert_eq!(receipt["reason"], "deadline");
    scene.traffic(&load, 0)?;
    assert_eq!(scene.open_on("b1")?, on_b1, "left connections go on");
    assert!(load.broken().is_empty(), "{:?}", load.broken());

    let on_b2 = scene.open_on("b2")?;
    // Only b3 would remain for new ones, which is enough.
    let waiting =
        scene.background("drain web/b2 --timeout 1500ms --on-deadline reset --wait --json");
    let cut = joined(waiting)?;
    assert_eq!(cut.code, Some(3), "{cut}");
    let receipt = cut.json()?;
    check_sum(&receipt)?;
    assert_eq!(receipt["reset"], on_b2.len(), "{receipt}");
    let all_cut = load.wait(LIMIT, |now| now.broken >= on_b2.len() as u64);
    assert!(all_cut, "{:?}", load.now());
    scene.traffic(&load, 0)?;
    let report = load.stop(Duration::from_millis(300));
    let broken: BTreeSet<SocketAddr> = report.broken.iter().filter_map(|b| b.local).collect();
    assert_eq!(broken, on_b2, "{}", report.summary());
    let reset = |reason: Reason| reason == Reason::Reset;
    assert!(
        report.broken.iter().all(|broken| reset(broken.reason)),
        "{}",
        report.summary()
    );
    Ok(())
}

#[test]
fn deadline_nat() -> Result<()> {
    deadline(Way::Nat)
}

#[test]
fn deadline_l2() -> Result<()> {
    deadline(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn deadline_nat_v6() -> Result<()> {
    deadline(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn deadline_l2_v6() -> Result<()> {
    deadline(Way::L2V6)
}

/// To wait for a drain again is not to put its end off.
#[test]
fn waiting_again_keeps_the_deadline() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(Way::Nat, &["b1", "b2"])?;
    let load = scene.load(20, 0.0)?;
    let first = scene
        .ok("drain web/b1 --timeout 2s --on-deadline leave --json")?
        .json()?;
    let again = scene.run("drain web/b1 --wait --json")?;
    assert_eq!(again.code, Some(3), "{again}");
    let receipt = again.json()?;
    let seconds = receipt["seconds"].as_f64().context("seconds")?;
    assert!(seconds >= 2.0, "{first} {receipt}");
    let status = scene.ebb.status()?;
    let ended = &backend(&status, "b1").context("b1")?["drain"];
    for key in ["id", "since_ms", "deadline_ms"] {
        assert_eq!(ended[key], first[key], "{key}: {first} {ended}");
    }
    let report = load.stop(Duration::from_millis(100));
    assert!(report.is_clean(), "{}", report.summary());
    Ok(())
}

/// Handshakes that a backend has begun before the drain and that the client ends during it.
fn handshake_held_open(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let client = scene.raw_client(0)?;
    let mut held = Vec::new();
    for port in 40_000..40_030_u16 {
        let mut conversation = client.conversation(port, scene.target(), u32::from(port) << 12)?;
        conversation.send_syn()?;
        let number = conversation.await_syn_ack(LIMIT)?;
        held.push((port, conversation, number));
    }
    let half_open = |name: &str| -> Result<BTreeSet<u16>> {
        let peers = scene.half_open_on(name)?;
        Ok(peers.into_iter().map(|peer| peer.port()).collect())
    };
    let on_b1 = half_open("b1")?;
    ensure!(on_b1.len() >= 4, "the slots are not shared out: {on_b1:?}");
    scene.ok("drain web/b1 --timeout 60s")?;

    for (port, mut conversation, number) in held {
        let was_on_b1 = on_b1.contains(&port);
        if port % 2 == 0 {
            // Its SYN comes once more: a second SYN-ACK of the same handshake, not another backend's.
            conversation.send_syn()?;
            assert_eq!(conversation.await_syn_ack(LIMIT)?, number, "port {port}");
        }
        conversation.send_ack()?;
        let answer = conversation.get("/bytes/3000?seed=1", LIMIT)?;
        assert_eq!(answer.backend == "b1", was_on_b1, "port {port}");
        assert_eq!(answer.body.len(), 3000);
        conversation.close(LIMIT)?;
    }
    let drained = scene.run("drain web/b1 --wait --json")?;
    assert_eq!(drained.code, Some(0), "{drained}");
    check_sum(&drained.json()?)
}

#[test]
fn handshake_held_open_nat() -> Result<()> {
    handshake_held_open(Way::Nat)
}

#[test]
fn handshake_held_open_l2() -> Result<()> {
    handshake_held_open(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn handshake_held_open_nat_v6() -> Result<()> {
    handshake_held_open(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn handshake_held_open_l2_v6() -> Result<()> {
    handshake_held_open(Way::L2V6)
}

/// Established connections of one raw client on b1, with their ports.
fn established_on_b1<'a>(
    scene: &Scene,
    client: &'a RawClient,
) -> Result<Vec<(u16, Conversation<'a>)>> {
    let mut on_b1 = Vec::new();
    for port in 41_000..41_040_u16 {
        let mut conversation = client.conversation(port, scene.target(), u32::from(port))?;
        conversation.connect(LIMIT)?;
        let answer = conversation.get("/bytes/100?seed=1", LIMIT)?;
        if answer.backend == "b1" {
            on_b1.push((port, conversation));
        }
    }
    ensure!(on_b1.len() >= 4, "only {} connections on b1", on_b1.len());
    Ok(on_b1)
}

/// Sends the connection's SYN again until the server's challenge ACK comes: a machine that lags may have data come
/// again before it, and for half a second after an answer to such a duplicate the kernel sends no other.
fn challenged(old: &Conversation) -> Result<()> {
    let (next, expected) = old.numbers();
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        old.send_syn()?;
        while let Some(segment) = old.next_segment(Duration::from_secs(1))? {
            ensure!(
                segment.flags & (flag::SYN | flag::RST) == 0,
                "taken for a new connection: {segment:?}"
            );
            let numbers = (segment.acknowledgement, segment.sequence);
            if segment.flags == flag::ACK && segment.payload.is_empty() {
                ensure!(numbers == (next, expected), "{segment:?}");
                return Ok(());
            }
        }
    }
    bail!("no challenge ACK")
}

/// A SYN of a port that has a connection on a draining backend: the old one goes there again, a new one elsewhere.
fn port_reused(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new(way, &["b1", "b2", "b3"])?;
    let client = scene.raw_client(0)?;
    let on_b1 = established_on_b1(&scene, &client)?;
    scene.ok("drain web/b1 --timeout 60s")?;
    for (port, mut old) in on_b1 {
        // A late duplicate of the first SYN: b1 knows the connection and says where it stands (RFC 9293, 3.10.7.4).
        challenged(&old).with_context(|| format!("port {port}"))?;
        assert_eq!(old.get("/bytes/50?seed=2", LIMIT)?.backend, "b1");

        // The client begins anew from the same port.
        let mut new = client.conversation(port, scene.target(), 0x4000_0000 + u32::from(port))?;
        new.connect(LIMIT)?;
        let answer = new.get("/bytes/5000?seed=3", LIMIT)?;
        assert_ne!(answer.backend, "b1", "port {port}");
        assert_eq!(new.get("/bytes/10?seed=4", LIMIT)?.backend, answer.backend);
        new.close(LIMIT)?;
    }
    Ok(())
}

#[test]
fn port_reused_nat() -> Result<()> {
    port_reused(Way::Nat)
}

#[test]
fn port_reused_l2() -> Result<()> {
    port_reused(Way::L2)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn port_reused_nat_v6() -> Result<()> {
    port_reused(Way::NatV6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn port_reused_l2_v6() -> Result<()> {
    port_reused(Way::L2V6)
}

//! Backends that have no route back to the clients, behind the node's own address and ports, with live TCP.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    config::Service,
    lab::{Answers, Lab, LabOptions, Topology, address::Family},
    packets::Segment,
    scenario::{LIMIT, Scene, backend, can_run, check_sum, now},
    tagged::Frames,
};
use serde_json::Value;

/// Backends without a default route, and the daemon over them.
fn scene(
    topology: Topology,
    family: Family,
    backends: &[&str],
    option: bool,
    tail: &str,
) -> Result<Scene> {
    let lab = Lab::create(LabOptions::new(
        topology,
        Answers::ThroughBalancer,
        backends,
    ))?;
    for name in backends {
        for family in ["-4", "-6"] {
            ip(&lab, name, &[family, "route", "del", "default"])?;
        }
    }
    let mut service = Service::blue_green(&lab, "full-nat");
    service.family = family;
    service.pools.retain(|(_, members)| !members.is_empty());
    service.more = format!("client_address_option = {option}\ndrain = {{ timeout = \"60s\" }}");
    let servers = lab.serve(service.backend_port)?;
    Scene::over(lab, service, servers, tail)
}

fn ip(lab: &Lab, role: &str, words: &[&str]) -> Result<String> {
    let output = lab.command(role, "ip").args(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {words:?} in {role}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The addresses that the balancer has.
fn own_addresses(scene: &Scene) -> Result<BTreeSet<IpAddr>> {
    let text = ip(&scene.lab, "lb", &["-o", "addr", "show"])?;
    let words = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    Ok(words
        .filter_map(|prefix| prefix.split('/').next()?.parse().ok())
        .collect())
}

/// The peers of the connections of clients that a backend has seen.
fn peers(scene: &Scene, backend: &str) -> Result<Vec<SocketAddr>> {
    let stats = scene.lab.stats(backend, scene.service.backend_port)?;
    ensure!(
        stats.corrupt == 0,
        "{} wrong bytes at {backend}",
        stats.corrupt
    );
    let own: Vec<IpAddr> = own_addresses(scene)?.into_iter().collect();
    // Health checks are from the same address.
    Ok(stats.from_clients(&own).map(|c| c.peer).collect())
}

fn outcome(status: &Value, name: &str) -> u64 {
    status["services"][0]["outcomes"][name]
        .as_u64()
        .unwrap_or(0)
}

/// Large transfers both ways, every byte checked, from a client that the backend has no route to.
fn transfer(scene: &Scene) -> Result<()> {
    let target = scene.target();
    scene
        .lab
        .netns("client")
        .block_on(|| async move {
            let mut up = Connection::open(None, target, LIMIT).await?;
            up.upgrade(7).await?;
            for _ in 0..60 {
                up.echo(30_000).await?;
            }
            up.close().await?;
            let mut down = Connection::open(None, target, LIMIT).await?;
            down.get_bytes(2_000_000, 8, true).await?;
            Ok(())
        })?
        .map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
}

/// A drain under load and a killed daemon: nothing breaks, and every backend sees the node as its peer, each flow with a
/// port of its own out of the range.
fn drained_under_load(topology: Topology, family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    let mut scene = scene(topology, family, &names, false, "")?;
    transfer(&scene)?;
    let load = scene.load(90, 100.0)?;
    scene.ok("drain web/b1 --timeout 60s")?;
    let from = now();
    scene.traffic(&load, 50)?;
    scene.ebb.kill9();
    scene.traffic(&load, 50)?;
    scene.ebb.restart(&scene.lab)?;
    scene.traffic(&load, 50)?;
    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(&load, "b1", waiting)?;
    scene.traffic(&load, 50)?;
    let status = scene.ebb.status()?;
    let report = load.stop(Duration::from_millis(500));
    assert!(report.is_clean(), "{}", report.summary());
    assert_eq!(drained.code, Some(0), "{drained}");
    check_sum(&drained.json()?)?;
    let b1 = backend(&status, "b1").context("b1")?;
    assert_eq!((&b1["admin"], &b1["flows"]), (&"drained".into(), &0.into()));
    assert_eq!(outcome(&status, "drop_no_port"), 0);

    // The client's own ports are not what a backend sees, so when a connection was accepted has to do.
    let stats = scene.lab.stats("b1", scene.service.backend_port)?;
    let own: Vec<IpAddr> = own_addresses(&scene)?.into_iter().collect();
    let slack = Duration::from_millis(500).as_nanos() as u64;
    let late = stats
        .from_clients(&own)
        .filter(|connection| connection.accepted_ns > from + slack)
        .filter(|connection| connection.requests > 0)
        .count();
    assert_eq!(late, 0, "connections begun on b1 after its drain");
    for name in names {
        let peers = peers(&scene, name)?;
        assert!(peers.len() > 10, "{} connections on {name}", peers.len());
        assert!(
            peers
                .iter()
                .all(|peer| (1024..32_768).contains(&peer.port()))
        );
    }
    Ok(())
}

#[test]
fn drained_under_load_full_nat() -> Result<()> {
    drained_under_load(Topology::TwoArm, Family::V4)
}

#[test]
fn drained_under_load_full_nat_v6() -> Result<()> {
    drained_under_load(Topology::TwoArm, Family::V6)
}

#[test]
fn drained_under_load_full_nat_one_armed() -> Result<()> {
    drained_under_load(Topology::OneArm, Family::V4)
}

/// With the option a backend's wire shows the client in the opening, and the connection works as ever.
fn option_on_the_wire(family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Topology::TwoArm, family, &["b1"], true, "")?;
    let wire = Frames::open(scene.lab.netns("b1"), "eth0")?;
    transfer(&scene)?;
    let client = scene.client();
    let octets = match client {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let port = scene.service.backend_port;
    let (flags, shown) = wire.find(LIMIT, |frame| {
        let segment = Segment::parse(frame).ok()?;
        let is_opening = segment.to.port() == port && segment.flags & 2 != 0;
        // Health checks have none.
        (is_opening && segment.options.first() == Some(&254))
            .then_some((segment.flags, segment.options))
    })?;
    assert_eq!((flags & 0x3f, usize::from(shown[1])), (2, 4 + octets.len()));
    assert_eq!(shown[4..4 + octets.len()], octets);
    assert_ne!(shown[2..4], [0, 0]);
    assert_eq!(outcome(&scene.ebb.status()?, "forward_optionless"), 0);
    Ok(())
}

#[test]
fn option_on_the_wire_v4() -> Result<()> {
    option_on_the_wire(Family::V4)
}

#[test]
fn option_on_the_wire_v6() -> Result<()> {
    option_on_the_wire(Family::V6)
}

//! Backends that have no route back to the clients, behind the node's own address and ports, with live TCP.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    config::Service,
    datagram::Client,
    lab::{Answers, Lab, LabOptions, Topology, address::Family},
    packets::Segment,
    scenario::{LIMIT, Scene, backend, can_run, check_sum, joined, now},
    tagged::Frames,
};
use serde_json::Value;

/// Backends without a default route, and the daemon over them.
fn scene(topology: Topology, family: Family, backends: &[&str], option: bool) -> Result<Scene> {
    let edit = |service: &mut Service| {
        service.more = format!("client_address_option = {option}\ndrain = {{ timeout = \"60s\" }}");
    };
    scene_with(topology, family, backends, edit)
}

pub(super) fn scene_with(
    topology: Topology,
    family: Family,
    backends: &[&str],
    edit: impl FnOnce(&mut Service),
) -> Result<Scene> {
    let options = LabOptions::new(topology, Answers::ThroughBalancer, backends);
    let (lab, service) = lab_with(options, family, edit)?;
    let servers = lab.serve(service.backend_port)?;
    Scene::over(lab, service, servers, "")
}

/// A lab of backends without a default route, and a service over them.
pub(super) fn lab_with(
    options: LabOptions,
    family: Family,
    edit: impl FnOnce(&mut Service),
) -> Result<(Lab, Service)> {
    let lab = Lab::create(options)?;
    for name in lab.backends() {
        for family in ["-4", "-6"] {
            ip(&lab, name, &[family, "route", "del", "default"])?;
        }
    }
    let mut service = Service::blue_green(&lab, "full-nat");
    service.family = family;
    service.pools.retain(|(_, members)| !members.is_empty());
    edit(&mut service);
    Ok((lab, service))
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
    let mut scene = scene(topology, family, &names, false)?;
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
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn drained_under_load_full_nat_v6() -> Result<()> {
    drained_under_load(Topology::TwoArm, Family::V6)
}

#[test]
fn drained_under_load_full_nat_one_armed() -> Result<()> {
    drained_under_load(Topology::OneArm, Family::V4)
}

/// Connections that are opened one after the other until three in a row get no answer.
async fn open_all(target: SocketAddr) -> Result<Vec<Connection>, Failure> {
    let mut open = Vec::new();
    let mut missed = 0;
    while missed < 3 && open.len() < 1000 {
        match Connection::open(None, target, Duration::from_millis(500)).await {
            Ok(mut connection) => {
                connection.upgrade(open.len() as u64).await?;
                open.push(connection);
                missed = 0;
            }
            Err(_) => missed += 1,
        }
    }
    Ok(open)
}

/// Of few ports all are used up: new flows go without, which is counted and warned of; who has one keeps it; and those of
/// ended flows come back.
#[test]
fn ports_are_used_up_and_come_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Topology::TwoArm, Family::V4, &["b1"], false)?;
    let text = format!("nat_ports = \"2000-2063\"\n{}", scene.config());
    fs::write(scene.ebb.config(), text)?;
    scene.ok("reload")?;
    let target = scene.target();
    let counts = scene.lab.netns("client").block_on(|| async move {
        let mut all = open_all(target).await?;
        let held = all.len();
        for connection in &mut all {
            connection.echo(100).await?;
        }
        for connection in all {
            connection.reset()?;
        }
        // Not until 10 s after the resets.
        let deadline = Instant::now() + LIMIT;
        loop {
            let again = open_all(target).await?.len();
            if again * 2 > held || Instant::now() > deadline {
                return Ok((held, again));
            }
        }
    })?;
    let (held, again) = counts.map_err(|failure: Failure| anyhow::anyhow!("{failure}"))?;
    assert!((32..=64).contains(&held), "{held} flows with 64 ports");
    assert!(again * 2 > held, "{again} of {held} ports came back");
    let mut seen = BTreeSet::new();
    for peer in peers(&scene, "b1")?.into_iter().take(held) {
        assert!((2000..2064).contains(&peer.port()), "{peer}");
        assert!(seen.insert(peer.port()), "{peer} has two flows");
    }
    let status = scene.ebb.status()?;
    assert!(outcome(&status, "drop_no_port") >= 3, "{status}");
    let warnings = status["services"][0]["warnings"].to_string();
    assert!(warnings.contains("every port"), "{warnings}");
    let said = scene.ok("status")?.stdout;
    assert!(said.contains("every port"), "{said}");
    Ok(())
}

/// Every flow gets so many answers more.
fn answered(scene: &Scene, client: &Client, answers: u32) -> Result<()> {
    if client.wait_answers(answers, LIMIT) {
        return Ok(());
    }
    let flows = client.flows();
    let stuck = flows.iter().find(|flow| flow.answered < answers);
    anyhow::bail!(
        "no answers: {stuck:?} {:?}",
        scene.ebb.status()?["services"][0]["outcomes"]
    )
}

/// Datagrams to backends without a route back: none is lost or changed in a drain and while the daemon is dead.
fn datagrams(family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.protocol = "udp".into();
        service.more = "idle_timeout = \"2s\"\ndrain = { timeout = \"60s\" }".into();
    };
    let mut scene = scene_with(Topology::TwoArm, family, &["b1", "b2", "b3"], edit)?;
    let netns = scene.lab.netns("client").clone();
    let client = Client::start(netns, scene.target(), Duration::from_millis(100));
    client.open(200)?;
    answered(&scene, &client, 2)?;
    let old = client.by_server()["b1"];
    scene.ok("drain web/b1 --timeout 60s")?;
    client.open(100)?;
    answered(&scene, &client, 3)?;
    scene.ebb.kill9();
    client.open(100)?;
    answered(&scene, &client, 5)?;
    scene.ebb.restart(&scene.lab)?;
    let waiting = scene.background("drain web/b1 --wait --json");
    assert_eq!(client.silence("b1"), old);
    let drained = joined(waiting)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    check_sum(&drained.json()?)?;
    for flow in client.stop()? {
        assert_eq!(flow.moves, [], "{flow:?}");
        assert_eq!((flow.wrong, flow.answered), (0, flow.sent), "{flow:?}");
    }
    Ok(())
}

#[test]
fn datagrams_full_nat() -> Result<()> {
    datagrams(Family::V4)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn datagrams_full_nat_v6() -> Result<()> {
    datagrams(Family::V6)
}

/// Datagrams in fragments, both ways, of flows that are many behind one address of the node: none is lost or changed, in a
/// drain and while the daemon is dead.
fn in_fragments(family: Family) -> Result<()> {
    /// Six fragments.
    const BODY: u16 = 8000;
    if !can_run() {
        return Ok(());
    }
    let edit = |service: &mut Service| {
        service.protocol = "udp".into();
        service.more = "idle_timeout = \"2s\"\ndrain = { timeout = \"60s\" }".into();
    };
    let mut scene = scene_with(Topology::TwoArm, family, &["b1", "b2", "b3"], edit)?;
    let netns = scene.lab.netns("client").clone();
    let every = Duration::from_millis(250);
    let client = Client::start_with(netns, scene.target(), every, BODY);
    client.open(60)?;
    answered(&scene, &client, 3)?;
    let old = client.by_server()["b1"];
    scene.ok("drain web/b1 --timeout 60s")?;
    client.open(20)?;
    answered(&scene, &client, 3)?;
    scene.ebb.kill9();
    client.open(20)?;
    answered(&scene, &client, 3)?;
    scene.ebb.restart(&scene.lab)?;
    let waiting = scene.background("drain web/b1 --wait --json");
    assert_eq!(client.silence("b1"), old);
    let drained = joined(waiting)?;
    assert_eq!(drained.code, Some(0), "{drained}");
    let status = scene.ebb.status()?;
    let (mut sent, mut lost) = (0, 0);
    for flow in client.stop()? {
        assert_eq!(flow.moves, [], "{flow:?}");
        assert_eq!(flow.wrong, 0, "{flow:?}");
        sent += u64::from(flow.sent);
        lost += u64::from(flow.sent - flow.answered);
    }
    let later = outcome(&status, "forward_fragment");
    // Where a sender moves to another CPU between two fragments, the lab's own links may hand over the second one first.
    let status = scene.ebb.status()?;
    let early = outcome(&status, "pass_fragment_early")
        + status["outcomes"]["pass_fragment_early"]
            .as_u64()
            .unwrap_or(0);
    println!(
        "{sent} questions and answers of {BODY} bytes, {later} later fragments, {early} before their first: {lost} lost, 0 wrong"
    );
    assert!(lost <= early, "{lost} lost, {status:#}");
    // Five or so each way, of what was sent by then.
    assert!(later > 5 * sent, "{later}");
    assert_eq!(outcome(&status, "drop_no_identification"), 0);
    Ok(())
}

#[test]
fn in_fragments_full_nat() -> Result<()> {
    in_fragments(Family::V4)
}

#[test]
fn in_fragments_full_nat_v6() -> Result<()> {
    in_fragments(Family::V6)
}

/// A smaller link on the way to the client: the backend learns of it by an error about a packet to the node.
fn smaller_link(family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Topology::TwoArm, family, &["b1"], false)?;
    ip(
        &scene.lab,
        "router",
        &["link", "set", "client", "mtu", "1300"],
    )?;
    let target = scene.target();
    let got = scene.lab.netns("client").block_on(|| async move {
        let mut connection = Connection::open(None, target, LIMIT).await?;
        connection.get_bytes(300_000, 1, true).await
    })?;
    got.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let node = peers(&scene, "b1")?[0].ip().to_string();
    let route = ip(&scene.lab, "b1", &["route", "get", &node])?;
    assert!(route.contains("mtu 1300"), "{route}");
    assert!(outcome(&scene.ebb.status()?, "forward_icmp") >= 1);
    Ok(())
}

#[test]
fn smaller_link_full_nat() -> Result<()> {
    smaller_link(Family::V4)
}

#[test]
fn smaller_link_full_nat_v6() -> Result<()> {
    smaller_link(Family::V6)
}

/// With the option a backend's wire shows the client in the opening, and the connection works as ever.
fn option_on_the_wire(family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(Topology::TwoArm, family, &["b1"], true)?;
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

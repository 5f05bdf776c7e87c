//! The tunnel modes with live TCP: the real daemon and its native XDP program on the balancer, `ebb decap` on the
//! backends, in every pair of families and on both sides of the MTU limit.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Connection, Failure},
    config::Service,
    lab::{Answers, Lab, LabOptions, Topology, address::Family, find_binary},
    scenario::{LIMIT, Scene, backend, can_run, check_sum, now},
};
use serde_json::Value;

/// Room for the largest outer header (IPv6 and UDP) around a packet of 1500 bytes, and some more.
pub(super) const WIDE: u16 = 1600;
const EVERY: [(Family, Family); 4] = [
    (Family::V4, Family::V4),
    (Family::V6, Family::V6),
    (Family::V6, Family::V4),
    (Family::V4, Family::V6),
];

/// Backends behind a tunnel: a lab with `ebb decap` on each of them. `families`: of the service, of the backends.
fn scene(
    forward: &str,
    families: (Family, Family),
    mtu: Option<u16>,
    backends: &[&str],
) -> Result<Scene> {
    scene_with(forward, families, mtu, backends, "")
}

/// The same with more lines in the service's table.
pub(super) fn scene_with(
    forward: &str,
    families: (Family, Family),
    mtu: Option<u16>,
    backends: &[&str],
    more: &str,
) -> Result<Scene> {
    let options = options(mtu, backends);
    let (lab, service) = lab_with(options, forward, families, more)?;
    let servers = lab.serve(service.backend_port)?;
    decap_everywhere(&lab, BALANCERS)?;
    Scene::over(lab, service, servers, "")
}

/// Backends that get tunnels.
pub(super) fn options(mtu: Option<u16>, backends: &[&str]) -> LabOptions {
    LabOptions {
        inner_mtu: mtu,
        decap: true,
        ..LabOptions::new(Topology::TwoArm, Answers::Direct, backends)
    }
}

/// A lab of such backends and a service over them.
pub(super) fn lab_with(
    options: LabOptions,
    forward: &str,
    (inner, outer): (Family, Family),
    more: &str,
) -> Result<(Lab, Service)> {
    let lab = Lab::create(options)?;
    let mut service = Service::blue_green(&lab, forward);
    service.family = inner;
    service.backend_family = Some(outer);
    service.pools.retain(|(_, members)| !members.is_empty());
    service.more = more.to_owned();
    if !more.contains("drain = ") {
        service.more += "\ndrain = { timeout = \"60s\" }";
    }
    Ok((lab, service))
}

/// What a two-armed balancer sends to backends from.
pub(super) const BALANCERS: &str = "10.3.0.0/16,fd00:3::/32";

/// Starts `ebb decap` on every backend, for tunnels from these prefixes.
pub(super) fn decap_everywhere(lab: &Lab, balancers: &str) -> Result<()> {
    let words = ["--from", balancers, "--mode", "native"];
    for backend in lab.backends() {
        decap(lab, backend, "eth0", &words)?;
    }
    Ok(())
}

/// `ebb decap` on an interface of a backend; what it said, as JSON.
pub(super) fn decap(lab: &Lab, backend: &str, interface: &str, more: &[&str]) -> Result<Value> {
    let mut command = lab.command(backend, find_binary("ebb", "EBB_BIN")?);
    command
        .args(["--json", "decap", "--interface", interface])
        .args(more);
    let output = command.output().context("run ebb decap")?;
    ensure!(
        output.status.success(),
        "ebb decap on {backend}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Packets that a backend's `ebb decap` has counted under this name.
pub(super) fn counted(scene: &Scene, backend: &str, interface: &str, name: &str) -> Result<u64> {
    let counts = decap(&scene.lab, backend, interface, &["--counts"])?;
    counts["packets"][name]
        .as_u64()
        .with_context(|| format!("{name} in {counts}"))
}

/// No `ebb decap` of these backends has refused a packet.
pub(super) fn none_refused(scene: &Scene, backends: &[&str]) -> Result<()> {
    for backend in backends {
        for dropped in ["drop_source", "drop_not_local", "drop_malformed"] {
            let count = counted(scene, backend, "eth0", dropped)?;
            assert_eq!(count, 0, "{backend} {dropped}");
        }
    }
    Ok(())
}

/// Packets of the service with this outcome.
fn outcome(scene: &Scene, name: &str) -> Result<u64> {
    let status = scene.ebb.status()?;
    Ok(status["services"][0]["outcomes"][name]
        .as_u64()
        .unwrap_or(0))
}

/// The path MTU that the client's kernel has learned for an address; `None` when nobody told it of one.
pub(super) fn learned(lab: &Lab, target: IpAddr) -> Result<Option<u32>> {
    let mut command = lab.command("client", "ip");
    let output = command
        .args(["route", "get", &target.to_string()])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut words = text.split_whitespace();
    Ok(words
        .find(|word| *word == "mtu")
        .and_then(|_| words.next()?.parse().ok()))
}

/// Large transfers both ways, every byte checked: how many bytes each way, `frames` times 32 000.
pub(super) fn transfer(lab: &Lab, target: SocketAddr, frames: u64) -> Result<u64> {
    // Many segments, and no more than the server takes in one frame.
    const FRAME: u16 = 32_000;
    lab.netns("client")
        .block_on(|| async move {
            let mut up = Connection::open(None, target, LIMIT).await?;
            up.upgrade(7).await?;
            for _ in 0..frames {
                up.echo(FRAME).await?;
            }
            up.close().await?;
            let mut down = Connection::open(None, target, LIMIT).await?;
            down.get_bytes(u64::from(FRAME) * frames, 8, true).await?;
            Ok(())
        })?
        .map_err(|failure: Failure| anyhow::anyhow!("{failure}"))?;
    Ok(u64::from(FRAME) * frames)
}

/// Transfers and many connections through a link wide enough: nothing is too big, everything comes out of a tunnel.
fn through(forward: &str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for families in EVERY {
        let what = format!("{forward} {families:?}");
        let scene = scene(forward, families, Some(WIDE), &["b1", "b2"]).context(what.clone())?;
        let load = scene.load(40, 40.0).context(what.clone())?;
        transfer(&scene.lab, scene.target(), 100).context(what.clone())?;
        let report = load.stop(Duration::from_millis(300));
        assert!(report.is_clean(), "{what}: {}", report.summary());
        for backend in ["b1", "b2"] {
            let out = counted(&scene, backend, "eth0", "decapsulated")?;
            assert!(
                out > 100,
                "{what}: {out} packets out of a tunnel on {backend}"
            );
            for dropped in ["drop_source", "drop_not_local", "drop_malformed"] {
                assert_eq!(
                    counted(&scene, backend, "eth0", dropped)?,
                    0,
                    "{what} {dropped}"
                );
            }
        }
        assert_eq!(outcome(&scene, "answer_too_big")?, 0, "{what}");
        assert_eq!(learned(&scene.lab, scene.target().ip())?, None, "{what}");
    }
    Ok(())
}

#[test]
fn transfers_through_ipip() -> Result<()> {
    through("ipip")
}

#[test]
fn transfers_through_gue() -> Result<()> {
    through("gue")
}

/// Through links of 1500 bytes the client's packets do not fit. Its kernel is told once, and the transfer goes on.
fn path_mtu(forward: &str, families: (Family, Family), room: u32) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(forward, families, None, &["b1"])?;
    assert_eq!(
        learned(&scene.lab, scene.target().ip())?,
        None,
        "nothing learned before"
    );
    let bytes = transfer(&scene.lab, scene.target(), 100)?;
    assert_eq!(learned(&scene.lab, scene.target().ip())?, Some(room));
    let answers = outcome(&scene, "answer_too_big")?;
    // The packets of one window at most, not one for each packet of the transfer.
    assert!(
        (1..bytes / 1500 / 4).contains(&answers),
        "{answers} answers for {bytes} bytes"
    );
    Ok(())
}

#[test]
fn path_mtu_is_found_ipip_4in4() -> Result<()> {
    path_mtu("ipip", (Family::V4, Family::V4), 1480)
}

#[test]
fn path_mtu_is_found_ipip_6in6() -> Result<()> {
    path_mtu("ipip", (Family::V6, Family::V6), 1460)
}

#[test]
fn path_mtu_is_found_gue_6in4() -> Result<()> {
    path_mtu("gue", (Family::V6, Family::V4), 1472)
}

#[test]
fn path_mtu_is_found_gue_4in6() -> Result<()> {
    path_mtu("gue", (Family::V4, Family::V6), 1452)
}

/// A drain under load, behind a tunnel: nothing breaks, and nothing that begins after it comes to the backend.
fn drained_under_load(forward: &str, families: (Family, Family)) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(forward, families, Some(WIDE), &["b1", "b2", "b3"])?;
    let load = scene.load(90, 100.0)?;
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
    let b1 = backend(&status, "b1").context("b1")?;
    assert_eq!((&b1["admin"], &b1["flows"]), (&"drained".into(), &0.into()));
    Ok(())
}

#[test]
fn drained_under_load_ipip() -> Result<()> {
    drained_under_load("ipip", (Family::V4, Family::V4))
}

#[test]
fn drained_under_load_gue_4in6() -> Result<()> {
    drained_under_load("gue", (Family::V4, Family::V6))
}

/// The way back is the backend's own: that its answers do not fit the link to the client it learns by an error that
/// goes through the tunnel.
#[test]
fn smaller_link_behind_ipip_4in6() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    super::icmp::smaller_link_of(scene("ipip", (Family::V4, Family::V6), Some(WIDE), &names)?)
}

#[test]
fn smaller_link_behind_gue_6in4() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    super::icmp::smaller_link_of(scene("gue", (Family::V6, Family::V4), Some(WIDE), &names)?)
}

/// Fragments go through as they are, and the backend's kernel puts them together.
#[test]
fn in_fragments_through_ipip_6in4() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    super::icmp::in_fragments_of(scene("ipip", (Family::V6, Family::V4), Some(WIDE), &names)?)
}

#[test]
fn in_fragments_through_gue_4in6() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let names = ["b1", "b2", "b3"];
    super::icmp::in_fragments_of(scene("gue", (Family::V4, Family::V6), Some(WIDE), &names)?)
}

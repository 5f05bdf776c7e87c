//! A node with several interfaces: clients on two networks of its own, backends on veths of the same host; and an
//! interface that goes and comes back, as a container's does.

use std::{net::IpAddr, slice, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::{Load, LoadOptions, begun_within},
    config::{self, Service},
    lab::{
        Answers, Ebb, Lab, LabOptions, Topology,
        address::{self, Family},
    },
    scenario::{LIMIT, Scene, can_run, now},
};
use serde_json::Value;

const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];

/// A lab with a second client's network, backends on veths of the balancer's host.
fn lab(forward: &str, family: Family) -> Result<(Lab, Service)> {
    let answers = match forward {
        "l2" => Answers::Direct,
        _ => Answers::ThroughBalancer,
    };
    let lab = Lab::create(LabOptions {
        side_client: true,
        ..LabOptions::new(Topology::TwoArm, answers, &BACKENDS)
    })?;
    let mut service = Service::blue_green(&lab, forward);
    service.family = family;
    service.pools.retain(|(_, members)| !members.is_empty());
    Ok((lab, service))
}

fn scene(forward: &str, family: Family) -> Result<Scene> {
    let (lab, service) = lab(forward, family)?;
    let servers = lab.serve(service.backend_port)?;
    Scene::over(lab, service, servers, "")
}

/// Load of the second client.
fn side_load(scene: &Scene) -> Result<Load> {
    let options = LoadOptions {
        long: 60,
        ramp: Duration::from_millis(300),
        short_per_second: 60.0,
        limit: Duration::from_secs(10),
        ..LoadOptions::new(scene.target())
    };
    let load = Load::start(scene.lab.netns("side"), options)?;
    let is_full = load.wait_long(60, LIMIT) && load.wait(LIMIT, |now| now.requests_ok > 20);
    ensure!(is_full, "{:?} {:?}", load.now(), load.broken());
    Ok(load)
}

fn attached(status: &Value) -> Vec<(String, String)> {
    let interfaces = status["node"]["xdp"]["interfaces"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    interfaces
        .into_iter()
        .flatten()
        .map(|on| (text(&on["interface"]), text(&on["mode"])))
        .collect()
}

/// The service's packets with this outcome.
fn outcome(status: &Value, name: &str) -> u64 {
    status["services"][0]["outcomes"][name]
        .as_u64()
        .unwrap_or(0)
}

/// Clients of both networks have connections on every backend, through a drain; answers find each its network.
fn two_networks(forward: &str, family: Family) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = scene(forward, family)?;
    let native = |name: &str| (name.to_owned(), "native".to_owned());
    let expected = ["eth0", "side", "to-b1", "to-b2", "to-b3"].map(native);
    assert_eq!(attached(&scene.ebb.status()?), expected);

    let (front, side) = (scene.load(60, 60.0)?, side_load(&scene)?);
    scene.ok("drain web/b1")?;
    let from = now();
    for load in [&front, &side] {
        scene.traffic(load, 50)?;
        let long = load.now().long;
        assert!(
            BACKENDS.iter().all(|name| long.contains_key(*name)),
            "{long:?}"
        );
    }
    let status = scene.ebb.status()?;
    let until = now();
    let (front, side) = (
        front.stop(Duration::from_millis(200)),
        side.stop(Duration::from_millis(200)),
    );
    assert!(front.is_clean(), "{}", front.summary());
    assert!(side.is_clean(), "{}", side.summary());
    if forward == "nat" {
        // By XDP, not by the kernel that would forward them as well; but for the first ones, when it has yet to
        // resolve the clients.
        let (xdp, kernel) = (
            outcome(&status, "forward_reply"),
            outcome(&status, "forward_reply_kernel"),
        );
        assert!(
            xdp > 1000 && kernel * 20 < xdp,
            "{xdp} answers by XDP, {kernel} by the kernel"
        );
    }
    // Each network's clients are known by their own addresses, and nothing new came to b1 from either.
    let clients: [(&str, IpAddr, _); 2] = [
        ("front", address::client(family), &front),
        ("side", address::side_client(family), &side),
    ];
    for (name, peer, report) in clients {
        let seen = |backend: &str| scene.lab.stats(backend, scene.service.backend_port);
        for backend in BACKENDS {
            let on_it = report
                .flows
                .iter()
                .filter(|flow| flow.backend.as_deref() == Some(backend));
            assert_eq!(
                seen(backend)?.from_clients(&[peer]).count(),
                on_it.count(),
                "{name} on {backend}"
            );
        }
        let window = from..until;
        let late = begun_within(
            &seen("b1")?,
            &report.flows,
            &[peer],
            slice::from_ref(&window),
        );
        assert!(late.is_empty(), "{name}: {:?}", late.first());
    }
    Ok(())
}

#[test]
fn two_networks_nat() -> Result<()> {
    two_networks("nat", Family::V4)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn two_networks_l2() -> Result<()> {
    two_networks("l2", Family::V4)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn two_networks_nat_v6() -> Result<()> {
    two_networks("nat", Family::V6)
}

#[test]
fn two_networks_l2_v6() -> Result<()> {
    two_networks("l2", Family::V6)
}

/// An interface goes: the others' traffic does not notice, the status says so, and a daemon killed meanwhile starts
/// again. It comes back: the program is on it again, and its clients are served.
#[test]
fn an_interface_goes_and_comes_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene("nat", Family::V6)?;
    let load = scene.load(60, 60.0)?;
    scene.lab.unplug_side()?;
    let is_gone = |status: &Value| {
        let has = attached(status).iter().any(|(name, _)| name == "side");
        let warned = status["node"]["warnings"]
            .to_string()
            .contains("interface side: it is gone");
        !has && warned
    };
    scene.ebb.wait_status(LIMIT, is_gone)?;
    scene.traffic(&load, 50)?;
    scene.ebb.kill9();
    scene.ebb.restart(&scene.lab)?;
    scene.ebb.wait_status(LIMIT, is_gone)?;
    scene.traffic(&load, 50)?;

    scene.lab.plug_side()?;
    scene.ebb.wait_status(LIMIT, |status| {
        let back = ("side".to_owned(), "native".to_owned());
        attached(status).contains(&back) && status["node"]["warnings"] == serde_json::json!([])
    })?;
    let side = side_load(&scene)?;
    scene.traffic(&side, 50)?;
    for load in [side, load] {
        let report = load.stop(Duration::from_millis(200));
        assert!(report.is_clean(), "{}", report.summary());
    }
    Ok(())
}

/// An interface that was never there is a mistake in the file.
#[test]
fn an_interface_that_is_missing_from_the_start() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, service) = lab("nat", Family::V4)?;
    let text = config::file(&lab, &[service]).replace("\"side\"", "\"sied\"");
    let said = Ebb::start(&lab, &text)
        .err()
        .context("it started")?
        .to_string();
    for part in [
        "error: cannot run the daemon: there is no interface sied",
        "hint: there are eth0, to-b1, to-b2, to-b3, side; mend `interfaces` in ",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    Ok(())
}

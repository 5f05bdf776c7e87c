//! A link between the node and a tunnel's far end that takes less than the node's own: a router tells the node, not the
//! client, and the node tells the client.

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    config::Service,
    lab::{
        Answers, Lab, LabOptions, Topology,
        address::{Family, two_arm_lb},
        find_binary,
    },
    scenario::{Scene, can_run},
};

use super::tunnel::{WIDE, counted, decap, learned, transfer};

/// MTU of the link behind the router: less than the client's 1500, and less again with the outer header.
const NARROW: u32 = 1400;

/// In place of a router between balancer and backend: another backend's namespace.
const ROUTER: &str = "r1";

/// Runs `ip` in a namespace.
fn ip(lab: &Lab, role: &str, line: &str) -> Result<()> {
    let output = lab
        .command(role, "ip")
        .args(line.split_whitespace())
        .output()?;
    ensure!(output.status.success(), "{role}: ip {line}: {output:?}");
    Ok(())
}

/// Puts the router's namespace between the balancer and `b1`, with a narrow link at its far side.
fn reroute(lab: &Lab, family: Family) -> Result<()> {
    let (option, near, far, host) = match family {
        Family::V4 => ("-4", "10.250.0.1/24", "10.250.0.2", 32),
        Family::V6 => ("-6", "fd00:250::1/64", "fd00:250::2", 128),
    };
    let backend = lab.backend_in(family, "b1");
    let router = lab.backend_in(family, ROUTER);
    let target = lab.netns("b1").name().to_owned();
    lab.netns(ROUTER).run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    })??;
    ip(
        lab,
        ROUTER,
        &format!("link add mid mtu {NARROW} type veth peer name mid mtu {NARROW} netns {target}"),
    )?;
    ip(lab, ROUTER, "link set mid up")?;
    ip(lab, "b1", "link set mid up")?;
    ip(lab, ROUTER, &format!("addr add {near} dev mid"))?;
    let length = near.rsplit('/').next().context("a length")?;
    ip(lab, "b1", &format!("addr add {far}/{length} dev mid"))?;
    ip(
        lab,
        ROUTER,
        &format!("{option} route add {backend}/{host} via {far}"),
    )?;
    ip(
        lab,
        "lb",
        &format!("{option} route add {backend}/{host} via {router}"),
    )
}

/// What the router needs: the smallest program, at the end of a veth that XDP sends by.
fn pass(lab: &Lab) -> Result<()> {
    let mut command = lab.command(ROUTER, find_binary("ebb", "EBB_BIN")?);
    let output = command.args(["pass", "eth0"]).output()?;
    ensure!(output.status.success(), "ebb pass: {output:?}");
    Ok(())
}

/// The client is told of a narrow link that only a router between the node and the backend knows of.
fn narrow(forward: &str, (inner, outer): (Family, Family), room: u32) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::create(LabOptions {
        inner_mtu: Some(WIDE),
        decap: true,
        ..LabOptions::new(Topology::TwoArm, Answers::Direct, &[ROUTER, "b1"])
    })?;
    reroute(&lab, outer)?;
    pass(&lab)?;
    let mut service = Service::blue_green(&lab, forward);
    service.family = inner;
    service.backend_family = Some(outer);
    service.pools.retain(|(_, members)| !members.is_empty());
    let servers = lab.serve(service.backend_port)?;
    let from = two_arm_lb(outer, 0).to_string();
    let more = ["--from", &from, "--mode", "native"];
    decap(&lab, "b1", "mid", &more)?;
    let scene = Scene::over(lab, service, servers, "")?;
    let target = scene.target();
    ensure!(
        learned(&scene.lab, target.ip())?.is_none(),
        "learned before"
    );
    transfer(&scene.lab, target, 100)?;
    assert_eq!(learned(&scene.lab, target.ip())?, Some(room));
    let out = counted(&scene, "b1", "mid", "decapsulated")?;
    ensure!(out > 100, "{out} packets out of the tunnel");
    Ok(())
}

#[test]
fn a_narrow_link_before_ipip() -> Result<()> {
    narrow("ipip", (Family::V4, Family::V4), NARROW - 20)
}

#[test]
fn a_narrow_link_before_gue_4in6() -> Result<()> {
    narrow("gue", (Family::V4, Family::V6), NARROW - 48)
}

#[test]
#[ignore = "as the others"]
fn a_narrow_link_before_ipip_6in4() -> Result<()> {
    narrow("ipip", (Family::V6, Family::V4), NARROW - 20)
}

//! Ping, path-MTU discovery and fragments, with real kernels at both ends.

use std::{collections::BTreeMap, fs, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    client::Connection,
    scenario::{LIMIT, Scene, Way, can_run},
};
use serde_json::Value;

/// The service's packets with this outcome.
fn outcome(status: &Value, name: &str) -> u64 {
    status["services"][0]["outcomes"][name]
        .as_u64()
        .unwrap_or(0)
}

/// Runs a program in a role's namespace.
fn run(scene: &Scene, role: &str, line: &str) -> Result<Output> {
    let mut words = line.split(' ');
    let mut command = scene.lab.command(role, words.next().context("no program")?);
    command
        .args(words)
        .output()
        .with_context(|| format!("run {line}"))
}

fn ok(scene: &Scene, role: &str, line: &str) -> Result<String> {
    let output = run(scene, role, line)?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The service's address answers pings of several sizes; switched off by a reload it does not, and on again it does.
fn ping(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new(way, &["b1", "b2"])?;
    let vip = scene.target().ip();
    for bytes in [0, 1, 56, 1400] {
        let said = ok(
            &scene,
            "client",
            &format!("ping -n -c 3 -i 0.05 -W 5 -s {bytes} {vip}"),
        )?;
        // One hop: the router.
        ensure!(
            said.contains(" 0% packet loss") && said.matches("ttl=63").count() == 3,
            "{said}"
        );
    }
    scene
        .ebb
        .wait_status(LIMIT, |status| outcome(status, "answer_echo") == 12)
        .context("12 echo requests answered")?;

    scene.service.more += "\nicmp_echo = false";
    fs::write(scene.ebb.config(), scene.config())?;
    scene.ok("reload")?;
    let silent = run(
        &scene,
        "client",
        &format!("ping -n -c 2 -i 0.05 -W 1 {vip}"),
    )?;
    ensure!(!silent.status.success(), "{silent:?}");
    scene.service.more = scene.service.more.replace("= false", "= true");
    fs::write(scene.ebb.config(), scene.config())?;
    scene.ok("reload")?;
    ok(
        &scene,
        "client",
        &format!("ping -n -c 2 -i 0.05 -W 5 {vip}"),
    )?;
    Ok(())
}

#[test]
fn ping_nat() -> Result<()> {
    ping(Way::Nat)
}

#[test]
fn ping_l2_v6() -> Result<()> {
    ping(Way::L2V6)
}

/// What fits the link between router and client.
const SMALL: u32 = 1300;

fn smaller_link(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    smaller_link_of(Scene::new(way, &["b1", "b2", "b3"])?)
}

/// Every backend learns by an error addressed to the service that its answers do not fit the link to the client:
/// downloads stand still on each that does not get its own flow's error.
pub(super) fn smaller_link_of(scene: Scene) -> Result<()> {
    let names = scene.lab.backends();
    // Only the router knows it: the client still offers segments for 1500 bytes.
    ok(&scene, "router", &format!("ip link set client mtu {SMALL}"))?;
    // The backends are one source to the router, which would tell them one error a second.
    scene.lab.netns("router").run(|| {
        fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")?;
        fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")
    })??;
    let target = scene.target();
    let mut served = BTreeMap::<String, u32>::new();
    for seed in 0..24_u64 {
        let answer = scene.lab.netns("client").block_on(|| async move {
            let mut connection = Connection::open(None, target, LIMIT).await?;
            connection.get_bytes(300_000, seed, true).await
        })?;
        let answer = answer.map_err(|failure| anyhow::anyhow!("download {seed}: {failure}"))?;
        *served.entry(answer.backend.to_string()).or_default() += 1;
    }
    ensure!(
        served.len() == names.len(),
        "not all backends were asked: {served:?}"
    );
    let client = scene.client();
    for name in names {
        let route = ok(&scene, name, &format!("ip route get {client}"))?;
        ensure!(
            route.contains(&format!("mtu {SMALL}")),
            "{name} has not learnt the MTU: {route}"
        );
    }
    let status = scene
        .ebb
        .wait_status(LIMIT, |status| {
            outcome(status, "forward_icmp") >= names.len() as u64
        })
        .context("an error for each backend")?;
    eprintln!(
        "{served:?}, {} errors forwarded",
        outcome(&status, "forward_icmp")
    );
    Ok(())
}

#[test]
fn smaller_link_nat() -> Result<()> {
    smaller_link(Way::Nat)
}

#[test]
fn smaller_link_l2() -> Result<()> {
    smaller_link(Way::L2)
}

#[test]
fn smaller_link_nat_v6() -> Result<()> {
    smaller_link(Way::NatV6)
}

#[test]
fn smaller_link_l2_v6() -> Result<()> {
    smaller_link(Way::L2V6)
}

/// Connections whose every packet with data comes in fragments: the backends' kernels put them together.
fn in_fragments(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    in_fragments_of(Scene::new(way, &["b1", "b2", "b3"])?)
}

/// The same in a scene of three backends.
pub(super) fn in_fragments_of(scene: Scene) -> Result<()> {
    let client = scene.raw_client(0)?;
    let mut served = BTreeMap::<String, u32>::new();
    for port in 42_000..42_020_u16 {
        let mut conversation = client.conversation(port, scene.target(), 1000)?;
        conversation.cut(24, 16);
        conversation.connect(LIMIT)?;
        let answer = conversation.get("/bytes/1000?seed=5", LIMIT)?;
        ensure!(
            answer.status == 200 && answer.body.len() == 1000,
            "{answer:?}"
        );
        *served.entry(answer.backend).or_default() += 1;
        conversation.close(LIMIT)?;
    }
    ensure!(served.len() == 3, "{served:?}");
    let status = scene.ebb.wait_status(Duration::from_secs(5), |status| {
        outcome(status, "forward_fragment") >= 20
    })?;
    eprintln!("{} later fragments", outcome(&status, "forward_fragment"));
    Ok(())
}

#[test]
fn in_fragments_nat() -> Result<()> {
    in_fragments(Way::Nat)
}

#[test]
fn in_fragments_l2_v6() -> Result<()> {
    in_fragments(Way::L2V6)
}

#[test]
#[ignore = "keeps the time bounded: the same runs over the other family; `--ignored` runs this too"]
fn in_fragments_nat_v6() -> Result<()> {
    in_fragments(Way::NatV6)
}

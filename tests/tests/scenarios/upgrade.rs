//! A new daemon and a new program in the place of the old ones, under load: not one packet is lost. Maps of another layout are
//! refused.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use ebb_tests::{
    client::Load,
    config,
    lab::address,
    paced::{Counter, Sender},
    scenario::{LIMIT, Scene, Way, can_run, lab},
};
use lb_common::limits::ABI_VERSION;
use serde_json::Value;

/// Datagrams sent each second.
const RATE: u64 = 10_000;
const PORT: u16 = 9000;
const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];

/// The kernel's ids of the programs that interfaces run.
fn programs(status: &Value) -> BTreeSet<u64> {
    let interfaces = status["node"]["xdp"]["interfaces"].as_array();
    let interfaces = interfaces.into_iter().flatten();
    interfaces
        .filter_map(|interface| interface["program"].as_u64())
        .collect()
}

/// Where the control record, in words of 32 bits, has the version of the layout.
const VERSION_AT: usize = std::mem::offset_of!(lb_common::abi::ControlRecord, abi_version) / 4;
const CONTROL_WORDS: usize = size_of::<lb_common::abi::ControlRecord>() / 4;

fn set_layout(scene: &Scene, version: u32) -> Result<()> {
    let data = MapData::from_pin(scene.lab.pins().join("ebb/CONTROL"))?;
    let mut map: Array<_, [u32; CONTROL_WORDS]> = Array::try_from(Map::Array(data))?;
    let mut record = map.get(&0, 0)?;
    record[VERSION_AT] = version;
    Ok(map.set(0, record, 0)?)
}

/// Datagrams, and those who count them.
struct Stream {
    sender: Sender,
    counters: Vec<Counter>,
}

impl Stream {
    fn start(scene: &Scene) -> Result<Self> {
        let counter = |name: &&str| {
            let at = SocketAddr::new(scene.lab.backend(name), PORT);
            Counter::start(scene.lab.netns(name), at)
        };
        let counters = BACKENDS.iter().map(counter).collect::<Result<_>>()?;
        let target = SocketAddr::new(address::VIP, PORT);
        let sender = Sender::start(scene.lab.netns("client"), target, 64, RATE)?;
        Ok(Self { sender, counters })
    }

    fn received(&self) -> u64 {
        self.counters.iter().map(Counter::received).sum()
    }

    /// Waits until so many more have been sent.
    fn more(&self, scene: &Scene, load: &Load, count: u64) -> Result<()> {
        let until = self.sender.sent() + count;
        ensure!(
            load.wait(LIMIT, |_| self.sender.sent() >= until),
            "nothing is sent"
        );
        scene.traffic(load, 10)
    }

    /// Ends; how many were sent, how many came.
    fn end(self, load: &Load) -> Result<(u64, u64)> {
        let Self { sender, counters } = self;
        let sent = sender.stop()?;
        let received = || counters.iter().map(Counter::received).sum::<u64>();
        // Those under way.
        let _ = load.wait(Duration::from_secs(2), |_| received() >= sent);
        let came = received();
        counters.into_iter().try_for_each(Counter::stop)?;
        Ok((sent, came))
    }
}

fn scene() -> Result<Scene> {
    let (lab, web) = lab(Way::Nat, &BACKENDS)?;
    let servers = lab.serve(web.backend_port)?;
    let mut stream = web.clone();
    (stream.name, stream.protocol) = ("stream".into(), "udp".into());
    (stream.port, stream.backend_port) = (PORT, PORT);
    stream.default_health = true;
    stream.more = "health = \"none\"".into();
    let tail = config::file(&lab, std::slice::from_ref(&stream));
    let tail = tail.split_once("[service.").context("no service")?.1;
    Scene::over(lab, web, servers, &format!("\n[service.{tail}"))
}

#[test]
fn nothing_is_lost_at_an_upgrade() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = scene()?;
    let old_ones = scene.load(50, 0.0)?;
    let load = scene.load(100, 100.0)?;
    let syns_again = scene.syns_again()?;
    scene.ok("drain web/b1 --timeout 300s")?;
    let stream = Stream::start(&scene)?;
    stream.more(&scene, &load, RATE / 2)?;
    ensure!(stream.received() > 0, "nothing comes");

    // The daemon and the program.
    let old = programs(&scene.ebb.status()?);
    scene.ebb.stop()?;
    stream.more(&scene, &load, RATE / 4)?;
    scene.ebb.restart(&scene.lab)?;
    let new = programs(&scene.ebb.status()?);
    ensure!(
        old.len() == 1 && new.len() == 1 && old.is_disjoint(&new),
        "programs {old:?}, then {new:?}"
    );
    stream.more(&scene, &load, RATE / 2)?;

    // Maps that it can not read: all stays as it is.
    scene.ebb.stop()?;
    set_layout(&scene, ABI_VERSION + 1)?;
    let Err(refused) = scene.ebb.restart(&scene.lab) else {
        anyhow::bail!("maps of another layout are taken over");
    };
    let said = format!("{refused:#}");
    for part in [
        format!("layout version {}", ABI_VERSION + 1),
        format!("this ebb has {ABI_VERSION}"),
        "--afresh".to_owned(),
    ] {
        ensure!(said.contains(&part), "no {part:?} in {said}");
    }
    stream.more(&scene, &load, RATE / 4)?;
    let (sent, came) = stream.end(&load)?;
    eprintln!("{sent} datagrams sent, {came} came");
    ensure!(sent == came, "{sent} datagrams sent, {came} came");

    clean("over the upgrade", load)?;
    ensure!(scene.syns_again()? == syns_again, "a SYN was lost");

    // Started afresh it knows no flow, but its tables say where those from before the drain belong. For the moment in which they
    // are empty there is no service for new ones.
    scene.ebb.add_argument("--afresh");
    scene.ebb.restart(&scene.lab)?;
    scene.traffic(&old_ones, 0)?;
    clean("over the new maps", old_ones)?;
    clean("afterwards", scene.load(10, 50.0)?)
}

fn clean(when: &str, load: Load) -> Result<()> {
    let report = load.stop(Duration::from_millis(300));
    eprintln!(
        "{when}: {} connections, {} exchanges, broken {}",
        report.flows.len(),
        report.frames + report.requests_ok,
        report.broken.len()
    );
    ensure!(report.is_clean(), "{when}: {}", report.summary());
    Ok(())
}

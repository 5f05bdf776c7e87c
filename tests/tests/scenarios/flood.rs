//! Floods during a drain: nothing that is established breaks, memory stays where it was, and the flood is counted.

use std::{
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ebb_tests::{
    client::Load,
    config::Service,
    flood::{Flood, FloodOptions, Kind, Shedder},
    lab::Lab,
    scenario::{Scene, Way, can_run, check_sum, lab_with, now},
};
use serde_json::Value;

use super::tunnel;

/// Frames a second that are asked for; the machine may give less. Three times a second they fill the handshake table;
/// with [`RATE`] one asks for more than two busy CPUs can forge, forward and shed beside everything else.
pub(super) const PER_SECOND: u64 = 200_000;

/// Names another rate, in frames a second: `2000000` for what a machine at rest can do.
const RATE: &str = "EBB_FLOOD_PER_SECOND";

/// How long a flood lasts.
pub(super) const LASTS: Duration = Duration::from_secs(4);

/// What the daemon may grow by: nothing of it grows with the flood.
const GROWTH_MAX: u64 = 8 << 20;

/// Time in which an answer must be there: a machine with few CPUs has not much left for clients and servers.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A scene whose backends are spared the flood: it is ebb that is under test, not the kernel's listeners.
///
/// `tail`: the end of the configuration file.
pub(super) fn scene(way: Way, backends: &[&str], tail: &str) -> Result<(Scene, Shedder)> {
    let (lab, service) = lab_with(way, backends, |options| {
        options.pass_programs = false;
    })?;
    scene_in(lab, service, tail)
}

/// The same in a lab that was made without pass programs.
pub(super) fn scene_in(lab: Lab, service: Service, tail: &str) -> Result<(Scene, Shedder)> {
    let shedder = Shedder::over(&lab)?;
    let servers = lab.serve(service.backend_port)?;
    if lab.has_decap() {
        tunnel::decap_everywhere(&lab, tunnel::BALANCERS)?;
    }
    Ok((Scene::over(lab, service, servers, tail)?, shedder))
}

fn per_second(usual: u64) -> Result<u64> {
    match std::env::var(RATE) {
        Ok(text) => text.parse().with_context(|| format!("{RATE}={text}")),
        Err(_) => Ok(usual),
    }
}

/// A flood of so many frames a second, unless another rate is asked for.
pub(super) fn start(scene: &Scene, kind: Kind, usual: u64) -> Result<Flood> {
    let IpAddr::V4(vip) = scene.target().ip() else {
        bail!("the lab's VIP is IPv4");
    };
    let options = FloodOptions {
        kind,
        target: SocketAddrV4::new(vip, scene.target().port()),
        interface: "lb".into(),
        to_mac: Lab::mac_in(scene.lab.netns("lb"), "eth0")?,
        per_second: per_second(usual)?,
    };
    Flood::start(scene.lab.netns("router"), options)
}

/// Packets in a status that `wanted` has, by the name of their outcome.
fn counted(status: &Value, wanted: impl Fn(&str) -> bool) -> u64 {
    let of = |outcomes: &Value| -> u64 {
        let outcomes = outcomes.as_object().into_iter().flatten();
        let wanted = outcomes.filter(|(name, _)| wanted(name));
        wanted.filter_map(|(_, count)| count.as_u64()).sum()
    };
    let services = status["services"].as_array().into_iter().flatten();
    services
        .map(|service| of(&service["outcomes"]))
        .sum::<u64>()
        + of(&status["node"]["xdp"]["outcomes"])
}

/// Whether it came from a backend.
fn is_reply(name: &str) -> bool {
    name.contains("reply") || name == "drop_second_chance"
}

/// Outcomes that a flood's frames can have.
fn outcomes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Syn => &[
            "forward_opening",
            "forward_opening_unrecorded",
            "drop_opening_unrecorded",
        ],
        Kind::Ack => &[
            "forward_steady",
            "forward_flow",
            "forward_adopted",
            "forward_base",
            "forward_unlisted",
        ],
        Kind::Udp => &["pass_no_service"],
    }
}

/// Every long connection gets answers.
pub(super) fn all_alive(scene: &Scene, load: &Load, long: usize) -> Result<()> {
    scene.traffic(load, 0)?;
    let open: usize = load.now().long.values().sum();
    ensure!(
        open == long && load.broken().is_empty(),
        "{open} of {long}: {:?}",
        load.broken()
    );
    Ok(())
}

/// Packets so far, or within a time.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Counted as a frame of the flood may be.
    flood: u64,
    /// Counted as anything that comes from clients.
    clients: u64,
    /// Received by the balancer's interface towards the clients.
    received: u64,
}

impl Measured {
    fn now(scene: &Scene, kind: Kind) -> Result<Self> {
        let status = scene.ebb.status()?;
        Ok(Self {
            flood: counted(&status, |name| outcomes(kind).contains(&name)),
            clients: counted(&status, |name| !is_reply(name)),
            received: scene.lab.received("lb", "eth0")?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            flood: self.flood - before.flood,
            clients: self.clients - before.clients,
            received: self.received - before.received,
        }
    }

    fn check(self, sent: u64) -> Result<()> {
        let off = self.clients.abs_diff(self.received);
        // The load goes on between the two looks, and backends' interfaces have a few packets of their own.
        ensure!(
            off <= 2000 + self.received / 1000,
            "not all that came in was counted: {self:?}"
        );
        ensure!(
            self.flood >= sent / 10,
            "of {sent} frames little came in: {self:?}"
        );
        Ok(())
    }
}

fn during_drain(way: Way, kind: Kind) -> Result<()> {
    const LONG: usize = 100;
    if !can_run() {
        return Ok(());
    }
    let (scene, shedder) = scene(way, &["b1", "b2", "b3"], "")?;
    let load = scene.patient_load(LONG, 30.0, PATIENCE)?;
    let on_b1 = scene.open_on("b1")?;
    let resident = scene.ebb.memory()?.resident;
    scene.ok("drain web/b1 --timeout 120s")?;
    let from = now();
    let before = Measured::now(&scene, kind)?;

    let flood = start(&scene, kind, PER_SECOND)?;
    let mut most = 0;
    for _ in 0..LASTS.as_secs() {
        load.wait(Duration::from_secs(1), |now| now.broken > 0);
        most = most.max(scene.ebb.memory()?.resident);
    }
    let sent = flood.stop()?;
    let flooded = Measured::now(&scene, kind)?.since(before);
    let (arrived, through) = shedder.arrived()?;
    eprintln!(
        "{way:?} {kind:?}: {:.2} million frames a second sent, {:.2} received and counted; {arrived} arrived behind \
         the balancer, {through} of them went on to a backend; daemon {} KiB, {} KiB before",
        sent.mpps(),
        flooded.flood as f64 / sent.took.as_secs_f64() / 1e6,
        most >> 10,
        resident >> 10,
    );
    // What a full ring has lost, no program has seen; what came in is counted, to the last frame.
    flooded.check(sent.frames)?;

    all_alive(&scene, &load, LONG)?;
    let short: Vec<_> = scene.open_on("b1")?.into_iter().collect();
    let long_on_b1 = load.now().long.get("b1").copied().unwrap_or(0);
    ensure!(
        long_on_b1 > 5 && short.len() >= long_on_b1 && on_b1.len() >= long_on_b1,
        "{long_on_b1}"
    );
    ensure!(
        most <= resident + GROWTH_MAX,
        "the daemon grew from {resident} to {most} bytes"
    );

    // An undrain ends what is forbidden, and not only once it has returned.
    let closed = scene.moment(&load)?;
    let receipt = end_drain(&scene, &load, kind)?;
    let until = if kind == Kind::Ack { closed } else { now() };
    let report = load.stop(Duration::from_millis(500));
    assert!(report.is_clean(), "{}", report.summary());
    scene.none_begun_on("b1", &report, from..until)?;
    eprintln!("{way:?} {kind:?}: {receipt}");
    Ok(())
}

/// Ends the drain: its users leave; what the flood has left is not waited for.
fn end_drain(scene: &Scene, load: &Load, kind: Kind) -> Result<Value> {
    if kind == Kind::Ack {
        // Forged flows of the draining backend stay listed until their idle timeout.
        scene.ok("undrain web/b1")?;
        return Ok(Value::Null);
    }
    let waiting = scene.background("drain web/b1 --wait --json");
    let drained = scene.leave_until_drained(load, "b1", waiting)?;
    ensure!(drained.code == Some(0), "{drained}");
    let receipt = drained.json()?;
    check_sum(&receipt)?;
    Ok(receipt)
}

#[test]
fn syn_flood_nat() -> Result<()> {
    during_drain(Way::Nat, Kind::Syn)
}

#[test]
fn syn_flood_l2() -> Result<()> {
    during_drain(Way::L2, Kind::Syn)
}

#[test]
fn ack_flood_nat() -> Result<()> {
    during_drain(Way::Nat, Kind::Ack)
}

#[test]
fn ack_flood_l2() -> Result<()> {
    during_drain(Way::L2, Kind::Ack)
}

#[test]
fn udp_flood_nat() -> Result<()> {
    during_drain(Way::Nat, Kind::Udp)
}

//! Two balancers with the same configuration and seed, each of which gets some of the flows; one of them dies. The other
//! steers its flows by the tables alone.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use ebb_tests::{
    client::{Broken, Length, Load, Report},
    config,
    lab::{Answers, Cli, Ebb, Lab, LabOptions, Topology, address},
    scenario::{LIMIT, Scene, Way, can_run, now},
};
use lb_common::entry::{FlowKey, Meta, state};

/// Where nodes hear of each other's flows.
const SHARE_PORT: u16 = 9651;

/// Flows from ports below go by the first node where the router is told so port by port: half of those that a client takes.
const MIDDLE: u16 = 33_280;

/// Two balancers, the servers behind them, and a client.
struct Pair {
    /// The second node's daemon.
    second: Ebb,
    /// The rest; its daemon is the first node's.
    scene: Scene,
}

impl Pair {
    /// Both nodes running, `sharing` their exceptional flows or not.
    fn new(way: Way, backends: &[&str], sharing: bool) -> Result<Self> {
        let answers = match way.forward() {
            "nat" => Answers::ThroughBalancer,
            _ => Answers::Direct,
        };
        let mut options = LabOptions::new(Topology::OneArm, answers, backends);
        options.second_node = true;
        let lab = Lab::create(options)?;
        let mut service = config::Service::blue_green(&lab, way.forward());
        service.family = way.family();
        service.pools.retain(|(_, members)| !members.is_empty());
        let servers = lab.serve(service.backend_port)?;
        let nodes = [address::lb(way.family()), address::lb2(way.family())];
        let share = |own: IpAddr, other: IpAddr| match sharing {
            true => format!(
                "\n[share]\nlisten = \"{}\"\npeers = [\"{}\"]\n",
                SocketAddr::new(own, SHARE_PORT),
                SocketAddr::new(other, SHARE_PORT)
            ),
            false => String::new(),
        };
        let text = config::file(&lab, std::slice::from_ref(&service));
        let scene = Scene::over(lab, service, servers, &share(nodes[0], nodes[1]))?;
        let second = Ebb::start_on(&scene.lab, "lb2", &(text + &share(nodes[1], nodes[0])))?;
        let pair = Self { second, scene };
        pair.scene.wait_up(&pair.second)?;
        if way.forward() == "nat" {
            pair.route_both_ways_alike()?;
        }
        Ok(pair)
    }

    /// Runs `ip LINE` on the router.
    fn route(&self, line: &str) -> Result<()> {
        let family = match self.scene.service.family {
            address::Family::V4 => "-4",
            address::Family::V6 => "-6",
        };
        let mut command = self.scene.lab.command("router", "ip");
        let status = command.arg(family).args(line.split(' ')).status()?;
        ensure!(status.success(), "ip {line}: {status}");
        Ok(())
    }

    /// In `nat`, what a backend answers must come by the node that the client's packets go by, as a router with a
    /// symmetric hash would have it. Linux has none: here the client's port decides.
    fn route_both_ways_alike(&self) -> Result<()> {
        let family = self.scene.service.family;
        let front = address::router_front(family);
        for backend in self.scene.lab.backends() {
            let mut command = self.scene.lab.command(backend, "ip");
            let everywhere = family.everywhere();
            let via = front.to_string();
            command.args(["route", "replace", everywhere, "via", &via]);
            ensure!(command.status()?.success(), "{backend}: a default route");
        }
        let client = address::client(family);
        let vip = address::vip(family);
        // A rule takes neither the first nor the last port.
        let halves = [(1, MIDDLE - 1, "101"), (MIDDLE, u16::MAX - 1, "102")];
        for (from, to, table) in halves {
            self.route(&format!(
                "rule add pref 100 from {client} to {vip} ipproto tcp sport {from}-{to} lookup {table}"
            ))?;
            self.route(&format!(
                "rule add pref 100 to {client} iif br0 ipproto tcp sport {} dport {from}-{to} lookup {table}",
                self.scene.service.backend_port
            ))?;
        }
        self.lead("101", &[address::lb(family)])?;
        self.lead("102", &[address::lb2(family)])
    }

    /// The routes of a table: everything by these nodes.
    fn lead(&self, table: &str, nodes: &[IpAddr]) -> Result<()> {
        let everywhere = self.scene.service.family.everywhere();
        let hops: String = nodes
            .iter()
            .map(|node| format!(" nexthop via {node}"))
            .collect();
        self.route(&format!("route replace {everywhere} table {table}{hops}"))
    }

    /// The same command on both nodes, which must succeed.
    fn both(&self, line: &str) -> Result<[Cli; 2]> {
        let words: Vec<&str> = line.split(' ').collect();
        Ok([self.scene.ok(line)?, self.second.cli(&words)?.success()?])
    }

    /// The first node is gone at once, daemon and data plane; then the router notices.
    fn kill_first(&mut self) -> Result<()> {
        self.scene.ebb.kill9();
        self.route("link set lb down")?;
        let family = self.scene.service.family;
        let (vip, other) = (address::vip(family), address::lb2(family));
        self.route(&format!("route replace {vip} via {other}"))?;
        if self.scene.service.forward == "nat" {
            self.lead("101", &[other])?;
        }
        Ok(())
    }

    /// Waits until the second node has an entry for every long connection that only an entry keeps on its backend at the
    /// first.
    fn wait_shared(&self, load: &Load) -> Result<usize> {
        let long: BTreeSet<u16> = load.flows().iter().map(|flow| flow.local.port()).collect();
        let deadline = Instant::now() + LIMIT;
        loop {
            let first: BTreeSet<u16> = self
                .exceptional("ebb")?
                .intersection(&long)
                .copied()
                .collect();
            let second = self.exceptional("ebb2")?;
            if !first.is_empty() && first.is_subset(&second) {
                return Ok(first.len());
            }
            ensure!(
                Instant::now() < deadline,
                "of {} flows the second node knows {}: {}",
                first.len(),
                first.intersection(&second).count(),
                self.second.status()?["node"]["share"]
            );
            load.wait(Duration::from_millis(50), |_| false);
        }
    }

    /// Client ports of a node's entries that differ from what its tables say.
    fn exceptional(&self, pins: &str) -> Result<BTreeSet<u16>> {
        let data = MapData::from_pin(self.scene.lab.pins().join(pins).join("FLOWS"))?;
        let entries: Array<_, [u64; 8]> = Array::try_from(Map::Array(data))?;
        let mut found = BTreeSet::new();
        for words in entries.iter() {
            let words = words?;
            let (tag, ports, meta) = (words[0], words[3], Meta(words[4]));
            if tag & 1 != 0 && meta.has(state::EXCEPTIONAL) {
                found.insert(u16::from_be(FlowKey::client_port(ports)));
            }
        }
        Ok(found)
    }

    /// Every long connection open at this moment has got an answer after it.
    fn alive(&self, load: &Load) -> Result<()> {
        self.scene.traffic(load, 20)
    }
}

/// Flows that a report's clients began before `moment`, and after it: those of them that broke, of how many.
fn split(report: &Report, moment: u64) -> [(Vec<&Broken>, usize); 2] {
    let broken = |is_old: bool| {
        let all = report.broken.iter();
        all.filter(|broken| (broken.started_ns < moment) == is_old)
            .collect()
    };
    let begun = |is_old: bool| {
        let all = report.flows.iter();
        all.filter(|flow| flow.length == Length::Long && (flow.started_ns < moment) == is_old)
            .count()
    };
    [(broken(true), begun(true)), (broken(false), begun(false))]
}

/// A node dies in quiet times.
fn steady(way: Way) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(way, &["b1", "b2", "b3"], false)?;
    let load = pair.scene.load(150, 60.0)?;
    let alone = pair.second.status()?;
    ensure!(
        forwarded(&alone) > 0,
        "the second node has nothing to do: {alone}"
    );
    pair.kill_first()?;
    pair.alive(&load)?;
    let report = load.stop(Duration::from_millis(300));
    eprintln!(
        "{way:?}, a node dies: {} of {} connections broke",
        report.broken.len(),
        report.flows.len()
    );
    ensure!(report.broken.is_empty(), "such as {}", report.broken[0]);
    Ok(())
}

/// A node dies in the middle of a drain that both were told of. How many long connections begun in the drain broke.
fn draining(way: Way, sharing: bool) -> Result<usize> {
    if !can_run() {
        return Ok(0);
    }
    let mut pair = Pair::new(way, &["b1", "b2", "b3"], sharing)?;
    let load = pair.scene.load(150, 60.0)?;
    let moment = pair.scene.moment(&load)?;
    pair.both("drain web/b1 --timeout 60s")?;
    let drained = now();
    load.open_long(150);
    ensure!(load.wait_long(300, LIMIT), "{:?}", load.now());
    pair.alive(&load)?;
    let shared = if sharing { pair.wait_shared(&load)? } else { 0 };
    pair.kill_first()?;
    pair.alive(&load)?;
    let report = load.stop(Duration::from_millis(300));
    let [(old, before), (young, during)] = split(&report, moment);
    eprintln!(
        "{way:?}, a node dies in mid-drain, {shared} flows shared: of {before} long connections from before the drain {} broke, of {during} begun during it {}",
        old.len(),
        young.len()
    );
    ensure!(
        old.is_empty(),
        "{} from before the drain broke, such as {}",
        old.len(),
        old[0]
    );
    pair.scene.none_begun_on("b1", &report, drained..now())?;
    let long = |broken: &&&Broken| broken.length == Length::Long;
    Ok(young.iter().filter(long).count())
}

/// Packets that a node has sent to backends.
fn forwarded(status: &serde_json::Value) -> u64 {
    let outcomes = status["services"][0]["outcomes"].as_object();
    let forwards = outcomes.into_iter().flatten();
    forwards
        .filter(|(name, _)| name.starts_with("forward_"))
        .filter_map(|(_, count)| count.as_u64())
        .sum()
}

#[test]
fn a_node_dies_l2() -> Result<()> {
    steady(Way::L2)
}

#[test]
fn a_node_dies_nat() -> Result<()> {
    steady(Way::Nat)
}

#[test]
fn a_node_dies_in_mid_drain_l2() -> Result<()> {
    let broken = draining(Way::L2, true)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

/// The answers show where each flow is.
#[test]
fn a_node_dies_in_mid_drain_nat() -> Result<()> {
    let broken = draining(Way::Nat, false)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

#[test]
#[ignore = "a figure for comparison: what breaks where nothing is shared and nobody sees the answers"]
fn a_node_dies_in_mid_drain_l2_without_sharing() -> Result<()> {
    draining(Way::L2, false).map(drop)
}

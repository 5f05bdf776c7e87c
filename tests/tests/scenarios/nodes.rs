//! Two balancers with the same configuration and seed, each of which gets some of the flows; one of them dies. The other
//! steers its flows by the tables alone.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use ebb_tests::{
    client::{Broken, Length, Load, Report},
    config,
    lab::{Answers, Cli, Ebb, Lab, LabOptions, Topology, address},
    scenario::{LIMIT, Scene, can_run, now},
};
use lb_common::entry::{FlowKey, Meta, state};

use super::tunnel;

/// Where nodes hear of each other's flows.
const SHARE_PORT: u16 = 9651;

/// Where the router is told by which node flows go, every other stripe of so many client ports goes by the first one. A
/// client's kernel takes its ports more or less one after the other.
const STRIPE: u16 = 64;

/// Two balancers, the servers behind them, and a client.
struct Pair {
    /// The second node's daemon.
    second: Ebb,
    /// The rest; its daemon is the first node's.
    scene: Scene,
}

impl Pair {
    /// Both nodes running, `sharing` their exceptional flows or not. Tunnels end in `ebb decap`.
    fn new(forward: &str, backends: &[&str], sharing: bool) -> Result<Self> {
        let answers = match forward {
            "nat" => Answers::ThroughBalancer,
            _ => Answers::Direct,
        };
        let mut options = LabOptions::new(Topology::OneArm, answers, backends);
        options.second_node = true;
        options.decap = ["ipip", "gue"].contains(&forward);
        let lab = Lab::create(options)?;
        let mut service = config::Service::blue_green(&lab, forward);
        service.pools.retain(|(_, members)| !members.is_empty());
        let servers = lab.serve(service.backend_port)?;
        let nodes = [address::lb(service.family), address::lb2(service.family)];
        if lab.has_decap() {
            service.more = "decap = \"ebb\"\ndrain = { timeout = \"60s\" }".into();
            tunnel::decap_everywhere(&lab, &nodes.map(|node| node.to_string()).join(","))?;
        }
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
        if forward == "nat" {
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
        let port = self.scene.service.backend_port;
        let mut script = String::new();
        for from in (STRIPE..u16::MAX - STRIPE).step_by(2 * usize::from(STRIPE)) {
            let to = from + STRIPE - 1;
            script += &format!(
                "rule add pref 100 from {client} to {vip} ipproto tcp sport {from}-{to} lookup 101\n\
                 rule add pref 100 to {client} iif br0 ipproto tcp sport {port} dport {from}-{to} lookup 101\n"
            );
        }
        script += &format!(
            "rule add pref 200 from {client} to {vip} lookup 102\n\
             rule add pref 200 to {client} iif br0 ipproto tcp sport {port} lookup 102\n"
        );
        let file = self.scene.lab.directory().join("rules");
        fs::write(&file, script)?;
        self.route(&format!("-batch {}", file.display()))?;
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
        let flows = load.flows().into_iter();
        let long: BTreeSet<u16> = flows
            .filter(|flow| flow.length == Length::Long)
            .map(|flow| flow.local.port())
            .collect();
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
fn steady(forward: &str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(forward, &["b1", "b2", "b3"], false)?;
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
        "{forward}, a node dies: {} of {} connections broke",
        report.broken.len(),
        report.flows.len()
    );
    ensure!(report.broken.is_empty(), "such as {}", report.broken[0]);
    Ok(())
}

/// A node dies in the middle of a drain that both were told of. How many long connections begun in the drain broke.
fn draining(forward: &str, sharing: bool) -> Result<usize> {
    if !can_run() {
        return Ok(0);
    }
    let mut pair = Pair::new(forward, &["b1", "b2", "b3"], sharing)?;
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
        "{forward}, a node dies in mid-drain, {shared} flows shared: of {before} long connections from before the drain {} broke, of {during} begun during it {}",
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
    steady("l2")
}

#[test]
fn a_node_dies_nat() -> Result<()> {
    steady("nat")
}

#[test]
fn a_node_dies_in_mid_drain_l2() -> Result<()> {
    let broken = draining("l2", true)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

/// The answers show where each flow is.
#[test]
fn a_node_dies_in_mid_drain_nat() -> Result<()> {
    let broken = draining("nat", false)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

/// The backends are asked where each flow is.
#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn a_node_dies_in_mid_drain_ipip() -> Result<()> {
    let broken = draining("ipip", false)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn a_node_dies_in_mid_drain_gue() -> Result<()> {
    let broken = draining("gue", false)?;
    ensure!(broken == 0, "{broken} begun in the drain broke");
    Ok(())
}

#[test]
#[ignore = "keeps the time bounded: the same runs in another mode; `--ignored` runs this too"]
fn a_node_dies_ipip() -> Result<()> {
    steady("ipip")
}

#[test]
#[ignore = "a figure for comparison: what breaks where nothing is shared and nobody sees the answers"]
fn a_node_dies_in_mid_drain_l2_without_sharing() -> Result<()> {
    draining("l2", false).map(drop)
}

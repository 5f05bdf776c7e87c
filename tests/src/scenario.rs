//! What the scenario tests share: a lab with servers and a running daemon, and a judge who asks clients and backends
//! only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    ops::Range,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use serde_json::Value;

use crate::{
    client::{
        Connection, Failure, Late, Length, Load, LoadOptions, Report, begun_within, raw::RawClient,
    },
    clock,
    config::{self, Service},
    lab::{
        Answers, Cli, Ebb, Fate, Guard, Lab, LabOptions, Topology,
        address::{self, Family},
    },
};

/// Time in which anything that is waited for must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Short requests under way at most.
pub const SHORT_AT_ONCE: usize = 20;

/// Whether scenarios can run here.
///
/// # Panics
/// They should but cannot; with the reason.
#[must_use]
pub fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let skip = std::env::var("EBB_SKIP_ROOT").is_ok_and(|value| value == "1");
    assert!(
        skip,
        "not root: the lab needs network namespaces (EBB_SKIP_ROOT=1 skips these tests)"
    );
    eprintln!("skipped: not root, and EBB_SKIP_ROOT=1");
    false
}

/// How packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `nat`, redirected to backends on veths of their own.
    Nat,
    /// `l2`, sent out of the interface they came in by; backends answer directly.
    L2,
    /// [`Way::Nat`] over IPv6.
    NatV6,
    /// [`Way::L2`] over IPv6.
    L2V6,
}

impl Way {
    /// Address family of service and backends.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Nat | Self::L2 => Family::V4,
            Self::NatV6 | Self::L2V6 => Family::V6,
        }
    }

    /// `forward` in the configuration.
    #[must_use]
    pub const fn forward(self) -> &'static str {
        self.parts().2
    }

    /// How balancer and backends are joined, which way backends answer, and `forward` in the configuration.
    const fn parts(self) -> (Topology, Answers, &'static str) {
        match self {
            Self::Nat | Self::NatV6 => (Topology::TwoArm, Answers::ThroughBalancer, "nat"),
            Self::L2 | Self::L2V6 => (Topology::OneArm, Answers::Direct, "l2"),
        }
    }
}

/// A lab with a server on every backend and the daemon balancing over them. Its parts end in the right order.
#[derive(Debug)]
pub struct Scene {
    /// The daemon.
    pub ebb: Ebb,
    /// The servers, by backend.
    pub servers: BTreeMap<String, Guard>,
    /// The service `web`: pool `blue` of the backends `b...`, pool `green` of the backends `g...`.
    pub service: Service,
    /// The lab.
    pub lab: Lab,
    /// Appended to the configuration file.
    tail: String,
}

impl Scene {
    /// Sets the scene with `backends` and waits until those in the configuration are up.
    ///
    /// # Errors
    /// The lab, a server or the daemon does not start.
    pub fn new(way: Way, backends: &[&str]) -> Result<Self> {
        Self::with(way, backends, |_| {}, "")
    }

    /// The same with a service changed by `edit`, and `tail` appended to the configuration file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(
        way: Way,
        backends: &[&str],
        edit: impl FnOnce(&mut Service),
        tail: &str,
    ) -> Result<Self> {
        let (lab, mut service) = lab(way, backends)?;
        edit(&mut service);
        let servers = lab.serve(service.backend_port)?;
        Self::over(lab, service, servers, tail)
    }

    /// The daemon in a lab whose servers run already.
    ///
    /// # Errors
    /// The daemon does not start, or no backend comes up.
    pub fn over(
        lab: Lab,
        service: Service,
        servers: BTreeMap<String, Guard>,
        tail: &str,
    ) -> Result<Self> {
        let text = config::file(&lab, std::slice::from_ref(&service)) + tail;
        let ebb = Ebb::start(&lab, &text)?;
        let scene = Self {
            ebb,
            servers,
            service,
            lab,
            tail: tail.to_owned(),
        };
        scene.wait_all_up()?;
        Ok(scene)
    }

    /// A scene whose daemon's lives are decided over.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn mortal(
        way: Way,
        backends: &[&str],
        edit: impl FnOnce(&mut Service),
    ) -> Result<(Self, Fate)> {
        let (lab, mut service) = lab(way, backends)?;
        edit(&mut service);
        Self::mortal_in(lab, service)
    }

    /// The same in a lab.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn mortal_in(lab: Lab, service: Service) -> Result<(Self, Fate)> {
        let servers = lab.serve(service.backend_port)?;
        let text = config::file(&lab, std::slice::from_ref(&service));
        let (ebb, fate) = Ebb::start_mortal(&lab, &text)?;
        let scene = Self {
            ebb,
            servers,
            service,
            lab,
            tail: String::new(),
        };
        scene.wait_all_up()?;
        Ok((scene, fate))
    }

    /// Waits until every backend that the daemon knows of is up and the way to it known.
    ///
    /// # Errors
    /// They are not within [`LIMIT`].
    pub fn wait_all_up(&self) -> Result<Value> {
        self.wait_up(&self.ebb)
    }

    /// The same of another daemon than the scene's own.
    ///
    /// # Errors
    /// They are not within [`LIMIT`].
    pub fn wait_up(&self, ebb: &Ebb) -> Result<Value> {
        ebb.wait_status(LIMIT, |status| {
            let all = backends(status);
            !all.is_empty() && all.into_iter().all(is_ready)
        })
        .context("wait until every backend is up")
    }

    /// Waits until the status says this of a backend.
    ///
    /// # Errors
    /// It does not within [`LIMIT`].
    pub fn wait_backend(&self, name: &str, mut done: impl FnMut(&Value) -> bool) -> Result<Value> {
        let status = self
            .ebb
            .wait_status(LIMIT, |status| backend(status, name).is_some_and(&mut done))
            .with_context(|| format!("wait for backend {name}"))?;
        backend(&status, name)
            .cloned()
            .context("the backend is gone again")
    }

    /// The configuration file for this service as it is now.
    #[must_use]
    pub fn config(&self) -> String {
        config::file(&self.lab, std::slice::from_ref(&self.service)) + &self.tail
    }

    /// Runs `ebb LINE`, words separated by spaces.
    ///
    /// # Errors
    /// It cannot be run at all.
    pub fn run(&self, line: &str) -> Result<Cli> {
        self.ebb.cli(&line.split(' ').collect::<Vec<_>>())
    }

    /// The same, which must succeed.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn ok(&self, line: &str) -> Result<Cli> {
        self.run(line)?.success()
    }

    /// The same, which must fail with exit code 1 and an `error:` line with `part` in it; returns what it said.
    ///
    /// # Errors
    /// It succeeds, or fails otherwise.
    pub fn refused(&self, line: &str, part: &str) -> Result<String> {
        let cli = self.run(line)?;
        let said = cli.stderr.clone();
        ensure!(
            cli.code == Some(1) && said.contains("error: ") && said.contains(part),
            "expected a refusal with {part:?}: {cli}"
        );
        Ok(said)
    }

    /// Runs `ebb LINE` on a thread of its own.
    #[must_use]
    pub fn background(&self, line: &str) -> JoinHandle<Result<Cli>> {
        let reach = self.ebb.reach().clone();
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        thread::spawn(move || reach.cli(&words.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// Where clients reach the service.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.service.target()
    }

    /// Address of the client's load.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        address::client(self.service.family)
    }

    /// Where the service reaches a backend.
    #[must_use]
    pub fn backend_at(&self, name: &str) -> SocketAddr {
        self.service.backend(&self.lab, name)
    }

    /// A client whose packets are made by hand, number `n`, of the service's family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn raw_client(&self, n: u8) -> Result<RawClient> {
        RawClient::open(&self.lab, self.service.family, n)
    }

    /// Starts a load and waits until all `long` connections are open and short requests succeed.
    ///
    /// # Errors
    /// They do not within [`LIMIT`].
    pub fn load(&self, long: usize, short_per_second: f64) -> Result<Load> {
        self.patient_load(long, short_per_second, Duration::from_secs(10))
    }

    /// The same, where an answer may take as long as `limit`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn patient_load(
        &self,
        long: usize,
        short_per_second: f64,
        limit: Duration,
    ) -> Result<Load> {
        let options = LoadOptions {
            long,
            ramp: Duration::from_millis(500),
            echo_every: Duration::from_millis(100),
            short_per_second,
            short_concurrency: SHORT_AT_ONCE,
            limit,
            ..LoadOptions::new(self.target())
        };
        let load = Load::start(self.lab.netns("client"), options)?;
        let enough = if short_per_second > 0.0 { 20 } else { 0 };
        let is_full = load.wait_long(long, LIMIT) && load.wait(LIMIT, |n| n.requests_ok >= enough);
        ensure!(is_full, "{:?} {:?}", load.now(), load.broken());
        Ok(load)
    }

    /// Waits for `requests` more short requests, and as many frames on long connections as there are connections.
    ///
    /// # Errors
    /// They do not come within [`LIMIT`].
    pub fn traffic(&self, load: &Load, requests: u64) -> Result<()> {
        let before = load.now();
        let long: usize = before.long.values().sum();
        let came = load.wait(LIMIT, |now| {
            now.requests_ok >= before.requests_ok + requests
                && now.frames >= before.frames + 2 * long as u64
        });
        ensure!(
            came,
            "no traffic: {before:?} then {:?} {:?}",
            load.now(),
            load.broken()
        );
        Ok(())
    }

    /// Connections that a backend got although their clients began them within `window` (ns of `CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// The server does not answer, or has forgotten connections of that time.
    pub fn begun_on(
        &self,
        backend: &str,
        report: &Report,
        window: Range<u64>,
    ) -> Result<Vec<Late>> {
        self.begun_on_within(backend, report, &[window])
    }

    /// The same for several windows, with one question to the server.
    ///
    /// # Errors
    /// As [`Self::begun_on`].
    pub fn begun_on_within(
        &self,
        backend: &str,
        report: &Report,
        windows: &[Range<u64>],
    ) -> Result<Vec<Late>> {
        let stats = self.lab.stats(backend, self.service.backend_port)?;
        let first = windows.iter().map(|window| window.start).min();
        let remembers = stats.connections.first().map(|first| first.accepted_ns);
        ensure!(
            stats.forgotten == 0 || remembers < first,
            "{backend} has forgotten connections"
        );
        let peers = [self.client()];
        Ok(begun_within(&stats, &report.flows, &peers, windows))
    }

    /// Fails if a backend got a connection that was begun within `window`.
    ///
    /// # Errors
    /// It did; with the first of them.
    pub fn none_begun_on(&self, backend: &str, report: &Report, window: Range<u64>) -> Result<()> {
        let late = self.begun_on(backend, report, window)?;
        ensure!(
            late.is_empty(),
            "{} connections begun on {backend} that should not be, such as {:?}",
            late.len(),
            late.first()
        );
        Ok(())
    }

    /// SYNs that the clients' kernel had to send again so far: their answer had not come within a second.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn syns_again(&self) -> Result<u64> {
        let text = self
            .lab
            .netns("client")
            .run(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
        counter(&text, "TcpExt:", "TCPSynRetrans").context("no TCPSynRetrans in net/netstat")
    }

    /// A moment before which connections that then were begun have their handshake behind them; see [`Load::moment`].
    ///
    /// # Errors
    /// One has not within [`LIMIT`].
    pub fn moment(&self, load: &Load) -> Result<u64> {
        let moment = load.moment(LIMIT);
        moment.with_context(|| format!("handshakes do not end: {:?}", load.broken()))
    }

    /// Open connections of clients on a backend, as the backend knows them.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn open_on(&self, backend: &str) -> Result<BTreeSet<SocketAddr>> {
        let stats = self.lab.stats(backend, self.service.backend_port)?;
        let peers = [self.client()];
        Ok(stats
            .from_clients(&peers)
            .filter(|connection| connection.closed_ns.is_none())
            .map(|connection| connection.peer)
            .collect())
    }

    /// What everybody says of up to four connections whose clients have sent the same again and again: the clients' kernel, the
    /// balancer, and the backends' kernels.
    #[must_use]
    pub fn who_waits(&self) -> String {
        let ss = |role: &str, filter: &str| {
            let output = self
                .lab
                .command(role, "ss")
                .args(["-tnaoiH", filter])
                .output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            // A connection and what belongs to it are lines of one.
            String::from_utf8_lossy(&text).replace("\n\t", " ")
        };
        let mut said = String::new();
        let all = ss("client", "");
        let waiting = all.lines().filter(|line| line.contains("backoff:"));
        for line in waiting.take(4) {
            let Some(local) = line.split_whitespace().nth(3) else {
                continue;
            };
            let port = local.rsplit(':').next().unwrap_or_default();
            said.push_str(&format!("client: {line}\n"));
            for ask in [
                format!("explain web --from {local}"),
                "flows web".to_owned(),
            ] {
                let answer = self.ok(&ask).map(|cli| cli.stdout).unwrap_or_default();
                let lines = answer.lines();
                let about = lines.filter(|line| !ask.starts_with("flows") || line.contains(local));
                said.extend(about.map(|line| format!("{ask}: {line}\n")));
            }
            for role in self.lab.roles() {
                let there = ss(role, &format!("dport = :{port}"));
                said.extend(there.lines().map(|line| format!("{role}: {line}\n")));
            }
        }
        said
    }

    /// Says to the server on a backend how to answer health checks from now on.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn set_ready(&self, backend: &str, status: u16) -> Result<()> {
        self.set_state(backend, status, "")
    }

    /// The same with a state of its own, told in the header `Ebb-State`; none when empty.
    ///
    /// # Errors
    /// As [`Self::set_ready`].
    pub fn set_state(&self, backend: &str, status: u16, state: &str) -> Result<()> {
        let target = SocketAddr::new([127, 0, 0, 1].into(), self.service.backend_port);
        let path = format!("/control/ready?status={status}&state={state}");
        self.lab
            .netns(backend)
            .block_on(|| async move {
                let mut connection = Connection::open(None, target, LIMIT).await?;
                connection.get_text(&path).await?;
                connection.close().await
            })?
            .map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
    }

    /// Frees every entry of the flow table and of the handshake table; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lose_tables(&self) -> Result<(u32, u32)> {
        Ok((self.lose("FLOWS")?, self.lose("HANDSHAKES")?))
    }

    fn lose(&self, name: &str) -> Result<u32> {
        let data = MapData::from_pin(self.lab.pins().join("ebb").join(name))?;
        let mut entries: Array<_, [u64; 8]> = Array::try_from(Map::Array(data))?;
        let mut lost = 0;
        for index in 0..entries.len() {
            if entries.get(&index, 0)? != [0; 8] {
                entries.set(index, [0; 8], 0)?;
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// Clients whose handshake a backend's kernel has begun and not finished (`SYN_RECV`).
    ///
    /// # Errors
    /// The kernel's list cannot be read.
    pub fn half_open_on(&self, backend: &str) -> Result<BTreeSet<SocketAddr>> {
        let file = match self.service.family {
            Family::V4 => "/proc/thread-self/net/tcp",
            Family::V6 => "/proc/thread-self/net/tcp6",
        };
        let table = self.lab.netns(backend).run(|| fs::read_to_string(file))??;
        Ok(table.lines().filter_map(half_open).collect())
    }

    /// Lets the users of `backend` leave and begin anew, until `drain` (a waiting command) has ended; its result.
    ///
    /// # Errors
    /// It does not end within three times [`LIMIT`]: flows whose end nobody saw are waited for.
    pub fn leave_until_drained(
        &self,
        load: &Load,
        backend: &str,
        drain: JoinHandle<Result<Cli>>,
    ) -> Result<Cli> {
        let deadline = Instant::now() + 3 * LIMIT;
        load.close_long(Some(backend), 1.0, Duration::from_millis(1500), true);
        let mut again = Instant::now() + Duration::from_secs(2);
        while !drain.is_finished() {
            ensure!(
                Instant::now() < deadline,
                "the drain of {backend} does not end; {}",
                self.ebb.status()?
            );
            load.wait(Duration::from_millis(20), |_| false);
            if Instant::now() > again {
                // Those whose handshake was under way when the drain began.
                load.close_long(Some(backend), 1.0, Duration::from_millis(100), true);
                again = Instant::now() + Duration::from_millis(500);
            }
        }
        joined(drain)
    }
}

/// The lab and its service, nothing running in it yet.
///
/// # Errors
/// The lab cannot be made.
pub fn lab(way: Way, backends: &[&str]) -> Result<(Lab, Service)> {
    lab_with(way, backends, |_| {})
}

/// The same with options changed by `edit`.
///
/// # Errors
/// As [`lab`].
pub fn lab_with(
    way: Way,
    backends: &[&str],
    edit: impl FnOnce(&mut LabOptions),
) -> Result<(Lab, Service)> {
    let (topology, answers, forward) = way.parts();
    let mut options = LabOptions::new(topology, answers, backends);
    edit(&mut options);
    let lab = Lab::create(options)?;
    let mut service = Service::blue_green(&lab, forward);
    service.family = way.family();
    service.pools.retain(|(_, members)| !members.is_empty());
    service.more = "drain = { timeout = \"60s\", on_deadline = \"reset\", spread = \"1s\" }".into();
    Ok((lab, service))
}

/// The result of a background command.
///
/// # Errors
/// It could not be run.
pub fn joined(command: JoinHandle<Result<Cli>>) -> Result<Cli> {
    command
        .join()
        .map_err(|_| anyhow::anyhow!("the command's thread panicked"))?
}

/// All backends in a status.
#[must_use]
pub fn backends(status: &Value) -> Vec<&Value> {
    let services = status["services"].as_array().into_iter().flatten();
    let pools = services.flat_map(|service| service["pools"].as_array().into_iter().flatten());
    pools
        .flat_map(|pool| pool["backends"].as_array().into_iter().flatten())
        .collect()
}

/// A backend in a status.
#[must_use]
pub fn backend<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    backends(status)
        .into_iter()
        .find(|backend| backend["name"] == name)
}

/// Whether a backend in a status is up, or nobody checks, and it can be reached.
fn is_ready(backend: &Value) -> bool {
    // `eth0 02:00:00:00:00:01`, or why there is no next hop.
    let hop = backend["next_hop"].as_str().unwrap_or_default();
    let is_up = backend["health"] == "up" || backend["health"] == "unchecked";
    is_up && hop.matches(':').count() == 5
}

/// Clients' ends of the long connections that a backend took.
#[must_use]
pub fn long_on(load: &Load, backend: &str) -> BTreeSet<SocketAddr> {
    let flows = load.flows().into_iter();
    flows
        .filter(|flow| flow.length == Length::Long && flow.backend.as_deref() == Some(backend))
        .map(|flow| flow.local)
        .collect()
}

/// Now, ns of `CLOCK_MONOTONIC`.
#[must_use]
pub fn now() -> u64 {
    clock::now_ns()
}

/// A seed that is another one at each commit, and the same at the same one; 1 where there is no repository. The environment
/// variable `EBB_SEED` overrides it, to run something again as it was.
#[must_use]
pub fn seed_of_commit() -> u64 {
    if let Some(seed) = std::env::var("EBB_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        return seed;
    }
    let directory = env!("CARGO_MANIFEST_DIR");
    let output = std::process::Command::new("git")
        .args(["-C", directory, "rev-parse", "--short=12", "HEAD"])
        .output();
    let commit = output
        .ok()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    commit
        .and_then(|commit| u64::from_str_radix(commit.trim(), 16).ok())
        .unwrap_or(1)
}

/// A receipt's parts must add up to the flows it began with.
///
/// # Errors
/// They do not.
pub fn check_sum(receipt: &Value) -> Result<()> {
    let count = |key: &str| {
        receipt[key]
            .as_u64()
            .with_context(|| format!("{key} in {receipt}"))
    };
    let mut parts = 0;
    for key in ["finished", "idle_expired", "reset", "died", "left"] {
        parts += count(key)?;
    }
    ensure!(
        count("flows_at_start")? == parts,
        "the receipt does not add up: {receipt}"
    );
    Ok(())
}

/// A counter of /proc/net/netstat, where a line of names comes before each line of values.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|found| found == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// A line of /proc/net/tcp or tcp6, if it is a half-open connection: the other side.
fn half_open(line: &str) -> Option<SocketAddr> {
    /// As include/net/tcp_states.h has it.
    const SYN_RECV: &str = "03";
    let mut fields = line.split_ascii_whitespace().skip(2);
    let (remote, state) = (fields.next()?, fields.next()?);
    let (address, port) = remote.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == SYN_RECV).then_some(SocketAddr::new(printed_address(address)?, port))
}

/// An address as /proc/net/tcp prints it: each four bytes of it as a number in host order.
fn printed_address(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for word in text.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let of_v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    of_v4
        .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_connections_are_found_by_their_state() {
        let line =
            |state: &str| format!("   1: 0B00020A:1F90 C800010A:9C40 {state} 00000000:00000000");
        let expected: SocketAddr = "10.1.0.200:40000".parse().unwrap();
        assert_eq!(half_open(&line("03")), Some(expected));
        let v6 = "  0: 000000FD00000000000000000B000000:1F90 010000FD00000000000000000B020000:9C41 03 0:0";
        let expected: SocketAddr = "[fd00:1::20b]:40001".parse().unwrap();
        assert_eq!(half_open(v6), Some(expected));
        assert_eq!(half_open(&line("01")), None);
        assert_eq!(half_open("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: A B TCPSynRetrans\nTcpExt: 1 2 3\nIpExt: A B\nIpExt: 4 5\n";
        assert_eq!(counter(text, "TcpExt:", "TCPSynRetrans"), Some(3));
        assert_eq!(counter(text, "IpExt:", "A"), Some(4));
        assert_eq!(counter(text, "IpExt:", "TCPSynRetrans"), None);
    }

    #[test]
    fn receipts_that_do_not_add_up_are_noticed() {
        let receipt = |finished: u64| serde_json::json!({"flows_at_start": 5, "finished": finished, "idle_expired": 1, "reset": 1, "died": 0, "left": 0});
        assert!(check_sum(&receipt(3)).is_ok());
        assert!(check_sum(&receipt(2)).is_err());
    }
}

//! The resolver against the real kernel, in network namespaces joined by veth.
//!
//! ```text
//!   node: n0 10.77.0.1 fd77::1 ──── p0 10.77.0.2 fd77::2 :peer
//!         n1 10.78.0.1 fd78::1 ──── r0 10.78.0.2 fd78::2 :router
//! ```

use std::{
    collections::BTreeSet,
    fs::File,
    future::Future,
    net::IpAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{sync::mpsc, time::timeout};

use super::{
    NextHop, Reason, Resolution, Resolver,
    monitor::{Monitor, RECEIVE_BUFFER_BYTES},
    table::{Change, Mac, Neighbour, NeighbourKey, Trust},
};

/// Longer than the kernel takes to give a neighbour up plus the longest wait between two attempts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Less than the kernel takes to doubt an entry by itself (half of `base_reachable_time`, 15 s, at the least) and than
/// ebb takes to read everything anew (30 s).
const UNASKED: Duration = Duration::from_secs(10);

static LABS: AtomicU32 = AtomicU32::new(0);

/// Three namespaces, deleted when dropped.
struct Lab {
    prefix: String,
}

impl Lab {
    /// `None`, with the reason on stderr, without the right to make namespaces.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            prefix: format!("ebbNH-{}-{number}", std::process::id()),
        };
        let (node, peer, router) = (lab.name("node"), lab.name("peer"), lab.name("router"));
        for name in [&node, &peer, &router] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            for setting in [
                "ipv4.conf.default.arp_notify=1",
                "ipv6.conf.default.ndisc_notify=1",
                // Link-local addresses are wanted (neighbour discovery needs them) but at once.
                "ipv6.conf.default.accept_dad=0",
            ] {
                run("ip", &format!("netns exec {name} sysctl -qw net.{setting}"));
            }
        }
        ip(&format!(
            "link add n0 netns {node} type veth peer name p0 netns {peer}"
        ));
        ip(&format!(
            "link add n1 netns {node} type veth peer name r0 netns {router}"
        ));
        for (name, link, network, host) in [
            (&node, "n0", 77, 1),
            (&peer, "p0", 77, 2),
            (&node, "n1", 78, 1),
            (&router, "r0", 78, 2),
        ] {
            ip(&format!(
                "-n {name} addr add 10.{network}.0.{host}/24 dev {link}"
            ));
            ip(&format!(
                "-n {name} addr add fd{network}::{host}/64 dev {link} nodad"
            ));
            ip(&format!("-n {name} link set {link} up"));
        }
        Some(lab)
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    /// `ip` in a namespace.
    fn ip(&self, namespace: &str, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name(namespace)))
    }

    /// From now on changes of the link's addresses are not announced to the neighbours.
    fn silence(&self, namespace: &str, link: &str) {
        self.sysctl(namespace, &format!("ipv4.conf.{link}.arp_notify=0"));
        self.sysctl(namespace, &format!("ipv6.conf.{link}.ndisc_notify=0"));
    }

    fn sysctl(&self, namespace: &str, setting: &str) {
        ip(&format!(
            "netns exec {} sysctl -qw net.{setting}",
            self.name(namespace)
        ));
    }

    fn mac(&self, namespace: &str, link: &str) -> Mac {
        let shown = self.ip(namespace, &format!("-br link show dev {link}"));
        mac(shown.split_whitespace().nth(2).unwrap())
    }

    fn ifindex(&self, link: &str) -> u32 {
        let shown = self.ip("node", &format!("-o link show dev {link}"));
        shown.split(':').next().unwrap().trim().parse().unwrap()
    }

    fn next_hop(&self, link: &str, destination_mac: Mac) -> NextHop {
        NextHop {
            ifindex: self.ifindex(link),
            source_mac: self.mac("node", link),
            destination_mac,
            mtu: 1500,
            source: Some(IpAddr::from([10, if link == "n0" { 77 } else { 78 }, 0, 1])),
            vlan: 0,
        }
    }

    /// Runs a test with its own thread and runtime in the node's namespace.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        let namespace = File::open(format!("/run/netns/{}", self.name("node"))).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(test());
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in ["node", "peer", "router"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(namespace)])
                .output();
        }
    }
}

fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// A resolver with its events.
struct Watched {
    resolver: Resolver,
    events: mpsc::Receiver<(IpAddr, Resolution)>,
}

impl Watched {
    fn start(addresses: &[&str]) -> Self {
        let (sender, events) = mpsc::channel(64);
        let resolver = Resolver::start(sender).unwrap();
        let watched = Self { resolver, events };
        watched.watch(addresses);
        watched
    }

    fn watch(&self, addresses: &[&str]) {
        let addresses: BTreeSet<IpAddr> = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        self.resolver.watch(addresses);
    }

    async fn next(&mut self) -> (IpAddr, Resolution) {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("no event")
            .expect("the resolver ended")
    }

    /// Reads events until `address` is told to be `expected`; the resolutions told of it before that.
    async fn until(&mut self, address: &str, expected: Resolution) -> Vec<Resolution> {
        let address: IpAddr = address.parse().unwrap();
        let expected = of_family(address, expected);
        let mut before = Vec::new();
        loop {
            let event = timeout(PATIENCE, self.events.recv()).await;
            let Ok(Some((of, told))) = event else {
                panic!("{address} never became {expected:?}, but {before:?}");
            };
            match (of == address, told == expected) {
                (true, true) => return before,
                (true, false) => before.push(told),
                (false, _) => {}
            }
        }
    }
}

fn resolved(next_hop: NextHop) -> Resolution {
    Resolution::Resolved(next_hop)
}

/// The same with the node's own address of that family on the same link.
fn of_family(address: IpAddr, expected: Resolution) -> Resolution {
    match expected {
        Resolution::Resolved(hop) if address.is_ipv6() => {
            let own = if hop.source == Some(IpAddr::from([10, 77, 0, 1])) {
                "fd77::1"
            } else {
                "fd78::1"
            };
            resolved(NextHop {
                source: Some(own.parse().unwrap()),
                ..hop
            })
        }
        other => other,
    }
}

fn unresolved(reason: Reason) -> Resolution {
    Resolution::Unresolved(reason)
}

#[test]
fn on_link_of_both_families() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let hop = resolved(lab.next_hop("n0", lab.mac("peer", "p0")));
        let mut watched = Watched::start(&["10.77.0.2"]);
        let before = watched.until("10.77.0.2", hop).await;
        assert!(
            before
                .iter()
                .all(|told| *told == unresolved(Reason::Resolving)),
            "{before:?}"
        );
        watched.watch(&["10.77.0.2", "fd77::2"]);
        watched.until("fd77::2", hop).await;
    });
}

#[test]
fn through_a_gateway() {
    let Some(lab) = Lab::new() else { return };
    lab.ip("node", "route add 10.79.0.0/24 via 10.78.0.2 mtu 1400");
    lab.ip("node", "route add 10.80.0.0/24 via inet6 fd78::2");
    lab.ip("node", "-6 route add fd79::/64 via fd78::2");
    lab.run(async || {
        let hop = lab.next_hop("n1", lab.mac("router", "r0"));
        let mut watched = Watched::start(&["10.79.0.5"]);
        watched
            .until("10.79.0.5", resolved(NextHop { mtu: 1400, ..hop }))
            .await;
        for address in ["10.80.0.5", "fd79::5"] {
            watched.watch(&[address]);
            watched.until(address, resolved(hop)).await;
        }
    });
}

#[test]
fn through_a_link_local_gateway() {
    let Some(lab) = Lab::new() else { return };
    // As routing daemons have it; the same gateway address on another link is another neighbour.
    lab.ip("router", "addr add fe80::1/64 dev r0 nodad");
    lab.ip("peer", "addr add fe80::1/64 dev p0 nodad");
    lab.ip("node", "-6 route add fd79::/64 via fe80::1 dev n1");
    lab.ip("node", "route add 10.80.0.0/24 via inet6 fe80::1 dev n1");
    lab.ip("node", "-6 route add fd80::/64 via fe80::1 dev n0");
    lab.run(async || {
        let router = resolved(lab.next_hop("n1", lab.mac("router", "r0")));
        let peer = resolved(lab.next_hop("n0", lab.mac("peer", "p0")));
        for (address, hop) in [
            ("fd79::5", router),
            ("10.80.0.5", router),
            ("fd80::5", peer),
        ] {
            let mut watched = Watched::start(&[address]);
            watched.until(address, hop).await;
        }
    });
}

#[test]
fn an_announced_new_nic_is_seen_at_once() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        for address in ["10.77.0.2", "fd77::2"] {
            let mut watched = Watched::start(&[address]);
            watched
                .until(address, resolved(lab.next_hop("n0", lab.mac("peer", "p0"))))
                .await;
            let new = if address.contains(':') {
                "02:00:00:00:77:02"
            } else {
                "02:00:00:00:77:01"
            };
            let before = std::time::Instant::now();
            lab.ip("peer", &format!("link set p0 address {new}"));
            let between = watched
                .until(address, resolved(lab.next_hop("n0", mac(new))))
                .await;
            assert_eq!(between, [], "never without a next hop");
            assert!(before.elapsed() < UNASKED, "{:?}", before.elapsed());
        }
    });
}

#[test]
fn a_nic_replaced_in_silence_is_found_by_verifying() {
    let Some(lab) = Lab::new() else { return };
    lab.silence("peer", "p0");
    lab.run(async || {
        for (address, new) in [
            ("10.77.0.2", "02:00:00:00:77:03"),
            ("fd77::2", "02:00:00:00:77:04"),
        ] {
            let mut watched = Watched::start(&[address]);
            watched
                .until(address, resolved(lab.next_hop("n0", lab.mac("peer", "p0"))))
                .await;
            lab.ip("peer", &format!("link set p0 address {new}"));
            watched.resolver.verify(address.parse().unwrap());
            watched
                .until(address, resolved(lab.next_hop("n0", mac(new))))
                .await;
        }
    });
}

#[test]
fn a_permanent_entry_stays_one() {
    let Some(lab) = Lab::new() else { return };
    lab.ip(
        "node",
        "neigh replace 10.77.0.9 lladdr 02:00:00:00:77:09 dev n0 nud permanent",
    );
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.9"]);
        let hop = lab.next_hop("n0", mac("02:00:00:00:77:09"));
        assert_eq!(
            watched.next().await,
            ("10.77.0.9".parse().unwrap(), resolved(hop))
        );
        watched.resolver.verify("10.77.0.9".parse().unwrap());
        // An event that can only come after the verification was handled.
        lab.ip("node", "link set n0 mtu 1300");
        watched
            .until("10.77.0.9", resolved(NextHop { mtu: 1300, ..hop }))
            .await;
        let entry = lab.ip("node", "neigh show 10.77.0.9");
        assert!(entry.contains("PERMANENT"), "{entry}");
    });
}

#[test]
fn the_nodes_own_link_changes() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2"]);
        let hop = lab.next_hop("n0", lab.mac("peer", "p0"));
        watched.until("10.77.0.2", resolved(hop)).await;
        lab.ip("node", "link set n0 mtu 1280");
        let hop = NextHop { mtu: 1280, ..hop };
        watched.until("10.77.0.2", resolved(hop)).await;
        lab.ip("node", "link set n0 address 02:00:00:00:77:10");
        let source_mac = mac("02:00:00:00:77:10");
        watched
            .until("10.77.0.2", resolved(NextHop { source_mac, ..hop }))
            .await;
    });
}

#[test]
fn a_link_goes_and_comes_back() {
    let Some(lab) = Lab::new() else { return };
    // The end of IPv6 addresses would be a second sign; IPv4 routes go without one.
    lab.sysctl("node", "ipv6.conf.all.disable_ipv6=1");
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2"]);
        let hop = resolved(lab.next_hop("n0", lab.mac("peer", "p0")));
        watched.until("10.77.0.2", hop).await;
        lab.ip("peer", "link set p0 down");
        watched
            .until("10.77.0.2", unresolved(Reason::LinkDown))
            .await;
        lab.ip("peer", "link set p0 up");
        watched.until("10.77.0.2", hop).await;
        lab.ip("node", "link set n0 down");
        watched
            .until("10.77.0.2", unresolved(Reason::NoRoute))
            .await;
        lab.ip("node", "link set n0 up");
        watched.until("10.77.0.2", hop).await;
        lab.ip("node", "link del n0");
        watched
            .until("10.77.0.2", unresolved(Reason::NoRoute))
            .await;
    });
}

#[test]
fn routes_change() {
    let Some(lab) = Lab::new() else { return };
    // So that nothing happens to IPv6 addresses meanwhile, which would be a reason to look up everything.
    lab.sysctl("node", "ipv6.conf.all.disable_ipv6=1");
    lab.run(async || {
        let address = "10.90.0.5";
        let mut watched = Watched::start(&[address, "10.78.0.2"]);
        watched.until(address, unresolved(Reason::NoRoute)).await;
        let peer = resolved(lab.next_hop("n0", lab.mac("peer", "p0")));
        let router = resolved(lab.next_hop("n1", lab.mac("router", "r0")));
        watched.until("10.78.0.2", router).await;
        lab.ip("node", "route add default via 10.77.0.2");
        watched.until(address, peer).await;
        lab.ip("node", "route replace default via 10.78.0.2");
        assert_eq!(
            watched.until(address, router).await,
            [],
            "its neighbour was known already"
        );
        lab.ip("node", "route add 10.90.0.0/24 via 10.77.0.2");
        watched.until(address, peer).await;
        lab.ip("node", "route add 10.90.0.0/16 via 10.78.0.2 table 90");
        // Reading on only after a lookup that cannot see the new table, so that the rule is all that changes.
        lab.ip("node", "link set n0 mtu 1450");
        let peer = resolved(NextHop {
            mtu: 1450,
            ..lab.next_hop("n0", lab.mac("peer", "p0"))
        });
        watched.until(address, peer).await;
        lab.ip("node", "rule add to 10.90.0.5 lookup 90");
        watched.until(address, router).await;
        lab.ip("node", "rule del to 10.90.0.5 lookup 90");
        watched.until(address, peer).await;
        lab.ip("node", "nexthop add id 5 via 10.78.0.2 dev n1");
        lab.ip("node", "route replace 10.90.0.0/24 nhid 5");
        watched.until(address, router).await;
        lab.ip("node", "nexthop replace id 5 via 10.77.0.2 dev n0");
        watched.until(address, peer).await;
        lab.ip("node", "route replace blackhole 10.90.0.0/24");
        watched.until(address, unresolved(Reason::NoRoute)).await;
        lab.ip("node", "addr add 10.90.0.5/32 dev n0");
        watched.until(address, unresolved(Reason::Local)).await;
    });
}

#[test]
fn addresses_that_are_no_backends() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let rows = [
            ("10.77.0.1", Reason::Local),
            ("fd77::1", Reason::Local),
            ("127.0.0.1", Reason::Local),
            ("10.77.0.255", Reason::NotUnicast),
            ("224.0.0.5", Reason::NotUnicast),
            ("192.0.2.1", Reason::NoRoute),
            ("2001:db8::1", Reason::NoRoute),
        ];
        for (address, reason) in rows {
            let mut watched = Watched::start(&[address]);
            let told = watched.next().await;
            let acceptable = [unresolved(reason), unresolved(Reason::NoRoute)];
            assert!(acceptable.contains(&told.1), "{told:?} is not {reason:?}");
        }
    });
}

#[test]
fn a_silent_neighbour_is_found_when_it_comes() {
    let Some(lab) = Lab::new() else { return };
    lab.silence("peer", "p0");
    lab.run(async || {
        for (address, length) in [("10.77.0.7", 32), ("fd77::7", 128)] {
            let mut watched = Watched::start(&[address]);
            let before = watched
                .until(address, unresolved(Reason::NoNeighbour))
                .await;
            assert_eq!(before, [unresolved(Reason::Resolving)]);
            lab.ip("peer", &format!("addr add {address}/{length} dev p0"));
            let between = watched
                .until(address, resolved(lab.next_hop("n0", lab.mac("peer", "p0"))))
                .await;
            assert_eq!(between, [], "no flapping between attempts");
        }
    });
}

#[test]
fn only_changes_are_told() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2"]);
        let hop = lab.next_hop("n0", lab.mac("peer", "p0"));
        watched.until("10.77.0.2", resolved(hop)).await;
        lab.ip("node", "route add 10.99.0.0/24 via 10.78.0.2");
        lab.ip(
            "node",
            "neigh add 10.78.0.77 lladdr 02:00:00:00:78:77 dev n1 nud stale",
        );
        lab.ip("node", "neigh change 10.77.0.2 dev n0 nud stale");
        lab.ip("node", "link set n1 mtu 1400");
        lab.ip("node", "link set n0 mtu 1400");
        let told = watched
            .until("10.77.0.2", resolved(NextHop { mtu: 1400, ..hop }))
            .await;
        assert_eq!(told, []);
    });
}

#[test]
fn a_stale_neighbour_is_confirmed() {
    let Some(lab) = Lab::new() else { return };
    lab.sysctl("node", "ipv4.neigh.n0.delay_first_probe_time=1");
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2"]);
        let peer = lab.mac("peer", "p0");
        watched
            .until("10.77.0.2", resolved(lab.next_hop("n0", peer)))
            .await;
        let mut monitor = Monitor::open(RECEIVE_BUFFER_BYTES).unwrap();
        lab.ip("node", "neigh change 10.77.0.2 dev n0 nud stale");
        let key = NeighbourKey {
            ifindex: lab.ifindex("n0"),
            address: "10.77.0.2".parse().unwrap(),
        };
        let of = |trust| Change::Neighbour(key, Some(Neighbour::Known { mac: peer, trust }));
        let mut seen = Vec::new();
        while !seen.contains(&of(Trust::Fresh)) {
            seen.extend(
                timeout(PATIENCE, monitor.changes())
                    .await
                    .expect("not confirmed")
                    .unwrap(),
            );
        }
        assert!(seen.contains(&of(Trust::Stale)), "{seen:?}");
        assert!(watched.events.try_recv().is_err(), "nothing to tell of it");
    });
}

#[test]
fn an_address_that_comes_back_is_told_again() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut watched = Watched::start(&["192.0.2.1"]);
        let told = ("192.0.2.1".parse().unwrap(), unresolved(Reason::NoRoute));
        assert_eq!(watched.next().await, told);
        watched.watch(&[]);
        watched.watch(&["192.0.2.1"]);
        assert_eq!(watched.next().await, told);
    });
}

#[test]
fn an_overrun_of_the_notifications_is_a_change() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut monitor = Monitor::open(4096).unwrap();
        let churn = |verb: &str| {
            for host in 0..60 {
                lab.ip(
                    "node",
                    &format!(
                        "neigh {verb} 10.78.0.{} lladdr 02:00:00:00:78:77 dev n1",
                        100 + host
                    ),
                );
            }
        };
        churn("add");
        let changes = timeout(PATIENCE, monitor.changes()).await.unwrap().unwrap();
        assert!(changes.contains(&Change::Lost), "{changes:?}");
        lab.ip(
            "node",
            "neigh del 10.78.0.100 lladdr 02:00:00:00:78:77 dev n1",
        );
        let changes = timeout(PATIENCE, monitor.changes()).await.unwrap().unwrap();
        assert!(
            !changes.contains(&Change::Lost),
            "it reads on afterwards: {changes:?}"
        );
    });
}

#[test]
fn changes_during_an_overrun_are_found() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2", "10.90.0.5"]);
        let peer = lab.next_hop("n0", lab.mac("peer", "p0"));
        watched.until("10.77.0.2", resolved(peer)).await;
        // All in one breath of the runtime, so that the resolver reads none of it meanwhile.
        let mut batch = String::new();
        for round in 0..40 {
            for host in 0..200 {
                let verb = if round % 2 == 0 { "add" } else { "del" };
                batch.push_str(&format!(
                    "neigh {verb} 10.78.0.{} lladdr 02:00:00:00:78:77 dev n1\n",
                    20 + host
                ));
            }
        }
        batch.push_str("route add 10.90.0.0/24 via 10.77.0.2\nlink set n0 mtu 1400\n");
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), batch).unwrap();
        lab.ip("node", &format!("-batch {}", path.path().display()));
        let hop = NextHop { mtu: 1400, ..peer };
        watched.until("10.90.0.5", resolved(hop)).await;
    });
}

#[test]
fn it_ends_with_its_handle() {
    let Some(lab) = Lab::new() else { return };
    lab.run(async || {
        let mut watched = Watched::start(&["10.77.0.2"]);
        watched.next().await;
        let Watched {
            resolver,
            mut events,
        } = watched;
        drop(resolver);
        let end = timeout(PATIENCE, async { while events.recv().await.is_some() {} }).await;
        assert!(end.is_ok(), "the task holds on to its events");
    });
}

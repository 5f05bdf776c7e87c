//! What a lab is made of, as data: namespaces, `ip -batch` scripts, kernel settings, interfaces to prepare.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Result, ensure};

use super::address::{self as at, Family};

/// How balancer and backends are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Router, balancer and backends on one bridged segment; the balancer has one interface and answers out of it
    /// (XDP_TX). The bridge is in the router's namespace.
    OneArm,
    /// Each backend on a veth directly into the balancer's namespace; the balancer redirects from one interface to
    /// another.
    TwoArm,
}

/// Which way backends answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Through the balancer, which is their default route (`nat`).
    ThroughBalancer,
    /// From the VIP, which is on their loopback, by the shortest way (`l2`): the router when one-armed, the
    /// balancer's kernel forwarding when two-armed.
    Direct,
}

/// What lab is wanted.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How balancer and backends are joined.
    pub topology: Topology,
    /// Which way backends answer.
    pub answers: Answers,
    /// Names of the backends' namespaces, at most 11 characters each.
    pub backends: Vec<String>,
    /// Whether the far ends of the balancer's interfaces get a pass program, without which they take nothing that
    /// XDP sends. Always wanted but where another program takes their place, and in the test that shows so.
    pub pass_programs: bool,
    /// MTU of the links between balancer and backends, when it is not the usual 1500 (two-armed only): tunnels need
    /// room for an outer header.
    pub inner_mtu: Option<u16>,
    /// Whether backends get tunnels and take them apart by `ebb decap`, which a test starts; it takes the place of the
    /// pass program on their interfaces.
    pub decap: bool,
    /// Whether a second client, `side`, is on a network of its own with the balancer (its interface `side`).
    pub side_client: bool,
    /// Whether there is a second balancer, `lb2`, on the segment of the first one (one-armed only), and the router
    /// sends each flow to the VIPs to one of the two, as equal-cost routes do.
    pub second_node: bool,
    /// A fixed name, for a lab that outlives its maker; else one is made up from the process id.
    pub name: Option<String>,
}

impl LabOptions {
    /// A lab that ends with its maker.
    #[must_use]
    pub fn new(topology: Topology, answers: Answers, backends: &[&str]) -> Self {
        let backends = backends.iter().map(|&name| name.to_owned()).collect();
        Self {
            topology,
            answers,
            backends,
            pass_programs: true,
            inner_mtu: None,
            decap: false,
            side_client: false,
            second_node: false,
            name: None,
        }
    }

    /// Address of backend `n`.
    #[must_use]
    pub fn backend(&self, family: Family, n: usize) -> IpAddr {
        let n = u8::try_from(n).unwrap_or(u8::MAX);
        match self.topology {
            Topology::OneArm => at::one_arm_backend(family, n),
            Topology::TwoArm => at::two_arm_backend(family, n),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.backends.len() <= 200, "a lab has at most 200 backends");
        ensure!(
            self.topology == Topology::TwoArm || self.inner_mtu.is_none(),
            "only in a two-armed lab do backends have links of their own"
        );
        ensure!(
            self.topology == Topology::OneArm || !self.second_node,
            "only in a one-armed lab is there room for a second balancer"
        );
        for name in &self.backends {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric());
            ensure!(
                plain && (1..=11).contains(&name.len()),
                "backend name {name:?}: 1 to 11 letters and digits"
            );
            ensure!(
                !["client", "router", "lb", "lb2", "side"].contains(&name.as_str()),
                "backend name {name:?} is taken"
            );
        }
        Ok(())
    }

    /// The roles: names of the namespaces without the lab's prefix.
    pub(super) fn roles(&self) -> Vec<&str> {
        let mut roles = vec!["client", "router", "lb"];
        roles.extend(self.second_node.then_some("lb2"));
        roles.extend(self.side_client.then_some("side"));
        roles.extend(self.backends.iter().map(String::as_str));
        roles
    }

    /// Interfaces of the balancer, the one towards the router first.
    pub(super) fn lb_interfaces(&self) -> Vec<String> {
        let mut names = vec!["eth0".to_owned()];
        names.extend(self.side_client.then(|| "side".to_owned()));
        if self.topology == Topology::TwoArm {
            names.extend(self.backends.iter().map(|name| format!("to-{name}")));
        }
        names
    }

    /// Scripts for `ip -batch`, in order: role and script.
    pub(super) fn scripts(&self, prefix: &str) -> Vec<(String, String)> {
        let mut scripts = vec![
            ("router".to_owned(), self.router(prefix)),
            ("lb".to_owned(), self.lb(prefix)),
            ("client".to_owned(), client()),
        ];
        if self.second_node {
            scripts.push(("lb2".to_owned(), second_node()));
        }
        if self.side_client {
            scripts.extend(side_scripts(prefix));
        }
        for (n, name) in self.backends.iter().enumerate() {
            scripts.push((name.clone(), self.backend_script(n)));
        }
        scripts
    }

    fn router(&self, prefix: &str) -> String {
        let mut s = Script::new();
        s.veth("client", &format!("{prefix}client"));
        s.line(format_args!(
            "link set client address {}",
            mac(at::ROUTER_MAC)
        ));
        s.veth("lb", &format!("{prefix}lb"));
        let front = match self.topology {
            Topology::OneArm => {
                s.line(format_args!(
                    "link add br0 type bridge stp_state 0 mcast_snooping 0"
                ));
                s.line(format_args!("link set br0 up"));
                s.line(format_args!("link set lb master br0"));
                if self.second_node {
                    s.veth("lb2", &format!("{prefix}lb2"));
                    s.line(format_args!("link set lb2 master br0"));
                }
                for name in &self.backends {
                    let port = bridge_port(name);
                    s.veth(&port, &format!("{prefix}{name}"));
                    s.line(format_args!("link set {port} master br0"));
                }
                "br0"
            }
            Topology::TwoArm => "lb",
        };
        for family in Family::BOTH {
            s.address(at::router_client(family), "client");
            s.address(at::router_front(family), front);
            let lb = at::lb(family);
            if self.topology == Topology::TwoArm {
                let networks = at::two_arm_networks(family);
                s.line(format_args!("route add {networks} via {lb}"));
            }
            if self.side_client {
                let network = at::side_network(family);
                s.line(format_args!("route add {network} via {lb}"));
            }
            if self.second_node {
                let lb2 = at::lb2(family);
                s.line(format_args!(
                    "route add {} nexthop via {lb} nexthop via {lb2}",
                    vip(family)
                ));
            } else {
                s.line(format_args!("route add {} via {lb}", vip(family)));
            }
            for n in 0..at::RAW_CLIENTS {
                s.line(format_args!(
                    "neigh add {} lladdr {} nud permanent dev client",
                    at::raw_client(family, n),
                    mac(at::CLIENT_MAC)
                ));
            }
        }
        s.0
    }

    fn lb(&self, prefix: &str) -> String {
        let mut s = Script::new();
        s.line(format_args!("link set eth0 up"));
        if self.topology == Topology::TwoArm {
            for name in &self.backends {
                let link = format!("to-{name}");
                s.veth(&link, &format!("{prefix}{name}"));
                s.mtu(&link, self.inner_mtu);
            }
        }
        for family in Family::BOTH {
            s.address(at::lb(family), "eth0");
            s.default_route(at::router_front(family));
            // What the program does not take must not travel between router and balancer until its TTL ends.
            s.line(format_args!("route add unreachable {}", vip(family)));
            if self.topology == Topology::TwoArm {
                for (n, name) in (0..=u8::MAX).zip(&self.backends) {
                    s.address(at::two_arm_lb(family, n), &format!("to-{name}"));
                }
            }
        }
        s.0
    }

    fn backend_script(&self, n: usize) -> String {
        let mut s = Script::new();
        s.line(format_args!("link set eth0 up"));
        s.mtu("eth0", self.inner_mtu);
        for family in Family::BOTH {
            s.address(self.backend(family, n), "eth0");
            s.default_route(match (self.topology, self.answers) {
                (Topology::OneArm, Answers::ThroughBalancer) => at::lb(family),
                (Topology::OneArm, Answers::Direct) => at::router_front(family),
                (Topology::TwoArm, _) => at::two_arm_lb(family, u8::try_from(n).unwrap_or(u8::MAX)),
            });
            if self.answers == Answers::Direct {
                s.line(format_args!("addr add {} dev lo", vip(family)));
            }
        }
        s.0
    }

    /// Kernel settings of a role: path below /proc/sys/net and value. They come before any interface is made.
    pub(super) fn settings(&self, role: &str) -> Vec<(&'static str, &'static str)> {
        let mut settings = vec![
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/default/accept_redirects", "0"),
            // Addresses are to be usable at once: nobody else in a lab has them.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            ("ipv4/tcp_no_metrics_save", "1"),
        ];
        match role {
            "client" | "side" => {
                // Enough ports for many thousand connections, and used ones again at once.
                settings.extend([
                    ("ipv4/ip_local_port_range", "1024 65535"),
                    ("ipv4/tcp_tw_reuse", "1"),
                ]);
            }
            "router" => settings.extend([
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                // Of routes that cost the same, a flow's ports choose one too.
                ("ipv4/fib_multipath_hash_policy", "1"),
                ("ipv6/fib_multipath_hash_policy", "1"),
                // Bridged frames would pass the router's filters and NAT a second time.
                ("bridge/bridge-nf-call-iptables", "0"),
                ("bridge/bridge-nf-call-ip6tables", "0"),
                ("bridge/bridge-nf-call-arptables", "0"),
            ]),
            "lb" | "lb2" => {
                settings.extend([("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
            }
            _ if self.answers == Answers::Direct => settings.extend([
                // A backend that has the VIP on its loopback must not tell the segment so. (IPv6 needs no setting: a
                // host answers neighbour solicitations for addresses of the interface they come in by alone.)
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
            ]),
            _ => {}
        }
        settings
    }

    /// Interfaces that receive what an XDP program sends, the balancer's or that of `ebb decap`, and need a program of their own:
    /// role, name.
    pub(super) fn pass_interfaces(&self) -> Vec<(String, String)> {
        let owned = |(role, name): (&str, &str)| (role.to_owned(), name.to_owned());
        let mut interfaces = vec![owned(("router", "lb"))];
        interfaces.extend(self.second_node.then(|| owned(("router", "lb2"))));
        interfaces.extend(self.side_client.then(|| owned(("side", "eth0"))));
        let backends = self.backends.iter();
        match (self.topology, self.decap) {
            (Topology::TwoArm, false) => {
                interfaces.extend(backends.map(|name| owned((name, "eth0"))))
            }
            (Topology::OneArm, true) => {
                interfaces.extend(backends.map(|name| owned(("router", &bridge_port(name)))));
            }
            // To the balancer's own program; from a program that passes everything.
            (Topology::TwoArm, true) | (Topology::OneArm, false) => {}
        }
        interfaces
    }
}

/// The router's end of a backend's link, in a one-armed lab.
fn bridge_port(backend: &str) -> String {
    format!("p-{backend}")
}

fn second_node() -> String {
    let mut s = Script::new();
    s.line(format_args!("link set eth0 up"));
    for family in Family::BOTH {
        s.address(at::lb2(family), "eth0");
        s.default_route(at::router_front(family));
        s.line(format_args!("route add unreachable {}", vip(family)));
    }
    s.0
}

fn client() -> String {
    let mut s = Script::new();
    s.line(format_args!(
        "link set eth0 address {} up",
        mac(at::CLIENT_MAC)
    ));
    for family in Family::BOTH {
        s.address(at::client(family), "eth0");
        s.default_route(at::router_client(family));
    }
    s.0
}

/// The link between the balancer and the second client, both ends: role and script.
pub(super) fn side_scripts(prefix: &str) -> [(String, String); 2] {
    let (mut lb, mut client) = (Script::new(), Script::new());
    lb.veth("side", &format!("{prefix}side"));
    client.line(format_args!("link set eth0 up"));
    for family in Family::BOTH {
        lb.address(at::side_lb(family), "side");
        client.address(at::side_client(family), "eth0");
        client.default_route(at::side_lb(family));
    }
    [("lb".to_owned(), lb.0), ("side".to_owned(), client.0)]
}

/// A script for `ip -batch`.
struct Script(String);

impl Script {
    /// One that brings up the loopback.
    fn new() -> Self {
        Self("link set lo up\n".into())
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{text}");
    }

    /// A veth whose other end is `eth0` in the namespace `peer`.
    fn veth(&mut self, name: &str, peer: &str) {
        self.line(format_args!(
            "link add {name} type veth peer name eth0 netns {peer}"
        ));
        self.line(format_args!("link set {name} up"));
    }

    fn mtu(&mut self, interface: &str, bytes: Option<u16>) {
        if let Some(bytes) = bytes {
            self.line(format_args!("link set {interface} mtu {bytes}"));
        }
    }

    fn address(&mut self, address: IpAddr, interface: &str) {
        let bits = Family::of(address).link_bits();
        self.line(format_args!("addr add {address}/{bits} dev {interface}"));
    }

    fn default_route(&mut self, gateway: IpAddr) {
        let everywhere = Family::of(gateway).everywhere();
        self.line(format_args!("route add {everywhere} via {gateway}"));
    }
}

/// The VIP as a prefix.
fn vip(family: Family) -> String {
    format!("{}/{}", at::vip(family), family.bits())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

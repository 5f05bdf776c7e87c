//! What a lab is made of, as data: namespaces, `ip -batch` scripts, kernel settings, interfaces to prepare.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Result, ensure};

use super::address as at;

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
            name: None,
        }
    }

    /// Address of backend `n`.
    #[must_use]
    pub fn backend(&self, n: usize) -> IpAddr {
        let n = u8::try_from(n).unwrap_or(u8::MAX);
        match self.topology {
            Topology::OneArm => at::one_arm_backend(n),
            Topology::TwoArm => at::two_arm_backend(n),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.backends.len() <= 200, "a lab has at most 200 backends");
        for name in &self.backends {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric());
            ensure!(
                plain && (1..=11).contains(&name.len()),
                "backend name {name:?}: 1 to 11 letters and digits"
            );
            ensure!(
                !["client", "router", "lb"].contains(&name.as_str()),
                "backend name {name:?} is taken"
            );
        }
        Ok(())
    }

    /// The roles: names of the namespaces without the lab's prefix.
    pub(super) fn roles(&self) -> Vec<&str> {
        let fixed = ["client", "router", "lb"];
        fixed
            .into_iter()
            .chain(self.backends.iter().map(String::as_str))
            .collect()
    }

    /// Interfaces of the balancer, the one towards the router first.
    pub(super) fn lb_interfaces(&self) -> Vec<String> {
        let mut names = vec!["eth0".to_owned()];
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
        ];
        scripts.push(("client".to_owned(), client()));
        for (n, name) in self.backends.iter().enumerate() {
            scripts.push((name.clone(), self.backend_script(n)));
        }
        scripts
    }

    fn router(&self, prefix: &str) -> String {
        let mut s = String::from("link set lo up\n");
        veth(&mut s, "client", &format!("{prefix}client"));
        line(
            &mut s,
            format_args!("link set client address {}", mac(at::ROUTER_MAC)),
        );
        veth(&mut s, "lb", &format!("{prefix}lb"));
        line(
            &mut s,
            format_args!("addr add {}/24 dev client", at::ROUTER_CLIENT),
        );
        match self.topology {
            Topology::OneArm => {
                line(
                    &mut s,
                    format_args!("link add br0 type bridge stp_state 0 mcast_snooping 0"),
                );
                line(&mut s, format_args!("link set br0 up"));
                line(&mut s, format_args!("link set lb master br0"));
                for name in &self.backends {
                    let port = format!("p-{name}");
                    veth(&mut s, &port, &format!("{prefix}{name}"));
                    line(&mut s, format_args!("link set {port} master br0"));
                }
                line(
                    &mut s,
                    format_args!("addr add {}/24 dev br0", at::ROUTER_FRONT),
                );
            }
            Topology::TwoArm => {
                line(
                    &mut s,
                    format_args!("addr add {}/24 dev lb", at::ROUTER_FRONT),
                );
                line(&mut s, format_args!("route add 10.3.0.0/16 via {}", at::LB));
            }
        }
        line(
            &mut s,
            format_args!("route add {}/32 via {}", at::VIP, at::LB),
        );
        for n in 0..at::RAW_CLIENTS {
            let mac = mac(at::CLIENT_MAC);
            line(
                &mut s,
                format_args!(
                    "neigh add {} lladdr {mac} nud permanent dev client",
                    at::raw_client(n)
                ),
            );
        }
        s
    }

    fn lb(&self, prefix: &str) -> String {
        let mut s = String::from("link set lo up\nlink set eth0 up\n");
        line(&mut s, format_args!("addr add {}/24 dev eth0", at::LB));
        line(
            &mut s,
            format_args!("route add default via {}", at::ROUTER_FRONT),
        );
        // What the program does not take must not travel between router and balancer until its TTL ends.
        line(&mut s, format_args!("route add unreachable {}/32", at::VIP));
        if self.topology == Topology::TwoArm {
            for (n, name) in self.backends.iter().enumerate() {
                let n = u8::try_from(n).unwrap_or(u8::MAX);
                let port = format!("to-{name}");
                veth(&mut s, &port, &format!("{prefix}{name}"));
                line(
                    &mut s,
                    format_args!("addr add {}/24 dev {port}", at::two_arm_lb(n)),
                );
            }
        }
        s
    }

    fn backend_script(&self, n: usize) -> String {
        let mut s = String::from("link set lo up\nlink set eth0 up\n");
        line(
            &mut s,
            format_args!("addr add {}/24 dev eth0", self.backend(n)),
        );
        let gateway = match (self.topology, self.answers) {
            (Topology::OneArm, Answers::ThroughBalancer) => at::LB,
            (Topology::OneArm, Answers::Direct) => at::ROUTER_FRONT,
            (Topology::TwoArm, _) => at::two_arm_lb(u8::try_from(n).unwrap_or(u8::MAX)),
        };
        line(&mut s, format_args!("route add default via {gateway}"));
        if self.answers == Answers::Direct {
            line(&mut s, format_args!("addr add {}/32 dev lo", at::VIP));
        }
        s
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
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/tcp_no_metrics_save", "1"),
        ];
        match role {
            "client" => {
                // Enough ports for many thousand connections, and used ones again at once.
                settings.extend([
                    ("ipv4/ip_local_port_range", "1024 65535"),
                    ("ipv4/tcp_tw_reuse", "1"),
                ]);
            }
            "router" => settings.extend([
                ("ipv4/ip_forward", "1"),
                // Bridged frames would pass the router's filters and NAT a second time.
                ("bridge/bridge-nf-call-iptables", "0"),
                ("bridge/bridge-nf-call-ip6tables", "0"),
                ("bridge/bridge-nf-call-arptables", "0"),
            ]),
            "lb" => settings.push(("ipv4/ip_forward", "1")),
            _ if self.answers == Answers::Direct => settings.extend([
                // A backend that has the VIP on its loopback must not tell the segment so.
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
            ]),
            _ => {}
        }
        settings
    }

    /// Interfaces that receive what the balancer's XDP program sends, and need a program of their own: role, name.
    pub(super) fn pass_interfaces(&self) -> Vec<(String, &'static str)> {
        let mut interfaces = vec![("router".to_owned(), "lb")];
        if self.topology == Topology::TwoArm {
            interfaces.extend(self.backends.iter().map(|name| (name.clone(), "eth0")));
        }
        interfaces
    }
}

fn client() -> String {
    let mut s = String::from("link set lo up\n");
    line(
        &mut s,
        format_args!("link set eth0 address {} up", mac(at::CLIENT_MAC)),
    );
    line(&mut s, format_args!("addr add {}/24 dev eth0", at::CLIENT));
    line(
        &mut s,
        format_args!("route add default via {}", at::ROUTER_CLIENT),
    );
    s
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(script, "{text}");
}

/// A veth whose other end is `eth0` in the namespace `peer`.
fn veth(script: &mut String, name: &str, peer: &str) {
    line(
        script,
        format_args!("link add {name} type veth peer name eth0 netns {peer}"),
    );
    line(script, format_args!("link set {name} up"));
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

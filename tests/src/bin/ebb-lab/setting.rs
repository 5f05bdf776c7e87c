//! What demo and playground have in common: one lab with two pools, and how to enter it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Result;
use clap::ValueEnum;
use ebb_tests::{
    config::Service,
    lab::{Answers, Ebb, Guard, Lab, LabOptions, PLAYGROUND, Topology, address::Family},
};

/// Backends of both pools.
pub const BACKENDS: [&str; 6] = ["b1", "b2", "b3", "g1", "g2", "g3"];

/// How balancer and backends are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Joined {
    /// Balancer and backends on one segment; packets leave by the interface they came in by
    OneArm,
    /// Each backend on a veth of its own; packets are redirected to another interface
    TwoArm,
}

/// How packets are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Backends answer through the balancer
    Nat,
    /// Backends own the VIP and answer directly
    L2,
}

/// Which lab.
#[derive(Debug, Clone, clap::Args)]
pub struct Setting {
    /// How balancer and backends are joined
    #[arg(long, value_enum, default_value_t = Joined::OneArm)]
    topology: Joined,
    /// How packets are forwarded
    #[arg(long, value_enum, default_value_t = Mode::Nat)]
    forward: Mode,
    /// Service, clients and backends speak IPv6
    #[arg(long)]
    ipv6: bool,
}

impl Setting {
    /// Makes the lab; with `keep` under the fixed name of the playground.
    pub fn lab(&self, keep: bool) -> Result<Lab> {
        let topology = match self.topology {
            Joined::OneArm => Topology::OneArm,
            Joined::TwoArm => Topology::TwoArm,
        };
        let answers = match self.forward {
            Mode::Nat => Answers::ThroughBalancer,
            Mode::L2 => Answers::Direct,
        };
        if keep && Lab::directory_of(PLAYGROUND).exists() {
            anyhow::bail!("make the lab: one is up already\nhint: cargo xtask lab down");
        }
        let name = keep.then(|| PLAYGROUND.to_owned());
        Lab::create(LabOptions {
            name,
            ..LabOptions::new(topology, answers, &BACKENDS)
        })
    }

    /// The service `web` with both pools.
    pub fn service(&self, lab: &Lab) -> Service {
        let forward = match self.forward {
            Mode::Nat => "nat",
            Mode::L2 => "l2",
        };
        let mut service = Service::blue_green(lab, forward);
        if self.ipv6 {
            service.family = Family::V6;
        }
        service
    }
}

/// Where a client's browser would find the service.
fn url(service: &Service) -> String {
    // An IPv6 address in a URL is in brackets, as it is with a port.
    match service.target() {
        SocketAddr::V4(target) => format!("http://{}/", target.ip()),
        SocketAddr::V6(target) => format!("http://[{}]/", target.ip()),
    }
}

/// Leaves all of a lab up and says how to enter it.
pub fn keep(
    lab: Lab,
    service: &Service,
    servers: BTreeMap<String, Guard>,
    ebb: Option<Ebb>,
) -> String {
    servers.into_values().for_each(Guard::forget);
    let has_ebb = ebb.is_some();
    if let Some(ebb) = ebb {
        ebb.forget();
    }
    let directory = lab.directory();
    lab.keep();
    let mut text = String::from("the lab is up; enter it with\n");
    let mut hint = |command: &str, what: &str| text.push_str(&format!("  {command:<66} {what}\n"));
    hint(
        &format!("cargo xtask lab exec client curl -i '{}'", url(service)),
        "a request through the balancer",
    );
    if has_ebb {
        hint("cargo xtask lab exec lb ebb status", "the balancer");
    }
    hint(
        "cargo xtask lab exec router tcpdump -ni lb",
        "packets between router and balancer",
    );
    hint("cargo xtask lab exec b1 bash", "a shell on a backend");
    hint("cargo xtask lab down", "the end of it");
    text.push_str(&format!("logs: {}\n", directory.join("logs").display()));
    text
}

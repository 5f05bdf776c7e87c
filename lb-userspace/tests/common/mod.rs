//! A node to test with.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_userspace::model::{
    observed::Hop,
    spec::{
        Affinity, BackendSpec, Capacity, DrainSpec, Forward, HealthSpec, NodeSpec, OnDeadline,
        PoolSpec, ProbeKind, ProbeSpec, Protocol, ServiceSpec, Spec, Tracking, Vip, XdpMode,
    },
};

/// Idle timeout of the service made here.
pub const IDLE: Duration = Duration::from_secs(20);

/// The address of a backend by its number.
pub fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 8080))
}

/// The way to every backend.
pub const fn hop() -> Hop {
    Hop {
        ifindex: 3,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        mtu: 1500,
        source: None,
        vlan: 0,
    }
}

/// A pool of backends `{prefix}1..`, whose addresses begin after `first`.
pub fn pool(prefix: &str, first: u16, count: u16) -> PoolSpec {
    let backend = |n: u16| {
        let spec = BackendSpec {
            address: address(first + n),
            weight: 1,
            server_id: None,
        };
        (format!("{prefix}{n}"), spec)
    };
    PoolSpec {
        version: None,
        backends: (1..=count).map(backend).collect(),
    }
}

/// A probe that every service here has.
pub fn probe() -> ProbeSpec {
    ProbeSpec {
        kind: ProbeKind::Tcp,
        port: None,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        rise: 1,
        fall: 1,
    }
}

/// A `nat` service with the pools blue (b1..b4, active) and green (g1..g3).
pub fn service(name: &str, checked: bool) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        listen: Vip {
            address: [203, 0, 113, 10].into(),
            port: 80,
            last_port: 80,
            protocol: Protocol::Tcp,
        },
        quic: None,
        forward: Forward::Nat,
        tunnel: Default::default(),
        client_option: 0,
        affinity: Affinity::Flow,
        tracking: Tracking::Moved,
        min_available: 1,
        drain: DrainSpec {
            timeout: Duration::from_secs(30),
            on_deadline: OnDeadline::Reset,
            spread: Duration::from_secs(2),
        },
        on_death: Default::default(),
        idle_timeout: IDLE,
        new_flows_per_core: 0,
        icmp_echo: true,
        slots: Some(1009),
        health: HealthSpec {
            startup: None,
            readiness: checked.then(probe),
            liveness: None,
            agent: None,
        },
        active_pool: "blue".to_owned(),
        pools: BTreeMap::from([
            ("blue".to_owned(), pool("b", 0, 4)),
            ("green".to_owned(), pool("g", 100, 3)),
        ]),
    }
}

/// A configuration with these services.
pub fn spec(services: impl IntoIterator<Item = ServiceSpec>) -> Spec {
    Spec {
        node: NodeSpec {
            interfaces: vec!["fake0".to_owned()],
            xdp_mode: XdpMode::Auto,
            hash_seed_file: "/nonexistent/seed".into(),
            capacity: Capacity::default(),
            share: None,
        },
        nat: Default::default(),
        services: services
            .into_iter()
            .map(|service| (service.name.clone(), service))
            .collect(),
        clients: Default::default(),
        new_flows_per_core: 0,
        fragments_out_of_order: Default::default(),
    }
}

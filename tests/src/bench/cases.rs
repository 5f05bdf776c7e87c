//! ebb's own rows.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    abi::mode,
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
};

use super::{
    Family,
    frames::Frames,
    rows::{Expect, Row, Tables, What},
    services::{Node, Service, Standing},
};
use crate::rig::{Verdict, at, backend_macs};

/// MAC addresses of the way to the clients in the rig's namespace: the neighbour's, the interface's own.
const GATEWAY: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 0xc1], [2, 0, 0, 0, 0, 1]);

/// A kind of packet to a service.
struct Kind {
    name: &'static str,
    tracking: &'static str,
    standing: Standing,
    flags: u8,
    sequence_step: u32,
    tables: Tables,
    outcome: Outcome,
    /// With which numbers of flows it can be measured.
    flows: fn(u32) -> bool,
}

const STEADY: Kind = Kind {
    name: "established",
    tracking: "moved",
    standing: Standing::Steady,
    flags: ACK,
    sequence_step: 0,
    tables: Tables::Any,
    outcome: Outcome::ForwardSteady,
    flows: |_| true,
};

/// A flow that makes an entry does so once, so a single flow can not be measured.
const MANY: fn(u32) -> bool = |flows| flows >= 1 << 16;

const KINDS: [Kind; 7] = [
    STEADY,
    Kind {
        name: "established, moved slot",
        standing: Standing::Moved,
        tables: Tables::Filled,
        outcome: Outcome::ForwardFlow,
        ..STEADY
    },
    Kind {
        tracking: "full",
        standing: Standing::Full,
        tables: Tables::Filled,
        outcome: Outcome::ForwardFlow,
        ..STEADY
    },
    Kind {
        name: "adoption",
        standing: Standing::Moved,
        tables: Tables::Empty,
        outcome: Outcome::ForwardAdopted,
        flows: MANY,
        ..STEADY
    },
    Kind {
        name: "opening",
        flags: SYN,
        tables: Tables::Empty,
        outcome: Outcome::ForwardOpening,
        flows: MANY,
        ..STEADY
    },
    // The same ports opened again and again with other sequence numbers.
    Kind {
        name: "reopening",
        flags: SYN,
        sequence_step: 77_777,
        tables: Tables::Filled,
        outcome: Outcome::ForwardOpening,
        ..STEADY
    },
    Kind {
        name: "retransmitted opening",
        flags: SYN,
        tables: Tables::Filled,
        outcome: Outcome::ForwardRetransmit,
        ..STEADY
    },
];

/// All rows of a family with this many flows.
pub fn rows(node: &Node, family: Family, flows: u32) -> Result<Vec<Row>> {
    let mut rows = vec![pass(family, flows)];
    for mode in [mode::IPIP, mode::GUE] {
        rows.push(to_service(node, family, mode, &STEADY, flows)?);
    }
    for mode in [mode::L2, mode::NAT] {
        for kind in KINDS.iter().filter(|kind| (kind.flows)(flows)) {
            rows.push(to_service(node, family, mode, kind, flows)?);
        }
    }
    rows.push(reply(node, family, flows, Standing::Steady)?);
    rows.push(reply(node, family, flows, Standing::Full)?);
    Ok(rows)
}

fn mode_name(number: u8) -> &'static str {
    match number {
        mode::NAT => "nat",
        mode::IPIP => "ipip",
        mode::GUE => "gue",
        _ => "l2",
    }
}

fn to_service(node: &Node, family: Family, mode: u8, kind: &Kind, flows: u32) -> Result<Row> {
    let service = node.service(family, mode, kind.standing)?;
    let mut frames = Frames::to(node.services[service].setup.vip, kind.flags);
    frames.sequence_step = kind.sequence_step;
    let opening = kind.flags == SYN;
    Ok(Row {
        what: What::Case {
            kind: kind.name,
            mode: mode_name(mode),
            tracking: kind.tracking,
            outcome: kind.outcome,
        },
        program: None,
        frames,
        service: Some(service),
        flows,
        tables: kind.tables,
        fill: None,
        is_tunnelled: mode::is_tunnel(mode),
        verdict: Verdict::Tx,
        expect: forwarded(service, opening),
    })
}

/// What a backend must get.
pub fn forwarded(service: usize, opening: bool) -> Expect {
    Box::new(move |node, flow, mut segment| {
        let backend = node.backend_of(service, flow, opening)?;
        (segment.to_mac, segment.from_mac) = backend_macs(backend);
        let service = &node.services[service];
        if service.setup.mode == mode::NAT {
            segment.to = service.backend_address(backend);
            segment.ttl -= 1;
        }
        Ok(segment)
    })
}

/// To a port that no service has.
fn pass(family: Family, flows: u32) -> Row {
    let server: SocketAddr = match family {
        Family::V4 => at("203.0.113.201", 443),
        Family::V6 => at("2001:db8:f::201", 443),
    };
    Row {
        what: What::Case {
            kind: "pass",
            mode: "none",
            tracking: "none",
            outcome: Outcome::PassNoService,
        },
        program: None,
        frames: Frames::to(server, ACK),
        service: None,
        flows,
        tables: Tables::Any,
        fill: None,
        is_tunnelled: false,
        verdict: Verdict::Pass,
        expect: Box::new(|_, _, segment| Ok(segment)),
    }
}

/// From a backend back to the clients.
fn reply(node: &Node, family: Family, flows: u32, standing: Standing) -> Result<Row> {
    let number = node.service(family, mode::NAT, standing)?;
    let service = &node.services[number];
    let vip = service.setup.vip;
    let backend = Service::backend_id(service.setup.id, 0);
    let full = standing == Standing::Full;
    Ok(Row {
        what: What::Case {
            kind: "reply",
            mode: "nat",
            tracking: if full { "full" } else { "moved" },
            outcome: Outcome::ForwardReply,
        },
        program: None,
        frames: Frames::from(service.backend_address(backend), ACK),
        service: Some(number),
        flows,
        tables: if full { Tables::Filled } else { Tables::Any },
        fill: full.then(|| Frames::to(vip, ACK)),
        is_tunnelled: false,
        verdict: Verdict::Redirect,
        expect: Box::new(move |_, _, mut segment| {
            (segment.to_mac, segment.from_mac) = GATEWAY;
            segment.from = vip;
            segment.ttl -= 1;
            Ok(segment)
        }),
    })
}

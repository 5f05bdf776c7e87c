//! The loaded program on services behind the node's own address and ports (`full-nat`). Needs root.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    icmp::Message,
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs, tunnel_source},
};
use lb_common::{
    abi::{Slot, backend_flags, mode, service_flags},
    full_nat::{BLOCK, OPTION_KIND, seen},
    outcome::Outcome,
    steer::tcp::{ACK, FIN, RST, SYN},
};
use lb_userspace::datapath::{Datapath as _, Table};

const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;
const PORTS: (u16, u16) = (1024, 32_767);
/// Roles of backends: owners of the slots of one that has not moved, and of one that has: current, base.
const UNMOVED: (u32, u32) = (OLD, OLD);
const MOVED: (u32, u32) = (NEW, OLD);
/// MSS, SACK permitted, timestamps, window scale: what Linux opens a connection with.
const USUAL: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

fn tcp_services() -> [ServiceSetup; 2] {
    [(1, "203.0.113.10"), (2, "2001:db8:f::10")].map(|(id, vip)| ServiceSetup {
        id,
        vip: at(vip, 80),
        mode: mode::FULL_NAT,
        flags: 0,
    })
}

fn udp_services() -> [ServiceSetup; 2] {
    tcp_services().map(|service| ServiceSetup {
        flags: service_flags::DATAGRAM | service_flags::TRACK_ALL,
        ..service
    })
}

/// Id of the backend in this role.
fn backend_id(service: &ServiceSetup, role: u32) -> u32 {
    service.id * 2 + role
}

fn backend_address(service: &ServiceSetup, role: u32) -> SocketAddr {
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{role}"), 8080)
    } else {
        at(&format!("fd00::{role}"), 8080)
    }
}

/// A table with one kind of slot.
fn slots(service: &ServiceSetup, (current, base): (u32, u32)) -> [Slot; SLOTS] {
    [Slot::new(
        backend_id(service, current),
        backend_id(service, base),
        false,
    ); SLOTS]
}

/// The rig's node, as the backends see it.
fn node(service: &ServiceSetup, port: u16) -> SocketAddr {
    let own = tunnel_source(backend_address(service, OLD).ip());
    SocketAddr::new(own.into(), port)
}

fn client(service: &ServiceSetup, port: u16) -> SocketAddr {
    let ip = if service.vip.is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8:1::1"
    };
    at(ip, port)
}

fn rig_with(services: &[ServiceSetup], owners: (u32, u32), option: u8) -> Result<Rig> {
    let mut rig = Rig::new()?;
    rig.nat(PORTS, &[])?;
    for service in services {
        for role in [OLD, NEW] {
            let id = backend_id(service, role);
            rig.backend(service, id, backend_address(service, role))?;
        }
        rig.service_with(*service, &slots(service, owners), |record| {
            record.client_option = option;
        })?;
    }
    Ok(rig)
}

/// Both services over one loaded program.
fn rig(services: &[ServiceSetup]) -> Result<Rig> {
    rig_with(services, UNMOVED, 0)
}

/// As if nothing had been before.
fn renew(rig: &mut Rig) -> Result<()> {
    rig.datapath.lose_ports()?;
    rig.nat(PORTS, &[])
}

/// The same with the ports of one block alone, now and before: every flow has the same candidates. The last of these ports.
fn one_block(rig: &mut Rig) -> Result<u16> {
    let last = PORTS.0 + BLOCK as u16 - 1;
    renew(rig)?;
    rig.nat((PORTS.0, last), &[])?;
    rig.nat((PORTS.0, last), &[])?;
    Ok(last)
}

/// A segment of a client, through the program, as it reaches the backend.
fn ask(rig: &mut Rig, segment: &Segment) -> Result<(Outcome, Segment)> {
    let (verdict, out, outcome) = rig.run(&segment.build())?;
    assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
    Ok((outcome, Segment::parse(&out).unwrap()))
}

/// The node's port that an opening from this port of the client gets.
fn open(rig: &mut Rig, service: &ServiceSetup, port: u16) -> Result<u16> {
    let syn = Segment::new(client(service, port), service.vip, SYN);
    Ok(ask(rig, &syn)?.1.from.port())
}

#[test]
fn a_connection_both_ways() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        let (client, backend) = (client(&service, 1000), backend_address(&service, OLD));
        let mut syn = Segment::new(client, service.vip, SYN);
        syn.options = USUAL.to_vec();
        let (outcome, arrived) = ask(&mut rig, &syn)?;
        assert_eq!(outcome, Outcome::ForwardOpening);
        let port = arrived.from.port();
        assert!((PORTS.0..=PORTS.1).contains(&port), "{port}");
        let (to_mac, from_mac) = backend_macs(backend_id(&service, OLD));
        let expected = Segment {
            to_mac,
            from_mac,
            from: node(&service, port),
            to: backend,
            ttl: 63,
            ..syn
        };
        assert_eq!(arrived, expected);
        // The answer leaves by the way to the client, as the service's.
        let answer = Segment::new(backend, node(&service, port), SYN | ACK).at(5, 1001);
        let (verdict, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Redirect, Outcome::ForwardReply)
        );
        let got = Segment::parse(&out).unwrap();
        assert_eq!(
            (got.from, got.to, got.ttl),
            (service.vip, client, 63),
            "{got:?}"
        );
        assert_eq!((got.sequence, got.acknowledged), (5, 1001));
        // The rest of the connection has the same port.
        let more = Segment::new(client, service.vip, ACK)
            .at(1001, 6)
            .data(b"odd");
        let (outcome, arrived) = ask(&mut rig, &more)?;
        assert_eq!(outcome, Outcome::ForwardSteady);
        assert_eq!(
            (arrived.from, arrived.data),
            (node(&service, port), b"odd".to_vec())
        );
        assert_eq!(rig.stats(backend_id(&service, OLD))?.packets, 2);
        assert_eq!(rig.stats(backend_id(&service, OLD))?.reply_packets, 1);
    }
    Ok(())
}

#[test]
fn datagrams_both_ways() -> Result<()> {
    let mut rig = rig(&udp_services())?;
    for service in udp_services() {
        let (client, backend) = (client(&service, 1000), backend_address(&service, OLD));
        let question = Datagram::new(client, service.vip);
        let (verdict, out, outcome) = rig.run(&question.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardOpening));
        let arrived = Datagram::parse(&out).unwrap();
        let port = arrived.from.port();
        assert_eq!(
            (arrived.from, arrived.to, arrived.ttl),
            (node(&service, port), backend, 63)
        );
        let answer = Datagram::new(backend, arrived.from).data(b"an answer");
        let (_, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(outcome, Outcome::ForwardReply);
        let got = Datagram::parse(&out).unwrap();
        assert_eq!((got.from, got.to), (service.vip, client));
        if service.vip.is_ipv4() {
            // Without a checksum it stays without one (RFC 768).
            let mut unchecked = question.clone();
            unchecked.checked = false;
            let (_, out, _) = rig.run(&unchecked.build())?;
            let arrived = Datagram::parse(&out).unwrap();
            assert!(!arrived.checked);
            assert_eq!(arrived.from.port(), port);
        }
        // TCP from the same backend and port to the same port of the node is another matter.
        let other = Segment::new(backend, node(&service, port), ACK);
        let (verdict, _, _) = rig.run(&other.build())?;
        assert_eq!(verdict, Verdict::Pass);
    }
    Ok(())
}

#[test]
fn two_clients_never_share_a_port() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        let last = one_block(&mut rig)?;
        let mut taken = BTreeSet::new();
        for port in 0..BLOCK as u16 {
            assert!(taken.insert(open(&mut rig, &service, 1000 + port)?));
        }
        assert_eq!(taken.len(), BLOCK as usize);
        assert!(taken.iter().all(|port| (PORTS.0..=last).contains(port)));
        // Exhausted: dropped, and counted as such. (Nobody knows a flow in its midst by a new port.)
        let late = Segment::new(client(&service, 2000), service.vip, ACK).at(1001, 1);
        let (verdict, _, outcome) = rig.run(&late.build())?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropNoPort));
        // Those that have one keep it.
        for port in 0..BLOCK as u16 {
            assert!(taken.contains(&open(&mut rig, &service, 1000 + port)?));
        }
        assert_eq!(rig.datapath.ports()?.len(), BLOCK as usize);
    }
    Ok(())
}

/// Both sides of the flow of this port of the client are heard of.
fn confirm(rig: &mut Rig, service: &ServiceSetup, port: u16, node_port: u16) -> Result<()> {
    let (client, backend) = (client(service, port), backend_address(service, OLD));
    let answer = Segment::new(backend, node(service, node_port), SYN | ACK).at(5, 1001);
    assert_eq!(rig.run(&answer.build())?.2, Outcome::ForwardReply);
    let rest = Segment::new(client, service.vip, ACK).at(1001, 6);
    let (_, arrived) = ask(rig, &rest)?;
    assert_eq!(arrived.from, node(service, node_port));
    Ok(())
}

/// Where every port that it could have is taken, an opening gets that of a flow of which one side has shown nothing.
#[test]
fn an_opening_displaces_a_flow_that_is_not_confirmed() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        one_block(&mut rig)?;
        let count = BLOCK as u16;
        let mut taken = Vec::new();
        for port in 0..count {
            taken.push(open(&mut rig, &service, 1000 + port)?);
        }
        // All but one of them.
        for port in 1..count {
            confirm(&mut rig, &service, 1000 + port, taken[usize::from(port)])?;
        }
        let late = Segment::new(client(&service, 2000), service.vip, SYN);
        let (outcome, arrived) = ask(&mut rig, &late)?;
        assert_eq!(
            (outcome, arrived.from),
            (Outcome::ForwardDisplacing, node(&service, taken[0]))
        );
        // Sent again it is the same flow; the answer is for it.
        assert_eq!(ask(&mut rig, &late)?.0, Outcome::ForwardRetransmit);
        confirm(&mut rig, &service, 2000, taken[0])?;
        // Now nobody gives way, neither to the one before nor to others.
        for (port, flags) in [(1000, ACK), (1000, SYN), (3000, SYN)] {
            let other = Segment::new(client(&service, port), service.vip, flags).at(1000, 1);
            let (verdict, _, outcome) = rig.run(&other.build())?;
            assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropNoPort));
        }
        for port in 1..count {
            let more = Segment::new(client(&service, 1000 + port), service.vip, ACK).at(1001, 6);
            let (_, arrived) = ask(&mut rig, &more)?;
            assert_eq!(arrived.from, node(&service, taken[usize::from(port)]));
        }
    }
    Ok(())
}

#[test]
fn a_datagram_displaces_a_flow_that_nobody_has_answered() -> Result<()> {
    let mut rig = rig(&udp_services())?;
    for service in udp_services() {
        one_block(&mut rig)?;
        let send = |rig: &mut Rig, port: u16| -> Result<(Outcome, u16)> {
            let question = Datagram::new(client(&service, port), service.vip);
            let (verdict, out, outcome) = rig.run(&question.build())?;
            assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
            Ok((outcome, Datagram::parse(&out).unwrap().from.port()))
        };
        let mut taken = Vec::new();
        for port in 0..BLOCK as u16 {
            taken.push(send(&mut rig, 1000 + port)?.1);
        }
        for shown in &taken[1..] {
            let backend = backend_address(&service, OLD);
            let answer = Datagram::new(backend, node(&service, *shown)).data(b"an answer");
            assert_eq!(rig.run(&answer.build())?.2, Outcome::ForwardReply);
        }
        let displacing = (Outcome::ForwardDisplacing, taken[0]);
        assert_eq!(send(&mut rig, 2000)?, displacing);
        assert_eq!(send(&mut rig, 1000)?, displacing);
    }
    Ok(())
}

#[test]
fn a_lost_table_gives_the_same_port_again() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let before: Vec<u16> = (0..20)
            .map(|n| open(&mut rig, &service, 1000 + n))
            .collect::<Result<_>>()?;
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 20);
        rig.datapath.lose_ports()?;
        assert!(rig.datapath.ports()?.is_empty());
        for (port, before) in (1000..).zip(before) {
            let later = Segment::new(client(&service, port), service.vip, ACK).at(1001, 1);
            let (_, arrived) = ask(&mut rig, &later)?;
            assert_eq!(arrived.from, node(&service, before));
        }
    }
    Ok(())
}

#[test]
fn another_range_leaves_flows_their_ports() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let port = open(&mut rig, &service, 1000)?;
        let other = if service.vip.is_ipv4() {
            "10.0.0.77"
        } else {
            "fd00::77"
        };
        rig.nat((40_000, 50_000), &[other])?;
        let more = Segment::new(client(&service, 1000), service.vip, ACK).at(1001, 1);
        assert_eq!(ask(&mut rig, &more)?.1.from, node(&service, port));
        // New ones have the new ones.
        let syn = Segment::new(client(&service, 1001), service.vip, SYN);
        let (_, arrived) = ask(&mut rig, &syn)?;
        assert_eq!(arrived.from.ip(), at(other, 0).ip());
        assert!((40_000..=50_000).contains(&arrived.from.port()));
        let answer = Segment::new(arrived.to, arrived.from, SYN | ACK);
        assert_eq!(rig.run(&answer.build())?.2, Outcome::ForwardReply);
        // Of the old address the same port is not known.
        let stray = Segment::new(arrived.to, node(&service, arrived.from.port()), ACK);
        assert_eq!(rig.run(&stray.build())?.2, Outcome::PassReplyLocal);
    }
    Ok(())
}

#[test]
fn what_is_not_of_a_flow_is_the_nodes_own() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        let port = open(&mut rig, &service, 1000)?;
        let backend = backend_address(&service, OLD);
        let rows = [
            ("another port", backend, node(&service, port ^ 1)),
            (
                "another backend",
                backend_address(&service, NEW),
                node(&service, port),
            ),
            ("to a client", backend, client(&service, port)),
        ];
        for (what, from, to) in rows {
            let answer = Segment::new(from, to, ACK).data(b"a health check's answer");
            let frame = answer.build();
            let (verdict, out, outcome) = rig.run(&frame)?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::PassReplyLocal),
                "{what}"
            );
            assert_eq!(out, frame, "{what}");
        }
    }
    Ok(())
}

#[test]
fn the_time_to_live_counts() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let spent = Segment::new(client(&service, 1000), service.vip, SYN).ttl(1);
        let (verdict, _, outcome) = rig.run(&spent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropTtl));
        assert!(rig.datapath.ports()?.is_empty(), "it takes no port");
        let port = open(&mut rig, &service, 1000)?;
        let backend = backend_address(&service, OLD);
        let answer = Segment::new(backend, node(&service, port), SYN | ACK).ttl(1);
        let (verdict, _, outcome) = rig.run(&answer.build())?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropTtl));
    }
    Ok(())
}

#[test]
fn a_drain_keeps_backend_and_port() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        let port = open(&mut rig, &service, 1000)?;
        rig.datapath
            .publish_table(service.id, &slots(&service, MOVED), &[])?;
        let more = Segment::new(client(&service, 1000), service.vip, ACK).at(1001, 1);
        let (outcome, arrived) = ask(&mut rig, &more)?;
        assert_eq!(outcome, Outcome::ForwardHandshake);
        assert_eq!(
            (arrived.from, arrived.to),
            (node(&service, port), backend_address(&service, OLD))
        );
        let new = Segment::new(client(&service, 1001), service.vip, SYN);
        let (_, arrived) = ask(&mut rig, &new)?;
        assert_eq!(arrived.to, backend_address(&service, NEW));
        // Past the deadline the client is reset, as by the service.
        let mut record = rig.datapath.backend(backend_id(&service, OLD))?;
        record.flags |= backend_flags::CUT_RESET;
        record.cut = u32::MAX;
        rig.datapath
            .put_backend(backend_id(&service, OLD), &record)?;
        let (verdict, out, outcome) = rig.run(&more.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ResetDeadline));
        let reset = Segment::parse(&out).unwrap();
        assert_eq!(
            (reset.from, reset.to, reset.flags, reset.sequence),
            (service.vip, client(&service, 1000), RST, 1)
        );
    }
    Ok(())
}

#[test]
fn closes_are_noted_on_both_sides() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let port = open(&mut rig, &service, 1000)?;
        let backend = backend_address(&service, OLD);
        let state = |rig: &Rig| -> Result<(u8, u8)> {
            let entries = rig.datapath.ports()?;
            assert_eq!(entries.len(), 1);
            Ok((entries[0].from_client, entries[0].from_server))
        };
        assert_eq!(state(&rig)?, (0, 0));
        let answer = |flags| Segment::new(backend, node(&service, port), flags).at(5, 1001);
        let ask_more = |flags| Segment::new(client(&service, 1000), service.vip, flags).at(1001, 6);
        rig.run(&answer(SYN | ACK).build())?;
        assert_eq!(state(&rig)?, (0, seen::ALIVE));
        rig.run(&ask_more(ACK).build())?;
        assert_eq!(state(&rig)?, (seen::ALIVE, seen::ALIVE));
        rig.run(&ask_more(FIN | ACK).build())?;
        rig.run(&answer(FIN | ACK).build())?;
        let closed = seen::ALIVE | seen::FIN;
        assert_eq!(state(&rig)?, (closed, closed | seen::BEYOND));
        assert_eq!(rig.stats(backend_id(&service, OLD))?.closed, 1);
        // The same client opens again from the same port: the same port of the node, a flow of its own.
        let mut again = Segment::new(client(&service, 1000), service.vip, SYN);
        again.sequence = 777_777;
        assert_eq!(ask(&mut rig, &again)?.1.from.port(), port);
        assert_eq!(state(&rig)?, (0, 0));
    }
    Ok(())
}

/// The option that names this client.
fn option(client: SocketAddr) -> Vec<u8> {
    let address = match client.ip() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut bytes = vec![OPTION_KIND, 4 + address.len() as u8];
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(address);
    bytes
}

#[test]
fn the_option_names_the_client() -> Result<()> {
    let mut rig = rig_with(&tcp_services(), UNMOVED, OPTION_KIND)?;
    for service in tcp_services() {
        let client = client(&service, 0x1234);
        let mut syn = Segment::new(client, service.vip, SYN);
        syn.options = USUAL.to_vec();
        let (outcome, arrived) = ask(&mut rig, &syn)?;
        assert_eq!(outcome, Outcome::ForwardOpening);
        let wanted = [option(client), USUAL.to_vec()].concat();
        let port = arrived.from.port();
        let (to_mac, from_mac) = backend_macs(backend_id(&service, OLD));
        let expected = Segment {
            to_mac,
            from_mac,
            from: node(&service, port),
            to: backend_address(&service, OLD),
            ttl: 63,
            options: wanted,
            ..syn
        };
        assert_eq!(arrived, expected);
        // So does what completes the handshake, data with it, until the backend goes on.
        let backend = backend_address(&service, OLD);
        let answer = |flags| Segment::new(backend, node(&service, port), flags).at(5, 1001);
        rig.run(&answer(SYN | ACK).build())?;
        for data in [&b""[..], b"a request of odd length"] {
            let more = Segment::new(client, service.vip, ACK)
                .at(1001, 6)
                .data(data);
            let (_, arrived) = ask(&mut rig, &more)?;
            assert_eq!(arrived.options, option(client));
            assert_eq!((arrived.sequence, arrived.data), (1001, data.to_vec()));
        }
        rig.run(&answer(ACK).build())?;
        let more = Segment::new(client, service.vip, ACK)
            .at(1024, 6)
            .data(b"x");
        assert_eq!(ask(&mut rig, &more)?.1.options, Vec::<u8>::new());
    }
    Ok(())
}

#[test]
fn an_option_without_room_is_left_out_and_counted() -> Result<()> {
    let mut rig = rig_with(&tcp_services(), UNMOVED, OPTION_KIND)?;
    for service in tcp_services() {
        let own = option(client(&service, 1000)).len();
        for (options, fits) in [(40 - own, true), (44 - own, false), (40, false)] {
            let mut syn = Segment::new(client(&service, 1000 + options as u16), service.vip, SYN);
            syn.options = vec![1; options];
            let (outcome, arrived) = ask(&mut rig, &syn)?;
            let (expected, length) = if fits {
                (Outcome::ForwardOpening, 40)
            } else {
                (Outcome::ForwardOptionless, options)
            };
            assert_eq!((outcome, arrived.options.len()), (expected, length));
        }
        // Nor behind other options of the network header, or where it would make the packet too long for its way.
        if service.vip.is_ipv4() {
            let mut syn = Segment::new(client(&service, 3000), service.vip, SYN);
            syn.ip_options = vec![1; 4];
            let (outcome, arrived) = ask(&mut rig, &syn)?;
            assert_eq!(outcome, Outcome::ForwardOptionless);
            assert_eq!((arrived.options, arrived.ip_options), (vec![], vec![1; 4]));
        }
        open(&mut rig, &service, 4000)?;
        let headers = if service.vip.is_ipv4() { 40 } else { 60 };
        for (room, has) in [(own, true), (own - 1, false)] {
            let data = vec![7; 1500 - headers - room];
            let full = Segment::new(client(&service, 4000), service.vip, ACK)
                .at(1001, 6)
                .data(&data);
            let (outcome, arrived) = ask(&mut rig, &full)?;
            assert_eq!(outcome, Outcome::ForwardSteady);
            assert_eq!((!arrived.options.is_empty(), arrived.data), (has, data));
        }
    }
    Ok(())
}

#[test]
fn a_service_on_several_ports_keeps_them() -> Result<()> {
    let mut rig = Rig::new()?;
    rig.nat(PORTS, &[])?;
    for service in tcp_services() {
        rig.backend_with(
            &service,
            backend_id(&service, OLD),
            backend_address(&service, OLD),
            |record| {
                record.port = 0;
            },
        )?;
        rig.service_with(service, &slots(&service, UNMOVED), |record| {
            (record.port, record.last_port) = (7000_u16.to_be(), 7999_u16.to_be());
        })?;
        let client = client(&service, 1000);
        let vip = SocketAddr::new(service.vip.ip(), 7123);
        let (_, arrived) = ask(&mut rig, &Segment::new(client, vip, SYN))?;
        let backend = SocketAddr::new(backend_address(&service, OLD).ip(), 7123);
        assert_eq!(arrived.to, backend);
        let answer = Segment::new(backend, arrived.from, SYN | ACK);
        let (_, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(outcome, Outcome::ForwardReply);
        let got = Segment::parse(&out).unwrap();
        assert_eq!((got.from, got.to), (vip, client));
    }
    Ok(())
}

/// An error from a router about this segment.
fn about(segment: &Segment) -> Message {
    let (router, kind, code) = if segment.from.is_ipv4() {
        ("198.51.100.9", 3, 4)
    } else {
        ("2001:db8:99::9", 2, 0)
    };
    let router = router.parse().expect("an address");
    Message::new(
        router,
        segment.from.ip(),
        kind,
        code,
        &segment.build()[14..],
    )
}

#[test]
fn errors_find_the_flows_that_they_are_about() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let port = open(&mut rig, &service, 1000)?;
        let (client, backend) = (client(&service, 1000), backend_address(&service, OLD));
        let node = node(&service, port);
        // On the way to the client: for the backend, as from the node, which it has a way to.
        let answer = Segment::new(service.vip, client, ACK)
            .at(5, 1001)
            .data(b"odd");
        let (verdict, out, outcome) = rig.run(&about(&answer).build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardIcmp));
        let arrived = Message::parse(&out).unwrap();
        let (to_mac, from_mac) = backend_macs(backend_id(&service, OLD));
        assert_eq!((arrived.to_mac, arrived.from_mac), (to_mac, from_mac));
        assert_eq!(
            (arrived.from, arrived.to, arrived.ttl, arrived.word),
            (node.ip(), backend.ip(), 59, about(&answer).word)
        );
        let quoted = arrived.quoted().unwrap();
        let sent = Segment::new(backend, node, ACK).at(5, 1001).data(b"odd");
        assert_eq!(
            (quoted.from, quoted.to, quoted.data),
            (sent.from, sent.to, sent.data)
        );
        // On the way to the backend: for the client, as from the service.
        let question = Segment::new(node, backend, ACK).at(1001, 6).data(b"even");
        let (verdict, out, outcome) = rig.run(&about(&question).build())?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Redirect, Outcome::ForwardIcmpReply)
        );
        let arrived = Message::parse(&out).unwrap();
        assert_eq!((arrived.from, arrived.to), (service.vip.ip(), client.ip()));
        let quoted = arrived.quoted().unwrap();
        assert_eq!(
            (quoted.from, quoted.to, quoted.data),
            (client, service.vip, b"even".to_vec())
        );
    }
    Ok(())
}

#[test]
fn errors_about_nothing_are_left_to_the_kernel() -> Result<()> {
    let mut rig = rig(&tcp_services())?;
    for service in tcp_services() {
        renew(&mut rig)?;
        let port = open(&mut rig, &service, 1000)?;
        let (client, backend) = (client(&service, 1001), backend_address(&service, OLD));
        for segment in [
            Segment::new(service.vip, client, ACK),
            Segment::new(node(&service, port ^ 1), backend, ACK),
        ] {
            let frame = about(&segment).build();
            let (verdict, out, outcome) = rig.run(&frame)?;
            assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassIcmp));
            assert_eq!(out, frame);
        }
        assert_eq!(rig.datapath.ports()?.len(), 1, "an error gives out no port");
    }
    Ok(())
}

/// A flow that began during a change, when the tables are lost, and when the ports are lost as well: the base's reset is
/// withheld, and the flow's own backend sees it come from the port that it came from before.
#[test]
fn a_second_chance_from_the_same_port() -> Result<()> {
    for (service, loses_ports) in tcp_services()
        .into_iter()
        .flat_map(|s| [(s, false), (s, true)])
    {
        let mut rig = rig_with(&[service], MOVED, 0)?;
        let port = open(&mut rig, &service, 1000)?;
        for table in [Table::Flows, Table::Handshakes] {
            rig.lose(table)?;
        }
        if loses_ports {
            renew(&mut rig)?;
        }
        let (old, new) = (
            backend_address(&service, OLD),
            backend_address(&service, NEW),
        );
        let segment = Segment::new(client(&service, 1000), service.vip, ACK)
            .at(7, 5000)
            .data(b"more");
        let (outcome, arrived) = ask(&mut rig, &segment)?;
        assert_eq!((outcome, arrived.to), (Outcome::ForwardAdopted, old));

        let reset = Segment::new(old, arrived.from, RST).at(5000, 0).build();
        let (verdict, out, outcome) = rig.run(&reset)?;
        let withheld = (Verdict::Drop, Outcome::DropSecondChance);
        assert_eq!((verdict, outcome), withheld);
        assert_eq!(out, reset, "what is withheld is left alone");

        let (outcome, arrived) = ask(&mut rig, &segment)?;
        assert_eq!((outcome, arrived.to), (Outcome::ForwardFlow, new));
        assert_eq!(
            arrived.from,
            node(&service, port),
            "ports lost: {loses_ports}"
        );
        // What it has of another connection of that port does not.
        let foreign = Segment::new(new, arrived.from, ACK).at(1 << 31, 11).build();
        let (verdict, out, outcome) = rig.run(&foreign)?;
        assert_eq!((verdict, outcome), withheld);
        assert_eq!(out, foreign);
        // Nobody else has the flow; it comes back to this one when the base does not know it either.
        let (_, arrived_again) = ask(&mut rig, &segment)?;
        assert_eq!(arrived_again.to, old);
        rig.lose(Table::Flows)?;
        ask(&mut rig, &segment)?;
        rig.run(&reset)?;
        ask(&mut rig, &segment)?;
        // Whatever of the flow that one says goes on, be it that there is no such connection either.
        for flags in [ACK, RST] {
            let answer = Segment::new(new, arrived.from, flags).at(5000, 11);
            let (_, out, outcome) = rig.run(&answer.build())?;
            assert_eq!(outcome, Outcome::ForwardReply);
            assert_eq!(Segment::parse(&out).unwrap().to, client(&service, 1000));
        }
    }
    Ok(())
}

//! The loaded program on fragments to services behind the node's own address and ports, and on fragments of their answers: put
//! together again they are what a whole packet would have become, under an identification that no other packet has. Needs root.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    fragments::{cut, identification, join, part},
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs, tunnel_source},
};
use lb_common::{
    abi::{Slot, control_flags, mode, service_flags},
    full_nat::OPTION_KIND,
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
};
use lb_userspace::datapath::Datapath as _;

/// Backends of each service.
const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;
const PORTS: (u16, u16) = (1024, 32_767);
/// Bytes in each fragment.
const PART: usize = 1024;

/// TCP and UDP over IPv4 and over IPv6.
fn services() -> [ServiceSetup; 4] {
    let udp = service_flags::DATAGRAM | service_flags::TRACK_ALL;
    [
        (1, "203.0.113.10", 0),
        (2, "2001:db8:f::10", 0),
        (3, "203.0.113.11", udp),
        (4, "2001:db8:f::11", udp),
    ]
    .map(|(id, vip, flags)| ServiceSetup {
        id,
        vip: at(vip, 80),
        mode: mode::FULL_NAT,
        flags,
    })
}

fn is_udp(service: &ServiceSetup) -> bool {
    service.flags & service_flags::DATAGRAM != 0
}

fn backend_id(service: &ServiceSetup, role: u32) -> u32 {
    service.id * 2 + role
}

fn backend_address(service: &ServiceSetup, role: u32) -> SocketAddr {
    let last = backend_id(service, role);
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{last}"), 8080)
    } else {
        at(&format!("fd00::{last}"), 8080)
    }
}

/// The node's address, as the backends see it.
fn node(service: &ServiceSetup) -> std::net::IpAddr {
    tunnel_source(backend_address(service, OLD).ip()).into()
}

/// The client whose neighbour the rig's kernel knows.
fn client(service: &ServiceSetup, port: u16) -> SocketAddr {
    let ip = if service.vip.is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8:1::1"
    };
    at(ip, port)
}

fn other_client(service: &ServiceSetup) -> SocketAddr {
    let ip = if service.vip.is_ipv4() {
        "192.0.2.2"
    } else {
        "2001:db8:1::2"
    };
    at(ip, 1000)
}

/// A node with all services, every flow on `owner`'s backend.
fn rig_on(owner: u32, option: u8) -> Result<Rig> {
    let mut rig = Rig::new()?;
    rig.nat(PORTS, &[])?;
    for service in services() {
        for role in [OLD, NEW] {
            let id = backend_id(&service, role);
            rig.backend(&service, id, backend_address(&service, role))?;
        }
        let id = backend_id(&service, owner);
        rig.service_with(service, &[Slot::new(id, id, false); SLOTS], |record| {
            record.client_option = option;
        })?;
    }
    Ok(rig)
}

fn rig() -> Result<Rig> {
    rig_on(OLD, 0)
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7) as u8).collect()
}

/// A whole packet of the service's protocol.
fn packet(service: &ServiceSetup, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    if is_udp(service) {
        Datagram::new(from, to).data(data).build()
    } else {
        Segment::new(from, to, ACK).at(78, 9000).data(data).build()
    }
}

/// A packet as it arrived, whose checksums are right.
#[derive(Debug, PartialEq, Eq)]
struct Arrived {
    macs: ([u8; 6], [u8; 6]),
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    data: Vec<u8>,
}

fn arrived(service: &ServiceSetup, frame: &[u8]) -> Arrived {
    if is_udp(service) {
        let got = Datagram::parse(frame).expect("a sound datagram");
        Arrived {
            macs: (got.to_mac, got.from_mac),
            from: got.from,
            to: got.to,
            ttl: got.ttl,
            data: got.data,
        }
    } else {
        let got = Segment::parse(frame).expect("a sound segment");
        Arrived {
            macs: (got.to_mac, got.from_mac),
            from: got.from,
            to: got.to,
            ttl: got.ttl,
            data: got.data,
        }
    }
}

/// Runs fragments, each of which must be forwarded, the later ones as such.
fn forward_all(rig: &mut Rig, frames: &[Vec<u8>], verdict: Verdict) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let (got, bytes, outcome) = rig.run(frame)?;
        assert_eq!(got, verdict, "fragment {number}: {outcome:?}");
        let is_later = outcome == Outcome::ForwardFragment;
        assert_eq!(is_later, number > 0, "fragment {number}: {outcome:?}");
        out.push(bytes);
    }
    Ok(out)
}

/// A client's packet in fragments, through to its backend: as it arrived, and under which identification.
fn ask(rig: &mut Rig, service: &ServiceSetup, from: SocketAddr, id: u32) -> Result<(Arrived, u32)> {
    let whole = packet(service, from, service.vip, &data(3001));
    let out = forward_all(rig, &cut(&whole, PART, PART, id), Verdict::Tx)?;
    Ok((
        arrived(service, &join(&out).expect("one packet")),
        identification(&out[0]),
    ))
}

#[test]
fn questions_become_what_the_whole_packet_would() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let (got, _) = ask(&mut rig, &service, client(&service, 1000), 7)?;
        assert!((PORTS.0..=PORTS.1).contains(&got.from.port()), "{got:?}");
        let expected = Arrived {
            macs: backend_macs(backend_id(&service, OLD)),
            from: SocketAddr::new(node(&service), got.from.port()),
            to: backend_address(&service, OLD),
            ttl: 63,
            data: data(3001),
        };
        assert_eq!(got, expected);
        // In one piece the flow has the same port.
        let whole = packet(&service, client(&service, 1000), service.vip, b"whole");
        let (_, out, _) = rig.run(&whole)?;
        assert_eq!(arrived(&service, &out).from, got.from);
        assert_eq!(rig.stats(backend_id(&service, OLD))?.packets, 4);
    }
    Ok(())
}

#[test]
fn clients_with_one_identification_do_not_clash() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let mut given = BTreeSet::new();
        for from in [client(&service, 1000), other_client(&service)] {
            assert!(given.insert(ask(&mut rig, &service, from, 7)?.1));
        }
        // Nor do packets of one client.
        for id in 8..40 {
            let (_, number) = ask(&mut rig, &service, client(&service, 1000), id)?;
            assert!(given.insert(number), "{number}");
        }
    }
    Ok(())
}

#[test]
fn the_same_fragment_again_has_the_same_identification() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let frames = cut(&whole, PART, PART, 7);
        let (_, first, _) = rig.run(&frames[0])?;
        let (_, later, _) = rig.run(&frames[1])?;
        let (_, again, _) = rig.run(&frames[0])?;
        assert_eq!(again, first);
        let (_, last, _) = rig.run(&frames[2])?;
        let got = join(&[first, later, last]).expect("one packet");
        assert_eq!(arrived(&service, &got).data, data(3001));
    }
    Ok(())
}

#[test]
fn fragments_out_of_order_follow_once_the_first_is_there() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        rig.datapath.put_node_flags(0)?;
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let frames = cut(&whole, PART, PART, 7);
        // Before it they are the kernel's, or nobody's.
        let (verdict, out, outcome) = rig.run(&frames[2])?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Pass, Outcome::PassFragmentEarly)
        );
        assert_eq!(out, frames[2]);
        let flags = control_flags::DROP_EARLY_FRAGMENTS;
        rig.datapath.put_node_flags(flags)?;
        let (verdict, _, outcome) = rig.run(&frames[2])?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Drop, Outcome::DropFragmentEarly)
        );

        let order = [&frames[0], &frames[2], &frames[1]].map(Clone::clone);
        let out = forward_all(&mut rig, &order, Verdict::Tx)?;
        let got = arrived(&service, &join(&out).expect("one packet"));
        assert_eq!(got.data, data(3001));
        // Another packet's are early all the same.
        let other = &cut(&whole, PART, PART, 8)[1];
        assert_eq!(rig.run(other)?.2, Outcome::DropFragmentEarly);
    }
    Ok(())
}

#[test]
fn a_change_does_not_part_them() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let frames = cut(&whole, PART, PART, 7);
        let (_, first, _) = rig.run(&frames[0])?;
        let new = backend_id(&service, NEW);
        let moved = [Slot::new(new, new, false); SLOTS];
        rig.datapath.publish_table(service.id, &moved, &[])?;
        let mut out = vec![first];
        for frame in &frames[1..] {
            out.push(rig.run(frame)?.1);
        }
        let got = arrived(&service, &join(&out).expect("one packet"));
        assert_eq!(got.to, backend_address(&service, OLD));
    }
    Ok(())
}

#[test]
fn answers_go_to_the_client_as_from_the_service() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let (asked, _) = ask(&mut rig, &service, client(&service, 1000), 7)?;
        let answer = packet(&service, asked.to, asked.from, &data(2900));
        let out = forward_all(&mut rig, &cut(&answer, 1400, 1400, 5), Verdict::Redirect)?;
        let expected = Arrived {
            macs: ([2, 0, 0, 0, 0, 0xc1], [2, 0, 0, 0, 0, 1]),
            from: service.vip,
            to: client(&service, 1000),
            ttl: 63,
            data: data(2900),
        };
        assert_eq!(
            arrived(&service, &join(&out).expect("one packet")),
            expected
        );
        assert_eq!(rig.stats(backend_id(&service, OLD))?.reply_packets, 3);
    }
    Ok(())
}

#[test]
fn backends_with_one_identification_do_not_clash_at_the_client() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let mut given = BTreeSet::new();
        for role in [OLD, NEW] {
            let id = backend_id(&service, role);
            let all = [Slot::new(id, id, false); SLOTS];
            rig.datapath.publish_table(service.id, &all, &[])?;
            let port = 1000 + role as u16;
            let (asked, _) = ask(&mut rig, &service, client(&service, port), 7)?;
            assert_eq!(asked.to, backend_address(&service, role));
            let answer = packet(&service, asked.to, asked.from, &data(2900));
            let frames = cut(&answer, 1400, 1400, 5);
            let out = forward_all(&mut rig, &frames, Verdict::Redirect)?;
            assert!(given.insert(identification(&out[0])));
        }
    }
    Ok(())
}

/// The kernel has to find this client first: all fragments take that way.
#[test]
fn answers_that_the_kernel_has_to_send_are_ready_for_it() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let (asked, _) = ask(&mut rig, &service, other_client(&service), 7)?;
        let answer = packet(&service, asked.to, asked.from, &data(2900));
        let mut out = Vec::new();
        for frame in cut(&answer, 1400, 1400, 5) {
            let (verdict, bytes, outcome) = rig.run(&frame)?;
            let expected = (Verdict::Pass, Outcome::ForwardReplyKernel);
            assert_eq!((verdict, outcome), expected);
            out.push(bytes);
        }
        let got = arrived(&service, &join(&out).expect("one packet"));
        assert_eq!((got.from, got.to), (service.vip, other_client(&service)));
        assert_eq!(got.data, data(2900));
    }
    Ok(())
}

#[test]
fn what_is_spent_or_has_no_port_takes_nothing() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let spent = |frame: &[u8]| {
            let mut frame = frame.to_vec();
            if service.vip.is_ipv4() {
                // Its checksum's error stays what it is.
                frame[22] = 1;
            } else {
                frame[21] = 1;
            }
            frame
        };
        let frames = cut(&whole, PART, PART, 7);
        let before = rig.datapath.ports()?.len();
        let dropped = (Verdict::Drop, Outcome::DropTtl);
        let first = spent(&frames[0]);
        let (verdict, out, outcome) = rig.run(&first)?;
        assert_eq!((verdict, outcome), dropped);
        assert_eq!(out, first);
        assert_eq!(rig.datapath.ports()?.len(), before, "it takes no port");
        assert_eq!(rig.run(&frames[1])?.2, Outcome::PassFragmentEarly);

        rig.run(&frames[0])?;
        let later = spent(&frames[1]);
        let (verdict, out, outcome) = rig.run(&later)?;
        assert_eq!((verdict, outcome), dropped);
        assert_eq!(out, later);
    }
    rig.datapath.lose_ports()?;
    rig.nat((1, 1), &[])?;
    for service in services() {
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let frames = cut(&whole, PART, PART, 9);
        let (verdict, out, outcome) = rig.run(&frames[0])?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropNoPort));
        assert_eq!(out, frames[0]);
        assert_eq!(rig.run(&frames[1])?.2, Outcome::PassFragmentEarly);
    }
    Ok(())
}

/// The flow's port may be another flow's by then.
#[test]
fn later_fragments_do_not_outlive_their_flows_port() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
        let frames = cut(&whole, PART, PART, 7);
        rig.run(&frames[0])?;
        rig.datapath.lose_ports()?;
        let (verdict, out, outcome) = rig.run(&frames[1])?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Pass, Outcome::PassFragmentEarly)
        );
        assert_eq!(out, frames[1]);
        rig.nat(PORTS, &[])?;
    }
    Ok(())
}

#[test]
fn answers_to_nobody_are_the_nodes_own() -> Result<()> {
    let mut rig = rig()?;
    for service in services() {
        let nobody = SocketAddr::new(node(&service), 2222);
        let from = backend_address(&service, OLD);
        let frames = cut(&packet(&service, from, nobody, &data(2900)), 1400, 1400, 5);
        for (frame, expected) in frames.iter().zip([
            Outcome::PassReplyLocal,
            Outcome::PassFragment,
            Outcome::PassFragment,
        ]) {
            let (verdict, out, outcome) = rig.run(frame)?;
            assert_eq!((verdict, outcome), (Verdict::Pass, expected));
            assert_eq!(&out, frame);
        }
    }
    Ok(())
}

#[test]
fn a_datagram_without_checksum_stays_without() -> Result<()> {
    let mut rig = rig()?;
    let service = services()[2];
    let mut question = Datagram::new(client(&service, 1000), service.vip).data(&data(3001));
    question.checked = false;
    let out = forward_all(
        &mut rig,
        &cut(&question.build(), PART, PART, 7),
        Verdict::Tx,
    )?;
    let got = Datagram::parse(&join(&out).expect("one packet")).expect("a sound datagram");
    assert_eq!((got.checked, got.data), (false, data(3001)));
    Ok(())
}

/// What the option adds would move all that comes behind it.
#[test]
fn first_fragments_do_not_name_their_client() -> Result<()> {
    let mut rig = rig_on(OLD, OPTION_KIND)?;
    for service in &services()[..2] {
        for (flags, expected) in [
            (SYN, Outcome::ForwardOptionless),
            (ACK, Outcome::ForwardSteady),
        ] {
            let segment = Segment::new(client(service, 1000), service.vip, flags)
                .at(78, 9000)
                .data(&data(3001));
            let frames = cut(&segment.build(), PART, PART, u32::from(flags));
            let mut out = Vec::new();
            for (number, frame) in frames.iter().enumerate() {
                let (_, bytes, outcome) = rig.run(frame)?;
                let expected = if number == 0 {
                    expected
                } else {
                    Outcome::ForwardFragment
                };
                assert_eq!(outcome, expected);
                out.push(bytes);
            }
            let got = Segment::parse(&join(&out).expect("one packet")).expect("sound");
            assert_eq!((got.options, got.data), (vec![], data(3001)));
        }
    }
    Ok(())
}

/// Options in front of the fragment header and behind it: the identification stands elsewhere.
#[test]
fn extension_headers_around_the_fragment_header() -> Result<()> {
    /// Destination options, filled by PadN; the first octet is what follows.
    const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    const DESTINATION: u8 = 60;
    let mut rig = rig()?;
    let service = services()[3];
    let whole = packet(&service, client(&service, 1000), service.vip, &data(3001));
    let (headers, datagram) = whole.split_at(54);
    let options = |next: u8| [&[next], &OPTIONS[1..]].concat();
    // Of the datagram with options in front of it, as RFC 8200 section 4.5 cuts.
    let fragmented = [options(headers[20]), datagram.to_vec()].concat();
    let mut carrier = headers.to_vec();
    carrier[20] = DESTINATION;
    let split = |number: usize| {
        let (start, end) = (number * PART, fragmented.len().min((number + 1) * PART));
        let mut frame = part(
            &carrier,
            &fragmented[start..end],
            start,
            end < fragmented.len(),
            9,
        );
        let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        let next = std::mem::replace(&mut frame[20], DESTINATION);
        frame.splice(54..54, options(next));
        frame
    };
    let parts: Vec<_> = (0..3).map(split).collect();
    let out = forward_all(&mut rig, &parts, Verdict::Tx)?;
    let number = &out[0][66..70];
    assert_ne!(number, 9_u32.to_be_bytes());
    let mut joined = Vec::new();
    for (out, sent) in out.iter().zip(&parts) {
        assert_eq!(&out[66..70], number);
        assert_eq!((&out[54..66], &out[70..78]), (&sent[54..66], &sent[70..78]));
        assert_eq!(out[22..38], node_octets(&service));
        joined.extend(&out[70..]);
    }
    // Without the options in front it is a datagram as any other.
    let mut plain = out[0][..54].to_vec();
    plain[18..20].copy_from_slice(&((joined.len() - 8) as u16).to_be_bytes());
    plain[20] = joined[0];
    plain.extend(&joined[8..]);
    let got = Datagram::parse(&plain).expect("a sound datagram");
    assert_eq!(
        (got.to, got.data),
        (backend_address(&service, OLD), data(3001))
    );
    Ok(())
}

fn node_octets(service: &ServiceSetup) -> [u8; 16] {
    match node(service) {
        std::net::IpAddr::V6(v6) => v6.octets(),
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    }
}

#[test]
fn a_service_on_several_ports_keeps_them() -> Result<()> {
    let mut rig = Rig::new()?;
    rig.nat(PORTS, &[])?;
    for service in services() {
        let id = backend_id(&service, OLD);
        rig.backend_with(&service, id, backend_address(&service, OLD), |record| {
            record.port = 0;
        })?;
        rig.service_with(service, &[Slot::new(id, id, false); SLOTS], |record| {
            (record.port, record.last_port) = (7000_u16.to_be(), 7999_u16.to_be());
        })?;
        let vip = SocketAddr::new(service.vip.ip(), 7123);
        let whole = packet(&service, client(&service, 1000), vip, &data(3001));
        let out = forward_all(&mut rig, &cut(&whole, PART, PART, 7), Verdict::Tx)?;
        let asked = arrived(&service, &join(&out).expect("one packet"));
        assert_eq!(asked.to.port(), 7123);
        let answer = packet(&service, asked.to, asked.from, &data(2900));
        let out = forward_all(&mut rig, &cut(&answer, 1400, 1400, 5), Verdict::Redirect)?;
        let got = arrived(&service, &join(&out).expect("one packet"));
        assert_eq!((got.from, got.to), (vip, client(&service, 1000)));
        assert_eq!(got.data, data(2900));
    }
    Ok(())
}

/// IPv4 has 65,536 identifications between two hosts. What would have one that may still be in use goes no further.
#[test]
fn identifications_are_used_up_before_they_clash() -> Result<()> {
    let mut rig = rig()?;
    let service = services()[2];
    let first = |port: u16, id: u32| {
        let whole = packet(&service, client(&service, port), service.vip, &data(40));
        cut(&whole, 16, 16, id).swap_remove(0)
    };
    for id in 0..65_536 {
        let verdict = rig.run_fast(&first(1000, id))?;
        assert_eq!(verdict, Verdict::Tx, "{id}");
    }
    let one_more = first(1001, 0);
    let (verdict, out, outcome) = rig.run(&one_more)?;
    let dropped = (Verdict::Drop, Outcome::DropNoIdentification);
    assert_eq!((verdict, outcome), dropped);
    assert_eq!(out, one_more);
    // In one piece it needs none, and what is remembered has one.
    let whole = packet(&service, client(&service, 1001), service.vip, b"whole");
    assert_eq!(rig.run(&whole)?.0, Verdict::Tx);
    assert_eq!(rig.run_fast(&first(1000, 65_535))?, Verdict::Tx);
    Ok(())
}

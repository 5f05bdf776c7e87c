//! The loaded program, QUIC packet by packet. Needs root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    abi::{Slot, backend_flags, mode, service_flags},
    entry::{Meta, state},
    outcome::Outcome,
};
use lb_userspace::{
    datapath::{Datapath as _, Question, Table},
    model::spec::Protocol,
};

const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;
/// Configuration that the connection ids have, see [`id_of`].
const ROTATION: u8 = 1;
/// A backend's server id is this and its number.
const FIRST_ID: u32 = 0x0a00_0000;

const NAT: ServiceSetup = ServiceSetup {
    id: 1,
    vip: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), 443),
    mode: mode::NAT,
    flags: service_flags::DATAGRAM | service_flags::TRACK_ALL | service_flags::QUIC,
};

/// Both families, in `nat` and `l2`.
fn services() -> [ServiceSetup; 4] {
    let v6 = ServiceSetup {
        vip: at("2001:db8:f::10", 443),
        ..NAT
    };
    let l2 = |service| ServiceSetup {
        mode: mode::L2,
        ..service
    };
    [NAT, l2(NAT), v6, l2(v6)]
}

fn backend_address(service: &ServiceSetup, id: u32) -> SocketAddr {
    let port = if service.mode == mode::NAT { 4433 } else { 443 };
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{id}"), port)
    } else {
        at(&format!("fd00::{id}"), port)
    }
}

const UNMOVED: Slot = Slot::new(OLD, OLD, false);
const MOVED: Slot = Slot::new(NEW, OLD, false);

fn rig(service: &ServiceSetup, slot: Slot) -> Result<Rig> {
    let mut rig = Rig::new()?;
    for id in [OLD, NEW] {
        rig.backend(service, id, backend_address(service, id))?;
    }
    rig.service_with(*service, &[slot; SLOTS], |record| {
        record.quic_length = 4;
        record.quic_rotation = ROTATION;
        // A row waits until an entry's time may be late no more.
        record.set_idle(record.idle_ticks / 10);
    })?;
    let names = [OLD, NEW].map(|id| (u64::from(FIRST_ID + id), id));
    rig.server_ids(service.id, &names)?;
    Ok(rig)
}

fn client(service: &ServiceSetup, port: u16) -> SocketAddr {
    let ip = if service.vip.is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8:1::1"
    };
    at(ip, port)
}

/// A connection id: configuration, server id, eight bytes that say nothing.
fn id_with(rotation: u8, server: u32) -> Vec<u8> {
    let mut id = vec![rotation << 5 | 0x0b];
    id.extend(server.to_be_bytes());
    id.extend([0x5a; 8]);
    id
}

/// A connection id of that backend.
fn id_of(backend: u32) -> Vec<u8> {
    id_with(ROTATION, FIRST_ID + backend)
}

/// What a client takes for the first packets of a connection; it has another configuration than the servers' ids.
fn chosen(number: u8) -> Vec<u8> {
    vec![0xe0, number, 3, 4, 5, 6, 7, 8]
}

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

fn long(kind: u8, version: u32, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc0 | kind << 4];
    bytes.extend(version.to_be_bytes());
    bytes.push(id.len() as u8);
    bytes.extend(id);
    bytes.extend([0; 24]);
    bytes
}

fn initial(id: &[u8]) -> Vec<u8> {
    long(0, VERSION_1, id)
}

fn short(id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40];
    bytes.extend(id);
    bytes.extend([0x77; 20]);
    bytes
}

/// Sends a frame, and checks the one that comes out against the datagram in it.
fn send_frame(
    rig: &mut Rig,
    service: &ServiceSetup,
    asked: &Datagram,
    frame: &[u8],
) -> Result<(Outcome, u32)> {
    let (verdict, out, outcome) = rig.run(frame)?;
    if !outcome.is_forward() {
        return Ok((outcome, 0));
    }
    assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
    let sent = Datagram::parse(&out).expect("a sound frame");
    let backend = u32::from(sent.to_mac[5]);
    let to = match service.mode {
        mode::NAT => backend_address(service, backend),
        _ => service.vip,
    };
    assert_eq!((sent.from, sent.to), (asked.from, to), "{outcome:?}");
    assert_eq!(
        (sent.to_mac, sent.from_mac),
        backend_macs(backend),
        "{outcome:?}"
    );
    assert_eq!(sent.data, asked.data);
    Ok((outcome, backend))
}

fn send(rig: &mut Rig, service: &ServiceSetup, port: u16, data: &[u8]) -> Result<(Outcome, u32)> {
    let asked = Datagram::new(client(service, port), service.vip).data(data);
    let frame = asked.build();
    send_frame(rig, service, &asked, &frame)
}

/// The entries' backends.
fn listed(rig: &mut Rig) -> Result<Vec<u32>> {
    let entries = rig.entries(Table::Flows)?;
    let mut backends: Vec<_> = entries.iter().map(|e| Meta(e.meta).backend()).collect();
    backends.sort_unstable();
    Ok(backends)
}

#[test]
fn an_initial_opens_a_flow() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let to = |rig: &mut Rig, port, data: Vec<u8>| send(rig, &service, port, &data);
        let opened = |backend| (Outcome::ForwardOpening, backend);
        let known = |backend| (Outcome::ForwardFlow, backend);
        assert_eq!(to(&mut rig, 1000, initial(&chosen(1)))?, opened(OLD));
        assert_eq!(to(&mut rig, 1000, initial(&chosen(1)))?, known(OLD));
        rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
        // Again (its answer was lost), 0-RTT beside it, and the next one, which has the server's own id.
        assert_eq!(to(&mut rig, 1000, initial(&chosen(1)))?, known(OLD));
        let early = long(1, VERSION_1, &chosen(1));
        assert_eq!(to(&mut rig, 1000, early)?, known(OLD));
        assert_eq!(to(&mut rig, 1000, initial(&id_of(OLD)))?, known(OLD));
        assert_eq!(to(&mut rig, 1001, initial(&chosen(2)))?, opened(NEW));
        // A new connection from the port of an old one is new; the old one is known by its name.
        assert_eq!(to(&mut rig, 1000, initial(&chosen(3)))?, opened(NEW));
        assert_eq!(
            to(&mut rig, 1000, short(&id_of(OLD)))?,
            (Outcome::ForwardServerId, OLD)
        );
        assert_eq!((rig.stats(OLD)?.opened, rig.stats(NEW)?.opened), (1, 2));
    }
    Ok(())
}

/// A client's own id may look like a server's: it is one in eight that has the configuration's bits.
#[test]
fn an_initial_does_not_follow_an_id_that_its_client_chose() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &NAT, 1000, &initial(&id_of(OLD)))?,
        (Outcome::ForwardOpening, NEW)
    );
    Ok(())
}

#[test]
fn versions_and_kinds_of_long_headers() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    for (number, (kind, version, outcome, backend)) in [
        (0, VERSION_1, Outcome::ForwardOpening, NEW),
        (1, VERSION_1, Outcome::ForwardOpening, NEW),
        (2, VERSION_1, Outcome::ForwardServerId, OLD),
        (3, VERSION_1, Outcome::ForwardServerId, OLD),
        (1, VERSION_2, Outcome::ForwardOpening, NEW),
        (2, VERSION_2, Outcome::ForwardOpening, NEW),
        (3, VERSION_2, Outcome::ForwardServerId, OLD),
        (0, VERSION_2, Outcome::ForwardServerId, OLD),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 1000 + number as u16;
        let went = send(&mut rig, &NAT, port, &long(kind, version, &id_of(OLD)))?;
        assert_eq!(went, (outcome, backend), "{kind} of {version:x}");
    }
    Ok(())
}

/// Whatever address it comes from; in `nat` the answer to the new one is found too.
#[test]
fn a_packet_that_names_its_server_goes_there() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, MOVED)?;
        let to_old = (Outcome::ForwardServerId, OLD);
        for port in [1000, 1000, 2000, 3000, 2000] {
            let went = send(&mut rig, &service, port, &short(&id_of(OLD)))?;
            assert_eq!(went, to_old);
        }
        // The census counts what it sees: an entry for every address that is in use.
        assert_eq!(listed(&mut rig)?, [OLD; 3]);
        assert_eq!((rig.stats(OLD)?.opened, rig.stats(OLD)?.adopted), (0, 3));
        let entries = rig.entries(Table::Flows)?;
        let is_kept = |meta| Meta(meta).has(state::EXCEPTIONAL);
        assert!(!entries.iter().any(|entry| is_kept(entry.meta)));
        if service.mode != mode::NAT {
            continue;
        }
        let server = backend_address(&service, OLD);
        let answer = Datagram::new(server, client(&service, 3000)).data(b"an answer");
        let (_, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(outcome, Outcome::ForwardReply);
        let got = Datagram::parse(&out).expect("a sound frame");
        assert_eq!((got.from, got.to), (service.vip, answer.to));
        assert_eq!(got.data, answer.data);
    }
    Ok(())
}

#[test]
fn an_answer_keeps_the_entry_of_a_migrated_client_young() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    send(&mut rig, &NAT, 3000, &short(&id_of(OLD)))?;
    let seen = |rig: &mut Rig| Ok::<_, anyhow::Error>(rig.entries(Table::Flows)?[0].seen);
    let before = seen(&mut rig)?;
    let answer = Datagram::new(backend_address(&NAT, OLD), client(&NAT, 3000)).build();
    let patience = std::time::Instant::now();
    while seen(&mut rig)? == before {
        assert_eq!(rig.run(&answer)?.2, Outcome::ForwardReply);
        assert!(patience.elapsed().as_secs() < 5, "no answer touches it");
    }
    Ok(())
}

#[test]
fn an_id_that_names_nobody_is_steered_by_address_and_counted() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        send(&mut rig, &service, 1000, &initial(&chosen(1)))?;
        rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
        for (number, id) in [
            id_with(ROTATION, FIRST_ID + 9),
            id_with(ROTATION + 1, FIRST_ID + OLD),
            id_with(0, FIRST_ID + OLD),
            id_with(0b111, FIRST_ID + OLD),
        ]
        .iter()
        .enumerate()
        {
            let unknown = |backend| (Outcome::ForwardServerUnknown, backend);
            // With an entry, without one, and with the one that was made then.
            assert_eq!(send(&mut rig, &service, 1000, &short(id))?, unknown(OLD));
            let port = 2000 + number as u16;
            assert_eq!(send(&mut rig, &service, port, &short(id))?, unknown(NEW));
            assert_eq!(send(&mut rig, &service, port, &short(id))?, unknown(NEW));
            let handshake = long(2, VERSION_1, id);
            assert_eq!(send(&mut rig, &service, 1000, &handshake)?, unknown(OLD));
        }
        assert_eq!(rig.stats(NEW)?.opened, 4);
    }
    Ok(())
}

#[test]
fn a_long_header_with_too_short_an_id_names_nobody() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    let mut id = id_of(OLD);
    id.truncate(4);
    // The bytes behind it would be the rest of a server id.
    let mut data = long(2, VERSION_1, &id);
    data[10] = OLD as u8;
    let went = send(&mut rig, &NAT, 1000, &data)?;
    assert_eq!(went, (Outcome::ForwardServerUnknown, NEW));
    Ok(())
}

/// QUIC packets are longer; and what lies behind a datagram in its frame is not part of it.
#[test]
fn datagrams_that_are_too_short_name_nobody() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, MOVED)?;
        let whole = short(&id_of(OLD));
        for length in 0..16 {
            let data = &whole[..length];
            let went = send(&mut rig, &service, 1000, data)?;
            assert_eq!(went, (Outcome::ForwardServerUnknown, NEW), "{length} bytes");
            let mut padded = Datagram::new(client(&service, 1000), service.vip)
                .data(data)
                .build();
            padded.extend(&whole[length..]);
            let (_, out, outcome) = rig.run(&padded)?;
            assert_eq!(
                (outcome, out[5]),
                (Outcome::ForwardServerUnknown, NEW as u8)
            );
        }
        let went = send(&mut rig, &service, 1000, &whole[..16])?;
        assert_eq!(went, (Outcome::ForwardServerId, OLD));
        let went = send(&mut rig, &service, 1000, &initial(&chosen(1))[..15])?;
        assert_eq!(went, (Outcome::ForwardServerUnknown, NEW));
    }
    Ok(())
}

#[test]
fn a_draining_server_is_served_and_one_that_has_ended_is_not() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, MOVED)?;
        rig.flags(OLD, 0, backend_flags::ACCEPTING)?;
        let named = short(&id_of(OLD));
        let went = send(&mut rig, &service, 1000, &named)?;
        assert_eq!(went, (Outcome::ForwardServerId, OLD));

        rig.flags(OLD, backend_flags::ENDED, 0)?;
        for port in [1000, 1001] {
            let went = send(&mut rig, &service, port, &named)?;
            assert_eq!(went, (Outcome::ForwardServerUnknown, NEW), "{port}");
        }
        rig.flags(OLD, 0, backend_flags::ENDED | backend_flags::VALID)?;
        let went = send(&mut rig, &service, 1002, &named)?;
        assert_eq!(went, (Outcome::ForwardServerUnknown, NEW));

        rig.flags(OLD, backend_flags::VALID, 0)?;
        rig.server_ids(service.id, &[])?;
        let went = send(&mut rig, &service, 1003, &named)?;
        assert_eq!(went, (Outcome::ForwardServerUnknown, NEW));
    }
    Ok(())
}

#[test]
fn past_its_deadline_a_server_gets_nothing() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    rig.backend_with(&NAT, OLD, backend_address(&NAT, OLD), |record| {
        record.flags |= backend_flags::CUT_DROP;
        record.cut = u32::MAX;
    })?;
    let went = send(&mut rig, &NAT, 1000, &short(&id_of(OLD)))?;
    assert_eq!(went, (Outcome::DropDeadline, 0));
    Ok(())
}

#[test]
fn without_a_backend_what_names_none_is_dropped() -> Result<()> {
    let mut rig = rig(&NAT, Slot::new(0, OLD, false))?;
    for data in [initial(&chosen(1)), short(&chosen(1))] {
        let went = send(&mut rig, &NAT, 1000, &data)?;
        assert_eq!(went, (Outcome::DropNoBackend, 0));
    }
    let went = send(&mut rig, &NAT, 1000, &short(&id_of(OLD)))?;
    assert_eq!(went, (Outcome::ForwardServerId, OLD));
    // Its entry stays when it has ended, and there is nobody else.
    rig.flags(OLD, backend_flags::ENDED, 0)?;
    let went = send(&mut rig, &NAT, 1000, &short(&id_of(OLD)))?;
    assert_eq!(went, (Outcome::DropNoBackend, 0));
    Ok(())
}

#[test]
fn two_connections_from_one_port_are_both_listed() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, MOVED)?;
        for backend in [OLD, NEW, OLD, NEW] {
            let went = send(&mut rig, &service, 1000, &short(&id_of(backend)))?;
            assert_eq!(went, (Outcome::ForwardServerId, backend));
        }
        assert_eq!(listed(&mut rig)?, [OLD, NEW]);
    }
    Ok(())
}

/// Limits hold back new flows, not those that have come from elsewhere.
#[test]
fn limits_do_not_touch_what_names_its_server() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    rig.limit_flows(1, NAT.id, 1)?;
    rig.limit(1, 0)?;
    let mut port = 1000;
    while send(&mut rig, &NAT, port, &initial(&chosen(1)))?.0 != Outcome::DropFlowLimit {
        port += 1;
        assert!(port < 2000, "no limit");
    }
    let before = listed(&mut rig)?.len();
    let went = send(&mut rig, &NAT, 3000, &short(&id_of(OLD)))?;
    assert_eq!(went, (Outcome::ForwardServerId, OLD));
    assert_eq!(listed(&mut rig)?.len(), before, "none is adopted");
    Ok(())
}

/// What only the thorough program can parse reaches this one as well.
#[test]
fn tagged_frames_and_frames_with_options() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    let frame = Datagram::new(client(&NAT, 1000), NAT.vip)
        .data(&short(&id_of(OLD)))
        .build();
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0, 0, 7]);
    tagged.extend(&frame[12..]);
    let (verdict, out, outcome) = rig.run(&tagged)?;
    assert_eq!(
        (verdict, outcome, u32::from(out[5])),
        (Verdict::Tx, Outcome::ForwardServerId, OLD)
    );
    assert_eq!(out[12..16], tagged[12..16], "it keeps its tag");
    Ok(())
}

/// Through a tunnel like any other.
#[test]
fn tunnels() -> Result<()> {
    let service = ServiceSetup {
        mode: mode::IPIP,
        ..NAT
    };
    let mut rig = rig(&service, MOVED)?;
    let frame = Datagram::new(client(&service, 1000), service.vip)
        .data(&short(&id_of(OLD)))
        .build();
    let (verdict, out, outcome) = rig.run(&frame)?;
    assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardServerId));
    assert_eq!(out[30..34], [10, 0, 0, OLD as u8], "the outer destination");
    assert_eq!(out[34..], frame[14..], "the packet");
    Ok(())
}

#[test]
fn explain_asks_with_quic_packets() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        send(&mut rig, &service, 1000, &initial(&chosen(1)))?;
        rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
        let ask = |opening, id: &[u8]| {
            let question = Question {
                client: client(&service, 1000),
                vip: service.vip,
                protocol: Protocol::Udp,
                opening,
            };
            let said = rig.datapath.explain_quic(&question, id)?;
            Ok::<_, anyhow::Error>((said.outcome, said.backend, said.slot))
        };
        let opening = ask(true, &[])?;
        assert_eq!(opening, (Outcome::ForwardOpening as u32, NEW, MOVED.0));
        let named = ask(false, &id_of(NEW))?;
        assert_eq!(named, (Outcome::ForwardServerId as u32, NEW, MOVED.0));
        let other = ask(false, &[0xe0])?;
        assert_eq!(other, (Outcome::ForwardServerUnknown as u32, OLD, MOVED.0));
        assert_eq!(listed(&mut rig)?, [OLD], "a question leaves no trace");
    }
    Ok(())
}

//! The oracle sees what it is there to see: each row tampers with a right output in one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{abi::mode, outcome::Outcome, steer::tcp::ACK};

use super::*;
use crate::{
    fuzz::{
        frame::{Frame, Network, Tcp, Transport},
        sums::{TCP, UDP, checksum},
        world::{NEIGHBOUR, NEIGHBOUR_MACS, Role, Service},
    },
    rig::{TUNNEL_PORT, backend_macs, tunnel_source},
};

/// A client of `service` whose slot is owned by backends of this role, before and after.
fn client_of(service: &Service, role: Role) -> SocketAddr {
    let ip = |host: u16| -> IpAddr {
        if service.vip.is_ipv4() {
            Ipv4Addr::from_bits(0xc000_0200 + u32::from(host)).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host).into()
        }
    };
    let owned = |client: &SocketAddr| {
        let slot = service.slot(*client);
        slot.current() == role.id(service.id) && slot.base() == slot.current()
    };
    // Another address each time: some services keep a client's flows together.
    let mut clients = (10..250).map(|n| SocketAddr::new(ip(n), 999 + n));
    clients.find(owned).expect("a slot of this kind")
}

fn packet(protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let ports = (from.port(), to.port());
    let transport = if protocol == UDP {
        Transport::Udp {
            ports,
            checked: true,
        }
    } else {
        Transport::Tcp(Tcp::new(ports, ACK))
    };
    let mut frame = Frame::between(from.ip(), to.ip(), transport);
    frame.data = b"odd".to_vec();
    frame.build()
}

/// An input to this service with one byte of data changed, so that its checksum is wrong, and what must come out:
/// everything computed from scratch, then the same byte changed.
fn pair(service: &Service, wrong: bool) -> (Vec<u8>, Vec<u8>) {
    let client = client_of(service, Role::Old);
    let backend = service.backends[0].address;
    let protocol = service.row.protocol();
    let mut input = packet(protocol, client, service.vip);
    let mut output = match service.row.mode {
        mode::NAT => hop(packet(protocol, client, backend)),
        mode::L2 => input.clone(),
        _ => encapsulated(service, &input),
    };
    output[..12].copy_from_slice(&macs(service));
    for frame in [&mut input, &mut output] {
        if wrong {
            *frame.last_mut().unwrap() ^= 0x40;
        }
    }
    (input, output)
}

/// The input in the tunnel to the first backend, without an outer UDP checksum.
fn encapsulated(service: &Service, input: &[u8]) -> Vec<u8> {
    let backend = service.backends[0].address.ip();
    let source = IpAddr::from(tunnel_source(backend));
    let inner = input[14..].to_vec();
    let protocol = if service.vip.is_ipv4() { 4 } else { 41 };
    let (transport, data) = if service.row.mode == mode::GUE {
        let length = inner.len() as u16 + 8;
        let mut header = [50_000u16, TUNNEL_PORT, length, 0]
            .map(u16::to_be_bytes)
            .concat();
        header.extend(inner);
        (Transport::Raw(UDP), header)
    } else {
        (Transport::Raw(protocol), inner)
    };
    let mut frame = Frame::between(source, backend, transport);
    frame.data = data;
    if let Network::V4(header) = &mut frame.network {
        header.id = 0;
    }
    frame.build()
}

fn macs(service: &Service) -> Vec<u8> {
    let (to, from) = backend_macs(service.backends[0].id);
    [to, from].concat()
}

/// A time to live one less.
fn hop(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12] == 0x08 {
        frame[22] -= 1;
        frame[24..26].fill(0);
        let check = checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&check.to_be_bytes());
    } else {
        frame[21] -= 1;
    }
    frame
}

/// Services whose outputs follow from the input alone: not those with ports that were given out before.
fn services() -> impl Iterator<Item = Service> {
    let services = World::imagined().services.into_iter();
    services.filter(|service| service.row.mode != mode::FULL_NAT)
}

fn steady(service: u32, input: &[u8], output: &[u8]) -> Result<(), Broken> {
    let world = World::imagined();
    // Its data are too few for a connection id.
    let is_quic = |row: &Service| row.id == service && row.is_quic();
    let outcome = if world.services.iter().any(is_quic) {
        Outcome::ForwardServerUnknown
    } else {
        Outcome::ForwardSteady
    };
    let run = Run {
        input,
        verdict: Verdict::Tx,
        output,
        service,
        outcome,
        named: &[],
    };
    judge(&world, &run)
}

#[test]
fn right_outputs_are_right() {
    for service in services() {
        for wrong in [false, true] {
            let (input, output) = pair(&service, wrong);
            assert_eq!(
                steady(service.id, &input, &output),
                Ok(()),
                "{}",
                service.row.name
            );
        }
    }
}

/// Bits of outer headers that a flow may have as it likes: flow label, and the lower bits of the UDP source port.
fn is_free(service: &Service, bit: usize) -> bool {
    if !mode::is_tunnel(service.row.mode) {
        return false;
    }
    let (is_v4, is_udp) = (
        service.backends[0].address.is_ipv4(),
        service.row.mode == mode::GUE,
    );
    let (port, low, high) = (if is_v4 { 34 } else { 54 }, bit % 8 < 4, bit % 8 > 5);
    let in_label = !is_v4 && (bit / 8 == 15 && low || (16..18).contains(&(bit / 8)));
    let in_port = is_udp && (bit / 8 == port && !high || bit / 8 == port + 1);
    in_label || in_port
}

#[test]
fn every_changed_bit_is_seen() {
    for service in services() {
        let (input, output) = pair(&service, false);
        for bit in 0..output.len() * 8 {
            let mut tampered = output.clone();
            tampered[bit / 8] ^= 1 << (bit % 8);
            let judged = steady(service.id, &input, &tampered);
            if is_free(&service, bit) {
                continue;
            }
            assert!(
                judged.is_err(),
                "{}: byte {} bit {}",
                service.row.name,
                bit / 8,
                bit % 8
            );
        }
        let longer = [&output[..], &[0]].concat();
        assert!(steady(service.id, &input, &longer).is_err());
        assert!(steady(service.id, &input, &output[..output.len() - 1]).is_err());
    }
}

#[test]
fn a_wrong_checksum_must_stay_as_wrong_as_it_was() {
    let world = World::imagined();
    let service = &world.services[0];
    let (input, output) = pair(service, true);
    let mut mended = output.clone();
    mended[50..52].fill(0);
    let view = View::parse(&mended).unwrap();
    let error = super::super::sums::transport_error(&mended, &view);
    mended[50..52].copy_from_slice(&(0xffff - error).to_be_bytes());
    assert_eq!(super::super::sums::transport_error(&mended, &view), 0);
    let said = steady(service.id, &input, &mended).unwrap_err().to_string();
    assert!(said.contains("as right or as wrong as before"), "{said}");
}

#[test]
fn outcome_service_verdict_and_backend_must_fit() {
    let world = World::imagined();
    let service = &world.services[0];
    let (input, output) = pair(service, false);
    let right = Run {
        input: &input,
        verdict: Verdict::Tx,
        output: &output,
        service: service.id,
        outcome: Outcome::ForwardSteady,
        named: &[],
    };
    assert_eq!(judge(&world, &right), Ok(()));
    let others = [
        Run {
            service: 0,
            ..right
        },
        Run {
            service: 2,
            ..right
        },
        Run {
            verdict: Verdict::Pass,
            ..right
        },
        Run {
            verdict: Verdict::Redirect,
            ..right
        },
        Run {
            verdict: Verdict::Other(0),
            ..right
        },
        Run {
            outcome: Outcome::PassNoService,
            ..right
        },
        Run {
            outcome: Outcome::DropNoBackend,
            verdict: Verdict::Drop,
            ..right
        },
        Run {
            outcome: Outcome::DropTtl,
            verdict: Verdict::Drop,
            output: &input,
            ..right
        },
        Run {
            outcome: Outcome::PassInternal,
            verdict: Verdict::Pass,
            output: &input,
            ..right
        },
        Run {
            outcome: Outcome::ForwardReply,
            verdict: Verdict::Redirect,
            ..right
        },
    ];
    for other in others {
        assert!(judge(&world, &other).is_err(), "{other:?}");
    }
    let mut elsewhere = output.clone();
    elsewhere[5] = service.backends[1].id as u8;
    elsewhere[11] = elsewhere[5];
    assert!(steady(service.id, &input, &elsewhere).is_err());
}

#[test]
fn what_is_broken_must_not_be_forwarded() {
    let world = World::imagined();
    let service = &world.services[0];
    let (input, output) = pair(service, false);
    for (at, value) in [(14, 0x44), (14, 0x55), (46, 0x40), (17, 20), (16, 5)] {
        let (mut input, mut output) = (input.clone(), output.clone());
        (input[at], output[at]) = (value, value);
        assert!(steady(service.id, &input, &output).is_err(), "byte {at}");
    }
}

#[test]
fn answers_must_come_from_the_service() {
    let world = World::imagined();
    let service = &world.services[0];
    let client = SocketAddr::new(NEIGHBOUR[0].parse().unwrap(), 1000);
    let input = packet(TCP, service.backends[0].address, client);
    let mut output = hop(packet(TCP, service.vip, client));
    output[..12].copy_from_slice(&NEIGHBOUR_MACS);
    let judged = |output: &[u8]| {
        let run = Run {
            input: &input,
            verdict: Verdict::Redirect,
            output,
            service: service.id,
            outcome: Outcome::ForwardReply,
            named: &[],
        };
        judge(&world, &run)
    };
    assert_eq!(judged(&output), Ok(()));
    for at in 0..output.len() {
        let mut tampered = output.clone();
        tampered[at] ^= 1;
        assert!(judged(&tampered).is_err(), "byte {at}");
    }
}

#[test]
fn a_packet_is_counted_once() {
    let moved = |by| Moved {
        service: 1,
        outcome: Outcome::PassNotIp,
        by,
    };
    assert!(counted_once(&[moved(1)]).is_ok());
    assert!(counted_once(&[]).is_err());
    assert!(counted_once(&[moved(2)]).is_err());
    assert!(counted_once(&[moved(1), moved(1)]).is_err());
}

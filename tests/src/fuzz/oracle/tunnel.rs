//! Rules for tunnels: the outer headers, and answers to what does not fit.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{mode, service_flags},
    outcome::Outcome,
};

use super::{Broken, Run, rule, same};
use crate::{
    fuzz::{
        sums::{ICMP, ICMPV6, UDP, network_error, transport_error},
        view::{ETHERNET, Family, Fragment, View},
        world::{Backend, Service},
    },
    rig::{TUNNEL_PORT, backend_macs, tunnel_source},
};

/// What the rig's backends take.
const MTU: usize = 1500;
/// Least MTU of IPv6 (RFC 8200 section 5).
const V6_MTU_MIN: usize = 1280;

/// Bytes of a question.
const QUESTION: usize = 12;

/// Whether a packet goes with a question: fragments and what has IP options or extension headers do not.
fn is_asked(run: &Run<'_>, view: &View) -> bool {
    let fixed = if view.family == Family::V4 { 20 } else { 40 };
    run.outcome.asks() && view.fragment == Fragment::Whole && view.transport == view.network + fixed
}

/// Length of the outer headers, with a question or without.
fn overhead(service: &Service, backend: SocketAddr, asks: bool) -> usize {
    let question = if asks { QUESTION } else { 0 };
    let udp = if asks || service.row.mode == mode::GUE {
        8
    } else {
        0
    };
    question + udp + if backend.is_ipv4() { 20 } else { 40 }
}

/// A packet that was put into a tunnel: outer headers that fit it, and the packet as it was.
pub fn entered(
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let asks = is_asked(run, view);
    rule!(
        !asks || service.row.flags & service_flags::ASKS != 0,
        "only who runs `ebb decap` is asked"
    );
    let headers = overhead(service, backend.address, asks);
    rule!(
        view.total + headers <= MTU,
        "{} bytes do not fit the tunnel",
        view.total
    );
    let (to, from) = backend_macs(backend.id);
    let mut expected = [to, from].concat();
    let class = match view.family {
        Family::V4 => run.input[view.network + 1],
        Family::V6 => run.input[view.network] << 4 | run.input[view.network + 1] >> 4,
    };
    let udp = if asks {
        Some(8 + QUESTION + view.total)
    } else {
        (service.row.mode == mode::GUE).then_some(8 + view.total)
    };
    let behind = udp.unwrap_or(view.total);
    let protocol = match (udp, view.family) {
        (Some(_), _) => UDP,
        (_, Family::V4) => 4,
        (_, Family::V6) => 41,
    };
    let source = IpAddr::from(tunnel_source(backend.address.ip()));
    match (source, backend.address.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            expected.extend([0x08, 0x00, 0x45, class]);
            expected.extend((20 + behind as u16).to_be_bytes());
            expected.extend([0, 0, 0x40, 0, 64, protocol]);
            expected.extend(found(run, ETHERNET + 10)?);
            expected.extend(source.octets());
            expected.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            expected.extend([0x86, 0xdd, 0x60 | class >> 4]);
            // The flow label is the flow's: any value that a flow keeps.
            expected.push(class << 4 | run.output.get(ETHERNET + 1).map_or(0, |byte| byte & 15));
            expected.extend(found(run, ETHERNET + 2)?);
            expected.extend((behind as u16).to_be_bytes());
            expected.extend([protocol, 64]);
            expected.extend(source.octets());
            expected.extend(destination.octets());
        }
        _ => return Err(Broken("a tunnel between two families".into())),
    }
    if let Some(length) = udp {
        let at = expected.len();
        expected.extend(found(run, at)?);
        expected.extend(TUNNEL_PORT.to_be_bytes());
        expected.extend((length as u16).to_be_bytes());
        expected.extend(found(run, at + 6)?);
    }
    if asks {
        let inner = if view.family == Family::V4 { 4 } else { 41 };
        expected.extend([2, inner, 0, 0, b'e', b'b', b'b', b'?']);
        expected.extend(backend.id.to_be_bytes());
    }
    expected.extend(&run.input[view.network..]);
    same(&expected, run.output)?;
    outer_sums(service, view, run)
}

/// The outer checksums.
fn outer_sums(service: &Service, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    let outer =
        View::parse(run.output).map_err(|why| Broken(format!("the outer headers: {why:?}")))?;
    rule!(
        network_error(run.output, &outer) == 0,
        "the outer IPv4 checksum is right"
    );
    let asks = is_asked(run, view);
    if service.row.mode != mode::GUE && !asks {
        return Ok(());
    }
    rule!(
        outer.from_port >= 49_152,
        "the outer source port is a dynamic one, not {}",
        outer.from_port
    );
    let check = &run.output[outer.transport + 6..outer.transport + 8];
    if check == [0, 0] {
        return Ok(());
    }
    rule!(!asks, "no checksum in front of a question");
    rule!(
        outer.family == Family::V6,
        "over IPv4 there is no outer UDP checksum"
    );
    // Told from the inner checksums: wrong by what they are wrong by, so that nothing corrupt is made sound.
    let inner =
        u32::from(network_error(run.input, view)) + u32::from(transport_error(run.input, view));
    let expected = (inner % 65_535) as u16;
    let found = transport_error(run.output, &outer);
    rule!(
        found == expected,
        "the outer UDP checksum is wrong by {found:04x}, the inner ones by {expected:04x}"
    );
    Ok(())
}

fn found<'a>(run: &Run<'a>, at: usize) -> Result<&'a [u8], Broken> {
    run.output
        .get(at..at + 2)
        .ok_or_else(|| Broken(format!("the output ends before byte {at}")))
}

/// A packet that does not fit; returns what would.
pub fn too_big(service: &Service, view: &View) -> Result<usize, Broken> {
    rule!(
        mode::is_tunnel(service.row.mode),
        "only tunnels are too small for a packet"
    );
    // A packet with a question has less room; whether it was to have one its fate does not say.
    let asks = service.row.flags & service_flags::ASKS != 0;
    let room = MTU - overhead(service, service.backends[0].address, asks);
    rule!(
        view.total > room,
        "{} bytes fit a tunnel of {room}",
        view.total
    );
    Ok(room)
}

/// The size that an error says would fit.
fn said(view: &View, run: &Run<'_>) -> Result<usize, Broken> {
    let at = view.network + if view.family == Family::V4 { 26 } else { 46 };
    let said = found(run, at)?;
    Ok(usize::from(u16::from_be_bytes([said[0], said[1]])))
}

/// A client that was told the size that fits (RFC 1191 section 4, RFC 4443 section 3.2).
pub fn told(service: &Service, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    debug_assert_eq!(run.outcome, Outcome::AnswerTooBig);
    let least = too_big(service, view)?;
    let room = match said(view, run)? {
        // One that was to have no question.
        more if more == least + QUESTION + 8 || more == least + QUESTION => {
            rule!(view.total > more, "{} bytes fit {more}", view.total);
            more
        }
        _ => least,
    };
    let mut expected = run.input[..view.network].to_vec();
    expected[..12].rotate_left(6);
    let at = view.network;
    let quote = match (view.to, view.from) {
        (IpAddr::V4(vip), IpAddr::V4(client)) => {
            expected.extend([0x45, 0xc0, 2, 64, 0, 0, 0x40, 0, 64, ICMP]);
            expected.extend(found(run, at + 10)?);
            expected.extend(vip.octets());
            expected.extend(client.octets());
            expected.extend([3, 4]);
            expected.extend(found(run, at + 22)?);
            expected.extend([0, 0]);
            expected.extend((room as u16).to_be_bytes());
            576 - 28
        }
        (IpAddr::V6(vip), IpAddr::V6(client)) => {
            expected.extend([0x6c, 0, 0, 0, 4, 216, ICMPV6, 64]);
            expected.extend(vip.octets());
            expected.extend(client.octets());
            expected.extend([2, 0]);
            expected.extend(found(run, at + 42)?);
            expected.extend((room.max(V6_MTU_MIN) as u32).to_be_bytes());
            V6_MTU_MIN - 48
        }
        _ => return Err(Broken("a packet between two families".into())),
    };
    expected.extend(&run.input[at..at + quote]);
    same(&expected, run.output)?;
    let answer = View::parse(run.output).map_err(|why| Broken(format!("the answer: {why:?}")))?;
    let errors = (
        network_error(run.output, &answer),
        transport_error(run.output, &answer),
    );
    rule!(
        errors == (0, 0),
        "the answer's checksums are wrong by {errors:04x?}"
    );
    Ok(())
}

//! Packets through a tunnel with the question whether their connection is at its end; see `lb_common::tunnel::question`.
//!
//! The outer headers are those of `gue`, also where the service's are those of `ipip`, which have no room for a question.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{BackendRecord, ServiceRecord, jump, mode},
    full_nat::Handed,
    outcome::Outcome,
    steer::Decision,
    tunnel::{
        self as rule, Inner,
        question::{self, Header, Word},
    },
};

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    Passage, count, drop, end, forward, full_nat, maps,
    parse::{self, Network, header},
    pass,
    thorough::{self, Located},
    to_tunnel, too_big,
    tunnel::{self, Frame, Udp, V4, V6},
};

/// The headers between Ethernet and the packet; `T` is the IP header.
#[repr(C, packed)]
struct Asking<T>(T, Udp, Header);

/// To the program `ask`. Not with the first fragment of several: they must not be separated.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, service: u32, decision: &Decision) -> u32 {
    let handed = Handed {
        hash: decision.hash,
        service,
        backend: decision.backend,
        outcome: decision.outcome as u32,
        back: 0,
    };
    full_nat::jump_to(ctx, handed, jump::ASK)
}

/// Sends a packet that has been steered, with the question. One with IP options or extension headers goes without: at the
/// tunnel's end the connection is looked for by what stands at fixed places.
#[xdp]
#[inline(always)]
pub fn ask(ctx: XdpContext) -> u32 {
    let Some(handed) = full_nat::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    let id = handed.service;
    let (Some(service), Some(backend), Some(outcome)) = (
        maps::service(id),
        maps::backend(handed.backend),
        Outcome::from_number(handed.outcome),
    ) else {
        return pass(&ctx, id, Outcome::PassInternal);
    };
    let packet = match thorough::locate(&ctx) {
        Ok(packet) => packet,
        Err(refused) => return pass(&ctx, id, refused.outcome),
    };
    let passage = Passage {
        service: id,
        backend: handed.backend,
        hash: handed.hash,
        // A packet that was sent back, and is not the last one's to judge yet, is still a second chance.
        outcome,
        length: (packet.extent.end - packet.extent.start) as u32,
    };
    if is_plain(&packet) {
        return send(&ctx, &packet, service, backend, &passage);
    }
    to_tunnel(&ctx, &(&packet).into(), service, backend, &passage)
}

/// Whether nothing stands between IP header and transport header.
#[inline(always)]
pub fn is_plain(packet: &Located) -> bool {
    packet.extent.header == ip_length(packet.network)
}

/// Length of an IP header with nothing more to it.
#[inline(always)]
pub fn ip_length(network: Network) -> usize {
    match network {
        Network::V4(_) => Ipv4Hdr::LEN,
        Network::V6(_) => Ipv6Hdr::LEN,
    }
}

#[inline(always)]
fn send(
    ctx: &XdpContext,
    packet: &Located,
    service: &ServiceRecord,
    backend: &BackendRecord,
    passage: &Passage,
) -> u32 {
    let id = passage.service;
    let (inner, link) = (
        tunnel::inner(packet.network),
        packet.extent.link(packet.network),
    );
    // Questions travel behind UDP, whatever the service's own way of tunnelling.
    let overhead = rule::overhead(mode::GUE, backend.address.is_v4()) + question::LENGTH;
    let room = backend.mtu.saturating_sub(overhead);
    if inner.length > room {
        too_big::hand_over(ctx, &link, passage.length, id, room);
        return drop(ctx, id, Outcome::DropTooBig);
    }
    if let Err(outcome) = tunnel::grow(ctx, &link, overhead)
        .and_then(|()| write(ctx, &inner, service, backend, passage))
    {
        return drop(ctx, id, outcome);
    }
    count::packet_to(passage.backend, passage.length);
    let sent = forward::out_of_tunnel(ctx, backend);
    end(ctx, id, sent, passage.outcome, passage.backend)
}

/// Writes the headers in front of the packet.
#[inline(always)]
fn write(
    ctx: &XdpContext,
    inner: &Inner,
    service: &ServiceRecord,
    backend: &BackendRecord,
    passage: &Passage,
) -> Result<(), Outcome> {
    let asked = Header::new(Word::IsItHere, inner.is_v4, passage.backend);
    let carried = Inner {
        length: inner.length.wrapping_add(question::LENGTH),
        ..*inner
    };
    let port = rule::source_port(passage.hash);
    let udp = rule::udp_header(port, service.tunnel_port, &carried, 0);
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: `header` has checked that each lies inside the frame.
    unsafe {
        if backend.address.is_v4() {
            let frame: *mut Frame<Asking<V4>> = header(start, end)?;
            tunnel::write_v4(
                &raw mut (*frame).ip.0,
                rule::OUTER_V4_UDP,
                &carried,
                backend,
            );
            (&raw mut (*frame).ip.1.0).write_unaligned(udp);
            (&raw mut (*frame).ip.2).write_unaligned(asked);
            tunnel::write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV4);
        } else {
            let frame: *mut Frame<Asking<V6>> = header(start, end)?;
            let hash = passage.hash;
            tunnel::write_v6(
                &raw mut (*frame).ip.0,
                rule::OUTER_V6_UDP,
                &carried,
                backend,
                hash,
            );
            (&raw mut (*frame).ip.1.0).write_unaligned(udp);
            (&raw mut (*frame).ip.2).write_unaligned(asked);
            tunnel::write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV6);
        }
    }
    Ok(())
}

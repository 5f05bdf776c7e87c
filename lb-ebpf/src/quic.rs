//! QUIC services: their packets are steered by the server that their connection ids name.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{ServiceRecord, jump},
    index::{kind, server_key},
    outcome::Outcome,
    quic::{self as header, Header, LOOKED_AT},
    steer::{self, quic::Named},
};
use network_types::udp::UdpHdr;

use crate::{
    find, lookup, maps,
    parse::{Parsed, Refused, Transport, header as within},
    pass, send,
    tables::Kernel,
    thorough,
};

/// How other programs hand a packet over.
pub const REFUSED: Refused = Refused {
    outcome: Outcome::PassInternal,
    program: jump::QUIC,
};

/// The balancer for packets to QUIC services.
#[xdp]
#[inline(always)]
pub fn quic(ctx: XdpContext) -> u32 {
    let packet = match thorough::parse(&ctx) {
        Ok(packet) => packet,
        Err(refused) => return pass(&ctx, 0, refused.outcome),
    };
    let Some(entry) = lookup(&packet, kind::SERVICE) else {
        return pass(&ctx, 0, Outcome::PassNoService);
    };
    let id = entry.service;
    let Some(service) = maps::service(id) else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    let named = named(&ctx, &packet, id, service);
    let decision = steer::quic::steer(&Kernel::<true>, id, service, &packet.from_client(), &named);
    send(&ctx, &packet, id, service, &decision)
}

/// What the datagram says of its connection.
#[inline(always)]
pub fn named(ctx: &XdpContext, packet: &Parsed, id: u32, service: &ServiceRecord) -> Named {
    let header = read(ctx, packet, service);
    let backend = if header.is_named {
        backend(id, header.server)
    } else {
        0
    };
    Named {
        opens: header.opens,
        digest: header.digest,
        backend,
    }
}

#[inline(always)]
fn read(ctx: &XdpContext, packet: &Parsed, service: &ServiceRecord) -> Header {
    let Transport::Udp(udp) = packet.transport else {
        return Header::default();
    };
    let at = udp as usize + UdpHdr::LEN;
    // SAFETY: all of both headers lies inside the frame.
    unsafe {
        // Behind a short datagram there may be padding, which says nothing.
        if usize::from(u16::from_be_bytes((*udp).len)) < UdpHdr::LEN + LOOKED_AT {
            return Header::default();
        }
        match within::<[u8; LOOKED_AT]>(at, ctx.data_end()) {
            Ok(bytes) => header::header(service, &*bytes),
            Err(_) => Header::default(),
        }
    }
}

#[inline(always)]
fn backend(service: u32, server: u64) -> u32 {
    let (address, selector) = server_key(service, server);
    find(&address, selector).map_or(0, |entry| entry.backend)
}

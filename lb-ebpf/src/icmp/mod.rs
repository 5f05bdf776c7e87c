//! ICMP and ICMPv6: echo requests to a service's address are answered, errors about a flow of a service go to whom
//! the flow belongs. All else is the kernel's.
//!
//! An error quotes the packet it is about (RFC 792, RFC 4443 section 2.4). A router on the way to a client quotes a
//! packet from the service to the client: the error is steered as a packet of that flow would be, without leaving a
//! trace in the tables, and goes to the flow's backend. Behind `nat` a router on the way to a backend, or the backend
//! itself, quotes a packet to the backend: that error goes to the client, as from the service.
//!
//! Checksums are amended, never made anew: what arrived corrupt stays so.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    Addr,
    abi::{backend_flags, mode, service_flags},
    index::{self, IndexEntry, kind},
    outcome::Outcome,
    steer::{self, Packet, tcp},
};

use crate::{
    Passage, count, drop, end, find, finish,
    forward::{self, By, Exit},
    maps,
    parse::{self, Link, Network, Refused, header},
    pass, protect, ranges,
    tables::Kernel,
    thorough::{self, Located},
    to_tunnel,
};

mod echo;
mod error;
mod full_nat;
mod quote;

use quote::Quote;

/// Length of the header that all ICMP messages share.
const HEADER_LENGTH: usize = 8;

/// An ICMP message of either family.
pub struct Message {
    /// The packet that it is.
    pub packet: Located,
    /// How it came.
    pub link: Link,
    /// Its header: type, code, checksum, four bytes more.
    pub header: *mut [u8; HEADER_LENGTH],
    /// Its type.
    pub kind: u8,
    /// Length of the frame in bytes.
    pub length: u32,
}

/// Takes over ICMP.
#[xdp]
#[inline(always)]
pub fn icmp(ctx: XdpContext) -> u32 {
    match handle(&ctx) {
        Ok(verdict) => verdict,
        Err(refused) => pass(&ctx, 0, refused.outcome),
    }
}

#[inline(always)]
fn handle(ctx: &XdpContext) -> Result<u32, Refused> {
    let message = parse(ctx)?;
    let (echo, is_error) = match message.packet.network {
        Network::V4(_) => (echo::REQUEST_V4, error::is_error_v4(message.kind)),
        Network::V6(_) => (echo::REQUEST_V6, error::is_error_v6(message.kind)),
    };
    if message.kind == echo {
        return Ok(answer(ctx, &message));
    }
    if !is_error {
        return Err(Outcome::PassIcmp.into());
    }
    let quote = quote::parse(&message)?;
    // The error goes to who sent what it quotes; else it is not about that packet.
    if quote.source != message.packet.ends.1 {
        return Err(Outcome::PassIcmp.into());
    }
    if let Some(entry) = known(&quote.source, quote.source_port, &quote, kind::SERVICE) {
        return Ok(to_backend(ctx, &message, &quote, entry.service));
    }
    let (address, port) = (&quote.destination, quote.destination_port);
    match known(address, port, &quote, kind::REPLY) {
        Some(entry) => Ok(to_client(
            ctx,
            &message,
            &quote,
            entry.service,
            entry.backend,
        )),
        None => Err(Outcome::PassIcmp.into()),
    }
}

/// The service, or the backend that replies, at a quoted end; an exact port first, then several.
#[inline(always)]
fn known(address: &Addr, port: u16, quote: &Quote, kind: u8) -> Option<&'static IndexEntry> {
    let exact = find(address, index::selector(port, quote.protocol, kind));
    if exact.is_some() || !ranges::are_there() {
        return exact;
    }
    let kind = if kind == kind::SERVICE {
        kind::RANGE
    } else {
        kind::REPLY_RANGE
    };
    ranges::find_among(address, port, quote.protocol, kind)
}

/// Reads the headers of a message whose lengths agree.
#[inline(always)]
fn parse(ctx: &XdpContext) -> Result<Message, Refused> {
    let packet = thorough::locate(ctx)?;
    let extent = &packet.extent;
    let expected = match packet.network {
        Network::V4(_) => parse::ICMP,
        Network::V6(_) => parse::ICMPV6,
    };
    if packet.part != 0 {
        return Err(Outcome::PassFragment.into());
    }
    if packet.protocol != expected {
        return Err(Outcome::PassProtocol.into());
    }
    let start: *mut [u8; HEADER_LENGTH] = header(extent.network + extent.header, extent.end)?;
    if extent.header + HEADER_LENGTH > extent.total {
        return Err(Outcome::PassMalformed.into());
    }
    if extent.total > extent.end - extent.network {
        return Err(Outcome::PassTruncated.into());
    }
    Ok(Message {
        link: extent.link(packet.network),
        header: start,
        // SAFETY: `header` has checked it.
        kind: unsafe { (*start)[0] },
        length: (extent.end - extent.start) as u32,
        packet,
    })
}

/// An echo request: answered when it is to a service that wants it so.
#[inline(always)]
fn answer(ctx: &XdpContext, message: &Message) -> u32 {
    let Some(entry) = find(&message.packet.ends.1, index::selector(0, 0, kind::VIP)) else {
        return pass(ctx, 0, Outcome::PassIcmp);
    };
    if protect::denies(&message.packet.ends.0) {
        return drop(ctx, entry.service, Outcome::DropClient);
    }
    let is_wanted = maps::service(entry.service)
        .is_some_and(|service| service.flags & service_flags::ECHO != 0);
    if !is_wanted || !echo::answer(message) {
        return pass(ctx, entry.service, Outcome::PassIcmp);
    }
    finish(
        ctx,
        entry.service,
        Outcome::AnswerEcho,
        0,
        xdp_action::XDP_TX,
    )
}

/// An error about a packet from a service to a client.
#[inline(always)]
fn to_backend(ctx: &XdpContext, message: &Message, quote: &Quote, id: u32) -> u32 {
    let Some(service) = maps::service(id) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    if service.table as u32 == 0 {
        return pass(ctx, id, Outcome::PassInternal);
    }
    let packet = Packet {
        client: quote.destination,
        client_port: quote.destination_port,
        service_port: quote.source_port,
        flags: tcp::ACK,
        // What the service acknowledged is what the client's next packet would have as its sequence number.
        sequence: quote.acknowledged,
        acknowledgment: 0,
        data: 0,
    };
    let decision = steer::steer(&Kernel::<false>, id, service, &packet);
    if !decision.outcome.is_forward() {
        return crate::refuse(ctx, id, &decision);
    }
    let Some(backend) = maps::backend(decision.backend) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    if backend.flags & backend_flags::NEXT_HOP == 0 {
        return drop(ctx, id, Outcome::DropNoNextHop);
    }
    match service.mode {
        mode::L2 => {}
        mode::NAT => {
            if !error::rewrite_to_backend(message, quote, backend) {
                return drop(ctx, id, Outcome::DropTtl);
            }
        }
        tunnel if mode::is_tunnel(tunnel) => {
            let passage = Passage {
                service: id,
                backend: decision.backend,
                hash: decision.hash,
                outcome: Outcome::ForwardIcmp,
                length: message.length,
            };
            let packet = (&message.packet).into();
            return to_tunnel(ctx, &packet, service, backend, &passage);
        }
        mode::FULL_NAT => return full_nat::to_backend(ctx, id, decision.backend, decision.hash),
        _ => return pass(ctx, id, Outcome::PassIcmp),
    }
    count::packet_to(decision.backend, message.length);
    let sent = forward::out(ctx, &message.link, &Exit::to(backend));
    end(ctx, id, sent, Outcome::ForwardIcmp, decision.backend)
}

/// An error about a packet from a client to a backend, on its way to the client.
#[inline(always)]
fn to_client(ctx: &XdpContext, message: &Message, quote: &Quote, service: u32, id: u32) -> u32 {
    let (Some(record), Some(backend)) = (maps::service(service), maps::backend(id)) else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    if record.mode == mode::FULL_NAT {
        return full_nat::to_client(ctx, service);
    }
    let packet = &message.packet;
    let route = forward::route(ctx, packet.protocol, packet.network, &packet.ends.1, record);
    if route.by == By::Nobody {
        return pass(ctx, service, Outcome::PassReplyLocal);
    }
    let counts = route.by == By::Xdp;
    if !error::rewrite_to_client(message, quote, record, backend, counts) {
        return drop(ctx, service, Outcome::DropTtl);
    }
    count::reply_from(id, message.length);
    if route.by == By::Kernel {
        return pass(ctx, service, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &message.link, &route.exit);
    end(ctx, service, sent, Outcome::ForwardIcmpReply, id)
}

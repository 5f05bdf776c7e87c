//! The way of nearly every packet: of an established flow, to a backend or a client that is ready for it.
//!
//! A program with no more than this in it. `None` always means: nothing is done that the whole program, which then
//! begins anew, may not do again.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    abi::{BackendRecord, ControlRecord, ServiceRecord, backend_flags, mode, service_flags},
    index::{IndexEntry, kind},
    outcome::Outcome,
    steer::{self, Decision},
};

use crate::{
    count, drop,
    forward::{self, By, Exit},
    hand_over, lookup_in, maps,
    parse::{Parsed, Then, UDP},
    protect, ranges,
    tables::Kernel,
    tunnel::{self, Carried},
};

/// To a service, from a backend, or neither.
pub struct AtOnce;

impl Then for AtOnce {
    type Result = Option<u32>;

    #[inline(always)]
    fn then(ctx: &XdpContext, packet: Parsed) -> Option<u32> {
        if !steer::is_plain(packet.flags) {
            return None;
        }
        let control = maps::control();
        if let Some(entry) = lookup_in(control, &packet, kind::SERVICE) {
            return to_backend(ctx, control, &packet, entry.service);
        }
        match lookup_in(control, &packet, kind::REPLY) {
            Some(entry) => to_client(ctx, &packet, entry),
            None => Some(hand_over(ctx, ranges::perhaps(packet.protocol()))),
        }
    }
}

#[inline(always)]
fn to_backend(ctx: &XdpContext, control: &ControlRecord, packet: &Parsed, id: u32) -> Option<u32> {
    let service = maps::service(id)?;
    // QUIC services are found by datagrams alone.
    let is_quic = packet.protocol() == UDP && service.flags & service_flags::QUIC != 0;
    if is_quic || service.mode == mode::FULL_NAT {
        return None;
    }
    let is_ready = |backend| {
        let record = maps::backend(backend)?;
        backend_flags::is_ready(record.flags).then_some(record)
    };
    let (decision, backend) = steer::at_once(
        &Kernel::<true>,
        id,
        service,
        &packet.from_client(),
        is_ready,
    )?;
    if mode::is_tunnel(service.mode) {
        return into_tunnel(ctx, control, packet, service, backend, id, &decision);
    }
    // It counts, so it comes where nothing goes to the whole program any more.
    if protect::denies_in(control, &packet.source) {
        return Some(drop(ctx, id, Outcome::DropClient));
    }
    count::packet_to(decision.backend, packet.length);
    if service.mode == mode::NAT && !forward::rewrite_destination(packet, backend) {
        return Some(drop(ctx, id, Outcome::DropTtl));
    }
    count::outcome(id, decision.outcome);
    Some(forward::out_untagged(ctx, &packet.link, &Exit::to(backend)))
}

#[inline(always)]
fn into_tunnel(
    ctx: &XdpContext,
    control: &ControlRecord,
    packet: &Parsed,
    service: &ServiceRecord,
    backend: &BackendRecord,
    id: u32,
    decision: &Decision,
) -> Option<u32> {
    if !tunnel::fits(packet, backend) {
        return None;
    }
    if protect::denies_in(control, &packet.source) {
        return Some(drop(ctx, id, Outcome::DropClient));
    }
    let carried = Carried::from(packet);
    if let Err(outcome) = tunnel::encapsulate(ctx, &carried, service, backend, decision.hash) {
        return Some(drop(ctx, id, outcome));
    }
    count::packet_to(decision.backend, packet.length);
    count::outcome(id, decision.outcome);
    Some(forward::leave_by(ctx, backend.ifindex))
}

#[inline(always)]
fn to_client(ctx: &XdpContext, packet: &Parsed, entry: &IndexEntry) -> Option<u32> {
    let service = maps::service(entry.service)?;
    let backend = maps::backend(entry.backend)?;
    if service.mode != mode::NAT {
        return None;
    }
    let port = forward::service_port(packet.source_port, service);
    let segment = packet.to_client(port);
    if !steer::note_reply_at_once(
        &Kernel::<true>,
        entry.service,
        service,
        &segment,
        entry.backend,
    ) {
        return None;
    }
    let route = forward::route(
        ctx,
        packet.protocol(),
        packet.network,
        &packet.destination,
        service,
    );
    if route.by != By::Xdp || route.exit.vlan != 0 {
        return None;
    }
    if !forward::rewrite_source(packet, service, backend, true) {
        return None;
    }
    count::reply_from(entry.backend, packet.length);
    count::outcome(entry.service, Outcome::ForwardReply);
    Some(forward::out_untagged(ctx, &packet.link, &route.exit))
}

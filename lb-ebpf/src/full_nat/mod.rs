//! `full-nat`: the backend sees the node's own address and a port of the node's, and answers to that. Which port is
//! decided in `lb_common::full_nat`, where the host tests it.
//!
//! Programs of their own, behind the steering, which is the same as for every other service. Fragments are in `fragment`.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};
use core::ptr::NonNull;
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, jump},
    checksum,
    full_nat::{self as rule, Flow, Handed, PortEntry, Sources},
    hash::sip::SipKey,
    outcome::Outcome,
    steer::tcp,
};

use crate::{
    count, drop, end,
    forward::{self, Exit},
    maps,
    parse::{Network, Parsed},
    pass,
    tables::{Ports, ticks_per_second},
    thorough,
};

mod displace;
mod fragment;
mod option;
pub mod reply;

pub use fragment::hand_later_over;
pub use reply::hand_over as hand_reply_over;

/// To the program for packets to backends.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, packet: &Parsed, handed: Handed) -> u32 {
    let program = if packet.is_first {
        jump::FULL_NAT_FIRST
    } else {
        jump::FULL_NAT
    };
    jump_to(ctx, handed, program)
}

/// To one of the programs for such services.
#[inline(always)]
pub fn jump_to(ctx: &XdpContext, handed: Handed, program: u32) -> u32 {
    if let Some(place) = maps::HANDED.get_ptr_mut(0) {
        // SAFETY: this CPU's own place; the context is the kernel's own. Returns only when the program is not there.
        unsafe {
            place.write(handed);
            maps::JUMPS.tail_call(ctx, program);
        }
    }
    pass(ctx, handed.service, Outcome::PassInternal)
}

/// What was handed over.
#[inline(always)]
pub fn handed() -> Option<&'static Handed> {
    maps::HANDED.get(0)
}

/// Takes over a packet that has been steered to a backend.
#[xdp]
#[inline(always)]
pub fn full_nat(ctx: XdpContext) -> u32 {
    let Some(handed) = handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    match thorough::parse(&ctx) {
        Ok(packet) => to_backend(&ctx, &packet, handed),
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

#[inline(always)]
fn to_backend(ctx: &XdpContext, packet: &Parsed, handed: &Handed) -> u32 {
    let id = handed.service;
    let (Some(service), Some(backend), Some(outcome)) = (
        maps::service(id),
        maps::backend(handed.backend),
        Outcome::from_number(handed.outcome),
    ) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    // Else a packet that goes no further would take a port.
    if forward::is_spent(packet.network) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    let flow = flow_of(packet, handed, service, backend);
    let Some(entry) = allocation(&flow) else {
        return displace::instead(ctx, packet, &flow, jump::FULL_NAT);
    };
    // SAFETY: the entry is this flow's.
    let (node, node_port, from_server) = unsafe {
        let place = entry.as_ptr();
        (
            (*place).node,
            (*place).node_port,
            note_client(entry, packet.flags),
        )
    };
    rewrite(packet, backend, &node, node_port);
    count::packet_to(handed.backend, packet.length);
    if service.client_option != 0 && option::is_wanted(packet, from_server) {
        return with_option(ctx, packet, service, backend, handed, outcome);
    }
    let sent = forward::out(ctx, &packet.link, &Exit::to(backend));
    end(ctx, id, sent, outcome, handed.backend)
}

/// Sends a packet with the option that names its client. It has the room, or of an opening that is counted.
#[inline(always)]
fn with_option(
    ctx: &XdpContext,
    packet: &Parsed,
    service: &ServiceRecord,
    backend: &BackendRecord,
    handed: &Handed,
    outcome: Outcome,
) -> u32 {
    let (id, exit) = (handed.service, Exit::to(backend));
    let (sent, outcome) = match option::insert(ctx, packet, service.client_option, backend.mtu) {
        Ok(link) => (forward::out(ctx, &link, &exit), outcome),
        Err(Outcome::ForwardOptionless) => {
            let is_opening = packet.flags & tcp::SYN != 0;
            let outcome = if is_opening {
                Outcome::ForwardOptionless
            } else {
                outcome
            };
            (forward::out(ctx, &packet.link, &exit), outcome)
        }
        Err(outcome) => (Err(outcome), outcome),
    };
    end(ctx, id, sent, outcome, handed.backend)
}

/// The node's sources for this family: those of now, and those before the last change.
#[inline(always)]
fn sources(is_v4: bool) -> Option<(&'static Sources, &'static Sources)> {
    let first = if is_v4 { 0 } else { 2 };
    Some((maps::SOURCES.get(first)?, maps::SOURCES.get(first + 1)?))
}

/// What a flow is known by. Ports in network order as loaded.
pub struct Asked {
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: u16,
    /// The service's port.
    pub service_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// The same as the table has it.
#[inline(always)]
pub fn flow(
    asked: &Asked,
    handed: &Handed,
    service: &ServiceRecord,
    backend: &BackendRecord,
) -> Flow {
    let port = forward::backend_port(asked.service_port, backend);
    let seed = maps::control().index_seed;
    Flow {
        hash: handed.hash,
        client: asked.client,
        client_port: asked.client_port,
        service: handed.service,
        backend: handed.backend,
        backend_port: port,
        far_end: rule::far_end(seed, &backend.address, port, asked.protocol),
        own: backend.tunnel_source,
        idle_ticks: service.idle_ticks,
    }
}

/// The allocation that a flow has.
#[inline(always)]
pub fn known(flow: &Flow) -> Option<NonNull<PortEntry>> {
    let (now, before) = sources(flow.client.is_v4())?;
    let entry = rule::find(&Ports, now, flow);
    if entry.is_some() || before.range == 0 {
        return entry;
    }
    rule::find(&Ports, before, flow)
}

/// The same of a client's packet.
#[inline(always)]
fn flow_of(
    packet: &Parsed,
    handed: &Handed,
    service: &ServiceRecord,
    backend: &BackendRecord,
) -> Flow {
    let asked = Asked {
        client: packet.source,
        client_port: packet.source_port,
        service_port: packet.destination_port,
        protocol: packet.protocol(),
    };
    flow(&asked, handed, service, backend)
}

/// The flow's allocation: the one it has, or a new one.
#[inline(always)]
fn allocation(flow: &Flow) -> Option<NonNull<PortEntry>> {
    if let Some(entry) = known(flow) {
        return Some(entry);
    }
    let (now_sources, _) = sources(flow.client.is_v4())?;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() as u32 };
    rule::claim(&Ports, now_sources, flow, now, ticks_per_second())
}

/// Notes a packet from the client; returns what the backend has sent so far.
///
/// # Safety
/// The entry is of the packet's flow.
#[inline(always)]
unsafe fn note_client(entry: NonNull<PortEntry>, flags: u8) -> u8 {
    unsafe {
        touch(entry);
        let place = entry.as_ptr();
        // An opening begins the flow anew, also on the port of an old one.
        if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
            (&raw mut (*place).from_client).write_volatile(0);
            (&raw mut (*place).from_server).write_volatile(0);
            return 0;
        }
        let sent = &raw mut (*place).from_client;
        let (old, from_server) = (
            sent.read_volatile(),
            (&raw const (*place).from_server).read_volatile(),
        );
        let new = rule::after_client(old, flags);
        if new != old {
            sent.write_volatile(new);
        }
        from_server
    }
}

/// Notes the time; writes only when the tick is a new one.
#[inline(always)]
unsafe fn touch(entry: NonNull<PortEntry>) {
    unsafe {
        let now = bpf_jiffies64() as u32;
        let seen = &raw mut (*entry.as_ptr()).seen;
        if seen.read_volatile() != now {
            seen.write_volatile(now);
        }
    }
}

/// Gives a packet this source and destination, which change its checksums by `delta`. False when its time to live is used
/// up; then it is as it was.
#[inline(always)]
fn readdress(
    network: Network,
    delta: u64,
    (source, destination): (&Addr, &Addr),
    counts: bool,
) -> bool {
    if !forward::hop(network, u32::from(checksum::fold(delta)), counts) {
        return false;
    }
    // SAFETY: the header was checked by whoever parsed it, and nothing has moved the packet since.
    unsafe {
        forward::set_source(network, source);
        forward::set_destination(network, destination);
    }
    true
}

/// Turns the packet, which is not spent, to one of the node's to the backend.
#[inline(always)]
fn rewrite(packet: &Parsed, backend: &BackendRecord, node: &Addr, node_port: u16) {
    let from = checksum::address_delta(&packet.source, node);
    let delta = u64::from(from) + u64::from(backend.to_backend);
    readdress(packet.network, delta, (node, &backend.address), true);
    let port = forward::backend_port(packet.destination_port, backend);
    // SAFETY: the headers were checked by `parse`, and nothing has moved the packet since.
    unsafe {
        let ports = packet.transport.ports();
        ports.write_unaligned(node_port);
        ports.add(1).write_unaligned(port);
        let ports = checksum::field_delta(packet.source_port, node_port)
            + checksum::field_delta(packet.destination_port, port);
        forward::amend(packet.transport, delta + ports);
    }
}

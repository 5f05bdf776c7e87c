//! A backend's answer to a port of the node, on its way to the client. What is to a port that no flow has is the
//! node's own.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use core::ptr::NonNull;
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, jump, mode},
    checksum,
    full_nat::{self as rule, Handed, PortEntry, Reply},
    outcome::Outcome,
    steer::{self, Packet},
};

use crate::{
    count, drop, end,
    forward::{self, By, Route},
    maps,
    parse::Parsed,
    pass,
    tables::{Kernel, Ports},
    thorough,
};

/// To the program for answers of this service's backends.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, packet: &Parsed, service: u32) -> u32 {
    let handed = Handed {
        service,
        ..Handed::default()
    };
    let program = if packet.is_first {
        jump::FULL_NAT_FIRST_REPLY
    } else {
        jump::FULL_NAT_REPLY
    };
    super::jump_to(ctx, handed, program)
}

/// Takes over a packet from a backend.
#[xdp]
#[inline(always)]
pub fn full_nat_reply(ctx: XdpContext) -> u32 {
    let Some(handed) = super::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    match thorough::parse(&ctx) {
        Ok(packet) => match owner_of(&packet) {
            Some(owner) => to_client(&ctx, &packet, &owner),
            None => pass(&ctx, handed.service, Outcome::PassReplyLocal),
        },
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

/// Whose flow an answer belongs to.
pub struct Owner {
    /// The flow's allocation.
    pub entry: NonNull<PortEntry>,
    /// Its place in the table of ports.
    pub place: u32,
    /// Service id.
    pub id: u32,
    /// The service.
    pub service: &'static ServiceRecord,
    /// Backend id.
    pub backend_id: u32,
    backend: &'static BackendRecord,
}

impl Owner {
    /// The client's address and port, network order as loaded.
    #[inline(always)]
    pub fn client(&self) -> (Addr, u16) {
        // SAFETY: the entry was found for this packet.
        unsafe {
            let place = self.entry.as_ptr();
            ((*place).client, (*place).client_port)
        }
    }
}

/// The owner of the flow that a backend's packet is of.
#[inline(always)]
pub fn owner_of(packet: &Parsed) -> Option<Owner> {
    let source = (&packet.source, packet.source_port);
    let own = (&packet.destination, packet.destination_port);
    owner(source, own, packet.protocol())
}

/// The owner of the node's port at `own` towards the backend at `source`: addresses and ports, network order as loaded.
#[inline(always)]
pub fn owner(source: (&Addr, u16), own: (&Addr, u16), protocol: u8) -> Option<Owner> {
    let seed = maps::control().index_seed;
    let reply = Reply {
        far_end: rule::far_end(seed, source.0, source.1, protocol),
        backend_port: source.1,
        node: *own.0,
        node_port: own.1,
    };
    let entry = rule::owner(&Ports, &reply)?;
    // SAFETY: the table vouches for the entry.
    let (id, backend_id) = unsafe {
        let place = entry.as_ptr();
        ((*place).service, (*place).backend)
    };
    let (service, backend) = (maps::service(id)?, maps::backend(backend_id)?);
    // The place is of this far end unless a hash collides, or the backend's id has become another one's.
    let is_its_own = backend.address.low == source.0.low
        && backend.address.high == source.0.high
        && service.mode == mode::FULL_NAT
        && service.protocol == protocol;
    is_its_own.then_some(Owner {
        entry,
        place: reply.place(&Ports),
        id,
        service,
        backend_id,
        backend,
    })
}

#[inline(always)]
fn to_client(ctx: &XdpContext, packet: &Parsed, owner: &Owner) -> u32 {
    match way::<true>(ctx, packet, owner) {
        Ok(route) => deliver(ctx, packet, owner, &route),
        Err(verdict) => verdict,
    }
}

/// Notes the packet, and finds its way to the client; or what became of it. `JUDGES`: whatever is to be learned of where the
/// flow is, is learned.
#[inline(always)]
pub fn way<const JUDGES: bool>(
    ctx: &XdpContext,
    packet: &Parsed,
    owner: &Owner,
) -> Result<Route, u32> {
    let (id, service) = (owner.id, owner.service);
    let (client, client_port) = owner.client();
    let seen = Packet {
        client,
        client_port,
        service_port: forward::service_port(packet.source_port, service),
        flags: packet.flags,
        sequence: packet.sequence,
        acknowledgment: packet.acknowledgment,
        data: packet.data,
    };
    // SAFETY: the entry was found for this packet.
    unsafe { note_server(owner.entry, packet.flags) };
    let (env, backend_id) = (Kernel::<true>, owner.backend_id);
    let goes_on = if JUDGES {
        steer::note_reply(&env, id, service, &seen, backend_id)
    } else {
        steer::note_usual_reply(&env, id, service, &seen, backend_id) != steer::Reply::Withheld
    };
    if !goes_on {
        return Err(drop(ctx, id, Outcome::DropSecondChance));
    }
    let route = forward::route(ctx, packet.protocol(), packet.network, &client, service);
    if route.by == By::Nobody {
        return Err(pass(ctx, id, Outcome::PassReplyLocal));
    }
    Ok(route)
}

/// Sends it on that way.
#[inline(always)]
pub fn deliver(ctx: &XdpContext, packet: &Parsed, owner: &Owner, route: &Route) -> u32 {
    let (id, service) = (owner.id, owner.service);
    let (client, client_port) = owner.client();
    let service_port = forward::service_port(packet.source_port, service);
    count::reply_from(owner.backend_id, packet.length);
    let to = checksum::address_delta(&packet.destination, &client);
    let delta = u64::from(to) + u64::from(owner.backend.to_client);
    let ends = (&service.vip, &client);
    if !super::readdress(packet.network, delta, ends, route.by == By::Xdp) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    // SAFETY: the headers were checked by `parse`, and nothing has moved the packet since.
    unsafe {
        let ports = packet.transport.ports();
        ports.write_unaligned(service_port);
        ports.add(1).write_unaligned(client_port);
        let ports = checksum::field_delta(packet.source_port, service_port)
            + checksum::field_delta(packet.destination_port, client_port);
        forward::amend(packet.transport, delta + ports);
    }
    if route.by == By::Kernel {
        return pass(ctx, id, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &packet.link, &route.exit);
    end(ctx, id, sent, Outcome::ForwardReply, owner.backend_id)
}

/// Notes a packet from the backend.
///
/// # Safety
/// The entry is of the packet's flow.
#[inline(always)]
unsafe fn note_server(entry: NonNull<PortEntry>, flags: u8) {
    unsafe {
        super::touch(entry);
        let sent = &raw mut (*entry.as_ptr()).from_server;
        let old = sent.read_volatile();
        let new = rule::after_server(old, flags);
        if new != old {
            sent.write_volatile(new);
        }
    }
}

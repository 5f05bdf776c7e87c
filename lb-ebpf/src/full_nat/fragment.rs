//! Fragments to `full-nat` services and of their backends' answers. The first one of a packet goes as a whole packet would,
//! but with an identification of its own (`lb_common::identification` says which, and why none clashes), and is remembered
//! with it; the later ones get the same one, and the addresses of the flow's allocation.
//!
//! Programs of their own: what finds a port and what finds the way to a client are each nearly as much as a verifier goes
//! through.

use core::ptr::{self, NonNull};

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, backend_flags, jump},
    checksum,
    entry::{self, Meta, NewEntry, OldestPolicy},
    fragment::{self as rule, Renewed, TO_CLIENT},
    full_nat::{self, Handed, PortEntry, Reply},
    identification::{self, Ends},
    outcome::Outcome,
    steer::tcp,
};

use super::reply::{self, Owner};
use crate::{
    count, drop, end,
    forward::{self, By, Exit},
    fragment, hand_over, maps,
    parse::{Network, Parsed, Refused, header},
    pass,
    tables::{Fragments, Identifications, Ports, ticks_per_second},
    thorough::Located,
};

/// Takes over first fragments that have been steered to a backend.
#[xdp]
#[inline(always)]
pub fn full_nat_first(ctx: XdpContext) -> u32 {
    let Some(handed) = super::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    match again(&ctx) {
        Ok((found, packet)) => to_backend(&ctx, &found, &packet, handed),
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

/// Takes over first fragments of a backend's answers.
#[xdp]
#[inline(always)]
pub fn full_nat_first_reply(ctx: XdpContext) -> u32 {
    let Some(handed) = super::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    match again(&ctx) {
        Ok((found, packet)) => match reply::owner_of(&packet) {
            Some(owner) => to_client(&ctx, &found, &packet, &owner),
            None => pass(&ctx, handed.service, Outcome::PassReplyLocal),
        },
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

/// Takes over later fragments of packets that one of the others remembers.
#[xdp]
#[inline(always)]
pub fn full_nat_later(ctx: XdpContext) -> u32 {
    let known = fragment::locate(&ctx).and_then(|found| later(&ctx, &found));
    known.unwrap_or_else(|refused| pass(&ctx, 0, refused.outcome))
}

/// To the program for later fragments.
#[inline(always)]
pub fn hand_later_over(ctx: &XdpContext) -> u32 {
    let refused = Refused {
        outcome: Outcome::PassInternal,
        program: jump::FULL_NAT_LATER,
    };
    hand_over(ctx, refused)
}

/// A first fragment that has been judged, and its key laid out. (While the program is replaced, the one that judged it laid the
/// key out elsewhere.)
#[inline(always)]
fn again(ctx: &XdpContext) -> Result<(Located, Parsed), Refused> {
    let (found, packet) = fragment::again(ctx)?;
    fragment::keep(fragment::key(&found)?)?;
    Ok((found, packet))
}

#[inline(always)]
fn to_backend(ctx: &XdpContext, found: &Located, packet: &Parsed, handed: &Handed) -> u32 {
    let id = handed.service;
    let (Some(service), Some(backend), Some(outcome)) = (
        maps::service(id),
        maps::backend(handed.backend),
        Outcome::from_number(handed.outcome),
    ) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    if forward::is_spent(packet.network) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    let flow = super::flow_of(packet, handed, service, backend);
    let Some(entry) = super::allocation(&flow) else {
        return super::displace::instead(ctx, packet, &flow, jump::FULL_NAT_FIRST);
    };
    // SAFETY: the entry is this flow's.
    let shown = unsafe {
        let place = entry.as_ptr();
        super::note_client(entry, packet.flags);
        Reply {
            far_end: flow.far_end,
            backend_port: (*place).backend_port,
            node: (*place).node,
            node_port: (*place).node_port,
        }
    };
    let sent = Sent {
        meta: rule::meta(id, handed.backend, 0),
        place: shown.place(&Ports),
        entry,
        source: &shown.node,
        destination: &backend.address,
        protocol: packet.protocol(),
    };
    let Some(number) = number(&sent) else {
        return drop(ctx, id, Outcome::DropNoIdentification);
    };
    super::rewrite(packet, backend, &shown.node, shown.node_port);
    renumber(found, number);
    count::packet_to(handed.backend, packet.length);
    let sent = forward::out(ctx, &packet.link, &Exit::to(backend));
    let outcome = outcome_of(service, packet, outcome);
    end(ctx, id, sent, outcome, handed.backend)
}

/// A first fragment never has the option that would name its client: what it adds would move all that comes behind it.
#[inline(always)]
fn outcome_of(service: &ServiceRecord, packet: &Parsed, outcome: Outcome) -> Outcome {
    let lacks =
        service.client_option != 0 && packet.flags & tcp::SYN != 0 && packet.flags & tcp::RST == 0;
    if lacks {
        Outcome::ForwardOptionless
    } else {
        outcome
    }
}

#[inline(always)]
fn to_client(ctx: &XdpContext, found: &Located, packet: &Parsed, owner: &Owner) -> u32 {
    let (client, _) = owner.client();
    // A fragment answers no question, as in `nat`: the segments after it do.
    let route = match reply::way::<false>(ctx, packet, owner) {
        Ok(route) => route,
        Err(verdict) => return verdict,
    };
    // Else a packet that goes no further would take an identification.
    if route.by == By::Xdp && forward::is_spent(packet.network) {
        return drop(ctx, owner.id, Outcome::DropTtl);
    }
    let sent = Sent {
        meta: rule::meta(owner.id, owner.backend_id, TO_CLIENT),
        place: owner.place,
        entry: owner.entry,
        source: &owner.service.vip,
        destination: &client,
        protocol: packet.protocol(),
    };
    let Some(number) = number(&sent) else {
        return drop(ctx, owner.id, Outcome::DropNoIdentification);
    };
    renumber(found, number);
    reply::deliver(ctx, packet, owner, &route)
}

/// A first fragment as it leaves.
struct Sent<'a> {
    /// What is remembered of it.
    meta: Meta,
    /// Place of its flow's allocation.
    place: u32,
    /// That allocation.
    entry: NonNull<PortEntry>,
    source: &'a Addr,
    destination: &'a Addr,
    protocol: u8,
}

/// The identification that it gets, which is remembered. The same again for the same fragment.
#[inline(always)]
fn number(sent: &Sent) -> Option<u32> {
    let (key, control) = (maps::FRAGMENT_KEY.get(0)?, maps::control());
    let ticks = ticks_per_second();
    // SAFETY: a helper without arguments; the entry is of the packet's flow.
    let (clock, owner) = unsafe {
        let tag = &raw const (*sent.entry.as_ptr()).tag;
        (bpf_jiffies64(), ptr::read_volatile(tag))
    };
    let now = clock as u32;
    let known = entry::find(&Fragments, key.hash, &key.flow);
    if let Some(known) = known {
        // SAFETY: the entry was found for this packet.
        let (had, meta, opened) = unsafe {
            let opened = (*known.as_ptr()).opened;
            (rule::renewed(known), entry::meta(known), opened)
        };
        if had.owner == owner
            && had.place == sent.place
            && meta == sent.meta
            && rule::is_remembered(opened, now, ticks)
        {
            return Some(had.id);
        }
    }
    let ends = Ends::new(
        control.index_seed,
        sent.source,
        sent.destination,
        sent.protocol,
    );
    let second = clock.checked_div(u64::from(ticks))? as u32;
    let id = identification::fresh(&Identifications, &ends, second)?;
    let new = NewEntry {
        meta: sent.meta,
        opened: now,
        seen: now,
    };
    let entry = match known {
        // SAFETY: as above.
        Some(known) => unsafe {
            fragment::renew(known, &new);
            Some(known)
        },
        None => entry::insert(&Fragments, key.hash, &key.flow, &new, &OldestPolicy),
    };
    // Where another CPU was faster, the later fragments are early ones.
    if let Some(entry) = entry {
        let renewed = Renewed {
            id,
            place: sent.place,
            owner,
        };
        // SAFETY: it is the entry of this packet.
        unsafe { rule::set_renewed(entry, &renewed) };
    }
    Some(id)
}

/// Gives a fragment another identification.
#[inline(always)]
fn renumber(found: &Located, id: u32) {
    match found.network {
        // SAFETY: the header was checked by `locate`.
        Network::V4(ip) => unsafe {
            let (old, new) = (u16::from_ne_bytes((*ip).id), id as u16);
            (*ip).id = new.to_ne_bytes();
            let check = u16::from_ne_bytes((*ip).check);
            (*ip).check = checksum::apply(check, checksum::field_delta(old, new)).to_ne_bytes();
        },
        Network::V6(_) => {
            // Behind protocol, reserved bits and offset (RFC 8200 section 4.5). Checked once more, for the verifier.
            let at = found.extent.network + found.fragment + 4;
            if let Ok(place) = header::<[u8; 4]>(at, found.extent.end) {
                // SAFETY: `header` has checked it.
                unsafe { place.cast::<u32>().write_unaligned(id) };
            }
        }
    }
}

/// A later fragment, and what is remembered of its first one.
struct Later<'a> {
    found: &'a Located,
    id: u32,
    service: &'static ServiceRecord,
    backend_id: u32,
    backend: &'static BackendRecord,
    /// The client's address and the node's.
    client: Addr,
    node: Addr,
    /// Its identification from here on.
    number: u32,
}

#[inline(always)]
fn later(ctx: &XdpContext, found: &Located) -> Result<u32, Refused> {
    let Some((meta, number, entry)) = recall(found)? else {
        return Ok(fragment::unserved(ctx, found, Outcome::PassFragmentEarly));
    };
    let id = rule::service(meta);
    let (Some(service), Some(backend)) = (maps::service(id), maps::backend(meta.backend())) else {
        return Err(Outcome::PassInternal.into());
    };
    // SAFETY: the allocation is of the packet's flow.
    let (client, node) = unsafe {
        super::touch(entry);
        ((*entry.as_ptr()).client, (*entry.as_ptr()).node)
    };
    let later = Later {
        found,
        id,
        service,
        backend_id: meta.backend(),
        backend,
        client,
        node,
        number,
    };
    Ok(if meta.has(TO_CLIENT) {
        later_to_client(ctx, &later)
    } else {
        later_to_backend(ctx, &later)
    })
}

/// What is remembered of its first fragment: where that went, its identification, and the allocation of its flow, which
/// must be the same still.
#[inline(always)]
fn recall(found: &Located) -> Result<Option<(Meta, u32, NonNull<PortEntry>)>, Refused> {
    let key = fragment::key(found)?;
    let Some(known) = fragment::recall(&key) else {
        return Ok(None);
    };
    // SAFETY: the entry was found for this packet.
    let (meta, renewed) = unsafe { (entry::meta(known), rule::renewed(known)) };
    Ok(
        match full_nat::held_at(&Ports, renewed.place, renewed.owner) {
            Some(entry) => Some((meta, renewed.id, entry)),
            None => None,
        },
    )
}

#[inline(always)]
fn later_to_backend(ctx: &XdpContext, later: &Later) -> u32 {
    let (found, backend) = (later.found, later.backend);
    if backend.flags & backend_flags::NEXT_HOP == 0 {
        return drop(ctx, later.id, Outcome::DropNoNextHop);
    }
    let from = checksum::address_delta(&found.ends.0, &later.node);
    let delta = u64::from(from) + u64::from(backend.to_backend);
    let ends = (&later.node, &backend.address);
    if !super::readdress(found.network, delta, ends, true) {
        return drop(ctx, later.id, Outcome::DropTtl);
    }
    renumber(found, later.number);
    count::packet_to(later.backend_id, fragment::length(found));
    let sent = forward::out(ctx, &found.extent.link(found.network), &Exit::to(backend));
    let outcome = Outcome::ForwardFragment;
    end(ctx, later.id, sent, outcome, later.backend_id)
}

#[inline(always)]
fn later_to_client(ctx: &XdpContext, later: &Later) -> u32 {
    let (found, service) = (later.found, later.service);
    let route = forward::route(ctx, found.protocol, found.network, &later.client, service);
    if route.by == By::Nobody {
        return pass(ctx, later.id, Outcome::PassReplyLocal);
    }
    let to = checksum::address_delta(&found.ends.1, &later.client);
    let delta = u64::from(to) + u64::from(later.backend.to_client);
    let ends = (&service.vip, &later.client);
    if !super::readdress(found.network, delta, ends, route.by == By::Xdp) {
        return drop(ctx, later.id, Outcome::DropTtl);
    }
    renumber(found, later.number);
    count::reply_from(later.backend_id, fragment::length(found));
    if route.by == By::Kernel {
        return pass(ctx, later.id, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &found.extent.link(found.network), &route.exit);
    let outcome = Outcome::ForwardFragment;
    end(ctx, later.id, sent, outcome, later.backend_id)
}

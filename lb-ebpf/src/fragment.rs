//! Fragments: the first one of a packet has the ports, is steered as a whole packet would be, and is remembered; the
//! later ones follow it. `nat` rewrites their addresses; a transport checksum is in the first alone, and covers all. Those of
//! `full-nat` go on to programs of its own (`full_nat::fragment`).
//!
//! What is remembered is bounded (see `lb_common::fragment`), is apart from the flows, and lasts 30 s.

use core::ptr::NonNull;

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{backend_flags, control_flags, jump, mode},
    entry::{self, FlowEntry, Meta, NewEntry, OldestPolicy},
    fragment::{self as rule, Key, TO_CLIENT},
    index::{self, kind},
    outcome::Outcome,
};
use network_types::tcp::TcpHdr;

use crate::{
    Passage, count, drop, end, find,
    forward::{self, By, Exit},
    full_nat, hand_over, maps,
    parse::{self, Network, Parsed, Refused},
    pass, ranges, serve,
    tables::{Fragments, ticks_per_second},
    thorough::{self, Located},
    to_tunnel,
};

/// Takes over first fragments; hands later ones on.
#[xdp]
#[inline(always)]
pub fn fragment(ctx: XdpContext) -> u32 {
    match first(&ctx) {
        Ok(verdict) => verdict,
        Err(refused) => hand_over(&ctx, refused),
    }
}

/// Takes over later fragments.
// A program of its own: both in one have more variables than a BPF program's stack holds.
#[xdp]
#[inline(always)]
pub fn fragment_later(ctx: XdpContext) -> u32 {
    let known = locate(&ctx).and_then(|found| later(&ctx, &found));
    known.unwrap_or_else(|refused| pass(&ctx, 0, refused.outcome))
}

/// A fragment that lies inside the frame, and whose headers lie inside of it.
#[inline(always)]
pub fn locate(ctx: &XdpContext) -> Result<Located, Refused> {
    let found = thorough::locate(ctx)?;
    if found.part == 0 {
        return Err(Outcome::PassFragment.into());
    }
    let extent = &found.extent;
    // Of IPv6: extension headers go no further than the payload length says. IPv4's `locate` has seen to it.
    if extent.header > extent.total {
        return Err(Outcome::PassMalformed.into());
    }
    if extent.total > extent.end - extent.network {
        return Err(Outcome::PassTruncated.into());
    }
    Ok(found)
}

#[inline(always)]
fn first(ctx: &XdpContext) -> Result<u32, Refused> {
    let found = locate(ctx)?;
    if found.part > 1 {
        return Err(Refused {
            outcome: Outcome::PassFragment,
            program: jump::FRAGMENT_LATER,
        });
    }
    keep(key(&found)?)?;
    match transport(&found) {
        Ok(packet) => Ok(serve(ctx, &packet)),
        Err(_) => Ok(unserved(ctx, &found, Outcome::PassFragmentTiny)),
    }
}

/// Takes over first fragments whose very port is nobody's; their keys were laid out by `fragment`.
// A program of its own: `fragment` is as much as older verifiers (6.1) go through.
#[xdp]
#[inline(always)]
pub fn fragment_ranges(ctx: XdpContext) -> u32 {
    match again(&ctx) {
        Ok((_, packet)) => ranges::serve(&ctx, &packet),
        Err(refused) => pass(&ctx, 0, refused.outcome),
    }
}

/// A first fragment that `fragment` has judged.
#[inline(always)]
pub fn again(ctx: &XdpContext) -> Result<(Located, Parsed), Refused> {
    let found = thorough::locate(ctx)?;
    if found.part != 1 {
        return Err(Outcome::PassFragment.into());
    }
    let packet = transport(&found)?;
    Ok((found, packet))
}

/// The ports of a first fragment.
#[inline(always)]
fn transport(found: &Located) -> Result<Parsed, Refused> {
    // SAFETY: `locate` has checked the network header.
    let packet = unsafe {
        parse::transport(
            found.protocol,
            found.network,
            found.ends,
            &found.extent,
            false,
        )?
    };
    Ok(Parsed {
        is_first: true,
        ..packet
    })
}

/// The key of a fragment's packet.
#[inline(always)]
pub fn key(found: &Located) -> Result<Key, Refused> {
    let protocol = match found.network {
        Network::V4(_) => found.protocol,
        Network::V6(_) => 0,
    };
    let seed = maps::control().index_seed;
    let (source, destination) = &found.ends;
    Ok(rule::key(seed, source, destination, found.id, protocol))
}

/// Lays the key out for [`remember`].
#[inline(always)]
pub fn keep(key: Key) -> Result<(), Refused> {
    let Some(place) = maps::FRAGMENT_KEY.get_ptr_mut(0) else {
        return Err(Outcome::PassInternal.into());
    };
    // SAFETY: this CPU's own place.
    unsafe { *place = key };
    Ok(())
}

/// Remembers where a packet went, if it is a first fragment.
#[inline(always)]
pub fn remember(packet: &Parsed, service: u32, backend: u32, way: u64) {
    if !packet.is_first {
        return;
    }
    let Some(key) = maps::FRAGMENT_KEY.get(0) else {
        return;
    };
    let meta = rule::meta(service, backend, way);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() as u32 };
    let new = NewEntry {
        meta,
        opened: now,
        seen: now,
    };
    if let Some(known) = entry::find(&Fragments, key.hash, &key.flow) {
        // SAFETY: the entry was found for this packet.
        unsafe { renew(known, &new) };
        return;
    }
    // Where another CPU was faster, the later fragments are early ones.
    let _ = entry::insert(&Fragments, key.hash, &key.flow, &new, &OldestPolicy);
}

/// Notes in an entry that its identification came again: of a duplicate, or of the next packet that has it.
///
/// # Safety
/// The entry was found for this packet.
#[inline(always)]
pub unsafe fn renew(known: NonNull<FlowEntry>, new: &NewEntry) {
    unsafe {
        entry::set_meta(known, new.meta);
        (*known.as_ptr()).opened = new.opened;
        entry::touch(known, new.seen, 0);
    }
}

/// What is remembered of a packet's first fragment.
#[inline(always)]
pub fn recall(key: &Key) -> Option<NonNull<FlowEntry>> {
    let known = entry::find(&Fragments, key.hash, &key.flow)?;
    let ticks = ticks_per_second();
    // SAFETY: the entry was found for this packet; a helper without arguments.
    let (opened, now) = unsafe { ((*known.as_ptr()).opened, bpf_jiffies64() as u32) };
    if rule::is_remembered(opened, now, ticks) {
        Some(known)
    } else {
        None
    }
}

/// A fragment without ports.
#[inline(always)]
fn later(ctx: &XdpContext, found: &Located) -> Result<u32, Refused> {
    // The first one has all of the header; what would be laid over it is no honest fragment.
    let offset = usize::from(found.part & !1);
    if found.protocol == parse::TCP && offset < TcpHdr::LEN {
        return Ok(unserved(ctx, found, Outcome::PassFragmentTiny));
    }
    let key = key(found)?;
    let Some(known) = recall(&key) else {
        return Ok(unserved(ctx, found, Outcome::PassFragmentEarly));
    };
    // SAFETY: the entry was found for this packet.
    let meta = unsafe { entry::meta(known) };
    if is_full_nat(meta) {
        return Ok(full_nat::hand_later_over(ctx));
    }
    Ok(if meta.has(TO_CLIENT) {
        to_client(ctx, found, meta)
    } else {
        to_backend(ctx, found, meta, key.hash)
    })
}

#[inline(always)]
fn is_full_nat(meta: Meta) -> bool {
    let service = maps::service(rule::service(meta));
    service.is_some_and(|service| service.mode == mode::FULL_NAT)
}

/// A fragment that nothing is known of: `outcome` when it is to a service's address.
#[inline(always)]
pub fn unserved(ctx: &XdpContext, found: &Located, outcome: Outcome) -> u32 {
    let Some(entry) = find(&found.ends.1, index::selector(0, 0, kind::VIP)) else {
        return pass(ctx, 0, Outcome::PassFragment);
    };
    let flags = maps::control().flags;
    if matches!(outcome, Outcome::PassFragmentEarly)
        && flags & control_flags::DROP_EARLY_FRAGMENTS != 0
    {
        return drop(ctx, entry.service, Outcome::DropFragmentEarly);
    }
    pass(ctx, entry.service, outcome)
}

/// Length of the frame.
#[inline(always)]
pub fn length(found: &Located) -> u32 {
    (found.extent.end - found.extent.start) as u32
}

#[inline(always)]
fn to_backend(ctx: &XdpContext, found: &Located, meta: Meta, hash: u64) -> u32 {
    let id = rule::service(meta);
    let (Some(service), Some(backend)) = (maps::service(id), maps::backend(meta.backend())) else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    if backend.flags & backend_flags::NEXT_HOP == 0 {
        return drop(ctx, id, Outcome::DropNoNextHop);
    }
    match service.mode {
        mode::L2 => {}
        mode::NAT => {
            if !forward::hop(found.network, backend.to_backend, true) {
                return drop(ctx, id, Outcome::DropTtl);
            }
            // SAFETY: the headers were checked by `locate`.
            unsafe { forward::set_destination(found.network, &backend.address) };
        }
        tunnel if mode::is_tunnel(tunnel) => {
            let passage = Passage {
                service: id,
                backend: meta.backend(),
                hash,
                outcome: Outcome::ForwardFragment,
                length: length(found),
            };
            return to_tunnel(ctx, &found.into(), service, backend, &passage);
        }
        _ => return pass(ctx, id, Outcome::PassFragment),
    }
    count::packet_to(meta.backend(), length(found));
    let sent = forward::out(ctx, &found.extent.link(found.network), &Exit::to(backend));
    end(ctx, id, sent, Outcome::ForwardFragment, meta.backend())
}

#[inline(always)]
fn to_client(ctx: &XdpContext, found: &Located, meta: Meta) -> u32 {
    let id = rule::service(meta);
    let (Some(service), Some(backend)) = (maps::service(id), maps::backend(meta.backend())) else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    let route = forward::route(ctx, found.protocol, found.network, &found.ends.1, service);
    if route.by == By::Nobody {
        return pass(ctx, id, Outcome::PassReplyLocal);
    }
    if !forward::hop(found.network, backend.to_client, route.by == By::Xdp) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    // SAFETY: the headers were checked by `locate`.
    unsafe { forward::set_source(found.network, &service.vip) };
    count::reply_from(meta.backend(), length(found));
    if route.by == By::Kernel {
        return pass(ctx, id, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &found.extent.link(found.network), &route.exit);
    end(ctx, id, sent, Outcome::ForwardFragment, meta.backend())
}

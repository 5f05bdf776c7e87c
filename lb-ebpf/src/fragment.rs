//! Fragments: the first one of a packet has the ports, is steered as a whole packet would be, and is remembered; the
//! later ones follow it. `nat` rewrites their addresses; a transport checksum is in the first alone, and covers all.
//!
//! What is remembered is bounded (see `lb_common::fragment`), is apart from the flows, and lasts 30 s.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{backend_flags, control_flags, mode},
    entry::{self, HandshakePolicy, Meta, NewEntry},
    fragment::{self as rule, Key, TO_CLIENT},
    index::{self, kind},
    outcome::Outcome,
};
use network_types::{eth::EthHdr, tcp::TcpHdr};

use crate::{
    count, drop, find, finish, forward, maps,
    parse::{self, Network, Parsed, Refused},
    pass, serve,
    tables::Fragments,
    thorough::{self, Located},
};

/// Takes over fragments.
#[xdp]
pub fn fragment(ctx: XdpContext) -> u32 {
    match handle(&ctx) {
        Ok(verdict) => verdict,
        Err(refused) => pass(&ctx, 0, refused.outcome),
    }
}

#[inline(always)]
fn handle(ctx: &XdpContext) -> Result<u32, Refused> {
    let found = thorough::locate(ctx)?;
    if found.part == 0 {
        return Err(Outcome::PassFragment.into());
    }
    let extent = &found.extent;
    if extent.total > extent.end - extent.network {
        return Err(Outcome::PassTruncated.into());
    }
    let Some(key) = key(&found) else {
        return Err(Outcome::PassInternal.into());
    };
    if found.part > 1 {
        return Ok(later(ctx, &found, &key));
    }
    // SAFETY: `locate` has checked the network header.
    let first =
        unsafe { parse::transport(found.protocol, found.network, found.ends, extent, false) };
    match first {
        Ok(packet) => {
            let packet = Parsed {
                fragment: Some(key),
                ..packet
            };
            Ok(serve(ctx, &packet))
        }
        Err(_) => Ok(unserved(ctx, &found, Outcome::PassFragmentTiny)),
    }
}

#[inline(always)]
fn key(found: &Located) -> Option<Key> {
    let protocol = match found.network {
        Network::V4(_) => found.protocol,
        Network::V6(_) => 0,
    };
    let seed = maps::CONTROL.get(0)?.index_seed;
    let (source, destination) = &found.ends;
    Some(rule::key(seed, source, destination, found.id, protocol))
}

/// Remembers where a packet went, if it is a first fragment.
#[inline(always)]
pub fn remember(packet: &Parsed, service: u32, backend: u32, way: u64) {
    let Some(key) = &packet.fragment else { return };
    let meta = rule::meta(service, backend, way);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() as u32 };
    if let Some(known) = entry::find(&Fragments, key.hash, &key.flow) {
        // The same identification again: a duplicate, or the next packet that has it.
        // SAFETY: the entry was found for this packet.
        unsafe {
            entry::set_meta(known, meta);
            (*known.as_ptr()).opened = now;
            entry::touch(known, now);
        }
        return;
    }
    let new = NewEntry {
        meta,
        opened: now,
        seen: now,
    };
    // Where another CPU was faster, the later fragments are early ones.
    let _ = entry::insert(&Fragments, key.hash, &key.flow, &new, &HandshakePolicy);
}

/// Where a packet's first fragment went.
#[inline(always)]
fn recall(key: &Key) -> Option<Meta> {
    let known = entry::find(&Fragments, key.hash, &key.flow)?;
    let life = maps::CONTROL
        .get(0)?
        .ticks_per_second
        .wrapping_mul(rule::SECONDS);
    // SAFETY: the entry was found for this packet; a helper without arguments.
    unsafe {
        let age = entry::age((*known.as_ptr()).opened, bpf_jiffies64() as u32);
        (age <= life).then(|| entry::meta(known))
    }
}

/// A fragment without ports.
#[inline(always)]
fn later(ctx: &XdpContext, found: &Located, key: &Key) -> u32 {
    // The first one has all of the header; what would be laid over it is no honest fragment.
    let offset = usize::from(found.part & !1);
    if found.protocol == parse::TCP && offset < TcpHdr::LEN {
        return unserved(ctx, found, Outcome::PassFragmentTiny);
    }
    let Some(meta) = recall(key) else {
        return unserved(ctx, found, Outcome::PassFragmentEarly);
    };
    if meta.has(TO_CLIENT) {
        to_client(ctx, found, meta)
    } else {
        to_backend(ctx, found, meta)
    }
}

/// A fragment that nothing is known of: `outcome` when it is to a service's address.
#[inline(always)]
fn unserved(ctx: &XdpContext, found: &Located, outcome: Outcome) -> u32 {
    let Some(entry) = find(&found.ends.1, index::selector(0, 0, kind::VIP)) else {
        return pass(ctx, 0, Outcome::PassFragment);
    };
    let flags = maps::CONTROL.get(0).map_or(0, |control| control.flags);
    if matches!(outcome, Outcome::PassFragmentEarly)
        && flags & control_flags::DROP_EARLY_FRAGMENTS != 0
    {
        return drop(ctx, entry.service, Outcome::DropFragmentEarly);
    }
    pass(ctx, entry.service, outcome)
}

#[inline(always)]
fn length(found: &Located) -> u32 {
    (found.extent.end - found.extent.start) as u32
}

#[inline(always)]
fn to_backend(ctx: &XdpContext, found: &Located, meta: Meta) -> u32 {
    let id = rule::service(meta);
    let (Some(service), Some(backend)) =
        (maps::SERVICES.get(id), maps::BACKENDS.get(meta.backend()))
    else {
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
        _ => return pass(ctx, id, Outcome::PassFragment),
    }
    count::packet_to(meta.backend(), length(found));
    finish(ctx, id, Outcome::ForwardFragment, meta.backend());
    // SAFETY: as above.
    unsafe { forward::address(found.extent.start as *mut EthHdr, &backend.ethernet) };
    forward::leave(ctx, backend.ifindex)
}

#[inline(always)]
fn to_client(ctx: &XdpContext, found: &Located, meta: Meta) -> u32 {
    let id = rule::service(meta);
    let (Some(service), Some(backend)) =
        (maps::SERVICES.get(id), maps::BACKENDS.get(meta.backend()))
    else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    let route = forward::route(ctx, found.protocol, found.network, &found.ends.1, service);
    let counts = matches!(route, forward::Route::Known { .. });
    if matches!(route, forward::Route::NotForwarded) {
        return pass(ctx, id, Outcome::PassReplyLocal);
    }
    if !forward::hop(found.network, backend.to_client, counts) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    // SAFETY: the headers were checked by `locate`.
    unsafe { forward::set_source(found.network, &service.vip) };
    count::reply_from(meta.backend(), length(found));
    let forward::Route::Known { ethernet, ifindex } = route else {
        return pass(ctx, id, Outcome::ForwardReplyKernel);
    };
    finish(ctx, id, Outcome::ForwardFragment, meta.backend());
    // SAFETY: as above.
    unsafe { forward::address(found.extent.start as *mut EthHdr, &ethernet) };
    forward::leave(ctx, ifindex)
}

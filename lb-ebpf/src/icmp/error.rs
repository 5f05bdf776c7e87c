//! Rewriting an ICMP error together with what it quotes.

use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord},
    checksum,
};

use super::{Message, quote::Quote};
use crate::{
    forward,
    parse::{Network, UDP},
};

/// Destination unreachable, time exceeded, parameter problem (RFC 792). Source quench is dead (RFC 6633), redirects
/// are for the next hop alone.
#[inline(always)]
pub fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 section 3).
#[inline(always)]
pub fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// What one end of a flow becomes: address and port, and what the address changes a checksum by.
struct Replacement<'a> {
    address: &'a Addr,
    address_delta: u32,
    /// Absent where the service is on several ports, which stay as they are.
    port: Option<u16>,
}

/// An error about a packet from the service, for the backend that sent it. False when its time to live is used up;
/// then it is as it was.
#[inline(always)]
pub fn rewrite_to_backend(message: &Message, quote: &Quote, backend: &BackendRecord) -> bool {
    if !forward::hop(message.packet.network, backend.to_backend, true) {
        return false;
    }
    let new = Replacement {
        address: &backend.address,
        address_delta: backend.to_backend,
        port: (backend.port != 0).then_some(backend.port),
    };
    // SAFETY: the headers were checked by `parse`, and nothing has moved the packet since.
    unsafe {
        forward::set_destination(message.packet.network, new.address);
        forward::set_source(quote.network, new.address);
        let ports = quote.ports.cast::<u16>();
        let delta = requote(quote, &new, ports);
        amend(message, backend.to_backend, delta);
    }
    true
}

/// An error about a packet to a backend, for the client that sent it: as from the service. `counts`: whether this
/// node is a hop. False as above.
#[inline(always)]
pub fn rewrite_to_client(
    message: &Message,
    quote: &Quote,
    service: &ServiceRecord,
    backend: &BackendRecord,
    counts: bool,
) -> bool {
    let outer_delta = checksum::address_delta(&message.packet.ends.0, &service.vip);
    if !forward::hop(message.packet.network, outer_delta, counts) {
        return false;
    }
    let new = Replacement {
        address: &service.vip,
        address_delta: backend.to_client,
        port: (service.last_port == 0).then_some(service.port),
    };
    // SAFETY: as above.
    unsafe {
        forward::set_source(message.packet.network, new.address);
        forward::set_destination(quote.network, new.address);
        let ports = quote.ports.cast::<u16>().add(1);
        let delta = requote(quote, &new, ports);
        amend(message, outer_delta, delta);
    }
    true
}

/// What becomes of the ends of an error and of what it quotes: source, destination.
pub struct Ends<'a> {
    /// Of the error itself.
    pub outer: (&'a Addr, &'a Addr),
    /// Of the quoted packet.
    pub quoted: (&'a Addr, &'a Addr),
    /// Ports of the quoted packet, network order as loaded.
    pub ports: (u16, u16),
}

/// Replaces all ends of an error. False as above.
#[inline(always)]
pub fn rewrite_both(message: &Message, quote: &Quote, ends: &Ends, counts: bool) -> bool {
    let (network, old) = (message.packet.network, &message.packet.ends);
    let outer_delta = u64::from(checksum::address_delta(&old.0, ends.outer.0))
        + u64::from(checksum::address_delta(&old.1, ends.outer.1));
    let outer_delta = u32::from(checksum::fold(outer_delta));
    if !forward::hop(network, outer_delta, counts) {
        return false;
    }
    let end = |old: &Addr, address, port| Replacement {
        address,
        address_delta: checksum::address_delta(old, address),
        port: Some(port),
    };
    let source = end(&quote.source, ends.quoted.0, ends.ports.0);
    let destination = end(&quote.destination, ends.quoted.1, ends.ports.1);
    // SAFETY: as above.
    unsafe {
        forward::set_source(network, ends.outer.0);
        forward::set_destination(network, ends.outer.1);
        forward::set_source(quote.network, source.address);
        forward::set_destination(quote.network, destination.address);
        let ports = quote.ports.cast::<u16>();
        let delta = requote(quote, &source, ports) + requote(quote, &destination, ports.add(1));
        amend(message, outer_delta, delta);
    }
    true
}

/// Replaces a quoted port and amends the quoted checksums. Returns what all that, and the address, which the caller
/// stores, changes the sum of the message by.
#[inline(always)]
unsafe fn requote(quote: &Quote, new: &Replacement, port: *mut u16) -> u64 {
    unsafe {
        let mut delta = u64::from(new.address_delta);
        if let Network::V4(ip) = quote.network {
            let old = u16::from_ne_bytes((*ip).check);
            let check = checksum::apply(old, delta);
            (*ip).check = check.to_ne_bytes();
            delta += checksum::field_delta(old, check);
        }
        let old = port.read_unaligned();
        let new_port = new.port.unwrap_or(old);
        let change = checksum::field_delta(old, new_port);
        port.write_unaligned(new_port);
        delta += change;
        let Some(check) = quote.check else {
            return delta;
        };
        let old = check.read_unaligned();
        // A datagram without a checksum.
        if quote.protocol == UDP && old == 0 {
            return delta;
        }
        let amended = checksum::apply(old, u64::from(new.address_delta) + change);
        let amended = if quote.protocol == UDP && amended == 0 {
            u16::MAX
        } else {
            amended
        };
        check.write_unaligned(amended);
        delta + checksum::field_delta(old, amended)
    }
}

/// Amends the message's own checksum, which covers in ICMPv6 the outer addresses as well (RFC 4443 section 2.3).
#[inline(always)]
unsafe fn amend(message: &Message, outer_delta: u32, delta: u64) {
    let delta = match message.packet.network {
        Network::V4(_) => delta,
        Network::V6(_) => delta + u64::from(outer_delta),
    };
    unsafe {
        let check = message.header.cast::<u16>().add(1);
        check.write_unaligned(checksum::apply(check.read_unaligned(), delta));
    }
}

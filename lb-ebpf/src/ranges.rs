//! Services on several ports. An exact port is found first, by the program that has parsed the packet; only what that
//! does not know comes here.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    Addr,
    abi::jump,
    index::{self, IndexEntry, Live, kind},
    limits::RANGES_MAX,
    outcome::Outcome,
};

use crate::{
    find, hand_over, maps,
    parse::{Parsed, Refused, UDP},
    sent_back, thorough, to_backend, to_client,
};

/// The balancer for the packets whose very port is nobody's.
#[xdp]
#[inline(always)]
pub fn ranges(ctx: XdpContext) -> u32 {
    match thorough::parse(&ctx) {
        Ok(packet) => serve(&ctx, &packet),
        Err(Refused {
            outcome,
            program: jump::FRAGMENT,
        }) => hand_over(
            &ctx,
            Refused {
                outcome,
                program: jump::FRAGMENT_RANGES,
            },
        ),
        Err(refused) => crate::pass(&ctx, 0, refused.outcome),
    }
}

/// A packet whose very port is nobody's.
#[inline(always)]
pub fn serve(ctx: &XdpContext, packet: &Parsed) -> u32 {
    if let Some(entry) = lookup(packet, kind::RANGE) {
        return to_backend(ctx, packet, entry.service);
    }
    if let Some(entry) = lookup(packet, kind::REPLY_RANGE) {
        return to_client(ctx, packet, entry);
    }
    sent_back::perhaps(ctx, packet)
}

/// Whether there are services on several ports.
#[inline(always)]
pub fn are_there() -> bool {
    // Read again: the packet that finds its service does not wait for it.
    // SAFETY: a reference.
    Live(unsafe { core::ptr::read_volatile(&maps::control().index) }).has_ranges()
}

/// Who else may know a packet of no service: `ranges`, where there are any, or where backends send packets back.
#[inline(always)]
pub fn perhaps(protocol: u8) -> Refused {
    Refused {
        outcome: Outcome::PassNoService,
        program: if are_there() || (protocol == UDP && sent_back::are_there()) {
            jump::RANGES
        } else {
            jump::PLACES
        },
    }
}

/// The service on several ports that the packet's destination names, or the one whose backend its source names.
#[inline(always)]
pub fn lookup(packet: &Parsed, kind: u8) -> Option<&'static IndexEntry> {
    let (address, port) = if kind == kind::RANGE {
        (&packet.destination, packet.destination_port)
    } else {
        (&packet.source, packet.source_port)
    };
    find_among(address, port, packet.protocol(), kind)
}

/// The first entry of this kind at the address whose service is on the port.
#[inline(always)]
pub fn find_among(
    address: &Addr,
    port: u16,
    protocol: u8,
    kind: u8,
) -> Option<&'static IndexEntry> {
    let mut number = 0;
    while number < RANGES_MAX {
        let selector = index::selector(number as u16, protocol, kind);
        let entry = find(address, selector)?;
        if maps::service(entry.service)?.ranges_over(port) {
            return Some(entry);
        }
        number += 1;
    }
    None
}

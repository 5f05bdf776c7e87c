//! Services on several ports. An exact port is found first, by the program that has parsed the packet; only what that
//! does not know comes here.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    abi::jump,
    index::{self, IndexEntry, Live, kind},
    limits::RANGES_MAX,
    outcome::Outcome,
};

use crate::{
    find, maps,
    parse::{Parsed, Refused},
    pass, thorough, to_backend, to_client,
};

/// The balancer for the packets whose very port is nobody's.
#[xdp]
#[inline(always)]
pub fn ranges(ctx: XdpContext) -> u32 {
    let packet = match thorough::parse(&ctx) {
        Ok(packet) => packet,
        Err(refused) => return pass(&ctx, 0, refused.outcome),
    };
    if let Some(entry) = lookup(&packet, kind::RANGE) {
        return to_backend(&ctx, &packet, entry.service);
    }
    if let Some(entry) = lookup(&packet, kind::REPLY_RANGE) {
        return to_client(&ctx, &packet, entry);
    }
    pass(&ctx, 0, Outcome::PassNoService)
}

/// Who else may know a packet of no service: `ranges`, where there are any.
#[inline(always)]
pub fn perhaps() -> Refused {
    let has_ranges = maps::CONTROL
        .get(0)
        .is_some_and(|control| Live(control.index).has_ranges());
    Refused {
        outcome: Outcome::PassNoService,
        program: if has_ranges {
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
    let mut number = 0;
    while number < RANGES_MAX {
        let selector = index::selector(number as u16, packet.protocol(), kind);
        let entry = find(address, selector)?;
        if maps::SERVICES.get(entry.service)?.ranges_over(port) {
            return Some(entry);
        }
        number += 1;
    }
    None
}

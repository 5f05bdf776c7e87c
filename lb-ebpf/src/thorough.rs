//! Headers of the packets that are not plain: VLAN tags, IPv4 options, IPv6 extension headers.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use lb_common::{Addr, abi::jump, outcome::Outcome};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    maps,
    parse::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Extent, Network, Parsed,
        Refused, header, transport, v4_ends, v6_ends,
    },
};

/// Most tags in front of the IP header (802.1ad: a service tag and a customer tag).
const TAGS_MAX: u32 = 2;
/// Most extension headers in front of the transport header.
const EXTENSIONS_MAX: u32 = 6;
/// Bytes that extension headers may have in all.
const EXTENSIONS_BYTES: usize = 256;

/// IPv6 extension headers (RFC 8200 section 4) by their numbers.
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

/// An 802.1Q tag, from behind its own EtherType: control information, EtherType of what follows.
#[repr(C)]
struct Tag {
    control: [u8; 2],
    ether_type: [u8; 2],
}

/// The first eight bytes of an extension header.
#[repr(C)]
struct Extension {
    next: u8,
    /// Length in units of eight bytes, without the first.
    length: u8,
    rest: [u8; 6],
}

/// A packet whose network header is known, and what comes behind it.
pub struct Located {
    /// Network header.
    pub network: Network,
    /// Source and destination.
    pub ends: (Addr, Addr),
    /// IP protocol number of what follows the network header, options and extension headers included.
    pub protocol: u8,
    /// Where things are.
    pub extent: Extent,
    /// Of a fragment: its offset in bytes, and in bit 0 whether more follow (as RFC 8200 section 4.5 has it, host
    /// order); 0 for a whole packet.
    pub part: u16,
    /// Of a fragment: the packet's identification, as loaded.
    pub id: u32,
    /// Of an IPv6 fragment: from the network header to the fragment header.
    pub fragment: usize,
}

/// Reads the headers, or says why the frame is not for this program.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Result<Parsed, Refused> {
    let found = locate(ctx)?;
    if found.part != 0 {
        return Err(Refused {
            outcome: Outcome::PassFragment,
            program: jump::FRAGMENT,
        });
    }
    // SAFETY: `locate` has checked the network header.
    unsafe {
        transport(
            found.protocol,
            found.network,
            found.ends,
            &found.extent,
            // What is plain does not come here; and one way less for the verifier to go.
            false,
        )
    }
}

/// Finds the network header, and what follows it.
#[inline(always)]
pub fn locate(ctx: &XdpContext) -> Result<Located, Refused> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let ethernet: *mut EthHdr = header(start, end)?;
    // SAFETY: `header` has checked that it lies inside the frame; so for every header below.
    let mut ether_type = unsafe { (*ethernet).ether_type };
    let mut at = start + EthHdr::LEN;
    let mut tags = 0;
    while tags < TAGS_MAX && matches!(ether_type, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
        let tag: *mut Tag = header(at, end)?;
        ether_type = u16::from_ne_bytes(unsafe { (*tag).ether_type });
        at += size_of::<Tag>();
        tags += 1;
    }
    let offset = forget(
        at - start,
        EthHdr::LEN + TAGS_MAX as usize * size_of::<Tag>(),
    )?;
    match ether_type {
        ETHERTYPE_IPV4 => locate_v4(start, offset, end),
        ETHERTYPE_IPV6 => locate_v6(start, offset, end),
        _ => Err(Outcome::PassNotIp.into()),
    }
}

/// The same value, of which the verifier then knows no more than that it is at most `max`. So the ways that led to
/// it are one way from there on, where it would prove the rest of the program anew for each of them.
#[inline(always)]
pub fn forget(value: usize, max: usize) -> Result<usize, Refused> {
    let Some(place) = maps::SCRATCH.get_ptr_mut(0) else {
        return Err(Outcome::PassInternal.into());
    };
    // SAFETY: a per-CPU value; volatile, so that it really goes through memory.
    let value = unsafe {
        place.write_volatile(value as u64);
        place.read_volatile() as usize
    };
    let mask = (max + 1).next_power_of_two() - 1;
    let value = masked(value, mask);
    // A comparison that the mask decides would have the verifier remember exactly what it was decided by.
    if mask != max && value > max {
        return Err(Outcome::PassInternal.into());
    }
    Ok(value)
}

/// `value & mask`, which LLVM does not see to be no change. Older verifiers (6.1) know nothing any more of an unbounded
/// value that was spilled to the stack before it was compared, and so must have a bound that it brings along.
#[inline(always)]
pub fn masked(value: usize, mask: usize) -> usize {
    let mut value = value;
    // SAFETY: one instruction on registers.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = in(reg) mask, options(pure, nomem, nostack));
    }
    value
}

#[inline(always)]
fn locate_v4(start: usize, offset: usize, end: usize) -> Result<Located, Refused> {
    let at = start + offset;
    let ip: *mut Ipv4Hdr = header(at, end)?;
    unsafe {
        let header_length = usize::from((*ip).vihl & 0xf) << 2;
        let total = usize::from(u16::from_be_bytes((*ip).tot_len));
        if (*ip).vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN || total < header_length {
            return Err(Outcome::PassMalformed.into());
        }
        let part = u16::from_be_bytes((*ip).frags);
        let part = part << 3 | (part >> 13) & 1;
        let extent = Extent {
            start,
            end,
            network: at,
            offset,
            total,
            header: header_length,
            is_part: part != 0,
        };
        Ok(Located {
            network: Network::V4(ip),
            ends: v4_ends(ip),
            protocol: (*ip).proto,
            extent,
            part,
            id: u32::from(u16::from_ne_bytes((*ip).id)),
            fragment: 0,
        })
    }
}

#[inline(always)]
fn locate_v6(start: usize, offset: usize, end: usize) -> Result<Located, Refused> {
    let at = start + offset;
    let ip: *mut Ipv6Hdr = header(at, end)?;
    unsafe {
        if *ip.cast::<u8>() >> 4 != 6 {
            return Err(Outcome::PassMalformed.into());
        }
        let total = usize::from(u16::from_be_bytes((*ip).payload_len)) + Ipv6Hdr::LEN;
        let skipped = skip_extensions((*ip).next_hdr, at + Ipv6Hdr::LEN, end)?;
        let extensions = forget(skipped.bytes, EXTENSIONS_BYTES)?;
        let protocol = forget(usize::from(skipped.protocol), 255)? as u8;
        // Both at once: each value that the verifier is to forget costs a way of its own.
        let part = forget(
            skipped.fragment << 16 | usize::from(skipped.part),
            EXTENSIONS_BYTES << 16 | 0xffff,
        )?;
        let (fragment, part) = (part >> 16, part as u16);
        let id = forget(skipped.id as usize, u32::MAX as usize)? as u32;
        let extent = Extent {
            start,
            end,
            network: at,
            offset,
            total,
            header: Ipv6Hdr::LEN + extensions,
            is_part: part != 0,
        };
        Ok(Located {
            network: Network::V6(ip),
            ends: v6_ends(ip)?,
            protocol,
            extent,
            part,
            id,
            fragment: Ipv6Hdr::LEN + fragment,
        })
    }
}

/// What extension headers say.
struct Skipped {
    /// The protocol behind them.
    protocol: u8,
    /// How many bytes they have.
    bytes: usize,
    /// Where the fragment header begins among them.
    fragment: usize,
    /// As in [`Located`].
    part: u16,
    /// As in [`Located`].
    id: u32,
}

/// Goes over the extension headers at `at`, no further than a later fragment's own.
///
/// Counted, with what ends it at its top: of a loop that is entered in its middle, as LLVM makes of one that ends by a
/// protocol number, the verifier says "back-edge" before Linux 6.7 (commit 10e14e9652bf).
#[inline(always)]
fn skip_extensions(first: u8, at: usize, end: usize) -> Result<Skipped, Refused> {
    let mut skipped = Skipped {
        protocol: first,
        bytes: 0,
        fragment: 0,
        part: 0,
        id: 0,
    };
    for _ in 0..EXTENSIONS_MAX {
        if !is_extension(skipped.protocol) || skipped.part > 1 {
            break;
        }
        if skipped.bytes >= EXTENSIONS_BYTES {
            return Err(Outcome::PassProtocol.into());
        }
        let place: *mut Extension = header(at + skipped.bytes, end)?;
        // SAFETY: `header` has checked it.
        let Extension { next, length, rest } = unsafe { place.read_unaligned() };
        if skipped.protocol == extension::FRAGMENT {
            let [high, low, a, b, c, d] = rest;
            skipped.fragment = skipped.bytes;
            // Two bits between offset and "more fragments" are reserved.
            skipped.part = u16::from_be_bytes([high, low]) & !6;
            skipped.id = u32::from_ne_bytes([a, b, c, d]);
            skipped.bytes += size_of::<Extension>();
        } else {
            // On its way to somewhere else first (RFC 8200 section 4.4).
            if skipped.protocol == extension::ROUTING && rest[1] != 0 {
                return Err(Outcome::PassProtocol.into());
            }
            skipped.bytes += (usize::from(length) + 1) << 3;
        }
        skipped.protocol = next;
    }
    if skipped.bytes > EXTENSIONS_BYTES {
        return Err(Outcome::PassProtocol.into());
    }
    Ok(skipped)
}

/// Whether an extension header has this number.
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::FRAGMENT
    )
}

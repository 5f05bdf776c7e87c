//! Headers of the packets that are not plain: VLAN tags, IPv4 options, IPv6 extension headers.

use aya_ebpf::programs::XdpContext;
use lb_common::outcome::Outcome;
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    maps,
    parse::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Extent, FRAGMENT_MASK,
        Network, Parsed, Refused, header, transport, v4_ends, v6_ends,
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

/// Reads the headers, or says why the frame is not for ebb.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Result<Parsed, Refused> {
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
        ETHERTYPE_IPV4 => parse_v4(start, offset, end),
        ETHERTYPE_IPV6 => parse_v6(start, offset, end),
        _ => Err(Outcome::PassNotIp.into()),
    }
}

/// The same value, of which the verifier then knows no more than that it is at most `max`. So the ways that led to
/// it are one way from there on, where it would prove the rest of the program anew for each of them.
#[inline(always)]
fn forget(value: usize, max: usize) -> Result<usize, Refused> {
    let Some(place) = maps::SCRATCH.get_ptr_mut(0) else {
        return Err(Outcome::PassInternal.into());
    };
    // SAFETY: a per-CPU value; volatile, so that it really goes through memory.
    let value = unsafe {
        place.write_volatile(value as u64);
        place.read_volatile() as usize
    };
    if value > max {
        return Err(Outcome::PassInternal.into());
    }
    Ok(value)
}

#[inline(always)]
fn parse_v4(start: usize, offset: usize, end: usize) -> Result<Parsed, Refused> {
    let at = start + offset;
    let ip: *mut Ipv4Hdr = header(at, end)?;
    unsafe {
        let header_length = usize::from((*ip).vihl & 0xf) << 2;
        let total = usize::from(u16::from_be_bytes((*ip).tot_len));
        if (*ip).vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN || total < header_length {
            return Err(Outcome::PassMalformed.into());
        }
        if u16::from_ne_bytes((*ip).frags) & FRAGMENT_MASK != 0 {
            return Err(Outcome::PassFragment.into());
        }
        let extent = Extent {
            start,
            end,
            network: at,
            offset,
            total,
            header: header_length,
        };
        transport((*ip).proto, Network::V4(ip), v4_ends(ip), &extent, false)
    }
}

#[inline(always)]
fn parse_v6(start: usize, offset: usize, end: usize) -> Result<Parsed, Refused> {
    let at = start + offset;
    let ip: *mut Ipv6Hdr = header(at, end)?;
    unsafe {
        if *ip.cast::<u8>() >> 4 != 6 {
            return Err(Outcome::PassMalformed.into());
        }
        let total = usize::from(u16::from_be_bytes((*ip).payload_len)) + Ipv6Hdr::LEN;
        let (protocol, extensions) = skip_extensions((*ip).next_hdr, at + Ipv6Hdr::LEN, end)?;
        let extensions = forget(extensions, EXTENSIONS_BYTES)?;
        let protocol = forget(usize::from(protocol), 255)? as u8;
        let extent = Extent {
            start,
            end,
            network: at,
            offset,
            total,
            header: Ipv6Hdr::LEN + extensions,
        };
        transport(protocol, Network::V6(ip), v6_ends(ip), &extent, false)
    }
}

/// The transport protocol behind the extension headers at `at`, and how many bytes these have.
///
/// Counted, with what ends it at its top: of a loop that is entered in its middle, as LLVM makes of one that ends by a
/// protocol number, the verifier says "back-edge" before Linux 6.7 (commit 10e14e9652bf).
#[inline(always)]
fn skip_extensions(first: u8, at: usize, end: usize) -> Result<(u8, usize), Refused> {
    let mut protocol = first;
    let mut skipped = 0;
    for _ in 0..EXTENSIONS_MAX {
        if !is_extension(protocol)? {
            break;
        }
        if skipped >= EXTENSIONS_BYTES {
            return Err(Outcome::PassProtocol.into());
        }
        let place: *mut Extension = header(at + skipped, end)?;
        // SAFETY: `header` has checked it.
        let (next, length, segments_left) =
            unsafe { ((*place).next, (*place).length, (*place).rest[1]) };
        // On its way to somewhere else first (RFC 8200 section 4.4).
        if protocol == extension::ROUTING && segments_left != 0 {
            return Err(Outcome::PassProtocol.into());
        }
        skipped += (usize::from(length) + 1) << 3;
        protocol = next;
    }
    if is_extension(protocol)? || skipped > EXTENSIONS_BYTES {
        return Err(Outcome::PassProtocol.into());
    }
    Ok((protocol, skipped))
}

/// Whether an extension header of this number is skipped; that of a fragment is not.
#[inline(always)]
fn is_extension(protocol: u8) -> Result<bool, Refused> {
    match protocol {
        extension::FRAGMENT => Err(Outcome::PassFragment.into()),
        extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => Ok(true),
        _ => Ok(false),
    }
}

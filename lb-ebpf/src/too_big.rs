//! Telling a client the size of packet that fits the tunnel: ICMP "fragmentation needed" (RFC 792, RFC 1191
//! section 4) and ICMPv6 "packet too big" (RFC 4443 section 3.2), in the service's name.
//!
//! IPv4 packets without "don't fragment" are answered as well: XDP can not fragment, the kernel would send the packet
//! by its own routes and not to the backend, and a sender that heeds the answer gets through.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::generated::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    Addr,
    abi::{TooBig, jump},
    checksum,
    outcome::Outcome,
    tunnel::V6_MTU_MIN,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    drop, finish, maps,
    parse::{self, Link, header, v4_ends, v6_ends},
    tables,
};

/// An Ethernet header with two tags.
const ETHERNET_MAX: usize = 22;
/// Length of an ICMP error's header.
const ICMP_LENGTH: usize = 8;
/// Quoted of an IPv4 packet: with the headers 576 bytes (RFC 1812 section 4.3.2.3).
const QUOTE_V4: usize = 548;
/// Quoted of an IPv6 packet: with the headers 1280 bytes (RFC 4443 section 2.4 c).
const QUOTE_V6: usize = 1232;
/// Bytes that the kernel's checksum helper takes at once.
const SUM_MAX: usize = 512;

const TIME_TO_LIVE: u8 = 64;
/// Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const CLASS: u8 = 0xc0;

/// To the program `too_big`. Returns only when it is not there.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, link: &Link, length: u32, service: u32, mtu: u16) {
    let Some(place) = maps::TOO_BIG.get_ptr_mut(0) else {
        return;
    };
    let told = TooBig {
        service,
        network: link.network_offset() as u32,
        mtu: u32::from(mtu),
        length,
    };
    // SAFETY: a per-CPU value; the context is the kernel's own.
    unsafe {
        *place = told;
        maps::JUMPS.tail_call(ctx, jump::TOO_BIG);
    }
}

/// Answers a packet that does not fit its tunnel.
#[xdp]
pub fn too_big(ctx: XdpContext) -> u32 {
    let Some(told) = maps::TOO_BIG.get_ptr_mut(0) else {
        return drop(&ctx, 0, Outcome::DropTooBig);
    };
    // SAFETY: a per-CPU value, written just before.
    let told = unsafe { told.read_volatile() };
    match answer(&ctx, &told) {
        Ok(()) => finish(
            &ctx,
            told.service,
            Outcome::AnswerTooBig,
            0,
            xdp_action::XDP_TX,
        ),
        Err(outcome) => drop(&ctx, told.service, outcome),
    }
}

#[inline(always)]
fn answer(ctx: &XdpContext, told: &TooBig) -> Result<(), Outcome> {
    let network = told.network as usize;
    if network > ETHERNET_MAX {
        return Err(Outcome::DropTooBig);
    }
    // More than the one byte: the verifier takes no comparison for "at least one is there".
    let first: *mut [u8; 8] = header(ctx.data() + network, ctx.data_end())?;
    // SAFETY: `header` has checked it.
    if unsafe { (*first)[0] } >> 4 == 4 {
        answer_v4(ctx, network, told)
    } else {
        answer_v6(ctx, network, told)
    }
}

#[inline(always)]
fn answer_v4(ctx: &XdpContext, network: usize, told: &TooBig) -> Result<(), Outcome> {
    let ip: *mut Ipv4Hdr = header(ctx.data() + network, ctx.data_end())?;
    // SAFETY: `header` has checked it; so below.
    let (client, vip) = unsafe { v4_ends(ip) };
    let total = unsafe { u16::from_be_bytes((*ip).tot_len) };
    if usize::from(total) < QUOTE_V4 || !is_one_host(&client) || !tables::may_answer() {
        return Err(Outcome::DropTooBig);
    }
    make_room(
        ctx,
        told.length,
        network + QUOTE_V4,
        Ipv4Hdr::LEN + ICMP_LENGTH,
    )?;
    let message: *mut Message<5, QUOTE_V4> = header(ctx.data() + network, ctx.data_end())?;
    unsafe {
        // Destination unreachable, fragmentation needed; the MTU is the last half of the second word.
        let icmp = [u32::from_ne_bytes([3, 4, 0, 0]), told.mtu.to_be()];
        let quote = sum_quote(&raw const (*message).quote);
        let check = !checksum::fold(checksum::words_sum(&icmp) + quote);
        let check = u32::from(check)
            << if cfg!(target_endian = "little") {
                16
            } else {
                0
            };
        (&raw mut (*message).icmp).write_unaligned([icmp[0] | check, icmp[1]]);
        let length = (size_of::<Message<5, QUOTE_V4>>() as u16).to_be_bytes();
        let mut words = [
            u32::from_ne_bytes([0x45, CLASS, length[0], length[1]]),
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([TIME_TO_LIVE, parse::ICMP, 0, 0]),
            vip.v4_word(),
            client.v4_word(),
        ];
        let check = !checksum::fold(checksum::words_sum(&words));
        words[2] |= u32::from(check)
            << if cfg!(target_endian = "little") {
                16
            } else {
                0
            };
        (&raw mut (*message).ip).write_unaligned(words);
    }
    Ok(())
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext, network: usize, told: &TooBig) -> Result<(), Outcome> {
    let ip: *mut Ipv6Hdr = header(ctx.data() + network, ctx.data_end())?;
    // SAFETY: `header` has checked it; so below.
    let (client, vip) = unsafe { v6_ends(ip) }?;
    let total = usize::from(u16::from_be_bytes(unsafe { (*ip).payload_len })) + Ipv6Hdr::LEN;
    // A host sends no packets below the least MTU (RFC 8200 section 5): such a one can not be mended.
    if total <= usize::from(V6_MTU_MIN) || !is_one_host(&client) || !tables::may_answer() {
        return Err(Outcome::DropTooBig);
    }
    let mtu = told.mtu.max(u32::from(V6_MTU_MIN));
    make_room(
        ctx,
        told.length,
        network + QUOTE_V6,
        Ipv6Hdr::LEN + ICMP_LENGTH,
    )?;
    let message: *mut Message<10, QUOTE_V6> = header(ctx.data() + network, ctx.data_end())?;
    unsafe {
        let icmp = [u32::from_ne_bytes([2, 0, 0, 0]), mtu.to_be()];
        let length = ((ICMP_LENGTH + QUOTE_V6) as u16).to_be();
        let pseudo = checksum::address_sum(&vip)
            + checksum::address_sum(&client)
            + u64::from(length)
            + u64::from(u16::from_ne_bytes([0, parse::ICMPV6]));
        let quote = sum_quote(&raw const (*message).quote);
        let check = !checksum::fold(pseudo + checksum::words_sum(&icmp) + quote);
        let check = u32::from(check)
            << if cfg!(target_endian = "little") {
                16
            } else {
                0
            };
        (&raw mut (*message).icmp).write_unaligned([icmp[0] | check, icmp[1]]);
        let place = (&raw mut (*message).ip).cast::<u32>();
        let length = length.to_ne_bytes();
        place.write_unaligned(u32::from_ne_bytes([0x60 | CLASS >> 4, CLASS << 4, 0, 0]));
        place.add(1).write_unaligned(u32::from_ne_bytes([
            length[0],
            length[1],
            parse::ICMPV6,
            TIME_TO_LIVE,
        ]));
        place.add(2).cast::<Addr>().write_unaligned(vip);
        place.add(6).cast::<Addr>().write_unaligned(client);
    }
    Ok(())
}

/// The answer from its IP header on, with `W` words of that.
#[repr(C, packed)]
struct Message<const W: usize, const Q: usize> {
    ip: [u32; W],
    icmp: [u32; 2],
    quote: [u8; Q],
}

/// Cuts the frame to `kept` bytes, the end of the quote, and makes room for the headers in front of the packet. The Ethernet header (with its
/// tags) stands before them, turned round.
#[inline(always)]
fn make_room(ctx: &XdpContext, length: u32, kept: usize, headers: usize) -> Result<(), Outcome> {
    let cut = kept as i32 - length as i32;
    // SAFETY: the context is the kernel's own.
    unsafe {
        if bpf_xdp_adjust_tail(ctx.as_ptr().cast(), cut) != 0 {
            return Err(Outcome::DropTooBig);
        }
        if bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(headers as i32)) != 0 {
            return Err(Outcome::DropNoHeadroom);
        }
    }
    let old: *mut [u8; ETHERNET_MAX] = header(ctx.data() + headers, ctx.data_end())?;
    let new: *mut [u8; ETHERNET_MAX] = header(ctx.data(), ctx.data_end())?;
    // SAFETY: `header` has checked both; they do not overlap, as headers are longer.
    unsafe {
        // What follows a shorter Ethernet header is overwritten later.
        new.write_unaligned(old.read_unaligned());
        let macs = new.cast::<[[u8; 6]; 2]>();
        let [to, from] = macs.read_unaligned();
        macs.write_unaligned([from, to]);
    }
    Ok(())
}

/// Sum over the quoted bytes; their number is a multiple of four.
#[inline(always)]
unsafe fn sum_quote<const Q: usize>(quote: *const [u8; Q]) -> u64 {
    const { assert!(Q.is_multiple_of(4)) };
    let mut sum = 0;
    let mut at = 0;
    while at < Q {
        let size = if Q - at > SUM_MAX { SUM_MAX } else { Q - at };
        // SAFETY: the caller has checked all of the quote; the helper reads `size` bytes.
        sum = unsafe {
            let place = quote.cast::<u8>().add(at).cast_mut().cast();
            bpf_csum_diff(core::ptr::null_mut(), 0, place, size as u32, sum as u32)
        };
        at += size;
    }
    sum as u64 & 0xffff_ffff
}

/// Whether an error message may go to this address (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
#[inline(always)]
fn is_one_host(address: &Addr) -> bool {
    if address.is_v4() {
        let first = address.v4_word().to_ne_bytes()[0];
        return !matches!(first, 0 | 127 | 224..);
    }
    let first = address.high.to_ne_bytes()[0];
    first != 0xff && (address.high, address.low) != (0, 0)
}

//! Answering a packet with a reset in the backend's name.
//!
//! RFC 9293 section 3.10.7.1: the answer to a segment with an acknowledgement is `<SEQ=SEG.ACK><CTL=RST>`. Its
//! sequence number is exactly the client's next expected one, so the client takes it at once (RFC 5961 section 3.2).

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_tail, programs::XdpContext};
use lb_common::{checksum, steer::tcp};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    parse::{Network, Parsed},
    turn,
};

/// Turns the packet to its own answer. False (and nothing changed) for a packet that must not or can not be
/// answered so: a datagram, a reset, a segment without an acknowledgement, one behind tags, options or extension headers.
#[inline(always)]
pub fn answer(ctx: &XdpContext, packet: &Parsed) -> bool {
    if !packet.is_plain
        || packet.protocol() != crate::parse::TCP
        || packet.flags & (tcp::RST | tcp::ACK) != tcp::ACK
    {
        return false;
    }
    let network_length = match packet.network {
        Network::V4(_) => Ipv4Hdr::LEN,
        Network::V6(_) => Ipv6Hdr::LEN,
    };
    let wanted = EthHdr::LEN + network_length + TcpHdr::LEN;
    // SAFETY: the context is the kernel's own.
    if unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), wanted as i32 - packet.length as i32) }
        != 0
    {
        return false;
    }
    let start = ctx.data();
    if start + wanted > ctx.data_end() {
        return false;
    }
    // SAFETY: `wanted` bytes lie inside the frame.
    unsafe {
        turn::ethernet(start as *mut EthHdr);
        let at = (start + EthHdr::LEN) as *mut u8;
        match packet.network {
            Network::V4(_) => turn::v4(at.cast(), (Ipv4Hdr::LEN + TcpHdr::LEN) as u16),
            Network::V6(_) => turn::v6(at.cast(), TcpHdr::LEN as u16),
        }
        turn_tcp(at.add(network_length).cast(), packet);
    }
    true
}

#[inline(always)]
unsafe fn turn_tcp(header: *mut [u16; 10], packet: &Parsed) {
    unsafe {
        let old = header.read_unaligned();
        // Data offset 5 words, RST alone.
        let control = u16::from_ne_bytes([0x50, tcp::RST]);
        let mut new = [old[1], old[0], old[4], old[5], 0, 0, control, 0, 0, 0];
        let mut sum = checksum::address_sum(&packet.source)
            + checksum::address_sum(&packet.destination)
            + u64::from(u16::from(crate::parse::TCP).to_be())
            + u64::from((TcpHdr::LEN as u16).to_be());
        for word in new {
            sum += u64::from(word);
        }
        new[8] = !checksum::fold(sum);
        header.write_unaligned(new);
    }
}

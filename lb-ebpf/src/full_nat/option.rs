//! Telling the backend who the client is, in a TCP option (its layout: `lb_common::full_nat::OPTION_KIND`).
//!
//! It goes into the opening, where a server finds it by TCP_SAVED_SYN or a program of its own, and into what the client
//! sends until the backend has answered beyond its own opening: the kernel modules that make `getpeername` tell the
//! client read it from the packet that completes the handshake. Options occupy no sequence numbers, so the rest of the
//! flow is as it was. A server's answer to the option (there is none) would not be taken out again.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    Addr, checksum,
    full_nat::{OPTION_V4, OPTION_V6, OPTIONS_MAX, seen},
    outcome::Outcome,
    steer::tcp,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link, Network, Parsed, Transport, header};

/// Whether this packet of a client is to carry it.
#[inline(always)]
pub fn is_wanted(packet: &Parsed, from_server: u8) -> bool {
    matches!(packet.transport, Transport::Tcp(_))
        && packet.flags & tcp::RST == 0
        && from_server & seen::BEYOND == 0
}

/// The frame from its start to the end of the TCP header without options, of a plain packet.
#[repr(C, packed)]
struct Head<const IP: usize> {
    ethernet: [u8; EthHdr::LEN],
    ip: [u8; IP],
    tcp: [u8; TcpHdr::LEN],
}

/// As the option lies in the packet.
#[repr(C, packed)]
struct Shown<T> {
    kind: u8,
    length: u8,
    port: u16,
    address: T,
}

/// Puts it in front of the packet's other options; returns how the frame looks then. [`Outcome::ForwardOptionless`] and
/// the packet as it was where it does not fit: into the header, into `mtu`, or behind tags and other options of the
/// network header.
#[inline(always)]
pub fn insert(ctx: &XdpContext, packet: &Parsed, kind: u8, mtu: u16) -> Result<Link, Outcome> {
    let Transport::Tcp(tcp) = packet.transport else {
        return Err(Outcome::ForwardOptionless);
    };
    let tcp_at = tcp as usize - packet.link.ethernet as usize;
    let (ip_length, added, total) = match packet.network {
        // SAFETY: the headers were checked by `parse`.
        Network::V4(ip) => (Ipv4Hdr::LEN, OPTION_V4, unsafe {
            u16::from_be_bytes((*ip).tot_len)
        }),
        Network::V6(ip) => (Ipv6Hdr::LEN, OPTION_V6, unsafe {
            u16::from_be_bytes((*ip).payload_len).saturating_add(Ipv6Hdr::LEN as u16)
        }),
    };
    // SAFETY: as above.
    let words = usize::from(unsafe { *tcp.cast::<u8>().add(12) } >> 4);
    if tcp_at != EthHdr::LEN + ip_length
        || words * 4 + added > TcpHdr::LEN + OPTIONS_MAX
        || usize::from(total) + added > usize::from(mtu)
    {
        return Err(Outcome::ForwardOptionless);
    }
    let (client, port) = (packet.source, packet.source_port);
    match packet.network {
        Network::V4(_) => insert_v4(ctx, kind, &client, port),
        Network::V6(_) => insert_v6(ctx, kind, &client, port),
    }
}

#[inline(always)]
fn insert_v4(ctx: &XdpContext, kind: u8, client: &Addr, port: u16) -> Result<Link, Outcome> {
    let shown = Shown {
        kind,
        length: OPTION_V4 as u8,
        port,
        address: client.v4_word(),
    };
    let sum = checksum::address_sum(client)
        + u64::from(u16::from_ne_bytes([kind, OPTION_V4 as u8]))
        + u64::from(port);
    // The mapped prefix is in the sum and not in the packet: all ones, which is nothing in one's complement.
    let head = make_room::<{ Ipv4Hdr::LEN }, _>(ctx, shown, sum)?;
    // SAFETY: `make_room` has checked it.
    unsafe {
        let ip: *mut Ipv4Hdr = (&raw mut (*head).ip).cast();
        let old = u16::from_be_bytes((*ip).tot_len);
        let new = old.wrapping_add(OPTION_V4 as u16);
        let delta = checksum::field_delta(old.to_be(), new.to_be());
        (*ip).tot_len = new.to_be_bytes();
        (*ip).check = checksum::apply(u16::from_ne_bytes((*ip).check), delta).to_ne_bytes();
    }
    Ok(link(head.cast(), ETHERTYPE_IPV4))
}

#[inline(always)]
fn insert_v6(ctx: &XdpContext, kind: u8, client: &Addr, port: u16) -> Result<Link, Outcome> {
    let shown = Shown {
        kind,
        length: OPTION_V6 as u8,
        port,
        address: *client,
    };
    let sum = checksum::address_sum(client)
        + u64::from(u16::from_ne_bytes([kind, OPTION_V6 as u8]))
        + u64::from(port);
    let head = make_room::<{ Ipv6Hdr::LEN }, _>(ctx, shown, sum)?;
    // SAFETY: as above.
    unsafe {
        let ip: *mut Ipv6Hdr = (&raw mut (*head).ip).cast();
        let length = u16::from_be_bytes((*ip).payload_len).wrapping_add(OPTION_V6 as u16);
        (*ip).payload_len = length.to_be_bytes();
    }
    Ok(link(head.cast(), ETHERTYPE_IPV6))
}

/// How the frame lies now. Its Ethernet header has no addresses yet, which whoever sends it out gives it.
#[inline(always)]
fn link(start: *mut u8, ether_type: u16) -> Link {
    // SAFETY: `make_room` has checked the Ethernet header.
    unsafe {
        start
            .add(EthHdr::LEN - 2)
            .cast::<u16>()
            .write_unaligned(ether_type);
    }
    Link {
        ethernet: start.cast(),
        tags: 0,
        ether_type,
    }
}

/// Moves network header and TCP header (`IP` bytes and 20) to the front, and writes the option behind them. `sum` is
/// that of the option's words.
#[inline(always)]
fn make_room<const IP: usize, T>(
    ctx: &XdpContext,
    shown: Shown<T>,
    sum: u64,
) -> Result<*mut Head<IP>, Outcome> {
    let added = size_of::<Shown<T>>();
    // SAFETY: the context is the kernel's own.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(added as i32)) } != 0 {
        return Err(Outcome::DropNoHeadroom);
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    let all: *mut (Head<IP>, Shown<T>) = header(start, end)?;
    let head = all.cast::<Head<IP>>();
    // SAFETY: `header` has checked both together, and they are packed.
    unsafe {
        let new = (&raw mut (*head).ip).cast::<u32>();
        let old = new.cast::<u8>().add(added).cast::<u32>();
        let mut word = 0;
        while word < (IP + TcpHdr::LEN) / 4 {
            new.add(word)
                .write_unaligned(old.add(word).read_unaligned());
            word += 1;
        }
        head.add(1).cast::<Shown<T>>().write_unaligned(shown);
        let tcp = (&raw mut (*head).tcp).cast::<u16>();
        let (control, check) = (tcp.add(6), tcp.add(8));
        let old = control.read_unaligned();
        let [offset, flags] = old.to_ne_bytes();
        let new = u16::from_ne_bytes([offset.wrapping_add((added as u8 / 4) << 4), flags]);
        control.write_unaligned(new);
        // The length of the segment is in the pseudo-header (RFC 9293 section 3.1).
        let delta = sum + checksum::field_delta(old, new) + u64::from((added as u16).to_be());
        check.write_unaligned(checksum::apply(check.read_unaligned(), delta));
    }
    Ok(head)
}

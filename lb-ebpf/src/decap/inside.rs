//! The packet in the tunnel.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED, bpf_fib_lookup as FibParams,
    },
    helpers::generated::bpf_fib_lookup,
    programs::XdpContext,
};
use lb_common::{
    Addr, checksum,
    tunnel::{Decap, class_outside},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    outside::Tunnelled,
    parse::{Network, header, v4_ends, v6_ends},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A packet that was in a tunnel.
pub struct Packet {
    /// Its header.
    pub network: Network,
    /// Whether it is IPv4.
    pub is_v4: bool,
    source: Addr,
    destination: Addr,
}

/// Reads its header. What contradicts the outer one, or itself, is malformed.
#[inline(always)]
pub fn parse(ctx: &XdpContext, tunnelled: &Tunnelled) -> Result<Packet, Decap> {
    let bad = |_| Decap::DropMalformed;
    let at = ctx.data() + EthHdr::LEN + usize::from(tunnelled.overhead);
    // The least of both families. Its length is compared here, where the verifier sees one way only.
    let ip: *mut Ipv4Hdr = header(at, ctx.data_end()).map_err(bad)?;
    // SAFETY: `header` has checked it; so below.
    let (vihl, total) = unsafe { ((*ip).vihl, u16::from_be_bytes((*ip).tot_len)) };
    let is_v4 = vihl >> 4 == 4;
    if tunnelled.is_v4.is_some_and(|named| named != is_v4) {
        return Err(Decap::DropMalformed);
    }
    if is_v4 {
        if vihl & 0xf < 5 || total != tunnelled.length {
            return Err(Decap::DropMalformed);
        }
        let (source, destination) = unsafe { v4_ends(ip) };
        return Ok(Packet {
            network: Network::V4(ip),
            is_v4,
            source,
            destination,
        });
    }
    let ip: *mut Ipv6Hdr = header(at, ctx.data_end()).map_err(bad)?;
    let payload = unsafe { u16::from_be_bytes((*ip).payload_len) };
    if vihl >> 4 != 6 || payload.checked_add(Ipv6Hdr::LEN as u16) != Some(tunnelled.length) {
        return Err(Decap::DropMalformed);
    }
    let (source, destination) = unsafe { v6_ends(ip) }.map_err(bad)?;
    Ok(Packet {
        network: Network::V6(ip),
        is_v4,
        source,
        destination,
    })
}

/// Whether the kernel would keep the packet: its destination is an address of this host, or the host forwards
/// nothing. A packet that it would send on must not come out of a tunnel: anyone could have put it there.
#[inline(always)]
pub fn is_local(ctx: &XdpContext, packet: &Packet) -> bool {
    // SAFETY: plain integers and arrays of them.
    let mut params: FibParams = unsafe { core::mem::zeroed() };
    params.ifindex = ctx.ingress_ifindex() as u32;
    if packet.is_v4 {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = packet.source.v4_word();
        params.__bindgen_anon_4.ipv4_dst = packet.destination.v4_word();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = words(&packet.source);
        params.__bindgen_anon_4.ipv6_dst = words(&packet.destination);
    }
    // SAFETY: `params` lives on the stack, its size is given.
    let result =
        unsafe { bpf_fib_lookup(ctx.as_ptr(), &mut params, size_of::<FibParams>() as i32, 0) };
    result == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
        || result == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
}

#[inline(always)]
fn words(address: &Addr) -> [u32; 4] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(*address) }
}

/// Tells the packet what congestion it met in the tunnel.
#[inline(always)]
pub fn mark(packet: &Packet, outer: u8) -> Result<(), Decap> {
    // SAFETY: `parse` has checked the header, and nothing has moved the packet since.
    unsafe {
        match packet.network {
            Network::V4(ip) => {
                let word = ip.cast::<[u8; 2]>();
                let [first, class] = word.read_unaligned();
                let new = class_outside(class, outer).ok_or(Decap::DropCongestion)?;
                if new != class {
                    let delta = checksum::field_delta(
                        u16::from_ne_bytes([first, class]),
                        u16::from_ne_bytes([first, new]),
                    );
                    word.write_unaligned([first, new]);
                    let old = u16::from_ne_bytes((*ip).check);
                    (*ip).check = checksum::apply(old, delta).to_ne_bytes();
                }
            }
            Network::V6(ip) => {
                let word = ip.cast::<u16>();
                let first = u16::from_be(word.read_unaligned());
                let class = (first >> 4) as u8;
                let new = class_outside(class, outer).ok_or(Decap::DropCongestion)?;
                if new != class {
                    let first = first & 0xf00f | u16::from(new) << 4;
                    word.write_unaligned(first.to_be());
                }
            }
        }
    }
    Ok(())
}

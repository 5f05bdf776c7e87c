//! The outer headers: Ethernet, IPv4 or IPv6, and for UDP tunnels UDP.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    Addr,
    checksum::{fold, words_sum},
    tunnel::{
        Decap, IPV4_INSIDE, IPV6_INSIDE, UDP_LENGTH, V4_LENGTH, V6_LENGTH,
        question::{self, Header, Word},
    },
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    maps,
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_MASK, UDP, header, v4_ends, v6_ends},
};

/// A packet in a tunnel of ebb.
pub struct Tunnelled {
    /// Source of the outer header.
    pub source: Addr,
    /// Traffic class of the outer header.
    pub class: u8,
    /// Bytes of the outer headers: one of six numbers, see [`strip`].
    pub overhead: u16,
    /// Bytes that the outer headers say are inside.
    pub length: u16,
    /// Family that the outer headers name; a UDP header alone names none.
    pub is_v4: Option<bool>,
    /// Whether the node asks if the connection is here.
    pub asks: bool,
}

/// Reads them. [`Decap::Passed`] of what is no tunnel.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Result<Tunnelled, Decap> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let ethernet: *mut EthHdr = header(start, end).map_err(|_| Decap::Passed)?;
    // SAFETY: `header` has checked that it lies inside the frame; so for every header below.
    match unsafe { (*ethernet).ether_type } {
        ETHERTYPE_IPV4 => parse_v4(start + EthHdr::LEN, end),
        ETHERTYPE_IPV6 => parse_v6(start + EthHdr::LEN, end),
        _ => Err(Decap::Passed),
    }
}

#[inline(always)]
fn parse_v4(at: usize, end: usize) -> Result<Tunnelled, Decap> {
    let ip: *mut Ipv4Hdr = header(at, end).map_err(|_| Decap::Passed)?;
    unsafe {
        // Linux adds no options to a tunnel's header, nor does ebb; a fragment is the kernel's.
        if (*ip).vihl != 0x45 || u16::from_ne_bytes((*ip).frags) & FRAGMENT_MASK != 0 {
            return Err(Decap::Passed);
        }
        let tunnelled = Tunnelled {
            source: v4_ends(ip).0,
            class: *ip.cast::<u8>().add(1),
            overhead: V4_LENGTH,
            length: u16::from_be_bytes((*ip).tot_len),
            is_v4: None,
            asks: false,
        };
        let tunnelled = tunnelled.of((*ip).proto, at + Ipv4Hdr::LEN, end)?;
        if fold(words_sum(&ip.cast::<[u32; 5]>().read_unaligned())) != 0xffff {
            return Err(Decap::DropMalformed);
        }
        Ok(tunnelled)
    }
}

#[inline(always)]
fn parse_v6(at: usize, end: usize) -> Result<Tunnelled, Decap> {
    let ip: *mut Ipv6Hdr = header(at, end).map_err(|_| Decap::Passed)?;
    unsafe {
        let class = u16::from_be_bytes(ip.cast::<[u8; 2]>().read_unaligned()) >> 4;
        let tunnelled = Tunnelled {
            source: v6_ends(ip).map_err(|_| Decap::Passed)?.0,
            class: class as u8,
            overhead: V6_LENGTH,
            length: u16::from_be_bytes((*ip).payload_len).saturating_add(V6_LENGTH),
            is_v4: None,
            asks: false,
        };
        tunnelled.of((*ip).next_hdr, at + Ipv6Hdr::LEN, end)
    }
}

impl Tunnelled {
    /// With what the outer IP header's protocol and, at `at`, a UDP header say.
    #[inline(always)]
    fn of(mut self, protocol: u8, at: usize, end: usize) -> Result<Self, Decap> {
        self.is_v4 = match protocol {
            IPV4_INSIDE => Some(true),
            IPV6_INSIDE => Some(false),
            UDP => None,
            _ => return Err(Decap::Passed),
        };
        if protocol == UDP {
            let udp: *mut UdpHdr = header(at, end).map_err(|_| Decap::Passed)?;
            // SAFETY: `header` has checked it.
            unsafe {
                if u16::from_ne_bytes((*udp).dst) != maps::port() {
                    return Err(Decap::Passed);
                }
                // The checksum, where there is one, is not looked at: those inside cover all that is delivered.
                if u16::from_be_bytes((*udp).len) != self.length.wrapping_sub(self.overhead) {
                    return Err(Decap::DropMalformed);
                }
            }
            self.overhead += UDP_LENGTH;
            self = self.asking(at + UdpHdr::LEN, end);
        }
        if self.length < self.overhead {
            return Err(Decap::DropMalformed);
        }
        self.length -= self.overhead;
        Ok(self)
    }
}

/// What follows the IP header of a packet with a question.
#[repr(C)]
struct Asking {
    udp: UdpHdr,
    said: Header,
}

impl Tunnelled {
    /// With what a question at `at` says, if there is one.
    #[inline(always)]
    fn asking(mut self, at: usize, end: usize) -> Self {
        if let Ok(said) = header::<Header>(at, end) {
            // SAFETY: `header` has checked it.
            let said = unsafe { said.read_unaligned() };
            if said.says(Word::IsItHere) {
                self.asks = true;
                self.is_v4 = Some(said.is_v4());
                self.overhead += question::LENGTH;
            }
        }
        self
    }
}

/// Turns a packet with a question round: back to where it came from, with the answer that its connection is not here. The
/// checksum of its IPv4 header stays right, that of its UDP header is left out.
#[inline(always)]
pub fn turn(ctx: &XdpContext, tunnelled: &Tunnelled) -> Result<(), Decap> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let is_v4 = tunnelled.overhead == V4_LENGTH + UDP_LENGTH + question::LENGTH;
    // SAFETY: `header` has checked each.
    unsafe {
        let macs: *mut [[u8; 6]; 2] = header(start, end).map_err(|_| Decap::DropMalformed)?;
        let [to, from] = macs.read_unaligned();
        macs.write_unaligned([from, to]);
        let at = start + EthHdr::LEN;
        let at = if is_v4 {
            let ip: *mut Ipv4Hdr = header(at, end).map_err(|_| Decap::DropMalformed)?;
            let ends = (&raw mut (*ip).src_addr).cast::<[u32; 2]>();
            let [source, destination] = ends.read_unaligned();
            ends.write_unaligned([destination, source]);
            at + Ipv4Hdr::LEN
        } else {
            let ip: *mut Ipv6Hdr = header(at, end).map_err(|_| Decap::DropMalformed)?;
            let ends = ip.cast::<u64>().add(1).cast::<[Addr; 2]>();
            let [source, destination] = ends.read_unaligned();
            ends.write_unaligned([destination, source]);
            at + Ipv6Hdr::LEN
        };
        let rest: *mut Asking = header(at, end).map_err(|_| Decap::DropMalformed)?;
        (*rest).udp.check = [0; 2];
        let said = (&raw mut (*rest).said).read_unaligned();
        (&raw mut (*rest).said).write_unaligned(said.answered());
    }
    Ok(())
}

/// Takes them off: the Ethernet header moves up to the packet inside and gets its EtherType.
#[inline(always)]
pub fn strip(ctx: &XdpContext, tunnelled: &Tunnelled, is_v4: bool) -> Result<(), Decap> {
    let old: *mut [u8; 12] =
        header(ctx.data(), ctx.data_end()).map_err(|_| Decap::DropMalformed)?;
    // SAFETY: `header` has checked it; the context is the kernel's own.
    unsafe {
        let macs = old.read_unaligned();
        if bpf_xdp_adjust_head(ctx.as_ptr().cast(), i32::from(tunnelled.overhead)) != 0 {
            return Err(Decap::DropMalformed);
        }
        let new: *mut EthHdr =
            header(ctx.data(), ctx.data_end()).map_err(|_| Decap::DropMalformed)?;
        new.cast::<[u8; 12]>().write_unaligned(macs);
        (*new).ether_type = if is_v4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
    }
    Ok(())
}

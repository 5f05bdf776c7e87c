//! Putting a packet into a tunnel. What the headers hold is in `lb_common::tunnel`, where the host tests it.
//!
//! The frame is written anew in front of the packet: Ethernet, outer IP and, for `gue`, UDP, each in whole words. The
//! packet itself is not touched; tags and padding of the frame it came in do not go along or do no harm.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord},
    outcome::Outcome,
    tunnel::{self, Inner, OUTER_V4, OUTER_V4_UDP, OUTER_V6, OUTER_V6_UDP},
};
use network_types::eth::EthHdr;

use crate::{
    forward::Exit,
    parse::{self, Link, Network, Parsed, Transport, header},
    thorough::Located,
};

/// Whether the packet fits the tunnel to this backend.
#[inline(always)]
pub fn fits(packet: &Parsed, backend: &BackendRecord) -> bool {
    inner(packet.network).length <= backend.room
}

/// A packet for a tunnel.
pub struct Carried<'a> {
    /// How it came.
    pub link: Link,
    /// Its header.
    pub network: Network,
    /// All that is known of it, when its transport header is.
    pub parsed: Option<&'a Parsed>,
}

impl<'a> From<&'a Parsed> for Carried<'a> {
    #[inline(always)]
    fn from(packet: &'a Parsed) -> Self {
        Self {
            link: packet.link,
            network: packet.network,
            parsed: Some(packet),
        }
    }
}

impl From<&Located> for Carried<'_> {
    #[inline(always)]
    fn from(packet: &Located) -> Self {
        Self {
            link: packet.extent.link(packet.network),
            network: packet.network,
            parsed: None,
        }
    }
}

/// Puts the packet into a frame to the backend. On an error the packet is as it was.
#[inline(always)]
pub fn encapsulate(
    ctx: &XdpContext,
    packet: &Carried,
    service: &ServiceRecord,
    backend: &BackendRecord,
    hash: u64,
) -> Result<(), Outcome> {
    let inner = inner(packet.network);
    if inner.length > backend.room {
        return Err(Outcome::DropTooBig);
    }
    let outer = backend.outer;
    // Nothing of the packet can be read once the head has moved.
    // Not `map_or`, which is a call then: the frames along a chain of calls share 512 bytes, each rounded up to 32 (6.1).
    let check = match packet.parsed {
        Some(packet) if outer == OUTER_V6_UDP => udp_check(packet, &inner, backend, hash),
        _ => 0,
    };
    grow(ctx, &packet.link, outer)?;
    let udp = tunnel::udp_header(
        tunnel::source_port(hash),
        service.tunnel_port,
        &inner,
        check,
    );
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: `header` has checked that each lies inside the frame.
    unsafe {
        match outer {
            OUTER_V4 => {
                let frame: *mut Frame<V4> = header(start, end)?;
                write_v4(&raw mut (*frame).ip, OUTER_V4, &inner, backend);
                write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV4);
            }
            OUTER_V4_UDP => {
                let frame: *mut Frame<(V4, Udp)> = header(start, end)?;
                write_v4(&raw mut (*frame).ip.0, OUTER_V4_UDP, &inner, backend);
                (&raw mut (*frame).ip.1.0).write_unaligned(udp);
                write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV4);
            }
            OUTER_V6 => {
                let frame: *mut Frame<V6> = header(start, end)?;
                write_v6(&raw mut (*frame).ip, OUTER_V6, &inner, backend, hash);
                write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV6);
            }
            _ => {
                let frame: *mut Frame<(V6, Udp)> = header(start, end)?;
                write_v6(&raw mut (*frame).ip.0, OUTER_V6_UDP, &inner, backend, hash);
                (&raw mut (*frame).ip.1.0).write_unaligned(udp);
                write_ethernet(frame.cast(), backend, parse::ETHERTYPE_IPV6);
            }
        }
    }
    Ok(())
}

/// An IPv4 header in the words it is stored in.
#[repr(C, packed)]
pub struct V4(u64, u64, u32);

/// An IPv6 header: the first eight bytes, source, destination.
#[repr(C, packed)]
pub struct V6(u64, Addr, Addr);

/// A UDP header.
#[repr(C, packed)]
pub struct Udp(pub u64);

#[repr(C, packed)]
pub struct Frame<T> {
    ethernet: [u8; EthHdr::LEN],
    /// What follows the Ethernet header.
    pub ip: T,
}

/// What the outer header takes from a packet.
#[inline(always)]
pub fn inner(network: Network) -> Inner {
    // SAFETY: the headers were checked by `parse`; so in the functions below.
    unsafe {
        match network {
            Network::V4(ip) => Inner {
                length: u16::from_be_bytes((*ip).tot_len),
                class: *ip.cast::<u8>().add(1),
                is_v4: true,
            },
            Network::V6(ip) => {
                let first = u16::from_be_bytes(ip.cast::<[u8; 2]>().read_unaligned());
                Inner {
                    length: u16::from_be_bytes((*ip).payload_len).saturating_add(tunnel::V6_LENGTH),
                    class: (first >> 4) as u8,
                    is_v4: false,
                }
            }
        }
    }
}

/// Moves the start of the frame so that the outer headers and an untagged Ethernet header fit in front of the packet.
#[inline(always)]
pub fn grow(ctx: &XdpContext, link: &Link, overhead: u16) -> Result<(), Outcome> {
    let delta = link.tags as i32 - i32::from(overhead);
    // SAFETY: the context is the kernel's own.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), delta) } != 0 {
        return Err(Outcome::DropNoHeadroom);
    }
    Ok(())
}

/// The Ethernet header of a frame to this backend.
///
/// # Safety
/// All of it lies inside the frame; so for the other headers.
#[inline(always)]
pub unsafe fn write_ethernet(ethernet: *mut u8, backend: &BackendRecord, ether_type: u16) {
    unsafe {
        Exit::to(backend).address(ethernet.cast());
        ethernet.add(12).cast::<u16>().write_unaligned(ether_type);
    }
}

/// An outer IPv4 header; `outer` bytes in all are in front of the packet.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn write_v4(place: *mut V4, outer: u16, inner: &Inner, backend: &BackendRecord) {
    let source = backend.tunnel_source.v4_word();
    let destination = backend.address.v4_word();
    let (a, b, c) = tunnel::v4_header(outer, inner, source, destination, backend.tunnel_sum);
    unsafe { place.write_unaligned(V4(a, b, c)) };
}

/// An outer IPv6 header.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn write_v6(
    place: *mut V6,
    outer: u16,
    inner: &Inner,
    backend: &BackendRecord,
    hash: u64,
) {
    let first = tunnel::v6_header(outer, inner, hash);
    unsafe { place.write_unaligned(V6(first, backend.tunnel_source, backend.address)) };
}

/// Checksum of the outer UDP header. Over IPv4 there is none. Over IPv6 it is told from the inner checksums where
/// these cover the packet whole, and is absent where not, which RFC 6935 allows tunnels and Linux's `fou` takes.
#[inline(always)]
fn udp_check(packet: &Parsed, inner: &Inner, backend: &BackendRecord, hash: u64) -> u16 {
    if !packet.is_plain {
        return 0;
    }
    // SAFETY: as above.
    unsafe {
        let payload = match packet.network {
            Network::V4(_) => {
                let segment = inner.length - tunnel::V4_LENGTH;
                if !is_covered(packet.transport, segment) {
                    return 0;
                }
                tunnel::payload_sum_v4(
                    &packet.source,
                    &packet.destination,
                    packet.protocol(),
                    segment,
                )
            }
            Network::V6(ip) => {
                if !is_covered(packet.transport, inner.length - tunnel::V6_LENGTH) {
                    return 0;
                }
                let first = ip.cast::<u32>().read_unaligned();
                tunnel::payload_sum_v6(first, packet.protocol(), (*ip).hop_limit)
            }
        };
        tunnel::udp_check(
            backend.tunnel_sum,
            tunnel::source_port(hash),
            inner,
            payload,
        )
    }
}

/// Whether the transport checksum covers all `segment` bytes behind the IP header.
#[inline(always)]
unsafe fn is_covered(transport: Transport, segment: u16) -> bool {
    match transport {
        Transport::Tcp(_) => true,
        Transport::Udp(udp) => unsafe {
            (*udp).check != [0; 2] && u16::from_be_bytes((*udp).len) == segment
        },
    }
}

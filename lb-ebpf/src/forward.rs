//! Rewriting a packet and sending it on.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibParams,
        xdp_action,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
    programs::XdpContext,
};
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord},
    checksum,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::parse::{Network, Parsed, Transport};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where the kernel would send a packet to a client.
pub enum Route {
    /// Out by this interface with these MAC addresses.
    Known {
        /// Destination and source.
        ethernet: [u8; 12],
        /// Interface.
        ifindex: u32,
    },
    /// It is to be forwarded, and the kernel has to find the neighbour first.
    NoNeighbour,
    /// It is not to be forwarded.
    NotForwarded,
}

/// Asks the kernel's routes and neighbours for the way to a destination, as from the service's address.
#[inline(always)]
pub fn route(
    ctx: &XdpContext,
    protocol: u8,
    network: Network,
    destination: &Addr,
    service: &ServiceRecord,
) -> Route {
    // SAFETY: plain integers and arrays of them.
    let mut params: FibParams = unsafe { core::mem::zeroed() };
    params.l4_protocol = protocol;
    params.ifindex = ctx.ingress_ifindex() as u32;
    match network {
        Network::V4(_) => {
            params.family = AF_INET;
            params.__bindgen_anon_3.ipv4_src = service.vip.v4_word();
            params.__bindgen_anon_4.ipv4_dst = destination.v4_word();
        }
        Network::V6(_) => {
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src = words(&service.vip);
            params.__bindgen_anon_4.ipv6_dst = words(destination);
        }
    }
    // SAFETY: `params` lives on the stack, its size is given.
    let result =
        unsafe { bpf_fib_lookup(ctx.as_ptr(), &mut params, size_of::<FibParams>() as i32, 0) };
    if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        let [a, b, c, d, e, f] = params.dmac;
        let [g, h, i, j, k, l] = params.smac;
        Route::Known {
            ethernet: [a, b, c, d, e, f, g, h, i, j, k, l],
            ifindex: params.ifindex,
        }
    } else if result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        Route::NoNeighbour
    } else {
        Route::NotForwarded
    }
}

#[inline(always)]
fn words(address: &Addr) -> [u32; 4] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(*address) }
}

/// Turns the packet to a backend: address, port, time to live, checksums. False when its time to live is used up;
/// then it is as it was.
#[inline(always)]
pub fn rewrite_destination(packet: &Parsed, backend: &BackendRecord) -> bool {
    if !hop(packet.network, backend.to_backend, true) {
        return false;
    }
    let port = if backend.port == 0 {
        packet.destination_port
    } else {
        backend.port
    };
    // SAFETY: the headers were checked by `parse`, and nothing has moved the packet since.
    unsafe {
        set_destination(packet.network, &backend.address);
        let delta =
            u64::from(backend.to_backend) + checksum::field_delta(packet.destination_port, port);
        packet.transport.ports().add(1).write_unaligned(port);
        amend(packet.transport, delta);
    }
    true
}

/// The port that the client of this answer knows, network order as loaded: a service on several ports keeps them.
#[inline(always)]
pub fn service_port(packet: &Parsed, service: &ServiceRecord) -> u16 {
    if service.last_port == 0 {
        service.port
    } else {
        packet.source_port
    }
}

/// Turns a backend's answer to one of the service. With `hop` it also takes one off the time to live.
#[inline(always)]
pub fn rewrite_source(
    packet: &Parsed,
    service: &ServiceRecord,
    backend: &BackendRecord,
    counts: bool,
) -> bool {
    if !hop(packet.network, backend.to_client, counts) {
        return false;
    }
    // SAFETY: as above.
    unsafe {
        set_source(packet.network, &service.vip);
        let port = service_port(packet, service);
        let delta = u64::from(backend.to_client) + checksum::field_delta(packet.source_port, port);
        packet.transport.ports().write_unaligned(port);
        amend(packet.transport, delta);
    }
    true
}

/// Amends the transport checksum. A datagram without one keeps none; one that comes out as 0 is sent as all ones
/// (RFC 768).
#[inline(always)]
unsafe fn amend(transport: Transport, delta: u64) {
    // SAFETY: the header was checked by `parse`, and nothing has moved the packet since.
    unsafe {
        match transport {
            Transport::Tcp(tcp) => {
                let old = u16::from_ne_bytes((*tcp).check);
                (*tcp).check = checksum::apply(old, delta).to_ne_bytes();
            }
            Transport::Udp(udp) => {
                let old = u16::from_ne_bytes((*udp).check);
                if old != 0 {
                    let new = checksum::apply(old, delta);
                    (*udp).check = if new == 0 {
                        [0xff; 2]
                    } else {
                        new.to_ne_bytes()
                    };
                }
            }
        }
    }
}

/// Stores an address of the header's family.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn set_source(network: Network, address: &Addr) {
    unsafe {
        match network {
            Network::V4(ip) => (*ip).src_addr = address.v4_word().to_ne_bytes(),
            Network::V6(ip) => store(ip.cast::<u8>().add(8), address),
        }
    }
}

/// As [`set_source`].
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn set_destination(network: Network, address: &Addr) {
    unsafe {
        match network {
            Network::V4(ip) => (*ip).dst_addr = address.v4_word().to_ne_bytes(),
            Network::V6(ip) => store(ip.cast::<u8>().add(24), address),
        }
    }
}

#[inline(always)]
unsafe fn store(place: *mut u8, address: &Addr) {
    let place = place.cast::<u64>();
    // SAFETY: the caller's place has 16 bytes.
    unsafe {
        place.write_unaligned(address.high);
        place.add(1).write_unaligned(address.low);
    }
}

/// The network header's own part: checksum for a changed address, time to live when this node counts as a hop.
#[inline(always)]
pub fn hop(network: Network, address_delta: u32, counts: bool) -> bool {
    // SAFETY: the headers were checked by `parse`.
    unsafe {
        match network {
            Network::V4(ip) => hop_v4(ip, address_delta, counts),
            Network::V6(ip) => hop_v6(ip, counts),
        }
    }
}

#[inline(always)]
unsafe fn hop_v4(ip: *mut Ipv4Hdr, address_delta: u32, counts: bool) -> bool {
    unsafe {
        let mut delta = u64::from(address_delta);
        if counts {
            if (*ip).ttl <= 1 {
                return false;
            }
            let old = u16::from_ne_bytes([(*ip).ttl, (*ip).proto]);
            (*ip).ttl -= 1;
            delta += checksum::field_delta(old, u16::from_ne_bytes([(*ip).ttl, (*ip).proto]));
        }
        (*ip).check = checksum::apply(u16::from_ne_bytes((*ip).check), delta).to_ne_bytes();
    }
    true
}

#[inline(always)]
unsafe fn hop_v6(ip: *mut Ipv6Hdr, counts: bool) -> bool {
    unsafe {
        if counts {
            if (*ip).hop_limit <= 1 {
                return false;
            }
            (*ip).hop_limit -= 1;
        }
    }
    true
}

/// Sends the frame out by `ifindex` with these MAC addresses.
#[inline(always)]
pub fn out(ctx: &XdpContext, packet: &Parsed, ethernet: &[u8; 12], ifindex: u32) -> u32 {
    // SAFETY: the Ethernet header was checked by `parse`.
    unsafe { address(packet.ethernet, ethernet) };
    leave(ctx, ifindex)
}

/// Puts these MAC addresses into an Ethernet header: destination, source.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn address(header: *mut EthHdr, ethernet: &[u8; 12]) {
    unsafe { header.cast::<[u8; 12]>().write_unaligned(*ethernet) };
}

/// Sends the frame as it is out by `ifindex`.
#[inline(always)]
pub fn leave(ctx: &XdpContext, ifindex: u32) -> u32 {
    if ifindex == ctx.ingress_ifindex() as u32 {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

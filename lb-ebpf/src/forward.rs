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
    abi::{BackendRecord, ServiceRecord, backend_flags},
    checksum,
    outcome::Outcome,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    maps,
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link, Network, Parsed, Transport},
    trace, vlan,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where the kernel would send a packet to a client.
// Not an enum with the exit in one of its cases: where there is none LLVM spills what is in a register by chance, which
// the verifier refuses.
pub struct Route {
    /// Who sends it.
    pub by: By,
    /// How, when it is [`By::Xdp`].
    pub exit: Exit,
}

/// Who sends a packet to a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The way is known.
    Xdp,
    /// It is to be forwarded, and the kernel has to do it: it has to find the neighbour first, or the way is over a
    /// device that XDP can not send by.
    Kernel,
    /// It is not to be forwarded.
    Nobody,
}

/// In words of eight bytes: two halves of an address are stored as one, which the verifier wants aligned on the stack.
#[repr(C, align(8))]
struct Aligned(FibParams);

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
    let mut aligned: Aligned = unsafe { core::mem::zeroed() };
    let params = &mut aligned.0;
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
    let result = unsafe { bpf_fib_lookup(ctx.as_ptr(), params, size_of::<FibParams>() as i32, 0) };
    let mut exit = Exit {
        macs: macs(params),
        ifindex: params.ifindex,
        vlan: 0,
    };
    let by = if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        go_below_vlan(&mut exit)
    } else if result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        By::Kernel
    } else {
        By::Nobody
    };
    Route { by, exit }
}

/// Destination and source MAC, as in [`Exit::macs`].
// Volatile: else two halves are loaded as one word, which is not aligned there, and the verifier refuses it on the stack.
#[inline(always)]
fn macs(params: &FibParams) -> (u64, u32) {
    let halves = |address: &[u8; 6]| {
        let place = address.as_ptr().cast::<u16>();
        // SAFETY: six bytes at an even offset of an aligned structure.
        unsafe {
            [
                place.read_volatile().to_ne_bytes(),
                place.add(1).read_volatile().to_ne_bytes(),
                place.add(2).read_volatile().to_ne_bytes(),
            ]
        }
    };
    let ([[a, b], [c, d], [e, f]], [[g, h], [i, j], [k, l]]) =
        (halves(&params.dmac), halves(&params.smac));
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    )
}

/// By a VLAN device is by the interface below it, with its tag.
#[inline(always)]
fn go_below_vlan(exit: &mut Exit) -> By {
    if maps::control().vlans == 0 {
        return By::Xdp;
    }
    // SAFETY: plain words, which the daemon replaces one entry at a time.
    let Some(device) = (unsafe { maps::VLANS.get(exit.ifindex) }) else {
        return By::Xdp;
    };
    if device.parent == 0 {
        return By::Kernel;
    }
    (exit.ifindex, exit.vlan) = (device.parent, device.tag as u16);
    By::Xdp
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
    let port = backend_port(packet.destination_port, backend);
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

/// The backend's port for packets to this port of the service, network order as loaded: one without a port of its own
/// keeps the service's.
#[inline(always)]
pub fn backend_port(service_port: u16, backend: &BackendRecord) -> u16 {
    if backend.port == 0 {
        service_port
    } else {
        backend.port
    }
}

/// The port that clients know for packets from this port of a backend, network order as loaded: a service on several
/// ports keeps them.
#[inline(always)]
pub fn service_port(backend_port: u16, service: &ServiceRecord) -> u16 {
    if service.last_port == 0 {
        service.port
    } else {
        backend_port
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
        let port = service_port(packet.source_port, service);
        let delta = u64::from(backend.to_client) + checksum::field_delta(packet.source_port, port);
        packet.transport.ports().write_unaligned(port);
        amend(packet.transport, delta);
    }
    true
}

/// Amends the transport checksum. A datagram without one keeps none; one that comes out as 0 is sent as all ones
/// (RFC 768).
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn amend(transport: Transport, delta: u64) {
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

/// Whether the time to live lets a packet go no further.
#[inline(always)]
pub fn is_spent(network: Network) -> bool {
    // SAFETY: the headers were checked by `parse`.
    let left = unsafe {
        match network {
            Network::V4(ip) => (*ip).ttl,
            Network::V6(ip) => (*ip).hop_limit,
        }
    };
    left <= 1
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

/// How a frame leaves.
#[derive(Clone, Copy)]
pub struct Exit {
    /// Destination and source MAC as two words, as they lie in the frame. (An array would be copied byte by byte.)
    pub macs: (u64, u32),
    /// Interface.
    pub ifindex: u32,
    /// 802.1Q tag; 0 for none.
    pub vlan: u16,
}

impl Exit {
    /// To a backend.
    #[inline(always)]
    pub fn to(backend: &BackendRecord) -> Self {
        let is_tagged = backend.flags & backend_flags::TAGGED != 0;
        let words = backend.ethernet.as_ptr();
        // SAFETY: twelve bytes.
        let macs = unsafe {
            (
                words.cast::<u64>().read_unaligned(),
                words.add(8).cast::<u32>().read_unaligned(),
            )
        };
        Self {
            macs,
            ifindex: backend.ifindex,
            // On the record's other cache line, which a frame without a tag does not need.
            vlan: if is_tagged { backend.vlan } else { 0 },
        }
    }

    /// Puts the MAC addresses into an Ethernet header.
    ///
    /// # Safety
    /// The header lies inside the frame.
    #[inline(always)]
    pub unsafe fn address(&self, header: *mut EthHdr) {
        let words = header.cast::<u8>();
        unsafe {
            words.cast::<u64>().write_unaligned(self.macs.0);
            words.add(8).cast::<u32>().write_unaligned(self.macs.1);
        }
    }
}

/// Sends the frame out. Nothing of the packet may be touched afterwards.
///
/// With a tag of its own the exit's tag replaces all that the frame came with. Without one, the frame keeps its tags
/// where it leaves by the interface it came by, and loses them where it leaves by another.
#[inline(always)]
pub fn out(ctx: &XdpContext, link: &Link, exit: &Exit) -> Result<u32, Outcome> {
    let is_same = exit.ifindex == ctx.ingress_ifindex() as u32;
    if exit.vlan == 0 && (link.tags == 0 || is_same) {
        // SAFETY: the Ethernet header was checked by `parse`.
        unsafe { exit.address(link.ethernet) };
    } else {
        vlan::retag(ctx, link.tags, link.ether_type, exit)?;
    }
    Ok(leave(is_same, exit.ifindex))
}

/// Sends a frame out that is as it has to be.
#[inline(always)]
pub fn leave_by(ctx: &XdpContext, ifindex: u32) -> u32 {
    leave(ifindex == ctx.ingress_ifindex() as u32, ifindex)
}

/// Sends a frame without tags out by an exit without one.
#[inline(always)]
pub fn out_untagged(ctx: &XdpContext, link: &Link, exit: &Exit) -> u32 {
    // SAFETY: the Ethernet header was checked by `parse`.
    unsafe { exit.address(link.ethernet) };
    leave_by(ctx, exit.ifindex)
}

/// Sends a frame out that was written anew for its backend, without tags.
#[inline(always)]
pub fn out_of_tunnel(ctx: &XdpContext, backend: &BackendRecord) -> Result<u32, Outcome> {
    let exit = Exit::to(backend);
    let is_same = exit.ifindex == ctx.ingress_ifindex() as u32;
    if exit.vlan != 0 {
        let is_v4 = backend.address.is_v4();
        let ether_type = if is_v4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        vlan::retag(ctx, 0, ether_type, &exit)?;
    }
    Ok(leave(is_same, exit.ifindex))
}

#[inline(always)]
fn leave(is_same: bool, ifindex: u32) -> u32 {
    if is_same {
        return xdp_action::XDP_TX;
    }
    trace::leaves_by(ifindex);
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

//! Whether a connection is here, as the kernel's sockets say.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
    programs::XdpContext,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    inside::Packet,
    parse::{Network, header},
};

const TCP: u8 = 6;
/// `TCP_TIME_WAIT` and `TCP_LISTEN` of the kernel's include/net/tcp_states.h.
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`: the sockets of the network namespace that the interface is in.
const HERE: u64 = -1_i32 as u64;

/// What the kernel looks a socket up by: addresses and ports of a packet to it, in a row. In a packet without options they
/// are just so.
#[repr(C, packed)]
struct Ends<T> {
    addresses: [T; 2],
    ports: [u16; 2],
}

/// Whether a connection to which this packet belongs is here, or may be. In each of its states it counts, also while it is
/// being opened, but not when it has ended (`TIME_WAIT`): the client may have used its port again for another one, on
/// another host. If not, its stragglers are answered by a reset there, and nothing is lost: both sides have had all of it. A
/// listener counts only where the packet brings it a SYN cookie of its own, which is all that there is of such a connection so far.
///
/// Of anything but plain TCP it is not known, and yes is the answer: the packet stays here.
#[inline(always)]
pub fn has(ctx: &XdpContext, packet: &Packet) -> bool {
    let end = ctx.data_end();
    // SAFETY: `inside::parse` has checked the IP header, `header` the rest.
    unsafe {
        match packet.network {
            Network::V4(ip) => {
                if (*ip).vihl != 0x45 || (*ip).proto != TCP {
                    return true;
                }
                let at = ip as usize;
                let (Ok(ends), Ok(tcp)) = (
                    header::<Ends<u32>>(at + 12, end),
                    header::<TcpHdr>(at + Ipv4Hdr::LEN, end),
                ) else {
                    return true;
                };
                finds(
                    ctx,
                    ends.cast(),
                    size_of::<Ends<u32>>(),
                    (ip.cast(), Ipv4Hdr::LEN),
                    tcp,
                )
            }
            Network::V6(ip) => {
                if (*ip).next_hdr != TCP {
                    return true;
                }
                let at = ip as usize;
                let (Ok(ends), Ok(tcp)) = (
                    header::<Ends<[u32; 4]>>(at + 8, end),
                    header::<TcpHdr>(at + Ipv6Hdr::LEN, end),
                ) else {
                    return true;
                };
                let size = size_of::<Ends<[u32; 4]>>();
                finds(ctx, ends.cast(), size, (ip.cast(), Ipv6Hdr::LEN), tcp)
            }
        }
    }
}

/// Whether there is a socket that takes the packet with these ends, and these headers.
///
/// # Safety
/// The pointers are to that many bytes of the frame.
#[inline(always)]
unsafe fn finds(
    ctx: &XdpContext,
    ends: *mut u8,
    size: usize,
    (ip, length): (*mut u8, usize),
    tcp: *mut TcpHdr,
) -> bool {
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr().cast(), ends.cast(), size as u32, HERE, 0);
        if socket.is_null() {
            return false;
        }
        // The kernel's view of a socket, which is read word by word.
        let state = (&raw const (*socket).state).read_volatile();
        let is_here = match state {
            TIME_WAIT => false,
            LISTEN => cookie(socket, (ip, length), tcp),
            _ => true,
        };
        bpf_sk_release(socket.cast());
        is_here
    }
}

/// Whether the packet ends a handshake that the listener has answered with a cookie.
///
/// # Safety
/// As above; the socket is one that was looked up.
#[inline(always)]
unsafe fn cookie(
    listener: *mut bpf_sock,
    (ip, length): (*mut u8, usize),
    tcp: *mut TcpHdr,
) -> bool {
    let (socket, length) = (listener.cast(), length as u32);
    let size = TcpHdr::LEN as u32;
    unsafe { bpf_tcp_check_syncookie(socket, ip.cast(), length, tcp.cast(), size) == 0 }
}

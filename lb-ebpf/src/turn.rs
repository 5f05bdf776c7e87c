//! Turning a packet's lower headers round, so that it goes back to where it came from.

use lb_common::checksum;
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

/// Of packets that begin here.
const TIME_TO_LIVE: u8 = 64;

/// Exchanges the MAC addresses.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn ethernet(header: *mut EthHdr) {
    let macs = header.cast::<[u8; 12]>();
    unsafe {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = macs.read_unaligned();
        macs.write_unaligned([g, h, i, j, k, l, a, b, c, d, e, f]);
    }
}

/// Exchanges the addresses; the packet has `total` bytes from the header on.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn v4(ip: *mut Ipv4Hdr, total: u16) {
    unsafe {
        core::ptr::swap(&raw mut (*ip).src_addr, &raw mut (*ip).dst_addr);
        let length = total.to_be_bytes();
        let old_hop = u16::from_ne_bytes([(*ip).ttl, (*ip).proto]);
        let new_hop = u16::from_ne_bytes([TIME_TO_LIVE, (*ip).proto]);
        let delta = checksum::field_delta(
            u16::from_ne_bytes((*ip).tot_len),
            u16::from_ne_bytes(length),
        ) + checksum::field_delta(old_hop, new_hop);
        (*ip).tot_len = length;
        (*ip).ttl = TIME_TO_LIVE;
        (*ip).check = checksum::apply(u16::from_ne_bytes((*ip).check), delta).to_ne_bytes();
    }
}

/// Exchanges the addresses; `payload` bytes follow the header.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn v6(ip: *mut Ipv6Hdr, payload: u16) {
    unsafe {
        let words = ip.cast::<u64>();
        for half in [1, 2] {
            let (a, b) = (
                words.add(half).read_unaligned(),
                words.add(half + 2).read_unaligned(),
            );
            words.add(half).write_unaligned(b);
            words.add(half + 2).write_unaligned(a);
        }
        (*ip).payload_len = payload.to_be_bytes();
        (*ip).hop_limit = TIME_TO_LIVE;
    }
}

//! Answering an echo request (RFC 792, RFC 4443 section 4.1) by turning it round.

use lb_common::{Addr, checksum};
use network_types::ip::Ipv4Hdr;

use super::Message;
use crate::{parse::Network, turn};

/// Type of an echo request.
pub const REQUEST_V4: u8 = 8;
/// Type of an echo request in ICMPv6.
pub const REQUEST_V6: u8 = 128;
/// Type of an echo reply.
const REPLY_V4: u8 = 0;
/// Type of an echo reply in ICMPv6.
const REPLY_V6: u8 = 129;

/// Turns the request to its answer. False (and nothing changed) where it must not be answered, or not so: from no
/// single host's address (RFC 1122 section 3.2.1.3, RFC 4443 section 2.4 e), with a group's MAC address, or with IPv4
/// options, some of which would have to be turned round as well (RFC 1122 section 3.2.2.6).
#[inline(always)]
pub fn answer(message: &Message) -> bool {
    let packet = &message.packet;
    // SAFETY: the headers were checked by `parse`.
    unsafe {
        if (*message.link.ethernet.cast::<u8>()) & 1 != 0 || !is_one_host(&packet.ends.0) {
            return false;
        }
        let reply = match packet.network {
            Network::V4(ip) => {
                if packet.extent.header != Ipv4Hdr::LEN {
                    return false;
                }
                turn::v4(ip, u16::from_be_bytes((*ip).tot_len));
                REPLY_V4
            }
            Network::V6(ip) => {
                turn::v6(ip, u16::from_be_bytes((*ip).payload_len));
                REPLY_V6
            }
        };
        turn::ethernet(message.link.ethernet);
        set_kind(message, reply);
    }
    true
}

#[inline(always)]
unsafe fn set_kind(message: &Message, kind: u8) {
    unsafe {
        let words = message.header.cast::<u16>();
        let old = words.read_unaligned();
        let [_, code] = old.to_ne_bytes();
        let new = u16::from_ne_bytes([kind, code]);
        words.write_unaligned(new);
        let check = words.add(1);
        let delta = checksum::field_delta(old, new);
        check.write_unaligned(checksum::apply(check.read_unaligned(), delta));
    }
}

/// Whether an address can be a single host's: not unspecified, not a group's, not this network's or loopback.
#[inline(always)]
fn is_one_host(address: &Addr) -> bool {
    if address.is_v4() {
        let [first, ..] = address.v4_word().to_ne_bytes();
        return first != 0 && first != 127 && first < 224;
    }
    let [first, ..] = address.high.to_ne_bytes();
    first != 0xff && (address.high != 0 || address.low != 0)
}

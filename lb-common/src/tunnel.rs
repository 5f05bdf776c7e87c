//! Outer headers of the tunnel modes, word by word: IP in IP (RFC 2003, RFC 2473, RFC 4213) and an IP packet directly
//! behind a UDP header (generic UDP encapsulation, variant 1, draft-ietf-intarea-gue section 4; the same bytes are
//! what Linux calls `fou` with `ipproto 4` or `41`).
//!
//! The outer header does not depend on what is inside but for length, traffic class and (for the ports) the flow, so
//! the sum over the rest of it is made once, when the backend's record is.

pub mod question;

use crate::{
    Addr,
    abi::mode,
    checksum::{address_sum, fold},
};

/// Length of an outer IPv4 header in bytes.
pub const V4_LENGTH: u16 = 20;
/// Length of an outer IPv6 header in bytes.
pub const V6_LENGTH: u16 = 40;
/// Length of a UDP header in bytes.
pub const UDP_LENGTH: u16 = 8;

/// UDP port that backends decapsulate at unless told otherwise (IANA: GUE), host order.
pub const PORT_DEFAULT: u16 = 6080;

/// Least MTU of an IPv6 link (RFC 8200 section 5): no host takes a smaller one from a packet-too-big.
pub const V6_MTU_MIN: u16 = 1280;

/// IP protocol number of an IPv4 packet inside.
pub const IPV4_INSIDE: u8 = 4;
/// IP protocol number of an IPv6 packet inside.
pub const IPV6_INSIDE: u8 = 41;
const UDP: u8 = 17;

/// Time to live of the outer header. The inner one stays as it is: as with the other modes in which the backend
/// answers directly, the node is no hop of the packet.
const TIME_TO_LIVE: u8 = 64;
/// "Don't fragment", alone in its word, network order as loaded.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Bytes that a tunnel adds in front of a packet.
#[inline(always)]
pub const fn overhead(mode: u8, outer_is_v4: bool) -> u16 {
    let ip = if outer_is_v4 { V4_LENGTH } else { V6_LENGTH };
    if mode == mode::GUE {
        ip + UDP_LENGTH
    } else {
        ip
    }
}

/// What [`overhead`] says of an outer IPv4 header alone, and so on: each says which headers there are.
pub const OUTER_V4: u16 = overhead(mode::IPIP, true);
/// IPv4 and UDP.
pub const OUTER_V4_UDP: u16 = overhead(mode::GUE, true);
/// IPv6.
pub const OUTER_V6: u16 = overhead(mode::IPIP, false);
/// IPv6 and UDP.
pub const OUTER_V6_UDP: u16 = overhead(mode::GUE, false);

/// The protocol number of the outermost IP header, by the length of all outer headers.
#[inline(always)]
pub const fn protocol(outer: u16, inner_is_v4: bool) -> u8 {
    if outer == OUTER_V4_UDP || outer == OUTER_V6_UDP {
        UDP
    } else if inner_is_v4 {
        IPV4_INSIDE
    } else {
        IPV6_INSIDE
    }
}

/// Sum of what is the same in every outer header to a backend: of an IPv4 header all but length, traffic class and
/// protocol; for UDP over IPv6 the addresses, protocol and port that its checksum covers.
pub const fn fixed_sum(source: &Addr, destination: &Addr, port: u16) -> u32 {
    let ends = address_sum(source) + address_sum(destination);
    let rest = if destination.is_v4() {
        // The mapped prefixes in both addresses sum to a multiple of 0xffff, which is zero here.
        u16::from_ne_bytes([0x45, 0]) as u64
            + DONT_FRAGMENT as u64
            + u16::from_ne_bytes([TIME_TO_LIVE, 0]) as u64
    } else {
        u16::from_ne_bytes([0, UDP]) as u64 + port as u64
    };
    fold(ends + rest) as u32
}

/// Source port of a flow in the UDP tunnel, network order as loaded: 49152 to 65535, the same for all packets of the
/// flow, so that the backend's receive-side scaling spreads flows and keeps each in order.
#[inline(always)]
pub const fn source_port(hash: u64) -> u16 {
    (0xc000 | (hash as u16 & 0x3fff)).to_be()
}

/// What the outer header takes from the packet inside.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// Its length, from its IP header on.
    pub length: u16,
    /// Its type of service or traffic class, copied whole (RFC 6040 section 4.1, normal mode: with the congestion bits).
    pub class: u8,
    /// Its family.
    pub is_v4: bool,
}

/// An outer IPv4 header, as words to be stored one after the other.
///
/// `outer`: length of this header and of what stands between it and the packet ([`overhead`]). Identification 0, "don't fragment" set (RFC 6864 section 4.1). `fixed_sum` is the backend's.
#[inline(always)]
pub const fn v4_header(
    outer: u16,
    inner: &Inner,
    source: u32,
    destination: u32,
    fixed: u32,
) -> (u64, u64, u32) {
    let length = outer.wrapping_add(inner.length).to_be();
    let class = u16::from_ne_bytes([0, inner.class]);
    let protocol = u16::from_ne_bytes([0, protocol(outer, inner.is_v4)]);
    let check = !fold(fixed as u64 + length as u64 + class as u64 + protocol as u64);
    let first = u16::from_ne_bytes([0x45, 0]) | class;
    let hop = u16::from_ne_bytes([TIME_TO_LIVE, 0]) | protocol;
    (
        words4(first, length, 0, DONT_FRAGMENT),
        words2(words2_16(hop, check), source),
        destination,
    )
}

/// The first eight bytes of an outer IPv6 header; the addresses follow. The flow label is the flow's (RFC 6438), so
/// that routers spread flows over equal paths.
#[inline(always)]
pub const fn v6_header(outer: u16, inner: &Inner, hash: u64) -> u64 {
    let length = outer - V6_LENGTH;
    let first = 0x6000_0000 | ((inner.class as u32) << 20) | ((hash >> 14) as u32 & 0xf_ffff);
    let hop = u16::from_ne_bytes([protocol(outer, inner.is_v4), TIME_TO_LIVE]);
    words2(
        first.to_be(),
        words2_16((length.wrapping_add(inner.length)).to_be(), hop),
    )
}

/// The UDP header. `check` as it lies in memory; 0 for none.
#[inline(always)]
pub const fn udp_header(source_port: u16, port: u16, inner: &Inner, check: u16) -> u64 {
    let length = UDP_LENGTH.wrapping_add(inner.length).to_be();
    words4(source_port, port, length, check)
}

/// Checksum of a UDP header in front of a packet whose 16-bit words sum to `payload`, over IPv6. Never 0.
#[inline(always)]
pub const fn udp_check(fixed: u32, source_port: u16, inner: &Inner, payload: u64) -> u16 {
    let length = UDP_LENGTH.wrapping_add(inner.length).to_be() as u64;
    // Once in the header, once in the pseudo-header.
    let check = !fold(fixed as u64 + source_port as u64 + 2 * length + payload);
    if check == 0 { 0xffff } else { check }
}

/// Sum over an IPv4 packet without options, or an IPv6 packet without extension headers, told from its header alone:
/// its checksums are right, so the IPv4 header sums to zero, and header and data of its transport to the complement
/// of the pseudo-header (what the kernel calls local checksum offload).
///
/// `first`: the first four bytes of the IPv6 header; `hop`: the two bytes with next header and hop limit; both as
/// loaded. `segment`: bytes behind the IP header.
#[inline(always)]
pub const fn payload_sum_v4(source: &Addr, destination: &Addr, protocol: u8, segment: u16) -> u64 {
    let pseudo = address_sum(source)
        + address_sum(destination)
        + u16::from_ne_bytes([0, protocol]) as u64
        + segment.to_be() as u64;
    !fold(pseudo) as u64
}

/// The same of an IPv6 packet, where addresses and length are in the header and in the pseudo-header and cancel out.
#[inline(always)]
pub const fn payload_sum_v6(first: u32, protocol: u8, hop_limit: u8) -> u64 {
    let header = (first & 0xffff) as u64
        + (first >> 16) as u64
        + u16::from_ne_bytes([protocol, hop_limit]) as u64;
    header + (!u16::from_ne_bytes([0, protocol])) as u64
}

#[inline(always)]
const fn words2_16(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        (first as u32) << 16 | second as u32
    }
}

#[inline(always)]
const fn words2(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

#[inline(always)]
const fn words4(a: u16, b: u16, c: u16, d: u16) -> u64 {
    words2(words2_16(a, b), words2_16(c, d))
}

/// Congestion bits (RFC 3168 section 5), the lower two of the traffic class.
pub mod ecn {
    /// Which they are.
    pub const MASK: u8 = 3;
    /// The transport does not know them.
    pub const NOT_CAPABLE: u8 = 0;
    /// Capable, the sender's second mark.
    pub const ECT_1: u8 = 1;
    /// Capable.
    pub const ECT_0: u8 = 2;
    /// Congestion was met.
    pub const MET: u8 = 3;
}

/// Traffic class of a packet that leaves a tunnel (RFC 6040 section 4.2, figure 4): its own, with what the way through
/// the tunnel had to say of congestion. `None`: it is to be dropped, because its transport would not hear of it.
#[inline(always)]
pub const fn class_outside(inner: u8, outer: u8) -> Option<u8> {
    match (inner & ecn::MASK, outer & ecn::MASK) {
        (ecn::NOT_CAPABLE, ecn::MET) => None,
        (ecn::NOT_CAPABLE, _) => Some(inner),
        (_, ecn::MET) => Some(inner | ecn::MET),
        (ecn::ECT_0, ecn::ECT_1) => Some(inner & !ecn::MASK | ecn::ECT_1),
        _ => Some(inner),
    }
}

/// What became of a packet at the program that decapsulates: exactly one each, in the order of its counters.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decap {
    /// Out of no tunnel of ebb; to the kernel as it was.
    Passed,
    /// Its outer headers are off, what was inside went to the kernel.
    Decapsulated,
    /// From a source that is not allowed; dropped.
    DropSource,
    /// To an address that is not this host's; dropped, or the kernel would send it on.
    DropNotLocal,
    /// A length or checksum of the outer headers is wrong, or what is inside is no IP packet; dropped.
    DropMalformed,
    /// Met congestion that its transport would not hear of (RFC 6040); dropped.
    DropCongestion,
    /// The node asked for a connection that is not here: sent back to it.
    SentBack,
}

impl Decap {
    /// All, with their names in JSON.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Passed, "passed"),
        (Self::Decapsulated, "decapsulated"),
        (Self::DropSource, "drop_source"),
        (Self::DropNotLocal, "drop_not_local"),
        (Self::DropMalformed, "drop_malformed"),
        (Self::DropCongestion, "drop_congestion"),
        (Self::SentBack, "sent_back"),
    ];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;
    use crate::checksum::sum_bytes;

    fn bytes((a, b, c): (u64, u64, u32)) -> Vec<u8> {
        [&a.to_ne_bytes()[..], &b.to_ne_bytes(), &c.to_ne_bytes()].concat()
    }

    fn same(a: u16, b: u16) -> bool {
        a % 0xffff == b % 0xffff
    }

    proptest! {
        #[test]
        fn an_ipv4_header_is_whole(
            source: [u8; 4], destination: [u8; 4], length in 20u16..9000, class: u8, is_v4: bool, udp: bool,
        ) {
            let (from, to) = (Addr::from_v4(source), Addr::from_v4(destination));
            let mode = if udp { mode::GUE } else { mode::IPIP };
            let inner = Inner { length, class, is_v4 };
            let fixed = fixed_sum(&from, &to, 6080u16.to_be());
            let header = bytes(v4_header(overhead(mode, true), &inner, from.v4_word(), to.v4_word(), fixed));
            let total = (length + overhead(mode, true)).to_be_bytes();
            let protocol = if udp { 17 } else if is_v4 { 4 } else { 41 };
            prop_assert_eq!(&header[..10], &[0x45, class, total[0], total[1], 0, 0, 0x40, 0, 64, protocol]);
            prop_assert_eq!(&header[12..16], &source);
            prop_assert_eq!(&header[16..], &destination);
            prop_assert_eq!(fold(sum_bytes(&header)), 0xffff);
        }

        #[test]
        fn an_ipv6_header_is_whole(length in 20u16..9000, class: u8, is_v4: bool, udp: bool, hash: u64) {
            let mode = if udp { mode::GUE } else { mode::IPIP };
            let header = v6_header(overhead(mode, false), &Inner { length, class, is_v4 }, hash).to_ne_bytes();
            let payload = (length + if udp { 8 } else { 0 }).to_be_bytes();
            let protocol = if udp { 17 } else if is_v4 { 4 } else { 41 };
            prop_assert_eq!(header[0], 0x60 | class >> 4);
            prop_assert_eq!(header[1] >> 4, class & 15);
            prop_assert_eq!(&header[4..], &[payload[0], payload[1], protocol, 64]);
        }

        /// The sum that is told from the inner header alone is the sum over the packet.
        #[test]
        fn payload_sums_are_those_of_the_packet(
            from: [u8; 16], to: [u8; 16], protocol: u8, hop: u8, first: [u8; 4], mut data in prop::collection::vec(any::<u8>(), 20..200),
        ) {
            let segment = data.len() as u16;
            let check = |pseudo: u64, data: &mut Vec<u8>| {
                data[16..18].fill(0);
                let check = !fold(pseudo + sum_bytes(data));
                data[16..18].copy_from_slice(&check.to_ne_bytes());
            };
            let tail = sum_bytes(&[0, protocol]) + sum_bytes(&segment.to_be_bytes());
            check(sum_bytes(&from) + sum_bytes(&to) + tail, &mut data);
            let length = segment.to_be_bytes();
            let header = [&first[..], &length, &[protocol, hop], &from, &to].concat();
            let whole = fold(sum_bytes(&header) + sum_bytes(&data));
            prop_assert!(same(whole, fold(payload_sum_v6(u32::from_ne_bytes(first), protocol, hop))));

            let (from, to) = ([from[0], from[1], from[2], from[3]], [to[0], to[1], to[2], to[3]]);
            check(sum_bytes(&from) + sum_bytes(&to) + tail, &mut data);
            let sum = payload_sum_v4(&Addr::from_v4(from), &Addr::from_v4(to), protocol, segment);
            // The IPv4 header sums to zero.
            prop_assert!(same(fold(sum_bytes(&data)), fold(sum)));
        }

        #[test]
        fn source_ports_are_dynamic_ones(hash: u64) {
            prop_assert!(u16::from_be(source_port(hash)) >= 49152);
        }
    }

    #[test]
    fn congestion_comes_out_of_the_tunnel() {
        // RFC 6040, figure 4: rows by inner bits, columns by outer Not-ECT, ECT(0), ECT(1), CE.
        let rows = [
            (0, [Some(0), Some(0), Some(0), None]),
            (2, [Some(2), Some(2), Some(1), Some(3)]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (inner, outside) in rows {
            for (outer, wanted) in [0, 2, 1, 3].into_iter().zip(outside) {
                let found = class_outside(0xb8 | inner, outer);
                assert_eq!(found, wanted.map(|bits| 0xb8 | bits), "{inner} in {outer}");
            }
        }
    }

    #[test]
    fn counters_are_in_order() {
        for (place, (kind, _)) in Decap::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }
}

//! Internet checksums once more (RFC 1071), by another road than the one under test: big-endian words, summed whole,
//! modulo 65535.
//!
//! A correct header's words, checksum included, sum to a multiple of 65535. The remainder of an incorrect one is how
//! wrong it is, and every correct incremental update (RFC 1624) leaves that remainder alone.

use super::view::{Family, View};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Sum of the 16-bit words of `parts` modulo 65535. Every part but the last has an even length; an odd last byte is the
/// upper half of a word.
pub fn remainder(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        let pairs = part.chunks_exact(2);
        if let [last] = pairs.remainder() {
            sum += u64::from(*last) << 8;
        }
        for pair in pairs {
            sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
    }
    (sum % 65_535) as u16
}

/// The checksum of `parts`, in which its own field is zero.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    0xffff - remainder(parts)
}

/// How wrong the IPv4 header's checksum is; 0: right. IPv6 has none.
pub fn network_error(frame: &[u8], view: &View) -> u16 {
    match view.family {
        Family::V4 => remainder(&[&frame[view.network..view.network + view.header]]),
        Family::V6 => 0,
    }
}

/// How wrong the transport's checksum is; 0: right. Of a fragment it is the error of what is there.
pub fn transport_error(frame: &[u8], view: &View) -> u16 {
    let segment = &frame[view.transport..view.network + view.total];
    if view.protocol == ICMP {
        return remainder(&[segment]);
    }
    let addresses = match view.family {
        Family::V4 => &frame[view.network + 12..view.network + 20],
        Family::V6 => &frame[view.network + 8..view.network + 40],
    };
    let length = (segment.len() as u32).to_be_bytes();
    remainder(&[addresses, &length, &[0, view.protocol], segment])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(remainder(&[&bytes, &checksum(&[&bytes]).to_be_bytes()]), 0);
    }

    #[test]
    fn odd_end_is_padded() {
        assert_eq!(remainder(&[&[1, 2, 3]]), 0x0102 + 0x0300);
    }
}

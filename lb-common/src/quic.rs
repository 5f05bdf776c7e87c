//! QUIC as far as a balancer may read it (RFC 8999, RFC 9000 section 17), and server ids in connection ids.
//!
//! A connection id that a server has chosen names the server: after a first octet, whose upper three bits say which of
//! several configurations it follows, comes the server id in plain text, then whatever the server likes
//! (draft-ietf-quic-load-balancers-21 sections 3 and 5.2). `0b111` in those bits says that it names nobody.

use crate::abi::ServiceRecord;

/// Bytes of a datagram that are looked at. Every QUIC packet of a client is longer: header protection takes its sample
/// from behind the fourth byte of the packet number (RFC 9001 section 5.4.2).
pub const LOOKED_AT: usize = 16;

/// Longest server id, in bytes.
pub const SERVER_ID_MAX: u8 = 8;

/// Configuration that a connection id must not have to be routable.
pub const UNROUTABLE: u8 = 0b111;

const LONG: u8 = 0x80;
const VERSION_2: u32 = 0x6b33_43cf;

/// What the beginning of a datagram says. Plain words: the place of an `Option`'s missing value would be copied about
/// unset, which the verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Whether it is an Initial or a 0-RTT packet.
    pub opens: bool,
    /// Of those: a digest of the connection id, which the client has chosen for a new connection, and a server for one
    /// that goes on.
    pub digest: u32,
    /// Whether its connection id has a server id.
    pub is_named: bool,
    /// That server id.
    pub server: u64,
}

/// Reads the first bytes of a datagram to this service.
#[inline(always)]
pub fn header(service: &ServiceRecord, bytes: &[u8; LOOKED_AT]) -> Header {
    if bytes[0] & LONG == 0 {
        return Header {
            opens: false,
            digest: 0,
            is_named: names(service, bytes[1]),
            server: server_id(service, word(bytes, 2)),
        };
    }
    let version = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    let length = bytes[5];
    // The second version has the types one further on (RFC 9369 section 3.2): Initial is 1, 0-RTT 2.
    let kind = (bytes[0] >> 4) & 3;
    let kind = if version == VERSION_2 {
        kind.wrapping_sub(1) & 3
    } else {
        kind
    };
    Header {
        opens: kind < 2 && length >= 8,
        digest: digest(word(bytes, 6)),
        is_named: length > service.quic_length && names(service, bytes[6]),
        server: server_id(service, word(bytes, 7)),
    }
}

/// Eight bytes from `at`, as one number in network order.
#[inline(always)]
fn word(bytes: &[u8; LOOKED_AT], at: usize) -> u64 {
    u64::from_be_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
        bytes[at + 4],
        bytes[at + 5],
        bytes[at + 6],
        bytes[at + 7],
    ])
}

/// Whether a connection id with this first octet has a server id.
#[inline(always)]
const fn names(service: &ServiceRecord, first: u8) -> bool {
    first >> 5 == service.quic_rotation && service.quic_length.wrapping_sub(1) < SERVER_ID_MAX
}

/// The server id in front of these bytes of a connection id.
#[inline(always)]
const fn server_id(service: &ServiceRecord, next: u64) -> u64 {
    next >> (64_u32.wrapping_sub(8 * service.quic_length as u32) & 63)
}

#[inline(always)]
const fn digest(word: u64) -> u32 {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(length: u8, rotation: u8) -> ServiceRecord {
        ServiceRecord {
            quic_length: length,
            quic_rotation: rotation,
            ..ServiceRecord::default()
        }
    }

    const SHORT: [u8; 16] = [0x40, 0x2b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

    #[test]
    fn a_short_header_names_its_server() {
        for (length, id) in [
            (1, 1),
            (2, 0x0102),
            (4, 0x0102_0304),
            (8, 0x0102_0304_0506_0708),
        ] {
            let found = header(&service(length, 1), &SHORT);
            assert_eq!((found.is_named, found.server), (true, id), "{length}");
            assert!(!found.opens);
        }
        assert!(
            !header(&service(4, 0), &SHORT).is_named,
            "another configuration"
        );
        assert!(!header(&service(0, 1), &SHORT).is_named, "no server ids");
    }

    #[test]
    fn long_headers() {
        let long = |first: u8, version: u32, length: u8| {
            let [a, b, c, d] = version.to_be_bytes();
            header(
                &service(2, 1),
                &[first, a, b, c, d, length, 0x2f, 9, 8, 7, 6, 5, 4, 3, 2, 1],
            )
        };
        for (what, first, version, opens) in [
            ("Initial", 0xc0, 1, true),
            ("0-RTT", 0xd0, 1, true),
            ("Handshake", 0xe0, 1, false),
            ("Retry", 0xf0, 1, false),
            ("Initial of version 2", 0xd0, VERSION_2, true),
            ("0-RTT of version 2", 0xe0, VERSION_2, true),
            ("Handshake of version 2", 0xf0, VERSION_2, false),
        ] {
            let found = long(first, version, 8);
            assert_eq!(found.opens, opens, "{what}");
            assert_eq!((found.is_named, found.server), (true, 0x0908), "{what}");
        }
        assert!(!long(0xe0, 1, 2).is_named, "too short to hold one");
        assert_eq!(
            long(0xc0, 1, 8).digest,
            long(0xd0, 1, 8).digest,
            "one connection"
        );
    }
}

//! Frames with IP and TCP headers, made and read by hand.

use std::{io, net::IpAddr};

use super::{Segment, flag};
use crate::lab::address::{CLIENT_MAC, ROUTER_MAC};

/// Length of the Ethernet header, bytes.
pub(super) const ETHERNET: usize = 14;
const TCP: usize = 20;
const TCP_PROTOCOL: u8 = 6;
const HOP_LIMIT: u8 = 64;
/// Largest segment asked for and sent.
const SEGMENT_MAX: u16 = 1400;

/// A frame from the client to its router with `segment` in it.
pub(super) fn frame(source: IpAddr, target: IpAddr, segment: &Segment) -> io::Result<Vec<u8>> {
    let tcp = tcp(source, target, segment)?;
    let (ethertype, ip) = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            (libc::ETH_P_IP, v4(source.octets(), target.octets(), &tcp)?)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => (
            libc::ETH_P_IPV6,
            v6(source.octets(), target.octets(), &tcp)?,
        ),
        _ => return Err(io::Error::other("addresses of two families")),
    };
    let ethertype = (ethertype as u16).to_be_bytes();
    Ok([&ROUTER_MAC[..], &CLIENT_MAC, &ethertype, &ip, &tcp].concat())
}

/// RFC 791, section 3.1.
fn v4(source: [u8; 4], target: [u8; 4], tcp: &[u8]) -> io::Result<Vec<u8>> {
    let mut ip = vec![0; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&length(20 + tcp.len())?);
    ip[6] = 0x40; // do not fragment
    ip[8] = HOP_LIMIT;
    ip[9] = TCP_PROTOCOL;
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&target);
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(ip)
}

/// RFC 8200, section 3.
fn v6(source: [u8; 16], target: [u8; 16], tcp: &[u8]) -> io::Result<Vec<u8>> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(length(tcp.len())?);
    ip.extend([TCP_PROTOCOL, HOP_LIMIT]);
    ip.extend(source);
    ip.extend(target);
    Ok(ip)
}

/// Header and data, with the checksum over both and the pseudo header (RFC 9293, section 3.1).
fn tcp(source: IpAddr, target: IpAddr, segment: &Segment) -> io::Result<Vec<u8>> {
    // The largest segment size is said once, in the SYN.
    let [high, low] = SEGMENT_MAX.to_be_bytes();
    let options: &[u8] = if segment.flags & flag::SYN != 0 {
        &[2, 4, high, low]
    } else {
        &[]
    };
    let mut tcp = Vec::with_capacity(TCP + options.len() + segment.payload.len());
    tcp.extend_from_slice(&segment.source_port.to_be_bytes());
    tcp.extend_from_slice(&segment.target_port.to_be_bytes());
    tcp.extend_from_slice(&segment.sequence.to_be_bytes());
    tcp.extend_from_slice(&segment.acknowledgement.to_be_bytes());
    tcp.push(u8::try_from((TCP + options.len()) / 4).unwrap_or(5) << 4);
    tcp.push(segment.flags);
    tcp.extend_from_slice(&[0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(options);
    tcp.extend_from_slice(&segment.payload);
    // IPv6 has the same fields in another order and width (RFC 8200, section 8.1), which sum up to the same.
    let length = length(tcp.len())?;
    let sum = checksum(&[
        &octets(source),
        &octets(target),
        &[0, TCP_PROTOCOL],
        &length,
        &tcp,
    ]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    Ok(tcp)
}

fn length(bytes: usize) -> io::Result<[u8; 2]> {
    let length = u16::try_from(bytes).map_err(io::Error::other)?;
    Ok(length.to_be_bytes())
}

/// The bytes of an address as they are on the wire.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sender and the segment of a frame, if it is TCP without IPv6 extension headers.
pub(super) fn parse(frame: &[u8]) -> Option<(IpAddr, Segment)> {
    let ip = frame.get(ETHERNET..)?;
    let half =
        |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (protocol, source, tcp) = if ip.first()? >> 4 == 4 {
        let header = usize::from(ip.first()? & 0xf) * 4;
        let source = <[u8; 4]>::try_from(ip.get(12..16)?).ok()?;
        let tcp = ip.get(header..usize::from(half(ip, 2)?))?;
        (*ip.get(9)?, source.into(), tcp)
    } else {
        let source = <[u8; 16]>::try_from(ip.get(8..24)?).ok()?;
        let tcp = ip.get(40..40 + usize::from(half(ip, 4)?))?;
        (*ip.get(6)?, source.into(), tcp)
    };
    if protocol != TCP_PROTOCOL {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    let segment = Segment {
        source_port: half(tcp, 0)?,
        target_port: half(tcp, 2)?,
        sequence: word(4)?,
        acknowledgement: word(8)?,
        flags: *tcp.get(13)?,
        payload: tcp.get(data..)?.to_vec(),
    };
    Some((source, segment))
}

/// The internet checksum over the pieces, each of even length but the last.
fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_known_header() {
        // The example of RFC 1071, section 3: the sum of these words is 0xddf2.
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(checksum(&[&[0xff]]), !0xff00);
    }

    #[test]
    fn what_was_made_can_be_read() {
        let segment = Segment {
            source_port: 40_000,
            target_port: 80,
            sequence: 0x0102_0304,
            acknowledgement: 0x0506_0708,
            flags: flag::ACK | flag::PSH,
            payload: b"odd".to_vec(),
        };
        for (source, target) in [
            ("10.1.0.200", "203.0.113.10"),
            ("fd00:1::c8", "2001:db8::10"),
        ] {
            let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
            let frame = frame(source, target, &segment).unwrap();
            assert_eq!(parse(&frame), Some((source, segment.clone())));
        }
    }
}

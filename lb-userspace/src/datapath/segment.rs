//! TCP segments of one header, made by hand.

use std::net::{IpAddr, SocketAddr};

/// Time to live of what begins here.
const TIME_TO_LIVE: u8 = 64;

/// Protocol number of TCP.
const TCP: u8 = 6;

/// Length of a TCP header without options.
const TCP_LENGTH: u16 = 20;

/// What a segment says. Numbers in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Source.
    pub from: SocketAddr,
    /// Destination, of the same family.
    pub to: SocketAddr,
    /// [`lb_common::steer::tcp`] flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
}

impl Segment {
    /// The IP packet, with its checksums; `None` when the addresses are of different families.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let mut tcp = self.header();
        let mut pseudo = Vec::new();
        let mut packet;
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = (20 + TCP_LENGTH).to_be_bytes();
                // Not to be fragmented.
                packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, TIME_TO_LIVE, TCP, 0, 0];
                packet.extend(from.octets());
                packet.extend(to.octets());
                let sum = checksum(&[&packet]);
                packet[10..12].copy_from_slice(&sum);
                pseudo.extend(from.octets());
                pseudo.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = TCP_LENGTH.to_be_bytes();
                packet = vec![0x60, 0, 0, 0, high, low, TCP, TIME_TO_LIVE];
                packet.extend(from.octets());
                packet.extend(to.octets());
                pseudo.extend(from.octets());
                pseudo.extend(to.octets());
            }
            _ => return None,
        }
        // The sums of both pseudo-headers: the fields that IPv6 has wider are zero there (RFC 9293 section 3.1).
        pseudo.extend([0, TCP]);
        pseudo.extend(TCP_LENGTH.to_be_bytes());
        let sum = checksum(&[&pseudo, &tcp]);
        tcp[16..18].copy_from_slice(&sum);
        packet.extend(tcp);
        Some(packet)
    }

    /// The same in an Ethernet frame from nobody to nobody, as a program that steers by addresses takes it.
    pub fn frame(&self) -> Option<Vec<u8>> {
        let ether_type: [u8; 2] = if self.to.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        let packet = self.packet()?;
        Some([&[0; 12][..], &ether_type, &packet].concat())
    }

    fn header(&self) -> [u8; 20] {
        let mut header = [0; 20];
        header[0..2].copy_from_slice(&self.from.port().to_be_bytes());
        header[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        header[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        header[8..12].copy_from_slice(&self.acknowledged.to_be_bytes());
        header[12] = 0x50;
        header[13] = self.flags;
        header
    }
}

/// Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checksum over data that has it inside is zero.
    #[test]
    fn checksums_are_right() {
        for (from, to) in [
            ("198.51.100.7:4711", "203.0.113.10:80"),
            ("[2001:db8::7]:4711", "[2001:db8:1::10]:443"),
        ] {
            let segment = Segment {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                flags: 4,
                sequence: 0xfedc_ba98,
                acknowledged: 0x0123_4567,
            };
            let packet = segment.packet().unwrap();
            let ip = packet.len() - usize::from(TCP_LENGTH);
            let addresses = if segment.to.is_ipv4() {
                assert_eq!(checksum(&[&packet[..ip]]), [0, 0]);
                &packet[12..20]
            } else {
                &packet[8..40]
            };
            let rest = [0, TCP, 0, TCP_LENGTH as u8];
            assert_eq!(checksum(&[addresses, &rest, &packet[ip..]]), [0, 0]);
            assert_eq!(segment.frame().unwrap().len(), 14 + packet.len());
        }
    }
}

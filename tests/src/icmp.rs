//! ICMP messages of both families as bytes and back, every checksum recomputed.

use std::net::{IpAddr, Ipv6Addr};

use lb_common::checksum::{fold, sum_bytes};

use crate::packets::{Segment, pseudo_sum};

/// IP protocol number of ICMP.
const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// An ICMP message in an Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// 802.1Q tags, outermost first: EtherType and control information each.
    pub tags: Vec<(u16, u16)>,
    /// Source.
    pub from: IpAddr,
    /// Destination, of the same family.
    pub to: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4 options, a multiple of 4 bytes.
    pub ip_options: Vec<u8>,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The second half of the header.
    pub word: [u8; 4],
    /// What follows: data, or the quoted packet.
    pub body: Vec<u8>,
}

impl Message {
    /// A message with this type and code.
    pub fn new(from: IpAddr, to: IpAddr, kind: u8, code: u8, body: &[u8]) -> Self {
        Self {
            to_mac: [2, 0, 0, 0, 0, 1],
            from_mac: [2, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            from,
            to,
            ttl: 60,
            ip_options: Vec::new(),
            kind,
            code,
            word: [0x12, 0x34, 0x05, 0x14],
            body: body.to_vec(),
        }
    }

    /// The frame, with right checksums.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.to_mac, self.from_mac].concat();
        for (ether_type, control) in &self.tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        let mut icmp = vec![self.kind, self.code, 0, 0];
        icmp.extend(self.word);
        icmp.extend(&self.body);
        let check = !fold(sum_bytes(&icmp) + self.pseudo(icmp.len()));
        icmp[2..4].copy_from_slice(&check.to_ne_bytes());
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                let length = 20 + self.ip_options.len();
                let mut header = vec![0x40 | (length / 4) as u8, 0xc0];
                header.extend(((length + icmp.len()) as u16).to_be_bytes());
                header.extend([0x56, 0x78, 0, 0, self.ttl, ICMP, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                header.extend(&self.ip_options);
                let check = !fold(sum_bytes(&header));
                header[10..12].copy_from_slice(&check.to_ne_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((icmp.len() as u16).to_be_bytes());
                frame.extend([ICMPV6, self.ttl]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => panic!("a message between two families"),
        }
        frame.extend(icmp);
        frame
    }

    fn pseudo(&self, length: usize) -> u64 {
        match self.from {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => pseudo_sum(self.from, self.to, ICMPV6, length),
        }
    }

    /// Reads a frame back; an error names what is wrong with it, checksums included.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let half = |at: usize| {
            frame
                .get(at..at + 2)
                .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
                .ok_or(format!("ends before byte {}", at + 2))
        };
        let mut at = 12;
        let mut tags = Vec::new();
        while matches!(half(at)?, 0x8100 | 0x88a8) {
            tags.push((half(at)?, half(at + 2)?));
            at += 4;
        }
        let ip = frame.get(at + 2..).ok_or("no IP header")?;
        let (from, to, ttl, ip_options, icmp) = match half(at)? {
            0x0800 => split_v4(ip)?,
            0x86dd => split_v6(ip)?,
            other => return Err(format!("EtherType {other:#x}")),
        };
        let mut message = Self::new(from, to, icmp[0], icmp[1], &icmp[8..]);
        message.to_mac.copy_from_slice(&frame[..6]);
        message.from_mac.copy_from_slice(&frame[6..12]);
        message.word.copy_from_slice(&icmp[4..8]);
        (message.tags, message.ttl, message.ip_options) = (tags, ttl, ip_options);
        if fold(sum_bytes(icmp) + message.pseudo(icmp.len())) != 0xffff {
            return Err("wrong ICMP checksum".into());
        }
        Ok(message)
    }

    /// The packet that an error quotes, as a segment; its MAC addresses, which no quote has, are those of a new one.
    ///
    /// # Errors
    /// It is none, or its checksums are wrong.
    pub fn quoted(&self) -> Result<Segment, String> {
        let ether_type = if self.from.is_ipv4() {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        let quoted = Segment::parse(&[&[0; 12][..], &ether_type, &self.body].concat())?;
        let Segment {
            to_mac, from_mac, ..
        } = Segment::new(quoted.from, quoted.to, quoted.flags);
        Ok(Segment {
            to_mac,
            from_mac,
            ..quoted
        })
    }
}

/// Source, destination, time to live, options and ICMP message.
type Split<'a> = (IpAddr, IpAddr, u8, Vec<u8>, &'a [u8]);

fn split_v4(ip: &[u8]) -> Result<Split<'_>, String> {
    let length = usize::from(ip.first().ok_or("no IPv4 header")? & 0xf) * 4;
    let header = ip.get(..length).ok_or("short IPv4 header")?;
    if length < 20 || fold(sum_bytes(header)) != 0xffff {
        return Err("wrong IPv4 header checksum".into());
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total != ip.len() || total < length + 8 || header[9] != ICMP {
        return Err(format!(
            "{total} of {} bytes of protocol {}",
            ip.len(),
            header[9]
        ));
    }
    let address =
        |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes"));
    let options = header[20..].to_vec();
    Ok((address(12), address(16), header[8], options, &ip[length..]))
}

fn split_v6(ip: &[u8]) -> Result<Split<'_>, String> {
    let header = ip.get(..40).ok_or("short IPv6 header")?;
    let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if total != ip.len() || total < 48 || header[6] != ICMPV6 {
        return Err(format!(
            "{total} of {} bytes of protocol {}",
            ip.len(),
            header[6]
        ));
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
        IpAddr::from(Ipv6Addr::from(bytes))
    };
    Ok((address(8), address(24), header[7], Vec::new(), &ip[40..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back_and_a_flipped_bit_is_found() {
        for (from, to) in [
            ("192.0.2.1", "203.0.113.10"),
            ("2001:db8::1", "2001:db8::10"),
        ] {
            let message = Message::new(from.parse().unwrap(), to.parse().unwrap(), 3, 4, b"quoted");
            let frame = message.build();
            assert_eq!(Message::parse(&frame).unwrap(), message);
            // The first 8 bytes of an IPv6 header are covered by nothing.
            let covered = if message.from.is_ipv4() { 14 } else { 22 };
            for at in covered..frame.len() {
                let mut broken = frame.clone();
                broken[at] ^= 0x10;
                assert!(Message::parse(&broken).is_err(), "byte {at}");
            }
        }
    }
}

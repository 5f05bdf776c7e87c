//! UDP datagrams as frames and back, for rows of "packet in, verdict, packet out".

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::checksum::{fold, sum_bytes};

use crate::packets::pseudo_sum;

/// IP protocol number of UDP.
const UDP: u8 = 17;

/// A UDP datagram in an untagged Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Whether it has a checksum (RFC 768: over IPv4 it need not).
    pub checked: bool,
    /// Data.
    pub data: Vec<u8>,
}

impl Datagram {
    /// One with some data between two addresses of one family.
    pub fn new(from: SocketAddr, to: SocketAddr) -> Self {
        Self {
            to_mac: [2, 0, 0, 0, 0, 1],
            from_mac: [2, 0, 0, 0, 0, 2],
            from,
            to,
            ttl: 64,
            checked: true,
            data: b"a question".to_vec(),
        }
    }

    /// With this data.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// The frame, with right checksums.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        let udp = self.udp();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend(((20 + udp.len()) as u16).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, UDP, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let check = !fold(sum_bytes(&header));
                header[10..12].copy_from_slice(&check.to_ne_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((udp.len() as u16).to_be_bytes());
                frame.extend([UDP, self.ttl]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => panic!("a datagram between two families"),
        }
        frame.extend(udp);
        frame
    }

    fn udp(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.from.port().to_be_bytes());
        udp.extend(self.to.port().to_be_bytes());
        udp.extend(((8 + self.data.len()) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.data);
        if self.checked {
            let sum = pseudo_sum(self.from.ip(), self.to.ip(), UDP, udp.len()) + sum_bytes(&udp);
            let check = match !fold(sum) {
                0 => u16::MAX,
                check => check,
            };
            udp[6..8].copy_from_slice(&check.to_ne_bytes());
        }
        udp
    }

    /// Reads a frame back; an error names what is wrong with it, checksums included.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let mac = |from: usize| <[u8; 6]>::try_from(&frame[from..from + 6]).expect("six bytes");
        if frame.len() < 42 {
            return Err(format!("{} bytes", frame.len()));
        }
        let (from_ip, to_ip, ttl, protocol, at, end) = match frame[12..14] {
            [0x08, 0x00] => {
                let header = &frame[14..34];
                if fold(sum_bytes(header)) != 0xffff {
                    return Err("wrong IPv4 header checksum".into());
                }
                let ip =
                    |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("4"));
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (ip(12), ip(16), header[8], header[9], 34, 14 + total)
            }
            [0x86, 0xdd] if frame.len() >= 62 => {
                let header = &frame[14..54];
                let ip = |at: usize| {
                    let bytes = <[u8; 16]>::try_from(&header[at..at + 16]).expect("16");
                    IpAddr::from(Ipv6Addr::from(bytes))
                };
                let total = usize::from(u16::from_be_bytes([header[4], header[5]]));
                (ip(8), ip(24), header[7], header[6], 54, 54 + total)
            }
            ref other => return Err(format!("ethertype {other:02x?}")),
        };
        let udp = &frame[at..];
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        if protocol != UDP || end != frame.len() || length != udp.len() {
            return Err(format!("protocol {protocol}, {end} and {length} bytes"));
        }
        let checked = udp[6..8] != [0, 0];
        if checked && fold(pseudo_sum(from_ip, to_ip, UDP, length) + sum_bytes(udp)) != 0xffff {
            return Err("wrong UDP checksum".into());
        }
        let half = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        Ok(Self {
            to_mac: mac(0),
            from_mac: mac(6),
            from: SocketAddr::new(from_ip, half(0)),
            to: SocketAddr::new(to_ip, half(2)),
            ttl,
            checked,
            data: udp[8..].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        for (from, to) in [
            ("192.0.2.1:1234", "203.0.113.10:53"),
            ("[2001:db8::1]:1234", "[2001:db8::10]:53"),
        ] {
            for checked in [true, false] {
                let mut datagram = Datagram::new(from.parse().unwrap(), to.parse().unwrap());
                datagram.checked = checked;
                assert_eq!(Datagram::parse(&datagram.build()).unwrap(), datagram);
            }
            let mut broken = Datagram::new(from.parse().unwrap(), to.parse().unwrap()).build();
            *broken.last_mut().unwrap() ^= 1;
            assert!(Datagram::parse(&broken).is_err());
        }
    }
}

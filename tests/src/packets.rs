//! TCP segments as bytes and back, for rows of "packet in, verdict, packet out".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::checksum::{fold, sum_bytes};

/// A TCP segment in an Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
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
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Window.
    pub window: u16,
    /// TCP options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv4 options, a multiple of 4 bytes.
    pub ip_options: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

impl Segment {
    /// A segment without data between two addresses of one family.
    pub fn new(from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        Self {
            to_mac: [2, 0, 0, 0, 0, 1],
            from_mac: [2, 0, 0, 0, 0, 2],
            from,
            to,
            ttl: 64,
            flags,
            sequence: 1000,
            acknowledged: 0,
            window: 64240,
            options: Vec::new(),
            ip_options: Vec::new(),
            data: Vec::new(),
        }
    }

    /// With these sequence and acknowledgement numbers.
    pub fn at(mut self, sequence: u32, acknowledged: u32) -> Self {
        (self.sequence, self.acknowledged) = (sequence, acknowledged);
        self
    }

    /// With this data.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// With this time to live.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The frame, with right checksums.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        let tcp = self.tcp();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.v4(&mut frame, from, to, tcp.len()),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((tcp.len() as u16).to_be_bytes());
                frame.extend([6, self.ttl]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => panic!("a segment between two families"),
        }
        frame.extend(tcp);
        frame
    }

    fn v4(&self, frame: &mut Vec<u8>, from: Ipv4Addr, to: Ipv4Addr, tcp_length: usize) {
        frame.extend([0x08, 0x00]);
        let header_length = 20 + self.ip_options.len();
        let mut header = vec![0x40 | (header_length / 4) as u8, 0];
        header.extend(((header_length + tcp_length) as u16).to_be_bytes());
        header.extend([0x12, 0x34, 0x40, 0, self.ttl, 6, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(&self.ip_options);
        let check = !fold(sum_bytes(&header));
        header[10..12].copy_from_slice(&check.to_ne_bytes());
        frame.extend(header);
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([(((20 + self.options.len()) / 4) as u8) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.data);
        let check = !fold(pseudo_sum(6, self.from.ip(), self.to.ip(), tcp.len()) + sum_bytes(&tcp));
        tcp[16..18].copy_from_slice(&check.to_ne_bytes());
        tcp
    }

    /// Reads a frame back; an error names what is wrong with it, checksums included.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let part =
            |from: usize, to: usize| frame.get(from..to).ok_or(format!("ends before byte {to}"));
        let mac = |from: usize| {
            part(from, from + 6).map(|bytes| <[u8; 6]>::try_from(bytes).expect("six bytes"))
        };
        let (ip_options, from_ip, to_ip, ttl, tcp_at, end) = match part(12, 14)? {
            [0x08, 0x00] => {
                let length = usize::from(part(14, 15)?[0] & 0xf) * 4;
                let header = part(14, 14 + length)?;
                if fold(sum_bytes(header)) != 0xffff {
                    return Err("wrong IPv4 header checksum".into());
                }
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let address = |at: usize| {
                    IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes"))
                };
                (
                    header[20..].to_vec(),
                    address(12),
                    address(16),
                    header[8],
                    14 + length,
                    14 + total,
                )
            }
            [0x86, 0xdd] => {
                let header = part(14, 54)?;
                let total = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let address = |at: usize| {
                    IpAddr::from(Ipv6Addr::from(
                        <[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes"),
                    ))
                };
                (
                    Vec::new(),
                    address(8),
                    address(24),
                    header[7],
                    54,
                    54 + total,
                )
            }
            other => return Err(format!("ethertype {other:02x?}")),
        };
        if end != frame.len() {
            return Err(format!(
                "the IP header says {end} bytes, the frame has {}",
                frame.len()
            ));
        }
        let tcp = part(tcp_at, end)?;
        if tcp.len() < 20
            || fold(pseudo_sum(6, from_ip, to_ip, tcp.len()) + sum_bytes(tcp)) != 0xffff
        {
            return Err("wrong TCP checksum".into());
        }
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let data_at = usize::from(tcp[12] >> 4) * 4;
        Ok(Self {
            to_mac: mac(0)?,
            from_mac: mac(6)?,
            from: SocketAddr::new(from_ip, half(0)),
            to: SocketAddr::new(to_ip, half(2)),
            ttl,
            flags: tcp[13],
            sequence: word(4),
            acknowledged: word(8),
            window: half(14),
            options: tcp.get(20..data_at).ok_or("bad data offset")?.to_vec(),
            ip_options,
            data: tcp[data_at..].to_vec(),
        })
    }
}

/// Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1); `length` in bytes.
pub(crate) fn pseudo_sum(protocol: u8, from: IpAddr, to: IpAddr, length: usize) -> u64 {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => sum_bytes(&v4.octets()),
        IpAddr::V6(v6) => sum_bytes(&v6.octets()),
    };
    address(from)
        + address(to)
        + sum_bytes(&[0, protocol])
        + sum_bytes(&(length as u32).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        for (from, to) in [
            ("192.0.2.1:1234", "203.0.113.10:80"),
            ("[2001:db8::1]:1234", "[2001:db8::10]:80"),
        ] {
            let segment = Segment::new(from.parse().unwrap(), to.parse().unwrap(), 0x18)
                .at(7, 9)
                .data(b"hello");
            assert_eq!(Segment::parse(&segment.build()).unwrap(), segment);
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let segment = Segment::new(
            "192.0.2.1:1".parse().unwrap(),
            "192.0.2.2:2".parse().unwrap(),
            0x10,
        )
        .data(b"x");
        let frame = segment.build();
        for at in 14..frame.len() {
            let mut broken = frame.clone();
            broken[at] ^= 0x10;
            assert!(Segment::parse(&broken).is_err(), "byte {at}");
        }
    }
}

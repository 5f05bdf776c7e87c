//! Outer headers of tunnels, read back from frames byte by byte: IP in IP, and IP behind a UDP header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::checksum::{fold, sum_bytes};

/// The outer headers of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    /// Destination and source MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Type of service, or traffic class.
    pub class: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Protocol behind the IP header.
    pub protocol: u8,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// Ports and checksum of the UDP header, if there is one.
    pub udp: Option<Udp>,
    /// The packet inside, from its IP header on.
    pub inner: Vec<u8>,
}

/// A UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Checksum as it stands; 0 for none. Any other is right.
    pub check: u16,
}

impl Outer {
    /// Reads a frame; an error names what is wrong with it, checksums and lengths included.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let part = |from: usize, to: usize| frame.get(from..to).ok_or(format!("ends before {to}"));
        let mac = |at: usize| part(at, at + 6).map(|b| <[u8; 6]>::try_from(b).expect("six bytes"));
        let macs = (mac(0)?, mac(6)?);
        match part(12, 14)? {
            [0x08, 0x00] => Self::v4(macs, part(14, 34)?, &frame[34..]),
            [0x86, 0xdd] => Self::v6(macs, part(14, 54)?, &frame[54..]),
            other => Err(format!("ethertype {other:02x?}")),
        }
    }

    /// The packet inside as a frame: the outer frame's MACs, the EtherType of its family.
    pub fn inner_frame(&self) -> Vec<u8> {
        let (to, from) = self.macs;
        let ether_type = if self.inner.first().is_some_and(|byte| byte >> 4 == 6) {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        [&to[..], &from, &ether_type, &self.inner].concat()
    }

    fn v4(macs: ([u8; 6], [u8; 6]), header: &[u8], rest: &[u8]) -> Result<Self, String> {
        if header[0] != 0x45 || fold(sum_bytes(header)) != 0xffff {
            return Err(format!("bad IPv4 header {header:02x?}"));
        }
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[4..8] != [0, 0, 0x40, 0] {
            return Err("identification and fragment word are not 0 and DF alone".into());
        }
        let address = |at: usize| {
            IpAddr::from(Ipv4Addr::new(
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ))
        };
        let length = total.checked_sub(20).ok_or("total length below 20")?;
        let outer = Self {
            macs,
            source: address(12),
            destination: address(16),
            class: header[1],
            ttl: header[8],
            protocol: header[9],
            flow_label: 0,
            udp: None,
            inner: Vec::new(),
        };
        outer.inside(rest.get(..length).ok_or("total length past the frame")?)
    }

    fn v6(macs: ([u8; 6], [u8; 6]), header: &[u8], rest: &[u8]) -> Result<Self, String> {
        let first = u32::from_be_bytes(header[..4].try_into().expect("four bytes"));
        if first >> 28 != 6 {
            return Err("bad IPv6 version".into());
        }
        let address = |at: usize| {
            let bytes: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
            IpAddr::from(Ipv6Addr::from(bytes))
        };
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let outer = Self {
            macs,
            source: address(8),
            destination: address(24),
            class: (first >> 20) as u8,
            ttl: header[7],
            protocol: header[6],
            flow_label: first & 0xf_ffff,
            udp: None,
            inner: Vec::new(),
        };
        outer.inside(rest.get(..length).ok_or("payload length past the frame")?)
    }

    fn inside(mut self, payload: &[u8]) -> Result<Self, String> {
        if self.protocol != 17 {
            self.inner = payload.to_vec();
            return Ok(self);
        }
        let half = |at: usize| {
            let bytes = payload.get(at..at + 2).ok_or("UDP header cut short")?;
            Ok::<_, String>(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let udp = Udp {
            source: half(0)?,
            destination: half(2)?,
            check: half(6)?,
        };
        if usize::from(half(4)?) != payload.len() {
            return Err("UDP length is not the IP header's".into());
        }
        if udp.check != 0 && fold(self.pseudo_sum(payload.len()) + sum_bytes(payload)) != 0xffff {
            return Err(format!("wrong UDP checksum {:04x}", udp.check));
        }
        self.udp = Some(udp);
        self.inner = payload[8..].to_vec();
        Ok(self)
    }

    fn pseudo_sum(&self, length: usize) -> u64 {
        let address = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => sum_bytes(&v4.octets()),
            IpAddr::V6(v6) => sum_bytes(&v6.octets()),
        };
        address(self.source)
            + address(self.destination)
            + sum_bytes(&[0, 17])
            + sum_bytes(&(length as u32).to_be_bytes())
    }
}

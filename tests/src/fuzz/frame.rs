//! Frames as the fuzzer thinks of them: header by header, so that a failing one can be made simpler and is readable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::sums::{ICMP, ICMPV6, TCP, UDP, checksum};

/// Source and destination MAC address of everything that comes in.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// A frame that is sound when built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// VLAN tags: protocol identifier and control information.
    pub tags: Vec<(u16, u16)>,
    /// Network header.
    pub network: Network,
    /// Transport header.
    pub transport: Transport,
    /// Data.
    pub data: Vec<u8>,
    /// Bytes after the packet, such as a short frame's padding.
    pub trailer: Vec<u8>,
}

/// A network header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    V4(V4),
    /// IPv6.
    V6(V6),
    /// An ethertype alone; the rest of the frame is data.
    Other(u16),
}

/// An IPv4 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V4 {
    /// Source.
    pub from: Ipv4Addr,
    /// Destination.
    pub to: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
}

/// An IPv6 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V6 {
    /// Source.
    pub from: Ipv6Addr,
    /// Destination.
    pub to: Ipv6Addr,
    /// Hop limit.
    pub hops: u8,
    /// Traffic class and flow label.
    pub class_and_label: u32,
    /// Extension headers: number, and what follows its first byte (7 bytes more than a multiple of 8).
    pub extensions: Vec<(u8, Vec<u8>)>,
}

/// A transport header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Whether the sender computed a checksum.
        checked: bool,
    },
    /// ICMP or ICMPv6, by the network's family: type, code, second word.
    Icmp(u8, u8, u32),
    /// None; what follows the network header is data of this protocol.
    Raw(u8),
}

/// A TCP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
}

impl Frame {
    /// A packet without data between two addresses of one family.
    ///
    /// # Panics
    /// The addresses are of two families: a mistake in the fuzzer.
    pub fn between(from: IpAddr, to: IpAddr, transport: Transport) -> Self {
        let network = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Network::V4(V4 {
                from,
                to,
                ttl: 64,
                tos: 0,
                id: 0x1234,
                fragment: 0x4000,
                options: Vec::new(),
            }),
            (IpAddr::V6(from), IpAddr::V6(to)) => Network::V6(V6 {
                from,
                to,
                hops: 64,
                class_and_label: 0,
                extensions: Vec::new(),
            }),
            _ => panic!("a packet between two families"),
        };
        Self {
            tags: Vec::new(),
            network,
            transport,
            data: Vec::new(),
            trailer: Vec::new(),
        }
    }

    /// Its bytes, with right lengths and checksums.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = MACS.to_vec();
        for (identifier, control) in &self.tags {
            frame.extend(identifier.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        let segment = self.segment();
        match &self.network {
            Network::V4(header) => self.put_v4(&mut frame, header, segment.len()),
            Network::V6(header) => self.put_v6(&mut frame, header, segment.len()),
            Network::Other(ethertype) => frame.extend(ethertype.to_be_bytes()),
        }
        frame.extend(segment);
        frame.extend(&self.trailer);
        frame
    }

    fn protocol(&self) -> u8 {
        match (&self.transport, &self.network) {
            (Transport::Tcp(_), _) => TCP,
            (Transport::Udp { .. }, _) => UDP,
            (Transport::Icmp(..), Network::V6(_)) => ICMPV6,
            (Transport::Icmp(..), _) => ICMP,
            (Transport::Raw(protocol), _) => *protocol,
        }
    }

    fn put_v4(&self, frame: &mut Vec<u8>, header: &V4, length: usize) {
        frame.extend([0x08, 0x00]);
        let own = 20 + header.options.len();
        let mut bytes = vec![0x40 | (own / 4) as u8, header.tos];
        bytes.extend(((own + length) as u16).to_be_bytes());
        bytes.extend(header.id.to_be_bytes());
        bytes.extend(header.fragment.to_be_bytes());
        bytes.extend([header.ttl, self.protocol(), 0, 0]);
        bytes.extend(header.from.octets());
        bytes.extend(header.to.octets());
        bytes.extend(&header.options);
        let check = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend(bytes);
    }

    fn put_v6(&self, frame: &mut Vec<u8>, header: &V6, length: usize) {
        frame.extend([0x86, 0xdd]);
        frame.extend((0x6000_0000 | header.class_and_label).to_be_bytes());
        let extensions: usize = header
            .extensions
            .iter()
            .map(|(_, rest)| rest.len() + 1)
            .sum();
        frame.extend(((extensions + length) as u16).to_be_bytes());
        let numbers = header.extensions.iter().map(|(number, _)| *number);
        let mut numbers = numbers.chain([self.protocol()]);
        frame.extend(numbers.next());
        frame.push(header.hops);
        frame.extend(header.from.octets());
        frame.extend(header.to.octets());
        for ((_, rest), next) in header.extensions.iter().zip(numbers) {
            frame.push(next);
            frame.extend(rest);
        }
    }

    /// Transport header and data.
    fn segment(&self) -> Vec<u8> {
        let (mut bytes, check_at) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.bytes(), Some(16)),
            Transport::Udp { ports, checked } => (self.udp(*ports), checked.then_some(6)),
            Transport::Icmp(kind, code, rest) => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest.to_be_bytes());
                (bytes, Some(2))
            }
            Transport::Raw(_) => (Vec::new(), None),
        };
        bytes.extend(&self.data);
        if let Some(at) = check_at {
            let check = checksum(&[&self.pseudo(bytes.len()), &bytes]);
            // RFC 768: a computed zero is sent as all ones.
            let check = if self.protocol() == UDP && check == 0 {
                0xffff
            } else {
                check
            };
            bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }

    fn udp(&self, ports: (u16, u16)) -> Vec<u8> {
        let length = 8 + self.data.len() as u16;
        let words = [ports.0, ports.1, length, 0];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn pseudo(&self, length: usize) -> Vec<u8> {
        let protocol = self.protocol();
        let mut bytes = match &self.network {
            _ if protocol == ICMP => return Vec::new(),
            Network::V4(header) => [header.from.octets(), header.to.octets()].concat(),
            Network::V6(header) => [header.from.octets(), header.to.octets()].concat(),
            Network::Other(_) => return Vec::new(),
        };
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, protocol]);
        bytes
    }
}

impl Tcp {
    /// A header without options.
    pub fn new(ports: (u16, u16), flags: u8) -> Self {
        Self {
            ports,
            sequence: 1000,
            acknowledged: 0,
            flags,
            window: 64_240,
            urgent: 0,
            options: Vec::new(),
        }
    }

    /// Its bytes, checksum zero.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(60);
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledged.to_be_bytes());
        bytes.extend([(((20 + self.options.len()) / 4) as u8) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(&self.options);
        bytes
    }
}

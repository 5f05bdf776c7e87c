//! The kinds of sound frames that inputs begin as.

use std::net::{IpAddr, SocketAddr};

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{
    frame::{Frame, Network, Tcp, Transport},
    given::likely,
    sums::{TCP, UDP},
    view::View,
    world::{NEIGHBOUR, NODE, NOWHERE, ROTATION, Service, World},
};
use lb_common::{
    abi::mode,
    steer::tcp::{ACK, FIN, RST, SYN},
};

/// PSH (RFC 9293 section 3.1).
const PSH: u8 = 8;

macro_rules! shapes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// What a frame is before it is mutated.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Shape { $($(#[doc = $doc])* $name,)* }

        impl Shape {
            /// Every shape.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// In reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

shapes! {
    /// A SYN to a service.
    Open = "open",
    /// The ACK that completes a handshake.
    Complete = "complete",
    /// A segment in the middle of a flow.
    Established = "established",
    /// FIN or RST.
    Close = "close",
    /// Any combination of TCP flags.
    Flags = "odd flags",
    /// TCP options and IPv4 options of all lengths.
    Options = "options",
    /// A backend's answer.
    Reply = "reply",
    /// TCP to nobody.
    Stranger = "no service",
    /// UDP to a service's address.
    Udp = "udp",
    /// A QUIC packet to a service's address.
    Quic = "quic",
    /// An echo request to a service's address.
    Echo = "icmp echo",
    /// An ICMP error that quotes a segment of a service.
    Error = "icmp error",
    /// A fragment, first or later.
    Fragment = "fragment",
    /// One or two VLAN tags, or more.
    Tagged = "tagged",
    /// IPv6 extension headers.
    Extensions = "v6 extensions",
    /// Another protocol.
    Protocol = "other protocol",
    /// Neither IPv4 nor IPv6.
    NotIp = "not ip",
    /// Anything.
    Noise = "noise",
}

impl Shape {
    /// Protocol of the services that such frames are for.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Udp | Self::Quic => UDP,
            _ => TCP,
        }
    }
}

/// A client's flow, which several inputs of a case are of.
#[derive(Debug, Clone)]
pub struct Flow {
    client: SocketAddr,
    vip: SocketAddr,
    isn: u32,
    /// A backend of the service.
    owner: SocketAddr,
    /// What the same backend goes by in QUIC.
    server_id: u16,
    /// A backend that answers through the balancer, of this or another service.
    backend: Option<SocketAddr>,
    /// Of a `full-nat` service: its backend, and what that sees in place of the client.
    shown: Option<(SocketAddr, SocketAddr)>,
    /// Protocol of the service.
    protocol: u8,
    /// Identification of a packet that comes in fragments.
    identification: u16,
}

impl Flow {
    /// A flow to one of the services of this protocol.
    pub fn new(world: &World, protocol: u8, random: &mut SmallRng) -> Self {
        let of_protocol = |service: &&Service| service.row.protocol() == protocol;
        let services: Vec<_> = world.services.iter().filter(of_protocol).collect();
        let service = one(&services, random);
        let owner = one(&service.backends, random);
        let host = random.random_range(1..=9u8);
        let ip = match service.vip {
            SocketAddr::V4(_) => IpAddr::from([192, 0, 2, host]),
            SocketAddr::V6(_) => format!("2001:db8:1::{host}").parse().expect("an address"),
        };
        let client = SocketAddr::new(ip, random.random());
        Self {
            client,
            shown: shown(service, client, random),
            vip: service.vip,
            isn: random.random(),
            owner: owner.address,
            server_id: owner.server_id(),
            backend: answering(world, service, random),
            protocol,
            identification: random.random(),
        }
    }

    fn segment(&self, flags: u8, sequence: u32, random: &mut SmallRng) -> Frame {
        let mut tcp = Tcp::new((self.client.port(), self.vip.port()), flags);
        tcp.sequence = sequence;
        tcp.acknowledged = if flags & ACK != 0 { random.random() } else { 0 };
        Frame::between(self.client.ip(), self.vip.ip(), Transport::Tcp(tcp))
    }

    /// A header of the flow's protocol between these ports.
    fn transport(&self, ports: (u16, u16)) -> Transport {
        if self.protocol == UDP {
            Transport::Udp {
                ports,
                checked: true,
            }
        } else {
            Transport::Tcp(Tcp::new(ports, ACK))
        }
    }

    fn packet(&self, transport: Transport) -> Frame {
        Frame::between(self.client.ip(), self.vip.ip(), transport)
    }
}

/// Of a flow of a `full-nat` service: one of its backends, and what that sees.
fn shown(
    service: &Service,
    client: SocketAddr,
    random: &mut SmallRng,
) -> Option<(SocketAddr, SocketAddr)> {
    if service.row.mode != mode::FULL_NAT {
        return None;
    }
    let slot = service.slot(client);
    let backend = service.backend(*one(&[slot.current(), slot.base()], random))?;
    Some((backend.address, likely(service, client, backend)?))
}

/// A backend that answers through the balancer: of the service itself, or of another of its family.
fn answering(world: &World, service: &Service, random: &mut SmallRng) -> Option<SocketAddr> {
    let nat = |s: &&Service| s.row.mode == mode::NAT && s.vip.is_ipv4() == service.vip.is_ipv4();
    let services: Vec<_> = world.services.iter().filter(nat).collect();
    let service = services.choose(random)?;
    Some(one(&service.backends, random).address)
}

/// One of them.
fn one<'a, T>(all: &'a [T], random: &mut SmallRng) -> &'a T {
    all.choose(random).expect("not empty")
}

/// A sound frame of this shape, most of them of this flow.
pub fn frame(shape: Shape, flow: &Flow, random: &mut SmallRng) -> Frame {
    let mut frame = match shape {
        Shape::Open => {
            let again = random.random_ratio(3, 4);
            let isn = if again { flow.isn } else { random.random() };
            flow.segment(SYN, isn, random)
        }
        Shape::Complete => flow.segment(ACK, flow.isn.wrapping_add(1), random),
        Shape::Established => {
            let sequence = flow.isn.wrapping_add(random.random());
            flow.segment(*one(&[ACK, ACK | PSH], random), sequence, random)
        }
        Shape::Close => {
            let sequence = flow.isn.wrapping_add(random.random_range(1..100_000));
            flow.segment(*one(&[FIN | ACK, RST, RST | ACK], random), sequence, random)
        }
        Shape::Flags => {
            let (flags, sequence) = (random.random(), random.random());
            flow.segment(flags, sequence, random)
        }
        Shape::Options => options(flow, random),
        Shape::Reply => reply(flow, random),
        Shape::Stranger => stranger(flow, random),
        Shape::Udp | Shape::Quic => flow.packet(Transport::Udp {
            ports: (flow.client.port(), flow.vip.port()),
            checked: flow.client.is_ipv6() || random.random_ratio(3, 4),
        }),
        Shape::Echo => {
            let kind = if flow.client.is_ipv4() { 8 } else { 128 };
            flow.packet(Transport::Icmp(kind, 0, random.random()))
        }
        Shape::Error => error(flow, random),
        Shape::Fragment => fragment(flow, random),
        Shape::Tagged => tagged(flow, random),
        Shape::Extensions => extensions(flow, random),
        Shape::Protocol => flow.packet(Transport::Raw(random.random())),
        Shape::NotIp | Shape::Noise => return noise(shape, flow, random),
    };
    if shape != Shape::Error {
        frame.data = data(random);
    }
    if shape == Shape::Fragment && matches!(frame.transport, Transport::Raw(_)) {
        frame.data.truncate(random.random_range(0..20));
    }
    if shape == Shape::Quic {
        quic(&mut frame.data, flow, random);
    }
    if matches!(shape, Shape::Udp | Shape::Quic) && random.random_ratio(1, 4) {
        edge(&mut frame, flow.owner);
    }
    if random.random_ratio(1, 8) {
        frame.trailer = vec![0; random.random_range(1..20)];
    }
    ways(&mut frame, random);
    frame
}

/// Data of all lengths, with bytes at which sums carry, and those at which they do not.
fn data(random: &mut SmallRng) -> Vec<u8> {
    let length = match random.random_range(0..16) {
        0..8 => 0,
        8..14 => random.random_range(1..80),
        14 => random.random_range(80..1500),
        // More than an Ethernet frame; the kernel's test run takes about 3500 bytes.
        _ => random.random_range(1500..3200),
    };
    match random.random_range(0..4) {
        0 => vec![0; length],
        1 => vec![0xff; length],
        _ => {
            let mut bytes = vec![0; length];
            random.fill(&mut bytes[..]);
            bytes
        }
    }
}

/// Chooses the first bytes of data so that the datagram's checksum becomes zero when its destination becomes `to`: the
/// one value that must not be sent as it is (RFC 768).
fn edge(frame: &mut Frame, to: SocketAddr) {
    frame.data.resize(frame.data.len().max(2), 0);
    frame.data[..2].fill(0);
    let mut turned = frame.clone();
    match (&mut turned.network, to) {
        (Network::V4(header), SocketAddr::V4(to)) => header.to = *to.ip(),
        (Network::V6(header), SocketAddr::V6(to)) => header.to = *to.ip(),
        _ => return,
    }
    if let Transport::Udp {
        ports,
        checked: true,
    } = &mut turned.transport
    {
        ports.1 = to.port();
        let bytes = turned.build();
        if let Ok(view) = View::parse(&bytes) {
            let check = view.transport + 6;
            frame.data[..2].copy_from_slice(&bytes[check..check + 2]);
        }
    }
}

/// Fields that steering does not look at.
fn ways(frame: &mut Frame, random: &mut SmallRng) {
    let ttl = match random.random_range(0..12) {
        0 => random.random_range(0..3),
        1 => 255,
        _ => random.random_range(3..255),
    };
    match &mut frame.network {
        Network::V4(header) => {
            header.ttl = ttl;
            header.tos = random.random();
            if header.fragment & 0x3fff == 0 {
                header.id = random.random();
            }
        }
        Network::V6(header) => {
            header.hops = ttl;
            header.class_and_label = random.random::<u32>() >> 4;
        }
        Network::Other(_) => {}
    }
    if let Transport::Tcp(tcp) = &mut frame.transport {
        tcp.window = random.random();
        tcp.urgent = if random.random_ratio(1, 8) {
            random.random()
        } else {
            0
        };
    }
}

fn options(flow: &Flow, random: &mut SmallRng) -> Frame {
    let flags = *one(&[SYN, ACK], random);
    let mut frame = flow.segment(flags, flow.isn, random);
    let soup = |random: &mut SmallRng| {
        let mut bytes = vec![0; random.random_range(0..=10) * 4];
        random.fill(&mut bytes[..]);
        bytes
    };
    if let Transport::Tcp(tcp) = &mut frame.transport {
        tcp.options = soup(random);
    }
    if let Network::V4(header) = &mut frame.network {
        header.options = soup(random);
    }
    frame
}

fn reply(flow: &Flow, random: &mut SmallRng) -> Frame {
    let from = flow.backend.unwrap_or(flow.vip);
    let family = usize::from(from.is_ipv6());
    let to = match random.random_range(0..8) {
        0..5 => NEIGHBOUR[family].parse().expect("an address"),
        5 => NODE[family].parse().expect("an address"),
        6 => NOWHERE[family].parse().expect("an address"),
        _ => flow.client.ip(),
    };
    let flags = *one(&[SYN | ACK, ACK, ACK | PSH, FIN | ACK, RST], random);
    let there = SocketAddr::new(to, flow.client.port());
    let (from, there) = flow.shown.unwrap_or((from, there));
    let (to, ports) = (there.ip(), (from.port(), there.port()));
    // Now and then of another protocol.
    if (flow.protocol == UDP) != random.random_ratio(1, 4) {
        let checked = from.is_ipv6() || random.random();
        return Frame::between(from.ip(), to, Transport::Udp { ports, checked });
    }
    let mut tcp = Tcp::new(ports, flags);
    (tcp.sequence, tcp.acknowledged) = (random.random(), random.random());
    Frame::between(from.ip(), to, Transport::Tcp(tcp))
}

fn stranger(flow: &Flow, random: &mut SmallRng) -> Frame {
    let flags = *one(&[SYN, ACK], random);
    let ports = (
        flow.client.port(),
        flow.vip.port() ^ random.random_range(1..1000),
    );
    let transport = Transport::Tcp(Tcp::new(ports, flags));
    if random.random() {
        return flow.packet(transport);
    }
    let to = NODE[usize::from(flow.client.is_ipv6())];
    Frame::between(flow.client.ip(), to.parse().expect("an address"), transport)
}

/// An error of a router: on the way from the service to the client it quotes what the service sent, on the way from the
/// client to a backend what it sent there.
fn error(flow: &Flow, random: &mut SmallRng) -> Frame {
    let (from, to) = match (flow.shown, flow.backend) {
        (Some((backend, node)), _) if random.random() => (node, backend),
        (_, Some(backend)) if random.random() => {
            let neighbour = NEIGHBOUR[usize::from(backend.is_ipv6())];
            let sender =
                SocketAddr::new(neighbour.parse().expect("an address"), flow.client.port());
            (sender, backend)
        }
        _ => (flow.vip, flow.client),
    };
    let ports = (from.port(), to.port());
    let mut quoted = Frame::between(from.ip(), to.ip(), flow.transport(ports));
    quoted.data = vec![0x5a; random.random_range(0..64)];
    let (kind, code, rest) = if from.is_ipv4() {
        *one(&[(3, 4, 1400), (3, 1, 0), (11, 0, 0), (12, 0, 0)], random)
    } else {
        *one(&[(2, 0, 1400), (1, 0, 0), (3, 0, 0), (4, 0, 0)], random)
    };
    // From the far end itself, or from somewhere in between.
    let router = if random.random() {
        to.ip()
    } else {
        flow.client.ip()
    };
    let mut frame = Frame::between(router, from.ip(), Transport::Icmp(kind, code, rest));
    frame.data = quoted.build().split_off(14);
    // Routers quote all of it or just the header and eight bytes.
    let header = if from.is_ipv4() { 20 } else { 40 };
    match random.random_range(0..8) {
        0..3 => frame.data.truncate(header + 8),
        3 => frame
            .data
            .truncate(random.random_range(0..frame.data.len())),
        _ => {}
    }
    frame
}

/// Fragments of one packet of the flow, in any order: those of a case belong together.
fn fragment(flow: &Flow, random: &mut SmallRng) -> Frame {
    let offset: u16 = match random.random_range(0..8) {
        0..4 => 0,
        // Where the transport header should be.
        4 => random.random_range(1..3),
        _ => random.random_range(3..0x2000),
    };
    let more = offset == 0 || random.random();
    let (from, to) = match flow.backend {
        Some(backend) if random.random_ratio(1, 4) => {
            let neighbour = NEIGHBOUR[usize::from(backend.is_ipv6())];
            (
                backend,
                SocketAddr::new(neighbour.parse().expect("an address"), flow.client.port()),
            )
        }
        _ => match flow.shown {
            Some(shown) if random.random_ratio(1, 3) => shown,
            _ => (flow.client, flow.vip),
        },
    };
    let transport = match random.random_range(0..8) {
        // Too short for its header.
        0 => Transport::Raw(flow.protocol),
        _ => flow.transport((from.port(), to.port())),
    };
    let mut frame = Frame::between(from.ip(), to.ip(), transport);
    match &mut frame.network {
        Network::V4(header) => {
            header.id = flow.identification;
            header.fragment = (u16::from(more) << 13) | offset;
        }
        Network::V6(header) => {
            let mut rest = vec![0];
            rest.extend((offset << 3 | u16::from(more)).to_be_bytes());
            rest.extend(u32::from(flow.identification).to_be_bytes());
            header.extensions = vec![(44, rest)];
        }
        Network::Other(_) => {}
    }
    frame
}

fn tagged(flow: &Flow, random: &mut SmallRng) -> Frame {
    let flags = *one(&[SYN, ACK], random);
    let mut frame = flow.segment(flags, flow.isn, random);
    let tag = |random: &mut SmallRng| (*one(&[0x8100, 0x88a8], random), random.random());
    frame.tags = (0..random.random_range(1..4))
        .map(|_| tag(random))
        .collect();
    frame
}

fn extensions(flow: &Flow, random: &mut SmallRng) -> Frame {
    let flags = *one(&[SYN, ACK], random);
    let mut frame = flow.segment(flags, flow.isn, random);
    if let Network::V6(header) = &mut frame.network {
        for _ in 0..random.random_range(1..4) {
            let words: u8 = random.random_range(0..3);
            let mut rest = vec![0; 7 + 8 * usize::from(words)];
            // Padding options (RFC 8200 section 4.2): PadN over all of it.
            (rest[0], rest[1], rest[2]) = (words, 1, 4 + 8 * words);
            header.extensions.push((*one(&[0, 43, 60], random), rest));
        }
    }
    frame
}

/// A QUIC packet's first bytes (RFC 9000 section 17): long header of either version, or short header; and a connection
/// id that may name a backend.
fn quic(data: &mut Vec<u8>, flow: &Flow, random: &mut SmallRng) {
    if random.random_ratio(7, 8) {
        data.resize(data.len().max(32), 0x5a);
    }
    let mut start = vec![0x43];
    if random.random() {
        let version = *one(&[[0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf]], random);
        start = vec![0xc3 | random.random_range(0..4) << 4];
        start.extend(version);
        start.push(*one(&[8, 8, 8, 13, 3, 2, 0, 20], random));
    }
    let rotation = if random.random_ratio(7, 8) {
        ROTATION
    } else {
        random.random_range(0..8)
    };
    start.push(rotation << 5 | random.random_range(0..32));
    let server = if random.random_ratio(3, 4) {
        flow.server_id
    } else {
        random.random()
    };
    start.extend(server.to_be_bytes());
    let length = data.len().min(start.len());
    data[..length].copy_from_slice(&start[..length]);
}

fn noise(shape: Shape, flow: &Flow, random: &mut SmallRng) -> Frame {
    let mut frame = flow.packet(Transport::Raw(0));
    let ethertype = match shape {
        Shape::NotIp => *one(&[0x0806, 0x8847, 0x88cc, 0x8864, 0x05ff], random),
        _ => *one(&[0x0800, 0x86dd, 0x8100, random.random()], random),
    };
    frame.network = Network::Other(ethertype);
    frame.data = data(random);
    frame
}

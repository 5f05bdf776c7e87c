//! The frames that the driver writes, and how they are described to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{Addr, checksum::sum_bytes};

use super::{
    Family,
    shared::{Config, FRAME_WORDS, V4_LENGTH, V6_LENGTH, flow_of, shape},
};
use crate::packets::Segment;

/// First client.
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// First client.
const FIRST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);

/// Where the clients of all flows are; the rig's namespace needs routes to them.
pub const CLIENT_NETWORKS: [(&str, &str); 2] = [
    ("100.64.0.0/10", "192.0.2.1"),
    ("2001:db8:c::/64", "2001:db8:1::1"),
];

/// A kind of frame, one for each flow.
#[derive(Debug, Clone)]
pub struct Frames {
    /// The other end than the client.
    pub server: SocketAddr,
    /// From the server to the client.
    pub reply: bool,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number of the first frame.
    pub sequence: u32,
    /// What is added to it with every frame.
    pub sequence_step: u32,
}

impl Frames {
    /// From clients to `server`.
    pub fn to(server: SocketAddr, flags: u8) -> Self {
        Self {
            server,
            reply: false,
            flags,
            sequence: 100_000,
            sequence_step: 0,
        }
    }

    /// From `server` to clients.
    pub fn from(server: SocketAddr, flags: u8) -> Self {
        Self {
            reply: true,
            ..Self::to(server, flags)
        }
    }

    /// Family.
    pub fn family(&self) -> Family {
        if self.server.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// Client of a flow.
    pub fn client(family: Family, number: u32) -> SocketAddr {
        let (offset, port) = flow_of(number);
        let ip = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::from_bits(FIRST_V4.to_bits() + offset as u32)),
            Family::V6 => {
                IpAddr::from(Ipv6Addr::from_bits(FIRST_V6.to_bits() + u128::from(offset)))
            }
        };
        SocketAddr::new(ip, port)
    }

    /// The frame of flow `number` that is the `made`-th (from 1) since the driver was set up.
    pub fn segment(&self, number: u32, made: u32) -> Segment {
        let client = Self::client(self.family(), number);
        let (from, to) = if self.reply {
            (self.server, client)
        } else {
            (client, self.server)
        };
        let length = match self.family() {
            Family::V4 => V4_LENGTH - 54,
            Family::V6 => V6_LENGTH - 74,
        };
        let mut segment = Segment::new(from, to, self.flags).data(&vec![0x65; length]);
        segment.sequence = self
            .sequence
            .wrapping_add(made.wrapping_mul(self.sequence_step));
        segment.acknowledged = 5000;
        segment
    }

    /// For the driver: the template with all zero that it fills in.
    pub fn config(&self, flows: u32, ifindex: u32) -> Config {
        let mut frame = self.segment(0, 0).build();
        let length = frame.len();
        let (family, reply) = (self.family(), self.reply);
        let (address_at, address_length, tcp) = match (family, reply) {
            (Family::V4, false) => (26, 4, 34),
            (Family::V4, true) => (30, 4, 34),
            (Family::V6, false) => (30, 8, 54),
            (Family::V6, true) => (46, 8, 54),
        };
        let zero = |frame: &mut [u8], at: usize, length: usize| frame[at..at + length].fill(0);
        zero(&mut frame, address_at, address_length);
        zero(&mut frame, tcp + if reply { 2 } else { 0 }, 2);
        zero(&mut frame, tcp + 4, 4);
        zero(&mut frame, tcp + 16, 2);
        let mut ip_sum = 0;
        if family == Family::V4 {
            zero(&mut frame, 24, 2);
            ip_sum = sum_bytes(&frame[14..34]);
        }
        let addresses = if family == Family::V4 { 26..34 } else { 22..54 };
        let tcp_length = (length - tcp) as u32;
        let tcp_sum = sum_bytes(&frame[tcp..])
            + sum_bytes(&frame[addresses])
            + sum_bytes(&[0, 6])
            + sum_bytes(&tcp_length.to_be_bytes());
        let server = Addr::from(self.server.ip());
        let (client_high, server, server_low) = match family {
            Family::V4 => (0, u64::from(server.v4_word()), 0),
            Family::V6 => (
                Addr::from(IpAddr::from(FIRST_V6)).high,
                server.high,
                server.low,
            ),
        };
        let mut words = [0; FRAME_WORDS];
        for (word, bytes) in words.iter_mut().zip(frame.chunks(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("frames are whole words"));
        }
        Config {
            frame: words,
            shape: match (family, reply) {
                (Family::V4, false) => shape::V4_TO_SERVICE,
                (Family::V4, true) => shape::V4_TO_CLIENT,
                (Family::V6, false) => shape::V6_TO_SERVICE,
                (Family::V6, true) => shape::V6_TO_CLIENT,
            },
            length: length as u32,
            head: 0,
            flows,
            client: match family {
                Family::V4 => u64::from(FIRST_V4.to_bits()),
                Family::V6 => FIRST_V6.to_bits() as u64,
            },
            client_high,
            server,
            server_low,
            ip_sum,
            tcp_sum,
            sequence: self.sequence,
            sequence_step: self.sequence_step,
            ifindex,
            server_port: u32::from(self.server.port().to_be()),
            reserved: [0; 5],
        }
    }
}

//! What is done to a sound frame's bytes.

use std::net::IpAddr;

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::view::{ETHERNET, Family, View};

/// Longest frame that the kernel's test run takes without fragments, with room to spare.
pub const FRAME_MAX: usize = 3400;

/// A change of a frame's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// The byte at this place becomes this.
    Byte(usize, u8),
    /// The frame ends here.
    Cut(usize),
    /// Bytes are added at its end.
    Pad(Vec<u8>),
}

impl Edit {
    /// Makes the change, as far as the frame reaches.
    pub fn apply(&self, frame: &mut Vec<u8>) {
        match self {
            Self::Byte(at, value) => {
                if let Some(byte) = frame.get_mut(*at) {
                    *byte = *value;
                }
            }
            Self::Cut(length) => frame.truncate((*length).max(ETHERNET)),
            Self::Pad(bytes) => frame.extend(bytes),
        }
        frame.truncate(FRAME_MAX);
    }
}

macro_rules! mutations {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// A way to break a frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Mutation { $($(#[doc = $doc])* $name,)* }

        impl Mutation {
            /// Every mutation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// In reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

mutations! {
    /// One bit anywhere.
    Bit = "bit",
    /// One byte anywhere in the headers.
    Byte = "byte",
    /// The frame ends early, at any byte.
    Truncation = "truncation",
    /// The frame is longer than the packet in it.
    Padding = "padding",
    /// The nibble with the IPv4 header's length, or IPv6's traffic class.
    HeaderLength = "header length",
    /// The IP version.
    Version = "version",
    /// The length of the packet as its header says: zero, off by one, all ones, anything.
    Length = "length",
    /// The TCP header's length.
    DataOffset = "data offset",
    /// The IPv4 header's checksum (IPv6: the source address).
    NetworkChecksum = "network checksum",
    /// The transport's checksum.
    TransportChecksum = "transport checksum",
    /// Protocol or next header.
    Protocol = "protocol",
    /// Time to live or hop limit.
    Ttl = "ttl",
    /// Fragment bits and offset.
    FragmentBits = "fragment bits",
    /// The ethertype.
    Ethertype = "ethertype",
    /// An IPv4 packet becomes one of IPv6 between the mapped addresses, all else as it was.
    Mapped = "mapped addresses",
}

/// The edits of one mutation of a frame, whose sound form is described by `view` (if it has one).
pub fn edits(
    mutation: Mutation,
    frame: &[u8],
    view: Option<&View>,
    random: &mut SmallRng,
) -> Vec<Edit> {
    let network = view.map_or(ETHERNET, |view| view.network);
    let transport = view.map_or(ETHERNET + 20, |view| view.transport);
    let is_v6 = view.is_some_and(|view| view.family == Family::V6);
    let of_family = |v4: usize, v6: usize| network + if is_v6 { v6 } else { v4 };
    let word = |at: usize, value: u16| {
        let [high, low] = value.to_be_bytes();
        vec![Edit::Byte(at, high), Edit::Byte(at + 1, low)]
    };
    let old = |at: usize| match frame.get(at..at + 2) {
        Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
        None => 0,
    };
    match mutation {
        Mutation::Bit => {
            let at = random.random_range(0..frame.len());
            vec![Edit::Byte(at, frame[at] ^ (1 << random.random_range(0..8)))]
        }
        Mutation::Byte => {
            let end = (transport + 20).min(frame.len());
            vec![Edit::Byte(random.random_range(0..end), random.random())]
        }
        Mutation::Truncation => vec![Edit::Cut(random.random_range(ETHERNET..=frame.len()))],
        Mutation::Padding => {
            let mut bytes = vec![0; random.random_range(1..64)];
            random.fill(&mut bytes[..]);
            vec![Edit::Pad(bytes)]
        }
        Mutation::HeaderLength => vec![Edit::Byte(
            network,
            frame.get(network).map_or(0, |b| b & 0xf0) | random.random_range(0..16),
        )],
        Mutation::Version => vec![Edit::Byte(network, random.random())],
        Mutation::Length => {
            let at = of_family(2, 4);
            let near = old(at).wrapping_add_signed(random.random_range(-3..=3));
            let inside = random.random_range(0..=frame.len() as u16);
            let values = [0, near, inside, 0xffff, random.random()];
            word(at, *values.choose(random).unwrap_or(&0))
        }
        Mutation::DataOffset => vec![Edit::Byte(transport + 12, random.random())],
        Mutation::NetworkChecksum => word(of_family(10, 8), wrong(old(of_family(10, 8)), random)),
        Mutation::TransportChecksum => {
            let places = [transport + 16, transport + 6, transport + 2];
            let protocol = view.map_or(0, |view| view.protocol);
            let at = places[match protocol {
                6 => 0,
                17 => 1,
                _ => 2,
            }];
            word(at, wrong(old(at), random))
        }
        Mutation::Protocol => {
            let known = [0, 1, 6, 17, 43, 44, 51, 58, 59, 60, random.random()];
            vec![Edit::Byte(
                of_family(9, 6),
                *known.choose(random).unwrap_or(&0),
            )]
        }
        Mutation::Ttl => vec![Edit::Byte(of_family(8, 7), random.random_range(0..4))],
        Mutation::FragmentBits => word(of_family(6, 42), random.random()),
        Mutation::Ethertype => {
            let known = [0x0800, 0x86dd, 0x8100, 0x88a8, 0x0806, random.random()];
            word(network - 2, *known.choose(random).unwrap_or(&0))
        }
        Mutation::Mapped => view.map_or_else(Vec::new, |view| mapped(frame, view)),
    }
}

/// The IPv4 packet in `frame` as one of IPv6 between the IPv4-mapped addresses (RFC 4291 section 2.5.5.2). The checksum
/// of its transport stays right: the prefixes sum to nothing.
fn mapped(frame: &[u8], view: &View) -> Vec<Edit> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (view.from, view.to) else {
        return Vec::new();
    };
    let Some(rest) = frame.get(view.transport..) else {
        return Vec::new();
    };
    let length = view.total.saturating_sub(view.header) as u16;
    let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([view.protocol, view.ttl]);
    bytes.extend(from.to_ipv6_mapped().octets());
    bytes.extend(to.to_ipv6_mapped().octets());
    bytes.extend(rest);
    let inside = frame.len() - (view.network - 2);
    let pad = bytes.split_off(inside.min(bytes.len()));
    let edits = (view.network - 2..).zip(bytes);
    edits
        .map(|(at, byte)| Edit::Byte(at, byte))
        .chain([Edit::Pad(pad)])
        .collect()
}

/// Another value than `old`: a special one, or any.
fn wrong(old: u16, random: &mut SmallRng) -> u16 {
    match random.random_range(0..5) {
        0 => 0,
        1 => 0xffff,
        2 => !old,
        _ => random.random(),
    }
}

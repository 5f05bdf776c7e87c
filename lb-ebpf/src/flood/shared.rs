//! What the flood's programs and their user space share: both sides compile this very file.

/// Length of a frame of the flood in bytes: what Ethernet has at least, and a multiple of 8.
pub const LENGTH: usize = 64;

/// Words of it.
pub const WORDS: usize = LENGTH / 8;

/// Sources of the flood: 100.64.0.0/10, which nobody in the lab has (RFC 6598). Host order.
pub const FIRST_SOURCE: u32 = 0x6440_0000;

/// Bits of a source's address that change.
pub const SOURCE_MASK: u32 = 0x003f_ffff;

/// Byte 12 of the TCP headers of a flood: without options, which the first segment of a real connection has, and all that carry
/// timestamps.
pub const BARE_HEADER: u8 = 0x50;

/// Window in the TCP headers of a flood, host order: a large odd number, which no window scale leaves to a real one.
pub const WINDOW: u16 = 0xfaf1;

/// Kinds of frames, in [`Flood::kind`].
pub mod kind {
    /// TCP: the sequence number changes as well.
    pub const TCP: u32 = 0;
    /// UDP.
    pub const UDP: u32 = 1;
}

/// What is sent, and how far it is.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// The frame; source address, source port, sequence number and both checksums are zero.
    pub frame: [u64; WORDS],
    /// Sum of the IPv4 header's words, as in `lb_common::checksum`.
    pub ip_sum: u64,
    /// Sum of the transport header's and the pseudo-header's words.
    pub transport_sum: u64,
    /// A [`kind`].
    pub kind: u32,
    /// Interface that the frames go to.
    pub ifindex: u32,
    /// Frames made so far; each follows from its number.
    pub made: u64,
    /// Chosen anew for every flood, so that no two send the same flows.
    pub seed: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Flood>() == 128);

/// What arrived where a flood is shed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// Frames of the flood.
    pub all: u64,
    /// Those of them that were let through.
    pub through: u64,
}

/// Of so many frames of a flood one is let through where it is shed. A power of two.
pub const ONE_IN: u64 = 256;

/// Well-mixed bits of a number (the finaliser of SplitMix64).
#[inline(always)]
pub const fn mixed(number: u64) -> u64 {
    let z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

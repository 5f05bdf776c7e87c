//! What the bench's programs and `ebb-bench` share: both sides compile this very file.

/// Most words of 8 bytes in a frame's template.
pub const FRAME_WORDS: usize = 12;

/// Length of an IPv4 frame of the bench in bytes: headers and 10 bytes of data.
pub const V4_LENGTH: usize = 64;

/// Length of an IPv6 frame of the bench in bytes: headers and 14 bytes of data.
pub const V6_LENGTH: usize = 88;

/// Length of the header that the tunnel's floor puts in front, in bytes.
pub const OUTER_LENGTH: usize = 20;

/// Slots of a table in the floor programs, as of a service of ebb.
pub const TABLE_SLOTS: u32 = 65537;

/// Entries of the large tables in the floor programs.
pub const LARGE: u32 = 1 << 20;

/// Backends of the floor programs, of which 1.. are used.
pub const FLOOR_BACKENDS: u32 = 17;

/// Which of the four kinds of frame the driver writes, in [`Config::shape`].
pub mod shape {
    /// IPv4, from a client.
    pub const V4_TO_SERVICE: u32 = 0;
    /// IPv4, to a client.
    pub const V4_TO_CLIENT: u32 = 1;
    /// IPv6, from a client.
    pub const V6_TO_SERVICE: u32 = 2;
    /// IPv6, to a client.
    pub const V6_TO_CLIENT: u32 = 3;
}

/// What the driver writes into every frame.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The frame, with the client's address and port, the sequence number and both checksums zero.
    pub frame: [u64; FRAME_WORDS],
    /// A [`shape`].
    pub shape: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// 1 when the measured program changes the size at the head, 0 at the tail.
    pub head: u32,
    /// Number of flows, at least 1: they take turns in the order of the map `ORDER`.
    pub flows: u32,
    /// First client: the IPv4 address, or the lower half of the IPv6 address, in host order.
    pub client: u64,
    /// Upper half of the IPv6 clients' addresses, as loaded.
    pub client_high: u64,
    /// The server: the IPv4 address, or the upper half of the IPv6 address, as loaded.
    pub server: u64,
    /// Lower half of its IPv6 address, as loaded.
    pub server_low: u64,
    /// Sum of the IPv4 header's words, as in `lb_common::checksum`.
    pub ip_sum: u64,
    /// Sum of the TCP header's, the data's and the pseudo-header's words.
    pub tcp_sum: u64,
    /// Sequence number.
    pub sequence: u32,
    /// Added to the sequence number with every frame.
    pub sequence_step: u32,
    /// Interface that the generator sends to.
    pub ifindex: u32,
    /// The server's port, as loaded.
    pub server_port: u32,
    /// Zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(size_of::<Config>() == 256);

/// Where the driver is. Apart from [`Config`], which it only reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Index into `ORDER` of the next frame's flow, below [`Config::flows`].
    pub position: u32,
    /// Frames made since user space last zeroed it.
    pub made: u32,
    /// Frames that a floor program found no entry for.
    pub misses: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

const _: () = assert!(size_of::<State>() == 64);

/// What a flow's number says: which client (counted from [`Config::client`]) and which port (host order).
#[inline(always)]
pub const fn flow_of(number: u32) -> (u64, u16) {
    ((number >> 4) as u64, 20_000 + (number & 15) as u16 * 2_601)
}

/// The floor programs' hash of a flow: two multiplications, no key. `client` as in `lb_common::Addr`, `ports` as
/// loaded from the segment.
#[inline(always)]
pub const fn floor_hash(client_high: u64, client_low: u64, ports: u32) -> u64 {
    let mixed = (client_low ^ client_high.rotate_left(23) ^ ports as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The backend that floor tables hold at an index.
#[inline(always)]
pub const fn floor_backend(index: u32) -> u32 {
    1 + index.wrapping_mul(0x9e37_79b1) % (FLOOR_BACKENDS - 1)
}

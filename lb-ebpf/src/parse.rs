//! Ethernet, IP and transport headers of a frame, checked before anything trusts them.
//!
//! [`quick`] takes what nearly every packet is: untagged, without options, whole. `crate::thorough` takes the rest
//! and shares the checks of single headers.

use aya_ebpf::programs::XdpContext;
use lb_common::{Addr, abi::jump, outcome::Outcome, steer::Packet};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// EtherType of IPv4, as loaded.
pub const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, as loaded.
pub const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// EtherType of an 802.1Q tag, as loaded.
pub const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
/// EtherType of an 802.1ad service tag, as loaded.
pub const ETHERTYPE_QINQ: u16 = 0x88a8_u16.to_be();
/// More-fragments bit and fragment offset (RFC 791 section 3.1), as loaded.
pub const FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();
/// Version and header length of an IPv4 header without options.
const PLAIN_V4: u8 = 0x45;

/// The network header, for whoever rewrites it.
#[derive(Clone, Copy)]
pub enum Network {
    /// IPv4.
    V4(*mut Ipv4Hdr),
    /// IPv6.
    V6(*mut Ipv6Hdr),
}

/// The transport header, for whoever rewrites it.
#[derive(Clone, Copy)]
pub enum Transport {
    /// TCP.
    Tcp(*mut TcpHdr),
    /// UDP.
    Udp(*mut UdpHdr),
}

impl Transport {
    /// Its source port, which the destination port follows.
    #[inline(always)]
    pub fn ports(self) -> *mut u16 {
        match self {
            Transport::Tcp(tcp) => tcp.cast(),
            Transport::Udp(udp) => udp.cast(),
        }
    }
}

/// A packet whose headers are all inside the frame.
pub struct Parsed {
    /// How it came.
    pub link: Link,
    /// Network header.
    pub network: Network,
    /// Transport header.
    pub transport: Transport,
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, network order as loaded.
    pub source_port: u16,
    /// Destination port, network order as loaded.
    pub destination_port: u16,
    /// Sequence number, host order; 0 in a datagram.
    pub sequence: u32,
    /// Acknowledgment number, host order; 0 in a datagram.
    pub acknowledgment: u32,
    /// Bytes of data in a TCP segment; 0 in a datagram.
    pub data: u32,
    /// TCP flags; 0 in a datagram.
    pub flags: u8,
    /// The IP header follows the Ethernet header, the transport header follows the IP header, neither has options.
    pub is_plain: bool,
    /// Length of the frame in bytes.
    pub length: u32,
    /// It is the first of several, and what the later ones are known by lies in `maps::FRAGMENT_KEY`.
    pub is_first: bool,
}

impl Parsed {
    /// IP protocol number.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => TCP,
            Transport::Udp(_) => UDP,
        }
    }

    /// For steering, when it comes from a client.
    #[inline(always)]
    pub fn from_client(&self) -> Packet {
        Packet {
            client: self.source,
            client_port: self.source_port,
            service_port: self.destination_port,
            flags: self.flags,
            sequence: self.sequence,
            acknowledgment: self.acknowledgment,
            data: self.data,
        }
    }

    /// For noting, when it goes to a client from the backend of a service on `service_port`.
    #[inline(always)]
    pub fn to_client(&self, service_port: u16) -> Packet {
        Packet {
            client: self.destination,
            client_port: self.destination_port,
            service_port,
            flags: self.flags,
            sequence: self.sequence,
            acknowledgment: self.acknowledgment,
            data: self.data,
        }
    }
}

/// Not for this program.
#[derive(Clone, Copy)]
pub struct Refused {
    /// What to count when no other program takes it.
    pub outcome: Outcome,
    /// The program that takes it, a place in `JUMPS`; none past the end.
    pub program: u32,
}

impl Refused {
    /// For the program that does everything.
    #[inline(always)]
    pub fn whole() -> Self {
        Self {
            outcome: Outcome::PassInternal,
            program: jump::WHOLE,
        }
    }
}

impl From<Outcome> for Refused {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            program: jump::PLACES,
        }
    }
}

/// How a frame came, as far as it matters for how it leaves.
#[derive(Clone, Copy)]
pub struct Link {
    /// Start of the frame.
    pub ethernet: *mut EthHdr,
    /// Bytes of the tags behind the MAC addresses.
    pub tags: usize,
    /// EtherType of the packet behind them, as loaded.
    pub ether_type: u16,
}

/// Where a frame's parts begin, as addresses and lengths in bytes.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Start of the frame.
    pub start: usize,
    /// Its end.
    pub end: usize,
    /// Network header.
    pub network: usize,
    /// From the start to the network header, told apart from these two: the verifier knows no differences of pointers.
    pub offset: usize,
    /// What the network header says the packet's length is, from there on.
    pub total: usize,
    /// From the network header to the transport header.
    pub header: usize,
    /// More of the packet comes in later fragments.
    pub is_part: bool,
}

impl Link {
    /// Where in the frame the network header begins.
    #[inline(always)]
    pub const fn network_offset(&self) -> usize {
        EthHdr::LEN + self.tags
    }
}

impl Extent {
    /// How the frame came.
    #[inline(always)]
    pub fn link(&self, network: Network) -> Link {
        Link {
            ethernet: self.start as *mut EthHdr,
            tags: self.offset - EthHdr::LEN,
            ether_type: match network {
                Network::V4(_) => ETHERTYPE_IPV4,
                Network::V6(_) => ETHERTYPE_IPV6,
            },
        }
    }
}

/// Reads the headers of a plain packet, or says who else may know it.
#[inline(always)]
pub fn quick(ctx: &XdpContext) -> Result<Parsed, Refused> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let at = start + EthHdr::LEN;
    match ether_type(start, end)? {
        ETHERTYPE_IPV4 => quick_v4(start, at, end),
        ETHERTYPE_IPV6 => quick_v6(start, at, end),
        other => Err(not_plain(other)),
    }
}

/// What [`quick_then`] goes on with. Not a closure: those can not be told to be inlined.
pub trait Then {
    /// What comes of it.
    type Result;
    /// Handles a packet.
    fn then(ctx: &XdpContext, packet: Parsed) -> Self::Result;
}

/// As [`quick`], and goes on with `T`, which is compiled once for each address family and protocol and knows them. Of an IP
/// packet that it refuses it does not say why: what would be kept for that costs those that are taken.
#[inline(always)]
pub fn quick_then<T: Then>(ctx: &XdpContext) -> Result<T::Result, Refused> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let at = start + EthHdr::LEN;
    match ether_type(start, end)? {
        ETHERTYPE_IPV4 => then_v4::<T>(ctx, start, at, end).ok_or_else(Refused::whole),
        ETHERTYPE_IPV6 => then_v6::<T>(ctx, start, at, end).ok_or_else(Refused::whole),
        other => Err(not_plain(other)),
    }
}

#[inline(always)]
fn then_v4<T: Then>(ctx: &XdpContext, start: usize, at: usize, end: usize) -> Option<T::Result> {
    let ip: *mut Ipv4Hdr = header(at, end).ok()?;
    let extent = plain_v4(start, end, ip).ok()?;
    // SAFETY: `header` has checked it.
    let (protocol, ends) = unsafe { ((*ip).proto, v4_ends(ip)) };
    then_transport::<T>(ctx, protocol, Network::V4(ip), ends, &extent)
}

#[inline(always)]
fn then_v6<T: Then>(ctx: &XdpContext, start: usize, at: usize, end: usize) -> Option<T::Result> {
    let ip: *mut Ipv6Hdr = header(at, end).ok()?;
    let extent = plain_v6(start, end, ip).ok()?;
    // SAFETY: `header` has checked it.
    let (protocol, ends) = unsafe { ((*ip).next_hdr, v6_ends(ip).ok()?) };
    then_transport::<T>(ctx, protocol, Network::V6(ip), ends, &extent)
}

#[inline(always)]
fn then_transport<T: Then>(
    ctx: &XdpContext,
    protocol: u8,
    network: Network,
    ends: (Addr, Addr),
    extent: &Extent,
) -> Option<T::Result> {
    // SAFETY: the network header lies inside the frame.
    unsafe {
        match protocol {
            TCP => Some(T::then(ctx, tcp(network, ends, extent, true).ok()?)),
            UDP => Some(T::then(ctx, udp(network, ends, extent, true).ok()?)),
            _ => None,
        }
    }
}

/// What follows the Ethernet header, as loaded.
#[inline(always)]
fn ether_type(start: usize, end: usize) -> Result<u16, Outcome> {
    let ethernet: *mut EthHdr = header(start, end)?;
    // SAFETY: `header` has checked that it lies inside the frame; so for every header below.
    Ok(unsafe { (*ethernet).ether_type })
}

#[inline(always)]
fn not_plain(ether_type: u16) -> Refused {
    match ether_type {
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => elsewhere(Outcome::PassNotIp),
        _ => Outcome::PassNotIp.into(),
    }
}

#[inline(always)]
fn elsewhere(outcome: Outcome) -> Refused {
    Refused {
        outcome,
        program: jump::THOROUGH,
    }
}

#[inline(always)]
fn quick_v4(start: usize, at: usize, end: usize) -> Result<Parsed, Refused> {
    let ip: *mut Ipv4Hdr = header(at, end)?;
    let extent = plain_v4(start, end, ip)?;
    // SAFETY: `header` has checked it.
    unsafe { transport((*ip).proto, Network::V4(ip), v4_ends(ip), &extent, true) }
}

/// Where the parts of a packet are that has this header right behind the Ethernet header and no options.
#[inline(always)]
fn plain_v4(start: usize, end: usize, ip: *const Ipv4Hdr) -> Result<Extent, Refused> {
    // SAFETY: the caller has checked that it lies inside the frame.
    let (begin, fragment, total) = unsafe { ((*ip).vihl, (*ip).frags, (*ip).tot_len) };
    if begin != PLAIN_V4 {
        return Err(elsewhere(Outcome::PassMalformed));
    }
    if u16::from_ne_bytes(fragment) & FRAGMENT_MASK != 0 {
        return Err(elsewhere(Outcome::PassFragment));
    }
    Ok(Extent {
        start,
        end,
        network: ip as usize,
        offset: EthHdr::LEN,
        total: usize::from(u16::from_be_bytes(total)),
        header: Ipv4Hdr::LEN,
        is_part: false,
    })
}

#[inline(always)]
fn quick_v6(start: usize, at: usize, end: usize) -> Result<Parsed, Refused> {
    let ip: *mut Ipv6Hdr = header(at, end)?;
    let extent = plain_v6(start, end, ip)?;
    // SAFETY: `header` has checked it.
    unsafe { transport((*ip).next_hdr, Network::V6(ip), v6_ends(ip)?, &extent, true) }
}

/// The same for IPv6, without extension headers.
#[inline(always)]
fn plain_v6(start: usize, end: usize, ip: *const Ipv6Hdr) -> Result<Extent, Refused> {
    // SAFETY: the caller has checked that it lies inside the frame.
    let (begin, protocol, length) =
        unsafe { (*ip.cast::<u8>(), (*ip).next_hdr, (*ip).payload_len) };
    if begin >> 4 != 6 {
        return Err(Outcome::PassMalformed.into());
    }
    if !matches!(protocol, TCP | UDP | ICMPV6) {
        return Err(elsewhere(Outcome::PassProtocol));
    }
    Ok(Extent {
        start,
        end,
        network: ip as usize,
        offset: EthHdr::LEN,
        total: usize::from(u16::from_be_bytes(length)) + Ipv6Hdr::LEN,
        header: Ipv6Hdr::LEN,
        is_part: false,
    })
}

/// Source and destination.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn v4_ends(ip: *const Ipv4Hdr) -> (Addr, Addr) {
    unsafe {
        (
            Addr::from_v4_word(u32::from_ne_bytes((*ip).src_addr)),
            Addr::from_v4_word(u32::from_ne_bytes((*ip).dst_addr)),
        )
    }
}

/// Source and destination; malformed where one of them is an IPv4-mapped address. No packet on a wire has such a one
/// (RFC 4291 section 2.5.5.2, RFC 6890), and here it would be taken for the IPv4 address.
///
/// # Safety
/// The header lies inside the frame.
#[inline(always)]
pub unsafe fn v6_ends(ip: *const Ipv6Hdr) -> Result<(Addr, Addr), Outcome> {
    let words = ip.cast::<u64>();
    let address = |word: usize| unsafe {
        Addr {
            high: words.add(word).read_unaligned(),
            low: words.add(word + 1).read_unaligned(),
        }
    };
    let (source, destination) = (address(1), address(3));
    if source.is_v4() || destination.is_v4() {
        return Err(Outcome::PassMalformed);
    }
    Ok((source, destination))
}

/// The transport part, and whether the lengths agree.
///
/// # Safety
/// `network` lies inside the frame that `extent` describes.
#[inline(always)]
pub unsafe fn transport(
    protocol: u8,
    network: Network,
    ends: (Addr, Addr),
    extent: &Extent,
    is_plain: bool,
) -> Result<Parsed, Refused> {
    match protocol {
        // SAFETY: the caller vouches for the network header.
        TCP => unsafe { tcp(network, ends, extent, is_plain) },
        // SAFETY: as above.
        UDP => unsafe { udp(network, ends, extent, is_plain) },
        ICMP | ICMPV6 => Err(Refused {
            outcome: Outcome::PassProtocol,
            program: jump::ICMP,
        }),
        _ => Err(Outcome::PassProtocol.into()),
    }
}

/// What of a TCP header steering looks at, host order; all 0 of a datagram.
#[derive(Default)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgment: u32,
}

/// [`transport`] for TCP.
#[inline(always)]
unsafe fn tcp(
    network: Network,
    ends: (Addr, Addr),
    extent: &Extent,
    is_plain: bool,
) -> Result<Parsed, Refused> {
    let tcp: *mut TcpHdr = header(extent.network + extent.header, extent.end)?;
    let bytes = tcp.cast::<u8>();
    // SAFETY: `header` has checked all 20 bytes.
    let (offset, segment) = unsafe {
        let segment = Segment {
            flags: *bytes.add(13),
            sequence: u32::from_be_bytes((*tcp).seq),
            acknowledgment: u32::from_be_bytes((*tcp).ack_seq),
        };
        (usize::from(*bytes.add(12) >> 4) << 2, segment)
    };
    if offset < TcpHdr::LEN {
        return Err(Outcome::PassMalformed.into());
    }
    let packet = (Transport::Tcp(tcp), segment);
    whole(network, ends, extent, is_plain, offset, packet)
}

/// [`transport`] for UDP.
#[inline(always)]
unsafe fn udp(
    network: Network,
    ends: (Addr, Addr),
    extent: &Extent,
    is_plain: bool,
) -> Result<Parsed, Refused> {
    let udp: *mut UdpHdr = header(extent.network + extent.header, extent.end)?;
    // SAFETY: as above.
    let length = usize::from(u16::from_be_bytes(unsafe { (*udp).len }));
    if length < UdpHdr::LEN {
        return Err(Outcome::PassMalformed.into());
    }
    let needed = if extent.is_part { UdpHdr::LEN } else { length };
    let packet = (Transport::Udp(udp), Segment::default());
    whole(network, ends, extent, is_plain, needed, packet)
}

/// `needed`: bytes that the transport header says are there, at least.
#[inline(always)]
fn whole(
    network: Network,
    (source, destination): (Addr, Addr),
    extent: &Extent,
    is_plain: bool,
    needed: usize,
    (transport, segment): (Transport, Segment),
) -> Result<Parsed, Refused> {
    if extent.header + needed > extent.total {
        return Err(Outcome::PassMalformed.into());
    }
    let frame = extent.end - extent.start;
    if extent.total > frame - (extent.network - extent.start) {
        return Err(Outcome::PassTruncated.into());
    }
    let ports = transport.ports();
    // SAFETY: both headers begin with the two ports, and were checked.
    let (source_port, destination_port) =
        unsafe { (ports.read_unaligned(), ports.add(1).read_unaligned()) };
    Ok(Parsed {
        link: extent.link(network),
        network,
        transport,
        source,
        destination,
        source_port,
        destination_port,
        sequence: segment.sequence,
        acknowledgment: segment.acknowledgment,
        data: match transport {
            Transport::Tcp(_) => (extent.total - extent.header - needed) as u32,
            Transport::Udp(_) => 0,
        },
        flags: segment.flags,
        is_plain,
        length: frame as u32,
        is_first: false,
    })
}

/// The header at `at`, if all of it lies inside the frame.
#[inline(always)]
pub fn header<T>(at: usize, end: usize) -> Result<*mut T, Outcome> {
    if at + size_of::<T>() > end {
        return Err(Outcome::PassTruncated);
    }
    Ok(at as *mut T)
}

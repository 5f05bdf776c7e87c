//! Ethernet, IP and TCP headers of a frame, checked before anything trusts them.

use aya_ebpf::programs::XdpContext;
use lb_common::{Addr, outcome::Outcome, steer::Packet};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// More-fragments bit and fragment offset (RFC 791 section 3.1), network order as loaded.
const FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();

/// The network header, for whoever rewrites it.
#[derive(Clone, Copy)]
pub enum Network {
    /// IPv4.
    V4(*mut Ipv4Hdr),
    /// IPv6 without extension headers.
    V6(*mut Ipv6Hdr),
}

/// A TCP segment whose headers are all inside the frame.
pub struct Parsed {
    /// Start of the frame.
    pub ethernet: *mut EthHdr,
    /// Network header.
    pub network: Network,
    /// TCP header.
    pub tcp: *mut TcpHdr,
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, network order as loaded.
    pub source_port: u16,
    /// Destination port, network order as loaded.
    pub destination_port: u16,
    /// Sequence number, host order.
    pub sequence: u32,
    /// TCP flags.
    pub flags: u8,
    /// Length of the frame in bytes.
    pub length: u32,
}

impl Parsed {
    /// For steering, when it comes from a client.
    #[inline(always)]
    pub fn from_client(&self) -> Packet {
        Packet {
            client: self.source,
            client_port: self.source_port,
            service_port: self.destination_port,
            flags: self.flags,
            sequence: self.sequence,
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
        }
    }
}

/// Reads the headers, or says why the frame is not for ebb.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Result<Parsed, Outcome> {
    let start = ctx.data();
    let end = ctx.data_end();
    let ethernet: *mut EthHdr = header(start, end)?;
    // SAFETY: `header` has checked that it lies inside the frame; so for every header below.
    match unsafe { (*ethernet).ether_type } {
        ETHERTYPE_IPV4 => parse_v4(ethernet, start, end),
        ETHERTYPE_IPV6 => parse_v6(ethernet, start, end),
        _ => Err(Outcome::PassNotIp),
    }
}

#[inline(always)]
fn parse_v4(ethernet: *mut EthHdr, start: usize, end: usize) -> Result<Parsed, Outcome> {
    let at = start + EthHdr::LEN;
    let ip: *mut Ipv4Hdr = header(at, end)?;
    unsafe {
        let header_length = usize::from((*ip).vihl & 0xf) << 2;
        let total = usize::from(u16::from_be_bytes((*ip).tot_len));
        if (*ip).vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN || total < header_length {
            return Err(Outcome::PassMalformed);
        }
        if (*ip).proto != TCP {
            return Err(Outcome::PassProtocol);
        }
        if u16::from_ne_bytes((*ip).frags) & FRAGMENT_MASK != 0 {
            return Err(Outcome::PassFragment);
        }
        let source = Addr::from_v4_word(u32::from_ne_bytes((*ip).src_addr));
        let destination = Addr::from_v4_word(u32::from_ne_bytes((*ip).dst_addr));
        let tcp: *mut TcpHdr = header(at + header_length, end)?;
        segment(
            ethernet,
            Network::V4(ip),
            tcp,
            source,
            destination,
            Lengths {
                start,
                end,
                at,
                total,
                header: header_length,
            },
        )
    }
}

#[inline(always)]
fn parse_v6(ethernet: *mut EthHdr, start: usize, end: usize) -> Result<Parsed, Outcome> {
    let at = start + EthHdr::LEN;
    let ip: *mut Ipv6Hdr = header(at, end)?;
    unsafe {
        let bytes = ip.cast::<u8>();
        if *bytes >> 4 != 6 {
            return Err(Outcome::PassMalformed);
        }
        if (*ip).next_hdr != TCP {
            return Err(Outcome::PassProtocol);
        }
        let total = usize::from(u16::from_be_bytes((*ip).payload_len)) + Ipv6Hdr::LEN;
        let words = bytes.cast::<u64>();
        let source = Addr {
            high: words.add(1).read_unaligned(),
            low: words.add(2).read_unaligned(),
        };
        let destination = Addr {
            high: words.add(3).read_unaligned(),
            low: words.add(4).read_unaligned(),
        };
        let tcp: *mut TcpHdr = header(at + Ipv6Hdr::LEN, end)?;
        segment(
            ethernet,
            Network::V6(ip),
            tcp,
            source,
            destination,
            Lengths {
                start,
                end,
                at,
                total,
                header: Ipv6Hdr::LEN,
            },
        )
    }
}

/// Where things begin and how long they say they are.
struct Lengths {
    start: usize,
    end: usize,
    at: usize,
    total: usize,
    header: usize,
}

/// The TCP part, and whether the lengths agree.
#[inline(always)]
unsafe fn segment(
    ethernet: *mut EthHdr,
    network: Network,
    tcp: *mut TcpHdr,
    source: Addr,
    destination: Addr,
    lengths: Lengths,
) -> Result<Parsed, Outcome> {
    let bytes = tcp.cast::<u8>();
    // SAFETY: the caller has checked that 20 bytes of TCP header lie inside the frame.
    unsafe {
        let data_offset = usize::from(*bytes.add(12) >> 4) << 2;
        if data_offset < TcpHdr::LEN || lengths.header + data_offset > lengths.total {
            return Err(Outcome::PassMalformed);
        }
        let frame = lengths.end - lengths.start;
        if lengths.total > frame - (lengths.at - lengths.start) {
            return Err(Outcome::PassTruncated);
        }
        Ok(Parsed {
            ethernet,
            network,
            tcp,
            source,
            destination,
            source_port: u16::from_ne_bytes((*tcp).source),
            destination_port: u16::from_ne_bytes((*tcp).dest),
            sequence: u32::from_be_bytes((*tcp).seq),
            flags: *bytes.add(13),
            length: frame as u32,
        })
    }
}

/// The header at `at`, if all of it lies inside the frame.
#[inline(always)]
fn header<T>(at: usize, end: usize) -> Result<*mut T, Outcome> {
    if at + size_of::<T>() > end {
        return Err(Outcome::PassTruncated);
    }
    Ok(at as *mut T)
}

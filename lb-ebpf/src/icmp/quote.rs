//! The packet that an ICMP error quotes.

use lb_common::{Addr, outcome::Outcome};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{HEADER_LENGTH, Message};
use crate::{
    parse::{FRAGMENT_MASK, Network, Refused, TCP, UDP, header, v4_ends, v6_ends},
    thorough::forget,
};

/// More-fragments bit apart, the fragment offset, as loaded.
const OFFSET_MASK: u16 = FRAGMENT_MASK & 0x1fff_u16.to_be();
/// Least that is quoted of what follows the IP header (RFC 792).
const LEAST: usize = 8;
/// Where in a TCP header its acknowledgement number is.
const ACKNOWLEDGED: usize = 8;
/// Where in a TCP header its checksum is.
const TCP_CHECK: usize = 16;
/// Where in a UDP header its checksum is.
const UDP_CHECK: usize = 6;

/// What an error quotes of a packet.
pub struct Quote {
    /// The quoted network header.
    pub network: Network,
    /// Its source.
    pub source: Addr,
    /// Its destination.
    pub destination: Addr,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// The quoted ports: source, destination.
    pub ports: *mut [u16; 2],
    /// Source port, network order as loaded.
    pub source_port: u16,
    /// Destination port, network order as loaded.
    pub destination_port: u16,
    /// The transport checksum, where it is quoted.
    pub check: Option<*mut u16>,
    /// TCP acknowledgement number, host order; 0 where it is not quoted.
    pub acknowledged: u32,
}

/// Reads the quoted headers. What quotes neither TCP nor UDP, or no ports, is not about a flow.
#[inline(always)]
pub fn parse(message: &Message) -> Result<Quote, Refused> {
    let extent = &message.packet.extent;
    let at = message.header as usize + HEADER_LENGTH;
    // What the message has behind its own header, in bytes. `parse` has seen that it is not negative.
    let room = extent.total - extent.header - HEADER_LENGTH;
    match message.packet.network {
        Network::V4(_) => parse_v4(at, extent.end, room),
        Network::V6(_) => parse_v6(at, extent.end, room),
    }
}

#[inline(always)]
fn parse_v4(at: usize, end: usize, room: usize) -> Result<Quote, Refused> {
    let ip: *mut Ipv4Hdr = header(at, end)?;
    // SAFETY: `header` has checked it; so for all below.
    unsafe {
        let length = usize::from((*ip).vihl & 0xf) << 2;
        if (*ip).vihl >> 4 != 4
            || length < Ipv4Hdr::LEN
            || u16::from_ne_bytes((*ip).frags) & OFFSET_MASK != 0
        {
            return Err(Outcome::PassIcmp.into());
        }
        let length = forget(length, 60)?;
        let base = (Network::V4(ip), v4_ends(ip), (*ip).proto);
        transport(base, at + length, end, room.wrapping_sub(length))
    }
}

#[inline(always)]
fn parse_v6(at: usize, end: usize, room: usize) -> Result<Quote, Refused> {
    let ip: *mut Ipv6Hdr = header(at, end)?;
    // SAFETY: as above.
    unsafe {
        if *ip.cast::<u8>() >> 4 != 6 {
            return Err(Outcome::PassIcmp.into());
        }
        let base = (Network::V6(ip), v6_ends(ip)?, (*ip).next_hdr);
        transport(
            base,
            at + Ipv6Hdr::LEN,
            end,
            room.wrapping_sub(Ipv6Hdr::LEN),
        )
    }
}

/// `room`: bytes that are quoted from `at` on; wrapped when the quote ends before.
#[inline(always)]
fn transport(
    (network, (source, destination), protocol): (Network, (Addr, Addr), u8),
    at: usize,
    end: usize,
    room: usize,
) -> Result<Quote, Refused> {
    if !matches!(protocol, TCP | UDP) || (room as isize) < LEAST as isize {
        return Err(Outcome::PassIcmp.into());
    }
    let least: *mut [u8; LEAST] = header(at, end)?;
    let ports = least.cast::<[u16; 2]>();
    // SAFETY: `header` has checked it.
    let [source_port, destination_port] = unsafe { ports.read_unaligned() };
    let (check, acknowledged) = if protocol == UDP {
        (Some((at + UDP_CHECK) as *mut u16), 0)
    } else if room >= TCP_CHECK + 2
        && let Ok(tcp) = header::<[u8; TCP_CHECK + 2]>(at, end)
    {
        // SAFETY: as above.
        let acknowledged = unsafe {
            tcp.cast::<u8>()
                .add(ACKNOWLEDGED)
                .cast::<u32>()
                .read_unaligned()
        };
        (
            Some((at + TCP_CHECK) as *mut u16),
            u32::from_be(acknowledged),
        )
    } else {
        (None, 0)
    };
    Ok(Quote {
        network,
        source,
        destination,
        protocol,
        ports,
        source_port,
        destination_port,
        check,
        acknowledged,
    })
}

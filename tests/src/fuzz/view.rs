//! The oracle's own reading of a frame, byte offset by byte offset, written without a look at the program's parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::sums::{ICMP, ICMPV6, TCP, UDP};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why a frame is no sound packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsound {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// It ends before a header or a length does.
    Short,
    /// A header contradicts itself or another one.
    Contradiction,
}

/// Where a packet stands in a fragmented datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is a whole datagram.
    Whole,
    /// First of several.
    First,
    /// A later one, without transport header.
    Later,
}

/// A sound packet. Offsets count from the start of the frame.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// VLAN tags before the network header.
    pub tags: usize,
    /// Network header.
    pub network: usize,
    /// IP version.
    pub family: Family,
    /// Length of the IPv4 header, or of the fixed IPv6 header.
    pub header: usize,
    /// Length of the packet as its network header says.
    pub total: usize,
    /// IPv6 extension headers before the transport header.
    pub extensions: usize,
    /// Whether a routing header sends it elsewhere first (RFC 8200 section 4.4).
    pub rerouted: bool,
    /// Place in a fragmented datagram.
    pub fragment: Fragment,
    /// Where in the datagram a fragment's data belongs, in bytes.
    pub offset: usize,
    /// Where a fragment's identification stands: of two bytes in IPv4, of four in IPv6.
    pub id_at: usize,
    /// That identification.
    pub id: u32,
    /// Whether the transport header is whole and agrees with the lengths. Always so but in fragments.
    pub has_transport: bool,
    /// Transport protocol.
    pub protocol: u8,
    /// Transport header (or what stands in its place).
    pub transport: usize,
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Source port, 0 where there are no ports.
    pub from_port: u16,
    /// Destination port, 0 where there are no ports.
    pub to_port: u16,
    /// Time to live or hop limit.
    pub ttl: u8,
}

impl View {
    /// Reads a frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(frame: &[u8]) -> Result<Self, Unsound> {
        let (tags, ethertype, network) = ethernet(frame)?;
        let mut view = match ethertype {
            0x0800 => v4(frame, network)?,
            0x86dd => v6(frame, network)?,
            _ => return Err(Unsound::NotIp),
        };
        view.tags = tags;
        if view.network + view.total > frame.len() {
            return Err(Unsound::Short);
        }
        view.has_transport = match view.fragment {
            Fragment::Whole => view.read_transport(frame).map(|()| true)?,
            // What is laid over a header, or leaves a part of it out, is for the kernel to judge.
            Fragment::First => view.read_transport(frame).is_ok(),
            Fragment::Later => false,
        };
        Ok(view)
    }

    /// Whether it is an ICMP message of its family.
    pub fn is_icmp(&self) -> bool {
        match self.family {
            Family::V4 => self.protocol == ICMP,
            Family::V6 => self.protocol == ICMPV6,
        }
    }

    fn read_transport(&mut self, frame: &[u8]) -> Result<(), Unsound> {
        let end = self.network + self.total;
        let room = end
            .checked_sub(self.transport)
            .ok_or(Unsound::Contradiction)?;
        let header = match self.protocol {
            TCP => 20,
            UDP | ICMP | ICMPV6 => 8,
            _ => return Ok(()),
        };
        if room < header {
            return Err(Unsound::Contradiction);
        }
        let at = self.transport;
        if matches!(self.protocol, TCP | UDP) {
            (self.from_port, self.to_port) = (word(frame, at)?, word(frame, at + 2)?);
        }
        let whole = self.fragment == Fragment::Whole;
        let sound = match self.protocol {
            TCP => (20..=room).contains(&(usize::from(frame[at + 12] >> 4) * 4)),
            UDP => {
                let length = usize::from(word(frame, at + 4)?);
                length >= 8 && (!whole || length <= room)
            }
            _ => true,
        };
        if sound {
            Ok(())
        } else {
            Err(Unsound::Contradiction)
        }
    }
}

fn word(frame: &[u8], at: usize) -> Result<u16, Unsound> {
    let bytes = frame.get(at..at + 2).ok_or(Unsound::Short)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// VLAN tags, ethertype, start of the network header.
fn ethernet(frame: &[u8]) -> Result<(usize, u16, usize), Unsound> {
    /// Tags that are looked behind.
    const TAGS_MAX: usize = 2;
    let mut at = 12;
    let mut tags = 0;
    loop {
        let ethertype = word(frame, at)?;
        if !matches!(ethertype, 0x8100 | 0x88a8) || tags == TAGS_MAX {
            return Ok((tags, ethertype, at + 2));
        }
        tags += 1;
        at += 4;
    }
}

fn v4(frame: &[u8], network: usize) -> Result<View, Unsound> {
    let fixed = frame.get(network..network + 20).ok_or(Unsound::Short)?;
    let header = usize::from(fixed[0] % 16) * 4;
    let total = usize::from(word(fixed, 2)?);
    if fixed[0] / 16 != 4 || header < 20 || total < header {
        return Err(Unsound::Contradiction);
    }
    let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    Ok(View {
        tags: 0,
        network,
        family: Family::V4,
        header,
        total,
        extensions: 0,
        rerouted: false,
        fragment: fragment(word(fixed, 6)? & 0x2000 != 0, word(fixed, 6)? & 0x1fff),
        offset: usize::from(word(fixed, 6)? & 0x1fff) * 8,
        id_at: network + 4,
        id: u32::from(word(fixed, 4)?),
        has_transport: false,
        protocol: fixed[9],
        transport: network + header,
        from: address(12).into(),
        to: address(16).into(),
        from_port: 0,
        to_port: 0,
        ttl: fixed[8],
    })
}

fn v6(frame: &[u8], network: usize) -> Result<View, Unsound> {
    let fixed = frame.get(network..network + 40).ok_or(Unsound::Short)?;
    if fixed[0] / 16 != 6 {
        return Err(Unsound::Contradiction);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|i| fixed[at + i]);
        Ipv6Addr::from(octets)
    };
    let (from, to) = (address(8), address(24));
    if [from, to].iter().any(|end| end.to_ipv4_mapped().is_some()) {
        return Err(Unsound::Contradiction);
    }
    let mut view = View {
        tags: 0,
        network,
        family: Family::V6,
        header: 40,
        total: 40 + usize::from(word(fixed, 4)?),
        extensions: 0,
        rerouted: false,
        fragment: Fragment::Whole,
        offset: 0,
        id_at: 0,
        id: 0,
        has_transport: false,
        protocol: fixed[6],
        transport: network + 40,
        from: from.into(),
        to: to.into(),
        from_port: 0,
        to_port: 0,
        ttl: fixed[7],
    };
    extensions(frame, &mut view)?;
    Ok(view)
}

/// Hop-by-hop, routing, fragment, destination options (RFC 8200 section 4).
fn extensions(frame: &[u8], view: &mut View) -> Result<(), Unsound> {
    while matches!(view.protocol, 0 | 43 | 44 | 60) {
        let at = view.transport;
        let fixed = frame.get(at..at + 8).ok_or(Unsound::Short)?;
        view.extensions += 1;
        view.rerouted |= view.protocol == 43 && fixed[3] != 0;
        let mut length = 8;
        if view.protocol == 44 {
            view.fragment = fragment(fixed[3] & 1 != 0, word(fixed, 2)? >> 3);
            view.offset = usize::from(word(fixed, 2)? >> 3) * 8;
            view.id_at = at + 4;
            view.id = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        } else {
            length += usize::from(fixed[1]) * 8;
        }
        view.protocol = fixed[0];
        view.transport += length;
        if view.transport > view.network + view.total {
            return Err(Unsound::Contradiction);
        }
        if view.fragment == Fragment::Later {
            break;
        }
    }
    Ok(())
}

fn fragment(more: bool, offset: u16) -> Fragment {
    match (more, offset) {
        (false, 0) => Fragment::Whole,
        (true, 0) => Fragment::First,
        _ => Fragment::Later,
    }
}

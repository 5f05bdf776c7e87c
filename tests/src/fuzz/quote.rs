//! The packet that an ICMP error quotes (RFC 792, RFC 4443 section 2.4), as the oracle reads it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    sums::{TCP, UDP, remainder},
    view::{Family, View},
};

/// Least that is quoted of what follows the IP header.
const LEAST: usize = 8;

/// A quoted packet of TCP or UDP. Offsets count from the start of the frame.
#[derive(Debug, Clone, Copy)]
pub struct Quote {
    /// Its network header.
    pub network: usize,
    /// Its transport header, of which there are at least eight bytes.
    pub transport: usize,
    /// Where the quote ends.
    pub end: usize,
    /// TCP or UDP.
    pub protocol: u8,
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom to.
    pub to: SocketAddr,
    family: Family,
}

/// Whether an ICMP type stands for an error that is about a packet of a flow.
pub fn is_error(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => matches!(kind, 3 | 11 | 12),
        Family::V6 => (1..=4).contains(&kind),
    }
}

impl Quote {
    /// What an ICMP message quotes, if it is an error and quotes enough.
    pub fn parse(frame: &[u8], view: &View) -> Option<Self> {
        if !view.is_icmp() || !is_error(view.family, frame[view.transport]) {
            return None;
        }
        let end = view.network + view.total;
        let network = view.transport + 8;
        let quoted = &frame[network..end];
        let (length, protocol, from, to) = match view.family {
            Family::V4 => v4(quoted)?,
            Family::V6 => v6(quoted)?,
        };
        let ports = quoted.get(length..length + LEAST)?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        matches!(protocol, TCP | UDP).then_some(Self {
            network,
            transport: network + length,
            end,
            protocol,
            from: SocketAddr::new(from, port(0)),
            to: SocketAddr::new(to, port(2)),
            family: view.family,
        })
    }

    /// Where its checksums are, as far as they are quoted: of the IPv4 header, of the transport.
    pub fn checksums(&self) -> (Option<usize>, Option<usize>) {
        let network = (self.family == Family::V4).then_some(self.network + 10);
        let at = self.transport + if self.protocol == TCP { 16 } else { 6 };
        (network, (at + 2 <= self.end).then_some(at))
    }

    /// Where its addresses are: source, destination.
    pub fn addresses(&self) -> (usize, usize) {
        match self.family {
            Family::V4 => (self.network + 12, self.network + 16),
            Family::V6 => (self.network + 8, self.network + 24),
        }
    }

    /// Whether its sender computed no checksum.
    pub fn is_unchecked(&self, frame: &[u8]) -> bool {
        self.protocol == UDP && frame[self.transport + 6..self.transport + 8] == [0, 0]
    }

    /// How wrong its checksums are: of the IPv4 header, and of the transport over what is quoted of it. Only the
    /// difference between two frames means something where the quote is not whole.
    pub fn errors(&self, frame: &[u8]) -> (u16, u16) {
        let header = match self.family {
            Family::V4 => remainder(&[&frame[self.network..self.transport]]),
            Family::V6 => 0,
        };
        let (from, _) = self.addresses();
        let length = if self.family == Family::V4 { 8 } else { 32 };
        let ends = &frame[from..from + length];
        (header, remainder(&[ends, &frame[self.transport..self.end]]))
    }
}

type Ends = (usize, u8, IpAddr, IpAddr);

fn v4(quoted: &[u8]) -> Option<Ends> {
    let fixed = quoted.get(..20)?;
    let length = usize::from(fixed[0] % 16) * 4;
    let offset = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff;
    let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    let sound = fixed[0] / 16 == 4 && length >= 20 && offset == 0;
    sound.then(|| (length, fixed[9], address(12).into(), address(16).into()))
}

fn v6(quoted: &[u8]) -> Option<Ends> {
    let fixed = quoted.get(..40)?;
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|i| fixed[at + i]);
        Ipv6Addr::from(octets)
    };
    (fixed[0] / 16 == 6).then(|| (40, fixed[6], address(8).into(), address(24).into()))
}

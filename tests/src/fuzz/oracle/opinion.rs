//! A third opinion, by the crate `etherparse`: is the frame sound, and are its checksums right?

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// What it says of a sound frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opinion {
    /// The IPv4 header's checksum is right (true for IPv6).
    pub network: bool,
    /// The transport's checksum is right; `None` where it knows no transport, and of a datagram without a checksum, which
    /// would be right or wrong by chance.
    pub transport: Option<bool>,
}

/// Of a frame; `None`: it is not sound.
pub fn of(frame: &[u8]) -> Option<Opinion> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let network = match packet.net.as_ref()? {
        NetSlice::Ipv4(v4) => {
            let header = v4.header().to_header();
            // Both zeroes of one's complement are one number; the crate knows the positive one.
            zero(header.calc_header_checksum()) == zero(header.header_checksum)
        }
        _ => true,
    };
    let sum = match (packet.net.as_ref()?, packet.transport.as_ref()) {
        (NetSlice::Ipv4(net), Some(TransportSlice::Tcp(tcp))) => {
            let (from, to) = (net.header().source(), net.header().destination());
            tcp.calc_checksum_ipv4(from, to)
                .ok()
                .map(|sum| (sum, tcp.checksum()))
        }
        (NetSlice::Ipv6(net), Some(TransportSlice::Tcp(tcp))) => {
            let (from, to) = (net.header().source(), net.header().destination());
            tcp.calc_checksum_ipv6(from, to)
                .ok()
                .map(|sum| (sum, tcp.checksum()))
        }
        (NetSlice::Ipv4(net), Some(TransportSlice::Udp(udp))) => {
            let (from, to) = (net.header().source(), net.header().destination());
            let sum = udp
                .to_header()
                .calc_checksum_ipv4_raw(from, to, udp.payload());
            sum.ok().map(|sum| (sum, udp.checksum()))
        }
        (NetSlice::Ipv6(net), Some(TransportSlice::Udp(udp))) => {
            let (from, to) = (net.header().source(), net.header().destination());
            let sum = udp
                .to_header()
                .calc_checksum_ipv6_raw(from, to, udp.payload());
            sum.ok().map(|sum| (sum, udp.checksum()))
        }
        _ => None,
    };
    // A datagram without a checksum has none that could be right, but for a coincidence.
    let is_checked = |(_, found): &(u16, u16)| {
        *found != 0 || !matches!(packet.transport, Some(TransportSlice::Udp(_)))
    };
    let transport = sum
        .filter(is_checked)
        .map(|(sum, found)| zero(sum) == zero(found));
    Some(Opinion { network, transport })
}

fn zero(checksum: u16) -> u16 {
    if checksum == 0xffff { 0 } else { checksum }
}

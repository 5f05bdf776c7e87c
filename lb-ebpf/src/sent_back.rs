//! Packets that a backend has sent back, because it was asked and their connection is not there: to the next backend of
//! their slot. See `lb_common::tunnel::question` and `lb_common::steer::sent_back`.
//!
//! Such a packet is believed only where everything in it fits: it comes from the very address of the backend that it
//! names, to the address that this node asks it from, and carries a packet to that backend's service. Whatever does not
//! fit is no business of ebb's and goes to the kernel.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, macros::xdp, programs::XdpContext,
};
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, backend_flags, control_flags, jump, service_flags},
    index::{self, kind},
    outcome::Outcome,
    steer::{self, Decision, Packet, SentOn},
    tunnel::{
        UDP_LENGTH,
        question::{self, Header, Word},
    },
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    Passage, ask, drop, find, maps,
    parse::{
        self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Parsed, TCP, Transport, UDP, header, v4_ends, v6_ends,
    },
    pass, ranges,
    tables::Kernel,
    thorough, to_tunnel,
};

/// Whether backends of this node send packets back.
#[inline(always)]
pub fn are_there() -> bool {
    maps::control().flags & control_flags::ASKS != 0
}

/// A packet that nobody knows: to the program `sent_back` if it may be such a one, else to the kernel.
#[inline(always)]
pub fn perhaps(ctx: &XdpContext, packet: &Parsed) -> u32 {
    if matches!(packet.transport, Transport::Udp(_)) && are_there() {
        // SAFETY: the context is the kernel's own. Returns only when the place is empty.
        unsafe { maps::JUMPS.tail_call(ctx, jump::SENT_BACK) };
    }
    pass(ctx, 0, Outcome::PassNoService)
}

/// Takes packets that were sent back.
#[xdp]
#[inline(always)]
pub fn sent_back(ctx: XdpContext) -> u32 {
    let (id, service, sent_on, overhead, is_v4) = match judge(&ctx) {
        Ok(Some(sound)) => sound,
        Ok(None) => return pass(&ctx, 0, Outcome::PassNoService),
        Err(outcome) => return pass(&ctx, 0, outcome),
    };
    let decision = sent_on.decision;
    let Some(backend) = maps::backend(decision.backend) else {
        return pass(&ctx, id, Outcome::PassInternal);
    };
    if backend.cuts(decision.hash) {
        return drop(&ctx, id, Outcome::DropDeadline);
    }
    if backend.flags & backend_flags::NEXT_HOP == 0 {
        return drop(&ctx, id, Outcome::DropNoNextHop);
    }
    if let Err(outcome) = strip(&ctx, overhead, is_v4) {
        return drop(&ctx, id, outcome);
    }
    if sent_on.asks {
        return ask::hand_over(&ctx, id, &decision);
    }
    match parse::quick(&ctx) {
        Ok(packet) => forward(&ctx, &packet, id, service, backend, &decision),
        Err(refused) => drop(&ctx, id, refused.outcome),
    }
}

#[inline(always)]
fn forward(
    ctx: &XdpContext,
    packet: &Parsed,
    id: u32,
    service: &ServiceRecord,
    backend: &BackendRecord,
    decision: &Decision,
) -> u32 {
    let passage = Passage::of(id, packet, decision);
    to_tunnel(ctx, &packet.into(), service, backend, &passage)
}

/// The service with its id, where the packet goes, and what is in front of it: bytes between the Ethernet addresses' end and
/// the packet, less an EtherType; whether the packet is IPv4.
type Sound = (u32, &'static ServiceRecord, SentOn, u32, bool);

/// What comes of it; `None` where it is not believed.
#[inline(always)]
fn judge(ctx: &XdpContext) -> Result<Option<Sound>, Outcome> {
    let outer = thorough::locate(ctx).map_err(|refused| refused.outcome)?;
    if outer.part != 0 || outer.protocol != UDP || !ask::is_plain(&outer) {
        return Ok(None);
    }
    let end = outer.extent.end;
    let at = outer.extent.network + outer.extent.header;
    let udp: *mut UdpHdr = header(at, end)?;
    let at = at + UdpHdr::LEN;
    let said: *const Header = header::<Header>(at, end)?;
    // SAFETY: `header` has checked it; so for every header here.
    let said = unsafe { said.read_unaligned() };
    if !said.says(Word::NotHere) {
        return Ok(None);
    }
    let Some((destination, packet)) =
        inside(at + usize::from(question::LENGTH), end, said.is_v4())?
    else {
        return Ok(None);
    };
    let Some((id, service)) = service_at(&destination, packet.service_port) else {
        return Ok(None);
    };
    let Some(asked) = maps::backend_named(said.backend()) else {
        return Ok(None);
    };
    let (from, to) = outer.ends;
    // SAFETY: as above.
    let port = u16::from_ne_bytes(unsafe { (*udp).dst });
    if service.flags & service_flags::ASKS == 0
        || service.tunnel_port != port
        || asked.service != id
        || asked.address != from
        || asked.tunnel_source != to
        || packet.is_opening()
    {
        return Ok(None);
    }
    let sent_on = steer::sent_back(&Kernel::<true>, id, service, &packet, said.backend());
    let overhead = outer.extent.offset - EthHdr::LEN
        + ask::ip_length(outer.network)
        + usize::from(UDP_LENGTH + question::LENGTH);
    Ok(sent_on.map(|sent_on| (id, service, sent_on, overhead as u32, said.is_v4())))
}

/// The packet inside: its destination, and what steering needs of it. Only such packets ask as are plain TCP.
#[inline(always)]
fn inside(at: usize, end: usize, is_v4: bool) -> Result<Option<(Addr, Packet)>, Outcome> {
    // SAFETY: as above.
    unsafe {
        let ((source, destination), is_plain, length) = if is_v4 {
            let ip: *mut Ipv4Hdr = header(at, end)?;
            let is_plain = (*ip).vihl == 0x45 && (*ip).proto == TCP;
            (v4_ends(ip), is_plain, Ipv4Hdr::LEN)
        } else {
            let ip: *mut Ipv6Hdr = header(at, end)?;
            (v6_ends(ip)?, (*ip).next_hdr == TCP, Ipv6Hdr::LEN)
        };
        let tcp: *mut TcpHdr = header(at + length, end)?;
        let ports = tcp.cast::<u16>();
        let packet = Packet {
            client: source,
            client_port: ports.read_unaligned(),
            service_port: ports.add(1).read_unaligned(),
            flags: *tcp.cast::<u8>().add(13),
            sequence: u32::from_be_bytes((*tcp).seq),
            // Of such a flow it matters only where it is not.
            acknowledgment: 0,
            data: 0,
        };
        Ok(is_plain.then_some((destination, packet)))
    }
}

/// The TCP service at an address and port.
#[inline(always)]
fn service_at(address: &Addr, port: u16) -> Option<(u32, &'static ServiceRecord)> {
    let entry = match find(address, index::selector(port, TCP, kind::SERVICE)) {
        Some(entry) => entry,
        None => ranges::find_among(address, port, TCP, kind::RANGE)?,
    };
    Some((entry.service, maps::service(entry.service)?))
}

/// Takes away what is in front of the packet, which then has an Ethernet header of its own. Its addresses are nobody's: the
/// next one to write the frame overwrites them.
#[inline(always)]
fn strip(ctx: &XdpContext, overhead: u32, is_v4: bool) -> Result<(), Outcome> {
    // SAFETY: the context is the kernel's own; `header` has checked the frame.
    unsafe {
        if bpf_xdp_adjust_head(ctx.as_ptr().cast(), overhead as i32) != 0 {
            return Err(Outcome::DropNoHeadroom);
        }
        let ethernet: *mut EthHdr = header(ctx.data(), ctx.data_end())?;
        (*ethernet).ether_type = if is_v4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
    }
    Ok(())
}

//! What becomes of a packet that begins a flow, and finds every port that it could have taken: one of those flows loses its own
//! that have waited longest for a first packet of one of their sides.
//!
//! A program of its own: it goes through all candidates, as the one that found none free has done already.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};
use lb_common::{
    abi::jump,
    full_nat::{self as rule, Flow},
    outcome::Outcome,
};

use crate::{
    drop, maps,
    parse::{Parsed, TCP},
    pass,
    tables::Ports,
};

/// Goes on with a packet whose flow has no port: through [`full_nat_displace`] to the program at `back`, or not at all.
#[inline(always)]
pub fn instead(ctx: &XdpContext, packet: &Parsed, flow: &Flow, back: u32) -> u32 {
    let flags = (packet.protocol() == TCP).then_some(packet.flags);
    if rule::may_displace(flags)
        && let (Some(handed), Some(wanted)) =
            (maps::HANDED.get_ptr_mut(0), maps::WANTED.get_ptr_mut(0))
    {
        // SAFETY: this CPU's own places; the context is the kernel's own. Returns only when the program is not there, or this
        // packet has come here too often: others were faster each time.
        unsafe {
            (*handed).back = back;
            wanted.write(*flow);
            maps::JUMPS.tail_call(ctx, jump::FULL_NAT_DISPLACE);
        }
    }
    drop(ctx, flow.service, Outcome::DropNoPort)
}

/// Takes over packets that begin a flow for which no port is free.
#[xdp]
#[inline(always)]
pub fn full_nat_displace(ctx: XdpContext) -> u32 {
    let (Some(handed), Some(flow)) = (maps::HANDED.get_ptr_mut(0), maps::WANTED.get(0)) else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    let Some((sources, _)) = super::sources(flow.client.is_v4()) else {
        return pass(&ctx, flow.service, Outcome::PassInternal);
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() as u32 };
    if rule::displace(&Ports, sources, flow, now).is_none() {
        return drop(&ctx, flow.service, Outcome::DropNoPort);
    }
    // SAFETY: this CPU's own place; the context is the kernel's own.
    unsafe {
        (*handed).outcome = Outcome::ForwardDisplacing as u32;
        maps::JUMPS.tail_call(&ctx, (*handed).back);
    }
    pass(&ctx, flow.service, Outcome::PassInternal)
}

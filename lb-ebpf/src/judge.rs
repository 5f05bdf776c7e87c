//! Answers that say, or may say, where a flow is that has lost its entry: see `lb_common::steer`'s second chance.
//!
//! A program of its own, because it goes through all former owners of a slot. Such answers are rare: until a flow has
//! found its backend again.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{ServiceRecord, jump},
    full_nat::Handed,
    outcome::Outcome,
    steer::{self, Packet, Reply},
};

use crate::{full_nat, pass, tables::Kernel, thorough};

/// Takes over an answer of a `nat` service's backend.
#[xdp]
#[inline(always)]
pub fn judge(ctx: XdpContext) -> u32 {
    let Some(handed) = full_nat::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    match thorough::parse(&ctx) {
        Ok(packet) => crate::answer::<true>(&ctx, &packet, (handed.service, handed.backend)),
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

/// To that program, with an answer of this service's and backend's ids.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, (service, backend): (u32, u32)) -> u32 {
    let handed = Handed {
        service,
        backend,
        ..Handed::default()
    };
    full_nat::jump_to(ctx, handed, jump::JUDGE)
}

/// Notes an answer; `JUDGES`: whatever it says.
#[inline(always)]
pub fn note<const JUDGES: bool>(
    service: &ServiceRecord,
    packet: &Packet,
    (id, backend): (u32, u32),
) -> Reply {
    let env = Kernel::<true>;
    if !JUDGES {
        return steer::note_usual_reply(&env, id, service, packet, backend);
    }
    if steer::note_reply(&env, id, service, packet, backend) {
        Reply::GoesOn
    } else {
        Reply::Withheld
    }
}

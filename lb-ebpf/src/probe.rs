//! Programs for looking in, which no packet goes through: `explain` and `clock`.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    abi::{ClockReading, Explanation, ServiceRecord, Slot},
    outcome::Outcome,
    steer::{self, Decision},
};

use crate::{maps, parse::Parsed, protect, quic, service_of, tables::Kernel, thorough};

/// Says where the given packet would go, and leaves no trace of it. Run by hand only (BPF_PROG_TEST_RUN).
#[xdp]
pub fn explain(ctx: XdpContext) -> u32 {
    answer(&ctx, |packet, id, service| {
        steer::steer(&Kernel::<false>, id, service, &packet.from_client())
    })
}

/// The same for a packet to a QUIC service.
#[xdp]
pub fn explain_quic(ctx: XdpContext) -> u32 {
    answer(&ctx, |packet, id, service| {
        let named = quic::named(&ctx, packet, id, service);
        let packet = packet.from_client();
        steer::quic::steer(&Kernel::<false>, id, service, &packet, &named)
    })
}

#[inline(always)]
fn answer(ctx: &XdpContext, steer: impl Fn(&Parsed, u32, &ServiceRecord) -> Decision) -> u32 {
    let nothing = |outcome| (0, decision(outcome));
    let (service, decision) = match thorough::parse(ctx) {
        Err(refused) => nothing(refused.outcome),
        Ok(packet) => match service_of(&packet) {
            None => nothing(Outcome::PassNoService),
            Some((id, _)) if protect::denies(&packet.source) => (id, decision(Outcome::DropClient)),
            Some((id, service)) => (id, steer(&packet, id, service)),
        },
    };
    if let Some(place) = maps::EXPLANATION.get_ptr_mut(0) {
        let explanation = Explanation {
            outcome: decision.outcome as u32,
            service,
            slot_index: decision.slot_index,
            backend: decision.backend,
            slot: decision.slot.0,
            hash: decision.hash,
        };
        // SAFETY: the map's only entry; the daemon asks one question at a time.
        unsafe { *place = explanation };
    }
    xdp_action::XDP_PASS
}

#[inline(always)]
fn decision(outcome: Outcome) -> Decision {
    Decision {
        outcome,
        backend: 0,
        hash: 0,
        slot_index: 0,
        slot: Slot(0),
    }
}

/// Reads the kernel's clocks. Run by hand only.
#[xdp]
pub fn clock(_ctx: XdpContext) -> u32 {
    if let Some(place) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: the map's only entry, helpers without arguments.
        unsafe {
            *place = ClockReading {
                ticks: bpf_jiffies64(),
                nanoseconds: bpf_ktime_get_ns(),
            }
        };
    }
    xdp_action::XDP_PASS
}

//! The rule for nearly every packet: one of a flow that is neither opening nor closing, in a slot that is not tracked
//! or with an entry of its own.
//!
//! It decides as [`super::steer`] does, and leaves to that whatever needs more than one slot, one entry and one backend.
//! A program with no more than this in it stays small: what the rare packets need would cost every packet, because
//! the machine has ten registers, and values that only a rare branch wants are written to the stack before it.

use super::{Decision, Env, Flow, Packet, tcp};
use crate::{
    abi::ServiceRecord,
    entry::{self, state},
    outcome::Outcome,
};

/// Whether a packet with these TCP flags neither opens nor closes a flow. None other is steered at once.
#[inline(always)]
pub const fn is_plain(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
}

/// Steers a packet, if it can be done at once. `backend` says whether a backend takes packets just so, usually
/// by its record; nothing is written before it has said so.
#[inline(always)]
pub fn at_once<E: Env, B>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    backend: impl FnOnce(u32) -> Option<B>,
) -> Option<(Decision, B)> {
    if !is_plain(packet.flags) || service.table as u32 == 0 {
        return None;
    }
    let flow = Flow::of(env, id, service, packet)?;
    if !flow.is_tracked() {
        let base = flow.slot.base();
        let record = backend(base)?;
        return Some((flow.decision(Outcome::ForwardSteady, base), record));
    }
    let entry = entry::find(env.flows(), flow.hash, &flow.key)?;
    // SAFETY: the entry was found for this packet.
    let meta = unsafe { entry::meta(entry) };
    if meta.has(state::REOPENED) {
        return None;
    }
    let record = backend(meta.backend())?;
    flow.note(entry, 0);
    Some((flow.decision(Outcome::ForwardFlow, meta.backend()), record))
}

/// Notes a backend's answer as [`super::note_reply`] does, if it can be done at once; else says false.
#[inline(always)]
#[must_use]
pub fn note_reply_at_once<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    backend: u32,
) -> bool {
    if !is_plain(packet.flags) || service.table as u32 == 0 {
        return false;
    }
    let Some(flow) = Flow::of(env, id, service, packet) else {
        return false;
    };
    if flow.is_tracked() {
        if let Some(entry) = entry::find(env.flows(), flow.hash, &flow.key) {
            // SAFETY: the entry was found for this packet.
            if unsafe { entry::meta(entry) }.has(state::GUESSED) {
                return false;
            }
            flow.note(entry, 0);
        } else if flow.slot.is_moved() && backend == flow.slot.current() {
            // It shows where its flow is.
            return false;
        }
    }
    true
}

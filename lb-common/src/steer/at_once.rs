//! The rule for nearly every packet: one of a flow that is neither opening nor closing, in a slot that is not tracked
//! or with an entry of its own.
//!
//! It decides as [`super::steer`] does, and leaves to that whatever needs more than one slot, one entry and one backend.
//! A program with no more than this in it stays small: what the rare packets need would cost every packet, because
//! the machine has ten registers, and values that only a rare branch wants are written to the stack before it.

use core::ptr::NonNull;

use super::{Decision, Env, Flow, Packet, tcp};
use crate::{
    abi::ServiceRecord,
    entry::{self, FlowEntry, Meta, state},
    outcome::Outcome,
    recent,
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
    let recent = flow.recent();
    if flow.is_recent(recent) {
        let base = flow.slot.base();
        let record = backend(base)?;
        return Some((flow.decision(Outcome::ForwardFlow, base), record));
    }
    let (index, entry) = entry::locate(env.flows(), flow.hash, &flow.key)?;
    // SAFETY: the entry was found for this packet.
    let meta = unsafe { entry::meta(entry) };
    // Of a guess the backend may have to be asked.
    if meta.has(state::REOPENED | state::GUESSED) {
        return None;
    }
    let record = backend(meta.backend())?;
    flow.note(entry, 0);
    flow.note_recent(recent, index, entry, meta);
    Some((flow.decision(Outcome::ForwardFlow, meta.backend()), record))
}

impl<E: Env> Flow<'_, E> {
    /// [`Flow::recent_group`], in a slot where that is enough to know.
    #[inline(always)]
    fn recent(&self) -> Option<NonNull<recent::Group>> {
        if self.slot.is_tracked() {
            return None;
        }
        self.recent_group()
    }

    /// Whether the flow's entry names the slot's base, and was seen to a moment ago.
    #[inline(always)]
    fn is_recent(&self, words: Option<NonNull<recent::Group>>) -> bool {
        let Some(words) = words else {
            return false;
        };
        // SAFETY: words that all CPUs read and write whole.
        unsafe { recent::holds(words.as_ptr(), self.recent_word()) }
    }

    /// The word of the flow while its entry names the slot's base, and is seen to now.
    #[inline(always)]
    fn recent_word(&self) -> u32 {
        recent::word(self.service, self.hash, self.slot.base(), self.env.now())
    }

    /// Notes that the entry was seen to, for the next packets.
    #[inline(always)]
    fn note_recent(
        &self,
        words: Option<NonNull<recent::Group>>,
        index: u32,
        entry: NonNull<FlowEntry>,
        meta: Meta,
    ) {
        let unsettled = state::CLOSING | state::REOPENED | state::GUESSED;
        let Some(words) = words else {
            return;
        };
        if !E::WRITES || meta.has(unsettled) || meta.backend() != self.slot.base() {
            return;
        }
        // SAFETY: the entry was found for this packet; words as above.
        unsafe {
            // The word may stand for as long as the time may be late.
            entry::touch(entry, self.env.now(), 0);
            recent::note(words.as_ptr(), index, self.recent_word());
        }
    }
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
        let recent = flow.recent();
        if flow.is_recent(recent) {
            return true;
        }
        if let Some((index, entry)) = entry::locate(env.flows(), flow.hash, &flow.key) {
            // SAFETY: the entry was found for this packet.
            let meta = unsafe { entry::meta(entry) };
            if meta.has(state::GUESSED) {
                return false;
            }
            flow.note(entry, 0);
            flow.note_recent(recent, index, entry, meta);
        } else if flow.slot.is_open() && backend != flow.slot.base() {
            // It may show where its flow is.
            return false;
        }
    }
    true
}

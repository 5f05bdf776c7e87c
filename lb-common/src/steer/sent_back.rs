//! The second chance in tunnels. The answers do not pass ebb, but where the backends' tunnels end in `ebb decap` they can
//! be asked: a packet of a flow that nothing is known of, in a moved slot, goes to the base with the question whether the
//! connection is there ([`crate::tunnel::question`]). If it is not, the packet comes back and goes to the next backend that the slot
//! had, to the last of them without a question, and the flow has an entry for that one from then on. So nothing travels in
//! circles, and no host that does not know the connection gets to see a packet of it, unless nobody does.
//!
//! While nobody sends anything back, every packet of the flow asks: the entry stands for the backend that was asked, which is
//! right or is corrected within a round trip. (While the deadline of the base's drain cuts the flow, the base comes last, and
//! without a question.) Without an entry (no room, or too many at once) each packet takes the way round.

use core::ptr::NonNull;

use super::{Count, Decision, Env, Flow, Packet, candidates::is_last};
use crate::{
    abi::{ServiceRecord, service_flags},
    entry::{self, FlowEntry, Meta, state},
    outcome::Outcome,
};

/// Where a packet goes that was sent back.
#[derive(Clone, Copy, Debug)]
pub struct SentOn {
    /// To whom.
    pub decision: Decision,
    /// Whether that one is to be asked in his turn.
    pub asks: bool,
}

/// A backend, and whether it is to be asked.
type Next = (u32, bool);

/// Steers a packet that the backend `from` has sent back, because no connection is there for it. `None`: there is no such
/// slot, or nobody to go to.
#[inline(always)]
pub fn sent_back<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    from: u32,
) -> Option<SentOn> {
    let flow = Flow::of(env, id, service, packet)?;
    let (backend, asks) = match entry::find(env.flows(), flow.hash, &flow.key) {
        Some(entry) => flow.is_not_at(entry, from),
        None => flow.is_not_listed_at(from),
    };
    if backend == 0 {
        return None;
    }
    let decision = flow.decision(Outcome::ForwardSecondChance, backend);
    Some(SentOn { decision, asks })
}

impl<E: Env> Flow<'_, E> {
    /// Whether a backend is to be asked for a flow that nothing is known of. Only datagrams are not connections, and no
    /// service of theirs asks.
    #[inline(always)]
    pub(super) fn asks(&self) -> bool {
        self.service.flags & service_flags::ASKS != 0 && self.slot.is_open()
    }

    /// Whether the backend of an entry is still to be asked.
    #[inline(always)]
    pub(super) fn asks_again(&self, meta: Meta) -> bool {
        meta.has(state::GUESSED) && !is_last(meta) && self.asks()
    }

    /// The flow of this entry is not on the backend `from`: who is to have it now.
    #[inline(always)]
    fn is_not_at(&self, entry: NonNull<FlowEntry>, from: u32) -> Next {
        // SAFETY: the entry was found for this packet.
        let meta = unsafe { entry::meta(entry) };
        // Of several packets that were on their way each comes back.
        if meta.backend() != from || !self.asks_again(meta) {
            return (meta.backend(), self.asks_again(meta));
        }
        let Some(next) = self.after(meta) else {
            // Nobody has it, and its client is to hear so.
            return (from, false);
        };
        let new = next.guess_after(meta, 0);
        if self.change(entry, meta, new) == meta {
            self.env.count(next.backend, Count::Adopted);
        }
        (next.backend, !next.is_last())
    }

    /// The same of a flow without an entry, which gets one if there is room.
    #[inline(always)]
    fn is_not_listed_at(&self, from: u32) -> Next {
        let next = if self.asks() { self.beyond(from) } else { None };
        let Some(next) = next else {
            return (self.nobody_after(from), false);
        };
        let _ = self.adopt_as(next.guess());
        (next.backend, !next.is_last())
    }

    /// Who tells the client that nobody has its flow: the base, if it is there.
    #[inline(always)]
    fn nobody_after(&self, from: u32) -> u32 {
        let base = self.slot.base();
        if self.is_gone(base) { from } else { base }
    }
}

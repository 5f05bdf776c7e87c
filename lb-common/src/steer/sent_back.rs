//! The second chance in tunnels. The answers do not pass ebb, but where the backends' tunnels end in `ebb decap` they can
//! be asked: a packet of a flow that nothing is known of, in a moved slot, goes to the base with the question whether the
//! connection is there ([`crate::tunnel::question`]). If it is not, the packet comes back, goes to the other backend of the slot
//! without a question, and the flow has an entry for that one from then on. So nothing travels in circles, and no host
//! that does not know the connection gets to see a packet of it.
//!
//! While nobody sends anything back, every packet of the flow asks: the entry stands for the base, which is right or is
//! corrected within a round trip. Without an entry (no room, or too many at once) each packet takes the way round.

use core::ptr::NonNull;

use super::{
    Count, Decision, Env, Flow, Packet,
    second_chance::{ASKED, asked},
};
use crate::{
    abi::{ServiceRecord, service_flags},
    entry::{self, EntryTable as _, FlowEntry, Meta, NewEntry, state},
    outcome::Outcome,
};

/// Steers a packet that the backend `from` has sent back, because no connection is there for it. `None`: there is no such
/// slot, or nobody to go to.
#[inline(always)]
pub fn sent_back<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    from: u32,
) -> Option<Decision> {
    let flow = Flow::of(env, id, service, packet)?;
    let backend = match entry::find(env.flows(), flow.hash, &flow.key) {
        Some(entry) => flow.is_not_at(entry, from),
        None => flow.is_not_listed_at(from),
    };
    if backend == 0 {
        return None;
    }
    Some(flow.decision(Outcome::ForwardSecondChance, backend))
}

impl<E: Env> Flow<'_, E> {
    /// Whether a backend is to be asked for a flow that nothing is known of. Only datagrams are not connections, and no
    /// service of theirs asks.
    #[inline(always)]
    pub(super) fn asks(&self) -> bool {
        self.service.flags & service_flags::ASKS != 0 && self.slot.is_moved()
    }

    /// Whether the backend of an entry is still to be asked.
    #[inline(always)]
    pub(super) fn asks_again(&self, meta: Meta) -> bool {
        meta.has(state::GUESSED) && meta.isn() != ASKED && self.asks()
    }

    /// The flow of this entry is not on the backend `from`: who is to have it now.
    #[inline(always)]
    fn is_not_at(&self, entry: NonNull<FlowEntry>, from: u32) -> u32 {
        // SAFETY: the entry was found for this packet.
        let meta = unsafe { entry::meta(entry) };
        // Of several packets that were on their way each comes back.
        if meta.backend() != from || !self.asks_again(meta) {
            return meta.backend();
        }
        let other = self.other(from);
        if other == 0 {
            // Nobody has it, and its client is to hear so.
            return from;
        }
        // Not marked as exceptional: forged segments must not fill the table with entries that do not give way.
        let new = Meta(asked(other).0 | meta.0 & state::CLOSING);
        // SAFETY: as above. Whoever changes the word at the same time has seen a packet that says more.
        let found = unsafe {
            let word = &raw mut (*entry.as_ptr()).meta;
            E::Flows::compare_exchange(word, meta.0, new.0)
        };
        if Meta(found) == meta {
            self.env.count(other, Count::Adopted);
        }
        other
    }

    /// The same of a flow without an entry, which gets one if there is room.
    #[inline(always)]
    fn is_not_listed_at(&self, from: u32) -> u32 {
        let other = if self.asks() { self.other(from) } else { 0 };
        if from != self.slot.base() || other == 0 {
            return self.slot.base();
        }
        let now = self.env.now();
        let new = NewEntry {
            meta: asked(other),
            opened: now,
            seen: now,
        };
        let policy = self.flow_policy(new.meta);
        if self.env.may_adopt(now)
            && entry::insert(self.env.flows(), self.hash, &self.key, &new, &policy).is_some()
        {
            self.env.count(other, Count::Adopted);
        }
        other
    }
}

//! The second chance: a flow that no table knows, in a moved slot, has several backends that it may have begun on: the base,
//! the current owner, and whoever was that in between (`candidates`). In `nat` and `full-nat` the answers show which. (In
//! `full-nat` a flow has the same port of the node again towards the same backend, be it that its allocation still stands or
//! that it asks for the same one: see `full_nat`.)
//!
//! - It is sent to the base first. Where the base answers with the reset of a host that does not know the connection, the
//!   client is not told; the flow gets an entry for the next backend, where its retransmission then goes. Each is asked
//!   once: the reset of the last one goes on to the client.
//! - A backend whose flows are cut, at the deadline of its drain, comes last: a flow of another must not be cut with its. Once nobody
//!   else has the flow, its next packet is cut.
//! - An answer with data from another than the base shows that the flow is there, before its client has sent anything.
//! - An answer of another connection is no answer ([`numbers`](super::numbers)): it is taken for such a reset. After that of the last
//!   one the first is asked once more, whose reset then tells the client.
//!
//! A host that knows nothing of a connection answers a segment with ACK by a reset *without* ACK, its sequence number
//! taken from the segment (RFC 9293 section 3.10.7.1); one that ends a connection of its own accord sends one with ACK, and
//! such a one always goes on. A host that forgot a connection right after it closed it answers like one that never knew it;
//! then the client's news of that come one retransmission later.

use core::ptr::NonNull;

use super::{
    Count, Env, Flow, Packet,
    candidates::{Candidate, ENDING},
    numbers::says,
    tcp,
};
use crate::{
    abi::{mode, service_flags},
    entry::{self, EntryTable as _, FlowEntry, Meta, state},
    mask,
};

/// Of these a bare reset has one, [`tcp::RST`].
const BARE_RESET: u8 = tcp::RST | tcp::ACK | tcp::SYN | tcp::FIN;

/// Whether a segment with these flags is the reset of a host that knows of no such connection.
#[inline(always)]
const fn is_bare_reset(flags: u8) -> bool {
    flags & BARE_RESET == tcp::RST
}

impl<E: Env> Flow<'_, E> {
    /// Whether a flow here that nothing is known of may be on one of several backends, and answers will show on which, or
    /// the backends will say.
    #[inline(always)]
    pub(super) fn is_open_question(&self) -> bool {
        let shows =
            mode::is_two_way(self.service.mode) || self.service.flags & service_flags::ASKS != 0;
        self.slot.is_open() && shows && !self.is_datagram()
    }

    /// Whether an answer of `backend` says something of where its flow is.
    #[inline(always)]
    pub(super) fn is_question(
        &self,
        known: Option<NonNull<FlowEntry>>,
        backend: u32,
        flags: u8,
    ) -> bool {
        if !E::WRITES || self.is_datagram() {
            return false;
        }
        let (is_plain, is_reset) = (super::is_plain(flags), is_bare_reset(flags));
        let Some(entry) = known else {
            let tells = is_plain && backend != self.slot.base();
            return self.is_open_question() && (tells || is_reset);
        };
        // SAFETY: the entry was found for this packet.
        let meta = unsafe { entry::meta(entry) };
        let is_guess = meta.has(state::GUESSED);
        if backend == meta.backend() {
            is_guess
        } else {
            is_reset || is_guess && is_plain
        }
    }

    /// `backend` has answered a flow that has an entry, and [it matters](Self::is_question). Whether the answer is withheld.
    #[inline(always)]
    pub(super) fn judge(&self, entry: NonNull<FlowEntry>, backend: u32, answer: &Packet) -> bool {
        // SAFETY: the entry was found for this packet.
        let meta = unsafe { entry::meta(entry) };
        let is_reset = is_bare_reset(answer.flags);
        if backend != meta.backend() && is_reset {
            // Of several segments that were on their way to the wrong one each is answered. Where the entry's backend has
            // ended, the reset is what its clients are to be told.
            return !self.is_gone(meta.backend());
        }
        // What is said of a connection that is being opened says nothing of the one before it.
        if !meta.has(state::GUESSED) || meta.has(state::REOPENED) && !is_reset {
            return false;
        }
        // SAFETY: the entry was found for this packet.
        let says = unsafe { says(entry, meta, answer) };
        if backend != meta.backend() {
            if says.here != 0 && answer.data != 0 && self.may_have(backend) {
                self.settle(entry, meta, backend);
            }
            return false;
        }
        let reset = mask::zero((answer.flags & BARE_RESET ^ tcp::RST) as u64);
        if says.not_here | reset != 0 {
            let next = self.next(meta, backend);
            // Once each has been asked, a reset tells the client; or the first one is asked again, whose reset will.
            if next.is_over & reset == 0
                && let Some(who) = next.who
            {
                return self.go_on(entry, meta, &who, next.is_over);
            }
        }
        if says.here & !says.not_here | reset != 0 {
            self.settle(entry, meta, backend);
        }
        false
    }

    /// The flow of a guess is not there; the next one is asked. Whether the answer that said so is withheld.
    #[inline(always)]
    fn go_on(
        &self,
        entry: NonNull<FlowEntry>,
        guess: Meta,
        next: &Candidate,
        is_over: u64,
    ) -> bool {
        let new = next.guess_after(guess, is_over);
        let found = self.change(entry, guess, new);
        if found != guess {
            // Another answer of the same backend, on another CPU: the flow has gone on from there.
            return found.backend() != guess.backend();
        }
        self.env.count(next.backend, Count::Adopted);
        true
    }

    /// The flow of a guess is this backend's, or there is nobody else to tell its client.
    #[inline(always)]
    fn settle(&self, entry: NonNull<FlowEntry>, guess: Meta, backend: u32) {
        self.change(entry, guess, self.flow_meta(0, backend, guess.0 & ENDING));
    }

    /// Changes an entry's word, unless somebody else has: whoever does so at the same time has seen a packet that says more.
    /// What it was.
    #[inline(always)]
    pub(super) fn change(&self, entry: NonNull<FlowEntry>, old: Meta, new: Meta) -> Meta {
        // SAFETY: the entry was found for this packet.
        unsafe {
            let word = &raw mut (*entry.as_ptr()).meta;
            Meta(E::Flows::compare_exchange(word, old.0, new.0))
        }
    }

    /// `backend` has answered a flow that no table knows, and [it matters](Self::is_question). Whether the answer is withheld.
    #[inline(always)]
    pub(super) fn learn(&self, backend: u32, answer: &Packet) -> bool {
        let is_reset = is_bare_reset(answer.flags);
        let is_later = self.is_later(backend);
        let new = if is_reset && (is_later || backend == self.slot.base()) {
            match self.next(Meta(0), backend).who {
                Some(next) => next.guess(),
                None => return false,
            }
        } else if answer.data != 0 && is_later {
            self.flow_meta(0, backend, 0)
        } else {
            return false;
        };
        if let Some(handshake) = entry::find(self.env.handshakes(), self.hash, &self.key) {
            // One whose flow had an entry is over, and has lost it since.
            // SAFETY: the entry was found for this packet.
            let meta = unsafe { entry::meta(handshake) };
            if !meta.has(state::CLOSE_COUNTED) {
                return false;
            }
        }
        let _ = self.adopt_as(new);
        // A reset is withheld where nothing could be noted, too: the client tries again, and then it may be.
        is_reset
    }
}

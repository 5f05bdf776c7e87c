//! Whom a flow may be on that no table knows: the base of its slot, the current owner, and those who were that in between.
//! They are asked in this order, each once. One whose flows are cut, at the deadline of his drain or because he has died, answers nothing:
//! ebb itself would, with a reset. So he comes last, after all others: whoever is another's flow must not be cut with his. A flow that is
//! none of the others' is cut at its next packet.
//!
//! An entry that is a guess says in the place of its initial sequence number how far the asking has come: bit 0 says that
//! nobody is left to ask, bits 1 to 4 are the place of the backend that it names, and bits 8 to 31 a mark of the list that this is
//! a place in. When a change has made another list of it meanwhile, the asking begins anew. Bits 5 to 7 belong to
//! [`numbers`](super::numbers).

use core::ptr::NonNull;

use super::{Env, Flow};
use crate::{
    abi::Slot,
    entry::{FlowEntry, Meta, state},
    former::{FORMERS_MAX, Formers},
    mask,
};

/// Base, current, formers.
const CANDIDATES: u32 = 2 + FORMERS_MAX as u32;

/// Bits of a place among them.
const PLACE: u32 = 0xf;
const _: () = assert!(CANDIDATES <= PLACE);

/// Above the readiness of any place: who is not cut is asked before whoever is.
const UNCUT: u64 = 1 << 8;

/// Bits of how many candidates there are.
const COUNT_BITS: u32 = 4;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// In a guess's initial sequence number: its entry holds what it was asked for with.
const NUMBERED: u32 = 1 << 5;
/// Where in it stands how often the lowest segment has come again, and the most that can be told.
const AGAIN_SHIFT: u32 = 6;
const AGAIN_MAX: u32 = 3;
/// All of these.
const NUMBERS: u32 = NUMBERED | AGAIN_MAX << AGAIN_SHIFT;
/// What an entry goes on to say of its flow whoever is asked next: how it ends, and what is known of its sequence numbers.
const KEPT: u64 = ENDING | (NUMBERS as u64) << 32;
/// Of these, what it says of how the flow ends.
pub(super) const ENDING: u64 = state::CLOSING | state::REOPENED;

/// One who is asked next.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// Backend id.
    pub backend: u32,
    /// Its place among the candidates.
    place: u32,
    /// Of the list, see [`mark`].
    mark: u32,
    /// 1 where nobody is left after it, else 0.
    is_last: u32,
}

impl Candidate {
    /// Whether nobody is left after it.
    #[inline(always)]
    pub const fn is_last(&self) -> bool {
        self.is_last != 0
    }

    /// The flow may be there. Not marked as exceptional before that backend answers: such an entry never gives way, and
    /// forged segments must not fill the table with them.
    #[inline(always)]
    pub fn guess(&self) -> Meta {
        Meta::new(
            self.mark | self.place << 1 | self.is_last,
            self.backend,
            state::GUESSED,
        )
    }

    /// The same after another guess. `is_over`: with all bits, as the last.
    #[inline(always)]
    pub fn guess_after(&self, before: Meta, is_over: u64) -> Meta {
        Meta(in_place_of(before, self.guess()).0 | (is_over & 1) << 32)
    }
}

/// Who comes after one who is asked.
#[derive(Clone, Copy)]
pub(super) struct Next {
    /// `None`: there is nobody else.
    pub who: Option<Candidate>,
    /// All bits where each has been asked already, and this is the first of them again; else none.
    pub is_over: u64,
}

/// Whether nobody is left to ask after the backend of a guess.
#[inline(always)]
pub(super) const fn is_last(guess: Meta) -> bool {
    guess.isn() & 1 != 0
}

/// The place of a guess's backend among the candidates.
#[inline(always)]
const fn place(guess: Meta) -> u32 {
    guess.isn() >> 1 & PLACE
}

/// Whether the entry of a guess holds sequence numbers; all bits or none.
#[inline(always)]
pub(super) fn is_numbered(guess: Meta) -> u64 {
    mask::any(guess.isn() as u64, NUMBERED as u64)
}

/// How often the segment with the lowest of them has come again, as far as counted.
#[inline(always)]
pub(super) const fn again(guess: Meta) -> u32 {
    guess.isn() >> AGAIN_SHIFT & AGAIN_MAX
}

/// The guess, with its entry's sequence numbers known.
#[inline(always)]
pub(super) fn numbered(guess: Meta, again: u32) -> Meta {
    let too_often = mask::more(again, AGAIN_MAX);
    let again = mask::select(too_often, AGAIN_MAX as u64, again as u64) as u32;
    let isn = guess.isn() & !NUMBERS | NUMBERED | again << AGAIN_SHIFT;
    Meta((guess.0 & u32::MAX as u64) | (isn as u64) << 32)
}

/// A guess in place of another one, in the same entry.
#[inline(always)]
const fn in_place_of(before: Meta, guess: Meta) -> Meta {
    Meta(guess.0 | before.0 & KEPT)
}

/// The mark of a list of candidates, in the upper 24 bits.
#[inline(always)]
const fn mark(slot: Slot, formers: &Formers) -> u32 {
    // Odd constants that spread their bits (the golden ratio's, and two of SplitMix64's).
    let mixed = slot.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ formers.0[0].wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ formers.0[1].wrapping_mul(0x94d0_49bb_1331_11eb);
    // Never that of a word that has none.
    (mixed >> 32) as u32 & !0xff | 1 << 8
}

impl<E: Env> Flow<'_, E> {
    /// Who has owned the slot between its base and its current owner.
    #[inline(always)]
    fn formers(&self) -> Formers {
        if !self.slot.has_formers() {
            return Formers::NONE;
        }
        let first = (self.service.table >> 32) as u32;
        self.env.formers(first.wrapping_add(self.slot_index))
    }

    /// Who is to be asked in this place, 0 for nobody.
    #[inline(always)]
    fn owner(&self, formers: &Formers, place: u32) -> u32 {
        let base = self.slot.base();
        match place {
            0 => base,
            1 => {
                let current = self.slot.current();
                current & !mask::zero((current ^ base) as u64) as u32
            }
            later => formers.get(later as usize - 2),
        }
    }

    /// The guess for a flow that nothing is known of, in place of a backend that can not be asked, because it has ended or its
    /// deadline cuts the flow: the first of the others who can. `None` where there is none, or that one can be asked. Not marked
    /// with a list of candidates, which takes long to work out: the asking then begins anew after that one.
    #[inline(always)]
    pub(super) fn instead_of(&self, backend: u32) -> Option<Meta> {
        let standing = self.env.standing(backend);
        if standing.is_there() != 0 && !standing.is_past_deadline(self.hash) {
            return None;
        }
        let formers = self.formers();
        let (mut found, mut place) = (0, 0);
        while place < CANDIDATES {
            let owner = self.owner(&formers, place) as u64;
            let standing = self.env.standing(owner as u32);
            let can = !mask::zero(owner) & standing.is_there() & !standing.cuts(self.hash);
            found |= owner & can & mask::zero(found);
            place += 1;
        }
        (found != 0).then(|| Meta::new(0, found as u32, state::GUESSED))
    }

    /// The word of a guess's entry; where its backend can be asked no more, after another one has been put in its place. Who is
    /// left last stays: then it is his, or nobody's. So does the base, which is asked first: most flows that have said nothing that is
    /// answered yet are its own, and are to be cut or ended with it.
    #[inline(always)]
    pub(super) fn spare(&self, entry: NonNull<FlowEntry>, guess: Meta) -> Meta {
        if is_last(guess) || guess.backend() == self.slot.base() {
            return guess;
        }
        let Some(other) = self.instead_of(guess.backend()) else {
            return guess;
        };
        let new = in_place_of(guess, other);
        if E::WRITES {
            self.change(entry, guess, new);
        }
        new
    }

    /// Who is to be asked from `place` on, leaving out `but`. Backends that have ended can not be asked. Without branches but those of
    /// looking up, see [`mask`].
    #[inline(always)]
    fn first_from(&self, formers: &Formers, from: u32, but: u32) -> Option<Candidate> {
        // How many there are; above that the best of them: the backend, its place, and how readily it is asked. In one word, because
        // a program that asks has hardly any stack left.
        let mut best = 0;
        let mut place = 0;
        while place < CANDIDATES {
            let backend = self.owner(formers, place) as u64;
            let standing = self.env.standing(backend as u32);
            let is_cut = standing.cuts(self.hash);
            let can = standing.is_there()
                & !mask::zero(backend)
                & !mask::zero(backend ^ but as u64)
                & (is_cut | mask::more(place + 1, from));
            let readiness = ((CANDIDATES - place) as u64 | UNCUT & !is_cut) << 36;
            let named = (readiness | (place as u64) << 32 | backend) << COUNT_BITS;
            let is_better = mask::negative(best as i64 - named as i64) & can;
            let count = best & COUNT;
            best = mask::whole(mask::select(is_better, named | count, best) + (can & 1));
            place += 1;
        }
        let count = best & COUNT;
        best >>= COUNT_BITS;
        if best == 0 {
            return None;
        }
        Some(Candidate {
            backend: best as u32,
            place: (best >> 32) as u32 & PLACE,
            mark: mark(self.slot, formers),
            is_last: (mask::zero(count ^ 1) & 1) as u32,
        })
    }

    /// Who is to be asked after the backend of a guess, which does not have the flow.
    #[inline(always)]
    pub(super) fn after(&self, guess: Meta) -> Option<Candidate> {
        let next = self.next(guess, guess.backend());
        if next.is_over == 0 { next.who } else { None }
    }

    /// Who is to be asked about a flow that `but` does not have: after the backend of a guess the next one, of a flow
    /// without an entry (all of the word zero) the first.
    #[inline(always)]
    pub(super) fn next(&self, guess: Meta, but: u32) -> Next {
        let formers = self.formers();
        let is_same = mask::zero((guess.isn() & !0xff ^ mark(self.slot, &formers)) as u64);
        let is_over = is_same & mask::any(guess.isn() as u64, 1);
        // In one word, as below.
        let from = mask::whole((place(guess) as u64 + 1) & is_same & !is_over | is_over << 63);
        Next {
            who: self.first_from(&formers, from as u32, but),
            is_over: mask::negative(from as i64),
        }
    }

    /// The same, where packets of a flow that can not get an entry have been to all before `backend`.
    #[inline(always)]
    pub(super) fn beyond(&self, backend: u32) -> Option<Candidate> {
        let formers = self.formers();
        let mut place = 0;
        while place < CANDIDATES {
            if self.owner(&formers, place) == backend {
                return self.first_from(&formers, place + 1, backend);
            }
            place += 1;
        }
        None
    }

    /// Whether `backend` may have flows here.
    #[inline(always)]
    pub(super) fn may_have(&self, backend: u32) -> bool {
        backend == self.slot.base() || self.is_later(backend)
    }

    /// The same, and it is not the base.
    #[inline(always)]
    pub(super) fn is_later(&self, backend: u32) -> bool {
        let is = |other: u32| mask::zero((other ^ backend) as u64);
        let formers = self.formers();
        let mut found = is(self.slot.current()) & !is(self.slot.base());
        let mut place = 0;
        while place < FORMERS_MAX {
            found |= is(formers.get(place));
            place += 1;
        }
        found & !is(0) != 0
    }
}

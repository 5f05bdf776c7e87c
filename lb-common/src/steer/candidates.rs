//! Whom a flow may be on that no table knows: the base of its slot, the current owner, and those who were that in between.
//! They are asked in this order, each once. While the deadline of the base's drain cuts the flow, the base comes last: whoever
//! is another's flow must not be cut with the base's, and a flow that is none of the others' is the base's and is cut at its next
//! packet.
//!
//! An entry that is a guess says in the place of its initial sequence number how far the asking has come: bit 0 says that
//! nobody is left to ask, bits 1 to 4 are the place of the backend that it names, and bits 8 to 31 a mark of the list that this is
//! a place in. When a change has made another list of it meanwhile, the asking begins anew. Bits 5 to 7 belong to
//! [`numbers`](super::numbers).

use super::{Env, Flow};
use crate::{
    abi::{Slot, backend_flags},
    entry::{Meta, state},
    former::{FORMERS_MAX, Formers},
    mask,
};

/// Base, current, formers.
const CANDIDATES: u32 = 2 + FORMERS_MAX as u32;

/// Bits of a place among them.
const PLACE: u32 = 0xf;
const _: () = assert!(CANDIDATES <= PLACE);

/// In a guess's initial sequence number: its entry holds what it was asked for with.
const NUMBERED: u32 = 1 << 5;
/// Where in it stands how often the lowest segment has come again, and the most that can be told.
const AGAIN_SHIFT: u32 = 6;
const AGAIN_MAX: u32 = 3;
/// All of these.
const NUMBERS: u32 = NUMBERED | AGAIN_MAX << AGAIN_SHIFT;

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

    /// The same after another guess, with what is known of the sequence numbers. `is_over`: with all bits, as the last.
    #[inline(always)]
    pub fn guess_after(&self, before: Meta, is_over: u64) -> Meta {
        let kept = (before.isn() & NUMBERS) as u64 | is_over & 1;
        Meta(self.guess().0 | kept << 32)
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

/// Those who may have flows of a slot.
struct Candidates {
    formers: Formers,
    /// The base's flows are cut: all bits, else none.
    base_is_last: u64,
}

/// The mark of a list of candidates, in the upper 24 bits.
#[inline(always)]
const fn mark(slot: Slot, candidates: &Candidates) -> u32 {
    let formers = &candidates.formers;
    // Odd constants that spread their bits (the golden ratio's, and two of SplitMix64's).
    let mixed = slot.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ formers.0[0].wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ formers.0[1].wrapping_mul(0x94d0_49bb_1331_11eb);
    let mixed = (mixed >> 32) as u32 ^ candidates.base_is_last as u32 & 1 << 9;
    // Never that of a word that has none.
    mixed & !0xff | 1 << 8
}

impl<E: Env> Flow<'_, E> {
    /// Who may have flows of the slot.
    #[inline(always)]
    fn candidates(&self) -> Candidates {
        Candidates {
            formers: self.formers(),
            base_is_last: (self.env.is_past_deadline(self.slot.base(), self.hash) as u64)
                .wrapping_neg(),
        }
    }

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
    fn candidate(&self, candidates: &Candidates, place: u32) -> u32 {
        let usual = self.owner(&candidates.formers, place);
        let later = self.owner(&candidates.formers, (place + 1) % CANDIDATES);
        mask::select(candidates.base_is_last, later as u64, usual as u64) as u32
    }

    /// The same where the base comes first.
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

    /// The guess for a flow that nothing is known of, whose base's flows are cut: it is the current owner's. `None` where its
    /// flows are not to be had either, or the base's are not cut. Not marked with a list of candidates, which takes long to work
    /// out: the asking then goes on with whoever comes first besides the current owner, and that is who comes after him.
    #[inline(always)]
    pub(super) fn before_it_is_cut(&self, base: u32) -> Option<Meta> {
        let current = self.slot.current();
        if !self.env.is_past_deadline(base, self.hash)
            || current == 0
            || current == base
            || self.is_gone(current)
            || self.env.is_past_deadline(current, self.hash)
        {
            return None;
        }
        Some(Meta::new(0, current, state::GUESSED))
    }

    /// Who is to be asked from `place` on, leaving out `but`. Backends that have ended can not be asked. Without branches but those of
    /// looking up, see [`mask`].
    #[inline(always)]
    fn first_from(&self, candidates: &Candidates, from: u32, but: u32) -> Option<Candidate> {
        // The backend, and in the upper half its place.
        let (mut found, mut more) = (0, 0);
        let mut place = 0;
        while place < CANDIDATES {
            let backend = self.candidate(candidates, place) as u64;
            let flags = self.env.backend_flags(backend as u32) as u64;
            let is_gone = !mask::any(flags, backend_flags::VALID as u64)
                | mask::any(flags, backend_flags::ENDED as u64);
            let is_one = mask::more(place + 1, from)
                & !mask::zero(backend)
                & !mask::zero(backend ^ but as u64)
                & !is_gone;
            let is_first = mask::zero(found) & is_one;
            more |= is_one & !is_first;
            found |= (backend | (place as u64) << 32) & is_first;
            place += 1;
        }
        if found == 0 {
            return None;
        }
        Some(Candidate {
            backend: found as u32,
            place: (found >> 32) as u32,
            mark: mark(self.slot, candidates),
            is_last: (!more & 1) as u32,
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
        let candidates = self.candidates();
        let is_same = mask::zero((guess.isn() & !0xff ^ mark(self.slot, &candidates)) as u64);
        let is_over = is_same & mask::any(guess.isn() as u64, 1);
        let from = (place(guess) as u64 + 1) & is_same & !is_over;
        Next {
            who: self.first_from(&candidates, from as u32, but),
            is_over,
        }
    }

    /// The same, where packets of a flow that can not get an entry have been to all before `backend`.
    #[inline(always)]
    pub(super) fn beyond(&self, backend: u32) -> Option<Candidate> {
        let candidates = self.candidates();
        let mut place = 0;
        while place < CANDIDATES {
            if self.candidate(&candidates, place) == backend {
                return self.first_from(&candidates, place + 1, backend);
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

//! Whom a flow may be on that no table knows: the base of its slot, the current owner, and those who were that in between.
//! They are asked in this order, each once. While the deadline of the base's drain cuts the flow, the base comes last: whoever
//! is another's flow must not be cut with the base's, and a flow that is none of the others' is the base's and is cut at its next
//! packet.
//!
//! An entry that is a guess says in the place of its initial sequence number how far the asking has come: bit 0 says that
//! nobody is left to ask, bits 1 to 7 are the place of the backend that it names, and the others a mark of the list that this is
//! a place in. When a change has made another list of it meanwhile, the asking begins anew.

use super::{Env, Flow};
use crate::{
    abi::Slot,
    entry::{Meta, state},
    former::{FORMERS_MAX, Formers},
};

/// Base, current, formers.
const CANDIDATES: u32 = 2 + FORMERS_MAX as u32;

/// One who is asked next.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// Backend id.
    pub backend: u32,
    /// Its place among the candidates.
    place: u32,
    /// Of the list, see [`mark`].
    mark: u32,
    /// Nobody is left after it.
    pub is_last: bool,
}

impl Candidate {
    /// The flow may be there. Not marked as exceptional before that backend answers: such an entry never gives way, and
    /// forged segments must not fill the table with them.
    #[inline(always)]
    pub fn guess(&self) -> Meta {
        Meta::new(
            self.mark | self.place << 1 | self.is_last as u32,
            self.backend,
            state::GUESSED,
        )
    }
}

/// Whether nobody is left to ask after the backend of a guess.
#[inline(always)]
pub(super) const fn is_last(guess: Meta) -> bool {
    guess.isn() & 1 != 0
}

/// The place of a guess's backend among the candidates.
#[inline(always)]
const fn place(guess: Meta) -> u32 {
    guess.isn() >> 1 & 0x7f
}

/// Those who may have flows of a slot.
struct Candidates {
    formers: Formers,
    /// The base's flows are cut.
    base_is_last: bool,
}

/// The mark of a list of candidates, in the upper 24 bits.
#[inline(always)]
const fn mark(slot: Slot, candidates: &Candidates) -> u32 {
    let formers = &candidates.formers;
    // Odd constants that spread their bits (the golden ratio's, and two of SplitMix64's).
    let mixed = slot.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ formers.0[0].wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ formers.0[1].wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed >> 32) as u32 ^ (candidates.base_is_last as u32) << 8) & !0xff
}

impl<E: Env> Flow<'_, E> {
    /// Who may have flows of the slot.
    #[inline(always)]
    fn candidates(&self) -> Candidates {
        Candidates {
            formers: self.formers(),
            base_is_last: self.env.is_past_deadline(self.slot.base(), self.hash),
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

    #[inline(always)]
    fn candidate(&self, candidates: &Candidates, place: u32) -> u32 {
        let place = if !candidates.base_is_last {
            place
        } else if place + 1 < CANDIDATES {
            place + 1
        } else {
            0
        };
        match place {
            0 => self.slot.base(),
            1 if self.slot.current() != self.slot.base() => self.slot.current(),
            1 => 0,
            later => candidates.formers.get(later as usize - 2),
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

    /// Who is to be asked from `place` on, leaving out `but`. Backends that have ended can not be asked.
    #[inline(always)]
    fn first_from(&self, candidates: &Candidates, from: u32, but: u32) -> Option<Candidate> {
        let mut found = Candidate {
            backend: 0,
            place: 0,
            mark: mark(self.slot, candidates),
            is_last: true,
        };
        let mut place = 0;
        while place < CANDIDATES {
            let backend = self.candidate(candidates, place);
            if place >= from && backend != 0 && backend != but && !self.is_gone(backend) {
                if found.backend != 0 {
                    found.is_last = false;
                    break;
                }
                (found.backend, found.place) = (backend, place);
            }
            place += 1;
        }
        if found.backend == 0 {
            None
        } else {
            Some(found)
        }
    }

    /// Who is to be asked after the backend of a guess, which does not have the flow.
    #[inline(always)]
    pub(super) fn after(&self, guess: Meta) -> Option<Candidate> {
        let candidates = self.candidates();
        let is_same = guess.isn() & !0xff == mark(self.slot, &candidates);
        if is_same && is_last(guess) {
            return None;
        }
        let from = if is_same { place(guess) + 1 } else { 0 };
        self.first_from(&candidates, from, guess.backend())
    }

    /// Who is to be asked about a flow without an entry, which `backend` does not have: after the base the next, after
    /// anybody else the base at first.
    #[inline(always)]
    pub(super) fn besides(&self, backend: u32) -> Option<Candidate> {
        self.first_from(&self.candidates(), 0, backend)
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

    /// Whether `backend` may have flows here, and is not the base.
    #[inline(always)]
    pub(super) fn is_later(&self, backend: u32) -> bool {
        // Here it does not matter who is asked first.
        let candidates = Candidates {
            formers: self.formers(),
            base_is_last: false,
        };
        let mut place = 1;
        while place < CANDIDATES {
            if backend != 0 && self.candidate(&candidates, place) == backend {
                return true;
            }
            place += 1;
        }
        false
    }
}

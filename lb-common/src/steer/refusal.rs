//! Openings that a backend refuses, where ebb sees its answers (`nat`, `full-nat`).
//!
//! A host on which nobody listens answers a SYN with `<SEQ=0><ACK=SEG.SEQ+1><CTL=RST,ACK>` (RFC 9293 section 3.10.7.1).
//! Whoever resets a connection that he has taken does so with a sequence number of his own, which is 0 once in 2^32 times.
//! It counts only where the handshake table has the opening, and has it on that backend.

use super::{Packet, tcp};
use crate::entry::{Meta, state};

/// Above the state bits of a closing word stands the backend that refuses, 0 for none.
const SHIFT: u32 = 8;

/// A word of closing bits, with the backend if its answer is a refusal.
#[inline(always)]
pub(super) const fn marked(closing: u64, answer: &Packet, backend: u32) -> u64 {
    let flags = answer.flags & (tcp::RST | tcp::ACK | tcp::SYN | tcp::FIN);
    if flags == tcp::RST | tcp::ACK && answer.sequence == 0 {
        closing | (backend as u64) << SHIFT
    } else {
        closing
    }
}

/// Whether a closing word says that the flow of this entry is refused.
#[inline(always)]
pub(super) const fn is_of(closing: u64, entry: Meta) -> bool {
    let backend = (closing >> SHIFT) as u32;
    backend != 0
        && backend == entry.backend()
        && entry.has(state::ISN_KNOWN)
        && !entry.has(state::CLOSING | state::ESTABLISHED)
}

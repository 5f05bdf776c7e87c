//! Whether an answer is of the connection that its flow is taken for.
//!
//! A backend that does not have a flow may still have another connection of the same client address and port: one that it
//! closed, and keeps in TIME-WAIT, when the client has used the port again since. It answers whatever comes with an ACK of that
//! one (RFC 9293 section 3.10.7.4), not with a reset, and would go on with it for as long as the client tries. By its numbers it
//! is told from an answer to the flow:
//!
//! - Between an answer and what it answers lies no more than a window, at most 2^30 bytes (RFC 7323 section 2.3). What is further
//!   off, on either side, is another connection's. Initial sequence numbers begin anywhere (RFC 6528), so half of them are; of
//!   bare acknowledgments seven of eight, because of them less is allowed: who has so much under way sends data.
//! - Nobody sends data, or the end of it, on a connection that is over, and whoever acknowledges what its client has sent just now has got
//!   it. That shows where the flow is.
//! - A host that waits acknowledges what came long before. So may one that has the flow, while something is missing that came
//!   before the segment asked with. But then the client sends that again, and not the same segment a third time.

use core::ptr::{self, NonNull};

use super::{Env, Flow, Packet, candidates, tcp};
use crate::{
    entry::{FlowEntry, Meta},
    mask,
};

/// No window is larger.
const WINDOW_MAX: u32 = 1 << 30;
/// The same for an answer without data.
const QUIET_MAX: u32 = 1 << 28;
/// The segment with the lowest number has come so often again that what is before it is not missing.
const AGAIN: u32 = 2;

/// What an answer says of its flow, in masks without a branch (see [`mask`]): what follows would be multiplied by them.
#[derive(Clone, Copy)]
pub(super) struct Says {
    /// It is where the answer comes from.
    pub here: u64,
    /// It is not.
    pub not_here: u64,
}

/// Sequence numbers that a flow was asked for with.
#[derive(Clone, Copy)]
struct Numbers {
    /// The client's lowest sequence number.
    sequence: u32,
    /// Its highest acknowledgment.
    acknowledgment: u32,
}

impl Numbers {
    /// Those of a guess's entry.
    ///
    /// # Safety
    /// The entry was found for this packet.
    #[inline(always)]
    unsafe fn of(entry: NonNull<FlowEntry>) -> Self {
        let place = entry.as_ptr();
        // SAFETY: the caller vouches for the entry; others may be writing it.
        unsafe {
            Self {
                sequence: ptr::read_volatile(&raw const (*place).sequence),
                acknowledgment: ptr::read_volatile(&raw const (*place).acknowledged),
            }
        }
    }
}

/// Whether two sequence numbers are no further apart; at most 2^30.
#[inline(always)]
fn is_within(one: u32, other: u32, most: u32) -> u64 {
    !mask::more(one.wrapping_sub(other).wrapping_add(most), 2 * most)
}

/// How far a sequence number is beyond another one; negative before it.
#[inline(always)]
const fn beyond(number: u32, other: u32) -> i64 {
    number.wrapping_sub(other) as i32 as i64
}

/// What an answer that is no bare reset says of the flow of a guess.
///
/// # Safety
/// The entry was found for this packet.
#[inline(always)]
pub(super) unsafe fn says(entry: NonNull<FlowEntry>, guess: Meta, answer: &Packet) -> Says {
    let flags = answer.flags as u64;
    let bears = |bits: u8| mask::any(flags, bits as u64);
    let is_new = !mask::zero(answer.data as u64) | bears(tcp::SYN | tcp::FIN | tcp::RST);
    let most = mask::select(is_new, WINDOW_MAX as u64, QUIET_MAX as u64) as u32;
    let is_numbered = candidates::is_numbered(guess);
    // SAFETY: as the caller says.
    let numbers = unsafe { Numbers::of(entry) };
    let is_near = is_within(answer.sequence, numbers.acknowledgment, most)
        & (!bears(tcp::ACK) | is_within(answer.acknowledgment, numbers.sequence, most));
    let acknowledged = beyond(answer.acknowledgment, numbers.sequence);
    let is_stale = mask::negative(acknowledged) & mask::more(candidates::again(guess) + 1, AGAIN);
    // Of a connection that begins nothing is known yet.
    let is_foreign = !is_near & !bears(tcp::SYN);
    Says {
        here: is_numbered & is_near & (is_new | mask::negative(-acknowledged))
            | !is_numbered & is_new,
        not_here: is_numbered & (is_foreign | is_near & !is_new & is_stale),
    }
}

impl<E: Env> Flow<'_, E> {
    /// Notes with what a guess is asked for. Of a segment that comes until it is acknowledged, that it comes again.
    #[inline(always)]
    pub(super) fn ask(&self, entry: NonNull<FlowEntry>, guess: Meta, packet: &Packet) {
        if !E::WRITES || packet.flags & (tcp::ACK | tcp::RST) != tcp::ACK {
            return;
        }
        let new;
        // SAFETY: the entry was found for this packet. Two CPUs that have segments of one flow at a time may each note theirs;
        // both are the flow's.
        unsafe {
            let known = Numbers::of(entry);
            let is_anew = !candidates::is_numbered(guess)
                | !is_within(packet.sequence, known.sequence, WINDOW_MAX);
            let further = beyond(packet.sequence, known.sequence);
            let is_lower = is_anew | mask::negative(further);
            let is_later =
                is_anew | mask::negative(beyond(known.acknowledgment, packet.acknowledgment));
            let stays =
                mask::any(packet.flags as u64, tcp::FIN as u64) | !mask::zero(packet.data as u64);
            let again = candidates::again(guess) as u64 + (mask::zero(further as u64) & stays & 1);
            new = candidates::numbered(guess, (again & !is_lower) as u32);
            let place = entry.as_ptr();
            let choose =
                |which: u64, new: u32, old: u32| mask::select(which, new as u64, old as u64) as u32;
            let (sequence, acknowledgment) = (
                choose(is_lower, packet.sequence, known.sequence),
                choose(is_later, packet.acknowledgment, known.acknowledgment),
            );
            ptr::write_volatile(&raw mut (*place).sequence, sequence);
            ptr::write_volatile(&raw mut (*place).acknowledged, acknowledgment);
        }
        self.change(entry, guess, new);
    }
}

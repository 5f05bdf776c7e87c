//! Which entry of a full group gives way to a new one.
//!
//! Without branches (see [`crate::mask`]): a new entry weighs all of its group.

use super::{Meta, state};
use crate::{
    limits::{RECENT_SHIFT, silence},
    mask,
};

/// How readily an entry gives way; 0 never.
pub type Score = u32;

/// Score of an entry that may be replaced at once.
pub const SCORE_DEAD: Score = 1 << 31;

/// Whom a new entry may replace.
pub trait Policy {
    /// Score of a taken entry that has not been seen for `age` ticks: higher gives way first, 0 never.
    fn score(&self, meta: Meta, age: u32) -> Score;
}

/// The longer unseen the more readily, the dead ones first, and who is to be kept not at all; both masks.
#[inline(always)]
const fn oldest(age: u32, dead: u64, kept: u64) -> Score {
    let base = (age & (SCORE_DEAD - 1)) | 1;
    (base & (dead | !kept) as u32) | (SCORE_DEAD & dead as u32)
}

/// Handshakes: closed flows first, then the oldest. One that stands for an established flow, because the flow table had
/// no room, never gives way while that lives: a flood of openings would break it. One whose flow is awaited does not
/// either: the drain of its backend would not see that flow's end.
pub struct HandshakePolicy {
    /// Ticks after which an unseen flow has ended.
    pub idle_ticks: u32,
}

impl Policy for HandshakePolicy {
    #[inline(always)]
    fn score(&self, meta: Meta, age: u32) -> Score {
        let dead = mask::any(meta.0, state::CLOSE_COUNTED);
        let lives = !mask::more(age, self.idle_ticks);
        let stands = mask::any(meta.0, state::ESTABLISHED | state::AWAITED);
        oldest(age, dead, stands & lives)
    }
}

/// Whatever is the oldest.
pub struct OldestPolicy;

impl Policy for OldestPolicy {
    #[inline(always)]
    fn score(&self, _: Meta, age: u32) -> Score {
        oldest(age, 0, 0)
    }
}

/// Flows: closed and expired ones, then the longest unseen of those that the slot's base steers as well. An
/// exceptional flow never gives way while it lives. To one that the base steers as well, only what has been unseen for
/// a while gives way: else, of more active flows than a bucket has room for, each packet would replace an entry.
pub struct FlowPolicy {
    /// Ticks after which an unseen flow has ended.
    pub idle_ticks: u32,
    /// Ticks after which an unseen closing flow has ended.
    pub linger_ticks: u32,
    /// Whether the new entry is an exceptional flow's.
    pub is_urgent: bool,
}

impl Policy for FlowPolicy {
    #[inline(always)]
    fn score(&self, meta: Meta, age: u32) -> Score {
        let closed = mask::any(meta.0, state::CLOSING) & mask::more(age, self.linger_ticks);
        let dead = mask::more(age, silence(self.idle_ticks)) | closed;
        let recent = !mask::more(age, self.idle_ticks >> RECENT_SHIFT);
        let spared = recent & mask::zero(self.is_urgent as u64);
        oldest(age, dead, mask::any(meta.0, state::EXCEPTIONAL) | spared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule, in words that branch.
    fn flow(policy: &FlowPolicy, meta: Meta, age: u32) -> Score {
        let base = (age & (SCORE_DEAD - 1)) | 1;
        if age > silence(policy.idle_ticks)
            || (meta.has(state::CLOSING) && age > policy.linger_ticks)
        {
            base | SCORE_DEAD
        } else if meta.has(state::EXCEPTIONAL)
            || (!policy.is_urgent && age <= policy.idle_ticks >> RECENT_SHIFT)
        {
            0
        } else {
            base
        }
    }

    fn handshake(policy: &HandshakePolicy, meta: Meta, age: u32) -> Score {
        let base = (age & (SCORE_DEAD - 1)) | 1;
        if meta.has(state::CLOSE_COUNTED) {
            base | SCORE_DEAD
        } else if meta.has(state::ESTABLISHED | state::AWAITED) && age <= policy.idle_ticks {
            0
        } else {
            base
        }
    }

    proptest! {
        #[test]
        fn scores_are_as_the_rule_says(
            meta: u64,
            age in prop_oneof![0_u32..4000, any::<u32>()],
            idle_ticks in prop_oneof![0_u32..4000, any::<u32>()],
            linger_ticks in 0_u32..4000,
            is_urgent: bool,
        ) {
            let meta = Meta(meta);
            let policy = FlowPolicy { idle_ticks, linger_ticks, is_urgent };
            prop_assert_eq!(policy.score(meta, age), flow(&policy, meta, age));
            let policy = HandshakePolicy { idle_ticks };
            prop_assert_eq!(policy.score(meta, age), handshake(&policy, meta, age));
            prop_assert_eq!(OldestPolicy.score(meta, age), (age & (SCORE_DEAD - 1)) | 1);
        }
    }
}

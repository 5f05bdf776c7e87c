//! Openings that meet nobody make a backend suspect before its next probe: it takes no new flows until it has answered a
//! probe, which is made at once.
//!
//! - One opening refused by the backend itself is enough (`nat`, `full-nat`): such an answer names an opening that ebb saw
//!   go there.
//! - Openings sent again, [`AGAIN_MIN`] of them in about a second and at least half as many as there were new ones. Anybody can send
//!   these, so they say something only where it is one backend that they concern and not its fellows: of backends that
//!   share a table by a secret hash, a client can not choose which one.
//!
//! At least half of the backends that take new flows, and `min_available` of them, are never suspect. A backend that has
//! answered is trusted for [`TRUST_MS`], so that forgers, or a server that refuses some, can not move it to and fro.

use std::collections::BTreeMap;

use super::{Engine, Fault};
use crate::model::{compose, observed::Health, state::Service};

/// Fewest openings sent again that mean anything.
const AGAIN_MIN: u64 = 3;

/// Shortest time over which openings are weighed, milliseconds.
const WEIGH_MS: u64 = 1_000;

/// How long a backend that was suspect and has answered is not suspected again, milliseconds.
const TRUST_MS: u64 = 5_000;

/// Why a backend is suspect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It refused an opening.
    Refused,
    /// Openings to it are sent again.
    Unanswered,
}

impl Suspicion {
    const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "suspect: it refused a connection",
            Self::Unanswered => "suspect: openings are sent again",
        }
    }
}

/// What is known of openings.
#[derive(Debug, Default)]
pub struct Suspects {
    /// Until when backends are trusted, Unix milliseconds.
    trusted: BTreeMap<u32, u64>,
    /// Openings, new ones and those sent again, by backend, when they were weighed last.
    openings: BTreeMap<u32, (u64, u64)>,
    weighed_ms: u64,
}

impl Engine {
    /// Suspects a backend, unless it is trusted, or too few would remain. Whether it takes new flows no more.
    pub fn suspect(&mut self, id: u32, why: Suspicion, now_ms: u64) -> bool {
        let trusted = self.suspects.trusted.get(&id);
        if trusted.is_some_and(|until| now_ms < *until) || self.observed.suspects.contains(&id) {
            return false;
        }
        let mut all = self.state.backends();
        let Some((name, service, _, backend)) = all.find(|(_, _, found, _)| *found == id) else {
            return false;
        };
        if !self.can_spare(service, id) {
            return false;
        }
        tracing::info!("{name}/{}: {}", backend.name, why.reason());
        let question = (name.clone(), backend.name.clone());
        self.doubts.questions.push(question);
        self.observed.suspects.insert(id);
        if let Some((_, reason)) = self.observed.health.get_mut(&id) {
            *reason = Some(why.reason().to_owned());
        }
        true
    }

    /// Whether it takes new flows, its checks can clear it, and enough others that nobody suspects take new flows too.
    fn can_spare(&self, service: &Service, id: u32) -> bool {
        let suspects = &self.observed.suspects;
        let accepting = compose::accepting(service, &self.observed, service.active_pool());
        let (mut all, mut others, mut is_one) = (0, 0, false);
        for (found, _) in accepting {
            all += 1;
            is_one |= found == id;
            others += usize::from(found != id && !suspects.contains(&found));
        }
        let least = (service.spec.min_available as usize)
            .max(all - all / 2)
            .max(1);
        let checked = compose::health(service, &self.observed, id) != Health::Unchecked;
        checked && is_one && others >= least
    }

    /// A backend that was asked has answered. Whether it was suspect.
    pub(super) fn trust(&mut self, id: u32, now_ms: u64) -> bool {
        if !self.observed.suspects.remove(&id) {
            return false;
        }
        self.suspects.trusted.insert(id, now_ms + TRUST_MS);
        if let Some((_, reason)) = self.observed.health.get_mut(&id) {
            *reason = Some("answered when it was suspect".to_owned());
        }
        true
    }

    /// Compares openings sent again with new ones.
    pub(super) fn weigh_openings(&mut self, now_ms: u64) -> Result<(), Fault> {
        if now_ms < self.suspects.weighed_ms.saturating_add(WEIGH_MS) {
            return Ok(());
        }
        self.suspects.weighed_ms = now_ms;
        self.suspects.trusted.retain(|_, until| now_ms < *until);
        let mut openings = BTreeMap::new();
        let mut unanswered = Vec::new();
        for service in self.state.services.values() {
            if service.spec.is_datagram() || !compose::is_checked(&service.spec.health) {
                continue;
            }
            let mut found = Vec::new();
            for share in &service.current {
                let stats = self.datapath.backend_stats(share.backend)?;
                let now = (stats.opened, stats.retransmits);
                openings.insert(share.backend, now);
                let before = self.suspects.openings.get(&share.backend);
                if before.is_some_and(|before| meets_nobody(*before, now)) {
                    found.push(share.backend);
                }
            }
            // Of more than half of them it is the clients' doing, or this node's.
            if found.len() <= service.current.len() / 2 {
                unanswered.extend(found);
            }
        }
        self.suspects.openings = openings;
        let mut changed = false;
        for id in unanswered {
            changed |= self.suspect(id, Suspicion::Unanswered, now_ms);
        }
        if changed {
            self.commit(Vec::new(), now_ms)?;
        }
        Ok(())
    }
}

/// Whether openings went unanswered between two readings of the counters: new ones, and those sent again.
fn meets_nobody(before: (u64, u64), now: (u64, u64)) -> bool {
    // A counter that has become less has begun anew.
    let (opened, again) = (
        now.0.saturating_sub(before.0),
        now.1.saturating_sub(before.1),
    );
    again >= AGAIN_MIN && 2 * again >= opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_sent_again_are_weighed_against_new_ones() {
        #[rustfmt::skip]
        let rows = [
            ("none", (100, 5), (200, 5), false),
            ("too few to mean anything", (100, 5), (101, 7), false),
            ("lost on the way", (100, 5), (200, 15), false),
            ("nobody answers", (100, 5), (106, 8), true),
            ("counters began anew", (100, 5), (4, 4), false),
        ];
        for (what, before, now, expected) in rows {
            assert_eq!(meets_nobody(before, now), expected, "{what}");
        }
    }
}

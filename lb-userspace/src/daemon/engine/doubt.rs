//! Questions to the prober, out of its rhythm: whether a backend is still there.
//!
//! When the last flows of a draining backend have gone they may have finished, or a dying server's kernel has closed
//! them. So a drain does not end before the backend has been heard of once more.

use std::collections::BTreeMap;

use super::{Engine, watch};
use crate::model::{
    compose,
    observed::{Health, Silence},
};

/// How long an answer is waited for, milliseconds. By then the checks have come to a verdict, or are too slow to be
/// waited for.
const PATIENCE_MS: u64 = 5_000;

/// What is asked, and what is known of it.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Draining backends without flows: when it was asked whether they are there; `None` once they have answered.
    empty: BTreeMap<u32, Option<u64>>,
    /// Backends to ask, by name.
    pub questions: Vec<(String, String)>,
}

impl Doubts {
    /// Whether an answer about a draining backend without flows is waited for.
    pub fn is_waited_for(&self, backend: u32, now_ms: u64) -> bool {
        let asked = self.empty.get(&backend).copied().flatten();
        asked.is_some_and(|asked| now_ms < asked.saturating_add(PATIENCE_MS))
    }
}

impl Engine {
    /// Backends, by service and name, that the prober is to probe now.
    pub fn take_questions(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.doubts.questions)
    }

    /// Takes in whether nobody answers at a backend. Whether that is news.
    pub fn note_silence(&mut self, service: &str, backend: &str, silence: Option<Silence>) -> bool {
        let Some(id) = self.id_of(service, backend) else {
            return false;
        };
        let before = match silence {
            Some(found) => {
                let before = self.observed.silence.get(&id).copied();
                // It was heard last before it went down, not before it died.
                let since_ms = before.map_or(found.since_ms, |known| known.since_ms);
                self.observed
                    .silence
                    .insert(id, Silence { since_ms, ..found });
                before
            }
            None => self.observed.silence.remove(&id),
        };
        before.map(|found| found.dead) != silence.map(|found| found.dead)
    }

    /// Takes in that a backend has answered when it was asked. Whether more follows from that than at the next tick.
    pub fn note_answer(&mut self, service: &str, backend: &str, now_ms: u64) -> bool {
        let Some(id) = self.id_of(service, backend) else {
            return false;
        };
        if let Some(asked) = self.doubts.empty.get_mut(&id) {
            *asked = None;
        }
        self.trust(id, now_ms)
    }

    pub(super) fn id_of(&self, service: &str, backend: &str) -> Option<u32> {
        let service = self.state.services.get(service)?;
        service.backend(backend).map(|(id, _)| id)
    }

    /// Asks about every draining backend whose last flows have gone since it was asked before.
    pub(super) fn question_empty(&mut self, now_ms: u64) {
        let mut empty = BTreeMap::new();
        let mut questions = Vec::new();
        for (name, service, id, backend) in self.state.backends() {
            let Some(drain) = backend.admin.draining() else {
                continue;
            };
            let up = compose::health(service, &self.observed, id);
            let watch = self.watches.get(&drain.id);
            // Nobody closes flows of datagrams; they fall silent.
            if service.spec.is_datagram()
                || !matches!(up, Health::Up | Health::Presumed)
                || !watch.is_some_and(watch::Watch::has_emptied)
            {
                continue;
            }
            let asked = self.doubts.empty.get(&id).copied().unwrap_or_else(|| {
                questions.push((name.clone(), backend.name.clone()));
                Some(now_ms)
            });
            empty.insert(id, asked);
        }
        self.doubts.empty = empty;
        self.doubts.questions.extend(questions);
    }
}

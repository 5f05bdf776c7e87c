//! What backends say for themselves, and what is done about it.

use super::{Engine, Fault};
use crate::model::{
    command::{Selection, Terms},
    drain::By,
    refused::{Refused, RefusedKind},
    speech::{self, Wish},
    state::Op,
};

impl Engine {
    /// Takes in what a backend said for itself: what it asks for, and words that were not understood. Unknown names are
    /// those of backends removed meanwhile.
    ///
    /// Returns whether it makes a difference: then [`Engine::after_events`] is to follow.
    pub fn note_said(
        &mut self,
        service: &str,
        backend: &str,
        wish: Option<Wish>,
        not_understood: &str,
    ) -> bool {
        let Some(id) = self.id_of(service, backend) else {
            return false;
        };
        let heard = self.observed.heard.entry(id).or_default();
        if !not_understood.is_empty() {
            let troubles = heard.troubles.get_or_insert_default();
            troubles.not_understood += 1;
            if troubles.last_not_understood != not_understood {
                not_understood.clone_into(&mut troubles.last_not_understood);
                tracing::warn!(
                    "{service}/{backend}: its agent says {not_understood:?}, which means nothing to ebb"
                );
            }
        }
        let differs = wish.is_some_and(|wish| heard.wish != Some(wish));
        heard.wish = wish.or(heard.wish);
        differs
    }

    /// Whether an operator who takes this backend's drain back does so against what it asks for itself.
    pub(super) fn overrules(&self, service: &str, id: u32) -> Option<Op> {
        let backend = self.state.services.get(service)?.backends.get(&id)?;
        let asks = match self.observed.heard.get(&id).and_then(|heard| heard.wish) {
            Some(wish) => wish == Wish::Drain,
            // Not heard since the daemon began: it did, if the drain was its own.
            None => backend.admin.drained_by() == Some(By::Answer),
        };
        asks.then(|| Op::Overruled {
            service: service.to_owned(),
            backend: id,
            overruled: true,
        })
    }

    /// Does what backends ask for, as far as it can be done.
    pub(super) fn follow_speech(&mut self, now_ms: u64) {
        if self.observed.heard.is_empty() {
            return;
        }
        let due = speech::due(&self.state, &self.observed);
        self.note_refusals(&due);
        if due.is_empty() {
            return;
        }
        let results = [
            self.drain_due(&due.drain, now_ms),
            self.undrain_due(&due.undrain, now_ms),
            self.forgive(&due.forgiven, now_ms),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!("what backends ask for is not done yet: {error}");
            self.trouble = Some(error.to_string());
        }
    }

    fn paths(&self, keys: &[(String, u32)]) -> Selection {
        let targets = keys
            .iter()
            .filter_map(|key| speech::target(&self.state, key));
        Selection {
            backends: targets.map(|target| target.path()).collect(),
            pools: Vec::new(),
        }
    }

    fn drain_due(&mut self, keys: &[(String, u32)], now_ms: u64) -> Result<(), Refused> {
        if keys.is_empty() {
            return Ok(());
        }
        let selection = self.paths(keys);
        let terms = Terms {
            by: By::Answer,
            ..Terms::default()
        };
        let drains = self.drain_all(&selection, terms, now_ms)?;
        for (path, drain) in selection.backends.iter().zip(drains) {
            tracing::info!("{path} asks to be drained: drain {drain} has begun");
        }
        Ok(())
    }

    fn undrain_due(&mut self, keys: &[(String, u32)], now_ms: u64) -> Result<(), Refused> {
        if keys.is_empty() {
            return Ok(());
        }
        let selection = self.paths(keys);
        let done = self.undrain_all(&selection, By::Answer, now_ms)?;
        tracing::info!("no drain is asked for any more: {done}");
        Ok(())
    }

    fn forgive(&mut self, keys: &[(String, u32)], now_ms: u64) -> Result<(), Refused> {
        if keys.is_empty() {
            return Ok(());
        }
        let op = |(service, backend): &(String, u32)| Op::Overruled {
            service: service.clone(),
            backend: *backend,
            overruled: false,
        };
        let ops = keys.iter().map(op).collect();
        let failed = |fault: Fault| Refused::new(RefusedKind::Failed, fault.to_string());
        self.commit(ops, now_ms).map_err(failed)
    }

    /// Says once of each backend that what it asks for cannot be.
    fn note_refusals(&mut self, due: &speech::Due) {
        for (id, heard) in &mut self.observed.heard {
            let refused = due.refused.get(id);
            if refused.is_none() && heard.troubles.is_none() {
                continue;
            }
            let troubles = heard.troubles.get_or_insert_default();
            if let (None, Some(why)) = (&troubles.refused, refused) {
                troubles.refusals += 1;
                let backend = self.state.backends().find(|(_, _, other, _)| other == id);
                let path = backend.map(|(name, _, _, backend)| format!("{name}/{}", backend.name));
                let path = path.unwrap_or_default();
                tracing::warn!("{path} asks to be drained and is not: {why}");
            }
            troubles.refused = refused.cloned();
        }
    }
}

//! Drains as they are shown: running ones with their progress and forecast, ended ones with their receipts.

use super::Engine;
use crate::{
    api,
    model::{
        command::{Result, Target, find, find_service},
        drain::{Draining, Ended, Reason},
        refused::Refused,
    },
};

/// Which drains are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// By its number.
    Id(u64),
    /// Those of a service.
    Service(String),
    /// Those of a backend, `SERVICE/BACKEND`.
    Backend(String),
}

impl Wanted {
    fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(id) => Self::Id(id),
            Err(_) if text.contains('/') => Self::Backend(text.to_owned()),
            Err(_) => Self::Service(text.to_owned()),
        }
    }

    fn takes(&self, id: u64, path: &str) -> bool {
        match self {
            Self::Id(wanted) => id == *wanted,
            Self::Backend(wanted) => path == wanted,
            Self::Service(wanted) => path
                .split_once('/')
                .is_some_and(|(service, _)| service == wanted),
        }
    }
}

impl Engine {
    /// The drain of a backend with this number, running or ended.
    pub(super) fn drain_of(&self, target: &Target, drain: u64, now_ms: u64) -> Option<api::Drain> {
        match target.backend.admin.draining() {
            Some(running) if running.id == drain => {
                Some(self.running_drain(target, running, now_ms))
            }
            _ => self.ended(drain).map(ended_drain),
        }
    }

    fn ended(&self, drain: u64) -> Option<&Ended> {
        let mut ended = self.state.ended.iter().rev();
        ended
            .find(|ended| ended.drain.id == drain)
            .map(|ended| &**ended)
    }

    /// Drains under way, by number.
    fn running(&self) -> Vec<(Target<'_>, &Draining)> {
        let mut running: Vec<_> = self
            .state
            .backends()
            .filter_map(|(name, service, id, backend)| {
                let target = Target {
                    name,
                    service,
                    id,
                    backend,
                };
                backend.admin.draining().map(|drain| (target, drain))
            })
            .collect();
        running.sort_by_key(|(_, drain)| drain.id);
        running
    }

    /// A drain by its number.
    pub fn drain_view(&self, drain: u64, now_ms: u64) -> Result<api::Drain> {
        let running = self.running();
        let running = running.iter().find(|(_, running)| running.id == drain);
        running
            .map(|(target, running)| self.running_drain(target, running, now_ms))
            .or_else(|| self.ended(drain).map(ended_drain))
            .ok_or_else(|| no_drain(drain))
    }

    /// Drains by number, service or `SERVICE/BACKEND`, all of them when `of` is empty: running ones first, by number, then
    /// those that have ended, the last one first.
    pub fn drains(&self, of: &[String], now_ms: u64) -> Result<Vec<api::Drain>> {
        let wanted: Vec<Wanted> = of.iter().map(|text| Wanted::parse(text)).collect();
        for one in &wanted {
            self.check_wanted(one)?;
        }
        let takes = |id: u64, path: &str| {
            wanted.is_empty() || wanted.iter().any(|wanted| wanted.takes(id, path))
        };
        let running = self.running();
        let running = running
            .iter()
            .filter(|(target, drain)| takes(drain.id, &target.path()))
            .map(|(target, drain)| self.running_drain(target, drain, now_ms));
        let ended = self.state.ended.iter();
        let mut ended: Vec<&Ended> = ended
            .map(|ended| &**ended)
            .filter(|ended| takes(ended.drain.id, &ended.receipt.backend))
            .collect();
        ended.sort_by_key(|ended| std::cmp::Reverse((ended.ended_ms, ended.drain.id)));
        let ended = ended.into_iter().map(ended_drain);
        Ok(running.chain(ended).collect())
    }

    /// Refuses what there is not and was not.
    fn check_wanted(&self, wanted: &Wanted) -> Result<()> {
        let running = self.running();
        let mut known = running
            .iter()
            .map(|(target, drain)| (drain.id, target.path()))
            .chain(
                self.state
                    .ended
                    .iter()
                    .map(|ended| (ended.drain.id, ended.receipt.backend.clone())),
            );
        if known.any(|(id, path)| wanted.takes(id, &path)) {
            return Ok(());
        }
        match wanted {
            Wanted::Id(id) => Err(no_drain(*id)),
            Wanted::Service(name) => find_service(&self.state, name).map(drop),
            Wanted::Backend(path) => find(&self.state, path).map(drop),
        }
    }

    fn running_drain(&self, target: &Target, drain: &Draining, now_ms: u64) -> api::Drain {
        let sight = self.sight(target.service, target.id, target.backend);
        let state = if drain.cutting.is_some() {
            "resetting"
        } else {
            "draining"
        };
        let left = sight.left();
        let watch = self.watches.get(&drain.id);
        let at_start = drain.at_start.unwrap_or(left);
        let progress = api::DrainProgress {
            left,
            gone: at_start.saturating_sub(left),
            rate_per_s: watch.and_then(|watch| watch.rate()),
            ages_known: watch.map_or(0, |watch| watch.live.count()),
            forecast: if drain.cutting.is_none() {
                self.forecast(drain, left, now_ms)
            } else {
                None
            },
        };
        api::Drain {
            flows: api::DrainFlows {
                at_start: drain.at_start.unwrap_or(0),
                listed: sight.listed,
                unseen: sight.unseen,
            },
            progress: Some(progress),
            ..drain_view(target.path(), state, drain)
        }
    }
}

fn no_drain(drain: u64) -> Refused {
    Refused::unknown(format!("no drain {drain}"))
        .hint("`ebb drains` lists those that run and the last receipts")
}

fn ended_drain(ended: &Ended) -> api::Drain {
    let undrained = ended.reason == Reason::Undrained;
    let state = if undrained { "undrained" } else { "drained" };
    api::Drain {
        flows: api::DrainFlows {
            at_start: ended.receipt.flows_at_start,
            listed: 0,
            unseen: 0,
        },
        ended_ms: Some(ended.ended_ms),
        receipt: Some(ended.receipt.clone()),
        ..drain_view(ended.receipt.backend.clone(), state, &ended.drain)
    }
}

fn drain_view(backend: String, state: &str, drain: &Draining) -> api::Drain {
    api::Drain {
        id: drain.id,
        backend,
        by: drain.by,
        state: state.to_owned(),
        since_ms: drain.since_ms,
        deadline_ms: drain.deadline_ms,
        on_deadline: drain.on_deadline,
        flows: api::DrainFlows::default(),
        ended_ms: None,
        progress: None,
        receipt: None,
    }
}

//! Weights, maintenance and the way back to work: what an operator sets by hand and takes back.

use super::{
    Engine,
    commands::{failed, unseen},
};
use crate::model::{
    command::{self, Planned, Result, Seen, Selection},
    state::{Backend, Op},
};

impl Engine {
    /// Sets the weights of a selection by hand, all or none; `None`: those that the backends came with hold again.
    pub fn weigh(
        &mut self,
        selection: &Selection,
        weight: Option<u32>,
        force: bool,
        now_ms: u64,
    ) -> Result<String> {
        let planned = command::weigh(&self.state, &self.observed, selection, weight, force)?;
        self.carry_out(
            &format!("weight {}", selection.words()),
            planned.ops,
            now_ms,
        )?;
        let by_hand = weight.map_or("", |_| ", set by hand");
        let what = |backend: &Backend| format!("weight {}{by_hand}", backend.weight());
        Ok(self.told(&planned.backends, ("has", "have"), what))
    }

    /// Puts a selection into maintenance, all or none. When this returns, no new flow goes there.
    pub fn maintain(&mut self, selection: &Selection, force: bool, now_ms: u64) -> Result<String> {
        let what = format!("maintenance {}", selection.words());
        let plan = |engine: &Self, seen: &Seen| {
            let (state, observed) = (&engine.state, &engine.observed);
            command::maintain(state, observed, selection, force, seen, now_ms)
        };
        let planned = self.planned_after_look(&what, plan, now_ms)?;
        self.carry_out(&what, planned.ops, now_ms)?;
        Ok(self.are(&planned.backends))
    }

    /// Has a selection take new flows again, all or none, whatever it did before.
    pub fn activate(&mut self, selection: &Selection, now_ms: u64) -> Result<String> {
        let what = format!("activate {}", selection.words());
        let plan =
            |engine: &Self, seen: &Seen| command::activate(&engine.state, selection, seen, now_ms);
        let mut planned = self.planned_after_look(&what, plan, now_ms)?;
        let meant = planned.backends.iter();
        let overruled: Vec<Op> = meant
            .filter_map(|(service, id)| self.overrules(service, *id))
            .collect();
        planned.ops.extend(overruled);
        self.carry_out(&what, planned.ops, now_ms)?;
        Ok(self.are(&planned.backends))
    }

    /// A plan that may end drains: it is refused before anything is looked at, and made with what a look has seen of their
    /// flows.
    fn planned_after_look(
        &mut self,
        what: &str,
        plan: impl Fn(&Self, &Seen) -> Result<Planned>,
        now_ms: u64,
    ) -> Result<Planned> {
        let planned = plan(self, &unseen)?;
        let is_end = |op: &Op| matches!(op, Op::Activated { ended, .. } | Op::Maintained { ended, .. } if ended.is_some());
        if !planned.ops.iter().any(is_end) {
            return Ok(planned);
        }
        let nothing_done = "nothing has changed; see `ebb status`, and try again";
        self.look(now_ms)
            .map_err(|fault| failed(what, &fault).hint(nothing_done))?;
        plan(self, &|target, drain| self.seen(target, drain))
    }

    /// Who of these is what: `web/b1, web/b2 are active; web/b3 is in maintenance`.
    pub(super) fn are(&self, backends: &[(String, u32)]) -> String {
        self.told(backends, ("is", "are"), |backend| {
            backend.admin.words().to_owned()
        })
    }

    /// The same of what `what` says of each, after one of the verbs.
    fn told(
        &self,
        backends: &[(String, u32)],
        (one, several): (&str, &str),
        what: impl Fn(&Backend) -> String,
    ) -> String {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for (service, id) in backends {
            let found = self.state.services.get(service);
            let Some(backend) = found.and_then(|service| service.backends.get(id)) else {
                continue;
            };
            let (path, what) = (format!("{service}/{}", backend.name), what(backend));
            match groups.iter_mut().find(|(known, _)| *known == what) {
                Some((_, paths)) => paths.push(path),
                None => groups.push((what, vec![path])),
            }
        }
        let words = groups.into_iter().map(|(what, paths)| {
            let verb = if paths.len() == 1 { one } else { several };
            format!("{} {verb} {what}", paths.join(", "))
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

//! Backends that are put aside by hand, and put back to work.
//!
//! In maintenance a backend takes no new flows and keeps those that it has, without a deadline. Health goes on being checked,
//! and nothing follows from it: see [`crate::model::death`]. A drain remembers that its backend was in maintenance: only
//! [`activate`] ends that.

use super::{
    Admin, Observed, Op, Planned, Result, Seen, Selection, State, Target,
    drains::{all_of, seen_end, select, too_few},
};
use crate::model::state::Backend;

/// Puts a selection's backends into maintenance, all or none. A drain under way is taken back: its flows have no deadline
/// any more.
pub fn maintain(
    state: &State,
    observed: &Observed,
    selection: &Selection,
    force: bool,
    seen: &Seen,
    now_ms: u64,
) -> Result<Planned> {
    let (targets, mut problems) = select(state, selection, ("maintenance", ""), |_| true);
    if !force {
        problems.extend(too_few("maintenance", &targets, observed));
    }
    let is_new = |backend: &Backend| backend.admin != Admin::Maintenance;
    let planned = planned(&targets, is_new, |target| Op::Maintained {
        service: target.name.to_owned(),
        backend: target.id,
        ended: seen_end(target, seen, now_ms),
    });
    all_of(problems).map(|()| planned)
}

/// Has a selection's backends take new flows again, all or none, whatever they did before: maintenance and drains end.
pub fn activate(state: &State, selection: &Selection, seen: &Seen, now_ms: u64) -> Result<Planned> {
    let (targets, problems) = select(state, selection, ("activate", ""), |_| true);
    let is_new = |backend: &Backend| backend.admin != Admin::Active;
    let planned = planned(&targets, is_new, |target| Op::Activated {
        service: target.name.to_owned(),
        backend: target.id,
        ended: seen_end(target, seen, now_ms),
    });
    all_of(problems).map(|()| planned)
}

/// Operations on those that are not yet what is wanted. Whoever asks again need not know that they are.
fn planned(
    targets: &[Target],
    is_new: impl Fn(&Backend) -> bool,
    op: impl Fn(&Target) -> Op,
) -> Planned {
    let meant = targets
        .iter()
        .map(|target| (target.name.to_owned(), target.id));
    let new = targets.iter().filter(|target| is_new(target.backend));
    Planned {
        ops: new.map(op).collect(),
        backends: meant.collect(),
        kept: Vec::new(),
    }
}

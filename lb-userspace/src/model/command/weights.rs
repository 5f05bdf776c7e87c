//! Weights that are set by hand.

use super::{
    Observed, Op, Planned, Refused, Result, Selection, State, Target, check_weight,
    drains::{all_of, select, too_few},
};

/// Sets the weight of a selection's backends by hand; `None`: the one that each came with holds again. All or none.
///
/// A backend of weight 0 takes no new flows, so below `min_available` that is refused as a drain is, unless forced.
pub fn weigh(
    state: &State,
    observed: &Observed,
    selection: &Selection,
    weight: Option<u32>,
    force: bool,
) -> Result<Planned> {
    if let Some(weight) = weight {
        check_weight(&format!("weight {}", selection.words()), weight)?;
    }
    let (targets, mut problems) = select(state, selection, ("weight", ""), |_| true);
    if !force {
        let to_zero = |target: &&Target| weight.unwrap_or(target.backend.spec.weight) == 0;
        let going: Vec<Target> = targets.iter().filter(to_zero).copied().collect();
        let refused = too_few("weight 0 of", &going, observed);
        problems.extend(refused.into_iter().map(raise_others));
    }
    let changes = |target: &&Target| target.backend.hand_weight != weight;
    let op = |target: &Target| Op::Weighted {
        service: target.name.to_owned(),
        backend: target.id,
        weight,
    };
    let planned = Planned {
        ops: targets.iter().filter(changes).map(op).collect(),
        backends: targets
            .iter()
            .map(|target| (target.name.to_owned(), target.id))
            .collect(),
        kept: Vec::new(),
    };
    all_of(problems).map(|()| planned)
}

fn raise_others(refused: Refused) -> Refused {
    refused.hint("add a backend or raise another's weight first, or use --force")
}

//! Drains of one backend, of several, of whole pools: all of them or none, and a refusal that names every reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Ages, Observed, Refused, Result, State, Target, accepting, find, find_service};
use crate::model::{
    drain::{Admin, By, Drained, Draining, End, Ended, Progress, Reason, Sight, as_ms},
    refused::RefusedKind,
    spec::OnDeadline,
    state::{Backend, Forgiven, Op, Service},
};

/// Terms of a drain; `None`: the service's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// Time to the deadline.
    pub timeout: Option<Duration>,
    /// What happens then.
    pub on_deadline: Option<OnDeadline>,
    /// Even below `min_available`.
    pub force: bool,
    /// Who asks.
    pub by: By,
}

/// Longest drain.
pub const DRAIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The backends that a command is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Single ones, `SERVICE/BACKEND`.
    pub backends: Vec<String>,
    /// All of a pool, `SERVICE/POOL`.
    pub pools: Vec<String>,
}

impl Selection {
    /// One backend.
    pub fn one(path: &str) -> Self {
        Self {
            backends: vec![path.to_owned()],
            pools: Vec::new(),
        }
    }

    /// For people: `web/b1, web/b2, pool web/blue`.
    pub fn words(&self) -> String {
        let pools = self.pools.iter().map(|pool| format!("pool {pool}"));
        let all: Vec<String> = self.backends.iter().cloned().chain(pools).collect();
        all.join(", ")
    }
}

/// Operations, and whom they are about.
#[derive(Debug, Default)]
pub struct Planned {
    /// The operations, for one step of the journal.
    pub ops: Vec<Op>,
    /// Service and id of every backend that was meant, each once.
    pub backends: Vec<(String, u32)>,
    /// Of those that stay as they are although they were meant: why, for people.
    pub kept: Vec<String>,
}

/// Begins the drains of a selection, or changes the terms of those under way. Of a pool, what is drained already stays
/// as it is.
pub fn drain(
    state: &State,
    observed: &Observed,
    selection: &Selection,
    terms: Terms,
    now_ms: u64,
) -> Result<Planned> {
    if terms.timeout.is_some_and(|timeout| timeout > DRAIN_MAX) {
        let error = format!("drain {}: the timeout is too long", selection.words());
        return Err(Refused::invalid(error).hint("at most 7 days"));
    }
    let wanted = |backend: &Backend| match &backend.admin {
        Admin::Drained(drained) => terms.by.takes_over(drained.by),
        _ => true,
    };
    let none = "every backend of it is drained already";
    let (targets, mut problems) = select(state, selection, ("drain", none), wanted);
    let mut planned = Planned::default();
    let mut last = state.last_drain;
    for target in &targets {
        planned.backends.push((target.name.to_owned(), target.id));
        match drain_one(state, target, terms, now_ms) {
            Ok(Some(Op::Drain {
                service,
                backend,
                mut drain,
            })) => {
                // Each gets a number of its own; one that runs keeps the one it has.
                last += 1;
                drain.id = last;
                planned.ops.push(Op::Drain {
                    service,
                    backend,
                    drain,
                });
            }
            Ok(op) => planned.ops.extend(op),
            Err(refused) => problems.push(refused),
        }
    }
    if !terms.force {
        problems.extend(too_few("drain", &targets, observed));
    }
    all_of(problems).map(|()| planned)
}

fn drain_one(state: &State, target: &Target, terms: Terms, now_ms: u64) -> Result<Option<Op>> {
    let path = target.path();
    match &target.backend.admin {
        // Whoever asks need not know that it has ended.
        Admin::Drained(drained) if terms.by.takes_over(drained.by) => {
            Ok(Some(adopted(target, terms.by)))
        }
        Admin::Drained(_) if terms.by.is_backend() => Ok(None),
        // Nor need who waits for it again: it may have ended in between.
        Admin::Drained(_) if terms.timeout.is_none() && terms.on_deadline.is_none() => Ok(None),
        Admin::Drained(drained) => {
            let error = format!(
                "drain {path}: it is drained already ({})",
                drained.reason.name()
            );
            Err(Refused::conflict(error).hint(format!("`ebb undrain {path}` puts it back to work")))
        }
        // The backend's own side has no say in a drain that is not its own.
        Admin::Draining(running) if terms.by.is_backend() && !running.by.is_backend() => Ok(None),
        // Whoever only wants to wait for it again must not put its end off.
        Admin::Draining(running) if terms.timeout.is_none() && terms.on_deadline.is_none() => {
            let takes_over = terms.by.takes_over(running.by);
            Ok(takes_over.then(|| adopted(target, terms.by)))
        }
        Admin::Draining(running) => {
            let mut op = begin(state, target, terms, now_ms);
            if let Op::Drain { drain, .. } = &mut op {
                if terms.timeout.is_none() {
                    drain.deadline_ms = running.deadline_ms;
                }
                drain.on_deadline = terms.on_deadline.unwrap_or(running.on_deadline);
                if !terms.by.takes_over(running.by) {
                    drain.by = running.by;
                }
            }
            Ok(Some(op))
        }
        Admin::Active | Admin::Maintenance | Admin::Removed => {
            Ok(Some(begin(state, target, terms, now_ms)))
        }
    }
}

fn adopted(target: &Target, by: By) -> Op {
    Op::DrainAdopted {
        service: target.name.to_owned(),
        backend: target.id,
        by,
    }
}

/// Finds a selection's backends, each once; of a pool those that are `wanted`. `words`: the command, and what is said
/// of a pool without any.
pub(super) fn select<'a>(
    state: &'a State,
    selection: &Selection,
    words: (&str, &str),
    wanted: impl Fn(&Backend) -> bool,
) -> (Vec<Target<'a>>, Vec<Refused>) {
    let (mut targets, mut problems) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    for path in &selection.backends {
        match find(state, path) {
            Ok(target) if known.insert(target.id) => targets.push(target),
            Ok(_) => {}
            Err(refused) => problems.push(refused),
        }
    }
    for pool in &selection.pools {
        match members(state, pool) {
            Ok(members) if members.is_empty() => {
                let error = format!("{} pool {pool}: it has no backends", words.0);
                problems.push(Refused::conflict(error).hint("`ebb status` shows the pools"));
            }
            Ok(members) => {
                let before = targets.len();
                let members = members.into_iter().filter(|target| wanted(target.backend));
                targets.extend(members.filter(|target| known.insert(target.id)));
                if targets.len() == before {
                    let error = format!("{} pool {pool}: {}", words.0, words.1);
                    problems.push(Refused::conflict(error).hint("`ebb status` shows the backends"));
                }
            }
            Err(refused) => problems.push(refused),
        }
    }
    if targets.is_empty() && problems.is_empty() {
        let error = format!("{}: it names no backend", words.0);
        problems.push(Refused::invalid(error).hint("name backends, or a pool"));
    }
    (targets, problems)
}

/// Backends of `SERVICE/POOL` that are not removed, by name.
pub fn members<'a>(state: &'a State, pool: &str) -> Result<Vec<Target<'a>>> {
    let Some((service, pool)) = pool.split_once('/') else {
        return Err(
            Refused::invalid(format!("{pool:?} does not name a pool")).hint("write SERVICE/POOL")
        );
    };
    let (name, service) = find_service(state, service)?;
    let in_pool = service.live_backends().filter(|(_, b)| b.pool == pool);
    let mut members: Vec<Target> = in_pool
        .map(|(id, backend)| Target {
            name,
            service,
            id,
            backend,
        })
        .collect();
    if members.is_empty() && !service.spec.pools.contains_key(pool) {
        let known = service.spec.pools.keys().map(String::as_str);
        return Err(Refused::unknown_name(
            &format!("pool of service {name}"),
            pool,
            known,
        ));
    }
    members.sort_by(|a, b| a.backend.name.cmp(&b.backend.name));
    Ok(members)
}

/// One refusal out of all reasons.
pub(super) fn all_of(mut problems: Vec<Refused>) -> Result<()> {
    if problems.len() < 2 {
        return problems.pop().map_or(Ok(()), Err);
    }
    let joined = |words: Vec<&str>| {
        let mut seen = BTreeSet::new();
        let first = words.into_iter().filter(|word| seen.insert(*word));
        first.collect::<Vec<_>>().join("; ")
    };
    let error = joined(problems.iter().map(|refused| &*refused.error).collect());
    let hints: Vec<&str> = problems
        .iter()
        .filter_map(|refused| refused.hint.as_deref())
        .collect();
    let one_kind = problems
        .iter()
        .all(|refused| refused.kind == problems[0].kind);
    let kind = if one_kind {
        problems[0].kind
    } else {
        RefusedKind::Conflict
    };
    let hint = (!hints.is_empty()).then(|| joined(hints));
    Err(Refused { kind, error, hint })
}

/// The operation that begins a drain.
pub fn begin(state: &State, target: &Target, terms: Terms, now_ms: u64) -> Op {
    let own = &target.service.spec.drain;
    Op::Drain {
        service: target.name.to_owned(),
        backend: target.id,
        drain: Draining {
            id: state.last_drain + 1,
            by: terms.by,
            since_ms: now_ms,
            deadline_ms: now_ms.saturating_add(as_ms(terms.timeout.unwrap_or(own.timeout))),
            on_deadline: terms.on_deadline.unwrap_or(own.on_deadline),
            spread: own.spread,
            at_start: None,
            progress: Progress::default(),
            cutting: None,
            // Known to whoever carries it out.
            maintained: false,
        },
    }
}

/// Refuses what would leave too few backends for new flows, service by service, all of its targets together. `command`:
/// what takes the new flows from them.
pub(super) fn too_few(command: &str, targets: &[Target], observed: &Observed) -> Vec<Refused> {
    let mut services: BTreeMap<&str, (&Service, Vec<&Target>)> = BTreeMap::new();
    for target in targets {
        let (_, of_it) = services
            .entry(target.name)
            .or_insert((target.service, Vec::new()));
        of_it.push(target);
    }
    services
        .into_values()
        .filter_map(|(service, targets)| too_few_of(command, service, &targets, observed))
        .collect()
}

fn too_few_of(
    command: &str,
    service: &Service,
    targets: &[&Target],
    observed: &Observed,
) -> Option<Refused> {
    let pool = service.active_pool();
    let now: BTreeSet<u32> = accepting(service, observed, pool)
        .map(|(id, _)| id)
        .collect();
    let going: Vec<String> = targets
        .iter()
        .filter(|target| now.contains(&target.id))
        .map(|target| target.path())
        .collect();
    let (rest, least) = (now.len() - going.len(), service.spec.min_available as usize);
    if going.is_empty() || rest >= least {
        return None;
    }
    let error = format!(
        "{command} {}: {rest} of {} accepting backends of pool {pool} would remain, min_available is {least}",
        going.join(", "),
        now.len(),
    );
    Some(Refused::conflict(error).hint("add a backend first, or use --force"))
}

/// Ends a drain: its last operation, with the receipt. `ages`: of its flows that are still listed.
pub fn end(
    target: &Target,
    drain: &Draining,
    end: End,
    ages: &Ages,
    forgiven: Forgiven,
    now_ms: u64,
) -> Op {
    Op::DrainEnded {
        service: target.name.to_owned(),
        backend: target.id,
        drained: Drained {
            id: drain.id,
            by: drain.by,
            reason: end.reason,
            ended_ms: now_ms,
            flows_go_on: end.left > 0,
            maintained: drain.maintained,
        },
        ended: Box::new(ended(target, drain, end, ages, now_ms)),
        forgiven,
    }
}

fn ended(target: &Target, drain: &Draining, end: End, ages: &Ages, now_ms: u64) -> Ended {
    let receipt = drain.receipt(target.path(), end, ages, now_ms);
    Ended {
        drain: Draining {
            // The receipt says what came of it.
            progress: Progress::default(),
            ..drain.clone()
        },
        reason: end.reason,
        ended_ms: now_ms,
        receipt,
    }
}

/// The end of a drain under way that the configuration takes back, where nobody has looked at its flows: all that it had
/// go on.
pub fn taken_back(target: &Target, now_ms: u64) -> Option<Box<Ended>> {
    let drain = target.backend.admin.draining()?;
    let known = drain.at_start.unwrap_or(0);
    let left = known.saturating_sub(drain.progress.idle_expired);
    let end = undrained(drain, left, now_ms);
    Some(Box::new(ended(
        target,
        drain,
        end,
        &Ages::default(),
        now_ms,
    )))
}

/// The end of a drain that is taken back with so many flows open. Past its deadline those whose turn has come were cut.
fn undrained(drain: &Draining, open: u64, now_ms: u64) -> End {
    let at_deadline = drain.cutting.map_or(0, |cutting| cutting.left);
    let cut = u128::from(at_deadline) * u128::from(drain.cut(now_ms)) / u128::from(u32::MAX);
    let reset = cut as u64;
    let left = match drain.cutting {
        Some(_) => open.min(at_deadline - reset),
        None => open,
    };
    End {
        reset,
        left,
        ..End::of(Reason::Undrained)
    }
}

/// What is known of a drain when it is taken back: the drain with its progress, its backend's flows, and the ages of
/// those that are listed.
pub type Seen<'a> = dyn Fn(&Target, &Draining) -> (Draining, Sight, Ages) + 'a;

/// Takes the drains of a selection back, under way or ended. Who was in maintenance before is again. Of a pool, what is not
/// drained stays as it is.
///
/// Of a backend's own side (`by`), only drains that it asked for itself; what else there is stays and is no error, since
/// it asks each time that its service begins.
pub fn undrain(
    state: &State,
    selection: &Selection,
    by: By,
    seen: &Seen,
    now_ms: u64,
) -> Result<Planned> {
    let wanted = |backend: &Backend| backend.admin.drained_by().is_some();
    let none = "none of its backends is draining";
    let (targets, mut problems) = select(state, selection, ("undrain", none), wanted);
    let mut planned = Planned::default();
    for target in &targets {
        if by.is_backend()
            && let Some(why) = stays(target)
        {
            planned.kept.push(why);
            continue;
        }
        if target.backend.admin.drained_by().is_none() {
            problems.push(not_draining(target));
            continue;
        }
        planned.backends.push((target.name.to_owned(), target.id));
        planned
            .ops
            .push(back(target, seen_end(target, seen, now_ms)));
    }
    all_of(problems).map(|()| planned)
}

fn not_draining(target: &Target) -> Refused {
    let path = target.path();
    let refused = Refused::conflict(format!("undrain {path}: it is not draining"));
    if target.backend.admin == Admin::Maintenance {
        refused.hint(format!(
            "it is in maintenance: `ebb activate {path}` puts it back to work"
        ))
    } else {
        refused
    }
}

/// A drain is taken back: what its backend was before it is again.
pub fn back(target: &Target, ended: Option<Box<Ended>>) -> Op {
    let (service, backend) = (target.name.to_owned(), target.id);
    if target.backend.admin.is_maintained() {
        Op::Maintained {
            service,
            backend,
            ended,
        }
    } else {
        Op::Activated {
            service,
            backend,
            ended,
        }
    }
}

/// The end of a drain under way that a command takes back.
pub(super) fn seen_end(target: &Target, seen: &Seen, now_ms: u64) -> Option<Box<Ended>> {
    let (drain, sight, ages) = seen(target, target.backend.admin.draining()?);
    let end = undrained(&drain, sight.open(), now_ms);
    Some(Box::new(ended(target, &drain, end, &ages, now_ms)))
}

/// Why a backend's own side can not take its drain back; `None` where it can.
fn stays(target: &Target) -> Option<String> {
    let path = target.path();
    match target.backend.admin.drained_by() {
        None => Some(format!(
            "{path} is {} already",
            target.backend.admin.words()
        )),
        Some(_) if target.backend.leaving => Some(format!(
            "{path} stays drained: it has left the configuration"
        )),
        Some(by) if !by.is_backend() => {
            Some(format!("{path} stays drained: {} asked for it", by.words()))
        }
        Some(_) => None,
    }
}

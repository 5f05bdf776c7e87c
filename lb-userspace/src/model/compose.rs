//! Who takes new flows, and when a change has settled. Pure functions of the state and of what is seen.

use std::time::Duration;

use super::{
    drain::as_ms,
    observed::{Health, Observed},
    spec::HealthSpec,
    state::{Backend, Composition, Op, Service, Share},
    table::{self, Member},
};

/// Longest time that a new service waits for the first verdict on each of its backends before it begins with those
/// that are up. Beginning whole spares it a change, during which the flow table would be needed.
pub const FIRST_VERDICTS: Duration = Duration::from_secs(3);

/// Whether a service's backends are checked at all.
pub const fn is_checked(health: &HealthSpec) -> bool {
    health.startup.is_some()
        || health.readiness.is_some()
        || health.liveness.is_some()
        || health.agent.is_some()
}

/// The health of one of the service's backends.
pub fn health(service: &Service, observed: &Observed, backend: u32) -> Health {
    observed.health(backend, is_checked(&service.spec.health))
}

/// Backends of `pool` that may take new flows.
pub fn accepting<'a>(
    service: &'a Service,
    observed: &'a Observed,
    pool: &'a str,
) -> impl Iterator<Item = (u32, &'a Backend)> {
    service.live_backends().filter(move |(id, backend)| {
        backend.pool == pool && backend.is_wanted() && health(service, observed, *id).is_up()
    })
}

/// Who should take new flows. With nobody up: those of the last composition that are still wanted, since nothing
/// better is on offer and health alone may be wrong.
pub fn wanted(service: &Service, observed: &Observed) -> Composition {
    let share = |(id, backend): (u32, &Backend)| Share {
        backend: id,
        weight: backend.weight(),
    };
    let up: Composition = accepting(service, observed, service.active_pool())
        .map(share)
        .collect();
    let trusted = |share: &&Share| !observed.suspects.contains(&share.backend);
    if up.iter().any(|share| trusted(&share)) {
        return up.iter().filter(trusted).copied().collect();
    }
    if !up.is_empty() {
        return up;
    }
    let still_wanted = |last: &Share| {
        let backend = service.backends.get(&last.backend)?;
        backend.is_wanted().then(|| share((last.backend, backend)))
    };
    service.current.iter().filter_map(still_wanted).collect()
}

/// Whether a service that has never had a composition should go on waiting for verdicts and next hops.
fn waits(service: &Service, observed: &Observed, now_ms: u64) -> bool {
    if now_ms >= service.created_ms.saturating_add(as_ms(FIRST_VERDICTS)) {
        return false;
    }
    let pool = service.active_pool();
    let mut candidates = service
        .live_backends()
        .filter(|(_, backend)| backend.pool == pool && backend.is_wanted());
    candidates.any(|(id, backend)| {
        let health = health(service, observed, id);
        let no_way = observed.hop(&backend.spec.address).is_none();
        health == Health::Starting || (health.is_up() && no_way)
    })
}

/// The change of composition that is due, if any.
pub fn compose(name: &str, service: &Service, observed: &Observed, now_ms: u64) -> Option<Op> {
    if service.current.is_empty() && service.base.is_empty() && waits(service, observed, now_ms) {
        return None;
    }
    let current = wanted(service, observed);
    (current != service.current).then(|| Op::Composed {
        service: name.to_owned(),
        current,
        at_ms: now_ms,
    })
}

/// Whether the unfinished change has settled: no drain is under way, and every flow of the moved slots has had an
/// idle timeout's time to be seen and listed. A flow that was not seen in that time has ended.
pub fn settles(service: &Service, now_ms: u64) -> bool {
    service.is_changing()
        && !service.is_draining()
        && now_ms
            >= service
                .last_change_ms
                .saturating_add(as_ms(service.spec.idle_timeout))
}

/// The table of a composition. A backend that is unknown gets no slots.
pub fn build(seed: &[u8; 16], service: &Service, composition: &Composition) -> Vec<u32> {
    let member = |share: &Share| {
        let backend = service.backends.get(&share.backend)?;
        Some(Member {
            key: &backend.name,
            id: share.backend,
            weight: share.weight,
        })
    };
    let members: Vec<Member> = composition.iter().filter_map(member).collect();
    table::build(seed, service.slots, &members)
}

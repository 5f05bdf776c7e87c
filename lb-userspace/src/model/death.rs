//! What becomes of the flows of a backend that has died. Pure functions of the state and of what is seen.
//!
//! A backend is dead once so many probes of its liveness check in a row met silence (see [`super::health`]). Silence may
//! also be this node's own: with its way to the backends broken it hears nobody. So flows are cut only while somebody
//! else who takes new flows is not dead, and never those of a backend that takes new flows itself for want of a better, or
//! that an operator has put into maintenance.

use lb_common::abi::backend_flags;

use super::{
    drain::{Admin, Reason},
    observed::Observed,
    spec::{OnDeath, Protocol},
    state::{Backend, Service},
};

/// Whether the flows of one of the service's backends have nobody to talk to and may be taken from it.
pub fn has_died(service: &Service, observed: &Observed, backend: u32) -> bool {
    let is_dead = |id: u32| observed.silence.get(&id).is_some_and(|found| found.dead);
    let takes_flows = |id: u32| service.current.iter().any(|share| share.backend == id);
    let others_live = || {
        let mut others = service.current.iter();
        others.any(|share| !is_dead(share.backend))
    };
    // Somebody works on it: that it is silent is no news, and its flows may outlive that.
    let maintained = || {
        let backend = service.backends.get(&backend);
        backend.is_some_and(|backend| backend.admin == Admin::Maintenance)
    };
    service.spec.on_death != OnDeath::Leave
        && is_dead(backend)
        && !maintained()
        && !takes_flows(backend)
        && others_live()
}

/// The flags of a backend's record, `flags`, with what its death changes about them.
pub fn flags(
    flags: u32,
    service: &Service,
    observed: &Observed,
    id: u32,
    backend: &Backend,
) -> u32 {
    let over = match &backend.admin {
        Admin::Removed => true,
        // A drain that ended with its backend's death leaves its flows to be told.
        Admin::Drained(drained) => !drained.flows_go_on && drained.reason != Reason::Died,
        Admin::Active | Admin::Draining(_) | Admin::Maintenance => false,
    };
    if over || !has_died(service, observed, id) {
        return flags;
    }
    match (service.spec.on_death, service.spec.listen.protocol) {
        (OnDeath::Leave, _) => flags,
        (OnDeath::Reset, Protocol::Tcp) => {
            let others = backend_flags::ENDED | backend_flags::CUT_DROP;
            flags & !others | backend_flags::CUT_RESET | backend_flags::DEAD
        }
        // Nobody can be told that his datagrams go nowhere.
        (OnDeath::Reset, Protocol::Udp) | (OnDeath::Resteer, _) => flags | backend_flags::ENDED,
    }
}

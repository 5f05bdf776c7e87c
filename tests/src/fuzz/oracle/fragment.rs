//! Rules for later fragments, which have no ports: they go where their first one went, or pass.

use lb_common::{abi::mode, outcome::Outcome};

use super::{
    Broken, Run, answer,
    forward::{Change, receiver},
    full_nat, rule, tunnel, unserved,
};
use crate::{
    fuzz::{
        sums::TCP,
        view::View,
        world::{Role, Service, World},
    },
    rig::Verdict,
};

/// A later fragment. Where it goes depends on what came before it; that it goes to a backend of the service that it
/// was sent to, or comes from one, does not.
pub fn later(world: &World, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    let tiny = view.protocol == TCP && view.offset < 20;
    rule!(
        (run.outcome == Outcome::PassFragmentTiny) <= tiny,
        "a fragment at offset {} is not laid over a header",
        view.offset
    );
    if run.outcome.name().starts_with("pass_fragment") {
        return unserved(run, world.owner(view.to).map_or(0, |service| service.id));
    }
    rule!(!tiny, "a fragment that is laid over a header passes");
    let Some(service) = world.service(run.service) else {
        return Err(Broken(format!(
            "{:?} of service {}",
            run.outcome, run.service
        )));
    };
    if service.vip.ip() == view.to {
        return to_backend(world, service, view, run);
    }
    let answers = |service: &Service| service.backends.iter().any(|b| b.address.ip() == view.from);
    rule!(
        mode::is_two_way(service.row.mode) && answers(service),
        "the fragment is neither to service {} nor from a backend of it",
        service.id
    );
    let mut change = Change {
        from: Some(service.vip),
        without_ports: true,
        ..Change::default()
    };
    let mut client = view.to;
    if service.row.mode == mode::FULL_NAT {
        let onward = full_nat::followed(world, view)?;
        client = onward.to.ip();
        (change.to, change.id) = (Some(onward.to), Some(onward.id));
    }
    answer::to_client(
        change,
        Outcome::ForwardFragment,
        client,
        view,
        run,
        |change| change.check(view, run),
    )
}

fn to_backend(world: &World, service: &Service, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    match run.outcome {
        Outcome::ForwardFragment => {}
        Outcome::DropTtl => {
            rule!(
                view.ttl <= 1 && mode::is_two_way(service.row.mode),
                "the time to live is not used up"
            );
            return super::unchanged(run);
        }
        // Only first fragments are spoken of (RFC 1122 section 3.2.2).
        Outcome::DropTooBig => {
            tunnel::too_big(service, view)?;
            return super::unchanged(run);
        }
        other => {
            return Err(Broken(format!(
                "{other:?} is no outcome of a fragment to a service"
            )));
        }
    }
    let backend = receiver(service, run)?;
    let verdict = match backend.role {
        Role::Elsewhere => Verdict::Redirect,
        Role::Old | Role::New | Role::Dropped => Verdict::Tx,
        // Behind a first fragment that is a client's reset, which tells them of it; any other is not let through to them.
        Role::Reset | Role::Dead => Verdict::Tx,
        role => return Err(Broken(format!("a fragment to a backend that is {role:?}"))),
    };
    rule!(
        run.verdict == verdict,
        "backend {} is reached by {verdict:?}",
        backend.id
    );
    if mode::is_tunnel(service.row.mode) {
        return tunnel::entered(service, backend, view, run);
    }
    let is_nat = mode::is_two_way(service.row.mode);
    let mut change = Change {
        macs: Some(run.output[..12].to_vec()),
        to: is_nat.then_some(backend.address),
        hop: is_nat,
        without_ports: true,
        ..Change::default()
    };
    if service.row.mode == mode::FULL_NAT {
        let onward = full_nat::followed(world, view)?;
        rule!(
            onward.to == backend.address,
            "its first fragment went to {}",
            onward.to
        );
        (change.from, change.id) = (Some(onward.from), Some(onward.id));
    }
    change.check(view, run)
}

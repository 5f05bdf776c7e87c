//! Rules for ICMP: echo requests to a service, and errors about its flows.

use std::net::IpAddr;

use lb_common::{
    abi::{mode, service_flags},
    outcome::Outcome,
};

use super::{
    Broken, Run,
    answer::{self, OWN_TTL, turn},
    forward::{Change, may_own, owned, receiver},
    full_nat, rule, same, tunnel, unchanged,
};
use crate::{
    fuzz::{
        quote::Quote,
        sums::{network_error, transport_error},
        view::{Family, View},
        world::{Role, Service, World, is_denied},
    },
    rig::Verdict,
};

/// An echo request to an address that `service` answers for.
pub fn echo(service: &Service, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    rule!(
        run.service == service.id,
        "counted for service {}, not {}",
        run.service,
        service.id
    );
    let answered = service.row.flags & service_flags::ECHO != 0
        && is_one_host(view.from)
        && run.input[0] & 1 == 0
        && (view.family == Family::V6 || view.header == 20);
    let expected = match (is_denied(view.from), answered) {
        (true, _) => Outcome::DropClient,
        (_, true) => Outcome::AnswerEcho,
        _ => Outcome::PassIcmp,
    };
    rule!(
        run.outcome == expected,
        "the echo request is {expected:?}, not {:?}",
        run.outcome
    );
    if expected != Outcome::AnswerEcho {
        return unchanged(run);
    }
    let mut reply = run.input.to_vec();
    reply[..12].rotate_left(6);
    turn(&mut reply, view);
    let (ttl, kind) = match view.family {
        Family::V4 => (view.network + 8, 0),
        Family::V6 => (view.network + 7, 129),
    };
    reply[ttl] = OWN_TTL;
    reply[view.transport] = kind;
    compare(reply, view, None, run)
}

fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}

/// An error about what `service` sent to a client: for the backend that did.
pub fn to_backend(
    world: &World,
    service: &Service,
    view: &View,
    quote: &Quote,
    run: &Run<'_>,
) -> Result<(), Broken> {
    rule!(
        run.service == service.id,
        "counted for service {}, not {}",
        run.service,
        service.id
    );
    let slot = service.slot(quote.to);
    let is_nat = service.row.mode == mode::NAT;
    match run.outcome {
        Outcome::ForwardIcmp => {}
        Outcome::PassIcmp if service.row.mode == mode::FULL_NAT => {
            rule!(
                full_nat::may_pass(world, service, quote),
                "the flow has a port"
            );
            return unchanged(run);
        }
        Outcome::DropNoBackend => {
            rule!(
                slot.current() == 0 || slot.base() == 0,
                "{slot:?} has backends"
            );
            return unchanged(run);
        }
        Outcome::DropNoNextHop => {
            owned(service, slot, Role::NoNextHop, run)?;
            return unchanged(run);
        }
        Outcome::DropTtl => {
            rule!(
                mode::is_two_way(service.row.mode) && view.ttl <= 1,
                "a time to live of {} is not used up",
                view.ttl
            );
            return unchanged(run);
        }
        // Nothing is said of an error that does not fit (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
        Outcome::DropTooBig => {
            tunnel::too_big(service, view)?;
            return unchanged(run);
        }
        other => {
            return Err(Broken(format!(
                "{other:?} is no outcome of an error about a flow"
            )));
        }
    }
    let backend = receiver(service, run)?;
    rule!(
        may_own(service, slot, backend.id, run),
        "an error about a flow of {slot:?} went to backend {}",
        backend.id
    );
    let verdict = match backend.role {
        Role::Elsewhere => Verdict::Redirect,
        Role::NoNextHop | Role::Ended => return Err(Broken(format!("to {:?}", backend.role))),
        _ => Verdict::Tx,
    };
    rule!(
        run.verdict == verdict,
        "backend {} is reached by {verdict:?}",
        backend.id
    );
    if mode::is_tunnel(service.row.mode) {
        return tunnel::entered(service, backend, view, run);
    }
    if service.row.mode == mode::FULL_NAT {
        return full_nat::error_to_backend(world, service, backend, view, quote, run);
    }
    let change = Change {
        macs: Some(run.output[..12].to_vec()),
        to: is_nat.then_some(backend.address),
        hop: is_nat,
        without_ports: true,
        ..Change::default()
    };
    let mut expected = change.applied(view, run.input)?;
    if is_nat {
        put_end(
            &mut expected,
            quote.addresses().0,
            quote.transport,
            backend.address,
        );
    }
    compare(expected, view, Some(quote), run)
}

/// An error about what a client sent to a backend of `service`: for the client, as from the service.
pub fn to_client(
    world: &World,
    service: &Service,
    view: &View,
    quote: &Quote,
    run: &Run<'_>,
) -> Result<(), Broken> {
    rule!(
        run.service == service.id,
        "counted for service {}, not {}",
        run.service,
        service.id
    );
    if service.row.mode == mode::FULL_NAT {
        return full_nat::error_to_client(world, service, view, quote, run);
    }
    let change = Change {
        from: Some(service.vip),
        without_ports: true,
        ..Change::default()
    };
    answer::to_client(
        change,
        Outcome::ForwardIcmpReply,
        view.to,
        view,
        run,
        |change| {
            let mut expected = change.applied(view, run.input)?;
            put_end(
                &mut expected,
                quote.addresses().1,
                quote.transport + 2,
                service.vip,
            );
            compare(expected, view, Some(quote), run)
        },
    )
}

/// Replaces an address and a port of a quoted packet.
pub fn put_end(frame: &mut [u8], address: usize, port: usize, end: std::net::SocketAddr) {
    match end.ip() {
        IpAddr::V4(ip) => frame[address..address + 4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => frame[address..address + 16].copy_from_slice(&ip.octets()),
    }
    frame[port..port + 2].copy_from_slice(&end.port().to_be_bytes());
}

/// The output is `expected` but for its checksums, which are as right or as wrong as those of the input.
pub fn compare(
    mut expected: Vec<u8>,
    view: &View,
    quote: Option<&Quote>,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let own = [
        (view.family == Family::V4).then_some(view.network + 10),
        Some(view.transport + 2),
    ];
    let quoted = quote.map_or([None, None], |quote| {
        let (network, transport) = quote.checksums();
        [
            network,
            transport.filter(|_| !quote.is_unchecked(run.input)),
        ]
    });
    for at in own.into_iter().chain(quoted).flatten() {
        if let (Some(to), Some(from)) = (expected.get_mut(at..at + 2), run.output.get(at..at + 2)) {
            to.copy_from_slice(from);
        }
    }
    same(&expected, run.output)?;
    let errors = |frame: &[u8]| (network_error(frame, view), transport_error(frame, view));
    let (before, after) = (errors(run.input), errors(run.output));
    rule!(
        before == after,
        "the checksums' errors {before:04x?} became {after:04x?}"
    );
    let Some(quote) = quote else { return Ok(()) };
    let (before, after) = (quote.errors(run.input), quote.errors(run.output));
    rule!(
        before.0 == after.0,
        "the quoted header's error {:04x} became {:04x}",
        before.0,
        after.0
    );
    let is_summed = quote.checksums().1.is_some() && !quote.is_unchecked(run.input);
    rule!(
        !is_summed || before.1 == after.1 && !quote.is_unchecked(run.output),
        "the quoted transport's error {:04x} became {:04x}",
        before.1,
        after.1
    );
    Ok(())
}

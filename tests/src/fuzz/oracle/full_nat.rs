//! Rules for services whose backends see the node's own address and ports: no two flows share one, each keeps its own,
//! and what comes back to it goes to its client.

use std::net::{IpAddr, SocketAddr};

use lb_common::{outcome::Outcome, steer::tcp};

use super::{
    Broken, Run, answer,
    forward::{Change, checksums},
    icmp::{compare, put_end},
    opinion, rule, same, unchanged,
};
use crate::{
    fuzz::{
        case::Ports,
        given::{Owner, PORTS},
        numbered::Onward,
        quote::Quote,
        sums::{TCP, network_error, transport_error},
        view::{ETHERNET, Family, Fragment, View},
        world::{Backend, Role, Service, World},
    },
    rig::{Verdict, backend_macs, tunnel_source},
};

/// What the rig's backends take.
const MTU: usize = 1500;

/// A client's packet on its way to a backend.
pub fn forwarded(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let out = View::parse(run.output).map_err(|why| Broken(format!("the output: {why:?}")))?;
    let node = SocketAddr::new(out.from, out.from_port);
    rule!(
        node.ip() == IpAddr::from(tunnel_source(backend.address.ip()))
            && (PORTS.0..=PORTS.1).contains(&node.port()),
        "{node} is no end of the node's"
    );
    let client = SocketAddr::new(view.from, view.from_port);
    displaced(world, service, backend, view, run)?;
    let mut given = world.given.borrow_mut();
    let mut answered = given.note(service, client, backend, node)?;
    let flags = flags(view, run.input);
    if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        answered = false;
        let shown = (backend.address, view.protocol, node);
        given
            .owner(shown)
            .into_iter()
            .for_each(|owner| owner.answered = false);
    }
    drop(given);
    let (to, from) = backend_macs(backend.id);
    let change = Change {
        macs: Some([to, from].concat()),
        from: Some(node),
        to: Some(backend.address),
        hop: true,
        id: numbered(world, view, node, backend.address, run)?,
        ..Change::default()
    };
    let option = option(service, client);
    if view.fragment == Fragment::First {
        let lacks = !option.is_empty() && flags & (tcp::SYN | tcp::RST) == tcp::SYN;
        rule!(
            (run.outcome == Outcome::ForwardOptionless) == lacks,
            "a first fragment has no option, and an opening is counted so: {:?}",
            run.outcome
        );
        return change.check(view, run);
    }
    if view.protocol != TCP || option.is_empty() || flags & tcp::RST != 0 {
        rule!(
            run.outcome != Outcome::ForwardOptionless,
            "the packet is to have no option"
        );
        return change.check(view, run);
    }
    if run.output.len() == run.input.len() + option.len() {
        rule!(
            has_room(view, run, &option) && run.outcome != Outcome::ForwardOptionless,
            "the option does not fit, or the packet is counted as one without"
        );
        return with_option(&change, &option, view, &out, run);
    }
    // Of a frame that leaves by another interface nobody knows here whether it had tags.
    let may_miss = answered || !has_room(view, run, &option) || run.verdict == Verdict::Redirect;
    rule!(may_miss, "the option is not there");
    let is_told = run.outcome == Outcome::ForwardOptionless;
    rule!(
        is_told == (flags & tcp::SYN != 0) || answered && !is_told,
        "an opening without its option is counted as such, and nothing else: {:?}",
        run.outcome
    );
    change.check(view, run)
}

/// Where every port is taken, what begins a flow displaces another one, and nothing else does.
fn displaced(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let client = SocketAddr::new(view.from, view.from_port);
    let had = world
        .given
        .borrow()
        .node(service.id, client, backend.address);
    let is_flooded = world.ports.get() == Ports::Flooded;
    let displaces = is_flooded && had.is_none();
    rule!(
        !displaces || begins(view, run.input),
        "a flow in its midst gets a port although all are taken"
    );
    let is_told = run.outcome == Outcome::ForwardDisplacing;
    rule!(
        is_told == displaces || displaces && run.outcome == Outcome::ForwardOptionless,
        "another flow is displaced: {displaces}, and that is counted: {is_told}"
    );
    Ok(())
}

/// Whether a packet begins a flow, as far as a packet can say.
pub fn begins(view: &View, frame: &[u8]) -> bool {
    view.protocol != TCP || flags(view, frame) & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// The identification that a first fragment left with between these ends, which must be its own alone; of others none is
/// looked for.
fn numbered(
    world: &World,
    view: &View,
    from: SocketAddr,
    to: SocketAddr,
    run: &Run<'_>,
) -> Result<Option<u32>, Broken> {
    if view.fragment != Fragment::First {
        return Ok(None);
    }
    let out = View::parse(run.output).map_err(|why| Broken(format!("the output: {why:?}")))?;
    let onward = Onward {
        from,
        to,
        id: out.id,
    };
    world.numbered.borrow_mut().note(view, onward)?;
    Ok(Some(out.id))
}

/// How the first fragment of a later one's packet went on.
pub fn followed(world: &World, view: &View) -> Result<Onward, Broken> {
    let last = world.numbered.borrow().last(view);
    last.ok_or_else(|| Broken("it follows a first fragment that nobody has seen".into()))
}

/// TCP flags; 0 of a datagram.
fn flags(view: &View, frame: &[u8]) -> u8 {
    if view.protocol == TCP {
        frame[view.transport + 13]
    } else {
        0
    }
}

/// The option that names the client; empty where the service has none.
fn option(service: &Service, client: SocketAddr) -> Vec<u8> {
    let kind = service.row.client_option;
    if kind == 0 {
        return Vec::new();
    }
    let address = match client.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut bytes = vec![kind, 4 + address.len() as u8];
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(address);
    bytes
}

/// Whether a packet can take the option: in its header, on its way, and in plain headers.
fn has_room(view: &View, run: &Run<'_>, option: &[u8]) -> bool {
    let fixed = if view.family == Family::V4 { 20 } else { 40 };
    let header = usize::from(run.input[view.transport + 12] >> 4) * 4;
    view.network == ETHERNET
        && view.transport == ETHERNET + fixed
        && header + option.len() <= 60
        && view.total + option.len() <= MTU
}

/// The output is the input with this change, and the option in front of its other options.
fn with_option(
    change: &Change,
    option: &[u8],
    view: &View,
    out: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let mut expected = change.applied(view, run.input)?;
    let at = view.transport + 20;
    expected.splice(at..at, option.iter().copied());
    expected[view.transport + 12] += (option.len() as u8 / 4) << 4;
    let length_at = match view.family {
        Family::V4 => view.network + 2,
        Family::V6 => view.network + 4,
    };
    let old = u16::from_be_bytes([expected[length_at], expected[length_at + 1]]);
    let new = old + option.len() as u16;
    expected[length_at..length_at + 2].copy_from_slice(&new.to_be_bytes());
    for at in checksums(view) {
        expected[at..at + 2].copy_from_slice(&run.output[at..at + 2]);
    }
    same(&expected, run.output)?;
    let errors =
        |frame: &[u8], view: &View| (network_error(frame, view), transport_error(frame, view));
    let (before, after) = (errors(run.input, view), errors(run.output, out));
    rule!(
        before == after,
        "checksums are as right or as wrong as before, with the option: {before:04x?} became {after:04x?}"
    );
    let (before, after) = (opinion::of(run.input), opinion::of(run.output));
    rule!(
        before == after,
        "another parser says {before:?} of the input, {after:?} of the output"
    );
    Ok(())
}

/// What a backend sends to the node.
pub fn answered(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let shown = SocketAddr::new(view.to, view.to_port);
    let Some(owner) = owner(world, backend.address, view.protocol, shown, true) else {
        rule!(
            run.outcome == Outcome::PassReplyLocal,
            "nobody has {shown}, which became {:?}",
            run.outcome
        );
        return unchanged(run);
    };
    let change = Change {
        from: Some(service.vip),
        to: Some(owner.client),
        ..Change::default()
    };
    let client = owner.client.ip();
    answer::to_client(change, Outcome::ForwardReply, client, view, run, |change| {
        let id = numbered(world, view, service.vip, owner.client, run)?;
        Change {
            id,
            ..change.clone()
        }
        .check(view, run)
    })
}

fn owner(
    world: &World,
    backend: SocketAddr,
    protocol: u8,
    shown: SocketAddr,
    answers: bool,
) -> Option<Owner> {
    let mut given = world.given.borrow_mut();
    let owner = given.owner((backend, protocol, shown))?;
    owner.answered |= answers;
    Some(*owner)
}

/// An error about what the service sent to a client. The flow must have a port.
pub fn error_to_backend(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    quote: &Quote,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let given = world.given.borrow();
    let Some(node) = given.node(service.id, quote.to, backend.address) else {
        return Err(Broken(format!("{} has no flow to {backend:?}", quote.to)));
    };
    rule!(backend.role != Role::Ended, "the backend is gone");
    let change = Change {
        macs: Some(run.output[..12].to_vec()),
        from: Some(node),
        to: Some(backend.address),
        hop: true,
        without_ports: true,
        ..Change::default()
    };
    let mut expected = change.applied(view, run.input)?;
    put_end(
        &mut expected,
        quote.addresses().0,
        quote.transport,
        backend.address,
    );
    put_end(
        &mut expected,
        quote.addresses().1,
        quote.transport + 2,
        node,
    );
    compare(expected, view, Some(quote), run)
}

/// Whether an error about a flow of such a service may pass: one of its backends knows no such flow.
pub fn may_pass(world: &World, service: &Service, quote: &Quote) -> bool {
    let given = world.given.borrow();
    let slot = service.slot(quote.to);
    [slot.current(), slot.base()].iter().any(|id| {
        let Some(backend) = service.backend(*id) else {
            return true;
        };
        given.node(service.id, quote.to, backend.address).is_none()
    })
}

/// An error about what a client sent.
pub fn error_to_client(
    world: &World,
    service: &Service,
    view: &View,
    quote: &Quote,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let Some(owner) = owner(world, quote.to, quote.protocol, quote.from, false) else {
        rule!(
            run.outcome == Outcome::PassIcmp,
            "nobody has {}, the error became {:?}",
            quote.from,
            run.outcome
        );
        return unchanged(run);
    };
    let client = owner.client;
    let change = Change {
        from: Some(service.vip),
        to: Some(client),
        without_ports: true,
        ..Change::default()
    };
    answer::to_client(
        change,
        Outcome::ForwardIcmpReply,
        client.ip(),
        view,
        run,
        |change| {
            let mut expected = change.applied(view, run.input)?;
            put_end(&mut expected, quote.addresses().0, quote.transport, client);
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

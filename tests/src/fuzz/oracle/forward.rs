//! Rules for packets from clients to a service, and how a forwarded frame follows from the one that came in.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Slot, cut_position, mode},
    outcome::Outcome,
};

use super::{Broken, Run, answer, full_nat, opinion, quic, rule, same, tunnel, unchanged};
use crate::{
    fuzz::{
        case::Ports,
        sums::{TCP, UDP, network_error, transport_error},
        view::{Family, View},
        world::{Backend, Role, Service, World, is_denied},
    },
    rig::{Verdict, backend_macs},
};

/// RST (RFC 9293 section 3.1).
const RST: u8 = 4;

/// A packet from a client to `service`.
pub fn from_client(
    world: &World,
    service: &Service,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let client = SocketAddr::new(view.from, view.from_port);
    let slot = service.slot(client);
    rule!(
        is_denied(view.from) == (run.outcome == Outcome::DropClient),
        "a denied client's packets are dropped, and nobody else's"
    );
    if run.outcome.is_forward() {
        let backend = receiver(service, run)?;
        allowed(service, backend, client, slot, view, run)?;
        quic::judged(service, view, run)?;
        return forwarded(world, service, backend, view, run);
    }
    match run.outcome {
        Outcome::ResetDeadline => {
            owned(service, slot, Role::Reset, run)?;
            return answer::reset(view, run);
        }
        Outcome::ResetDead => {
            owned(service, slot, Role::Dead, run)?;
            return answer::reset(view, run);
        }
        Outcome::AnswerTooBig => return tunnel::told(service, view, run),
        // An answer that could not be finished leaves its traces in what is dropped.
        Outcome::DropTooBig => return tunnel::too_big(service, view).map(|_| ()),
        Outcome::DropClient => {}
        Outcome::DropFlowLimit => {
            rule!(
                service.row.flows_per_second > 0,
                "the service has no limit of flows"
            );
        }
        Outcome::DropTtl => {
            let routed = mode::is_two_way(service.row.mode);
            rule!(
                view.ttl <= 1 && routed,
                "a time to live of {} is not used up",
                view.ttl
            );
        }
        Outcome::DropNoBackend => {
            rule!(
                slot.current() == 0 || slot.base() == 0,
                "{slot:?} has backends"
            );
        }
        Outcome::DropNoNextHop => owned(service, slot, Role::NoNextHop, run)?,
        Outcome::DropNoReset => owned(service, slot, Role::Reset, run)
            .or_else(|_| owned(service, slot, Role::Dead, run))?,
        Outcome::DropDeadline => {
            owned(service, slot, Role::Dropped, run)?;
            rule!(
                is_cut(service, client),
                "the flow's turn to be cut has not come"
            );
        }
        Outcome::DropOpeningUnrecorded => {}
        Outcome::DropNoPort => {
            let may_miss = match world.ports.get() {
                Ports::Free => false,
                Ports::Flooded => !full_nat::begins(view, run.input),
                Ports::None => true,
            };
            rule!(
                may_miss && service.row.mode == mode::FULL_NAT,
                "there are ports"
            );
        }
        other => rule!(false, "{other:?} is no outcome of a packet to a service"),
    }
    unchanged(run)
}

/// A backend of this role may own a flow of the slot.
pub fn owned(service: &Service, slot: Slot, role: Role, run: &Run<'_>) -> Result<(), Broken> {
    let mut backends = service.backends.iter();
    rule!(
        backends.any(|backend| backend.role == role && may_own(service, slot, backend.id, run)),
        "no owner of {slot:?} is {role:?}"
    );
    Ok(())
}

/// Flows of the slot may be this backend's: it is one of the slot's owners, or packets named it before.
pub fn may_own(service: &Service, slot: Slot, id: u32, run: &Run<'_>) -> bool {
    let is_named = service.is_quic() && run.named.contains(&id);
    id == slot.current() || id == slot.base() || is_named
}

fn is_cut(service: &Service, client: SocketAddr) -> bool {
    cut_position(service.hash(client)) < u32::MAX / 2
}

/// The backend that a frame goes to, by the MAC addresses that it got.
pub fn receiver<'a>(service: &'a Service, run: &Run<'_>) -> Result<&'a Backend, Broken> {
    let id = run.output.get(5).map_or(0, |byte| u32::from(*byte));
    let Some(backend) = service.backend(id) else {
        return Err(Broken(format!(
            "service {} has no backend {id}",
            service.id
        )));
    };
    let (to, from) = backend_macs(id);
    rule!(
        run.output[..12] == [to, from].concat(),
        "the MAC addresses are backend {id}'s"
    );
    Ok(backend)
}

/// The backend may have this packet.
fn allowed(
    service: &Service,
    backend: &Backend,
    client: SocketAddr,
    slot: Slot,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let (id, outcome) = (backend.id, run.outcome);
    let owner = match outcome {
        Outcome::ForwardOpening | Outcome::ForwardOrphan => id == slot.current(),
        Outcome::ForwardSteady
        | Outcome::ForwardBase
        | Outcome::ForwardAdopted
        | Outcome::ForwardUnlisted
        | Outcome::ForwardAskingUnlisted => id == slot.base(),
        // A datagram that is not recorded goes where the next one will; a handshake must not be split.
        Outcome::ForwardOpeningUnrecorded if service.row.protocol() == UDP => id == slot.current(),
        Outcome::ForwardOpeningUnrecorded => id == slot.base() && id == slot.current(),
        // Nothing is known of it, and the base's flows are cut. (What a backend has sent back is for `packet_asked`.)
        Outcome::ForwardSecondChance => {
            id == slot.current()
                && mode::is_two_way(service.row.mode)
                && service
                    .backend(slot.base())
                    .is_some_and(|base| match base.role {
                        Role::Reset => true,
                        Role::Dropped => is_cut(service, client),
                        _ => false,
                    })
        }
        Outcome::ForwardServerId => quic::named(service, view, run.input) == Some(id),
        _ => may_own(service, slot, id, run),
    };
    rule!(
        owner,
        "{outcome:?} to backend {id}, but the slot is {slot:?}"
    );
    let reachable = match backend.role {
        Role::Old | Role::New | Role::Elsewhere => true,
        Role::Dropped => !is_cut(service, client),
        // A client's reset tells the backend.
        Role::Reset | Role::Dead => {
            view.protocol == TCP && run.input[view.transport + 13] & RST != 0
        }
        Role::NoNextHop | Role::Ended => false,
    };
    rule!(
        reachable,
        "{outcome:?} to a backend that is {:?}",
        backend.role
    );
    Ok(())
}

/// A forwarded frame is what came in, but for what the service's mode rewrites.
fn forwarded(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    let verdict = match backend.role {
        Role::Elsewhere => Verdict::Redirect,
        _ => Verdict::Tx,
    };
    rule!(
        run.verdict == verdict,
        "backend {} is reached by {verdict:?}",
        backend.id
    );
    let (to, from) = backend_macs(backend.id);
    let mut change = Change {
        macs: Some([to, from].concat()),
        ..Change::default()
    };
    match service.row.mode {
        mode::L2 => {}
        mode::NAT => {
            change.to = Some(backend.address);
            change.hop = true;
        }
        mode::FULL_NAT => return full_nat::forwarded(world, service, backend, view, run),
        mode::IPIP | mode::GUE => return tunnel::entered(service, backend, view, run),
        other => return Err(Broken(format!("the oracle does not know mode {other}"))),
    }
    change.check(view, run)
}

/// What is rewritten.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Destination and source MAC address.
    pub macs: Option<Vec<u8>>,
    /// Source address and port.
    pub from: Option<SocketAddr>,
    /// Destination address and port.
    pub to: Option<SocketAddr>,
    /// The time to live goes down by one.
    pub hop: bool,
    /// There are no ports: addresses alone change.
    pub without_ports: bool,
    /// A fragment's identification.
    pub id: Option<u32>,
}

impl Change {
    /// The output is the input with this change and nothing else, and its checksums are as right or as wrong as they
    /// were.
    pub fn check(&self, view: &View, run: &Run<'_>) -> Result<(), Broken> {
        let mut expected = self.applied(view, run.input)?;
        for at in checksums(view) {
            // Checked by what they say, not by their bytes: zero has two representations.
            if let (Some(to), Some(from)) =
                (expected.get_mut(at..at + 2), run.output.get(at..at + 2))
            {
                to.copy_from_slice(from);
            }
        }
        same(&expected, run.output)?;
        // A later fragment has no transport header, whose checksum would be amended.
        let errors = |frame: &[u8]| {
            let transport = view.has_transport.then(|| transport_error(frame, view));
            (network_error(frame, view), transport)
        };
        let (before, after) = (errors(run.input), errors(run.output));
        if !is_unchecked(view, run.input) {
            rule!(
                before == after,
                "checksums are as right or as wrong as before (errors of IP and transport header): {before:04x?} became {after:04x?}"
            );
        }
        rule!(
            is_unchecked(view, run.input) == is_unchecked(view, run.output),
            "UDP without checksum stays so, and with one keeps one"
        );
        let (before, after) = (opinion::of(run.input), opinion::of(run.output));
        rule!(
            before == after,
            "another parser says {before:?} of the input, {after:?} of the output"
        );
        Ok(())
    }

    /// The input with this change, all checksums as they were.
    pub fn applied(&self, view: &View, input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut frame = input.to_vec();
        let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
        if let Some(macs) = &self.macs {
            put(0, macs);
        }
        let (source_at, destination_at, ttl_at) = match view.family {
            Family::V4 => (view.network + 12, view.network + 16, view.network + 8),
            Family::V6 => (view.network + 8, view.network + 24, view.network + 7),
        };
        for (end, at, port_at) in [(self.from, source_at, 0), (self.to, destination_at, 2)] {
            let Some(end) = end else { continue };
            match end.ip() {
                IpAddr::V4(ip) => put(at, &ip.octets()),
                IpAddr::V6(ip) => put(at, &ip.octets()),
            }
            if !self.without_ports {
                put(view.transport + port_at, &end.port().to_be_bytes());
            }
        }
        match (self.id, view.family) {
            (Some(id), Family::V4) => put(view.id_at, &(id as u16).to_be_bytes()),
            (Some(id), Family::V6) => put(view.id_at, &id.to_be_bytes()),
            (None, _) => {}
        }
        if self.hop {
            rule!(
                view.ttl > 1,
                "a packet with time to live {} goes no further",
                view.ttl
            );
            put(ttl_at, &[view.ttl - 1]);
        }
        Ok(frame)
    }
}

/// Where the checksums of a packet are.
pub fn checksums(view: &View) -> Vec<usize> {
    let network = (view.family == Family::V4).then_some(view.network + 10);
    let transport = match view.protocol {
        _ if !view.has_transport => None,
        TCP => Some(view.transport + 16),
        UDP => Some(view.transport + 6),
        _ => None,
    };
    network.into_iter().chain(transport).collect()
}

/// A UDP datagram whose sender computed no checksum (RFC 768).
fn is_unchecked(view: &View, frame: &[u8]) -> bool {
    view.has_transport
        && view.protocol == UDP
        && frame[view.transport + 6..view.transport + 8] == [0, 0]
}

//! Rules for answers: those of backends, and resets in their name.

use std::net::IpAddr;

use lb_common::{abi::mode, outcome::Outcome};

use super::{Broken, Run, forward::Change, full_nat, opinion, rule, same, unchanged};
use crate::{
    fuzz::{
        sums::{TCP, network_error, transport_error},
        view::{ETHERNET, Family, View},
        world::{Backend, NEIGHBOUR, NEIGHBOUR_MACS, NODE, NOWHERE, Service, World},
    },
    rig::Verdict,
};

/// RST (RFC 9293 section 3.1).
const RST: u8 = 4;
/// ACK.
const ACK: u8 = 16;
/// SYN.
const SYN: u8 = 2;
/// FIN.
/// Time to live of what ebb makes itself.
pub const OWN_TTL: u8 = 64;

/// A backend's answer.
pub fn from_backend(
    world: &World,
    service: &Service,
    backend: &Backend,
    view: &View,
    run: &Run<'_>,
) -> Result<(), Broken> {
    if service.row.mode == mode::FULL_NAT {
        return full_nat::answered(world, service, backend, view, run);
    }
    let change = Change {
        from: Some(service.vip),
        ..Change::default()
    };
    to_client(
        change,
        Outcome::ForwardReply,
        view.to,
        view,
        run,
        |change| change.check(view, run),
    )
}

/// On the way to the client at `to`: `forwarded` when the kernel knows the way, else as it says. `check` has the change that it
/// then is.
pub fn to_client(
    mut change: Change,
    forwarded: Outcome,
    to: IpAddr,
    view: &View,
    run: &Run<'_>,
    check: impl FnOnce(&Change) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let is = |addresses: [&str; 2]| addresses.iter().any(|a| a.parse() == Ok(to));
    match run.outcome {
        outcome if outcome == forwarded => {
            rule!(is(NEIGHBOUR), "the way to {to} is not known");
            rule!(
                run.verdict == Verdict::Redirect,
                "the client is behind another interface"
            );
            change.macs = Some(NEIGHBOUR_MACS.to_vec());
            change.hop = true;
            check(&change)
        }
        Outcome::ForwardReplyKernel => {
            rule!(
                !is(NEIGHBOUR) && !is(NODE) && !is(NOWHERE),
                "the way to {to} is known"
            );
            check(&change)
        }
        Outcome::PassReplyLocal => {
            rule!(!is(NEIGHBOUR), "answers to {to} go on");
            unchanged(run)
        }
        Outcome::DropTtl => {
            rule!(
                view.ttl <= 1,
                "a time to live of {} is not used up",
                view.ttl
            );
            unchanged(run)
        }
        Outcome::DropSecondChance => {
            let flags = run.input.get(view.transport + 13).copied().unwrap_or(0);
            // A bare reset, or an answer of another connection, which has an ACK or data.
            rule!(
                view.protocol == TCP && flags & SYN == 0,
                "what opens a connection is not withheld; flags {flags:02x}"
            );
            unchanged(run)
        }
        other => Err(Broken(format!(
            "{other:?} is no outcome of a packet to a client"
        ))),
    }
}

/// A segment that was turned into a reset (RFC 9293 section 3.10.7.1).
pub fn reset(view: &View, run: &Run<'_>) -> Result<(), Broken> {
    let plain = (view.network, view.transport) == (ETHERNET, ETHERNET + fixed(view.family));
    rule!(
        plain && view.protocol == TCP && run.input[view.transport + 13] & (RST | ACK) == ACK,
        "only a plain segment with ACK and without RST is answered with a reset"
    );
    let mut expected = run.input[..view.transport + 20].to_vec();
    expected[..12].rotate_left(6);
    match view.family {
        Family::V4 => {
            expected[view.network + 2..][..2].copy_from_slice(&40u16.to_be_bytes());
            expected[view.network + 8] = OWN_TTL;
            // The update is incremental: as right or as wrong as it was.
            expected[view.network + 10..][..2].copy_from_slice(bytes(run, view.network + 10)?);
        }
        Family::V6 => {
            expected[view.network + 4..][..2].copy_from_slice(&20u16.to_be_bytes());
            expected[view.network + 7] = OWN_TTL;
        }
    }
    turn(&mut expected, view);
    let header = &mut expected[view.transport..];
    header[..4].rotate_left(2);
    header.copy_within(8..12, 4);
    header[8..20].fill(0);
    (header[12], header[13]) = (0x50, RST);
    header[16..18].copy_from_slice(bytes(run, view.transport + 16)?);
    same(&expected, run.output)?;

    let Ok(out) = View::parse(run.output) else {
        return Err(Broken("the reset is no sound packet".into()));
    };
    let errors = (
        network_error(run.input, view),
        network_error(run.output, &out),
    );
    rule!(
        errors.0 == errors.1,
        "the IP checksum's error {:04x} became {:04x}",
        errors.0,
        errors.1
    );
    rule!(
        transport_error(run.output, &out) == 0,
        "the reset's checksum is right"
    );
    let said = opinion::of(run.output).and_then(|opinion| opinion.transport);
    rule!(
        said == Some(true),
        "another parser says {said:?} of the reset's checksum"
    );
    Ok(())
}

fn fixed(family: Family) -> usize {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

fn bytes<'a>(run: &Run<'a>, at: usize) -> Result<&'a [u8], Broken> {
    run.output
        .get(at..at + 2)
        .ok_or_else(|| Broken(format!("the reset ends before byte {at}")))
}

/// Swaps the addresses.
pub fn turn(frame: &mut [u8], view: &View) {
    let (at, length) = match view.family {
        Family::V4 => (view.network + 12, 4),
        Family::V6 => (view.network + 8, 16),
    };
    frame[at..at + 2 * length].rotate_left(length);
}

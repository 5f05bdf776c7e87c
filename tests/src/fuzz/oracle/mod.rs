//! What must hold of every packet, whatever it is. Every message names the rule that was broken.

mod answer;
mod forward;
mod fragment;
mod full_nat;
mod icmp;
mod opinion;
mod quic;
#[cfg(test)]
mod tests;
mod tunnel;

use std::fmt;

use lb_common::outcome::Outcome;

use super::{
    counters::Moved,
    view::{ETHERNET, View},
    world::{Concern, World},
};
use crate::rig::Verdict;

/// A packet that went through the program.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The frame that came in.
    pub input: &'a [u8],
    /// What the program returned.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub output: &'a [u8],
    /// The service that it was counted for, 0 for none.
    pub service: u32,
    /// What it was counted as.
    pub outcome: Outcome,
    /// Backends that connection ids have named since the tables were empty, this packet's among them: flow entries may
    /// lead to these.
    pub named: &'a [u32],
}

/// The backend that this packet's connection id names.
#[must_use]
pub fn named(world: &World, input: &[u8]) -> Option<u32> {
    let view = View::parse(input).ok()?;
    match world.concern(input, &view) {
        Concern::To(service) => quic::named(service, &view, input),
        _ => None,
    }
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fails unless a rule holds.
macro_rules! rule {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::fuzz::oracle::Broken(format!($($message)+)));
        }
    };
}
pub(super) use rule;

/// Exactly one counter moved, by one.
///
/// # Errors
/// None did, several did, or one did by more.
pub fn counted_once(moved: &[Moved]) -> Result<Moved, Broken> {
    match moved {
        [one] if one.by == 1 => Ok(*one),
        _ => Err(Broken(format!(
            "a packet is counted once; it was counted as {moved:?}"
        ))),
    }
}

/// Judges one packet.
///
/// # Errors
/// The first rule that it breaks.
pub fn judge(world: &World, run: &Run<'_>) -> Result<(), Broken> {
    let expected = verdicts(run.outcome);
    rule!(
        expected.contains(&run.verdict),
        "{:?} ends in {expected:?}, not in {:?}",
        run.outcome,
        run.verdict
    );
    let Ok(view) = View::parse(run.input) else {
        return unserved(run, 0);
    };
    // By another interface a frame leaves without its tags.
    if run.verdict == Verdict::Redirect && view.network > ETHERNET {
        let input = untagged(run.input, &view);
        return judge(
            world,
            &Run {
                input: &input,
                ..*run
            },
        );
    }
    let view = &view;
    match world.concern(run.input, view) {
        Concern::To(service) => {
            attributed(run, service.id)?;
            forward::from_client(world, service, view, run)
        }
        Concern::From(service, backend) => {
            attributed(run, service.id)?;
            answer::from_backend(world, service, backend, view, run)
        }
        Concern::Echo(service) => icmp::echo(service, view, run),
        Concern::ErrorTo(service, quote) => icmp::to_backend(world, service, view, &quote, run),
        Concern::ErrorFrom(service, quote) => icmp::to_client(world, service, view, &quote, run),
        Concern::Later => fragment::later(world, view, run),
        Concern::Address(service) => unserved(run, service.id),
        Concern::Nobody => unserved(run, 0),
    }
}

/// The frame without its tags.
fn untagged(frame: &[u8], view: &View) -> Vec<u8> {
    let (addresses, packet) = (&frame[..ETHERNET - 2], &frame[view.network - 2..]);
    [addresses, packet].concat()
}

/// What is not served passes as it came. `service` may count it, where it was for its address.
fn unserved(run: &Run<'_>, service: u32) -> Result<(), Broken> {
    let name = run.outcome.name();
    rule!(
        run.service == service && name.starts_with("pass_"),
        "what is not served passes, counted for service {service}; this was {name} of service {}",
        run.service
    );
    unchanged(run)
}

/// The verdicts that fit an outcome.
fn verdicts(outcome: Outcome) -> &'static [Verdict] {
    let name = outcome.name();
    match outcome {
        Outcome::ForwardReplyKernel => &[Verdict::Pass],
        _ if name.starts_with("pass_") => &[Verdict::Pass],
        _ if name.starts_with("drop_") => &[Verdict::Drop],
        _ if name.starts_with("forward_") => &[Verdict::Tx, Verdict::Redirect],
        _ if name.starts_with("reset_") || name.starts_with("answer_") => &[Verdict::Tx],
        // Nothing fits what is not known here.
        _ => &[],
    }
}

/// A sound packet to or from a service is counted for it, and not as if nobody knew it.
fn attributed(run: &Run<'_>, service: u32) -> Result<(), Broken> {
    let stranger = [
        Outcome::PassNotIp,
        Outcome::PassTruncated,
        Outcome::PassMalformed,
        Outcome::PassFragment,
        Outcome::PassFragmentEarly,
        Outcome::PassFragmentTiny,
        Outcome::PassProtocol,
        Outcome::PassIcmp,
        Outcome::PassNoService,
        Outcome::PassInternal,
    ];
    rule!(
        run.service == service && !stranger.contains(&run.outcome),
        "a sound packet of service {service} is counted for it; it was {:?} of service {}",
        run.outcome,
        run.service
    );
    Ok(())
}

/// The frame is as it came.
fn unchanged(run: &Run<'_>) -> Result<(), Broken> {
    same(run.input, run.output)
        .map_err(|Broken(what)| Broken(format!("{:?} leaves a packet alone; {what}", run.outcome)))
}

/// Two frames are the same, byte by byte.
fn same(expected: &[u8], found: &[u8]) -> Result<(), Broken> {
    if expected == found {
        return Ok(());
    }
    rule!(
        expected.len() == found.len(),
        "{} bytes became {}",
        expected.len(),
        found.len()
    );
    let differing: Vec<String> = (0..expected.len())
        .filter(|&at| expected[at] != found[at])
        .map(|at| {
            format!(
                "byte {at} is {:02x}, should be {:02x}",
                found[at], expected[at]
            )
        })
        .collect();
    Err(Broken(differing.join(", ")))
}

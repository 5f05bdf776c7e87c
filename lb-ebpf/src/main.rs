//! ebb's XDP program: the way of a packet, from the wire to a backend or a client.
//!
//! parse -> index -> steer -> forward. Whatever is not served goes to the kernel untouched. The steering rule
//! itself is in `lb_common::steer`, where the host tests it. What is rare is taken over by programs of its own
//! (`thorough`), so that the common packet does not pay for it.

#![no_std]
#![no_main]
// Compare-and-exchange is an instruction of the BPF machine that Rust has no stable name for.
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    Addr,
    abi::{BackendRecord, ControlRecord, ServiceRecord, backend_flags, jump, mode, service_flags},
    fragment::TO_CLIENT,
    full_nat::Handed,
    index::{self, IndexEntry, kind},
    outcome::Outcome,
    steer::{self, Decision, Reply, tcp},
};

mod alert;
mod ask;
mod at_once;
mod count;
mod forward;
mod fragment;
mod full_nat;
mod icmp;
mod judge;
mod known;
mod maps;
mod parse;
mod prefix;
mod probe;
mod protect;
mod quic;
mod ranges;
mod reset;
mod sent_back;
mod tables;
mod thorough;
mod too_big;
mod trace;
mod tunnel;
mod turn;
mod vlan;

use forward::{By, Exit};
use parse::{Parsed, Refused};
use tables::Kernel;
use tunnel::Carried;

/// The balancer: what every packet enters, and nearly every packet leaves by.
// Inlined into the entry point that the attribute makes: a call less, some 7 ns a packet.
#[xdp]
#[inline(always)]
pub fn ebb(ctx: XdpContext) -> u32 {
    // While decisions are traced, the programs that trace take them.
    if trace::is_on() {
        return hand_over(&ctx, Refused::whole());
    }
    match parse::quick_then::<at_once::AtOnce>(&ctx) {
        Ok(Some(verdict)) => verdict,
        Ok(None) => hand_over(&ctx, Refused::whole()),
        Err(refused) => hand_over(&ctx, refused),
    }
}

/// The balancer again, for packets that can not be steered at once.
#[xdp]
#[inline(always)]
pub fn whole(ctx: XdpContext) -> u32 {
    claim_stack();
    match parse::quick(&ctx) {
        Ok(packet) => serve(&ctx, &packet),
        Err(refused) => hand_over(&ctx, refused),
    }
}

/// Makes the verifier see the lower end of the stack before anything else. Linux 6.18 refuses a program (EFAULT, "verifier
/// bug: stack slot") when it has to know exactly what a slot held at a place where it had not seen so deep a slot yet.
#[inline(always)]
fn claim_stack() {
    // Deeper than what `whole` uses by itself, and 6.1 still lets it call functions whose frames have 32 bytes.
    // SAFETY: at the start of a program nothing is on the stack.
    unsafe { asm!("*(u64 *)(r10 - 480) = {zero}", zero = in(reg) 0_u64) };
}

/// The balancer again, for frames with tags, options or extension headers.
#[xdp]
#[inline(always)]
pub fn thorough(ctx: XdpContext) -> u32 {
    match thorough::parse(&ctx) {
        Ok(packet) => serve(&ctx, &packet),
        Err(refused) => hand_over(&ctx, refused),
    }
}

/// A packet whose headers are known: to a service, from a backend, or neither.
#[inline(always)]
fn serve(ctx: &XdpContext, packet: &Parsed) -> u32 {
    if let Some(entry) = lookup(packet, kind::SERVICE) {
        return to_backend(ctx, packet, entry.service);
    }
    if let Some(entry) = lookup(packet, kind::REPLY) {
        return to_client(ctx, packet, entry);
    }
    hand_over(ctx, ranges::perhaps(packet.protocol()))
}

/// To the program for such packets; to the kernel where there is none.
#[inline(always)]
fn hand_over(ctx: &XdpContext, refused: Refused) -> u32 {
    if refused.program < jump::PLACES {
        // SAFETY: the context is the kernel's own. Returns only when the place is empty.
        unsafe { maps::JUMPS.tail_call(ctx, refused.program) };
    }
    pass(ctx, 0, refused.outcome)
}

/// What the address index says of a key.
#[inline(always)]
fn find(address: &Addr, selector: u64) -> Option<&'static IndexEntry> {
    maps::find(maps::control(), address, selector)
}

/// What the address index says of the packet's destination (as a service) or source (as a backend that replies).
#[inline(always)]
fn lookup(packet: &Parsed, kind: u8) -> Option<&'static IndexEntry> {
    lookup_in(maps::control(), packet, kind)
}

/// The same, with the control record at hand.
#[inline(always)]
fn lookup_in(control: &ControlRecord, packet: &Parsed, kind: u8) -> Option<&'static IndexEntry> {
    let (address, port) = if kind == kind::SERVICE {
        (&packet.destination, packet.destination_port)
    } else {
        (&packet.source, packet.source_port)
    };
    let selector = index::selector(port, packet.protocol(), kind);
    maps::find(control, address, selector)
}

/// From a client to a service.
#[inline(always)]
fn to_backend(ctx: &XdpContext, packet: &Parsed, id: u32) -> u32 {
    let Some(service) = maps::service(id) else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    if service.table as u32 == 0 {
        return pass(ctx, id, Outcome::PassInternal);
    }
    if protect::denies(&packet.source) {
        return drop(ctx, id, Outcome::DropClient);
    }
    // A first fragment, which QUIC does not make, goes as a datagram, and the later ones follow it.
    if service.flags & service_flags::QUIC != 0 && !packet.is_first {
        return hand_over(ctx, quic::REFUSED);
    }
    let decision = steer::steer(&Kernel::<true>, id, service, &packet.from_client());
    send(ctx, packet, id, service, &decision)
}

/// To the backend that was decided on, or not.
#[inline(always)]
fn send(
    ctx: &XdpContext,
    packet: &Parsed,
    id: u32,
    service: &ServiceRecord,
    decision: &Decision,
) -> u32 {
    if !decision.outcome.is_forward() {
        return refuse(ctx, id, decision);
    }
    let Some(backend) = maps::backend(decision.backend) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    if backend.cuts(decision.hash) && !tells_of_reset(packet, backend) {
        return cut(ctx, packet, id, decision.backend, backend);
    }
    if backend.flags & backend_flags::NEXT_HOP == 0 {
        return drop(ctx, id, Outcome::DropNoNextHop);
    }
    if service.mode == mode::FULL_NAT {
        let handed = Handed {
            hash: decision.hash,
            service: id,
            backend: decision.backend,
            outcome: decision.outcome as u32,
            back: 0,
        };
        return full_nat::hand_over(ctx, packet, handed);
    }
    if decision.outcome.asks() && !packet.is_first {
        return ask::hand_over(ctx, id, decision);
    }
    fragment::remember(packet, id, decision.backend, 0);
    if mode::is_tunnel(service.mode) {
        let passage = Passage::of(id, packet, decision);
        return to_tunnel(ctx, &packet.into(), service, backend, &passage);
    }
    count::packet_to(decision.backend, packet.length);
    if service.mode == mode::NAT && !forward::rewrite_destination(packet, backend) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    let sent = forward::out(ctx, &packet.link, &Exit::to(backend));
    end(ctx, id, sent, decision.outcome, decision.backend)
}

/// What is to be counted of a packet that goes through a tunnel.
struct Passage {
    service: u32,
    backend: u32,
    /// Hash of its flow.
    hash: u64,
    outcome: Outcome,
    /// Length of the frame.
    length: u32,
}

impl Passage {
    /// Of a packet to this service.
    #[inline(always)]
    fn of(service: u32, packet: &Parsed, decision: &Decision) -> Self {
        Self {
            service,
            backend: decision.backend,
            hash: decision.hash,
            outcome: decision.outcome,
            length: packet.length,
        }
    }
}

/// From a client to a service whose backends decapsulate.
#[inline(always)]
fn to_tunnel(
    ctx: &XdpContext,
    packet: &Carried,
    service: &ServiceRecord,
    backend: &BackendRecord,
    passage: &Passage,
) -> u32 {
    let id = passage.service;
    match tunnel::encapsulate(ctx, packet, service, backend, passage.hash) {
        Ok(()) => {
            count::packet_to(passage.backend, passage.length);
            let sent = forward::out_of_tunnel(ctx, backend);
            end(ctx, id, sent, passage.outcome, passage.backend)
        }
        Err(Outcome::DropTooBig) => {
            // Nobody is told of an ICMP error or a later fragment that does not fit (RFC 1122 section 3.2.2).
            if packet.parsed.is_some() {
                let room = backend.room;
                too_big::hand_over(ctx, &packet.link, passage.length, id, room);
            }
            drop(ctx, id, Outcome::DropTooBig)
        }
        Err(outcome) => drop(ctx, id, outcome),
    }
}

/// From a backend to a client. Where the kernel would not forward it (it is for the node itself, such as the
/// answer to a health check), it is not ours.
#[inline(always)]
fn to_client(ctx: &XdpContext, packet: &Parsed, entry: &IndexEntry) -> u32 {
    answer::<false>(ctx, packet, (entry.service, entry.backend))
}

/// The same: `from` are the ids of service and backend. `JUDGES`: whatever is to be learned of where the flow is, is learned
/// here; else by the program `judge`.
#[inline(always)]
fn answer<const JUDGES: bool>(ctx: &XdpContext, packet: &Parsed, from: (u32, u32)) -> u32 {
    let (id, backend_id) = from;
    let (Some(service), Some(backend)) = (maps::service(id), maps::backend(backend_id)) else {
        return pass(ctx, 0, Outcome::PassInternal);
    };
    if service.mode == mode::FULL_NAT {
        return full_nat::hand_reply_over(ctx, packet, id);
    }
    let route = forward::route(
        ctx,
        packet.protocol(),
        packet.network,
        &packet.destination,
        service,
    );
    if route.by == By::Nobody {
        return pass(ctx, id, Outcome::PassReplyLocal);
    }
    let port = forward::service_port(packet.source_port, service);
    match judge::note::<JUDGES>(service, &packet.to_client(port), from) {
        Reply::GoesOn => {}
        Reply::Withheld => return drop(ctx, id, Outcome::DropSecondChance),
        // A fragment answers no question: the segments after it do.
        Reply::Question if packet.is_first => {}
        Reply::Question => return judge::hand_over(ctx, from),
    }
    fragment::remember(packet, id, backend_id, TO_CLIENT);
    count::reply_from(backend_id, packet.length);
    if !forward::rewrite_source(packet, service, backend, route.by == By::Xdp) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    if route.by == By::Kernel {
        return pass(ctx, id, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &packet.link, &route.exit);
    end(ctx, id, sent, Outcome::ForwardReply, backend_id)
}

/// Whether a packet of a flow that is cut goes on: a client's reset tells the backend what became of the flow.
#[inline(always)]
fn tells_of_reset(packet: &Parsed, backend: &BackendRecord) -> bool {
    packet.flags & tcp::RST != 0 && backend.flags & backend_flags::CUT_RESET != 0
}

/// The backend's drain is past its deadline, or it has died.
#[inline(always)]
fn cut(ctx: &XdpContext, packet: &Parsed, service: u32, id: u32, backend: &BackendRecord) -> u32 {
    if backend.flags & backend_flags::CUT_RESET == 0 {
        return drop(ctx, service, Outcome::DropDeadline);
    }
    if !reset::answer(ctx, packet) {
        return drop(ctx, service, Outcome::DropNoReset);
    }
    let outcome = if backend.flags & backend_flags::DEAD == 0 {
        alert::cut(packet, service, id);
        Outcome::ResetDeadline
    } else {
        Outcome::ResetDead
    };
    finish(ctx, service, outcome, 0, xdp_action::XDP_TX)
}

#[inline(always)]
fn refuse(ctx: &XdpContext, service: u32, decision: &Decision) -> u32 {
    match decision.outcome {
        Outcome::PassInternal => pass(ctx, service, decision.outcome),
        outcome => drop(ctx, service, outcome),
    }
}

#[inline(always)]
fn pass(ctx: &XdpContext, service: u32, outcome: Outcome) -> u32 {
    finish(ctx, service, outcome, 0, xdp_action::XDP_PASS)
}

#[inline(always)]
fn drop(ctx: &XdpContext, service: u32, outcome: Outcome) -> u32 {
    finish(ctx, service, outcome, 0, xdp_action::XDP_DROP)
}

/// A packet that has been sent, or could not be.
#[inline(always)]
fn end(
    ctx: &XdpContext,
    service: u32,
    sent: Result<u32, Outcome>,
    outcome: Outcome,
    backend: u32,
) -> u32 {
    match sent {
        Ok(verdict) => finish(ctx, service, outcome, backend, verdict),
        Err(outcome) => drop(ctx, service, outcome),
    }
}

/// Every packet ends here, once, with this verdict.
#[inline(always)]
fn finish(ctx: &XdpContext, service: u32, outcome: Outcome, backend: u32, verdict: u32) -> u32 {
    count::outcome(service, outcome);
    trace::decided(ctx, service, outcome, backend, verdict)
}

/// A service's record, for the other programs of this object.
#[inline(always)]
fn service_of(packet: &Parsed) -> Option<(u32, &'static ServiceRecord)> {
    let entry = match lookup(packet, kind::SERVICE) {
        Some(entry) => entry,
        None => ranges::lookup(packet, kind::RANGE)?,
    };
    Some((entry.service, maps::service(entry.service)?))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing in here panics; the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Tracing. The object is loaded a second time with `TRACE` set, and put on the interfaces while somebody looks:
//!
//! ```text
//! traced --wanted?--> the tracing instance's own `ebb`, ... --finish--> report --> ring, and the packet's verdict
//!        \--not-----> the plain `ebb`
//! ```
//!
//! In the plain instance `TRACE` is 0, and the verifier removes what follows from it: the packets of a node that nobody
//! looks at pay nothing.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_output, bpf_xdp_load_bytes},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::info;
use lb_common::{
    abi::jump,
    outcome::Outcome,
    trace::{FRAME_MAX, TraceEvent, TraceFilter, known, look},
};

use crate::{
    maps,
    parse::{ICMP, ICMPV6, TCP, UDP, header},
    pass,
    tables::loaded,
    thorough::{self, Located, masked},
};

/// Who looks on ([`lb_common::trace::look`]), set by the loader.
#[unsafe(no_mangle)]
static TRACE: u32 = look::NOBODY;

/// A record in the making.
#[repr(C)]
pub struct Traced {
    event: TraceEvent,
    /// The frame as it came, then as it left.
    bytes: [u8; 2 * FRAME_MAX],
}

/// Whether anybody looks on.
#[inline(always)]
pub fn is_on() -> bool {
    loaded!(TRACE) != look::NOBODY
}

/// What became of the packet: to [`report`], when somebody looks on.
#[inline(always)]
pub fn decided(
    ctx: &XdpContext,
    service: u32,
    outcome: Outcome,
    backend: u32,
    verdict: u32,
) -> u32 {
    if is_on()
        && let Some(traced) = maps::TRACED.get_ptr_mut(0)
    {
        // SAFETY: a per-CPU value; the context is the kernel's own.
        unsafe {
            let event = &raw mut (*traced).event;
            (*event).service = service;
            (*event).outcome = outcome as u32;
            (*event).backend = backend;
            (*event).verdict = verdict;
            maps::JUMPS.tail_call(ctx, jump::REPORT);
        }
    }
    verdict
}

/// The packet is redirected to this interface.
#[inline(always)]
pub fn leaves_by(ifindex: u32) {
    if loaded!(TRACE) == look::TRACE
        && let Some(traced) = maps::TRACED.get_ptr_mut(0)
    {
        // SAFETY: a per-CPU value.
        unsafe { (*traced).event.exit = ifindex };
    }
}

/// In front of the balancer while a trace runs.
#[xdp]
pub fn traced(ctx: XdpContext) -> u32 {
    let place = if begin(&ctx) {
        jump::DECIDE
    } else {
        jump::PLAIN
    };
    // SAFETY: the context is the kernel's own. Returns only when the place is empty, which the loader fills.
    unsafe { maps::JUMPS.tail_call(&ctx, place) };
    pass(&ctx, 0, Outcome::PassInternal)
}

/// Begins a packet's record; whether it may be wanted.
#[inline(always)]
fn begin(ctx: &XdpContext) -> bool {
    let (Some(filter), Some(traced)) = (maps::TRACE_FILTER.get(0), maps::TRACED.get_ptr_mut(0))
    else {
        return false;
    };
    // SAFETY: a per-CPU value, of which no other reference lives.
    let event = unsafe { &mut (*traced).event };
    *event = TraceEvent {
        // SAFETY: a helper without arguments.
        came: unsafe { bpf_ktime_get_ns() },
        ifindex: ctx.ingress_ifindex() as u32,
        length: length(ctx),
        ..TraceEvent::default()
    };
    // What can not be read has no addresses, and is admitted where none are asked for.
    if let Ok(found) = thorough::locate(ctx) {
        describe(event, &found);
    }
    if !filter.admits(event) {
        return false;
    }
    // SAFETY: as above.
    event.captured_came = unsafe { capture(ctx, traced, 0, filter.snap_came) };
    true
}

#[inline(always)]
fn length(ctx: &XdpContext) -> u32 {
    (ctx.data_end() - ctx.data()) as u32
}

/// Takes down what the headers say.
#[inline(always)]
fn describe(event: &mut TraceEvent, found: &Located) {
    (event.source, event.destination) = found.ends;
    event.protocol = found.protocol;
    event.known = known::NETWORK;
    if found.part != 0 {
        event.known |= known::FRAGMENT;
    }
    // Later fragments have no transport header.
    if found.part > 1 {
        return;
    }
    let at = found.extent.network + found.extent.header;
    let Ok(start) = header::<[u16; 2]>(at, found.extent.end) else {
        return;
    };
    // SAFETY: `header` has checked it.
    let words = unsafe { start.read_unaligned() };
    match found.protocol {
        TCP | UDP => [event.source_port, event.destination_port] = words,
        ICMP | ICMPV6 => {
            let [kind, code] = words[0].to_ne_bytes();
            event.source_port = u16::from(kind).to_be();
            event.destination_port = u16::from(code).to_be();
        }
        _ => return,
    }
    event.known |= known::TRANSPORT;
    if found.protocol == TCP
        && let Ok(tcp) = header::<[u8; 14]>(at, found.extent.end)
    {
        // SAFETY: as above.
        event.flags = unsafe { (*tcp)[13] };
    }
}

/// Copies up to `snap` bytes of the frame to `offset` (at most [`FRAME_MAX`]); how many.
///
/// # Safety
/// `traced` is this CPU's.
#[inline(always)]
unsafe fn capture(ctx: &XdpContext, traced: *mut Traced, offset: usize, snap: u32) -> u32 {
    let whole = length(ctx);
    let size = if whole < snap { whole } else { snap };
    let size = size as usize;
    if size == 0 || size > FRAME_MAX {
        return 0;
    }
    // No change, but so Linux 6.1 sees that it is not 0: it learns nothing from a comparison for equality.
    let size = masked(size - 1, FRAME_MAX - 1) + 1;
    // SAFETY: both are at most FRAME_MAX, and there is room for twice that.
    let result = unsafe {
        let place = (&raw mut (*traced).bytes).cast::<u8>().add(offset);
        bpf_xdp_load_bytes(ctx.as_ptr().cast(), 0, place.cast(), size as u32)
    };
    if result == 0 { size as u32 } else { 0 }
}

/// Behind the balancer while a trace runs: shows what became of the packet, or logs it, and gives it its verdict.
#[xdp]
pub fn report(ctx: XdpContext) -> u32 {
    let (Some(filter), Some(traced)) = (maps::TRACE_FILTER.get(0), maps::TRACED.get_ptr_mut(0))
    else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: a per-CPU value, of which no other reference lives.
    let event = unsafe { &mut (*traced).event };
    let verdict = event.verdict;
    // Here and not where it was decided: the log's calls need more stack than those programs have left.
    if loaded!(TRACE) == look::LOG {
        let TraceEvent {
            service,
            outcome,
            backend,
            ..
        } = *event;
        info!(
            &ctx,
            "service {} outcome {} backend {}", service, outcome, backend
        );
        return verdict;
    }
    if filter.wants(event) {
        // SAFETY: `traced` is this CPU's.
        unsafe { show(&ctx, traced, filter) };
    }
    verdict
}

/// # Safety
/// `traced` is this CPU's.
#[inline(always)]
unsafe fn show(ctx: &XdpContext, traced: *mut Traced, filter: &TraceFilter) {
    // SAFETY: for the whole: the caller's.
    unsafe {
        let event = &raw mut (*traced).event;
        (*event).left = bpf_ktime_get_ns();
        let came = masked((*event).captured_came as usize, 2 * FRAME_MAX - 1);
        if came > FRAME_MAX {
            return;
        }
        let mut left = 0;
        if matches!(
            (*event).verdict,
            xdp_action::XDP_TX | xdp_action::XDP_REDIRECT
        ) {
            (*event).length_left = length(ctx);
            if (*event).exit == 0 {
                (*event).exit = (*event).ifindex;
            }
            left = capture(ctx, traced, came, filter.snap_left);
            (*event).captured_left = left;
        }
        let left = masked(left as usize, 2 * FRAME_MAX - 1);
        if left > FRAME_MAX {
            return;
        }
        let size = size_of::<TraceEvent>() + came + left;
        let result = bpf_ringbuf_output(
            (&raw const maps::TRACE_RING).cast_mut().cast(),
            traced.cast(),
            size as u64,
            0,
        );
        if let Some(counts) = maps::TRACE_COUNTS.get_ptr_mut(0) {
            if result == 0 {
                (*counts).shown += 1;
            } else {
                (*counts).lost += 1;
            }
        }
    }
}

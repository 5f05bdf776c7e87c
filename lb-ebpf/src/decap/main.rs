//! `ebb decap`: takes the outer headers of ebb's tunnels off, for backends whose kernel has no module for them.
//!
//! strip -> is it ours? -> is its source allowed? -> is the packet inside for this host? -> to the kernel, as if it had
//! come without a tunnel. Whatever is no tunnel packet goes to the kernel untouched.
//!
//! The packet inside is judged last and in one place (`judge`). Where the node asked whether its connection is here, and it is
//! not, the packet goes back to the node as it came, which has somebody else to send it to.

#![no_std]
#![no_main]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::tunnel::Decap;

mod inside;
mod maps;
mod outside;
#[path = "../parse.rs"]
#[expect(
    dead_code,
    reason = "ebb's parser of plain packets; of it only the checks of single headers are used here"
)]
mod parse;
#[path = "../prefix.rs"]
mod prefix;
mod sockets;

use outside::Tunnelled;

/// Decapsulates.
#[xdp]
pub fn decap(ctx: XdpContext) -> u32 {
    let (verdict, what) = match outside::parse(&ctx) {
        Err(what @ Decap::Passed) => (xdp_action::XDP_PASS, what),
        Err(what) => (xdp_action::XDP_DROP, what),
        Ok(tunnelled) => match handle(&ctx, &tunnelled) {
            Ok(Decap::SentBack) => (xdp_action::XDP_TX, Decap::SentBack),
            Ok(what) => (xdp_action::XDP_PASS, what),
            Err(what) => (xdp_action::XDP_DROP, what),
        },
    };
    if let Some(counter) = maps::DECAP_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: a per-CPU value.
        unsafe { *counter += 1 };
    }
    verdict
}

#[inline(always)]
fn handle(ctx: &XdpContext, tunnelled: &Tunnelled) -> Result<Decap, Decap> {
    if !maps::is_allowed(&tunnelled.source) {
        return Err(Decap::DropSource);
    }
    let packet = inside::parse(ctx, tunnelled)?;
    judge(ctx, &packet)?;
    if tunnelled.asks && !sockets::has(ctx, &packet) {
        outside::turn(ctx, tunnelled)?;
        return Ok(Decap::SentBack);
    }
    inside::mark(&packet, tunnelled.class)?;
    outside::strip(ctx, tunnelled, packet.is_v4)?;
    Ok(Decap::Decapsulated)
}

/// Whether the packet is for this host.
#[inline(always)]
fn judge(ctx: &XdpContext, packet: &inside::Packet) -> Result<(), Decap> {
    if inside::is_local(ctx, packet) {
        Ok(())
    } else {
        Err(Decap::DropNotLocal)
    }
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

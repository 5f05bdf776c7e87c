//! The lab's flood: frames from sources that nobody has, as many as the machine can make.
//!
//! `flood` writes each frame and redirects it to an interface (BPF_PROG_TEST_RUN with live frames); `shed` is put where
//! the balancer's packets arrive, so that it is the balancer that is under test and not the backends' kernels, and
//! `shed_later` where they come out of a tunnel.

#![no_std]
#![no_main]
// A field of a frame by one instruction: Rust has no stable name for that.
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::generated::bpf_redirect,
    macros::{classifier, map, xdp},
    maps::{Array, PerCpuArray},
    programs::{TcContext, XdpContext},
};
use lb_common::checksum::fold;

#[expect(dead_code, reason = "user space uses the rest")]
mod shared;
#[path = "../bench/word.rs"]
#[expect(dead_code, reason = "the bench uses the rest")]
mod word;

use shared::{
    BARE_HEADER, FIRST_SOURCE, Flood, LENGTH, ONE_IN, SOURCE_MASK, Shed, WINDOW, WORDS, kind, mixed,
};
use word::{load8, load16, load32, store16, store32};

/// What to send.
#[map]
static FLOOD: Array<Flood> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What arrived.
#[map]
static SHED: PerCpuArray<Shed> = PerCpuArray::with_max_entries(1, 0);

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const TCP: u8 = 6;

/// Writes the next frame and sends it.
#[xdp]
#[inline(always)]
pub fn flood(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    let Some(flood) = FLOOD.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    if start + LENGTH > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the map's only entry, one thread alone runs this program; `write` has its bytes, as just checked.
    unsafe {
        let number = (*flood).made;
        (*flood).made = number + 1;
        write(start as *mut u8, &*flood, mixed(number ^ (*flood).seed));
        bpf_redirect((*flood).ifindex, 0) as u32
    }
}

#[inline(always)]
unsafe fn write(frame: *mut u8, flood: &Flood, random: u64) {
    let source = u64::from((FIRST_SOURCE | (random as u32 & SOURCE_MASK)).to_be());
    let port = (random >> 32) & 0xffff;
    let sequence = mixed(random) & 0xffff_ffff;
    // SAFETY: the caller vouches for all of the frame.
    unsafe {
        let mut word = 0;
        while word < WORDS {
            frame
                .cast::<u64>()
                .add(word)
                .write_unaligned(flood.frame[word]);
            word += 1;
        }
        store16::<24>(frame, u64::from(!fold(flood.ip_sum + source)));
        store32::<26>(frame, source);
        store16::<34>(frame, port);
        let sum = flood.transport_sum + source + port;
        if flood.kind == kind::TCP {
            store32::<38>(frame, sequence);
            store16::<50>(frame, u64::from(!fold(sum + sequence)));
        } else {
            let check = !fold(sum);
            store16::<40>(frame, u64::from(if check == 0 { 0xffff } else { check }));
        }
    }
}

/// Counts frames of the flood and drops all but a few; passes everything else.
#[xdp]
#[inline(always)]
pub fn shed(ctx: XdpContext) -> u32 {
    match is_shed(ctx.data(), ctx.data_end()) {
        true => xdp_action::XDP_DROP,
        false => xdp_action::XDP_PASS,
    }
}

/// The same for packets on their way up, behind the XDP program that has taken them out of a tunnel.
#[classifier]
#[inline(always)]
pub fn shed_later(ctx: TcContext) -> i32 {
    match is_shed(ctx.data(), ctx.data_end()) {
        true => TC_ACT_SHOT,
        false => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn is_shed(start: usize, end: usize) -> bool {
    if !is_flood(start, end) {
        return false;
    }
    let Some(counts) = SHED.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: a per-CPU value.
    unsafe {
        (*counts).all += 1;
        let goes_on = (*counts).all % ONE_IN == 0;
        (*counts).through += u64::from(goes_on);
        !goes_on
    }
}

/// By its source or, where a balancer has put itself in its place, by a TCP header that no client here sends.
#[inline(always)]
fn is_flood(start: usize, end: usize) -> bool {
    if start + 34 > end {
        return false;
    }
    let frame = start as *const u8;
    // SAFETY: inside the frame, as just checked.
    let (ethertype, source, protocol) = unsafe {
        (
            load16::<12>(frame) as u16,
            load32::<26>(frame) as u32,
            load8::<23>(frame) as u8,
        )
    };
    if ethertype != ETHERTYPE_IPV4 {
        return false;
    }
    if u32::from_be(source) & !SOURCE_MASK == FIRST_SOURCE {
        return true;
    }
    if protocol != TCP || start + 50 > end {
        return false;
    }
    // SAFETY: inside the frame, as just checked.
    let (length, window) = unsafe { (load8::<46>(frame) as u8, load16::<48>(frame) as u16) };
    length == BARE_HEADER && u16::from_be(window) == WINDOW
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

//! The driver: writes the next flow's frame, then runs the measured program on it.
//!
//! BPF_PROG_TEST_RUN with `repeat` leaves a frame as the last run made it, and live frames are recycled in the same
//! way. So every run begins with all headers written anew, for the next of a number of flows.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::checksum::fold;

use crate::{
    maps,
    shared::{Config, V4_LENGTH, V6_LENGTH, flow_of, shape},
    word::{store16, store32, store64},
};

/// Writes the next frame and goes on in the measured program.
#[xdp]
#[inline(always)]
pub fn drive(ctx: XdpContext) -> u32 {
    if write_next(&ctx).is_some() {
        // SAFETY: nothing in here waits to be dropped.
        unsafe { maps::MEASURED.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Writes the next frame and sends it to the interface under test.
#[xdp]
#[inline(always)]
pub fn generate(ctx: XdpContext) -> u32 {
    match write_next(&ctx) {
        // SAFETY: a helper without pointers.
        Some(config) => unsafe { bpf_redirect(config.ifindex, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<&'static Config> {
    let config = maps::CONFIG.get(0)?;
    let state = maps::STATE.get_ptr_mut(0)?;
    // SAFETY: the map's only entry; one CPU alone runs the driver.
    let (number, made) = unsafe {
        let position = (*state).position;
        (*state).position = if position + 1 >= config.flows {
            0
        } else {
            position + 1
        };
        (*state).made += 1;
        (*maps::ORDER.get(position)?, (*state).made)
    };
    let sequence = config
        .sequence
        .wrapping_add(made.wrapping_mul(config.sequence_step));
    restore_length(ctx, config)?;
    let (start, end) = (ctx.data(), ctx.data_end());
    let (client, port) = flow_of(number);
    let frame = Frame {
        start: start as *mut u8,
        config,
        client: config.client.wrapping_add(client),
        port: u64::from(port.to_be()),
        sequence: u64::from(sequence.to_be()),
    };
    // SAFETY: each arm has checked the length that it writes.
    unsafe {
        match config.shape {
            shape::V4_TO_SERVICE if start + V4_LENGTH <= end => frame.v4::<false>(),
            shape::V4_TO_CLIENT if start + V4_LENGTH <= end => frame.v4::<true>(),
            shape::V6_TO_SERVICE if start + V6_LENGTH <= end => frame.v6::<false>(),
            shape::V6_TO_CLIENT if start + V6_LENGTH <= end => frame.v6::<true>(),
            _ => return None,
        }
    }
    Some(config)
}

/// Gives back or takes away what the last measured program changed the frame's length by.
#[inline(always)]
fn restore_length(ctx: &XdpContext, config: &Config) -> Option<()> {
    let length = ctx.data_end() - ctx.data();
    if length == config.length as usize {
        return Some(());
    }
    (resize(ctx, length as u32, config) == 0).then_some(())
}

/// Not inlined: the compiler would mix its sums with those of packet pointers, which the verifier refuses.
#[inline(never)]
fn resize(ctx: &XdpContext, length: u32, config: &Config) -> i64 {
    let surplus = length as i32 - config.length as i32;
    // SAFETY: the context is the kernel's own.
    unsafe {
        if config.head != 0 {
            bpf_xdp_adjust_head(ctx.as_ptr().cast(), surplus)
        } else {
            bpf_xdp_adjust_tail(ctx.as_ptr().cast(), -surplus)
        }
    }
}

/// A frame to be written.
///
/// Every field that a program reads as one word is written as one word, after the template: a load that finds its
/// bytes in two stores waits until all stores before it are done, those of the last packet among them, which no
/// packet that came from a NIC has to.
struct Frame {
    start: *mut u8,
    config: &'static Config,
    /// Host order.
    client: u64,
    /// Network order.
    port: u64,
    /// Network order.
    sequence: u64,
}

impl Frame {
    /// The template, all of a frame of `WORDS` words. A frame of a test run begins at a multiple of 8.
    #[inline(always)]
    unsafe fn template<const WORDS: usize>(&self) {
        let place = self.start.cast::<u64>();
        let mut word = 0;
        while word < WORDS {
            unsafe { place.add(word).write(self.config.frame[word]) };
            word += 1;
        }
    }

    #[inline(always)]
    unsafe fn v4<const REPLY: bool>(&self) {
        let client = u64::from((self.client as u32).to_be());
        let (source, destination) = if REPLY {
            (self.config.server, client)
        } else {
            (client, self.config.server)
        };
        let check = !fold(self.config.ip_sum + client);
        unsafe {
            self.template::<{ V4_LENGTH / 8 }>();
            store16::<24>(self.start, u64::from(check));
            store32::<26>(self.start, source);
            store32::<30>(self.start, destination);
            store32::<34>(self.start, self.ports::<REPLY>());
            store32::<38>(self.start, self.sequence);
            store16::<50>(self.start, self.tcp_check(client));
        }
    }

    #[inline(always)]
    unsafe fn v6<const REPLY: bool>(&self) {
        let low = self.client.to_be();
        let client = (self.config.client_high, low);
        let server = (self.config.server, self.config.server_low);
        let (source, destination) = if REPLY {
            (server, client)
        } else {
            (client, server)
        };
        unsafe {
            self.template::<{ V6_LENGTH / 8 }>();
            store64::<22>(self.start, source.0);
            store64::<30>(self.start, source.1);
            store64::<38>(self.start, destination.0);
            store64::<46>(self.start, destination.1);
            store32::<54>(self.start, self.ports::<REPLY>());
            store32::<58>(self.start, self.sequence);
            store16::<70>(
                self.start,
                self.tcp_check((low & 0xffff_ffff) + (low >> 32)),
            );
        }
    }

    /// Both ports as they lie in the segment.
    #[inline(always)]
    fn ports<const REPLY: bool>(&self) -> u64 {
        let server = u64::from(self.config.server_port);
        if REPLY {
            server | (self.port << 16)
        } else {
            self.port | (server << 16)
        }
    }

    #[inline(always)]
    fn tcp_check(&self, address_sum: u64) -> u64 {
        let sum = self.config.tcp_sum + address_sum + self.port + self.sequence;
        u64::from(!fold(sum))
    }
}

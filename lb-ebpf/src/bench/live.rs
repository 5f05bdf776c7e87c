//! The far end of the live test.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::maps;

/// First two bytes of a backend's MAC address in the bench.
const BACKEND: [u8; 2] = [0x02, 0xbe];

/// Counts a frame and drops it.
#[xdp]
#[inline(always)]
pub fn arrive(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 14 > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: inside the frame, as just checked; a per-CPU value.
    unsafe {
        let to_backend = (start as *const [u8; 2]).read_unaligned() == BACKEND;
        if let Some(counts) = maps::ARRIVED.get_ptr_mut(0) {
            (*counts)[0] += 1;
            (*counts)[1] += u64::from(to_backend);
        }
    }
    xdp_action::XDP_DROP
}

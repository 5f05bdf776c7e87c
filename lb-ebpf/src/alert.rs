//! News for the daemon that can not wait until it looks.

use aya_ebpf::helpers::generated::bpf_jiffies64;

use crate::maps;

/// A backend has refused an opening. At most one such message a tick and CPU: of many refusals one is enough.
#[inline(always)]
pub fn refused(backend: u32) {
    let Some(last) = maps::ALERTED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() as u32 };
    // SAFETY: a per-CPU value.
    unsafe {
        if *last == now {
            return;
        }
        *last = now;
    }
    // Without room there are enough of them already.
    if let Some(mut place) = maps::ALERTS.reserve::<u32>(0) {
        place.write(backend);
        place.submit(0);
    }
}

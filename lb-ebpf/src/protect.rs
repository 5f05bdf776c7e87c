//! Clients that may not come, and flows that may not begin.

use core::arch::asm;

use lb_common::{
    Addr,
    abi::{ControlRecord, ServiceRecord},
    protect::{Bucket, action},
};

use crate::{maps, prefix};

/// Whether the longest prefix that the client is in denies it. Costs one load where there are no prefixes.
#[inline(always)]
pub fn denies(client: &Addr) -> bool {
    denies_in(maps::control(), client)
}

/// The same, with the control record at hand.
#[inline(always)]
pub fn denies_in(control: &ControlRecord, client: &Addr) -> bool {
    if control.clients == 0 {
        return false;
    }
    let trie = match control.clients {
        1 => &maps::CLIENTS_1,
        _ => &maps::CLIENTS_2,
    };
    let mut words = prefix::Place::uninit();
    let Some(rule) = trie.get(prefix::key(&mut words, client)) else {
        return false;
    };
    // SAFETY: the kernel keeps the value aligned and alive.
    unsafe { add_one((&raw const rule.packets).cast_mut()) };
    rule.action == action::DENY
}

/// Adds one to a word that other CPUs add to as well.
#[inline(always)]
unsafe fn add_one(word: *mut u64) {
    // SAFETY: the caller vouches for `word`.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {one}",
            word = in(reg) word,
            one = in(reg) 1u64,
        );
    }
}

/// Takes a flow out of this CPU's allowance and out of the service's.
#[inline(always)]
pub fn may_begin(id: u32, service: &ServiceRecord, now: u32) -> bool {
    let control = maps::control();
    let hz = control.ticks_per_second;
    takes(id, service.flows_per_second, hz, now) && takes(0, control.flows_per_second, hz, now)
}

#[inline(always)]
fn takes(id: u32, rate: u32, hz: u32, now: u32) -> bool {
    if rate == 0 {
        return true;
    }
    let Some(bucket) = maps::FLOW_LIMITS.get_ptr_mut(id) else {
        return true;
    };
    // SAFETY: a per-CPU value, and XDP programs of one CPU do not interrupt each other.
    let bucket: &mut Bucket = unsafe { &mut *bucket };
    bucket.take(rate, hz, now)
}

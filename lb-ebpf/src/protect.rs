//! Clients that may not come, and flows that may not begin.

use core::arch::asm;

use aya_ebpf::maps::lpm_trie::Key;
use lb_common::{
    Addr,
    abi::ServiceRecord,
    protect::{Bucket, action},
};

use crate::maps;

/// Whether the longest prefix that the client is in denies it. Costs one load where there are no prefixes.
#[inline(always)]
pub fn denies(client: &Addr) -> bool {
    let Some(control) = maps::CONTROL.get(0) else {
        return false;
    };
    let trie = match control.clients {
        1 => &maps::CLIENTS_1,
        2 => &maps::CLIENTS_2,
        _ => return false,
    };
    let mut words = core::mem::MaybeUninit::<[u32; 5]>::uninit();
    let Some(rule) = trie.get(key(&mut words, client)) else {
        return false;
    };
    // SAFETY: the kernel keeps the value aligned and alive.
    unsafe { add_one((&raw const rule.packets).cast_mut()) };
    rule.action == action::DENY
}

/// The key of a whole address, built in `place`.
// Volatile: else two halves are stored as one unaligned word, which the verifier refuses on the stack.
#[inline(always)]
fn key<'a>(place: &'a mut core::mem::MaybeUninit<[u32; 5]>, address: &Addr) -> &'a Key<[u8; 16]> {
    let words = place.as_mut_ptr().cast::<u32>();
    let parts = [
        128,
        address.high as u32,
        (address.high >> 32) as u32,
        address.low as u32,
        (address.low >> 32) as u32,
    ];
    // SAFETY: five words, all written; a key is packed and has as many bytes.
    unsafe {
        words.write_volatile(parts[0]);
        words.add(1).write_volatile(parts[1]);
        words.add(2).write_volatile(parts[2]);
        words.add(3).write_volatile(parts[3]);
        words.add(4).write_volatile(parts[4]);
        &*words.cast::<Key<[u8; 16]>>()
    }
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
    let Some(control) = maps::CONTROL.get(0) else {
        return true;
    };
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

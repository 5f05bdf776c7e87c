//! Counters, all per CPU.

use lb_common::{
    abi::BackendStats,
    limits::{GAVE_WAY, OUTCOMES_MAX},
    outcome::Outcome,
    steer::Count,
};

use crate::{alert, maps};

/// Counts a packet's outcome; service 0 for what belongs to none.
#[inline(always)]
pub fn outcome(service: u32, outcome: Outcome) {
    of_service(service, outcome as u32);
}

/// Counts an entry of a service's flow that gave way to another's while its own lived.
#[inline(always)]
pub fn gave_way(service: u32) {
    of_service(service, GAVE_WAY);
}

#[inline(always)]
fn of_service(service: u32, place: u32) {
    let index = service.wrapping_mul(OUTCOMES_MAX).wrapping_add(place);
    if let Some(counter) = maps::OUTCOMES.get_ptr_mut(index) {
        // SAFETY: a per-CPU value.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn stats(backend: u32) -> Option<&'static mut BackendStats> {
    // SAFETY: a per-CPU value; no two references live at once.
    maps::BACKEND_STATS
        .get_ptr_mut(backend)
        .map(|stats| unsafe { &mut *stats })
}

/// Counts a packet sent to a backend.
#[inline(always)]
pub fn packet_to(backend: u32, length: u32) {
    if let Some(stats) = stats(backend) {
        stats.packets += 1;
        stats.bytes += u64::from(length);
    }
}

/// Counts a backend's answer.
#[inline(always)]
pub fn reply_from(backend: u32, length: u32) {
    if let Some(stats) = stats(backend) {
        stats.reply_packets += 1;
        stats.reply_bytes += u64::from(length);
    }
}

/// Counts an event in a backend's flows.
#[inline(always)]
pub fn event(backend: u32, what: Count) {
    if let Some(stats) = stats(backend) {
        match what {
            Count::Opened => stats.opened += 1,
            Count::Closed => stats.closed += 1,
            Count::Adopted => stats.adopted += 1,
            Count::Retransmit => stats.retransmits += 1,
            Count::Refused => alert::refused(backend),
        }
    }
}

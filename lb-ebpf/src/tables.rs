//! What the steering rule needs of its surroundings, from BPF maps.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_common::{
    abi::{Allowance, ServiceRecord, Slot, Standing},
    entry::{EntryTable, FlowEntry, FlowKey},
    former::Formers,
    fragment,
    full_nat::{PortEntry, PortTable},
    identification::{Lane, Lanes},
    limits::ANSWERS_PER_TICK,
    recent,
    steer::{Count, Env},
};

use crate::{count, maps, protect};

/// Entries of the flow table minus one; the loader sets it with the map's size.
#[unsafe(no_mangle)]
static FLOW_MASK: u32 = (1 << 18) - 1;

/// Entries of the handshake table minus one.
#[unsafe(no_mangle)]
static HANDSHAKE_MASK: u32 = (1 << 16) - 1;

/// Places of the table of ports minus one.
#[unsafe(no_mangle)]
static PORTS_MASK: u32 = (1 << 16) - 1;

/// Reads a value that the loader may have replaced.
macro_rules! loaded {
    ($name:ident) => {
        // SAFETY: a read of a static; volatile, because the loader changes it behind the compiler's back.
        unsafe { core::ptr::read_volatile(&raw const $name) }
    };
}
pub(crate) use loaded;

/// The flow table.
pub struct Flows;

/// The handshake table.
pub struct Handshakes;

/// The table of first fragments.
pub struct Fragments;

/// The maps. `WRITES` is false where nothing may be left behind.
pub struct Kernel<const WRITES: bool>;

#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: the caller vouches for `word`; the instruction compares r0 with memory and loads r0 from it.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inlateout("r0") old => found,
        );
    }
    found
}

impl EntryTable for Flows {
    #[inline(always)]
    fn mask(&self) -> u32 {
        loaded!(FLOW_MASK)
    }

    #[inline(always)]
    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        maps::FLOWS.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe { compare_exchange(word, old, new) }
    }

    #[inline(always)]
    fn gave_way(&self, ports: u64) {
        count::gave_way(FlowKey::service(ports));
    }
}

impl EntryTable for Fragments {
    #[inline(always)]
    fn mask(&self) -> u32 {
        fragment::REMEMBERED - 1
    }

    #[inline(always)]
    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        maps::FRAGMENTS.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe { compare_exchange(word, old, new) }
    }
}

impl EntryTable for Handshakes {
    #[inline(always)]
    fn mask(&self) -> u32 {
        loaded!(HANDSHAKE_MASK)
    }

    #[inline(always)]
    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        maps::HANDSHAKES.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe { compare_exchange(word, old, new) }
    }
}

/// The table of ports.
pub struct Ports;

impl PortTable for Ports {
    #[inline(always)]
    fn mask(&self) -> u32 {
        loaded!(PORTS_MASK)
    }

    #[inline(always)]
    fn entry(&self, index: u32) -> Option<NonNull<PortEntry>> {
        maps::PORTS.get_ptr_mut(index).and_then(NonNull::new)
    }

    #[inline(always)]
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe { compare_exchange(word, old, new) }
    }
}

/// Where identifications come from.
pub struct Identifications;

impl Lanes for Identifications {
    #[inline(always)]
    fn lane(&self, index: u32) -> Option<NonNull<Lane>> {
        maps::IDENTIFICATIONS
            .get_ptr_mut(index)
            .and_then(NonNull::new)
    }

    #[inline(always)]
    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe { compare_exchange(word, old, new) }
    }
}

/// Ticks of the kernel's clock in a second.
#[inline(always)]
pub fn ticks_per_second() -> u32 {
    maps::control().ticks_per_second
}

impl<const WRITES: bool> Env for Kernel<WRITES> {
    type Flows = Flows;
    type Handshakes = Handshakes;
    const WRITES: bool = WRITES;

    #[inline(always)]
    fn flows(&self) -> &Flows {
        &Flows
    }

    #[inline(always)]
    fn handshakes(&self) -> &Handshakes {
        &Handshakes
    }

    #[inline(always)]
    fn recent(&self, group: u32) -> Option<NonNull<recent::Group>> {
        maps::recent(group)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        maps::slot(index)
    }

    #[inline(always)]
    fn formers(&self, index: u32) -> Formers {
        // SAFETY: the daemon replaces rows whole, and removes one once no packet sees its slot.
        unsafe { maps::FORMERS.get(&index) }
            .copied()
            .unwrap_or(Formers::NONE)
    }

    #[inline(always)]
    fn standing(&self, backend: u32) -> Standing {
        maps::backend(backend).map_or(Standing::default(), |record| record.standing())
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // Inlined by the verifier: one load, where a clock read would cost as much as the rest of the packet.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn may_adopt(&self, now: u32) -> bool {
        let Some(allowance) = allowance(now) else {
            return false;
        };
        if allowance.adoptions >= maps::control().adoptions_per_tick {
            return false;
        }
        allowance.adoptions += 1;
        true
    }

    #[inline(always)]
    fn may_open(&self, now: u32) -> bool {
        let Some(allowance) = allowance(now) else {
            return false;
        };
        if allowance.openings >= maps::control().openings_per_tick {
            return false;
        }
        allowance.openings += 1;
        true
    }

    #[inline(always)]
    fn may_begin(&self, id: u32, service: &ServiceRecord) -> bool {
        protect::may_begin(id, service, self.now())
    }

    #[inline(always)]
    fn count(&self, backend: u32, what: Count) {
        if WRITES {
            count::event(backend, what);
        }
    }
}

/// Takes one error message out of this CPU's allowance.
#[inline(always)]
pub fn may_answer() -> bool {
    // SAFETY: a helper without arguments.
    let Some(allowance) = allowance(unsafe { bpf_jiffies64() as u32 }) else {
        return false;
    };
    if allowance.answers >= ANSWERS_PER_TICK {
        return false;
    }
    allowance.answers += 1;
    true
}

/// This CPU's allowance in the tick `now`.
#[inline(always)]
fn allowance(now: u32) -> Option<&'static mut Allowance> {
    // SAFETY: a per-CPU value, and XDP programs of one CPU do not interrupt each other.
    let allowance = unsafe { &mut *maps::ALLOWANCE.get_ptr_mut(0)? };
    if allowance.tick != now {
        *allowance = Allowance {
            tick: now,
            ..Allowance::default()
        };
    }
    Some(allowance)
}

//! News for the daemon that can not wait until it looks.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_common::alert::{Alert, CUTS_PER_TICK, Said, kind};

use crate::{maps, parse::Parsed};

#[inline(always)]
fn said() -> Option<(&'static mut Said, u32)> {
    // SAFETY: a per-CPU value, and XDP programs of one CPU do not interrupt each other; a helper without arguments.
    unsafe { Some((&mut *maps::SAID.get_ptr_mut(0)?, bpf_jiffies64() as u32)) }
}

#[inline(always)]
fn tell(alert: Alert) {
    // Without room there are enough of them already.
    if let Some(mut place) = maps::ALERTS.reserve::<Alert>(0) {
        place.write(alert);
        place.submit(0);
    }
}

/// A backend has refused an opening. Told once a tick and CPU: of many refusals one is enough.
#[inline(always)]
pub fn refused(backend: u32) {
    let Some((said, now)) = said() else { return };
    if said.refused == now {
        return;
    }
    said.refused = now;
    tell(Alert {
        kind: kind::REFUSED,
        backend,
        ..Alert::default()
    });
}

/// A client's packet was answered with a reset at a deadline. As the backend has not got the packet, its sequence
/// number is the one that a reset to the backend has to have.
#[inline(always)]
pub fn cut(packet: &Parsed, service: u32, backend: u32) {
    let Some((said, now)) = said() else { return };
    if said.tick != now {
        (said.tick, said.cuts) = (now, 0);
    }
    if said.cuts >= CUTS_PER_TICK {
        return;
    }
    said.cuts += 1;
    tell(Alert {
        kind: kind::CUT,
        backend,
        client: packet.source,
        client_port: packet.source_port,
        service_port: packet.destination_port,
        service,
        sequence: packet.sequence,
        reserved: 0,
    });
}

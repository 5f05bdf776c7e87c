//! Rules for QUIC services, whose packets name a backend. Read from the bytes, without a look at the program's reader.

use lb_common::outcome::Outcome;

use super::{Broken, Run, rule};
use crate::fuzz::{
    view::{Fragment, View},
    world::{ROTATION, Role, SERVER_ID_BYTES, Service},
};

/// Bytes that a datagram must have to be looked at.
const LOOKED_AT: usize = 16;

/// The data of a whole datagram to a QUIC service, if it has enough.
fn data<'a>(service: &Service, view: &View, frame: &'a [u8]) -> Option<&'a [u8]> {
    if !service.is_quic() || view.fragment != Fragment::Whole {
        return None;
    }
    let length = u16::from_be_bytes([frame[view.transport + 4], frame[view.transport + 5]]);
    let datagram = frame.get(view.transport..view.transport + usize::from(length))?;
    Some(&datagram[8..]).filter(|data| data.len() >= LOOKED_AT)
}

/// Whether these data are an Initial or a 0-RTT packet with an id that a client may have chosen: 8 bytes at least.
fn opens(data: &[u8]) -> bool {
    let first = match data[1..5] {
        // RFC 9369 section 3.2.
        [0x6b, 0x33, 0x43, 0xcf] => 1,
        _ => 0,
    };
    let kind = data[0] / 16 % 4;
    data[0] >= 0x80 && data[5] >= 8 && (kind == first || kind == first + 1)
}

/// The backend that a packet's connection id names, other than in an opening, if it has not ended.
pub fn named(service: &Service, view: &View, frame: &[u8]) -> Option<u32> {
    let data = data(service, view, frame).filter(|data| !opens(data))?;
    let id = if data[0] < 0x80 {
        &data[1..]
    } else {
        // An id that is shorter than that names nobody.
        Some(&data[6..]).filter(|_| usize::from(data[5]) > SERVER_ID_BYTES)?
    };
    let server = u16::from_be_bytes([id[1], id[2]]);
    let mut backends = service.backends.iter();
    let backend = backends.find(|backend| backend.server_id() == server)?;
    (id[0] >> 5 == ROTATION && backend.role != Role::Ended).then_some(backend.id)
}

/// A forwarded packet is counted as what it is.
pub fn judged(service: &Service, view: &View, run: &Run<'_>) -> Result<(), Broken> {
    let (by_id, unknown) = (
        run.outcome == Outcome::ForwardServerId,
        run.outcome == Outcome::ForwardServerUnknown,
    );
    if !service.is_quic() || view.fragment != Fragment::Whole {
        rule!(!by_id && !unknown, "{:?} is for QUIC", run.outcome);
        return Ok(());
    }
    let name = named(service, view, run.input);
    rule!(
        by_id == name.is_some(),
        "a packet that names {name:?} became {:?}",
        run.outcome
    );
    let is_opening = data(service, view, run.input).is_some_and(opens);
    rule!(
        unknown == (name.is_none() && !is_opening),
        "a packet that names nobody became {:?}",
        run.outcome
    );
    Ok(())
}

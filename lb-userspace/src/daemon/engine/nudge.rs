//! Idle flows that are cut, at a deadline or because their backend has died: without a packet from the client there is
//! nothing that could be answered with a reset. So the client is asked for one.
//!
//! A segment outside the window, or that acknowledges what was never sent, is answered with an ACK that carries the right
//! numbers (RFC 9293 section 3.10.7.4, RFC 5961 section 5). So an ACK with any numbers at all, in the service's name, has the client
//! send one, which the data plane then answers with a reset at the right place; the client never acts on the ACK itself. Who knows no such connection
//! answers with a reset, which closes the flow's entry. No sequence numbers need to be kept for that.
//!
//! The client of a flow whose backend is not known, because the tables were lost, is asked as well: his own tries come further and
//! further apart, and each finds out about one backend only (see `lb_common::steer`'s second chance).
//!
//! Flows without an entry in the flow table are not known, and are reset at their next packet.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    Addr,
    abi::{backend_flags, cut_position},
    entry::{FlowEntry, FlowKey, Meta, state},
    steer::tcp,
};

use super::Engine;
use crate::{
    datapath::{self, Table, Verdict, segment::Segment},
    model::spec::Protocol,
};

/// Shortest time between two looks for idle flows, milliseconds.
const NUDGE_MS: u64 = 250;

/// After this time whoever has not answered is asked once more, milliseconds: the first may be lost.
const AGAIN_MS: u64 = 1_000;

/// Any number: whoever has it in his window finds fault with the acknowledgement.
const ANY: u32 = 0x6562_6221;

/// What has been asked for.
#[derive(Debug, Default)]
pub struct Nudges {
    /// How far the flows of backends that are cut have been asked, as in
    /// [`lb_common::abi::BackendRecord::cut`], and since when all have.
    asked: BTreeMap<u32, Asked>,
    segments: Vec<Segment>,
    next_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    position: u32,
    all_ms: Option<u64>,
    is_over: bool,
}

impl Asked {
    /// The positions to ask now, from and up to, when flows are cut up to `cut`.
    fn next(&mut self, cut: u32, now_ms: u64) -> Option<(u32, u32)> {
        if let Some(all_ms) = self.all_ms {
            let is_due = !self.is_over && now_ms >= all_ms.saturating_add(AGAIN_MS);
            self.is_over |= is_due;
            return is_due.then_some((0, u32::MAX));
        }
        if cut == u32::MAX {
            self.all_ms = Some(now_ms);
        }
        let from = std::mem::replace(&mut self.position, cut);
        (cut > from).then_some((from, cut))
    }
}

impl Engine {
    /// Segments to be sent from the node.
    pub fn take_segments(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.nudges.segments)
    }

    /// Asks the clients of flows that have come to be cut for a packet.
    pub(super) fn nudge(&mut self, now_ms: u64) -> datapath::Result<()> {
        if now_ms < self.nudges.next_ms {
            return Ok(());
        }
        let mut before = std::mem::take(&mut self.nudges.asked);
        let mut wanted = BTreeMap::new();
        for (id, record) in &self.installed.backends {
            if record.flags & backend_flags::CUT_RESET == 0 {
                continue;
            }
            let mut asked = before.remove(id).unwrap_or_default();
            wanted.extend(asked.next(record.cut, now_ms).map(|range| (*id, range)));
            self.nudges.asked.insert(*id, asked);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        self.nudges.next_ms = now_ms + NUDGE_MS;
        let mut found = Vec::new();
        self.datapath.scan(Table::Flows, &mut |entry| {
            if is_wanted(entry, &wanted) {
                found.push((entry.client, entry.ports));
            }
            Verdict::Keep
        })?;
        tracing::debug!(
            flows = found.len(),
            "clients of flows that are cut are asked for a packet"
        );
        self.ask_clients(found);
        Ok(())
    }

    /// Has the clients of these flows be asked for a packet.
    pub(super) fn ask_clients(&mut self, flows: Vec<(Addr, u64)>) {
        let segments = flows.into_iter().filter_map(|(client, ports)| {
            let (_, service) = self.state.service_by_id(FlowKey::service(ports))?;
            let listen = &service.spec.listen;
            let port = u16::from_be(FlowKey::service_port(ports));
            (listen.protocol == Protocol::Tcp).then(|| Segment {
                from: SocketAddr::new(listen.address, port),
                to: SocketAddr::new(client.into(), u16::from_be(FlowKey::client_port(ports))),
                flags: tcp::ACK,
                sequence: ANY,
                acknowledged: ANY,
            })
        });
        self.nudges.segments.extend(segments);
    }

    /// Resets a flow at its backend: with a reset from its client that goes the way of all its packets.
    pub fn reset_backend_of(&self, service: u32, client: SocketAddr, port: u16, sequence: u32) {
        let Some((_, service)) = self.state.service_by_id(service) else {
            return;
        };
        let segment = Segment {
            from: client,
            to: SocketAddr::new(service.spec.listen.address, port),
            flags: tcp::RST,
            sequence,
            acknowledged: 0,
        };
        let Some(frame) = segment.frame() else { return };
        if let Err(error) = self.datapath.inject(&frame) {
            tracing::debug!("a backend could not be told of a reset: {error}");
        }
    }
}

fn is_wanted(entry: &FlowEntry, wanted: &BTreeMap<u32, (u32, u32)>) -> bool {
    let meta = Meta(entry.meta);
    let Some((from, to)) = wanted.get(&meta.backend()) else {
        return false;
    };
    if meta.has(state::CLOSING) {
        return false;
    }
    // The tag has the hash's lowest bit set, whatever that was.
    let position = cut_position(entry.tag).max(cut_position(entry.tag & !1));
    *to == u32::MAX || (*from..*to).contains(&position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_asked_when_he_is_cut_and_once_more_at_the_end() {
        let mut asked = Asked::default();
        #[rustfmt::skip]
        let rows = [
            (0, 0, None),
            (100, 250, Some((0, 100))),
            (100, 500, None),
            (900, 750, Some((100, 900))),
            (u32::MAX, 1_000, Some((900, u32::MAX))),
            (u32::MAX, 1_999, None),
            (u32::MAX, 2_000, Some((0, u32::MAX))),
            (u32::MAX, 9_000, None),
        ];
        for (cut, now_ms, expected) in rows {
            assert_eq!(asked.next(cut, now_ms), expected, "{cut} at {now_ms}");
        }
    }
}

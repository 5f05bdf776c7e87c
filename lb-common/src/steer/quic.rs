//! Steering QUIC: by the server that a connection id names, before anything else.
//!
//! | packet | known? | goes to |
//! |---|---|---|
//! | Initial, 0-RTT | flow entry that an opening with this connection id made | the entry's backend |
//! | Initial, 0-RTT | flow entry, and the connection id names its backend | the entry's backend |
//! | Initial, 0-RTT | anything else | `current`: a new connection, which may come from an old one's port |
//! | Handshake, short header | its connection id names a backend | that backend, from whatever address |
//! | any other | flow entry | the entry's backend |
//! | any other | no | `current` |
//!
//! Entries do not route what names its server. They say which backends still have flows, and so may give way to those
//! that flows depend on.

use super::{
    Count, Decision, Env, Flow, FlowKey, Meta, NonNull, Outcome, Packet, ServiceRecord, Slot,
};
use super::{entry, flow_hash, state};

/// A QUIC packet, as far as steering needs it.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Whether it opens a connection, as far as one can see.
    pub opens: bool,
    /// Then: digest of its connection id.
    pub digest: u32,
    /// Backend that its connection id names; 0 for none.
    pub backend: u32,
}

/// Steers a QUIC packet from a client.
#[inline(always)]
pub fn steer<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    named: &Named,
) -> Decision {
    let Some(flow) = Flow::of(env, id, service, packet) else {
        return Decision {
            outcome: Outcome::PassInternal,
            backend: 0,
            hash: 0,
            slot_index: 0,
            slot: Slot(0),
        };
    };
    let known = entry::find(env.flows(), flow.hash, &flow.key);
    let backend = if named.backend == 0 || flow.is_gone(named.backend) {
        0
    } else {
        named.backend
    };
    let answer = if named.opens {
        flow.open_quic(known, named.digest, backend)
    } else if backend != 0 {
        flow.by_name(known, backend)
    } else {
        flow.nameless(packet)
    };
    let (outcome, backend) = answer;
    flow.decision(outcome, backend)
}

impl<E: Env> Flow<'_, E> {
    /// An Initial or 0-RTT packet.
    #[inline(always)]
    fn open_quic(
        &self,
        known: Option<NonNull<entry::FlowEntry>>,
        digest: u32,
        named: u32,
    ) -> (Outcome, u32) {
        let current = self.slot.current();
        let Some(flow) = known else {
            let (outcome, backend) = self.begin();
            if E::WRITES
                && outcome as u32 == Outcome::ForwardOpening as u32
                && let Some(flow) = entry::find(self.env.flows(), self.hash, &self.key)
            {
                // SAFETY: the entry was found for this packet.
                unsafe { entry::set_meta(flow, self.flow_meta(digest, backend, state::ISN_KNOWN)) };
            }
            return (outcome, backend);
        };
        // SAFETY: the entry was found for this packet.
        let meta = unsafe { entry::meta(flow) };
        let same = meta.has(state::ISN_KNOWN) && meta.isn() == digest;
        if (same || named == meta.backend()) && !self.is_gone(meta.backend()) {
            self.note(flow, 0);
            return (Outcome::ForwardFlow, meta.backend());
        }
        if current == 0 {
            return (Outcome::DropNoBackend, 0);
        }
        if E::WRITES {
            if !self.env.may_begin(self.id, self.service) {
                return (Outcome::DropFlowLimit, 0);
            }
            // The connection that had this port before is known by its name from now on.
            unsafe { entry::set_meta(flow, self.flow_meta(digest, current, state::ISN_KNOWN)) };
            self.note(flow, 0);
            if meta.backend() != current {
                self.env.count(current, Count::Opened);
            }
        }
        (Outcome::ForwardOpening, current)
    }

    /// A packet that ought to name its server and does not: as any datagram, but counted apart, because with servers
    /// that are set up as the service is there are none.
    #[inline(always)]
    fn nameless(&self, packet: &Packet) -> (Outcome, u32) {
        match self.tracked(packet) {
            (outcome, 0) if outcome.is_forward() => (Outcome::DropNoBackend, 0),
            (outcome, backend) if outcome.is_forward() => (Outcome::ForwardServerUnknown, backend),
            other => other,
        }
    }

    /// A packet whose connection id names this backend.
    #[inline(always)]
    fn by_name(&self, known: Option<NonNull<entry::FlowEntry>>, backend: u32) -> (Outcome, u32) {
        if !E::WRITES {
            return (Outcome::ForwardServerId, backend);
        }
        // Not exceptional: its packets find their way without it, and strangers could make any number.
        let meta = Meta::new(0, backend, 0);
        let Some(flow) = known else {
            let _ = self.adopt_as(meta);
            return (Outcome::ForwardServerId, backend);
        };
        // SAFETY: the entry was found for this packet.
        if unsafe { entry::meta(flow) }.backend() == backend {
            self.note(flow, 0);
            return (Outcome::ForwardServerId, backend);
        }
        // Two connections from one port on two backends: this one is listed beside the other.
        let key = FlowKey {
            client: self.key.client,
            ports: self.key.ports ^ ((u64::from(backend as u16)) << 16),
        };
        let hash = flow_hash(self.service, &key);
        let beside = Flow { key, hash, ..*self };
        match entry::find(self.env.flows(), hash, &beside.key) {
            Some(flow) => self.note(flow, 0),
            None => {
                let _ = beside.adopt_as(meta);
            }
        }
        (Outcome::ForwardServerId, backend)
    }
}

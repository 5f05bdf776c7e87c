//! The steering rule: which backend a packet goes to, and what is remembered of it.
//!
//! This is the very code that runs in the kernel; tests and the simulator run it over memory. The rule in a table:
//!
//! | packet | known? | goes to |
//! |---|---|---|
//! | opening | no | `current`; recorded in the handshake table |
//! | opening | same initial sequence number as recorded | where the first one went |
//! | opening | another sequence number | `current`: the client reused its port |
//! | anything else | flow entry | the entry's backend |
//! | anything else | handshake that it completes | the handshake's backend, now a flow entry |
//! | anything else | neither | `base`; in a moved slot an entry is made at a bounded rate. Whether that was right, the answer shows in `nat` and `full-nat` (`second_chance`), and in tunnels the backend can be asked (`sent_back`); where not, `current` and those that were it in between are next (`candidates`). While the base's flows are cut at a deadline it comes last instead of first |
//! | datagram | flow entry | the entry's backend |
//! | datagram | no | `current`, which an entry is made for: datagrams have no opening packet |
//!
//! Only packets in tracked slots ([`Slot::is_tracked`]), openings and closings touch the tables at all.

pub mod quic;

use core::ptr::NonNull;

mod at_once;
mod candidates;
mod numbers;
mod refusal;
mod second_chance;
mod sent_back;
#[cfg(test)]
mod tests;

pub use at_once::{at_once, is_plain, note_reply_at_once};
pub use sent_back::{SentOn, sent_back};

use crate::{
    Addr,
    abi::{ServiceRecord, Slot, Standing, backend_flags, service_flags},
    entry::{
        self, EntryTable, FlowEntry, FlowKey, FlowPolicy, HandshakePolicy, Meta, NewEntry, state,
    },
    former::Formers,
    hash,
    limits::{HANDSHAKE_WINDOW, SEEN_SHIFT},
    outcome::Outcome,
    recent,
};

/// How often a change of an entry's state is tried while others change it too.
const NOTE_ATTEMPTS: u32 = 4;

/// TCP flag bits (RFC 9293 section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends it at once.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// A packet to a service, as far as steering needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// The client's address.
    pub client: Addr,
    /// The client's port, network order as loaded.
    pub client_port: u16,
    /// The service's port, network order as loaded.
    pub service_port: u16,
    /// [`tcp`] flags.
    pub flags: u8,
    /// Sequence number, host order.
    pub sequence: u32,
    /// Acknowledgment number, host order; it counts with [`tcp::ACK`] only.
    pub acknowledgment: u32,
    /// Bytes of data in a TCP segment; 0 in a datagram.
    pub data: u32,
}

impl Packet {
    /// A SYN that is not an answer and does not also end the connection.
    #[inline(always)]
    pub const fn is_opening(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }
}

/// Which counter of a backend goes up by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// A flow opened.
    Opened,
    /// A flow closed.
    Closed,
    /// A flow adopted.
    Adopted,
    /// An opening seen again.
    Retransmit,
    /// An opening refused.
    Refused,
}

/// What steering needs of its surroundings.
pub trait Env {
    /// The flow table's type.
    type Flows: EntryTable;
    /// The handshake table's type.
    type Handshakes: EntryTable;
    /// False when nothing may be written or counted (`ebb explain`).
    const WRITES: bool;

    /// The flow table.
    fn flows(&self) -> &Self::Flows;
    /// The handshake table.
    fn handshakes(&self) -> &Self::Handshakes;
    /// What is noted beside a group of the flow table's entries, see [`recent`].
    fn recent(&self, group: u32) -> Option<NonNull<recent::Group>>;
    /// A slot, counted over all services.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// Former owners of a slot that has [`Slot::FORMERS`], counted as above.
    fn formers(&self, index: u32) -> Formers;
    /// A backend's standing; all zero when there is no such backend.
    fn standing(&self, backend: u32) -> Standing;
    /// A backend's [`backend_flags`]; 0 when there is no such backend.
    #[inline(always)]
    fn backend_flags(&self, backend: u32) -> u32 {
        self.standing(backend).flags
    }
    /// The kernel's clock in ticks.
    fn now(&self) -> u32;
    /// Takes one adoption out of this CPU's allowance.
    fn may_adopt(&self, now: u32) -> bool;
    /// Takes one opening out of this CPU's allowance.
    fn may_open(&self, now: u32) -> bool;
    /// Whether one more flow may begin now, by the limits of this CPU and of the service.
    fn may_begin(&self, id: u32, service: &ServiceRecord) -> bool;
    /// Counts an event of a backend.
    fn count(&self, backend: u32, what: Count);
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Why.
    pub outcome: Outcome,
    /// To which backend; 0 for none.
    pub backend: u32,
    /// The flow's hash.
    pub hash: u64,
    /// Its slot within the service's table.
    pub slot_index: u32,
    /// The slot as it stood.
    pub slot: Slot,
}

/// A flow within its service: all that the functions below share.
struct Flow<'a, E: Env> {
    env: &'a E,
    id: u32,
    service: &'a ServiceRecord,
    key: FlowKey,
    hash: u64,
    slot_index: u32,
    slot: Slot,
}

/// Hash of a flow: chooses its place in the tables and, unless the service keeps clients together, its slot.
#[inline(always)]
pub fn flow_hash(service: &ServiceRecord, key: &FlowKey) -> u64 {
    hash::keyed(&service.key, &key.client, key.ports as u32)
}

/// Hash that chooses the slot.
#[inline(always)]
fn slot_hash(service: &ServiceRecord, key: &FlowKey, flow_hash: u64) -> u64 {
    if service.flags & service_flags::AFFINITY_CLIENT == 0 {
        flow_hash
    } else {
        hash::keyed(
            &service.key,
            &key.client.masked(&service.affinity_mask),
            u32::MAX,
        )
    }
}

/// Who gets a flow of this slot that has no entry: the base, or of datagrams, which begin a flow then, `current`.
#[inline(always)]
pub const fn unlisted_owner(service: &ServiceRecord, slot: Slot) -> u32 {
    if service.flags & service_flags::DATAGRAM == 0 {
        slot.base()
    } else {
        slot.current()
    }
}

/// Slot of a flow within a table of `slots`.
#[inline(always)]
pub fn slot_index(service: &ServiceRecord, key: &FlowKey, flow_hash: u64) -> u32 {
    hash::reduce(slot_hash(service, key, flow_hash), service.table as u32)
}

/// Steers a packet from a client.
#[inline(always)]
pub fn steer<E: Env>(env: &E, id: u32, service: &ServiceRecord, packet: &Packet) -> Decision {
    let Some(flow) = Flow::of(env, id, service, packet) else {
        return Decision {
            outcome: Outcome::PassInternal,
            backend: 0,
            hash: 0,
            slot_index: 0,
            slot: Slot(0),
        };
    };
    let (outcome, backend) = if packet.is_opening() {
        flow.open(packet.sequence)
    } else if flow.is_tracked() {
        flow.tracked(packet)
    } else {
        flow.steady(packet.flags)
    };
    let outcome = if backend == 0 && outcome.is_forward() {
        Outcome::DropNoBackend
    } else {
        outcome
    };
    flow.decision(outcome, backend)
}

/// What becomes of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// To the client.
    GoesOn,
    /// It is the reset of a backend that the flow may never have been on, and the client is not told.
    Withheld,
    /// It says, or may say, where its flow is: [`note_reply`] is to decide. Nothing has been noted.
    Question,
}

/// Notes the answer of `backend` to a client of a `nat` or `full-nat` service, and says whether it may go on. The packet is
/// named from the client's side, with the answer's flags.
#[inline(always)]
#[must_use]
pub fn note_reply<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    backend: u32,
) -> bool {
    note::<E, true>(env, id, service, packet, backend) != Reply::Withheld
}

/// The same, leaving aside what is rare and takes long to work out.
#[inline(always)]
#[must_use]
pub fn note_usual_reply<E: Env>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    backend: u32,
) -> Reply {
    note::<E, false>(env, id, service, packet, backend)
}

#[inline(always)]
fn note<E: Env, const JUDGES: bool>(
    env: &E,
    id: u32,
    service: &ServiceRecord,
    packet: &Packet,
    backend: u32,
) -> Reply {
    let Some(flow) = Flow::of(env, id, service, packet) else {
        return Reply::GoesOn;
    };
    let closing = refusal::marked(
        closing_bits(packet.flags, state::FIN_SERVER),
        packet,
        backend,
    );
    let is_tracked = flow.is_tracked();
    if !is_tracked && closing == 0 {
        return Reply::GoesOn;
    }
    let known = entry::find(env.flows(), flow.hash, &flow.key);
    if is_tracked && flow.is_question(known, backend, packet.flags) {
        if !JUDGES {
            return Reply::Question;
        }
        let withheld = match known {
            Some(entry) => flow.judge(entry, backend, packet),
            None => flow.learn(backend, packet),
        };
        if withheld {
            return Reply::Withheld;
        }
    }
    flow.note_known(known, closing);
    Reply::GoesOn
}

#[inline(always)]
const fn closing_bits(flags: u8, fin: u64) -> u64 {
    let reset = if flags & tcp::RST != 0 {
        state::RESET
    } else {
        0
    };
    if flags & tcp::FIN != 0 {
        reset | fin
    } else {
        reset
    }
}

impl<'a, E: Env> Flow<'a, E> {
    /// The flow of a packet, and its slot. None when the slot does not exist.
    #[inline(always)]
    fn of(env: &'a E, id: u32, service: &'a ServiceRecord, packet: &Packet) -> Option<Self> {
        let key = FlowKey {
            client: packet.client,
            ports: FlowKey::pack(packet.client_port, packet.service_port, id),
        };
        let hash = flow_hash(service, &key);
        let slot_index = slot_index(service, &key, hash);
        let first = (service.table >> 32) as u32;
        let slot = env.slot(first.wrapping_add(slot_index))?;
        Some(Self {
            env,
            id,
            service,
            key,
            hash,
            slot_index,
            slot,
        })
    }

    #[inline(always)]
    fn decision(&self, outcome: Outcome, backend: u32) -> Decision {
        Decision {
            outcome,
            backend,
            hash: self.hash,
            slot_index: self.slot_index,
            slot: self.slot,
        }
    }

    #[inline(always)]
    fn is_tracked(&self) -> bool {
        self.slot.is_tracked() || self.service.flags & service_flags::TRACK_ALL != 0
    }

    #[inline(always)]
    fn is_datagram(&self) -> bool {
        self.service.flags & service_flags::DATAGRAM != 0
    }

    #[inline(always)]
    fn is_gone(&self, backend: u32) -> bool {
        !backend_flags::can_have_flows(self.env.backend_flags(backend))
    }

    /// An unmoved slot: its owner, whoever the flow is. Only a close is noted.
    #[inline(always)]
    fn steady(&self, flags: u8) -> (Outcome, u32) {
        let closing = closing_bits(flags, state::FIN_CLIENT);
        if closing != 0 {
            self.close(closing);
        }
        (Outcome::ForwardSteady, self.slot.base())
    }

    /// A packet that opens nothing, in a slot where the owner of a flow may be another than the base.
    #[inline(always)]
    fn tracked(&self, packet: &Packet) -> (Outcome, u32) {
        let closing = closing_bits(packet.flags, state::FIN_CLIENT);
        if let Some(entry) = entry::find(self.env.flows(), self.hash, &self.key) {
            return self.listed(entry, packet, closing);
        }
        if self.is_datagram() {
            return self.begin();
        }
        let handshake = entry::find(self.env.handshakes(), self.hash, &self.key);
        if let Some(handshake) = handshake {
            // SAFETY: the entry was found for this packet.
            let meta = unsafe { entry::meta(handshake) };
            if !self.is_gone(meta.backend()) {
                if completes(meta, packet.sequence) {
                    self.promote(handshake, meta, closing);
                    return (Outcome::ForwardHandshake, meta.backend());
                }
                if gives_up(meta, closing) {
                    return (Outcome::ForwardHandshake, meta.backend());
                }
            }
        }
        let (outcome, backend) = self.adopt(handshake, packet, closing);
        // Where the base has ended, nobody but the current owner is left to ask; or those before it.
        let is_orphan = outcome as u32 == Outcome::ForwardOrphan as u32;
        if self.asks() && (!is_orphan || self.slot.has_formers()) {
            // Where the current owner is asked first and has it, it stays there without an entry.
            let is_unlisted = outcome as u32 == Outcome::ForwardUnlisted as u32
                || is_orphan && closing & state::RESET == 0;
            let asking = if is_unlisted {
                Outcome::ForwardAskingUnlisted
            } else {
                Outcome::ForwardAsking
            };
            return (asking, backend);
        }
        (outcome, backend)
    }

    /// A packet of a flow that has an entry.
    #[inline(always)]
    fn listed(&self, entry: NonNull<FlowEntry>, packet: &Packet, closing: u64) -> (Outcome, u32) {
        // SAFETY: the entry was found for this packet.
        let mut meta = unsafe { entry::meta(entry) };
        if meta.has(state::REOPENED)
            && let Some(handshake) = entry::find(self.env.handshakes(), self.hash, &self.key)
        {
            // SAFETY: as above.
            let newer = unsafe { entry::meta(handshake) };
            if replaces(newer, meta, packet.sequence) {
                meta = self.take_over(entry, handshake);
            } else if gives_up(newer, closing) && !self.is_gone(newer.backend()) {
                return (Outcome::ForwardHandshake, newer.backend());
            }
        }
        if meta.has(state::GUESSED) {
            meta = self.spare(entry, meta);
        }
        if self.is_gone(meta.backend()) {
            return self.orphan(entry);
        }
        if meta.has(state::GUESSED) {
            self.ask(entry, meta, packet);
        }
        self.note(entry, closing);
        let outcome = if self.asks_again(meta) {
            Outcome::ForwardAsking
        } else {
            Outcome::ForwardFlow
        };
        (outcome, meta.backend())
    }

    /// A flow whose backend has ended. The current one resets a connection; a datagram is at home with it at once.
    #[inline(always)]
    fn orphan(&self, entry: NonNull<FlowEntry>) -> (Outcome, u32) {
        let current = self.slot.current();
        if E::WRITES && self.is_datagram() && current != 0 {
            // SAFETY: the entry was found for this packet.
            unsafe { entry::set_meta(entry, self.flow_meta(0, current, 0)) };
            self.env.count(current, Count::Opened);
        }
        (Outcome::ForwardOrphan, current)
    }

    /// A datagram that nobody knows begins a flow. Where it can not be recorded it goes to `current` all the same, as
    /// the next one will.
    #[inline(always)]
    fn begin(&self) -> (Outcome, u32) {
        let current = self.slot.current();
        if current == 0 {
            return (Outcome::DropNoBackend, 0);
        }
        if !E::WRITES {
            return (Outcome::ForwardOpening, current);
        }
        if !self.env.may_begin(self.id, self.service) {
            return (Outcome::DropFlowLimit, 0);
        }
        let now = self.env.now();
        let meta = self.flow_meta(0, current, 0);
        if !self.env.may_open(now) || self.enter(meta, now, now).is_none() {
            return (Outcome::ForwardOpeningUnrecorded, current);
        }
        self.env.count(current, Count::Opened);
        (Outcome::ForwardOpening, current)
    }

    /// The entry becomes that of the flow which the handshake opened. Its meta word.
    #[inline(always)]
    fn take_over(&self, flow: NonNull<FlowEntry>, handshake: NonNull<FlowEntry>) -> Meta {
        // SAFETY: both entries were found for this packet.
        let (meta, newer) = unsafe { (entry::meta(flow), entry::meta(handshake)) };
        let taken = self.flow_meta(newer.isn(), newer.backend(), state::ISN_KNOWN);
        if E::WRITES {
            if meta.has(state::ISN_KNOWN) && !meta.has(state::CLOSE_COUNTED) {
                self.env.count(meta.backend(), Count::Closed);
            }
            unsafe {
                (*flow.as_ptr()).opened = (*handshake.as_ptr()).opened;
                entry::set_meta(flow, taken);
                entry::set_meta(handshake, newer.with(state::CLOSE_COUNTED));
            }
        }
        taken
    }

    #[inline(always)]
    fn flow_meta(&self, isn: u32, backend: u32, bits: u64) -> Meta {
        let exceptional = if backend == unlisted_owner(self.service, self.slot) {
            0
        } else {
            state::EXCEPTIONAL
        };
        Meta::new(isn, backend, bits | exceptional)
    }

    /// A handshake is done: its flow gets an entry. Without room for one, the handshake stands for it.
    #[inline(always)]
    fn promote(&self, handshake: NonNull<FlowEntry>, meta: Meta, closing: u64) {
        if !E::WRITES || meta.has(state::RESET) {
            return;
        }
        let bits = state::ISN_KNOWN | self.closing_state(meta);
        let known = self.flow_meta(meta.isn(), meta.backend(), bits);
        // SAFETY: the entry was found for this packet.
        let opened = unsafe { (*handshake.as_ptr()).opened };
        match self.enter(known, opened, self.env.now()) {
            Some(flow) => {
                // From here on the flow's entry counts its close; what the other side did meanwhile goes along.
                let late = unsafe { entry::meta(handshake) };
                unsafe { entry::set_meta(handshake, late.with(state::CLOSE_COUNTED)) };
                self.note(flow, closing | (late.0 & state::CLOSING));
            }
            None => {
                unsafe { entry::set_meta(handshake, meta.with(state::ESTABLISHED)) };
                self.note(handshake, closing);
            }
        }
    }

    /// A flow nobody knows: it began before the change, on the base.
    #[inline(always)]
    fn adopt(
        &self,
        handshake: Option<NonNull<FlowEntry>>,
        packet: &Packet,
        closing: u64,
    ) -> (Outcome, u32) {
        let base = self.slot.base();
        if base == 0 || self.is_gone(base) {
            return self.adopt_orphan(packet, closing);
        }
        // An unmoved slot that is tracked only for its exceptions steers this flow without an entry for ever; but whoever is asked
        // about it needs one.
        let wanted = self.slot.is_moved()
            || self.service.flags & service_flags::TRACK_ALL != 0
            || self.is_open_question();
        if !E::WRITES || !wanted || closing & state::RESET != 0 {
            if closing != 0
                && let Some(handshake) = handshake
            {
                self.note(handshake, closing);
            }
            return (Outcome::ForwardBase, base);
        }
        let now = self.env.now();
        if !self.env.may_adopt(now) {
            return (Outcome::ForwardUnlisted, base);
        }
        let (isn, opened, known) = self.opening_of(handshake, base, now);
        let (mut outcome, mut owner, mut meta) = (
            Outcome::ForwardAdopted,
            base,
            self.flow_meta(isn, base, known),
        );
        if known == 0 && self.is_open_question() {
            meta = meta.with(state::GUESSED);
            if let Some(guess) = self.instead_of(base) {
                (outcome, owner, meta) = (Outcome::ForwardSecondChance, guess.backend(), guess);
            }
        }
        let Some(flow) = self.enter_as_adopted(meta, opened, now) else {
            return (Outcome::ForwardUnlisted, base);
        };
        if meta.has(state::GUESSED) {
            self.ask(flow, meta, packet);
        }
        self.note(flow, closing);
        (outcome, owner)
    }

    /// The same where the base has ended: its clients are to be told by the current owner, who may have the flow. Where others may have
    /// it as well, he is asked, and where his are cut these are before him.
    #[inline(always)]
    fn adopt_orphan(&self, packet: &Packet, closing: u64) -> (Outcome, u32) {
        let current = self.slot.current();
        let asks = E::WRITES
            && closing & state::RESET == 0
            && self.slot.has_formers()
            && self.is_open_question();
        if !asks {
            return (Outcome::ForwardOrphan, current);
        }
        let guess = match self.instead_of(current) {
            Some(other) => other,
            None => Meta::new(0, current, state::GUESSED),
        };
        if !self.is_gone(guess.backend())
            && let Some(flow) = self.adopt_as(guess)
        {
            self.ask(flow, guess, packet);
            self.note(flow, closing);
            return (Outcome::ForwardSecondChance, guess.backend());
        }
        (Outcome::ForwardOrphan, current)
    }

    /// Lists a flow that nothing was known of, if so many may be listed and there is room.
    #[inline(always)]
    fn adopt_as(&self, meta: Meta) -> Option<NonNull<FlowEntry>> {
        let now = self.env.now();
        if !self.env.may_adopt(now) {
            return None;
        }
        self.enter_as_adopted(meta, now, now)
    }

    /// The same, of one that may be listed.
    #[inline(always)]
    fn enter_as_adopted(&self, meta: Meta, opened: u32, now: u32) -> Option<NonNull<FlowEntry>> {
        let entry = self.enter(meta, opened, now)?;
        self.env.count(meta.backend(), Count::Adopted);
        Some(entry)
    }

    /// Makes an entry for the flow, which has none, if there is room.
    #[inline(always)]
    fn enter(&self, meta: Meta, opened: u32, now: u32) -> Option<NonNull<FlowEntry>> {
        let new = NewEntry {
            meta,
            opened,
            seen: now,
        };
        let policy = self.flow_policy(meta);
        entry::insert(self.env.flows(), self.hash, &self.key, &new, &policy)
    }

    /// What a handshake still says of a flow, if it is one with `backend`: initial sequence number, opening tick, state.
    #[inline(always)]
    fn opening_of(
        &self,
        handshake: Option<NonNull<FlowEntry>>,
        backend: u32,
        now: u32,
    ) -> (u32, u32, u64) {
        if let Some(handshake) = handshake {
            // SAFETY: the entry was found for this packet.
            let (meta, opened) = unsafe { (entry::meta(handshake), (*handshake.as_ptr()).opened) };
            if meta.backend() == backend {
                let kept = self.closing_state(meta);
                unsafe { entry::set_meta(handshake, meta.with(state::CLOSE_COUNTED)) };
                return (meta.isn(), opened, state::ISN_KNOWN | kept);
            }
        }
        (0, now, 0)
    }

    /// An opening packet.
    #[inline(always)]
    fn open(&self, isn: u32) -> (Outcome, u32) {
        let known = entry::find(self.env.handshakes(), self.hash, &self.key);
        if let Some(handshake) = known {
            // SAFETY: the entry was found for this packet.
            let meta = unsafe { entry::meta(handshake) };
            if self.repeats(meta, isn) {
                return self.again(handshake, meta);
            }
        }
        if E::WRITES && !self.env.may_begin(self.id, self.service) {
            return (Outcome::DropFlowLimit, 0);
        }
        let mut stale = false;
        if self.is_tracked()
            && let Some(flow) = entry::find(self.env.flows(), self.hash, &self.key)
        {
            // SAFETY: the entry was found for this packet.
            let meta = unsafe { entry::meta(flow) };
            if meta.has(state::ISN_KNOWN) && self.repeats(meta, isn) {
                return self.again(flow, meta);
            }
            stale = true;
            if E::WRITES {
                unsafe { entry::set_meta(flow, meta.with(state::REOPENED)) };
                self.forget_recent();
            }
        }
        let current = self.slot.current();
        if current == 0 {
            return (Outcome::DropNoBackend, 0);
        }
        if self.record(known, isn, current) {
            self.env.count(current, Count::Opened);
            return (Outcome::ForwardOpening, current);
        }
        self.open_unrecorded(stale)
    }

    /// Without a record the next packet of this flow goes to the base, or to the stale entry's backend, and a
    /// retransmission of this one may be recorded and go to `current`. So the opening may go on only where all of
    /// these are one; else it is dropped, and the client sends it again.
    #[inline(always)]
    fn open_unrecorded(&self, stale: bool) -> (Outcome, u32) {
        if stale || self.slot.is_moved() {
            return (Outcome::DropOpeningUnrecorded, 0);
        }
        self.env.count(self.slot.base(), Count::Opened);
        (Outcome::ForwardOpeningUnrecorded, self.slot.base())
    }

    #[inline(always)]
    fn repeats(&self, meta: Meta, isn: u32) -> bool {
        meta.isn() == isn
            && !meta.has(state::RESET)
            && !self.is_gone(meta.backend())
            && self.env.backend_flags(meta.backend()) & backend_flags::CUTS == 0
    }

    /// The same opening again.
    #[inline(always)]
    fn again(&self, entry: NonNull<FlowEntry>, meta: Meta) -> (Outcome, u32) {
        if E::WRITES {
            // SAFETY: the entry was found for this packet.
            unsafe { entry::touch(entry, self.env.now(), 0) };
        }
        self.env.count(meta.backend(), Count::Retransmit);
        (Outcome::ForwardRetransmit, meta.backend())
    }

    /// Records an opening in the handshake table.
    #[inline(always)]
    fn record(&self, known: Option<NonNull<FlowEntry>>, isn: u32, backend: u32) -> bool {
        if !E::WRITES {
            return true;
        }
        let now = self.env.now();
        let meta = Meta::new(isn, backend, state::ISN_KNOWN);
        if let Some(entry) = known {
            // SAFETY: the entry was found for this packet.
            unsafe {
                let old = entry::meta(entry);
                // The old flow of this port is over, whether its close was seen or not.
                if !old.has(state::CLOSE_COUNTED) {
                    self.env.count(old.backend(), Count::Closed);
                }
                (*entry.as_ptr()).opened = now;
                entry::touch(entry, now, 0);
                entry::set_meta(entry, meta);
            }
            return true;
        }
        let new = NewEntry {
            meta,
            opened: now,
            seen: now,
        };
        self.env.may_open(now)
            && entry::insert(
                self.env.handshakes(),
                self.hash,
                &self.key,
                &new,
                &HandshakePolicy {
                    idle_ticks: self.service.idle_ticks,
                },
            )
            .is_some()
    }

    /// How late an entry may say when its flow was last seen, in ticks. A store for every packet would have every line
    /// of a large table written back to memory. A closing flow lingers for seconds only, so it is exact.
    #[inline(always)]
    fn grain(&self, meta: Meta) -> u32 {
        if meta.has(state::CLOSING) {
            0
        } else {
            self.service.idle_ticks >> SEEN_SHIFT
        }
    }

    /// Whom a new entry with this meta word may replace.
    #[inline(always)]
    fn flow_policy(&self, new: Meta) -> FlowPolicy {
        FlowPolicy {
            idle_ticks: self.service.idle_ticks,
            linger_ticks: self.service.linger_ticks,
            is_urgent: new.has(state::EXCEPTIONAL),
        }
    }

    /// Notes a close on whichever entry accounts for the flow, where there still is one.
    #[inline(always)]
    fn close(&self, closing: u64) {
        if E::WRITES {
            self.note_known(entry::find(self.env.flows(), self.hash, &self.key), closing);
        }
    }

    /// Notes a packet on the flow's entry or, if it closes, where there is none, on its handshake's.
    #[inline(always)]
    fn note_known(&self, flow: Option<NonNull<FlowEntry>>, closing: u64) {
        let entry = match flow {
            None if closing != 0 => entry::find(self.env.handshakes(), self.hash, &self.key),
            known => known,
        };
        if let Some(entry) = entry {
            self.note(entry, closing);
        }
    }

    /// Notes a packet on an entry: its time and, of a closing one, its state. The close of a flow is counted once, and
    /// only if its opening was: what another node opened must not hide a flow of ours.
    #[inline(always)]
    fn note(&self, entry: NonNull<FlowEntry>, closing: u64) {
        if !E::WRITES {
            return;
        }
        // SAFETY: the entry was found for this packet, or was made for it.
        unsafe {
            let now = self.env.now();
            if closing == 0 {
                entry::touch(entry, now, self.grain(entry::meta(entry)));
                return;
            }
            entry::touch(entry, now, 0);
            self.forget_recent();
            // Both sides may close at once, on two CPUs. Neither bit may be lost: once it is acknowledged, a FIN does
            // not come again. Each side changes the word twice at most, so whoever loses soon wins.
            let word = &raw mut (*entry.as_ptr()).meta;
            let mut old = entry::meta(entry);
            let mut attempt = 0;
            while attempt < NOTE_ATTEMPTS {
                let mut new = old.with(closing);
                if self.is_closed(new) {
                    new = new.with(state::CLOSE_COUNTED);
                }
                if new == old {
                    return;
                }
                let found = Meta(E::Flows::compare_exchange(word, old.0, new.0));
                if found == old {
                    if refusal::is_of(closing, old) {
                        self.env.count(new.backend(), Count::Refused);
                    }
                    if new.has(state::CLOSE_COUNTED)
                        && !old.has(state::CLOSE_COUNTED)
                        && old.has(state::ISN_KNOWN)
                    {
                        self.env.count(new.backend(), Count::Closed);
                    }
                    return;
                }
                old = found;
                attempt += 1;
            }
        }
    }

    /// The flow's packets have to be seen at its entry.
    #[inline(always)]
    fn forget_recent(&self) {
        if self.service.flags & service_flags::TRACK_ALL == 0 {
            return;
        }
        if let Some(words) = self.recent_group() {
            // SAFETY: words that all CPUs write whole.
            unsafe { recent::forget(words.as_ptr()) };
        }
    }

    /// What is noted beside the flow's group of entries.
    #[inline(always)]
    fn recent_group(&self) -> Option<NonNull<recent::Group>> {
        let group = recent::group(self.hash, self.env.flows().mask());
        self.env.recent(group)
    }

    #[inline(always)]
    fn is_closed(&self, meta: Meta) -> bool {
        entry::is_closed(meta, self.service.mode)
    }

    /// What a flow's entry takes over of its handshake's closing.
    #[inline(always)]
    fn closing_state(&self, meta: Meta) -> u64 {
        let counted = if self.is_closed(meta) {
            state::CLOSE_COUNTED
        } else {
            0
        };
        meta.0 & state::CLOSING | counted
    }
}

/// Whether a client's reset is its answer to what its opening met. A server that still has an older connection of the
/// same ports answers an opening with a segment of that one; the client resets what it does not know, by that one's
/// numbers, and the opening that it then sends again can succeed (RFC 9293 section 3.5.1, half-open connections). So the reset must
/// reach the server that the opening did.
#[inline(always)]
fn gives_up(handshake: Meta, closing: u64) -> bool {
    closing & state::RESET != 0 && !handshake.has(state::ESTABLISHED | state::CLOSE_COUNTED)
}

/// Whether a packet with this sequence number is of the flow that a handshake opened after that of a flow's entry.
#[inline(always)]
fn replaces(handshake: Meta, flow: Meta, sequence: u32) -> bool {
    let is_its_own = flow.has(state::ISN_KNOWN) && handshake.isn() == flow.isn();
    !is_its_own && completes(handshake, sequence)
}

/// Whether a packet with this sequence number belongs to the flow that a handshake entry opened. Sequence
/// numbers far from the initial one belong to an older flow of the same ports, whatever a forged SYN says.
#[inline(always)]
fn completes(handshake: Meta, sequence: u32) -> bool {
    handshake.has(state::ESTABLISHED)
        || sequence.wrapping_sub(handshake.isn().wrapping_add(1)) < HANDSHAKE_WINDOW
}

//! Flows that nothing is known of while the deadline of their base's drain cuts flows; in `strangers`, those that meet
//! another connection of their client's port.

mod strangers;

use std::{cell::UnsafeCell, collections::BTreeMap, vec::Vec};

use super::*;
use crate::abi::{BackendRecord, cut_position, mode};

const BASE: u32 = 1;
const CURRENT: u32 = 2;
const FORMER: u32 = 3;
/// The client's sequence number, and the server's.
const SEQUENCE: u32 = 7;
const ANSWERED: u32 = 5000;

struct Table(Vec<UnsafeCell<FlowEntry>>);

impl Table {
    fn new() -> Self {
        Self((0..16).map(|_| UnsafeCell::default()).collect())
    }
}

impl EntryTable for Table {
    fn mask(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    fn entry(&self, index: u32) -> Option<NonNull<FlowEntry>> {
        NonNull::new(self.0.get(index as usize)?.get())
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        unsafe {
            let found = *word;
            if found == old {
                *word = new;
            }
            found
        }
    }
}

/// A service of one slot, all of whose flows have lost their entries.
struct Node {
    flows: Table,
    handshakes: Table,
    slot: Slot,
    formers: Formers,
    backends: BTreeMap<u32, BackendRecord>,
    service: ServiceRecord,
    has_room: bool,
}

impl Env for Node {
    type Flows = Table;
    type Handshakes = Table;
    const WRITES: bool = true;

    fn flows(&self) -> &Table {
        &self.flows
    }
    fn handshakes(&self) -> &Table {
        &self.handshakes
    }
    fn recent(&self, _: u32) -> Option<NonNull<recent::Group>> {
        None
    }
    fn slot(&self, _: u32) -> Option<Slot> {
        Some(self.slot)
    }
    fn formers(&self, _: u32) -> Formers {
        self.formers
    }
    fn standing(&self, backend: u32) -> Standing {
        let record = self.backends.get(&backend);
        record.map_or(Standing::default(), BackendRecord::standing)
    }
    fn now(&self) -> u32 {
        1000
    }
    fn may_adopt(&self, _: u32) -> bool {
        self.has_room
    }
    fn may_open(&self, _: u32) -> bool {
        true
    }
    fn may_begin(&self, _: u32, _: &ServiceRecord) -> bool {
        true
    }
    fn count(&self, _: u32, _: Count) {}
}

impl Node {
    fn new(mode: u8, flags: u32, cut: u32) -> Self {
        let valid = BackendRecord {
            flags: backend_flags::VALID,
            ..BackendRecord::default()
        };
        let mut backends: BTreeMap<u32, BackendRecord> = [BASE, CURRENT, FORMER]
            .into_iter()
            .map(|id| (id, valid))
            .collect();
        backends.insert(
            BASE,
            BackendRecord {
                flags: backend_flags::VALID | backend_flags::CUT_RESET,
                cut,
                ..valid
            },
        );
        Self {
            flows: Table::new(),
            handshakes: Table::new(),
            slot: Slot::new(CURRENT, BASE, false),
            formers: Formers::NONE,
            backends,
            service: ServiceRecord {
                table: ServiceRecord::table_word(0, 1),
                mode,
                flags,
                idle_ticks: 10_000,
                linger_ticks: 100,
                ..ServiceRecord::default()
            },
            has_room: true,
        }
    }

    fn with_former(mut self) -> Self {
        self.slot = self.slot.with_formers();
        self.formers = Formers::new([FORMER]);
        self
    }

    /// Fills the flow table with what does not give way.
    fn fill(&self) {
        for place in &self.flows.0 {
            // SAFETY: nobody else has the table.
            let entry = unsafe { &mut *place.get() };
            entry.tag = 2;
            entry.seen = self.now();
            entry.meta = Meta::new(0, CURRENT, state::EXCEPTIONAL).0;
        }
    }

    fn flag(mut self, backend: u32, flags: u32) -> Self {
        let record = self.backends.get_mut(&backend).expect("a backend");
        record.flags |= flags;
        record.cut = u32::MAX;
        self
    }

    fn sends(&self, flags: u8) -> (Outcome, u32) {
        let decision = steer(self, 1, &self.service, &packet(flags));
        (decision.outcome, decision.backend)
    }

    /// Whether an answer goes on, which acknowledges what the client has sent.
    fn answers(&self, backend: u32, flags: u8) -> bool {
        self.says(backend, &answer(flags))
    }

    /// Whether this answer goes on.
    fn says(&self, backend: u32, answer: &Packet) -> bool {
        note_reply(self, 1, &self.service, answer, backend)
    }

    fn send_back(&self, from: u32) -> (u32, bool) {
        let sent_on = sent_back(self, 1, &self.service, &packet(tcp::ACK), from);
        let sent_on = sent_on.expect("somebody to go to");
        (sent_on.decision.backend, sent_on.asks)
    }
}

fn packet(flags: u8) -> Packet {
    Packet {
        client: Addr::from_v4([192, 0, 2, 7]),
        client_port: 1000,
        service_port: 80,
        flags,
        sequence: SEQUENCE,
        acknowledgment: ANSWERED,
        data: 0,
    }
}

fn answer(flags: u8) -> Packet {
    Packet {
        sequence: ANSWERED,
        acknowledgment: SEQUENCE + 1,
        ..packet(flags)
    }
}

fn two_way() -> Node {
    Node::new(mode::NAT, 0, u32::MAX)
}

#[test]
fn a_flow_of_the_current_owner_lives() {
    for mode in [mode::NAT, mode::FULL_NAT] {
        let node = Node::new(mode, 0, u32::MAX);
        let guess = (Outcome::ForwardSecondChance, CURRENT);
        assert_eq!(node.sends(tcp::ACK), guess);
        assert!(
            node.answers(BASE, tcp::ACK),
            "what the base still says goes on"
        );
        assert!(node.answers(CURRENT, tcp::ACK));
        assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, CURRENT));
        assert!(node.answers(CURRENT, tcp::RST), "its own");
    }
}

#[test]
fn what_nobody_else_has_is_the_bases() {
    let node = two_way();
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
    assert!(!node.answers(CURRENT, tcp::RST));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, BASE));

    let node = two_way().with_former();
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
    assert!(!node.answers(CURRENT, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, FORMER);
    assert!(!node.answers(CURRENT, tcp::RST), "late");
    assert!(!node.answers(FORMER, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, BASE);
}

/// Whoever is cut answers nothing: ebb would, with a reset. A flow of somebody else must not be cut with his.
#[test]
fn whose_flows_are_cut_is_asked_last() {
    let uncut = || Node::new(mode::NAT, 0, 0);
    let cut = |node: Node, backend| node.flag(backend, backend_flags::CUT_RESET);
    // The current owner is: the former one comes before him.
    let node = cut(uncut().with_former(), CURRENT);
    assert_eq!(node.sends(tcp::ACK).1, BASE);
    assert!(!node.answers(BASE, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, FORMER);
    assert!(!node.answers(FORMER, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, CURRENT, "nobody else has it");
    // Base and current owner are.
    let node = cut(two_way().with_former(), CURRENT);
    assert_eq!(node.sends(tcp::ACK).1, FORMER);
    assert!(node.answers(FORMER, tcp::ACK));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, FORMER));
    // All are.
    let node = cut(cut(two_way().with_former(), CURRENT), FORMER);
    assert_eq!(node.sends(tcp::ACK).1, BASE);
    // The base has ended, and the current owner is cut.
    let ended = || cut(uncut().with_former(), CURRENT).flag(BASE, backend_flags::ENDED);
    let node = ended();
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardSecondChance, FORMER));
    assert!(!node.answers(FORMER, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
    let node = cut(ended(), FORMER);
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
    // One comes to be while he is asked.
    let node = uncut().with_former();
    assert_eq!(node.sends(tcp::ACK).1, BASE);
    assert!(!node.answers(BASE, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
    let node = cut(node, CURRENT);
    assert_eq!(node.sends(tcp::ACK).1, BASE, "the asking begins anew");
    assert!(!node.answers(BASE, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, FORMER);
    assert!(node.answers(FORMER, tcp::ACK));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, FORMER));
    // One that has died is as well.
    let node = cut(uncut().with_former(), CURRENT).flag(CURRENT, backend_flags::DEAD);
    assert_eq!(node.sends(tcp::ACK).1, BASE);
    assert!(!node.answers(BASE, tcp::RST));
    assert_eq!(node.sends(tcp::ACK).1, FORMER);
}

#[test]
fn behind_tunnels_others_are_asked_and_the_base_is_not() {
    let asks = || Node::new(mode::IPIP, service_flags::ASKS, u32::MAX);
    let node = asks();
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardAsking, CURRENT));
    assert_eq!(node.send_back(CURRENT), (BASE, false));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, BASE));

    let node = asks().with_former();
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardAsking, CURRENT));
    assert_eq!(node.send_back(CURRENT), (FORMER, true));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardAsking, FORMER));
    assert_eq!(node.send_back(FORMER), (BASE, false));
}

#[test]
fn the_base_comes_first_until_the_flows_turn() {
    let position = cut_position(flow_hash(
        &ServiceRecord::default(),
        &FlowKey {
            client: packet(0).client,
            ports: FlowKey::pack(1000, 80, 1),
        },
    ));
    let node = Node::new(mode::NAT, 0, position);
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardAdopted, BASE));
    // Its question is answered as ever, also when its turn comes meanwhile.
    let node = node.flag(BASE, 0);
    assert!(!node.answers(BASE, tcp::RST));
    assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardFlow, CURRENT));
    let node = Node::new(mode::NAT, 0, position + 1);
    assert_eq!(node.sends(tcp::ACK).1, CURRENT);
}

#[test]
fn where_nobody_can_be_asked_it_is_the_bases_at_once() {
    let no_room = Node {
        has_room: false,
        ..two_way()
    };
    let nobody = Node {
        slot: Slot::new(0, BASE, false),
        ..two_way()
    };
    for (what, node) in [
        ("answers are not seen", Node::new(mode::L2, 0, u32::MAX)),
        ("no decapsulator", Node::new(mode::GUE, 0, u32::MAX)),
        ("no room", no_room),
        ("no current owner", nobody),
        ("dead", two_way().flag(BASE, backend_flags::DEAD)),
        ("ended", two_way().flag(CURRENT, backend_flags::ENDED)),
        ("cut", two_way().flag(CURRENT, backend_flags::CUT_RESET)),
    ] {
        assert_eq!(node.sends(tcp::ACK).1, BASE, "{what}");
    }
}

#[test]
fn a_flow_that_gets_no_entry_says_so() {
    let unlisted = (Outcome::ForwardUnlisted, BASE);
    let mut node = Node::new(mode::NAT, 0, 0);
    node.has_room = false;
    assert_eq!(node.sends(tcp::ACK), unlisted, "too many at once");
    let node = Node::new(mode::NAT, 0, 0);
    node.fill();
    assert_eq!(node.sends(tcp::ACK), unlisted, "a full bucket");
    // Of one that ends nothing is to be kept.
    assert_eq!(node.sends(tcp::RST), (Outcome::ForwardBase, BASE));
    assert!(unlisted.0.is_forward());
}

#[test]
fn a_flow_that_gets_no_entry_and_is_asked_about_says_both() {
    let unlisted = (Outcome::ForwardAskingUnlisted, BASE);
    let asks = || Node::new(mode::IPIP, service_flags::ASKS, 0);
    let mut node = asks();
    node.has_room = false;
    assert_eq!(node.sends(tcp::ACK), unlisted, "too many at once");
    let node = asks();
    node.fill();
    assert_eq!(node.sends(tcp::ACK), unlisted, "a full bucket");
    assert_eq!(node.sends(tcp::RST), (Outcome::ForwardAsking, BASE));
    // Its base has ended: it may live on who is asked first, and nothing says so.
    let mut node = asks().with_former().flag(BASE, backend_flags::ENDED);
    node.has_room = false;
    let unlisted_there = (Outcome::ForwardAskingUnlisted, CURRENT);
    assert_eq!(node.sends(tcp::ACK), unlisted_there);
    assert_eq!(node.sends(tcp::RST), (Outcome::ForwardAsking, CURRENT));
    node.has_room = true;
    let listed_there = (Outcome::ForwardAsking, CURRENT);
    assert_eq!(node.sends(tcp::ACK), listed_there);
    // A guess asks with every packet, and is listed.
    let node = asks();
    for _ in 0..2 {
        assert_eq!(node.sends(tcp::ACK), (Outcome::ForwardAsking, BASE));
    }
    assert!(unlisted.0.is_forward() && unlisted.0.asks() && Outcome::ForwardAsking.asks());
    assert!(!Outcome::ForwardUnlisted.asks());
}

#[test]
fn what_is_known_to_be_the_bases_is_not_asked_about() {
    let mut node = two_way();
    node.slot = Slot::new(BASE, BASE, false);
    assert_eq!(node.sends(tcp::SYN).1, BASE);
    node.slot = Slot::new(CURRENT, BASE, false);
    assert_eq!(node.sends(tcp::ACK).1, BASE);
    // Nor does a client's reset ask: the base is to hear of it.
    let node = two_way();
    assert_eq!(node.sends(tcp::RST), (Outcome::ForwardBase, BASE));
}

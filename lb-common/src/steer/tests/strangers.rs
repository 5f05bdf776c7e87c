//! A backend that does not have a flow, but another connection of the same client address and port.

use std::vec;

use proptest::prelude::*;

use super::*;

/// A window, as large as any is.
const WINDOW: u32 = 1 << 30;

fn segment(sequence: u32, data: u32) -> Packet {
    Packet {
        sequence,
        data,
        ..packet(tcp::ACK)
    }
}

/// An acknowledgment with these numbers.
fn ack(sequence: u32, acknowledgment: u32) -> Packet {
    Packet {
        sequence,
        acknowledgment,
        ..packet(tcp::ACK)
    }
}

impl Node {
    /// Where a segment goes.
    fn takes(&self, packet: &Packet) -> u32 {
        steer(self, 1, &self.service, packet).backend
    }

    fn entry(&self) -> Meta {
        let mut entries = self.flows.0.iter().map(|place| {
            // SAFETY: nobody else has the table.
            unsafe { *place.get() }
        });
        Meta(entries.find(|entry| entry.tag != 0).expect("an entry").meta)
    }

    fn key(&self) -> FlowKey {
        let packet = packet(0);
        FlowKey {
            client: packet.client,
            ports: FlowKey::pack(packet.client_port, packet.service_port, 1),
        }
    }

    fn hash(&self) -> u64 {
        flow_hash(&self.service, &self.key())
    }

    fn is_guess(&self) -> bool {
        self.entry().has(state::GUESSED)
    }
}

/// In the middle of a change, before anything is cut.
fn moved() -> Node {
    Node::new(mode::NAT, 0, 0)
}

#[test]
fn what_another_connection_answers_is_withheld_and_the_next_is_asked() {
    let foreign = [
        ack(ANSWERED.wrapping_add(2 * WINDOW), SEQUENCE),
        ack(ANSWERED, SEQUENCE.wrapping_sub(WINDOW + 1)),
        // So much is under way only of data.
        ack(ANSWERED + (1 << 28) + 1, SEQUENCE + 1),
        ack(ANSWERED, SEQUENCE.wrapping_sub((1 << 28) + 1)),
        Packet {
            data: 100,
            ..ack(ANSWERED.wrapping_add(WINDOW + 1), SEQUENCE + 1)
        },
        Packet {
            flags: tcp::RST | tcp::ACK,
            ..ack(ANSWERED.wrapping_sub(WINDOW + 1), SEQUENCE + 1)
        },
    ];
    for answer in foreign {
        let node = moved();
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
        assert!(!node.says(BASE, &answer), "{answer:?}");
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), CURRENT);
        assert!(node.is_guess());
        assert!(node.says(CURRENT, &ack(ANSWERED, SEQUENCE + 1)));
        assert!(!node.is_guess());
        assert_eq!(node.takes(&segment(SEQUENCE + 1, 100)), CURRENT);
    }
}

#[test]
fn what_is_as_far_off_as_a_window_is_the_flows() {
    for (sequence, acknowledgment) in [(WINDOW, 1), (0, WINDOW), (WINDOW, WINDOW)] {
        for sign in [1, u32::MAX] {
            let answer = Packet {
                data: 100,
                ..ack(
                    ANSWERED.wrapping_add(sequence.wrapping_mul(sign)),
                    SEQUENCE.wrapping_add(acknowledgment.wrapping_mul(sign)),
                )
            };
            let node = moved();
            assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
            assert!(node.says(BASE, &answer), "{answer:?}");
            assert!(!node.is_guess());
        }
    }
}

#[test]
fn an_acknowledgment_of_nothing_new_says_nothing_until_its_segment_has_come_three_times() {
    let near = ack(ANSWERED + 1000, SEQUENCE.wrapping_sub(50));
    let node = moved();
    for _ in 0..2 {
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
        for _ in 0..10 {
            assert!(node.says(BASE, &near), "nor however often it comes");
        }
        assert!(node.is_guess());
    }
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    assert!(!node.says(BASE, &near));
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), CURRENT);
    // What is before the segment does not come any more, wherever it goes.
    assert!(!node.says(CURRENT, &near));
}

#[test]
fn segments_without_data_and_others_do_not_count_as_the_same_again() {
    let node = moved();
    for sequence in [SEQUENCE + 100, SEQUENCE + 200, SEQUENCE + 300] {
        for _ in 0..3 {
            node.takes(&segment(sequence, sequence - SEQUENCE - 100));
        }
    }
    assert!(node.says(BASE, &ack(ANSWERED, SEQUENCE)));
    // The one that is missing comes after all.
    node.takes(&segment(SEQUENCE, 100));
    assert!(node.says(BASE, &ack(ANSWERED, SEQUENCE)));
    assert!(node.says(BASE, &ack(ANSWERED, SEQUENCE + 100)));
    assert!(!node.is_guess());
    assert_eq!(node.entry().backend(), BASE);
}

#[test]
fn data_shows_where_the_flow_is_whoever_is_being_asked() {
    let node = moved().with_former();
    let data = Packet {
        data: 100,
        ..answer(tcp::ACK)
    };
    assert_eq!(node.takes(&segment(SEQUENCE, 0)), BASE);
    let foreign = Packet {
        sequence: ANSWERED.wrapping_add(2 * WINDOW),
        ..data
    };
    for (backend, answer) in [(9, &data), (FORMER, &foreign), (FORMER, &answer(tcp::ACK))] {
        assert!(node.says(backend, answer));
        assert!(node.is_guess(), "{backend} {answer:?}");
    }
    assert!(node.says(FORMER, &data));
    let entry = node.entry();
    assert_eq!((entry.backend(), node.is_guess()), (FORMER, false));
    assert!(entry.has(state::EXCEPTIONAL));
    assert_eq!(node.takes(&segment(SEQUENCE, 0)), FORMER);
}

#[test]
fn who_has_answered_without_data_has_not_shown_himself_before_the_client_has() {
    let node = moved();
    assert!(node.says(CURRENT, &answer(tcp::ACK)));
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    // After a reset of the base the next one is guessed, and what the client said is not known.
    let node = moved();
    assert!(!node.says(BASE, &answer(tcp::RST)));
    assert_eq!(node.entry().backend(), CURRENT);
    assert!(node.says(CURRENT, &answer(tcp::ACK)));
    assert!(node.is_guess());
    node.takes(&segment(SEQUENCE, 100));
    assert!(node.says(CURRENT, &answer(tcp::ACK)));
    assert!(!node.is_guess());
}

#[test]
fn where_the_last_one_answers_for_another_the_first_tells_the_client() {
    let foreign = ack(ANSWERED.wrapping_add(2 * WINDOW), SEQUENCE);
    let node = moved().with_former();
    for backend in [BASE, CURRENT] {
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), backend);
        assert!(!node.answers(backend, tcp::RST));
    }
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), FORMER);
    assert!(!node.says(FORMER, &foreign));
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    assert!(node.answers(BASE, tcp::RST));
}

#[test]
fn a_connection_that_begins_is_not_judged_by_the_one_before() {
    let node = moved();
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    let opening = Packet {
        sequence: SEQUENCE + (WINDOW >> 1),
        ..packet(tcp::SYN)
    };
    assert_eq!(node.takes(&opening), CURRENT);
    let opened = Packet {
        flags: tcp::SYN | tcp::ACK,
        ..ack(2 * WINDOW, opening.sequence + 1)
    };
    assert!(node.says(CURRENT, &opened));
    // What is late of the one before changes nothing for it.
    assert!(node.says(BASE, &answer(tcp::ACK)));
    assert!(node.entry().has(state::REOPENED));
    assert_eq!(node.takes(&segment(opening.sequence + 1, 0)), CURRENT);
    assert!(!node.is_guess());
}

#[test]
fn a_handshake_in_flight_is_no_question_and_one_that_is_done_is() {
    // Of a slot that is its base's again.
    let mut node = moved();
    (node.slot, node.formers) = (Slot::new(BASE, BASE, true), Formers::new([FORMER]));
    node.slot = node.slot.with_formers();
    assert_eq!(node.takes(&packet(tcp::SYN)), BASE);
    assert!(node.says(BASE, &answer(tcp::RST)), "it may be its answer");
    let place = entry::find(&node.handshakes, node.hash(), &node.key());
    let place = place.expect("a handshake");
    // SAFETY: nobody else has the table.
    unsafe {
        let isn = entry::meta(place).isn();
        let done = state::ISN_KNOWN | state::CLOSE_COUNTED;
        entry::set_meta(place, Meta::new(isn, FORMER, done));
    }
    let later = segment(SEQUENCE.wrapping_add(WINDOW), 100);
    node.has_room = false;
    assert_eq!(node.takes(&later), BASE);
    assert!(!node.says(BASE, &answer(tcp::RST)), "without an entry");
    node.has_room = true;
    assert_eq!(node.takes(&later), BASE);
    assert!(!node.says(BASE, &answer(tcp::RST)), "with one");
    assert_eq!(node.takes(&later), FORMER);
}

/// Wherever several may have a flow, whoever is asked first has an entry to be judged by: also the base of a slot that is not moved,
/// and the current owner where the base has ended.
#[test]
fn whoever_is_asked_first_is_told_from_a_stranger() {
    let unmoved = || {
        let mut node = moved().with_former();
        node.slot = Slot::new(BASE, BASE, true).with_formers();
        (node, BASE)
    };
    let orphaned = || {
        let node = moved().with_former();
        (node.flag(BASE, backend_flags::ENDED), CURRENT)
    };
    for (node, first) in [unmoved(), orphaned()] {
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), first);
        assert!(node.is_guess());
        assert!(!node.says(first, &ack(2 * WINDOW, SEQUENCE + WINDOW + 1)));
        assert_eq!(node.takes(&segment(SEQUENCE, 100)), FORMER);
        assert!(node.says(FORMER, &answer(tcp::ACK)));
        assert!(!node.is_guess());
    }
    // A guess whose backend ends while it is asked.
    let node = moved().with_former();
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    assert!(!node.says(BASE, &answer(tcp::RST)));
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), CURRENT);
    let node = node.flag(CURRENT, backend_flags::ENDED);
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), BASE);
    assert!(!node.says(BASE, &answer(tcp::RST)));
    assert_eq!(node.takes(&segment(SEQUENCE, 100)), FORMER);
}

#[test]
fn a_forged_segment_is_forgotten_with_the_clients_next() {
    let node = moved();
    node.takes(&segment(SEQUENCE.wrapping_add(2 * WINDOW), 100));
    node.takes(&segment(SEQUENCE, 100));
    assert!(node.says(BASE, &answer(tcp::ACK)));
    assert!(!node.is_guess());
}

/// A connection as both ends see it: numbers of the client's segments that are lost on their way, and how they come again.
#[derive(Debug, Clone)]
struct Conversation {
    isn: u32,
    server: u32,
    /// Which of the client's segments get lost, the first time and later.
    lost: Vec<bool>,
    /// The server has sent so much that is not acknowledged.
    ahead: u32,
}

fn conversations() -> impl Strategy<Value = Conversation> {
    (
        any::<u32>(),
        any::<u32>(),
        prop::collection::vec(any::<bool>(), 1..24),
        0..1u32 << 26,
    )
        .prop_map(|(isn, server, lost, ahead)| Conversation {
            isn,
            server,
            lost,
            ahead,
        })
}

const LENGTH: u32 = 1000;

proptest! {
    /// Of a flow that the base has no answer is ever withheld: segments get lost before the tables do, and after; their client
    /// sends the first that is missing again and again.
    #[test]
    fn no_answer_to_a_flow_is_taken_for_anothers(conversation in conversations()) {
        let Conversation { isn, server, lost, ahead } = conversation;
        let node = moved();
        let number = |index: usize| isn.wrapping_add(index as u32 * LENGTH);
        let at = |index: usize| Packet {
            acknowledgment: server,
            ..segment(number(index), 100)
        };
        let mut arrived = vec![false; lost.len()];
        let mut answer_to = |index: usize, node: &Node| {
            arrived[index] = true;
            let first = arrived.iter().position(|here| !here).unwrap_or(lost.len());
            assert!(node.says(BASE, &ack(server.wrapping_add(ahead), number(first))));
            first
        };
        let mut first = 0;
        for (index, _) in lost.iter().enumerate().filter(|(_, lost)| !**lost) {
            prop_assert_eq!(node.takes(&at(index)), BASE);
            first = answer_to(index, &node);
        }
        // A probe of the tail, and then the first that is missing.
        let tail = lost.len() - 1;
        prop_assert_eq!(node.takes(&at(tail)), BASE);
        first = first.max(answer_to(tail, &node));
        while first < lost.len() {
            for _ in 0..3 {
                prop_assert_eq!(node.takes(&at(first)), BASE);
            }
            first = answer_to(first, &node);
        }
        prop_assert!(!node.is_guess());
    }

    /// Whatever the numbers of a connection in TIME-WAIT are, the flow is found behind it by its third try.
    #[test]
    fn who_waits_does_not_hold_a_flow(
        isn in any::<u32>(),
        before in 0..1u32 << 30,
        server in any::<u32>(),
        waiting in any::<u32>(),
    ) {
        let node = moved();
        let said = Packet { acknowledgment: server, ..segment(isn, 100) };
        let waits = ack(waiting, isn.wrapping_sub(1).wrapping_sub(before));
        let mut tries = 0;
        while node.takes(&said) == BASE {
            tries += 1;
            prop_assert!(tries <= 3);
            node.says(BASE, &waits);
        }
        prop_assert!(node.says(CURRENT, &ack(server, isn.wrapping_add(1))));
        prop_assert!(!node.is_guess());
        prop_assert_eq!(node.takes(&said), CURRENT);
    }
}

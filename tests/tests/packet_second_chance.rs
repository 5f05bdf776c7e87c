//! A flow that no table knows, in a moved slot, in `nat`: the backends' answers show where it belongs. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at},
};
use lb_common::{
    abi::{Slot, backend_flags, mode},
    entry::{Meta, state},
    former::Formers,
    outcome::Outcome,
    steer::tcp::{ACK, FIN, RST, SYN},
};
use lb_userspace::datapath::{Datapath as _, Table};

const OLD: u32 = 1;
const NEW: u32 = 2;
const OTHER: u32 = 3;
const FOURTH: u32 = 4;
/// The client's sequence number, and the server's.
const SEQUENCE: u32 = 7;
const ANSWERED: u32 = 5000;
const MOVED: Slot = Slot::new(NEW, OLD, false);
const UNMOVED: Slot = Slot::new(OLD, OLD, false);
/// Unmoved, but with flows that are not its base's.
const EXCEPTIONS: Slot = Slot::new(NEW, NEW, true);

fn service(is_v4: bool, mode: u8) -> ServiceSetup {
    let vip = if is_v4 {
        "203.0.113.10"
    } else {
        "2001:db8:f::10"
    };
    ServiceSetup {
        id: 1,
        vip: at(vip, 80),
        mode,
        flags: 0,
    }
}

/// A service of this mode with all slots like this one.
struct Stage {
    rig: Rig,
    service: ServiceSetup,
}

impl Stage {
    fn new(is_v4: bool, mode: u8, slot: Slot) -> Result<Self> {
        let (mut rig, service) = (Rig::new()?, service(is_v4, mode));
        for id in 1..=8 {
            rig.backend(&service, id, backend(&service, id))?;
        }
        rig.service(service, &[slot; 101])?;
        Ok(Self { rig, service })
    }

    /// The same with these former owners of every slot.
    fn with_formers(is_v4: bool, mode: u8, slot: Slot, formers: &[u32]) -> Result<Self> {
        let mut stage = Self::new(is_v4, mode, slot)?;
        let formers = Formers::new(formers.iter().copied());
        let of_each: Vec<_> = (0..101).map(|index| (index, formers)).collect();
        let slots = [slot.with_formers(); 101];
        stage.rig.datapath.publish_table(1, &slots, &of_each)?;
        assert_eq!(stage.rig.datapath.formers(1)?, of_each);
        Ok(stage)
    }

    /// From here on the deadline of a backend's drain cuts its flows, up to this position.
    fn cuts(&mut self, id: u32, flags: u32, cut: u32) -> Result<()> {
        let mut record = self.rig.datapath.backend(id)?;
        record.flags |= flags;
        record.cut = cut;
        Ok(self.rig.datapath.put_backend(id, &record)?)
    }

    /// A segment goes to each of these, whose reset is withheld.
    fn are_asked(&mut self, port: u16, ids: &[u32]) -> Result<()> {
        for id in ids {
            assert_eq!(self.sends(port, ACK)?.1, *id);
            assert!(!self.answers(*id, port, RST)?, "{id}");
        }
        Ok(())
    }

    fn client(&self, port: u16) -> SocketAddr {
        at(
            if self.service.vip.is_ipv4() {
                "192.0.2.7"
            } else {
                "2001:db8:1::7"
            },
            port,
        )
    }

    /// A client's segment in the middle of its flow: what became of it, and where it went.
    fn sends(&mut self, port: u16, flags: u8) -> Result<(Outcome, u32)> {
        self.says(port, flags, b"")
    }

    /// The same with data.
    fn says(&mut self, port: u16, flags: u8, data: &[u8]) -> Result<(Outcome, u32)> {
        let segment = Segment::new(self.client(port), self.service.vip, flags)
            .at(SEQUENCE, ANSWERED)
            .data(data);
        let (_, out, outcome) = self.rig.run(&segment.build())?;
        let to = if outcome.is_forward() {
            u32::from(Segment::parse(&out).expect("a sound frame").to_mac[5])
        } else {
            0
        };
        Ok((outcome, to))
    }

    /// Whether a backend's answer goes on, which acknowledges what the client has said.
    fn answers(&mut self, id: u32, port: u16, flags: u8) -> Result<bool> {
        let answer = self.answer(id, port, flags);
        self.goes_on(&answer)
    }

    /// Whether a backend's answer goes on that says more than that.
    fn tells(&mut self, id: u32, port: u16) -> Result<bool> {
        let answer = self.answer(id, port, ACK).data(b"more");
        self.goes_on(&answer)
    }

    fn answer(&self, id: u32, port: u16, flags: u8) -> Segment {
        let from = backend(&self.service, id);
        Segment::new(from, self.client(port), flags).at(ANSWERED, SEQUENCE + 1)
    }

    /// Whether it does. The rig's routes know no client: what goes on is left to the kernel.
    fn goes_on(&mut self, answer: &Segment) -> Result<bool> {
        let (verdict, out, outcome) = self.rig.run(&answer.build())?;
        if outcome == Outcome::DropSecondChance {
            assert_eq!(verdict, Verdict::Drop);
            assert_eq!(out, answer.build(), "what is withheld is left alone");
            return Ok(false);
        }
        assert!(
            matches!(outcome, Outcome::ForwardReply | Outcome::ForwardReplyKernel),
            "{outcome:?}"
        );
        Ok(true)
    }

    fn only_entry(&mut self) -> Result<Meta> {
        let entries = self.rig.entries(Table::Flows)?;
        assert_eq!(entries.len(), 1);
        Ok(Meta(entries[0].meta))
    }
}

fn backend(service: &ServiceSetup, id: u32) -> SocketAddr {
    let ip = if service.vip.is_ipv4() {
        format!("10.0.0.{id}")
    } else {
        format!("fd00::{id}")
    };
    at(&ip, if service.mode == mode::NAT { 8080 } else { 80 })
}

#[test]
fn the_bases_reset_is_withheld_and_the_flow_goes_to_the_other() -> Result<()> {
    for is_v4 in [true, false] {
        let mut stage = Stage::new(is_v4, mode::NAT, MOVED)?;
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardAdopted, OLD));
        assert!(stage.only_entry()?.has(state::GUESSED));
        assert!(!stage.answers(OLD, 1000, RST)?);
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
        let asked = stage.only_entry()?;
        assert!(asked.has(state::GUESSED) && !asked.has(state::EXCEPTIONAL));
        assert!(stage.answers(NEW, 1000, ACK)?);
        let known = stage.only_entry()?;
        assert!(!known.has(state::GUESSED) && known.has(state::EXCEPTIONAL));
        assert_eq!(known.backend(), NEW);
        // From here on its backend's resets are its own.
        assert!(stage.answers(NEW, 1000, RST)?);
        assert_eq!(stage.rig.stats(NEW)?.adopted, 1);
    }
    Ok(())
}

#[test]
fn every_segment_that_went_the_wrong_way_is_answered_and_no_answer_goes_on() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    for _ in 0..3 {
        assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    }
    for _ in 0..3 {
        assert!(!stage.answers(OLD, 1000, RST)?);
        assert_eq!(stage.sends(1000, ACK)?.1, NEW);
    }
    assert!(stage.answers(NEW, 1000, ACK)?);
    assert!(!stage.answers(OLD, 1000, RST)?, "late");
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
    Ok(())
}

#[test]
fn there_is_no_third_chance() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.sends(1000, ACK)?;
    assert!(!stage.answers(OLD, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?.1, NEW);
    assert!(stage.answers(NEW, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?.1, NEW);
    Ok(())
}

#[test]
fn whoever_has_answered_is_no_guess() -> Result<()> {
    for flags in [ACK, ACK | FIN] {
        let mut stage = Stage::new(true, mode::NAT, MOVED)?;
        stage.sends(1000, ACK)?;
        assert!(stage.answers(OLD, 1000, flags)?);
        assert!(!stage.only_entry()?.has(state::GUESSED));
        assert!(stage.answers(OLD, 1000, RST)?, "after {flags:02x}");
        assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    }
    Ok(())
}

/// A backend that still has another connection of the client's port in TIME-WAIT answers for that one.
#[test]
fn what_another_connection_answers_is_withheld() -> Result<()> {
    for is_v4 in [true, false] {
        let mut stage = Stage::new(is_v4, mode::NAT, MOVED)?;
        assert_eq!(stage.says(1000, ACK, b"more")?.1, OLD);
        let foreign = stage.answer(OLD, 1000, ACK);
        for (sequence, acknowledged) in [
            (ANSWERED.wrapping_add(1 << 31), SEQUENCE),
            (ANSWERED, SEQUENCE.wrapping_sub(1 << 31)),
        ] {
            let foreign = foreign.clone().at(sequence, acknowledged);
            assert!(!stage.goes_on(&foreign)?);
            assert_eq!(stage.says(1000, ACK, b"more")?.1, NEW);
            assert!(stage.only_entry()?.has(state::GUESSED));
            // Where the flow is, it is known by its numbers.
            assert!(stage.answers(NEW, 1000, ACK)?);
            assert!(!stage.only_entry()?.has(state::GUESSED));
            assert_eq!(stage.says(1000, ACK, b"more")?, (Outcome::ForwardFlow, NEW));
            stage.rig.lose(Table::Flows)?;
            assert_eq!(stage.says(1000, ACK, b"more")?.1, OLD);
        }
    }
    Ok(())
}

#[test]
fn what_acknowledges_nothing_new_holds_a_flow_for_two_tries() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    let near = stage.answer(OLD, 1000, ACK).at(ANSWERED + 9, SEQUENCE - 5);
    for _ in 0..2 {
        assert_eq!(stage.says(1000, ACK, b"more")?.1, OLD);
        for _ in 0..3 {
            assert!(stage.goes_on(&near)?, "something may be missing");
        }
    }
    assert_eq!(stage.says(1000, ACK, b"more")?.1, OLD);
    assert!(!stage.goes_on(&near)?);
    assert_eq!(stage.says(1000, ACK, b"more")?.1, NEW);
    Ok(())
}

#[test]
fn data_shows_where_the_flow_is_while_another_is_asked() -> Result<()> {
    let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[OTHER])?;
    assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    assert!(stage.tells(FOURTH, 1000)?, "a stranger's");
    let foreign = stage.answer(OTHER, 1000, ACK).data(b"more");
    let foreign = foreign.at(ANSWERED.wrapping_add(1 << 31), SEQUENCE);
    assert!(stage.goes_on(&foreign)?);
    assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    assert!(stage.tells(OTHER, 1000)?);
    assert!(!stage.only_entry()?.has(state::GUESSED));
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    Ok(())
}

#[test]
fn where_the_last_one_answers_for_another_the_base_tells_the_client() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.are_asked(1000, &[OLD])?;
    assert_eq!(stage.sends(1000, ACK)?.1, NEW);
    let foreign = stage.answer(NEW, 1000, ACK);
    assert!(!stage.goes_on(&foreign.at(ANSWERED.wrapping_add(1 << 31), SEQUENCE))?);
    assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    assert!(stage.answers(OLD, 1000, RST)?);
    Ok(())
}

#[test]
fn a_backend_that_ends_a_connection_is_heard() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.sends(1000, ACK)?;
    assert!(stage.answers(OLD, 1000, RST | ACK)?);
    assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    Ok(())
}

#[test]
fn without_room_for_an_entry_the_reset_is_withheld_all_the_same() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.rig.limit(0, 0)?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardUnlisted, OLD));
    assert!(!stage.answers(OLD, 1000, RST)?);
    assert!(stage.rig.entries(Table::Flows)?.is_empty());
    // As soon as there is room, its next packet finds the way.
    stage.rig.limit(1000, 1000)?;
    assert!(!stage.answers(OLD, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
    Ok(())
}

#[test]
fn data_from_the_current_backend_shows_where_the_flow_is() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    // What acknowledges something may be of another connection of the client's port.
    assert!(stage.answers(NEW, 1000, ACK)?);
    assert!(stage.rig.entries(Table::Flows)?.is_empty());
    assert!(stage.tells(NEW, 1000)?);
    let known = stage.only_entry()?;
    assert_eq!(
        (known.backend(), known.has(state::EXCEPTIONAL)),
        (NEW, true)
    );
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
    // The base's data shows nothing that is not known, and a stranger's nothing at all.
    for (id, port) in [(OLD, 1001), (OTHER, 1002)] {
        assert!(stage.tells(id, port)?);
        assert_eq!(stage.rig.entries(Table::Flows)?.len(), 1);
        assert_eq!(stage.sends(port, ACK)?.1, OLD);
        stage.rig.lose(Table::Flows)?;
        stage.tells(NEW, 1000)?;
    }
    Ok(())
}

#[test]
fn resets_go_on_where_there_is_no_question() -> Result<()> {
    let cases = [
        ("unmoved", mode::NAT, UNMOVED),
        ("unmoved with exceptions", mode::NAT, EXCEPTIONS),
    ];
    for (what, mode, slot) in cases {
        let mut stage = Stage::new(true, mode, slot)?;
        let (_, to) = stage.sends(1000, ACK)?;
        assert!(stage.answers(to, 1000, RST)?, "{what}");
        assert_eq!(stage.sends(1000, ACK)?.1, to, "{what}");
    }
    // A stranger's reset, and one where the other has ended.
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    assert!(stage.answers(OTHER, 1000, RST)?);
    stage.rig.flags(NEW, backend_flags::ENDED, 0)?;
    stage.sends(1000, ACK)?;
    assert!(stage.answers(OLD, 1000, RST)?);
    Ok(())
}

#[test]
fn who_asks_after_a_backend_that_has_ended_is_told() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    assert_eq!(stage.sends(1000, ACK)?.1, OLD);
    assert!(stage.answers(OLD, 1000, ACK)?);
    stage.rig.flags(OLD, backend_flags::ENDED, 0)?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardOrphan, NEW));
    assert!(stage.answers(NEW, 1000, RST)?);
    Ok(())
}

/// The server that an opening met still has an older connection of these ports: the client's reset must reach it.
#[test]
fn a_reset_that_answers_an_openings_answer_goes_where_the_opening_went() -> Result<()> {
    for mode in [mode::NAT, mode::L2] {
        let mut stage = Stage::new(true, mode, MOVED)?;
        let syn = Segment::new(stage.client(1000), stage.service.vip, SYN).at(900_000_000, 0);
        assert_eq!(stage.rig.run(&syn.build())?.2, Outcome::ForwardOpening);
        assert_eq!(stage.sends(1000, RST)?, (Outcome::ForwardHandshake, NEW));
        assert!(stage.rig.entries(Table::Flows)?.is_empty());

        // The same where an entry of the older connection stands, on another backend.
        assert_eq!(stage.sends(1001, ACK)?.1, OLD);
        let syn = Segment::new(stage.client(1001), stage.service.vip, SYN).at(900_000_000, 0);
        assert_eq!(stage.rig.run(&syn.build())?.2, Outcome::ForwardOpening);
        assert_eq!(stage.sends(1001, RST)?, (Outcome::ForwardHandshake, NEW));
        // A reset that has nothing to do with an opening goes where its flow is.
        assert_eq!(stage.sends(1002, ACK)?.1, OLD);
        assert_eq!(stage.sends(1002, RST)?.1, OLD);
    }
    Ok(())
}

#[test]
fn a_handshake_in_flight_is_no_question() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    assert_eq!(stage.sends(1000, SYN)?, (Outcome::ForwardOpening, NEW));
    assert!(stage.answers(NEW, 1000, SYN | ACK)?);
    assert!(stage.answers(NEW, 1000, RST)?);
    assert!(stage.rig.entries(Table::Flows)?.is_empty());
    Ok(())
}

#[test]
fn a_flood_of_guesses_leaves_room_for_flows_that_need_it() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.sends(1000, ACK)?;
    assert!(!stage.answers(OLD, 1000, RST)?);
    let entries = stage.rig.entries(Table::Flows)?;
    // What no client follows up never becomes an entry that does not give way.
    assert!(
        entries
            .iter()
            .all(|entry| !Meta(entry.meta).has(state::EXCEPTIONAL))
    );
    Ok(())
}

#[test]
fn who_owned_the_slot_in_between_is_asked_after_both() -> Result<()> {
    for is_v4 in [true, false] {
        let mut stage = Stage::with_formers(is_v4, mode::NAT, MOVED, &[OTHER, FOURTH])?;
        // It takes the flow.
        stage.are_asked(1000, &[OLD, NEW])?;
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
        let asked = stage.only_entry()?;
        assert!(asked.has(state::GUESSED) && !asked.has(state::EXCEPTIONAL));
        assert!(stage.answers(OTHER, 1000, ACK)?);
        let known = stage.only_entry()?;
        assert!(!known.has(state::GUESSED) && known.has(state::EXCEPTIONAL));
        assert_eq!(known.backend(), OTHER);
        assert!(!stage.answers(NEW, 1000, RST)?, "late");
        assert!(stage.answers(OTHER, 1000, RST)?, "its own");

        // Or does not, and the one before it does not either: then the client is told.
        stage.rig.lose(Table::Flows)?;
        stage.are_asked(1001, &[OLD, NEW, OTHER])?;
        assert_eq!(stage.sends(1001, ACK)?.1, FOURTH);
        assert!(stage.answers(FOURTH, 1001, RST)?, "nobody is left");
        assert!(!stage.only_entry()?.has(state::GUESSED));
    }
    Ok(())
}

#[test]
fn six_former_owners_are_asked_each_once() -> Result<()> {
    let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[8, 3, 7, 4, 6, 5])?;
    stage.are_asked(1000, &[OLD, NEW, 8, 3, 7, 4, 6])?;
    assert_eq!(stage.sends(1000, ACK)?.1, 5);
    assert!(stage.answers(5, 1000, RST)?);
    Ok(())
}

#[test]
fn a_slot_that_is_its_bases_again_remembers_who_had_it() -> Result<()> {
    let mut stage = Stage::with_formers(true, mode::NAT, UNMOVED, &[OTHER])?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardAdopted, OLD));
    assert!(stage.only_entry()?.has(state::GUESSED));
    assert!(!stage.answers(OLD, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    assert!(stage.answers(OTHER, 1000, ACK)?);
    assert!(stage.only_entry()?.has(state::EXCEPTIONAL));
    // A stranger's reset is nobody's question.
    assert!(stage.answers(FOURTH, 1001, RST)?);
    Ok(())
}

#[test]
fn who_has_ended_is_not_asked() -> Result<()> {
    let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[OTHER, FOURTH])?;
    for id in [NEW, OTHER] {
        stage.rig.flags(id, backend_flags::ENDED, 0)?;
    }
    stage.are_asked(1000, &[OLD])?;
    assert_eq!(stage.sends(1000, ACK)?.1, FOURTH);
    assert!(stage.answers(FOURTH, 1000, RST)?, "nobody is left");
    // Where that is the base, the current owner is the first.
    let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[OTHER])?;
    stage.rig.flags(OLD, backend_flags::ENDED, 0)?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardSecondChance, NEW));
    assert!(!stage.answers(NEW, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    assert!(stage.answers(OTHER, 1000, RST)?);
    Ok(())
}

#[test]
fn whose_flows_are_cut_is_asked_last() -> Result<()> {
    let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[OTHER])?;
    stage.cuts(NEW, backend_flags::CUT_RESET, u32::MAX)?;
    stage.are_asked(1000, &[OLD])?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    assert!(!stage.answers(OTHER, 1000, RST)?);
    assert_eq!(
        stage.sends(1000, ACK)?.0,
        Outcome::ResetDeadline,
        "nobody else has it"
    );
    // Nor is the flow of a former owner cut with those of both others.
    for flags in [backend_flags::CUT_RESET, backend_flags::CUT_DROP] {
        let mut stage = Stage::with_formers(true, mode::NAT, MOVED, &[OTHER])?;
        for id in [OLD, NEW] {
            stage.cuts(id, flags, u32::MAX)?;
        }
        let asked = (Outcome::ForwardSecondChance, OTHER);
        assert_eq!(stage.sends(1000, ACK)?, asked);
        assert!(stage.answers(OTHER, 1000, ACK)?);
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    }
    Ok(())
}

#[test]
fn data_from_a_former_owner_shows_where_the_flow_is() -> Result<()> {
    for slot in [MOVED, UNMOVED] {
        let mut stage = Stage::with_formers(true, mode::NAT, slot, &[FOURTH, OTHER])?;
        assert!(stage.tells(OTHER, 1000)?);
        let known = stage.only_entry()?;
        assert!(known.has(state::EXCEPTIONAL) && !known.has(state::GUESSED));
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, OTHER));
    }
    Ok(())
}

#[test]
fn a_flow_of_the_current_backend_is_not_cut_with_the_bases() -> Result<()> {
    for is_v4 in [true, false] {
        let mut stage = Stage::new(is_v4, mode::NAT, MOVED)?;
        stage.cuts(OLD, backend_flags::CUT_RESET, u32::MAX)?;
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardSecondChance, NEW));
        let asked = stage.only_entry()?;
        assert!(asked.has(state::GUESSED) && !asked.has(state::EXCEPTIONAL));
        assert!(stage.answers(NEW, 1000, ACK)?);
        let known = stage.only_entry()?;
        assert!(!known.has(state::GUESSED) && known.has(state::EXCEPTIONAL));
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
        assert_eq!(stage.rig.stats(NEW)?.adopted, 1);
        // Data that comes first says as much.
        stage.rig.lose(Table::Flows)?;
        assert!(stage.tells(NEW, 1000)?);
        assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
    }
    Ok(())
}

#[test]
fn a_flow_of_the_base_is_cut_once_nobody_else_has_it() -> Result<()> {
    for is_v4 in [true, false] {
        for (flag, expected) in [
            (backend_flags::CUT_RESET, Outcome::ResetDeadline),
            (backend_flags::CUT_DROP, Outcome::DropDeadline),
        ] {
            let mut stage = Stage::new(is_v4, mode::NAT, MOVED)?;
            stage.cuts(OLD, flag, u32::MAX)?;
            stage.are_asked(1000, &[NEW])?;
            assert_eq!(stage.sends(1000, ACK)?.0, expected);
            let mut stage = Stage::with_formers(is_v4, mode::NAT, MOVED, &[OTHER, FOURTH])?;
            stage.cuts(OLD, flag, u32::MAX)?;
            stage.are_asked(1000, &[NEW, OTHER, FOURTH])?;
            assert_eq!(stage.sends(1000, ACK)?.0, expected);
            assert_eq!(stage.sends(1000, ACK)?.0, expected);
        }
    }
    Ok(())
}

#[test]
fn a_flow_whose_turn_has_not_come_is_the_bases_first() -> Result<()> {
    let mut stage = Stage::new(true, mode::NAT, MOVED)?;
    stage.cuts(OLD, backend_flags::CUT_RESET, 0)?;
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardAdopted, OLD));
    assert!(!stage.answers(OLD, 1000, RST)?);
    assert_eq!(stage.sends(1000, ACK)?, (Outcome::ForwardFlow, NEW));
    Ok(())
}

#[test]
fn what_is_the_bases_or_can_not_be_asked_is_cut_at_once() -> Result<()> {
    let cut = |slot, mode| -> Result<Stage> {
        let mut stage = Stage::new(true, mode, slot)?;
        stage.cuts(OLD, backend_flags::CUT_RESET, u32::MAX)?;
        Ok(stage)
    };
    let mut in_l2 = cut(MOVED, mode::L2)?;
    let mut without_room = cut(MOVED, mode::NAT)?;
    without_room.rig.limit(0, 0)?;
    let mut without_current = cut(Slot::new(0, OLD, false), mode::NAT)?;
    let mut after_current = cut(MOVED, mode::NAT)?;
    after_current.rig.flags(NEW, backend_flags::ENDED, 0)?;
    let mut with_current = cut(MOVED, mode::NAT)?;
    with_current.cuts(NEW, backend_flags::CUT_RESET, u32::MAX)?;
    let mut listed = Stage::new(true, mode::NAT, MOVED)?;
    assert_eq!(listed.sends(1000, ACK)?.1, OLD);
    assert!(listed.answers(OLD, 1000, ACK)?);
    listed.cuts(OLD, backend_flags::CUT_RESET, u32::MAX)?;
    for (what, stage) in [
        ("answers are not seen", &mut in_l2),
        ("no room", &mut without_room),
        ("no current owner", &mut without_current),
        ("it has ended", &mut after_current),
        ("it is cut too", &mut with_current),
        ("its entry says so", &mut listed),
    ] {
        assert_eq!(stage.sends(1000, ACK)?.0, Outcome::ResetDeadline, "{what}");
    }
    let mut stage = cut(MOVED, mode::NAT)?;
    stage.rig.flags(OLD, backend_flags::DEAD, 0)?;
    assert_eq!(stage.sends(1000, ACK)?.0, Outcome::ResetDead);
    // The base is to hear that its client has reset a connection.
    let mut stage = cut(MOVED, mode::NAT)?;
    assert_eq!(stage.sends(1000, RST)?, (Outcome::ForwardBase, OLD));
    Ok(())
}

//! The loaded program, packet by packet: every line of the steering table, both modes, both families, every
//! truncation. Needs root.

use std::{net::SocketAddr, time::Instant};

use anyhow::Result;
use ebb_tests::{
    packets::Segment,
    rig::{INGRESS, Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    abi::{Slot, backend_flags, mode, service_flags},
    entry::{Meta, state},
    limits::SEEN_SHIFT,
    outcome::Outcome,
    steer::tcp::{ACK, FIN, RST, SYN},
};
use lb_userspace::{
    datapath::{
        Datapath, Table,
        bpf::{self, VALUE_MAX},
    },
    model::spec::{ClientAction, ClientRules},
};

const OLD: u32 = 1;
const NEW: u32 = 2;
const OTHER: u32 = 3;
const SLOTS: usize = 101;

fn client(port: u16) -> SocketAddr {
    at("192.0.2.7", port)
}

const NAT: ServiceSetup = ServiceSetup {
    id: 1,
    vip: SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10)),
        80,
    ),
    mode: mode::NAT,
    flags: 0,
};
const L2: ServiceSetup = ServiceSetup {
    mode: mode::L2,
    ..NAT
};

fn v6(mode: u8) -> ServiceSetup {
    ServiceSetup {
        id: 2,
        vip: at("2001:db8:f::10", 80),
        mode,
        flags: 0,
    }
}

/// A rig with one service, all of whose slots are `slot`, and three backends.
fn rig(service: &ServiceSetup, slot: Slot) -> Result<Rig> {
    let mut rig = Rig::new()?;
    add(&mut rig, service, slot)?;
    Ok(rig)
}

fn backend_address(service: &ServiceSetup, id: u32) -> SocketAddr {
    let port = if service.mode == mode::NAT {
        8080
    } else {
        service.vip.port()
    };
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{id}"), port)
    } else {
        at(&format!("fd00::{id}"), port)
    }
}

fn add(rig: &mut Rig, service: &ServiceSetup, slot: Slot) -> Result<()> {
    for id in [OLD, NEW, OTHER] {
        rig.backend(service, id, backend_address(service, id))?;
    }
    rig.service(*service, &[slot; SLOTS])
}

/// Sends a segment from a client to the service and says where it went and why.
fn send(rig: &mut Rig, segment: &Segment) -> Result<(Outcome, u32)> {
    let (verdict, out, outcome) = rig.run(&segment.build())?;
    if outcome.is_forward() {
        assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
        let sent = Segment::parse(&out).expect("a sound frame");
        return Ok((outcome, u32::from(sent.to_mac[5])));
    }
    Ok((outcome, 0))
}

fn segment(service: &ServiceSetup, port: u16, flags: u8) -> Segment {
    let from = if service.vip.is_ipv4() {
        client(port)
    } else {
        at("2001:db8:1::7", port)
    };
    Segment::new(from, service.vip, flags)
}

fn syn(port: u16, isn: u32) -> Segment {
    segment(&NAT, port, SYN).at(isn, 0)
}

fn ack(port: u16, sequence: u32) -> Segment {
    segment(&NAT, port, ACK).at(sequence, 5000)
}

const UNMOVED: Slot = Slot::new(OLD, OLD, false);
const MOVED: Slot = Slot::new(NEW, OLD, false);
const EXCEPTIONS: Slot = Slot::new(NEW, NEW, true);

#[test]
fn unmoved_slots_need_no_table() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    for port in 1000..1040 {
        assert_eq!(
            send(&mut rig, &ack(port, 7))?,
            (Outcome::ForwardSteady, OLD)
        );
    }
    assert!(rig.entries(Table::Flows)?.is_empty());
    assert!(rig.entries(Table::Handshakes)?.is_empty());
    assert_eq!(rig.stats(OLD)?.packets, 40);
    assert_eq!(rig.stats(OLD)?.bytes, 40 * 54);
    Ok(())
}

/// A drain must know that somebody lives whom nobody sees until the next packet.
#[test]
fn entries_that_give_way_while_their_flows_live_are_counted() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    rig.limit(u32::MAX, u32::MAX)?;
    let of_the_base = |rig: &mut Rig| -> Result<u64> {
        let entries = rig.entries(Table::Flows)?.into_iter();
        let kept = entries.filter(|entry| !Meta(entry.meta).has(state::EXCEPTIONAL));
        Ok(kept.count() as u64)
    };
    for port in 1000..3000 {
        rig.run_fast(&ack(port, 7).build())?;
    }
    let listed = of_the_base(&mut rig)?;
    assert_eq!(rig.datapath.gave_way(NAT.id)?, 0, "all were just seen");
    // Exceptional ones, which take the place of any that are not.
    for port in 3000..3300 {
        rig.run_fast(&syn(port, 1).build())?;
        rig.run_fast(&ack(port, 2).build())?;
    }
    let left = of_the_base(&mut rig)?;
    assert!(left < listed, "{left} of {listed}");
    assert_eq!(rig.datapath.gave_way(NAT.id)?, listed - left);
    Ok(())
}

/// Tables as one value each, and as arrays of records where the kernel keeps no such values (Linux 6.1 none beyond 4 MiB).
#[test]
fn tables_are_the_same_in_values_and_in_arrays() -> Result<()> {
    // Each alone of the control record, some tables in values and some not, all of them.
    for value_max in [0, 8192, VALUE_MAX] {
        let mut rig = Rig::with_values_of(value_max)?;
        add(&mut rig, &NAT, MOVED)?;
        let mut is = |segment: &Segment, outcome, backend| -> Result<()> {
            assert_eq!(send(&mut rig, segment)?, (outcome, backend), "{value_max}");
            Ok(())
        };
        is(&ack(1000, 7), Outcome::ForwardAdopted, OLD)?;
        is(&ack(1000, 8), Outcome::ForwardFlow, OLD)?;
        is(&syn(2000, 1), Outcome::ForwardOpening, NEW)?;
        rig.service(NAT, &[UNMOVED; SLOTS])?;
        assert_eq!(
            send(&mut rig, &ack(3000, 7))?,
            (Outcome::ForwardSteady, OLD)
        );
        rig.service(L2, &[UNMOVED; SLOTS])?;
        assert_eq!(
            send(&mut rig, &ack(3000, 7))?,
            (Outcome::ForwardSteady, OLD)
        );
    }
    Ok(())
}

#[test]
fn a_rig_that_is_used_again_is_as_new() -> Result<()> {
    for _ in 0..3 {
        let mut rig = rig(&NAT, MOVED)?;
        assert_eq!(rig.stats(OLD)?.packets, 0);
        for table in [Table::Flows, Table::Handshakes] {
            assert!(rig.entries(table)?.is_empty(), "{table:?}");
        }
        assert_eq!(send(&mut rig, &ack(1000, 7))?.1, OLD);
        assert_eq!(send(&mut rig, &syn(1001, 7))?.1, NEW);
        for table in [Table::Flows, Table::Handshakes] {
            assert_eq!(rig.entries(table)?.len(), 1, "{table:?}");
        }
        drop(rig);
        let mut rig = Rig::new()?;
        let outcome = rig.run(&syn(1001, 7).build())?.2;
        assert_eq!(outcome, Outcome::PassNoService);
    }
    Ok(())
}

#[test]
fn opening_goes_to_current_and_is_recorded() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &syn(1000, 77))?,
        (Outcome::ForwardOpening, NEW)
    );
    let entries = rig.entries(Table::Handshakes)?;
    assert_eq!(entries.len(), 1);
    let meta = Meta(entries[0].meta);
    assert_eq!((meta.isn(), meta.backend()), (77, NEW));
    assert_eq!(rig.stats(NEW)?.opened, 1);
    Ok(())
}

#[test]
fn retransmitted_opening_stays_where_the_first_one_went() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    assert_eq!(
        send(&mut rig, &syn(1000, 77))?,
        (Outcome::ForwardOpening, OLD)
    );
    rig.datapath.publish_table(NAT.id, &[MOVED; SLOTS], &[])?;
    assert_eq!(
        send(&mut rig, &syn(1000, 77))?,
        (Outcome::ForwardRetransmit, OLD)
    );
    assert_eq!(
        (rig.stats(OLD)?.opened, rig.stats(OLD)?.retransmits),
        (1, 1)
    );
    Ok(())
}

#[test]
fn handshake_across_the_start_of_a_drain_completes_on_its_first_backend() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    send(&mut rig, &syn(1000, 77))?;
    rig.datapath.publish_table(NAT.id, &[MOVED; SLOTS], &[])?;
    rig.flags(OLD, 0, backend_flags::ACCEPTING)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 78))?,
        (Outcome::ForwardHandshake, OLD)
    );
    assert_eq!(
        send(&mut rig, &ack(1000, 90_000))?,
        (Outcome::ForwardFlow, OLD)
    );
    Ok(())
}

#[test]
fn reused_port_is_a_new_flow() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    send(&mut rig, &syn(1000, 77))?;
    send(&mut rig, &ack(1000, 78))?;
    rig.datapath.publish_table(NAT.id, &[MOVED; SLOTS], &[])?;
    // Adopted on the old backend, then the client opens again from the same port.
    assert_eq!(
        send(&mut rig, &ack(1000, 99_000))?,
        (Outcome::ForwardAdopted, OLD)
    );
    assert_eq!(
        send(&mut rig, &syn(1000, 500_000))?,
        (Outcome::ForwardOpening, NEW)
    );
    assert_eq!(
        send(&mut rig, &ack(1000, 500_001))?,
        (Outcome::ForwardFlow, NEW)
    );
    assert_eq!(
        send(&mut rig, &ack(1000, 700_000))?,
        (Outcome::ForwardFlow, NEW)
    );
    // The old flow of the port is over, and counted so once.
    assert_eq!((rig.stats(OLD)?.opened, rig.stats(OLD)?.closed), (1, 1));
    assert_eq!((rig.stats(NEW)?.opened, rig.stats(NEW)?.closed), (1, 0));
    Ok(())
}

#[test]
fn forged_opening_moves_no_established_flow() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 99_000))?,
        (Outcome::ForwardAdopted, OLD)
    );
    send(&mut rig, &syn(1000, 3_000_000))?;
    assert_eq!(
        send(&mut rig, &ack(1000, 99_100))?,
        (Outcome::ForwardFlow, OLD)
    );
    // Nor one that has no entry yet.
    send(&mut rig, &syn(1001, 3_000_000))?;
    assert_eq!(
        send(&mut rig, &ack(1001, 99_000))?,
        (Outcome::ForwardAdopted, OLD)
    );
    Ok(())
}

#[test]
fn flow_begun_in_a_moved_slot_gets_an_entry_when_its_handshake_is_done() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    send(&mut rig, &syn(1000, 77))?;
    assert!(rig.entries(Table::Flows)?.is_empty());
    assert_eq!(
        send(&mut rig, &ack(1000, 78))?,
        (Outcome::ForwardHandshake, NEW)
    );
    let flows = rig.entries(Table::Flows)?;
    assert_eq!(flows.len(), 1);
    assert!(Meta(flows[0].meta).has(state::EXCEPTIONAL));
    // The handshake table may now lose it.
    rig.lose(Table::Handshakes)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 1_000_000))?,
        (Outcome::ForwardFlow, NEW)
    );
    Ok(())
}

#[test]
fn unknown_flow_goes_to_base_and_is_adopted() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    assert_eq!(send(&mut rig, &ack(1000, 8))?, (Outcome::ForwardFlow, OLD));
    assert_eq!(rig.stats(OLD)?.adopted, 1);
    // Its opening was never counted here, so neither is its close.
    send(&mut rig, &segment(&NAT, 1000, RST).at(9, 0))?;
    assert_eq!(rig.stats(OLD)?.closed, 0);
    rig.lose(Table::Flows)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 9))?,
        (Outcome::ForwardAdopted, OLD)
    );
    Ok(())
}

#[test]
fn a_flow_without_entry_still_reaches_its_owner() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    // The table has 1024 entries; ten times as many flows.
    for port in 10_000..20_000 {
        let (outcome, backend) = send(&mut rig, &ack(port, 7))?;
        assert_eq!(backend, OLD);
        assert!(
            matches!(outcome, Outcome::ForwardAdopted | Outcome::ForwardUnlisted),
            "{outcome:?}"
        );
    }
    assert!(rig.entries(Table::Flows)?.len() <= 1024);
    Ok(())
}

#[test]
fn adoption_is_bounded() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    rig.limit(u32::MAX, 0)?;
    for port in 1000..1010 {
        assert_eq!(
            send(&mut rig, &ack(port, 7))?,
            (Outcome::ForwardUnlisted, OLD)
        );
    }
    assert!(rig.entries(Table::Flows)?.is_empty());
    rig.limit(u32::MAX, 1)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    Ok(())
}

#[test]
fn exceptional_flows_never_give_way_to_adopted_ones() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    let mut mine = Vec::new();
    for port in 1000..1100 {
        send(&mut rig, &syn(port, 77))?;
        if send(&mut rig, &ack(port, 78))?.0 == Outcome::ForwardHandshake {
            mine.push(port);
        }
    }
    for port in 10_000..20_000 {
        send(&mut rig, &ack(port, 7))?;
    }
    rig.lose(Table::Handshakes)?;
    for port in mine {
        assert_eq!(
            send(&mut rig, &ack(port, 1_000_000))?,
            (Outcome::ForwardFlow, NEW),
            "{port}"
        );
    }
    Ok(())
}

#[test]
fn settled_slot_with_exceptions_keeps_listed_flows_and_sends_others_to_its_owner() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    rig.datapath
        .publish_table(NAT.id, &[EXCEPTIONS; SLOTS], &[])?;
    assert_eq!(send(&mut rig, &ack(1000, 8))?, (Outcome::ForwardFlow, OLD));
    assert_eq!(send(&mut rig, &ack(1001, 7))?, (Outcome::ForwardBase, NEW));
    assert_eq!(rig.entries(Table::Flows)?.len(), 1);
    Ok(())
}

#[test]
fn ended_backend_gets_nothing_any_more() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    rig.flags(OLD, backend_flags::ENDED, 0)?;
    assert_eq!(
        send(&mut rig, &ack(1000, 8))?,
        (Outcome::ForwardOrphan, NEW)
    );
    assert_eq!(
        send(&mut rig, &ack(1001, 8))?,
        (Outcome::ForwardOrphan, NEW)
    );
    Ok(())
}

#[test]
fn closes_are_counted_once() -> Result<()> {
    for (service, fins) in [(L2, 1), (NAT, 2)] {
        let mut rig = rig(&service, UNMOVED)?;
        send(&mut rig, &segment(&service, 1000, SYN).at(77, 0))?;
        send(&mut rig, &segment(&service, 1000, ACK).at(78, 1))?;
        for _ in 0..3 {
            send(&mut rig, &segment(&service, 1000, FIN | ACK).at(78, 1))?;
        }
        assert_eq!(
            rig.stats(OLD)?.closed,
            u64::from(fins == 1),
            "mode {}",
            service.mode
        );
        if service.mode == mode::NAT {
            let reply = Segment::new(backend_address(&service, OLD), client(1000), FIN | ACK);
            for _ in 0..3 {
                rig.run(&reply.build())?;
            }
            assert_eq!(rig.stats(OLD)?.closed, 1);
        }
        // A reset after it changes nothing, a reset of another flow counts.
        send(&mut rig, &segment(&service, 1000, RST).at(78, 1))?;
        assert_eq!(rig.stats(OLD)?.closed, 1);
        send(&mut rig, &segment(&service, 1001, SYN).at(77, 0))?;
        send(&mut rig, &segment(&service, 1001, RST).at(78, 1))?;
        assert_eq!((rig.stats(OLD)?.opened, rig.stats(OLD)?.closed), (2, 2));
    }
    Ok(())
}

#[test]
fn close_of_a_listed_flow_is_counted_once() -> Result<()> {
    let mut rig = rig(&L2, UNMOVED)?;
    let of = |port, flags, sequence| segment(&L2, port, flags).at(sequence, 1);
    send(&mut rig, &of(1000, SYN, 77))?;
    rig.datapath.publish_table(L2.id, &[MOVED; SLOTS], &[])?;
    assert_eq!(
        send(&mut rig, &of(1000, ACK, 78))?,
        (Outcome::ForwardHandshake, OLD)
    );
    send(&mut rig, &of(1000, FIN | ACK, 78))?;
    send(&mut rig, &of(1000, FIN | ACK, 78))?;
    assert_eq!((rig.stats(OLD)?.opened, rig.stats(OLD)?.closed), (1, 1));
    // The port again: its old flow is not counted as closed a second time.
    send(&mut rig, &of(1000, SYN, 900_000))?;
    assert_eq!(rig.stats(OLD)?.closed, 1);
    Ok(())
}

#[test]
fn full_tracking_lists_every_flow() -> Result<()> {
    let service = ServiceSetup {
        flags: service_flags::TRACK_ALL,
        ..NAT
    };
    let mut rig = rig(&service, UNMOVED)?;
    send(&mut rig, &syn(1000, 77))?;
    assert_eq!(
        send(&mut rig, &ack(1000, 78))?,
        (Outcome::ForwardHandshake, OLD)
    );
    assert_eq!(
        send(&mut rig, &ack(1001, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    assert_eq!(rig.entries(Table::Flows)?.len(), 2);
    Ok(())
}

/// Its packets look at the entry once in a while only, and that soon enough for whoever asks when the flow was last seen.
#[test]
fn the_entry_of_a_listed_flow_is_never_later_than_it_may_be() -> Result<()> {
    let service = ServiceSetup {
        flags: service_flags::TRACK_ALL,
        ..NAT
    };
    let mut rig = rig(&service, UNMOVED)?;
    let late = 4;
    rig.service_with(service, &[UNMOVED; SLOTS], |record| {
        record.set_idle(late << SEEN_SHIFT);
    })?;
    let packet = ack(1000, 7);
    send(&mut rig, &packet)?;
    let began = rig.datapath.now_ticks();
    let mut times = std::collections::BTreeSet::new();
    let mut rounds = 0;
    while rounds < 20 {
        let before = rig.datapath.now_ticks();
        assert_eq!(send(&mut rig, &packet)?, (Outcome::ForwardFlow, OLD));
        let seen = rig.entries(Table::Flows)?[0].seen;
        assert!(
            before.wrapping_sub(seen) as i32 <= late as i32,
            "seen at {seen}, but at {before} as well"
        );
        rounds += u32::from(times.insert(seen));
    }
    // A store for every tick would have the line written back again and again.
    let ticks = rig.datapath.now_ticks() - began;
    assert!(ticks >= 18 * late, "{rounds} stores in {ticks} ticks");
    Ok(())
}

#[test]
fn client_affinity_ignores_the_port() -> Result<()> {
    let service = ServiceSetup {
        flags: service_flags::AFFINITY_CLIENT,
        ..NAT
    };
    let mut rig = rig(&service, UNMOVED)?;
    let mut slots: Vec<Slot> = (0..SLOTS)
        .map(|k| {
            if k % 2 == 0 {
                UNMOVED
            } else {
                Slot::new(NEW, NEW, false)
            }
        })
        .collect();
    slots[0] = UNMOVED;
    rig.datapath.publish_table(service.id, &slots, &[])?;
    let first = send(&mut rig, &ack(1000, 7))?.1;
    for port in 1001..1050 {
        assert_eq!(send(&mut rig, &ack(port, 7))?.1, first);
    }
    let ends: std::collections::BTreeSet<u32> = (1..40)
        .map(|n| {
            let packet = Segment::new(at(&format!("192.0.2.{n}"), 1000), service.vip, ACK);
            send(&mut rig, &packet).map(|(_, backend)| backend)
        })
        .collect::<Result<_>>()?;
    assert_eq!(ends.len(), 2, "clients spread over the backends");
    Ok(())
}

#[test]
fn nobody_to_take_an_opening() -> Result<()> {
    let mut rig = rig(&NAT, Slot::new(0, OLD, false))?;
    assert_eq!(rig.run(&syn(1000, 7).build())?.0, Verdict::Drop);
    assert_eq!(send(&mut rig, &syn(1000, 7))?, (Outcome::DropNoBackend, 0));
    assert_eq!(
        send(&mut rig, &ack(1001, 7))?,
        (Outcome::ForwardAdopted, OLD)
    );
    Ok(())
}

#[test]
fn backend_without_next_hop() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    rig.flags(OLD, 0, backend_flags::NEXT_HOP)?;
    assert_eq!(send(&mut rig, &ack(1000, 7))?, (Outcome::DropNoNextHop, 0));
    Ok(())
}

#[test]
fn l2_changes_the_macs_alone() -> Result<()> {
    for service in [L2, v6(mode::L2)] {
        let mut rig = rig(&service, UNMOVED)?;
        let sent = segment(&service, 1000, ACK).data(b"hello");
        let (verdict, out, outcome) = rig.run(&sent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardSteady));
        let (to_mac, from_mac) = backend_macs(OLD);
        assert_eq!(
            Segment::parse(&out).unwrap(),
            Segment {
                to_mac,
                from_mac,
                ..sent
            }
        );
    }
    Ok(())
}

#[test]
fn nat_changes_address_port_and_ttl_and_keeps_the_client() -> Result<()> {
    for service in [NAT, v6(mode::NAT)] {
        let mut rig = rig(&service, UNMOVED)?;
        for data in [&b""[..], b"a", b"odd", b"even", &[0xff; 1200]] {
            let sent = segment(&service, 1000, ACK).data(data);
            let (verdict, out, _) = rig.run(&sent.build())?;
            assert_eq!(verdict, Verdict::Tx);
            let (to_mac, from_mac) = backend_macs(OLD);
            let to = backend_address(&service, OLD);
            assert_eq!(
                Segment::parse(&out).unwrap(),
                Segment {
                    to_mac,
                    from_mac,
                    to,
                    ttl: 63,
                    ..sent
                }
            );
        }
    }
    Ok(())
}

#[test]
fn nat_turns_answers_back() -> Result<()> {
    for service in [NAT, v6(mode::NAT)] {
        let mut rig = rig(&service, UNMOVED)?;
        let known = if service.vip.is_ipv4() {
            at("192.0.2.1", 1000)
        } else {
            at("2001:db8:1::1", 1000)
        };
        let answer = Segment::new(backend_address(&service, OLD), known, ACK).data(b"answer");
        let (verdict, out, outcome) = rig.run(&answer.build())?;
        // The way to the client leaves by another interface than the answer came in by.
        assert_eq!(
            (verdict, outcome),
            (Verdict::Redirect, Outcome::ForwardReply)
        );
        let macs = ([2, 0, 0, 0, 0, 0xc1], [2, 0, 0, 0, 0, 1]);
        let expected = Segment {
            to_mac: macs.0,
            from_mac: macs.1,
            from: service.vip,
            ttl: 63,
            ..answer.clone()
        };
        assert_eq!(Segment::parse(&out).unwrap(), expected);
        assert_eq!(rig.stats(OLD)?.reply_packets, 1);

        // A client whose neighbour the kernel has to find first.
        let unknown = if service.vip.is_ipv4() {
            at("192.0.2.9", 1000)
        } else {
            at("2001:db8:1::9", 1000)
        };
        let answer = Segment {
            to: unknown,
            ..answer
        };
        let (verdict, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Pass, Outcome::ForwardReplyKernel)
        );
        assert_eq!(
            Segment::parse(&out).unwrap(),
            Segment {
                from: service.vip,
                ..answer
            }
        );
    }
    Ok(())
}

#[test]
fn answers_to_the_node_itself_are_not_touched() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    let answer = Segment::new(
        backend_address(&NAT, OLD),
        at("192.0.2.254", 40_000),
        SYN | ACK,
    );
    let (verdict, out, outcome) = rig.run(&answer.build())?;
    assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassReplyLocal));
    assert_eq!(out, answer.build());
    Ok(())
}

#[test]
fn used_up_time_to_live() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    for ttl in [0, 1] {
        assert_eq!(
            send(&mut rig, &ack(1000, 7).ttl(ttl))?,
            (Outcome::DropTtl, 0)
        );
    }
    assert_eq!(
        send(&mut rig, &ack(1000, 7).ttl(2))?,
        (Outcome::ForwardSteady, OLD)
    );
    Ok(())
}

#[test]
fn other_interface_means_redirect() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    rig.backend_with(&NAT, OLD, backend_address(&NAT, OLD), |record| {
        record.ifindex = INGRESS + 1
    })?;
    assert_eq!(rig.run(&ack(1000, 7).build())?.0, Verdict::Redirect);
    Ok(())
}

#[test]
fn deadline_reset_is_acceptable_to_the_client() -> Result<()> {
    for service in [NAT, v6(mode::L2)] {
        let mut rig = rig(&service, MOVED)?;
        // Of a flow that has no entry another backend would be asked first (`packet_second_chance`).
        assert_eq!(
            send(&mut rig, &segment(&service, 1000, ACK))?,
            (Outcome::ForwardAdopted, OLD)
        );
        rig.backend_with(&service, OLD, backend_address(&service, OLD), |record| {
            record.flags |= backend_flags::CUT_RESET;
            record.cut = u32::MAX;
        })?;
        let sent = segment(&service, 1000, ACK)
            .at(4711, 815)
            .data(b"data in flight");
        let (verdict, out, outcome) = rig.run(&sent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ResetDeadline));
        let reset = Segment::parse(&out).unwrap();
        // RFC 9293 section 3.10.7.1: its sequence number is what the client acknowledged.
        let expected = Segment {
            to_mac: sent.from_mac,
            from_mac: sent.to_mac,
            from: sent.to,
            to: sent.from,
            flags: RST,
            sequence: 815,
            acknowledged: 0,
            window: 0,
            data: Vec::new(),
            ..sent.clone()
        };
        assert_eq!(reset, expected);
        // Of a dead backend it is the same, under its own name.
        rig.backend_with(&service, OLD, backend_address(&service, OLD), |record| {
            record.flags |= backend_flags::CUT_RESET | backend_flags::DEAD;
            record.cut = u32::MAX;
        })?;
        let (verdict, out, outcome) = rig.run(&sent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ResetDead));
        assert_eq!(Segment::parse(&out).unwrap(), expected);
        // No reset is answered with a reset.
        let (verdict, _, outcome) = rig.run(&segment(&service, 1000, 0).build())?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropNoReset));
        // A client's own tells the backend.
        let (outcome, backend) = send(&mut rig, &segment(&service, 1000, RST))?;
        assert!(outcome.is_forward() && backend == OLD, "{outcome:?}");
    }
    Ok(())
}

#[test]
fn deadline_spreads_over_the_flows() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    let mut cut_at = |share: u32| -> Result<u32> {
        rig.backend_with(&NAT, OLD, backend_address(&NAT, OLD), |record| {
            record.flags |= backend_flags::CUT_DROP;
            record.cut = share;
        })?;
        let mut cut = 0;
        for port in 1000..1400 {
            cut += u32::from(send(&mut rig, &ack(port, 7))?.0 == Outcome::DropDeadline);
        }
        Ok(cut)
    };
    assert_eq!(cut_at(0)?, 0);
    let half = cut_at(u32::MAX / 2)?;
    assert!((140..260).contains(&half), "{half} of 400");
    assert_eq!(cut_at(u32::MAX)?, 400);
    Ok(())
}

#[test]
fn what_is_not_served_passes_untouched() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    let frame = ack(1000, 7).build();
    let edit = |at: usize, bytes: &[u8]| {
        let mut copy = frame.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let rows: &[(&str, Vec<u8>, Outcome)] = &[
        (
            "another port",
            Segment::new(client(1), at("203.0.113.10", 81), SYN).build(),
            Outcome::PassNoService,
        ),
        (
            "another address",
            Segment::new(client(1), at("203.0.113.11", 80), SYN).build(),
            Outcome::PassNoService,
        ),
        (
            "IPv6 to no service",
            Segment::new(at("2001:db8::1", 1), at("2001:db8::2", 80), SYN).build(),
            Outcome::PassNoService,
        ),
        ("ARP", edit(12, &[0x08, 0x06]), Outcome::PassNotIp),
        ("VLAN", edit(12, &[0x81, 0x00]), Outcome::PassNotIp),
        ("GRE", edit(23, &[47]), Outcome::PassProtocol),
        (
            "ICMP error with half a quote",
            edit(23, &[1]),
            Outcome::PassTruncated,
        ),
        ("IP version 5", edit(14, &[0x55]), Outcome::PassMalformed),
        (
            "IP header of 16 bytes",
            edit(14, &[0x44]),
            Outcome::PassMalformed,
        ),
        (
            "total length below the header's",
            edit(16, &[0, 19]),
            Outcome::PassMalformed,
        ),
        (
            "total length past the frame",
            edit(16, &[0, 41]),
            Outcome::PassTruncated,
        ),
        (
            "total length inside the TCP header",
            edit(16, &[0, 39]),
            Outcome::PassMalformed,
        ),
        (
            "TCP header of 16 bytes",
            edit(46, &[0x40]),
            Outcome::PassMalformed,
        ),
        (
            "TCP header past the packet",
            edit(46, &[0x60]),
            Outcome::PassMalformed,
        ),
        (
            "IPv6 from an IPv4-mapped address",
            Segment::new(
                at("::ffff:198.51.100.7", 1),
                at("::ffff:203.0.113.10", 80),
                SYN,
            )
            .build(),
            Outcome::PassMalformed,
        ),
        (
            "IPv6 to the IPv4-mapped address of a service",
            Segment::new(at("2001:db8::1", 1), at("::ffff:203.0.113.10", 80), SYN).build(),
            Outcome::PassMalformed,
        ),
    ];
    for (what, packet, expected) in rows {
        let (verdict, out, outcome) = rig.run(packet)?;
        assert_eq!((verdict, outcome), (Verdict::Pass, *expected), "{what}");
        assert_eq!(&out, packet, "{what}");
    }
    Ok(())
}

#[test]
fn every_truncation_passes_untouched() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    add(&mut rig, &v6(mode::NAT), UNMOVED)?;
    let mut options = segment(&NAT, 1000, ACK);
    options.options = vec![1; 12];
    options.ip_options = vec![1; 8];
    for whole in [
        ack(1000, 7).data(b"data").build(),
        segment(&v6(mode::NAT), 1000, ACK).data(b"data").build(),
        options.build(),
    ] {
        // The kernel takes no frame below an Ethernet header.
        for length in 14..whole.len() {
            let packet = &whole[..length];
            let (verdict, out, outcome) = rig.run(packet)?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::PassTruncated),
                "{length} bytes"
            );
            assert_eq!(out, packet, "{length} bytes");
        }
        assert_eq!(rig.run(&whole)?.2, Outcome::ForwardSteady);
    }
    Ok(())
}

#[test]
fn ip_options_are_parsed_around() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    for length in (0..=40).step_by(4) {
        let mut packet = ack(1000, 7).data(b"x");
        packet.ip_options = vec![1; length];
        packet.options = vec![1; 12];
        let (verdict, out, _) = rig.run(&packet.build())?;
        assert_eq!(verdict, Verdict::Tx, "{length} bytes of options");
        assert_eq!(Segment::parse(&out).unwrap().data, b"x");
    }
    Ok(())
}

#[test]
fn explain_answers_and_leaves_no_trace() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    let question = |opening| lb_userspace::datapath::Question {
        protocol: lb_userspace::model::spec::Protocol::Tcp,
        client: client(1000),
        vip: NAT.vip,
        opening,
    };
    let opening = rig.datapath.explain(&question(true))?;
    assert_eq!(
        (opening.outcome, opening.backend),
        (Outcome::ForwardOpening as u32, NEW)
    );
    let established = rig.datapath.explain(&question(false))?;
    assert_eq!(
        (established.outcome, established.backend),
        (Outcome::ForwardBase as u32, OLD)
    );
    assert_eq!(established.slot_index, rig.slot_of(&NAT, client(1000))?);
    assert!(rig.entries(Table::Flows)?.is_empty() && rig.entries(Table::Handshakes)?.is_empty());
    assert_eq!((rig.stats(OLD)?, rig.stats(NEW)?), Default::default());
    Ok(())
}

#[test]
fn unrecordable_openings_keep_what_can_live() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    // The allowance of this tick used up is what a flood does; nothing may be recorded at all here.
    rig.limit(0, u32::MAX)?;
    // The next packet would go to the base, a recorded retransmission to the current one: the client must ask again.
    assert_eq!(
        send(&mut rig, &syn(1000, 7))?,
        (Outcome::DropOpeningUnrecorded, 0)
    );
    // Where all agree it needs no record.
    rig.datapath
        .publish_table(NAT.id, &[Slot::new(NEW, NEW, false); SLOTS], &[])?;
    assert_eq!(
        send(&mut rig, &syn(1002, 7))?,
        (Outcome::ForwardOpeningUnrecorded, NEW)
    );
    Ok(())
}

#[test]
fn the_longest_prefix_of_a_client_decides() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    let mut rules = ClientRules::default();
    for (text, action) in [
        ("192.0.2.0/24", ClientAction::Deny),
        ("192.0.2.7", ClientAction::Allow),
        ("::/0", ClientAction::Deny),
    ] {
        rules.0.insert(text.parse().expect(text), action);
    }
    rig.datapath.publish_clients(&rules)?;
    let other = Segment::new(at("192.0.2.8", 1000), NAT.vip, SYN).build();
    let (verdict, out, outcome) = rig.run(&other)?;
    assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropClient));
    assert_eq!(out, other);
    assert_eq!(
        send(&mut rig, &syn(1000, 7))?,
        (Outcome::ForwardOpening, OLD)
    );
    // Nobody else's business: what goes to no service passes, whoever sent it.
    let elsewhere = Segment::new(at("192.0.2.8", 1000), at("203.0.113.99", 80), SYN).build();
    assert_eq!(rig.run(&elsewhere)?.2, Outcome::PassNoService);
    let counted: Vec<u64> = rig.datapath.clients()?.iter().map(|rule| rule.2).collect();
    assert_eq!(counted.iter().sum::<u64>(), 2);
    // Replaced whole.
    rig.datapath.publish_clients(&ClientRules::default())?;
    assert_eq!(rig.run(&other)?.2, Outcome::ForwardOpening);
    assert!(rig.datapath.clients()?.is_empty());
    Ok(())
}

#[test]
fn a_limit_of_new_flows_drops_openings_alone() -> Result<()> {
    const RATE: u32 = 5;
    for (all, of_service) in [(RATE, 0), (0, RATE)] {
        let started = Instant::now();
        let mut rig = rig(&NAT, UNMOVED)?;
        rig.limit_flows(all, NAT.id, of_service)?;
        let mut opened = 0;
        for port in 1000..1200 {
            let outcome = rig.run(&syn(port, 7).build())?.2;
            assert!(
                matches!(outcome, Outcome::ForwardOpening | Outcome::DropFlowLimit),
                "{outcome:?}"
            );
            opened += u32::from(outcome == Outcome::ForwardOpening);
        }
        // A second's worth, and what the time of the test adds to it, on each CPU that the test came to.
        let cpus = aya::util::nr_cpus().expect("the number of CPUs") as u32;
        let seconds = started.elapsed().as_secs() as u32 + 1;
        let allowed = RATE..=(RATE * (1 + seconds) * cpus).min(199);
        assert!(allowed.contains(&opened), "{opened}, not {allowed:?}");
        // A flow that has begun goes on, and so does its handshake.
        assert_eq!(
            send(&mut rig, &syn(1000, 7))?,
            (Outcome::ForwardRetransmit, OLD)
        );
        assert_eq!(
            send(&mut rig, &ack(5000, 7))?,
            (Outcome::ForwardSteady, OLD)
        );
    }
    Ok(())
}

#[test]
fn verifier_budget_is_kept() -> Result<()> {
    let rig = Rig::pinned()?;
    let plain = rig.datapath.verified()?;
    let tracing = rig.datapath.verified_tracing()?;
    println!("and while a trace runs:");
    for program in plain.into_iter().chain(tracing) {
        println!("{program}");
        let instructions = program.instructions.expect("Linux 5.16 or later says it");
        assert!(instructions <= bpf::INSTRUCTIONS_MAX, "{program}");
    }
    Ok(())
}

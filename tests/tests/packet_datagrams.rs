//! The loaded program, UDP datagram by datagram. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    rig::{Rig, ServiceSetup, Verdict, at},
};
use lb_common::{
    abi::{Slot, backend_flags, mode, service_flags},
    entry::{Meta, state},
    outcome::Outcome,
};
use lb_userspace::{
    datapath::{Datapath as _, Question, Table},
    model::spec::Protocol,
};

const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;

const NAT: ServiceSetup = ServiceSetup {
    id: 1,
    vip: SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10)),
        53,
    ),
    mode: mode::NAT,
    flags: service_flags::DATAGRAM | service_flags::TRACK_ALL,
};

fn v6() -> ServiceSetup {
    ServiceSetup {
        vip: at("2001:db8:f::10", 53),
        ..NAT
    }
}

fn backend_address(service: &ServiceSetup, id: u32) -> SocketAddr {
    let port = if service.mode == mode::NAT { 5353 } else { 53 };
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{id}"), port)
    } else {
        at(&format!("fd00::{id}"), port)
    }
}

fn rig(service: &ServiceSetup, slot: Slot) -> Result<Rig> {
    let mut rig = Rig::new()?;
    for id in [OLD, NEW] {
        rig.backend(service, id, backend_address(service, id))?;
    }
    rig.service(*service, &[slot; SLOTS])?;
    Ok(rig)
}

fn client(service: &ServiceSetup, port: u16) -> SocketAddr {
    at(
        if service.vip.is_ipv4() {
            "192.0.2.1"
        } else {
            "2001:db8:1::1"
        },
        port,
    )
}

fn send(rig: &mut Rig, service: &ServiceSetup, port: u16) -> Result<(Outcome, u32)> {
    let datagram = Datagram::new(client(service, port), service.vip);
    let (verdict, out, outcome) = rig.run(&datagram.build())?;
    if !outcome.is_forward() {
        return Ok((outcome, 0));
    }
    assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
    let sent = Datagram::parse(&out).expect("a sound frame");
    Ok((outcome, u32::from(sent.to_mac[5])))
}

const UNMOVED: Slot = Slot::new(OLD, OLD, false);
const MOVED: Slot = Slot::new(NEW, OLD, false);

#[test]
fn a_flow_stays_where_its_first_datagram_went() -> Result<()> {
    for service in [
        NAT,
        v6(),
        ServiceSetup {
            mode: mode::L2,
            ..NAT
        },
    ] {
        let mut rig = rig(&service, UNMOVED)?;
        assert_eq!(
            send(&mut rig, &service, 1000)?,
            (Outcome::ForwardOpening, OLD)
        );
        assert_eq!(send(&mut rig, &service, 1000)?, (Outcome::ForwardFlow, OLD));
        rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
        assert_eq!(send(&mut rig, &service, 1000)?, (Outcome::ForwardFlow, OLD));
        assert_eq!(
            send(&mut rig, &service, 1001)?,
            (Outcome::ForwardOpening, NEW)
        );
        assert_eq!(send(&mut rig, &service, 1001)?, (Outcome::ForwardFlow, NEW));
        assert_eq!((rig.stats(OLD)?.opened, rig.stats(NEW)?.opened), (1, 1));
        // Both have an entry; neither needs it more than the other while the base does not count.
        let entries = rig.entries(Table::Flows)?;
        assert_eq!(entries.len(), 2);
        assert!(
            entries
                .iter()
                .all(|entry| !Meta(entry.meta).has(state::EXCEPTIONAL))
        );
    }
    Ok(())
}

#[test]
fn a_flow_of_an_ended_backend_begins_anew() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    assert_eq!(send(&mut rig, &NAT, 1000)?.1, OLD);
    rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
    rig.flags(OLD, backend_flags::ENDED, 0)?;
    assert_eq!(send(&mut rig, &NAT, 1000)?, (Outcome::ForwardOrphan, NEW));
    assert_eq!(send(&mut rig, &NAT, 1000)?, (Outcome::ForwardFlow, NEW));
    assert_eq!(rig.stats(NEW)?.opened, 1);
    Ok(())
}

#[test]
fn a_cut_datagram_is_dropped() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    send(&mut rig, &NAT, 1000)?;
    rig.backend_with(&NAT, OLD, backend_address(&NAT, OLD), |record| {
        record.flags |= backend_flags::CUT_DROP;
        record.cut = u32::MAX;
    })?;
    assert_eq!(send(&mut rig, &NAT, 1000)?, (Outcome::DropDeadline, 0));
    Ok(())
}

#[test]
fn nat_rewrites_both_ways_and_keeps_missing_checksums_missing() -> Result<()> {
    for (service, checked) in [(NAT, true), (NAT, false), (v6(), true)] {
        let mut rig = rig(&service, UNMOVED)?;
        let mut asked = Datagram::new(client(&service, 1000), service.vip);
        asked.checked = checked;
        let (_, out, _) = rig.run(&asked.build())?;
        let sent = Datagram::parse(&out).expect("a sound frame");
        assert_eq!(
            (sent.from, sent.to),
            (asked.from, backend_address(&service, OLD))
        );
        assert_eq!((sent.checked, &sent.data), (checked, &asked.data));

        let mut answer = Datagram::new(sent.to, sent.from).data(b"an answer");
        answer.checked = checked;
        let (_, out, outcome) = rig.run(&answer.build())?;
        assert_eq!(outcome, Outcome::ForwardReply);
        let got = Datagram::parse(&out).expect("a sound frame");
        assert_eq!((got.from, got.to), (service.vip, asked.from));
        assert_eq!((got.checked, &got.data), (checked, &answer.data));
    }
    Ok(())
}

/// A sum of 0 is sent as all ones: 0 means that there is none (RFC 768).
#[test]
fn a_checksum_that_comes_out_as_zero_is_all_ones() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    let wanted = (0..=u16::MAX).find(|word| {
        let sent = Datagram::new(client(&NAT, 1000), backend_address(&NAT, OLD));
        let frame = sent.data(&word.to_be_bytes()).build();
        frame[40..42] == [0xff, 0xff]
    });
    let data = wanted.expect("one of all words").to_be_bytes();
    let (_, out, _) = rig.run(
        &Datagram::new(client(&NAT, 1000), NAT.vip)
            .data(&data)
            .build(),
    )?;
    assert_eq!(out[40..42], [0xff, 0xff]);
    assert!(Datagram::parse(&out).expect("a sound frame").checked);
    Ok(())
}

/// Where a flow can not be recorded it goes where the next one will; nothing is counted as open.
#[test]
fn a_flow_that_can_not_be_recorded_goes_to_current() -> Result<()> {
    let mut rig = rig(&NAT, MOVED)?;
    rig.limit(0, 0)?;
    for _ in 0..2 {
        let sent = send(&mut rig, &NAT, 1000)?;
        assert_eq!(sent, (Outcome::ForwardOpeningUnrecorded, NEW));
    }
    assert_eq!(rig.stats(NEW)?.opened, 0);
    Ok(())
}

#[test]
fn the_same_port_of_the_other_protocol_is_another_place() -> Result<()> {
    let mut rig = rig(&NAT, UNMOVED)?;
    let frame = ebb_tests::packets::Segment::new(client(&NAT, 1000), NAT.vip, 2).build();
    assert_eq!(rig.run(&frame)?.2, Outcome::PassNoService);
    Ok(())
}

#[test]
fn explain_asks_with_a_datagram() -> Result<()> {
    for service in [NAT, v6()] {
        let mut rig = rig(&service, UNMOVED)?;
        let question = Question {
            client: client(&service, 1000),
            vip: service.vip,
            protocol: Protocol::Udp,
            opening: true,
        };
        let said = rig.datapath.explain(&question)?;
        assert_eq!(
            (said.outcome, said.backend),
            (Outcome::ForwardOpening as u32, OLD)
        );
        assert!(
            rig.entries(Table::Flows)?.is_empty(),
            "a question leaves no trace"
        );
        send(&mut rig, &service, 1000)?;
        rig.datapath.publish_table(1, &[MOVED; SLOTS], &[])?;
        let said = rig.datapath.explain(&question)?;
        assert_eq!(
            (said.outcome, said.backend),
            (Outcome::ForwardFlow as u32, OLD)
        );
    }
    Ok(())
}

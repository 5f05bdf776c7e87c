//! The tracing programs, packet by packet: what they show, and to whom they leave the rest. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    Addr,
    abi::{Slot, mode, service_flags},
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
    trace::{FRAME_MAX, TraceFilter, filter_flags, known},
};
use lb_userspace::datapath::{Datapath as _, trace::Record};

const WEB: ServiceSetup = ServiceSetup {
    id: 1,
    vip: SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10)),
        80,
    ),
    mode: mode::NAT,
    flags: 0,
};
const NAMES: ServiceSetup = ServiceSetup {
    id: 2,
    vip: SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 11)),
        53,
    ),
    mode: mode::NAT,
    flags: service_flags::DATAGRAM | service_flags::TRACK_ALL,
};
const BYTES: TraceFilter = TraceFilter {
    snap_came: FRAME_MAX as u32,
    snap_left: FRAME_MAX as u32,
    ..TraceFilter::ALL
};

/// Two services of a backend each: 1 of `WEB`, 2 of `NAMES`; the tracing program is in front.
fn rig(filter: &TraceFilter) -> Result<Rig> {
    let mut rig = Rig::pinned()?;
    for service in [WEB, NAMES] {
        let address = at(&format!("10.0.0.{}", service.id), 8080);
        rig.backend(&service, service.id, address)?;
        let slot = Slot::new(service.id, service.id, false);
        rig.service(service, &[slot; 101])?;
    }
    rig.trace(filter)?;
    Ok(rig)
}

fn client(port: u16) -> SocketAddr {
    at("192.0.2.7", port)
}

fn syn(port: u16) -> Vec<u8> {
    Segment::new(client(port), WEB.vip, SYN).build()
}

fn query(port: u16) -> Vec<u8> {
    Datagram::new(client(port), NAMES.vip).build()
}

fn stranger() -> Vec<u8> {
    Segment::new(client(1), at("203.0.113.99", 22), ACK).build()
}

/// What became of the frame, and what was shown of it.
fn run(rig: &mut Rig, frame: &[u8]) -> Result<(Outcome, Vec<Record>)> {
    let (_, _, outcome) = rig.run(frame)?;
    Ok((outcome, rig.shown()))
}

#[test]
fn a_packet_is_shown_as_it_came_and_as_it_left() -> Result<()> {
    let mut rig = rig(&BYTES)?;
    let frame = syn(40_000);
    let (verdict, out, outcome) = rig.run(&frame)?;
    assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardOpening));
    let shown = rig.shown();
    let [record] = shown.as_slice() else {
        panic!("{shown:?}");
    };
    assert_eq!((&record.came, &record.left), (&frame, &out));
    assert_eq!(record.left[..6], backend_macs(1).0);
    let event = &record.event;
    assert_eq!((event.service, event.backend), (1, 1));
    assert_eq!(event.outcome, Outcome::ForwardOpening as u32);
    assert_eq!(
        (event.source, event.source_port),
        (Addr::from_v4([192, 0, 2, 7]), 40_000_u16.to_be())
    );
    assert_eq!(
        (event.destination, event.destination_port),
        (Addr::from_v4([203, 0, 113, 10]), 80_u16.to_be())
    );
    assert_eq!((event.protocol, event.flags), (6, SYN));
    assert_eq!(event.known, known::NETWORK | known::TRANSPORT);
    assert_eq!((event.ifindex, event.exit), (1, 1));
    assert_eq!(
        (event.length as usize, event.length_left as usize),
        (frame.len(), out.len())
    );
    assert!(event.came > 0 && event.left >= event.came);
    Ok(())
}

#[test]
fn answers_are_shown_with_the_interface_that_they_leave_by() -> Result<()> {
    let mut rig = rig(&BYTES)?;
    let answer = Segment::new(at("10.0.0.1", 8080), at("192.0.2.1", 40_000), ACK).build();
    let (verdict, out, outcome) = rig.run(&answer)?;
    assert_eq!(
        (verdict, outcome),
        (Verdict::Redirect, Outcome::ForwardReply)
    );
    let shown = rig.shown();
    assert_eq!(shown.len(), 1);
    assert_eq!((&shown[0].came, &shown[0].left), (&answer, &out));
    let event = &shown[0].event;
    assert!(event.exit > 1 && event.exit != event.ifindex, "{event:?}");
    assert_eq!((event.service, event.backend), (1, 1));
    Ok(())
}

#[test]
fn what_is_not_wanted_is_served_and_not_shown() -> Result<()> {
    let prefix = |address, bits: u8| TraceFilter {
        prefix: Addr::from_v4(address),
        mask: Addr::prefix_mask(96 + bits),
        ..TraceFilter::ALL
    };
    let port = |port: u16| TraceFilter {
        port: port.to_be(),
        ..TraceFilter::ALL
    };
    let all = TraceFilter::ALL;
    // Filter, then whether it shows a SYN to WEB, a query to NAMES, a packet to nobody.
    let rows = [
        (all, [true, true, true]),
        (
            TraceFilter {
                flags: filter_flags::SERVED,
                ..all
            },
            [true, true, false],
        ),
        (TraceFilter { service: 1, ..all }, [true, false, false]),
        (TraceFilter { backend: 2, ..all }, [false, true, false]),
        (
            TraceFilter {
                protocol: 17,
                ..all
            },
            [false, true, false],
        ),
        (
            TraceFilter {
                outcomes: 1 << Outcome::PassNoService as u32,
                ..all
            },
            [false, false, true],
        ),
        (port(53), [false, true, false]),
        (port(40_007), [true, true, false]),
        (prefix([203, 0, 113, 10], 32), [true, false, false]),
        (prefix([192, 0, 2, 0], 24), [true, true, true]),
        (prefix([198, 51, 100, 0], 24), [false, false, false]),
        (TraceFilter { outcomes: 0, ..all }, [false, false, false]),
    ];
    let mut rig = rig(&all)?;
    for (row, (filter, wanted)) in rows.into_iter().enumerate() {
        rig.change_trace(&filter)?;
        // Flows of its own, which the row of ports names.
        let client = 40_000 + u16::try_from(row)?;
        let (web, shown) = run(&mut rig, &syn(client))?;
        assert_eq!(
            (web, shown.len()),
            (Outcome::ForwardOpening, wanted[0].into()),
            "{filter:?}"
        );
        let (names, shown) = run(&mut rig, &query(client))?;
        assert_eq!(
            (names, shown.len()),
            (Outcome::ForwardOpening, wanted[1].into()),
            "{filter:?}"
        );
        let (nobody, shown) = run(&mut rig, &stranger())?;
        assert_eq!(
            (nobody, shown.len()),
            (Outcome::PassNoService, wanted[2].into()),
            "{filter:?}"
        );
    }
    Ok(())
}

#[test]
fn frames_are_cut_where_asked() -> Result<()> {
    let data = [7; 1000];
    let frame = Segment::new(client(40_000), WEB.vip, ACK)
        .data(&data)
        .build();
    let mut rig = rig(&TraceFilter::ALL)?;
    for (came, left) in [
        (0, 0),
        (1, 0),
        (0, 1),
        (14, 96),
        (96, 14),
        (1054, 1053),
        (4096, 4096),
    ] {
        let filter = TraceFilter {
            snap_came: came,
            snap_left: left,
            ..TraceFilter::ALL
        };
        rig.change_trace(&filter)?;
        let (_, out, _) = rig.run(&frame)?;
        let shown = rig.shown();
        let cut = |frame: &[u8], snap: u32| frame[..frame.len().min(snap as usize)].to_vec();
        assert_eq!(shown[0].came, cut(&frame, came), "{came} {left}");
        assert_eq!(shown[0].left, cut(&out, left), "{came} {left}");
        assert_eq!(shown[0].event.length_left as usize, out.len());
    }
    Ok(())
}

#[test]
fn what_can_not_be_read_is_shown_without_names() -> Result<()> {
    let mut rig = rig(&BYTES)?;
    let frame = [0xff; 60];
    let (outcome, shown) = run(&mut rig, &frame)?;
    assert_eq!(outcome, Outcome::PassNotIp);
    assert_eq!((shown.len(), shown[0].event.known), (1, 0));
    assert_eq!((&shown[0].came[..], shown[0].left.len()), (&frame[..], 0));
    Ok(())
}

/// Both instances have the same tables: what began before a trace goes on in it, and after it.
#[test]
fn flows_outlive_the_change_of_programs() -> Result<()> {
    let mut rig = Rig::pinned()?;
    rig.backend(&NAMES, 1, at("10.0.0.1", 8080))?;
    rig.backend(&NAMES, 2, at("10.0.0.2", 8080))?;
    rig.service(NAMES, &[Slot::new(1, 1, false); 101])?;
    let outcome = |rig: &mut Rig, port| rig.run(&query(port)).map(|(_, _, outcome)| outcome);
    assert_eq!(outcome(&mut rig, 1)?, Outcome::ForwardOpening);
    rig.trace(&TraceFilter::ALL)?;
    rig.datapath
        .publish_table(NAMES.id, &[Slot::new(2, 1, false); 101], &[])?;
    assert_eq!(outcome(&mut rig, 1)?, Outcome::ForwardFlow);
    assert_eq!(outcome(&mut rig, 2)?, Outcome::ForwardOpening);
    assert_eq!(rig.shown().len(), 2);
    rig.datapath.end_trace()?;
    assert_eq!(outcome(&mut rig, 1)?, Outcome::ForwardFlow);
    assert_eq!(outcome(&mut rig, 2)?, Outcome::ForwardFlow);
    assert_eq!(rig.shown().len(), 0);
    Ok(())
}

#[test]
fn records_without_room_are_counted() -> Result<()> {
    let mut rig = rig(&BYTES)?;
    let frame = Segment::new(client(40_000), WEB.vip, ACK)
        .data(&[1; 1400])
        .build();
    let sent = 3000;
    for _ in 0..sent {
        rig.run_fast(&frame)?;
    }
    let (shown, lost) = (rig.shown().len() as u64, rig.lost()?);
    assert!(lost > 0 && shown > 0, "{shown} shown, {lost} lost");
    assert_eq!(shown + lost, sent);
    // There is room again.
    rig.run_fast(&frame)?;
    assert_eq!((rig.shown().len(), rig.lost()?), (1, lost));
    Ok(())
}

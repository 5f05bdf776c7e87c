//! The loaded program with services on several ports. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    datagram::Datagram,
    fragments::{cut, join},
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at},
};
use lb_common::{
    abi::{Slot, mode, service_flags},
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
};
use lb_userspace::{
    datapath::{Datapath as _, Question},
    model::spec::Protocol,
};

const SLOTS: usize = 101;

fn setup(id: u32, port: u16, family: u8) -> ServiceSetup {
    ServiceSetup {
        id,
        vip: at(
            if family == 4 {
                "203.0.113.10"
            } else {
                "2001:db8:f::10"
            },
            port,
        ),
        mode: mode::NAT,
        flags: 0,
    }
}

fn client(family: u8) -> SocketAddr {
    at(
        if family == 4 {
            "192.0.2.1"
        } else {
            "2001:db8:1::1"
        },
        1000,
    )
}

fn backend(id: u32, port: u16, family: u8) -> SocketAddr {
    match family {
        4 => at(&format!("10.0.0.{id}"), port),
        _ => at(&format!("fd00::{id}"), port),
    }
}

/// Port 8080 exactly (backend 1), 8000 to 8999 (2), and every one (3).
fn rig(family: u8) -> Result<Rig> {
    let mut rig = Rig::new()?;
    let slots = |id| [Slot::new(id, id, false); SLOTS];
    let exact = setup(1, 8080, family);
    rig.backend(&exact, 1, backend(1, 80, family))?;
    rig.service(exact, &slots(1))?;
    for (id, first, last) in [(2, 8000, 8999_u16), (3, 1, u16::MAX)] {
        let service = setup(id, first, family);
        rig.backend(&service, id, backend(id, 0, family))?;
        rig.service_with(service, &slots(id), |record| {
            record.last_port = last.to_be()
        })?;
    }
    Ok(rig)
}

#[test]
fn an_exact_port_goes_before_a_range_and_a_range_before_every_port() -> Result<()> {
    for family in [4, 6] {
        let mut rig = rig(family)?;
        for (port, to) in [
            (8080, backend(1, 80, family)),
            (8000, backend(2, 8000, family)),
            (8999, backend(2, 8999, family)),
            (7999, backend(3, 7999, family)),
            (9000, backend(3, 9000, family)),
            (1, backend(3, 1, family)),
            (65535, backend(3, 65535, family)),
        ] {
            let vip = at(&setup(1, 1, family).vip.ip().to_string(), port);
            let (verdict, out, outcome) =
                rig.run(&Segment::new(client(family), vip, SYN).build())?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Tx, Outcome::ForwardOpening),
                "{port}"
            );
            let sent = Segment::parse(&out).expect("a sound frame");
            assert_eq!((sent.from, sent.to), (client(family), to), "{port}");

            let answer = Segment::new(to, client(family), SYN | ACK);
            let (_, out, outcome) = rig.run(&answer.build())?;
            assert_eq!(outcome, Outcome::ForwardReply, "{port}");
            let got = Segment::parse(&out).expect("a sound frame");
            assert_eq!((got.from, got.to), (vip, client(family)), "{port}");
        }
    }
    Ok(())
}

#[test]
fn what_is_on_no_port_of_it_passes() -> Result<()> {
    let mut rig = Rig::new()?;
    let service = setup(2, 8000, 4);
    rig.backend(&service, 2, backend(2, 0, 4))?;
    rig.service_with(service, &[Slot::new(2, 2, false); SLOTS], |record| {
        record.last_port = 8999_u16.to_be();
    })?;
    for port in [7999, 9000] {
        let frame = Segment::new(client(4), at("203.0.113.10", port), SYN).build();
        let (verdict, out, outcome) = rig.run(&frame)?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassNoService));
        assert_eq!(out, frame);
        // What a backend says from another port is its own affair.
        let frame = Segment::new(backend(2, port, 4), client(4), ACK).build();
        let (verdict, out, outcome) = rig.run(&frame)?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassNoService));
        assert_eq!(out, frame);
    }
    let other = Datagram::new(client(4), at("203.0.113.10", 8500)).build();
    assert_eq!(rig.run(&other)?.2, Outcome::PassNoService);
    let elsewhere = Segment::new(client(4), at("203.0.113.11", 8500), SYN).build();
    assert_eq!(rig.run(&elsewhere)?.2, Outcome::PassNoService);
    Ok(())
}

/// Each port of a range is a flow of its own; a drain keeps them apart.
#[test]
fn datagrams_on_every_port_in_l2() -> Result<()> {
    let mut rig = Rig::new()?;
    let service = ServiceSetup {
        mode: mode::L2,
        flags: service_flags::DATAGRAM | service_flags::TRACK_ALL,
        ..setup(2, 1, 4)
    };
    for id in [1, 2] {
        rig.backend(&service, id, backend(id, 0, 4))?;
    }
    rig.service_with(service, &[Slot::new(1, 1, false); SLOTS], |record| {
        record.last_port = u16::MAX;
    })?;
    let send = |rig: &mut Rig, port| -> Result<(Outcome, u8)> {
        let frame = Datagram::new(client(4), at("203.0.113.10", port)).build();
        let (_, out, outcome) = rig.run(&frame)?;
        assert_eq!(out[12..], frame[12..], "l2 changes the MACs alone");
        Ok((outcome, out[5]))
    };
    assert_eq!(send(&mut rig, 53)?, (Outcome::ForwardOpening, 1));
    rig.datapath
        .publish_table(2, &[Slot::new(2, 1, false); SLOTS], &[])?;
    assert_eq!(send(&mut rig, 53)?, (Outcome::ForwardFlow, 1));
    assert_eq!(send(&mut rig, 54)?, (Outcome::ForwardOpening, 2));
    Ok(())
}

#[test]
fn explain_knows_them() -> Result<()> {
    let rig = rig(4)?;
    for (port, backend) in [(8080, 1), (8081, 2), (80, 3)] {
        let question = Question {
            client: client(4),
            vip: at("203.0.113.10", port),
            protocol: Protocol::Tcp,
            opening: true,
        };
        let said = rig.datapath.explain(&question)?;
        assert_eq!((said.service, said.backend), (backend, backend), "{port}");
    }
    Ok(())
}

/// Runs the fragments of a packet; what comes out of them, put together again.
fn through(rig: &mut Rig, whole: &Segment, id: u32, first: Outcome) -> Result<Segment> {
    let mut out = Vec::new();
    for (number, frame) in cut(&whole.build(), 1024, 1024, id).iter().enumerate() {
        let (_, bytes, outcome) = rig.run(frame)?;
        let wanted = if number == 0 {
            first
        } else {
            Outcome::ForwardFragment
        };
        assert_eq!(outcome, wanted, "fragment {number}");
        out.push(bytes);
    }
    assert!(out.len() > 2, "{} fragments", out.len());
    Ok(Segment::parse(&join(&out).expect("they belong together")).expect("a sound frame"))
}

#[test]
fn fragments_go_where_the_whole_packet_would() -> Result<()> {
    let data: Vec<u8> = (0..3001).map(|n| (n * 7) as u8).collect();
    for family in [4, 6] {
        let mut rig = rig(family)?;
        for (number, (port, to)) in [(8999, 2), (7, 3)].into_iter().enumerate() {
            let (id, to) = (number as u32 * 2 + 1, backend(to, port, family));
            let vip = at(&setup(1, 1, family).vip.ip().to_string(), port);
            let asked = Segment::new(client(family), vip, ACK).data(&data);
            let sent = through(&mut rig, &asked, id, Outcome::ForwardSteady)?;
            assert_eq!((sent.from, sent.to), (client(family), to), "{port}");
            assert_eq!(sent.data, data);

            let answer = Segment::new(to, client(family), ACK).data(&data);
            let got = through(&mut rig, &answer, id + 1, Outcome::ForwardReply)?;
            assert_eq!((got.from, got.to), (vip, client(family)), "{port}");
            assert_eq!(got.data, data);
        }
    }
    Ok(())
}

#[test]
fn fragments_to_a_port_that_is_nobodys_pass() -> Result<()> {
    let mut rig = Rig::new()?;
    let service = setup(2, 8000, 4);
    rig.backend(&service, 2, backend(2, 0, 4))?;
    rig.service_with(service, &[Slot::new(2, 2, false); SLOTS], |record| {
        record.last_port = 8999_u16.to_be()
    })?;
    let other = Segment::new(client(4), at("203.0.113.10", 9000), ACK).data(&[1; 3001]);
    let frames = cut(&other.build(), 1024, 1024, 1);
    let outcomes: Result<Vec<_>> = frames
        .iter()
        .map(|frame| {
            let (verdict, out, outcome) = rig.run(frame)?;
            assert_eq!((verdict, &out), (Verdict::Pass, frame));
            Ok(outcome)
        })
        .collect();
    assert_eq!(
        outcomes?,
        [
            Outcome::PassNoService,
            Outcome::PassFragmentEarly,
            Outcome::PassFragmentEarly
        ]
    );
    Ok(())
}

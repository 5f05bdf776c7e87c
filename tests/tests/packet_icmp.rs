//! The loaded program on ICMP, packet by packet: echo, errors about flows of either forwarding mode, both families,
//! what is refused, and every truncation. Every checksum of what comes out is recomputed. Needs root.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ebb_tests::{
    icmp::Message,
    outer::Outer,
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    abi::{Slot, mode, service_flags},
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
};
use lb_userspace::datapath::{Datapath, Table};

const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;
const UNMOVED: Slot = Slot::new(OLD, OLD, false);
const MOVED: Slot = Slot::new(NEW, OLD, false);

/// The four services that a row is tried on.
fn services() -> [ServiceSetup; 4] {
    let service = |id, vip: &str, mode| ServiceSetup {
        id,
        vip: at(vip, 80),
        mode,
        flags: service_flags::ECHO,
    };
    [
        service(1, "203.0.113.10", mode::L2),
        service(1, "203.0.113.10", mode::NAT),
        service(2, "2001:db8:f::10", mode::L2),
        service(2, "2001:db8:f::10", mode::NAT),
    ]
}

fn backend_address(service: &ServiceSetup, id: u32) -> SocketAddr {
    match (service.mode, service.vip.is_ipv4()) {
        (mode::NAT, true) => at(&format!("10.0.0.{id}"), 8080),
        (_, true) => at(&format!("10.0.0.{id}"), 80),
        (mode::NAT, false) => at(&format!("fd00::{id}"), 8080),
        (_, false) => at(&format!("fd00::{id}"), 80),
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

/// A client whose neighbour the rig's kernel knows.
fn client(service: &ServiceSetup) -> SocketAddr {
    if service.vip.is_ipv4() {
        at("192.0.2.1", 1000)
    } else {
        at("2001:db8:1::1", 1000)
    }
}

fn router(service: &ServiceSetup) -> IpAddr {
    let address = if service.vip.is_ipv4() {
        "198.51.100.9"
    } else {
        "2001:db8:99::9"
    };
    address.parse().expect("a literal address")
}

/// Type and code of an echo request and of its reply.
fn echo(service: &ServiceSetup) -> (u8, u8) {
    if service.vip.is_ipv4() {
        (8, 0)
    } else {
        (128, 129)
    }
}

/// Types and codes of errors.
fn errors(service: &ServiceSetup) -> &'static [(u8, u8)] {
    if service.vip.is_ipv4() {
        &[(3, 4), (3, 0), (3, 3), (11, 0), (11, 1), (12, 0)]
    } else {
        &[(2, 0), (1, 0), (1, 4), (3, 0), (3, 1), (4, 1)]
    }
}

/// A segment from the service to the client, as a router on the way sees it.
fn answered(service: &ServiceSetup) -> Segment {
    Segment::new(service.vip, client(service), ACK)
        .at(9000, 78)
        .data(b"what the service said")
}

/// An error from the router about the IP packet of a frame, of which `length` bytes are quoted.
fn about(service: &ServiceSetup, quoted: &Segment, length: usize) -> Message {
    let packet = &quoted.build()[14..];
    let (kind, code) = errors(service)[0];
    let quote = &packet[..length.min(packet.len())];
    Message::new(router(service), quoted.from.ip(), kind, code, quote)
}

const WHOLE: usize = usize::MAX;

/// The least that is quoted: the IP header and 8 bytes.
fn least(service: &ServiceSetup) -> usize {
    if service.vip.is_ipv4() { 28 } else { 48 }
}

#[test]
fn echo_is_answered() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let (request, reply) = echo(&service);
        for body in [&b""[..], b"a", b"odd", b"even", &[0xff; 1400]] {
            let from = client(&service).ip();
            let sent = Message::new(from, service.vip.ip(), request, 0, body);
            let (verdict, out, outcome) = rig.run(&sent.build())?;
            assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::AnswerEcho));
            let expected = Message {
                to_mac: sent.from_mac,
                from_mac: sent.to_mac,
                from: sent.to,
                to: sent.from,
                kind: reply,
                ttl: 64,
                ..sent
            };
            assert_eq!(Message::parse(&out).unwrap(), expected);
        }
        assert_eq!(
            rig.datapath.outcomes(service.id)?[Outcome::AnswerEcho as usize],
            5
        );
    }
    Ok(())
}

#[test]
fn echo_that_is_not_answered_passes_untouched() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let (request, reply) = echo(&service);
        let ping =
            |from: &str| Message::new(from.parse().unwrap(), service.vip.ip(), request, 0, b"ping");
        let plain = Message::new(client(&service).ip(), service.vip.ip(), request, 0, b"ping");
        let mut rows = vec![
            (
                "a reply",
                Message {
                    kind: reply,
                    ..plain.clone()
                },
            ),
            (
                "to another address",
                Message {
                    to: router(&service),
                    ..plain.clone()
                },
            ),
            (
                "to a group's MAC address",
                Message {
                    to_mac: [0xff; 6],
                    ..plain.clone()
                },
            ),
        ];
        if service.vip.is_ipv4() {
            rows.push(("from nobody", ping("0.0.0.0")));
            rows.push(("from loopback", ping("127.0.0.1")));
            rows.push(("from a group", ping("224.0.0.1")));
            rows.push(("from everybody", ping("255.255.255.255")));
            rows.push((
                "with options",
                Message {
                    ip_options: vec![1; 4],
                    ..plain.clone()
                },
            ));
        } else {
            rows.push(("from nobody", ping("::")));
            rows.push(("from a group", ping("ff02::1")));
        }
        for (what, message) in rows {
            let (verdict, out, outcome) = rig.run(&message.build())?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::PassIcmp),
                "{what}"
            );
            assert_eq!(out, message.build(), "{what}");
        }
    }
    Ok(())
}

#[test]
fn echo_can_be_switched_off() -> Result<()> {
    for service in services() {
        let service = ServiceSetup {
            flags: 0,
            ..service
        };
        let mut rig = rig(&service, UNMOVED)?;
        let (request, _) = echo(&service);
        let sent = Message::new(client(&service).ip(), service.vip.ip(), request, 0, b"ping");
        let (verdict, out, outcome) = rig.run(&sent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassIcmp));
        assert_eq!(out, sent.build());
    }
    Ok(())
}

#[test]
fn a_wrong_checksum_stays_wrong() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let (request, _) = echo(&service);
        let ping = Message::new(client(&service).ip(), service.vip.ip(), request, 0, b"ping");
        for message in [ping, about(&service, &answered(&service), WHOLE)] {
            let mut frame = message.build();
            *frame.last_mut().unwrap() ^= 1;
            let (_, out, outcome) = rig.run(&frame)?;
            assert!(matches!(
                outcome,
                Outcome::AnswerEcho | Outcome::ForwardIcmp
            ));
            assert_eq!(Message::parse(&out).unwrap_err(), "wrong ICMP checksum");
        }
    }
    Ok(())
}

#[test]
fn errors_go_to_the_backend_of_the_quoted_flow() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        for (kind, code) in errors(&service) {
            let mut sent = about(&service, &answered(&service), WHOLE);
            (sent.kind, sent.code) = (*kind, *code);
            let (verdict, out, outcome) = rig.run(&sent.build())?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Tx, Outcome::ForwardIcmp),
                "{kind}"
            );
            let arrived = Message::parse(&out).unwrap();
            let (to_mac, from_mac) = backend_macs(OLD);
            let to_backend = Message {
                to_mac,
                from_mac,
                ..sent.clone()
            };
            if service.mode == mode::L2 {
                assert_eq!(arrived, to_backend);
                continue;
            }
            let backend = backend_address(&service, OLD);
            let expected = Segment {
                from: backend,
                ..answered(&service)
            };
            assert_eq!(arrived.quoted().expect("a sound quote"), expected);
            let body = arrived.body.clone();
            assert_eq!(
                arrived,
                Message {
                    to: backend.ip(),
                    ttl: 59,
                    body,
                    ..to_backend
                }
            );
        }
        assert_eq!(rig.stats(OLD)?.packets, 6);
    }
    Ok(())
}

#[test]
fn errors_follow_the_flow_through_a_change() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let opening = Segment::new(client(&service), service.vip, SYN).at(77, 0);
        let error = about(&service, &answered(&service), WHOLE);
        let arrives_at = |rig: &mut Rig, error: &Message| -> Result<u32> {
            let (_, out, outcome) = rig.run(&error.build())?;
            assert_eq!(outcome, Outcome::ForwardIcmp);
            Ok(u32::from(Message::parse(&out).unwrap().to_mac[5]))
        };
        // A handshake in flight: found by what the service acknowledged.
        rig.run(&opening.build())?;
        let change = [Slot::new(NEW, NEW, true); SLOTS];
        rig.datapath.publish_table(service.id, &change, &[])?;
        let before = (rig.entries(Table::Flows)?, rig.entries(Table::Handshakes)?);
        assert_eq!(arrives_at(&mut rig, &error)?, OLD);
        assert_eq!(
            before,
            (rig.entries(Table::Flows)?, rig.entries(Table::Handshakes)?)
        );
        // An established flow: found by its entry, even with the least that can be quoted.
        rig.run(&opening.clone().build())?;
        let next = Segment {
            flags: ACK,
            ..opening.clone()
        }
        .at(78, 1);
        assert_eq!(rig.run(&next.build())?.2, Outcome::ForwardHandshake);
        let before = (
            rig.entries(Table::Flows)?,
            rig.entries(Table::Handshakes)?,
            rig.stats(OLD)?.opened,
        );
        let short = about(&service, &answered(&service), least(&service));
        assert_eq!(arrives_at(&mut rig, &short)?, OLD);
        let after = (
            rig.entries(Table::Flows)?,
            rig.entries(Table::Handshakes)?,
            rig.stats(OLD)?.opened,
        );
        assert_eq!(before, after);
        // Nobody knows the flow: the base.
        rig.lose(Table::Flows)?;
        rig.lose(Table::Handshakes)?;
        assert_eq!(arrives_at(&mut rig, &error)?, NEW);
        assert!(rig.entries(Table::Flows)?.is_empty());
        rig.datapath
            .publish_table(service.id, &[MOVED; SLOTS], &[])?;
        assert_eq!(arrives_at(&mut rig, &error)?, OLD);
        assert!(rig.entries(Table::Flows)?.is_empty());
    }
    Ok(())
}

#[test]
fn short_quotes_are_rewritten_as_far_as_they_go() -> Result<()> {
    for service in services() {
        if service.mode != mode::NAT {
            continue;
        }
        let mut rig = rig(&service, UNMOVED)?;
        let whole = answered(&service).build().len() - 14;
        let backend = backend_address(&service, OLD);
        let expected = Segment {
            from: backend,
            ..answered(&service)
        }
        .build()[14..]
            .to_vec();
        let check = least(&service) - 8 + 16;
        for length in least(&service)..=whole {
            let sent = about(&service, &answered(&service), length);
            let (_, out, outcome) = rig.run(&sent.build())?;
            assert_eq!(outcome, Outcome::ForwardIcmp, "{length} bytes");
            let arrived = Message::parse(&out).unwrap();
            if length == check + 1 {
                // Half a checksum can not be amended.
                assert_eq!(arrived.body[..check], expected[..check], "{length} bytes");
            } else {
                assert_eq!(arrived.body, expected[..length], "{length} bytes");
            }
        }
    }
    Ok(())
}

#[test]
fn errors_from_the_backends_side_go_to_the_client() -> Result<()> {
    for service in services() {
        if service.mode != mode::NAT {
            continue;
        }
        let mut rig = rig(&service, UNMOVED)?;
        let backend = backend_address(&service, OLD);
        for (to, verdict, outcome, ttl) in [
            (
                client(&service),
                Verdict::Redirect,
                Outcome::ForwardIcmpReply,
                59,
            ),
            (
                neighbourless(&service),
                Verdict::Pass,
                Outcome::ForwardReplyKernel,
                60,
            ),
        ] {
            for from in [router(&service), backend.ip()] {
                let carried = Segment::new(to, backend, ACK).at(5, 6).data(b"too much");
                let sent = Message {
                    from,
                    ..about(&service, &carried, WHOLE)
                };
                let (got, out, counted) = rig.run(&sent.build())?;
                assert_eq!((got, counted), (verdict, outcome));
                let arrived = Message::parse(&out).unwrap();
                assert_eq!(
                    arrived.quoted().expect("a sound quote"),
                    Segment {
                        to: service.vip,
                        ..carried
                    }
                );
                assert_eq!(
                    (arrived.from, arrived.to, arrived.ttl),
                    (service.vip.ip(), to.ip(), ttl)
                );
                assert_eq!(
                    (arrived.kind, arrived.code, arrived.word),
                    (sent.kind, sent.code, sent.word)
                );
            }
        }
        // What the node itself asked a backend, such as a health check, is the node's own.
        let node = if service.vip.is_ipv4() {
            "192.0.2.254"
        } else {
            "2001:db8:1::fe"
        };
        let sent = about(&service, &Segment::new(at(node, 999), backend, SYN), WHOLE);
        let (verdict, out, outcome) = rig.run(&sent.build())?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassReplyLocal));
        assert_eq!(out, sent.build());
    }
    Ok(())
}

/// A client whose neighbour the kernel has to find first.
fn neighbourless(service: &ServiceSetup) -> SocketAddr {
    if service.vip.is_ipv4() {
        at("192.0.2.9", 1000)
    } else {
        at("2001:db8:1::9", 1000)
    }
}

#[test]
fn errors_about_nothing_of_ours_pass_untouched() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let sound = about(&service, &answered(&service), WHOLE);
        let quote_of = |edit: &dyn Fn(&mut Segment)| {
            let mut segment = answered(&service);
            edit(&mut segment);
            about(&service, &segment, WHOLE)
        };
        let body = |place: usize, value: u8| {
            let mut message = sound.clone();
            message.body[place] = value;
            message
        };
        let mut rows = vec![
            (
                "another port",
                quote_of(&|segment| segment.from.set_port(81)),
            ),
            (
                "another address",
                quote_of(&|segment| segment.from.set_ip(router(&service))),
            ),
            (
                "not to whom it quotes",
                Message {
                    to: router(&service),
                    ..sound.clone()
                },
            ),
            ("quote of another IP version", body(0, 0x55)),
            (
                "less than 8 bytes of transport",
                about(&service, &answered(&service), least(&service) - 1),
            ),
            ("no quote", about(&service, &answered(&service), 0)),
        ];
        if service.vip.is_ipv4() {
            rows.push((
                "redirect",
                Message {
                    kind: 5,
                    ..sound.clone()
                },
            ));
            rows.push((
                "source quench",
                Message {
                    kind: 4,
                    ..sound.clone()
                },
            ));
            rows.push(("quote of GRE", body(9, 47)));
            rows.push(("quote of a later fragment", body(7, 8)));
            rows.push(("quote with a header of 16 bytes", body(0, 0x44)));
        } else {
            rows.push((
                "redirect",
                Message {
                    kind: 137,
                    ..sound.clone()
                },
            ));
            rows.push((
                "neighbour solicitation",
                Message {
                    kind: 135,
                    ..sound.clone()
                },
            ));
            rows.push((
                "type 0",
                Message {
                    kind: 0,
                    ..sound.clone()
                },
            ));
            rows.push(("quote of GRE", body(6, 47)));
        }
        for (what, message) in rows {
            let (verdict, out, outcome) = rig.run(&message.build())?;
            assert_eq!(out, message.build(), "{what}");
            assert_eq!(verdict, Verdict::Pass, "{what}");
            assert!(
                matches!(outcome, Outcome::PassIcmp | Outcome::PassTruncated),
                "{what}: {outcome:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_truncation_of_an_error_passes_untouched() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let (request, _) = echo(&service);
        let ping = Message::new(client(&service).ip(), service.vip.ip(), request, 0, b"ping");
        let mut tagged = ping.clone();
        tagged.tags = vec![(0x88a8, 7), (0x8100, 100)];
        let error = about(&service, &answered(&service), WHOLE);
        for whole in [ping.build(), tagged.build(), error.build()] {
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
            assert!(rig.run(&whole)?.0 == Verdict::Tx);
        }
    }
    Ok(())
}

#[test]
fn an_error_whose_time_to_live_is_used_up_goes_nowhere() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let mut error = about(&service, &answered(&service), WHOLE);
        error.ttl = 1;
        let expected = if service.mode == mode::NAT {
            (Verdict::Drop, Outcome::DropTtl)
        } else {
            (Verdict::Tx, Outcome::ForwardIcmp)
        };
        let (verdict, _, outcome) = rig.run(&error.build())?;
        assert_eq!((verdict, outcome), expected);
    }
    Ok(())
}

#[test]
fn tags_and_options_are_parsed_around() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, UNMOVED)?;
        let mut error = about(&service, &answered(&service), WHOLE);
        error.tags = vec![(0x8100, 100)];
        if service.vip.is_ipv4() {
            error.ip_options = vec![1; 8];
        }
        let (verdict, out, outcome) = rig.run(&error.build())?;
        assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardIcmp));
        let arrived = Message::parse(&out).unwrap();
        assert_eq!(
            (&arrived.tags, &arrived.ip_options),
            (&error.tags, &error.ip_options)
        );
        let source = if service.mode == mode::NAT {
            backend_address(&service, OLD)
        } else {
            service.vip
        };
        assert_eq!(arrived.quoted().expect("a sound quote").from, source);
    }
    Ok(())
}

#[test]
fn openings_and_errors_agree_where_a_backend_is_missing() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, Slot::new(0, 0, false))?;
        let error = about(&service, &answered(&service), WHOLE);
        let (verdict, _, outcome) = rig.run(&error.build())?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropNoBackend));
    }
    Ok(())
}

#[test]
fn errors_go_through_tunnels_as_they_are() -> Result<()> {
    for (vip, outer) in [
        ("203.0.113.10", "10.0.0.1"),
        ("203.0.113.10", "fd00::1"),
        ("2001:db8:f::10", "10.0.0.1"),
        ("2001:db8:f::10", "fd00::1"),
    ] {
        for mode in [mode::IPIP, mode::GUE] {
            let service = ServiceSetup {
                id: 1,
                vip: at(vip, 80),
                mode,
                flags: 0,
            };
            let mut rig = Rig::new()?;
            rig.backend(&service, OLD, at(outer, 80))?;
            rig.service(service, &[UNMOVED; SLOTS])?;
            let mut error = about(&service, &answered(&service), WHOLE);
            let plain = error.build();
            error.tags = vec![(0x88a8, 7), (0x8100, 100)];
            for frame in [&plain, &error.build()] {
                let (verdict, out, outcome) = rig.run(frame)?;
                assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardIcmp));
                let arrived = Outer::parse(&out).expect("sound outer headers");
                assert_eq!(arrived.inner, plain[14..], "{vip} in {outer}");
            }
        }
    }
    Ok(())
}

//! The loaded program on fragments: what is cut, sent through it piece by piece and put together again is what a whole
//! packet would have become, checksums included. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    fragments::{cut, join, part},
    outer::Outer,
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    abi::{Slot, control_flags, mode},
    outcome::Outcome,
    steer::tcp::ACK,
};
use lb_userspace::datapath::{Datapath, Table};

const OLD: u32 = 1;
const NEW: u32 = 2;
const SLOTS: usize = 101;
const UNMOVED: Slot = Slot::new(OLD, OLD, false);

fn services() -> [ServiceSetup; 4] {
    let service = |id, vip: &str, mode| ServiceSetup {
        id,
        vip: at(vip, 80),
        mode,
        flags: 0,
    };
    [
        service(1, "203.0.113.10", mode::L2),
        service(1, "203.0.113.10", mode::NAT),
        service(2, "2001:db8:f::10", mode::L2),
        service(2, "2001:db8:f::10", mode::NAT),
    ]
}

fn backend_address(service: &ServiceSetup, id: u32) -> SocketAddr {
    let port = if service.mode == mode::NAT { 8080 } else { 80 };
    if service.vip.is_ipv4() {
        at(&format!("10.0.0.{id}"), port)
    } else {
        at(&format!("fd00::{id}"), port)
    }
}

fn rig(service: &ServiceSetup) -> Result<Rig> {
    let mut rig = Rig::new()?;
    for id in [OLD, NEW] {
        rig.backend(service, id, backend_address(service, id))?;
    }
    rig.service(*service, &[UNMOVED; SLOTS])?;
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

fn asked(service: &ServiceSetup) -> Segment {
    let data: Vec<u8> = (0..3001).map(|n| (n * 7) as u8).collect();
    Segment::new(client(service), service.vip, ACK)
        .at(78, 9000)
        .data(&data)
}

/// Where the IP header of a frame ends.
fn header(service: &ServiceSetup) -> usize {
    if service.vip.is_ipv4() { 34 } else { 54 }
}

/// Runs each frame; all but the first must be counted as later fragments.
fn run_all(
    rig: &mut Rig,
    frames: &[Vec<u8>],
    verdict: Verdict,
    first: Outcome,
) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let (got, bytes, outcome) = rig.run(frame)?;
        let expected = if number == 0 {
            first
        } else {
            Outcome::ForwardFragment
        };
        assert_eq!((got, outcome), (verdict, expected), "fragment {number}");
        out.push(bytes);
    }
    Ok(out)
}

#[test]
fn fragments_become_what_the_whole_packet_would() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        for (id, first) in [(1, 24), (2, 48), (3, 1400)] {
            let frames = cut(&asked(&service).build(), first, 1400, id);
            let out = run_all(&mut rig, &frames, Verdict::Tx, Outcome::ForwardSteady)?;
            let arrived = Segment::parse(&join(&out).unwrap()).unwrap();
            let (to_mac, from_mac) = backend_macs(OLD);
            let expected = if service.mode == mode::NAT {
                let to = backend_address(&service, OLD);
                Segment {
                    to,
                    ttl: 63,
                    ..asked(&service)
                }
            } else {
                asked(&service)
            };
            assert_eq!(
                arrived,
                Segment {
                    to_mac,
                    from_mac,
                    ..expected
                }
            );
            for frame in &out {
                assert_eq!(frame[..12], [to_mac, from_mac].concat());
            }
        }
        assert_eq!(rig.stats(OLD)?.packets, 4 + 4 + 3);
    }
    Ok(())
}

#[test]
fn later_fragments_follow_the_first_through_a_change() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        let frames = cut(&asked(&service).build(), 1024, 1024, 9);
        assert_eq!(rig.run(&frames[0])?.2, Outcome::ForwardSteady);
        rig.datapath
            .publish_table(service.id, &[Slot::new(NEW, NEW, false); SLOTS], &[])?;
        for frame in &frames[1..] {
            let (_, out, outcome) = rig.run(frame)?;
            assert_eq!((outcome, out[5]), (Outcome::ForwardFragment, OLD as u8));
        }
        // The next packet goes where new ones go, even under the same identification.
        let (_, out, _) = rig.run(&frames[0])?;
        assert_eq!(out[5], NEW as u8);
        let (_, out, _) = rig.run(&frames[1])?;
        assert_eq!(out[5], NEW as u8);
    }
    Ok(())
}

#[test]
fn answers_in_fragments_go_to_the_client_as_from_the_service() -> Result<()> {
    for service in services() {
        if service.mode != mode::NAT {
            continue;
        }
        let mut rig = rig(&service)?;
        let data: Vec<u8> = (0..2900).map(|n| (n * 3) as u8).collect();
        let backend = backend_address(&service, OLD);
        let answer = Segment::new(backend, client(&service), ACK).data(&data);
        let frames = cut(&answer.build(), 1400, 1400, 5);
        let out = run_all(&mut rig, &frames, Verdict::Redirect, Outcome::ForwardReply)?;
        let arrived = Segment::parse(&join(&out).unwrap()).unwrap();
        let expected = Segment {
            to_mac: [2, 0, 0, 0, 0, 0xc1],
            from_mac: [2, 0, 0, 0, 0, 1],
            from: service.vip,
            ttl: 63,
            ..answer.clone()
        };
        assert_eq!(arrived, expected);

        // The kernel has to find this client first: all fragments take that way.
        let far = if service.vip.is_ipv4() {
            "192.0.2.9"
        } else {
            "2001:db8:1::9"
        };
        let answer = Segment {
            to: at(far, 1000),
            ..answer
        };
        let mut out = Vec::new();
        for frame in cut(&answer.build(), 1400, 1400, 6) {
            let (verdict, bytes, outcome) = rig.run(&frame)?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::ForwardReplyKernel)
            );
            out.push(bytes);
        }
        let arrived = Segment::parse(&join(&out).unwrap()).unwrap();
        assert_eq!(
            arrived,
            Segment {
                from: service.vip,
                ..answer
            }
        );
    }
    Ok(())
}

#[test]
fn what_tells_packets_apart_tells_fragments_apart() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        let whole = asked(&service).build();
        let frames = cut(&whole, 1024, 1024, 9);
        rig.run(&frames[0])?;
        let other_id = &cut(&whole, 1024, 1024, 10)[1];
        assert_eq!(rig.run(other_id)?.2, Outcome::PassFragmentEarly);
        let mut other_client = asked(&service);
        other_client.from = if service.vip.is_ipv4() {
            at("192.0.2.2", 1000)
        } else {
            at("2001:db8:1::2", 1000)
        };
        let frame = &cut(&other_client.build(), 1024, 1024, 9)[1];
        assert_eq!(rig.run(frame)?.2, Outcome::PassFragmentEarly);
        if service.vip.is_ipv4() {
            let mut other_protocol = frames[1].clone();
            other_protocol[23] = 17;
            let (_, out, outcome) = rig.run(&other_protocol)?;
            assert_eq!((out, outcome), (other_protocol, Outcome::PassFragmentEarly));
        }
        assert_eq!(rig.run(&frames[1])?.2, Outcome::ForwardFragment);
    }
    Ok(())
}

#[test]
fn early_fragments_are_passed_or_dropped_as_configured() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        let frames = cut(&asked(&service).build(), 1024, 1024, 9);
        let (verdict, out, outcome) = rig.run(&frames[1])?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Pass, Outcome::PassFragmentEarly)
        );
        assert_eq!(out, frames[1]);
        rig.datapath
            .put_node_flags(control_flags::DROP_EARLY_FRAGMENTS)?;
        let (verdict, _, outcome) = rig.run(&frames[1])?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Drop, Outcome::DropFragmentEarly)
        );
        assert_eq!(
            rig.datapath.outcomes(service.id)?[Outcome::DropFragmentEarly as usize],
            1
        );
        // What is not to a service is not dropped.
        let mut elsewhere = asked(&service);
        elsewhere.to = client(&service);
        let frame = &cut(&elsewhere.build(), 1024, 1024, 9)[1];
        let (verdict, out, outcome) = rig.run(frame)?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassFragment));
        assert_eq!(&out, frame);
    }
    Ok(())
}

#[test]
fn tiny_and_overlapping_fragments_are_not_served() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        let whole = asked(&service).build();
        let (headers, data) = whole.split_at(header(&service));
        let sound = part(headers, &data[..1024], 0, true, 9);
        assert_eq!(rig.run(&sound)?.2, Outcome::ForwardSteady);
        let rows = [
            ("no ports", part(headers, &data[..0], 0, true, 8)),
            (
                "half of the TCP header",
                part(headers, &data[..16], 0, true, 8),
            ),
            (
                "over the TCP flags",
                part(headers, &data[8..24], 8, true, 9),
            ),
            (
                "over the TCP checksum",
                part(headers, &data[16..24], 16, false, 9),
            ),
        ];
        for (what, frame) in rows {
            let (verdict, out, outcome) = rig.run(&frame)?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::PassFragmentTiny),
                "{what}"
            );
            assert_eq!(out, frame, "{what}");
        }
        // TCP options that go beyond the first fragment.
        let mut long = asked(&service);
        long.options = vec![1; 40];
        let frame = &cut(&long.build(), 24, 1024, 8)[0];
        assert_eq!(rig.run(frame)?.2, Outcome::PassFragmentTiny);
    }
    Ok(())
}

#[test]
fn every_truncation_of_a_fragment_passes_untouched() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service)?;
        let mut small = asked(&service);
        small.data.truncate(40);
        let frames = cut(&small.build(), 32, 32, 9);
        for frame in &frames {
            for length in 14..frame.len() {
                let cut = &frame[..length];
                let (verdict, out, outcome) = rig.run(cut)?;
                assert_eq!(
                    (verdict, outcome),
                    (Verdict::Pass, Outcome::PassTruncated),
                    "{length} bytes"
                );
                assert_eq!(out, cut, "{length} bytes");
            }
            assert_eq!(rig.run(frame)?.0, Verdict::Tx);
        }
    }
    Ok(())
}

#[test]
fn extension_headers_past_the_payload_length_are_malformed() -> Result<()> {
    /// Where the payload length is, and the first extension header.
    const LENGTH: std::ops::Range<usize> = 18..20;
    const EXTENSIONS: usize = 54;
    for service in services() {
        if service.vip.is_ipv4() {
            continue;
        }
        for options in [false, true] {
            let mut rig = rig(&service)?;
            let mut frames = cut(&asked(&service).build(), 1024, 1024, 9);
            if options {
                // In front of the fragment header, destination options: of 8 bytes, filled by PadN.
                for frame in &mut frames {
                    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
                    frame[LENGTH].copy_from_slice(&length.to_be_bytes());
                    let next = std::mem::replace(&mut frame[20], 60);
                    frame.splice(EXTENSIONS..EXTENSIONS, [next, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
            assert_eq!(rig.run(&frames[0])?.2, Outcome::ForwardSteady);
            let headers = if options { 16 } else { 8 };
            for frame in &frames[..2] {
                for length in 0..headers {
                    let mut short = frame.clone();
                    short[LENGTH].copy_from_slice(&u16::to_be_bytes(length));
                    let (verdict, out, outcome) = rig.run(&short)?;
                    assert_eq!(
                        (verdict, outcome),
                        (Verdict::Pass, Outcome::PassMalformed),
                        "{length} bytes, options: {options}"
                    );
                    assert_eq!(out, short);
                }
            }
            // As far as the headers, without data: nothing contradicts itself.
            let mut empty = frames[1].clone();
            empty[LENGTH].copy_from_slice(&u16::to_be_bytes(headers));
            assert_eq!(rig.run(&empty)?.2, Outcome::ForwardFragment);
        }
    }
    Ok(())
}

#[test]
fn an_ipv6_packet_that_is_its_only_fragment_is_whole() -> Result<()> {
    // RFC 6946: a fragment header with offset 0 and no more to come.
    let service = services()[3];
    let mut rig = rig(&service)?;
    let whole = asked(&service).build();
    let (headers, data) = whole.split_at(54);
    let frame = part(headers, data, 0, false, 9);
    let (verdict, out, outcome) = rig.run(&frame)?;
    assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardSteady));
    let arrived = Segment::parse(&join(&[out]).unwrap()).unwrap();
    assert_eq!(arrived.to, backend_address(&service, OLD));
    Ok(())
}

#[test]
fn used_up_time_to_live_of_a_later_fragment() -> Result<()> {
    for service in services() {
        if service.mode != mode::NAT {
            continue;
        }
        let mut rig = rig(&service)?;
        let mut packet = asked(&service);
        rig.run(&cut(&packet.build(), 1024, 1024, 9)[0])?;
        packet.ttl = 1;
        let (verdict, _, outcome) = rig.run(&cut(&packet.build(), 1024, 1024, 9)[1])?;
        assert_eq!((verdict, outcome), (Verdict::Drop, Outcome::DropTtl));
    }
    Ok(())
}

#[test]
fn a_flood_of_first_fragments_touches_no_flow_and_leaves_room_for_the_next() -> Result<()> {
    let service = services()[1];
    let mut rig = rig(&service)?;
    rig.datapath
        .publish_table(service.id, &[Slot::new(NEW, OLD, false); SLOTS], &[])?;
    assert_eq!(
        rig.run(
            &Segment {
                data: vec![],
                ..asked(&service)
            }
            .build()
        )?
        .2,
        Outcome::ForwardAdopted
    );
    let before = rig.entries(Table::Flows)?;
    let mut packet = asked(&service);
    packet.data.truncate(40);
    // More than are remembered; all of one flow, so that flows stay as they were.
    for id in 0..20_000 {
        rig.run_unlooked(&cut(&packet.build(), 32, 32, id)[0])?;
    }
    assert_eq!(rig.entries(Table::Flows)?.len(), before.len());
    let frames = cut(&packet.build(), 32, 32, 30_000);
    assert_eq!(rig.run(&frames[0])?.2, Outcome::ForwardFlow);
    assert_eq!(rig.run(&frames[1])?.2, Outcome::ForwardFragment);
    Ok(())
}

#[test]
fn fragments_go_through_tunnels_as_they_are() -> Result<()> {
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
            let frames = cut(&asked(&service).build(), 1024, 1024, 9);
            for (number, frame) in frames.iter().enumerate() {
                let (verdict, out, outcome) = rig.run(frame)?;
                let expected = if number == 0 {
                    Outcome::ForwardSteady
                } else {
                    Outcome::ForwardFragment
                };
                assert_eq!(
                    (verdict, outcome),
                    (Verdict::Tx, expected),
                    "{vip} in {outer}"
                );
                let arrived = Outer::parse(&out).expect("sound outer headers");
                assert_eq!(arrived.inner, frame[14..], "{vip} in {outer}");
            }
        }
    }
    Ok(())
}

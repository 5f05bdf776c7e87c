//! The tunnel modes, packet by packet: outer headers of every pair of families, congestion bits, the MTU limit on both
//! sides, and the answers to what does not fit. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    outer::Outer,
    packets::Segment,
    rig::{Rig, ServiceSetup, TUNNEL_PORT, Verdict, at, backend_macs, tunnel_source},
};
use lb_common::{
    Addr,
    abi::{Slot, mode},
    checksum::{fold, sum_bytes},
    outcome::Outcome,
    steer::tcp::{ACK, SYN},
    tunnel,
};

const BACKEND: u32 = 1;
const SLOTS: usize = 101;
const MODES: [u8; 2] = [mode::IPIP, mode::GUE];
/// Inner and outer family: whether each is IPv4.
const FAMILIES: [(bool, bool); 4] = [(true, true), (false, false), (true, false), (false, true)];

fn vip(v4: bool) -> SocketAddr {
    at(if v4 { "203.0.113.10" } else { "2001:db8:f::10" }, 80)
}

fn client(v4: bool, port: u16) -> SocketAddr {
    at(if v4 { "192.0.2.7" } else { "2001:db8:1::7" }, port)
}

fn backend(v4: bool) -> SocketAddr {
    at(if v4 { "10.0.0.1" } else { "fd00::1" }, 80)
}

/// A rig with one service and one backend, whose next hop takes packets of `mtu` bytes.
fn rig(mode: u8, (inner, outer): (bool, bool), mtu: u16) -> Result<Rig> {
    let mut rig = Rig::new()?;
    let service = ServiceSetup {
        id: 1,
        vip: vip(inner),
        mode,
        flags: 0,
    };
    rig.backend_with(&service, BACKEND, backend(outer), |record| record.mtu = mtu)?;
    rig.service(service, &[Slot::new(BACKEND, BACKEND, false); SLOTS])?;
    Ok(rig)
}

fn segment(v4: bool, port: u16, flags: u8) -> Segment {
    Segment::new(client(v4, port), vip(v4), flags).at(7, 9)
}

/// A segment whose packet has `length` bytes from its IP header on.
fn sized(v4: bool, length: usize) -> Segment {
    let headers = if v4 { 40 } else { 60 };
    let data: Vec<u8> = (0..length - headers).map(|at| at as u8).collect();
    segment(v4, 1000, ACK).data(&data)
}

/// Sends it on and returns the outer headers, having checked that the packet inside is as it was.
fn through(rig: &mut Rig, frame: &[u8], outcome: Outcome) -> Result<Outer> {
    let (verdict, out, counted) = rig.run(frame)?;
    assert_eq!((verdict, counted), (Verdict::Tx, outcome));
    let outer = Outer::parse(&out).expect("sound outer headers");
    assert_eq!(outer.inner, frame[14..], "the packet inside is untouched");
    Ok(outer)
}

#[test]
fn outer_headers_of_every_pair_of_families() -> Result<()> {
    for mode in MODES {
        for (inner, outer) in FAMILIES {
            let what = format!("mode {mode} inner v4 {inner} outer v4 {outer}");
            let mut rig = rig(mode, (inner, outer), 1600)?;
            // Odd and even lengths, and one that is filled up to Ethernet's least.
            for data in [&b""[..], b"x", b"four", &[7; 1400]] {
                let packet = segment(inner, 1000, ACK).data(data).build();
                let seen = through(&mut rig, &packet, Outcome::ForwardSteady)?;
                assert_eq!(seen.macs, backend_macs(BACKEND), "{what}");
                assert_eq!(
                    Addr::from(seen.source),
                    tunnel_source(backend(outer).ip()),
                    "{what}"
                );
                assert_eq!(seen.destination, backend(outer).ip(), "{what}");
                assert_eq!((seen.ttl, seen.class), (64, 0), "{what}");
                let protocol = match (mode, inner) {
                    (mode::GUE, _) => 17,
                    (_, true) => 4,
                    (_, false) => 41,
                };
                assert_eq!(seen.protocol, protocol, "{what}");
                assert_eq!(seen.udp.is_some(), mode == mode::GUE, "{what}");
                if let Some(udp) = seen.udp {
                    assert_eq!(udp.destination, TUNNEL_PORT, "{what}");
                    assert!(udp.source >= 49152, "{what}: {}", udp.source);
                    // `Outer::parse` has checked it where it stands.
                    assert_eq!(udp.check == 0, outer, "{what}");
                }
            }
            let opening = segment(inner, 1001, SYN).build();
            through(&mut rig, &opening, Outcome::ForwardOpening)?;
            assert_eq!(rig.stats(BACKEND)?.packets, 5, "{what}");
        }
    }
    Ok(())
}

#[test]
fn padding_of_the_frame_is_not_part_of_the_packet() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut rig = rig(mode, families, 1600)?;
        let packet = segment(families.0, 1000, ACK).build();
        let mut padded = packet.clone();
        padded.extend([0xaa; 20]);
        let (verdict, out, _) = rig.run(&padded)?;
        assert_eq!(verdict, Verdict::Tx);
        let outer = Outer::parse(&out).expect("sound outer headers");
        assert_eq!(outer.inner, packet[14..]);
    }
    Ok(())
}

#[test]
fn traffic_class_and_congestion_bits_are_copied() -> Result<()> {
    for mode in MODES {
        for (inner, outer) in FAMILIES {
            let mut rig = rig(mode, (inner, outer), 1600)?;
            for class in [0u8, 1, 2, 3, 0xb8, 0xbb, 0xff] {
                let mut frame = segment(inner, 1000, ACK).data(b"data").build();
                set_class(&mut frame, class);
                let seen = through(&mut rig, &frame, Outcome::ForwardSteady)?;
                assert_eq!(seen.class, class, "mode {mode} {inner} {outer}");
            }
        }
    }
    Ok(())
}

fn set_class(frame: &mut [u8], class: u8) {
    if frame[12] == 0x08 {
        frame[15] = class;
        frame[24..26].fill(0);
        let check = !fold(sum_bytes(&frame[14..34]));
        frame[24..26].copy_from_slice(&check.to_ne_bytes());
    } else {
        frame[14] = 0x60 | class >> 4;
        frame[15] = class << 4;
    }
}

#[test]
fn flows_spread_over_source_ports_and_labels_and_each_keeps_its_own() -> Result<()> {
    for outer in [true, false] {
        let mut rig = rig(mode::GUE, (true, outer), 1600)?;
        let mut seen = std::collections::BTreeSet::new();
        for port in 1000..1256 {
            let first = through(
                &mut rig,
                &segment(true, port, ACK).build(),
                Outcome::ForwardSteady,
            )?;
            let again = segment(true, port, ACK).data(b"more").build();
            let again = through(&mut rig, &again, Outcome::ForwardSteady)?;
            let source = |outer: &Outer| outer.udp.expect("a UDP header").source;
            assert_eq!(source(&first), source(&again));
            assert_eq!(first.flow_label, again.flow_label);
            seen.insert((source(&first), first.flow_label));
        }
        assert!(seen.len() > 240, "{} of 256 flows differ", seen.len());
        let low: std::collections::BTreeSet<_> = seen.iter().map(|(port, _)| port % 8).collect();
        assert_eq!(low.len(), 8, "every low bit pattern occurs");
    }
    Ok(())
}

#[test]
fn options_extensions_and_tags_go_through_too() -> Result<()> {
    for mode in MODES {
        for outer in [true, false] {
            let mut rig = rig(mode, (true, outer), 1600)?;
            let mut packet = segment(true, 1000, ACK).data(b"data");
            packet.ip_options = vec![1; 8];
            through(&mut rig, &packet.build(), Outcome::ForwardSteady)?;
            // One tag and two: the frame to the backend is its own and has none.
            let plain = segment(true, 1000, ACK).data(b"data").build();
            for tags in [&[0x81, 0, 0, 7][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]] {
                let tagged = [&plain[..12], tags, &plain[12..]].concat();
                let (verdict, out, counted) = rig.run(&tagged)?;
                assert_eq!((verdict, counted), (Verdict::Tx, Outcome::ForwardSteady));
                let seen = Outer::parse(&out).expect("sound outer headers");
                assert_eq!(seen.inner, plain[14..]);
            }
        }
    }
    Ok(())
}

#[test]
fn the_largest_packet_that_fits_goes_and_the_next_is_answered() -> Result<()> {
    for mode in MODES {
        for (inner, outer) in FAMILIES {
            let what = format!("mode {mode} inner v4 {inner} outer v4 {outer}");
            for mtu in [1500, 1600] {
                let mut rig = rig(mode, (inner, outer), mtu)?;
                let room = usize::from(mtu - tunnel::overhead(mode, outer));
                let fits = sized(inner, room).build();
                through(&mut rig, &fits, Outcome::ForwardSteady)?;
                let large = sized(inner, room + 1).build();
                let (verdict, out, counted) = rig.run(&large)?;
                assert_eq!(
                    (verdict, counted),
                    (Verdict::Tx, Outcome::AnswerTooBig),
                    "{what}"
                );
                assert_too_big(&out, &large, inner, room);
                assert_eq!(rig.stats(BACKEND)?.packets, 1, "{what}");
            }
        }
    }
    Ok(())
}

/// A correct fragmentation-needed or packet-too-big that names `mtu`, for `original`.
fn assert_too_big(frame: &[u8], original: &[u8], v4: bool, mtu: usize) {
    assert_eq!(frame[..6], original[6..12], "to whoever sent the frame");
    assert_eq!(frame[6..12], original[..6]);
    assert_eq!(frame[12..14], original[12..14]);
    let (header, message) = frame[14..].split_at(if v4 { 20 } else { 40 });
    let quote = &message[8..];
    assert_eq!(*quote, original[14..][..quote.len()], "quotes the packet");
    if v4 {
        assert_eq!(fold(sum_bytes(header)), 0xffff);
        assert_eq!((header[8], header[9]), (64, 1));
        assert_eq!(header[12..16], original[30..34], "from the VIP");
        assert_eq!(header[16..20], original[26..30], "to the client");
        assert_eq!(header.len() + message.len(), 576);
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), 576);
        assert_eq!(message[..2], [3, 4]);
        assert_eq!(message[4..6], [0, 0]);
        assert_eq!(
            usize::from(u16::from_be_bytes([message[6], message[7]])),
            mtu
        );
        assert_eq!(fold(sum_bytes(message)), 0xffff);
    } else {
        assert_eq!((header[6], header[7]), (58, 64));
        assert_eq!(header[8..24], original[38..54], "from the VIP");
        assert_eq!(header[24..40], original[22..38], "to the client");
        assert_eq!(header.len() + message.len(), 1280);
        assert_eq!(
            usize::from(u16::from_be_bytes([header[4], header[5]])),
            1240
        );
        assert_eq!(message[..2], [2, 0]);
        let named = u32::from_be_bytes(message[4..8].try_into().expect("four bytes"));
        assert_eq!(named as usize, mtu);
        let pseudo = sum_bytes(&header[8..40]) + sum_bytes(&[0, 58]) + sum_bytes(&header[4..6]);
        assert_eq!(fold(pseudo + sum_bytes(message)), 0xffff);
    }
}

#[test]
fn a_packet_that_may_be_fragmented_is_answered_as_well() -> Result<()> {
    let mut rig = rig(mode::IPIP, (true, true), 1500)?;
    let mut large = sized(true, 1481).build();
    large[20] = 0;
    large[24..26].fill(0);
    let check = !fold(sum_bytes(&large[14..34]));
    large[24..26].copy_from_slice(&check.to_ne_bytes());
    let (verdict, out, counted) = rig.run(&large)?;
    assert_eq!((verdict, counted), (Verdict::Tx, Outcome::AnswerTooBig));
    assert_too_big(&out, &large, true, 1480);
    Ok(())
}

#[test]
fn tags_and_options_are_in_the_answer() -> Result<()> {
    let mut rig = rig(mode::IPIP, (true, true), 1500)?;
    let mut packet = sized(true, 1481);
    packet.ip_options = vec![1; 8];
    let plain = packet.build();
    for tags in [
        &[][..],
        &[0x81, 0, 0, 7],
        &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7],
    ] {
        let tagged = [&plain[..12], tags, &plain[12..]].concat();
        let (verdict, out, counted) = rig.run(&tagged)?;
        assert_eq!((verdict, counted), (Verdict::Tx, Outcome::AnswerTooBig));
        assert_eq!(out[12..12 + tags.len()], *tags);
        let untagged = [&out[..12], &out[12 + tags.len()..]].concat();
        assert_too_big(&untagged, &plain, true, 1480);
    }
    Ok(())
}

#[test]
fn ipv6_clients_are_never_told_less_than_1280() -> Result<()> {
    let mut rig = rig(mode::GUE, (false, false), 1300)?;
    let (_, out, counted) = rig.run(&sized(false, 1281).build())?;
    assert_eq!(counted, Outcome::AnswerTooBig);
    assert_too_big(&out, &sized(false, 1281).build(), false, 1280);
    // Between what fits and 1280 nothing helps the client.
    let (verdict, _, counted) = rig.run(&sized(false, 1280).build())?;
    assert_eq!((verdict, counted), (Verdict::Drop, Outcome::DropTooBig));
    let (_, _, counted) = rig.run(&sized(false, 1252).build())?;
    assert_eq!(counted, Outcome::ForwardSteady);
    Ok(())
}

#[test]
fn answers_are_bounded_and_go_to_single_hosts_only() -> Result<()> {
    let mut rig = rig(mode::IPIP, (true, true), 1500)?;
    for from in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let mut packet = sized(true, 1481);
        packet.from = at(from, 1000);
        let (verdict, _, counted) = rig.run(&packet.build())?;
        assert_eq!(
            (verdict, counted),
            (Verdict::Drop, Outcome::DropTooBig),
            "{from}"
        );
    }
    let large = sized(true, 1481).build();
    let (mut answered, mut dropped) = (0, 0);
    for _ in 0..20_000 {
        match rig.run_fast(&large)? {
            Verdict::Tx => answered += 1,
            Verdict::Drop => dropped += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        answered > 0 && dropped > 0,
        "{answered} answered, {dropped} dropped"
    );
    Ok(())
}

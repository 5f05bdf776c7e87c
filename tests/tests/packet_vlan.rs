//! The loaded program on tagged frames (802.1Q, QinQ) and towards tagged next hops. Needs root.

use std::net::SocketAddr;

use anyhow::Result;
use ebb_tests::{
    fragments::{cut, join},
    icmp::Message,
    outer::Outer,
    packets::Segment,
    rig::{INGRESS, Rig, ServiceSetup, Verdict, at, backend_macs},
};
use lb_common::{
    abi::{Slot, VlanDevice, backend_flags, mode, service_flags},
    outcome::Outcome,
    steer::tcp::ACK,
};
use lb_userspace::{datapath::Datapath, model::observed::Vlans};

const OLD: u32 = 1;
const SLOTS: usize = 101;
const UNMOVED: Slot = Slot::new(OLD, OLD, false);

/// Tags a frame may come with, outermost first: EtherType and control information (priority bits included).
const CAME: [&[(u16, u16)]; 5] = [
    &[],
    &[(0x8100, 0x6064)],
    &[(0x88a8, 7)],
    &[(0x88a8, 7), (0x8100, 100)],
    &[(0x8100, 7), (0x8100, 100)],
];

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

fn backend_address(service: &ServiceSetup) -> SocketAddr {
    let port = if service.mode == mode::NAT { 8080 } else { 80 };
    if service.vip.is_ipv4() {
        at("10.0.0.1", port)
    } else {
        at("fd00::1", port)
    }
}

/// A rig whose backend is behind this interface, with this tag.
fn rig(service: &ServiceSetup, ifindex: u32, vlan: u16) -> Result<Rig> {
    let mut rig = Rig::new()?;
    rig.backend_with(service, OLD, backend_address(service), |record| {
        record.ifindex = ifindex;
        if vlan != 0 {
            record.flags |= backend_flags::TAGGED;
            record.vlan = vlan;
        }
    })?;
    rig.service(*service, &[UNMOVED; SLOTS])?;
    Ok(rig)
}

fn client(service: &ServiceSetup) -> SocketAddr {
    if service.vip.is_ipv4() {
        at("192.0.2.1", 1000)
    } else {
        at("2001:db8:1::1", 1000)
    }
}

fn asked(service: &ServiceSetup) -> Segment {
    Segment::new(client(service), service.vip, ACK).data(b"a question")
}

fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (ether_type, control) in tags {
        tagged.extend(ether_type.to_be_bytes());
        tagged.extend(control.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// The frame without its tags, and these.
fn without_tags(frame: &[u8]) -> (Vec<u8>, Vec<(u16, u16)>) {
    let (mut plain, mut tags) = (frame.to_vec(), Vec::new());
    loop {
        let word = |at: usize| u16::from_be_bytes([plain[at], plain[at + 1]]);
        if !matches!(word(12), 0x8100 | 0x88a8) {
            return (plain, tags);
        }
        tags.push((word(12), word(14)));
        plain.drain(12..16);
    }
}

/// Where the backend is: interface, tag, verdict, and what becomes of the tags.
const WAYS: [(u32, u16, Verdict, Option<u16>); 4] = [
    (INGRESS, 0, Verdict::Tx, None),
    (INGRESS + 1, 0, Verdict::Redirect, Some(0)),
    (INGRESS, 300, Verdict::Tx, Some(300)),
    (INGRESS + 1, 300, Verdict::Redirect, Some(300)),
];

/// What a frame that came with `tags` leaves with.
fn expected(tags: &[(u16, u16)], replaced: Option<u16>) -> Vec<(u16, u16)> {
    match replaced {
        None => tags.to_vec(),
        Some(0) => Vec::new(),
        Some(tag) => vec![(0x8100, tag)],
    }
}

#[test]
fn to_the_backend() -> Result<()> {
    for service in services() {
        for (ifindex, vlan, verdict, replaced) in WAYS {
            let mut rig = rig(&service, ifindex, vlan)?;
            for tags in CAME {
                let frame = with_tags(&asked(&service).build(), tags);
                let (got, out, outcome) = rig.run(&frame)?;
                let what = format!("{tags:x?} to {ifindex} tag {vlan}");
                assert_eq!((got, outcome), (verdict, Outcome::ForwardSteady), "{what}");
                let (plain, left) = without_tags(&out);
                assert_eq!(left, expected(tags, replaced), "{what}");
                let (to_mac, from_mac) = backend_macs(OLD);
                let arrived = Segment::parse(&plain).unwrap();
                let mut wanted = Segment {
                    to_mac,
                    from_mac,
                    ..asked(&service)
                };
                if service.mode == mode::NAT {
                    (wanted.to, wanted.ttl) = (backend_address(&service), 63);
                }
                assert_eq!(arrived, wanted, "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn options_and_extension_headers_behind_tags() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, INGRESS, 300)?;
        let mut packet = asked(&service);
        packet.ip_options = if service.vip.is_ipv4() {
            vec![1; 12]
        } else {
            Vec::new()
        };
        let mut frame = packet.build();
        if !service.vip.is_ipv4() {
            // Destination options of 16 bytes between the headers (RFC 8200 section 4.6).
            frame.splice(54..54, [6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame[20] = 60;
            let length = u16::from_be_bytes([frame[18], frame[19]]) + 16;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
        }
        let (verdict, out, _) = rig.run(&with_tags(&frame, CAME[3]))?;
        assert_eq!(verdict, Verdict::Tx);
        let (mut plain, tags) = without_tags(&out);
        assert_eq!(tags, [(0x8100, 300)]);
        if !service.vip.is_ipv4() {
            plain.drain(54..70);
            plain[20] = 6;
            let length = u16::from_be_bytes([plain[18], plain[19]]) - 16;
            plain[18..20].copy_from_slice(&length.to_be_bytes());
        }
        let arrived = Segment::parse(&plain).unwrap();
        assert_eq!(
            (arrived.ip_options, arrived.data),
            (packet.ip_options, packet.data)
        );
    }
    Ok(())
}

/// The rig's way to the client: by `up0`, which is not the interface that test runs arrive by.
fn up() -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex("up0")?)
}

/// VLAN devices, what becomes of an answer, and the tags that it leaves with.
type Row = (Vlans, Verdict, &'static [(u16, u16)]);

#[test]
fn answers_leave_as_the_kernels_device_says() -> Result<()> {
    for service in services() {
        if service.mode != mode::NAT {
            continue;
        }
        let mut rig = rig(&service, INGRESS, 0)?;
        let answer = Segment::new(backend_address(&service), client(&service), ACK).data(b"answer");
        let fragments = cut(&answer.clone().data(&[7; 1000]).build(), 512, 512, 3);
        // The kernel here has no VLAN devices; of which kind `up0` is, is what the daemon says of it.
        let below = |parent| Vlans::from([(up().expect("up0"), VlanDevice { parent, tag: 300 })]);
        let rows: [Row; 4] = [
            (Vlans::new(), Verdict::Redirect, &[]),
            (below(INGRESS), Verdict::Tx, &[(0x8100, 300)]),
            (below(INGRESS + 5), Verdict::Redirect, &[(0x8100, 300)]),
            (below(0), Verdict::Pass, &[]),
        ];
        for (vlans, verdict, left) in rows {
            rig.datapath.put_vlans(&vlans)?;
            for tags in CAME {
                let (got, out, outcome) = rig.run(&with_tags(&answer.build(), tags))?;
                let kernel = verdict == Verdict::Pass;
                let (reply, left) = if kernel {
                    // The kernel sees the frame with the tags that it came with.
                    (Outcome::ForwardReplyKernel, tags)
                } else {
                    (Outcome::ForwardReply, left)
                };
                assert_eq!((got, outcome), (verdict, reply), "{tags:x?} {vlans:?}");
                let (plain, found) = without_tags(&out);
                assert_eq!(found, left, "{tags:x?} {vlans:?}");
                let arrived = Segment::parse(&plain).unwrap();
                assert_eq!(
                    (arrived.from, arrived.data),
                    (service.vip, answer.data.clone())
                );

                let mut parts = Vec::new();
                for frame in &fragments {
                    let (got, out, _) = rig.run(&with_tags(frame, tags))?;
                    let (plain, found) = without_tags(&out);
                    assert_eq!(
                        (got, found.as_slice()),
                        (verdict, left),
                        "{tags:x?} {vlans:?}"
                    );
                    parts.push(plain);
                }
                let arrived = Segment::parse(&join(&parts).unwrap()).unwrap();
                assert_eq!(arrived.from, service.vip);
            }
        }
        // What is no longer listed is a device like any other.
        rig.datapath.put_vlans(&Vlans::new())?;
        assert_eq!(rig.run(&answer.build())?.0, Verdict::Redirect);
    }
    Ok(())
}

#[test]
fn echo_and_errors_behind_tags() -> Result<()> {
    for service in services() {
        for (ifindex, vlan, verdict, replaced) in WAYS {
            let mut rig = rig(&service, ifindex, vlan)?;
            let (echo, error) = if service.vip.is_ipv4() {
                (8, 3)
            } else {
                (128, 2)
            };
            let (from, to) = (client(&service).ip(), service.vip.ip());
            let sent = Segment::new(service.vip, client(&service), ACK).build();
            for tags in CAME {
                let mut ping = Message::new(from, to, echo, 0, b"ping");
                ping.tags = tags.to_vec();
                let (got, out, outcome) = rig.run(&ping.build())?;
                assert_eq!((got, outcome), (Verdict::Tx, Outcome::AnswerEcho));
                assert_eq!(Message::parse(&out).unwrap().tags, tags);
                let mut error = Message::new(from, to, error, 0, &sent[14..]);
                error.tags = tags.to_vec();
                let (got, out, outcome) = rig.run(&error.build())?;
                assert_eq!((got, outcome), (verdict, Outcome::ForwardIcmp));
                assert_eq!(Message::parse(&out).unwrap().tags, expected(tags, replaced));
            }
        }
    }
    Ok(())
}

#[test]
fn fragments_behind_tags() -> Result<()> {
    for service in services() {
        for (ifindex, vlan, verdict, replaced) in WAYS {
            let mut rig = rig(&service, ifindex, vlan)?;
            for (id, tags) in (1..).zip(CAME) {
                let mut parts = Vec::new();
                for frame in cut(&asked(&service).data(&[5; 900]).build(), 512, 256, id) {
                    let (got, out, _) = rig.run(&with_tags(&frame, tags))?;
                    let (plain, left) = without_tags(&out);
                    assert_eq!((got, left), (verdict, expected(tags, replaced)));
                    parts.push(plain);
                }
                let arrived = Segment::parse(&join(&parts).unwrap()).unwrap();
                assert_eq!(arrived.data, [5; 900]);
            }
        }
    }
    Ok(())
}

#[test]
fn three_tags_and_truncations_pass_untouched() -> Result<()> {
    for service in services() {
        let mut rig = rig(&service, INGRESS, 300)?;
        let three = with_tags(
            &asked(&service).build(),
            &[(0x88a8, 1), (0x8100, 2), (0x8100, 3)],
        );
        let (verdict, out, outcome) = rig.run(&three)?;
        assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::PassNotIp));
        assert_eq!(out, three);
        let two = with_tags(&asked(&service).build(), CAME[3]);
        for length in 14..two.len() {
            let (verdict, out, outcome) = rig.run(&two[..length])?;
            assert_eq!(
                (verdict, outcome),
                (Verdict::Pass, Outcome::PassTruncated),
                "{length} bytes"
            );
            assert_eq!(out, &two[..length]);
        }
    }
    Ok(())
}

#[test]
fn tunnels_are_tagged_outside() -> Result<()> {
    for (vip, outer) in [("203.0.113.10", "10.0.0.1"), ("2001:db8:f::10", "fd00::1")] {
        for mode in [mode::IPIP, mode::GUE] {
            let service = ServiceSetup {
                id: 1,
                vip: at(vip, 80),
                mode,
                flags: 0,
            };
            let mut rig = Rig::new()?;
            rig.backend_with(&service, OLD, at(outer, 80), |record| {
                record.flags |= backend_flags::TAGGED;
                record.vlan = 300;
            })?;
            rig.service(service, &[UNMOVED; SLOTS])?;
            let whole = asked(&service).build();
            let untagged = Vec::new();
            for tags in [&untagged[..], CAME[1], CAME[3]] {
                let (verdict, out, outcome) = rig.run(&with_tags(&whole, tags))?;
                assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardSteady));
                let (plain, left) = without_tags(&out);
                assert_eq!(left, [(0x8100, 300)]);
                let arrived = Outer::parse(&plain).expect("sound outer headers");
                assert_eq!(arrived.inner, whole[14..], "{vip} in {outer}");
                assert_eq!(
                    plain[..12],
                    [backend_macs(OLD).0, backend_macs(OLD).1].concat()
                );
            }
        }
    }
    Ok(())
}

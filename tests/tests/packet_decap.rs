//! The program of `ebb decap`, packet by packet: what ebb's program puts into a tunnel comes out as it was, and what
//! must not come out does not. Needs root.

use anyhow::Result;
use ebb_tests::{
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at},
    tunnel_end::{TunnelEnd, ip},
};
use lb_common::{
    abi::{Slot, mode},
    checksum::{fold, sum_bytes},
    steer::tcp::ACK,
    tunnel::Decap,
};

const MODES: [u8; 2] = [mode::IPIP, mode::GUE];
const FAMILIES: [(bool, bool); 4] = [(true, true), (false, false), (true, false), (false, true)];

/// Both programs. The rig's namespace has no address that a packet inside is for, so `to_self` says which it is.
struct Ends {
    rig: Rig,
    decap: TunnelEnd,
}

impl Ends {
    fn new(mode: u8, (inner, outer): (bool, bool), sources: &[&str]) -> Result<Self> {
        let mut rig = Rig::new()?;
        let service = ServiceSetup {
            id: 1,
            vip: at(
                if inner {
                    "203.0.113.10"
                } else {
                    "2001:db8:f::10"
                },
                80,
            ),
            mode,
            flags: 0,
        };
        rig.backend(
            &service,
            1,
            at(if outer { "10.0.0.1" } else { "fd00::1" }, 80),
        )?;
        rig.service(service, &[Slot::new(1, 1, false); 101])?;
        for (family, address) in [("-4", "203.0.113.10/32"), ("-6", "2001:db8:f::10/128")] {
            ip(&[family, "addr", "add", address, "dev", "lo"])?;
        }
        let decap = TunnelEnd::new(sources)?;
        Ok(Self { rig, decap })
    }

    /// Runs the decapsulating program: verdict, frame, the one thing counted.
    fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>, Decap)> {
        self.decap.run(frame)
    }

    /// A segment, as it goes into a tunnel, and as ebb's program sends it.
    fn tunnelled(&mut self, segment: &Segment) -> Result<(Vec<u8>, Vec<u8>)> {
        let plain = segment.build();
        let (verdict, out, _) = self.rig.run(&plain)?;
        assert_eq!(verdict, Verdict::Tx);
        Ok((plain, out))
    }

    /// Fails unless the frame is refused so, and nothing else.
    fn refused(&mut self, frame: &[u8], kind: Decap, what: &str) -> Result<()> {
        let (verdict, out, counted) = self.run(frame)?;
        let expected = if kind == Decap::Passed {
            assert_eq!(out, frame, "{what}: passed untouched");
            Verdict::Pass
        } else {
            Verdict::Drop
        };
        assert_eq!((verdict, counted), (expected, kind), "{what}");
        Ok(())
    }
}

fn segment(v4: bool) -> Segment {
    let (from, to) = if v4 {
        (at("192.0.2.7", 1000), at("203.0.113.10", 80))
    } else {
        (at("2001:db8:1::7", 1000), at("2001:db8:f::10", 80))
    };
    Segment::new(from, to, ACK).at(7, 9).data(b"some data")
}

/// Outer and inner class of a frame in which an outer header of `outer` family stands before an `inner` one.
fn set_class(frame: &mut [u8], at: usize, class: u8) {
    if frame[at] >> 4 == 4 {
        frame[at + 1] = class;
        frame[at + 10..at + 12].fill(0);
        let check = !fold(sum_bytes(&frame[at..at + 20]));
        frame[at + 10..at + 12].copy_from_slice(&check.to_ne_bytes());
    } else {
        frame[at] = 0x60 | class >> 4;
        frame[at + 1] = frame[at + 1] & 0x0f | class << 4;
    }
}

fn inner_at(mode: u8, outer: bool) -> usize {
    14 + usize::from(lb_common::tunnel::overhead(mode, outer))
}

#[test]
fn what_goes_in_comes_out() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut ends = Ends::new(mode, families, &["10.0.0.0/24", "fd00::/64"])?;
        let (plain, frame) = ends.tunnelled(&segment(families.0))?;
        let (verdict, out, counted) = ends.run(&frame)?;
        assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
        assert_eq!(
            out[..12],
            frame[..12],
            "the MACs are those of the tunnel's frame"
        );
        assert_eq!(out[12..], plain[12..], "mode {mode} {families:?}");
    }
    Ok(())
}

#[test]
fn congestion_marks_come_out() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut ends = Ends::new(mode, families, &[])?;
        let (_, frame) = ends.tunnelled(&segment(families.0))?;
        for (inner, outer, expected) in [
            (2, 3, Some(3)),
            (2, 2, Some(2)),
            (0, 1, Some(0)),
            (0, 3, None),
        ] {
            let mut marked = frame.clone();
            set_class(&mut marked, 14, outer);
            set_class(&mut marked, inner_at(mode, families.1), inner);
            let (_, out, counted) = ends.run(&marked)?;
            let Some(class) = expected else {
                assert_eq!(counted, Decap::DropCongestion);
                continue;
            };
            let mut wanted = marked[inner_at(mode, families.1)..].to_vec();
            set_class(&mut wanted, 0, class);
            assert_eq!(
                out[14..],
                wanted,
                "mode {mode} {families:?} {inner} in {outer}"
            );
            Segment::parse(&out).expect("right checksums");
        }
    }
    Ok(())
}

#[test]
fn other_sources_are_refused() -> Result<()> {
    for outer in [true, false] {
        // Of either family, and one bit beside.
        let sources = ["10.0.1.0/24", "fd00:0:0:1::/64", "::a00:0/104"];
        let mut ends = Ends::new(mode::IPIP, (true, outer), &sources)?;
        let (_, frame) = ends.tunnelled(&segment(true))?;
        ends.refused(&frame, Decap::DropSource, "another source")?;
    }
    Ok(())
}

#[test]
fn packets_for_others_do_not_come_out() -> Result<()> {
    for inner in [true, false] {
        let mut ends = Ends::new(mode::GUE, (inner, true), &[])?;
        let (_, frame) = ends.tunnelled(&segment(inner))?;
        let address = if inner {
            "203.0.113.10/32"
        } else {
            "2001:db8:f::10/128"
        };
        ip(&["addr", "del", address, "dev", "lo"])?;
        // Now it is somebody behind the router.
        let gateway = if inner { "192.0.2.1" } else { "2001:db8:1::1" };
        ip(&["route", "add", address, "via", gateway])?;
        // A test run's packet comes in by the loopback, which must forward for the question to be asked at all.
        ends.refused(&frame, Decap::DropNotLocal, "for another host")?;
    }
    Ok(())
}

#[test]
fn what_is_no_tunnel_passes_and_what_is_malformed_goes() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut ends = Ends::new(mode, families, &[])?;
        let (plain, frame) = ends.tunnelled(&segment(families.0))?;
        ends.refused(&plain, Decap::Passed, "a plain packet")?;
        let inner = inner_at(mode, families.1);
        let edited = |at: usize, byte: u8| {
            let mut frame = frame.clone();
            frame[at] = byte;
            frame
        };
        ends.refused(&edited(12, 0x88), Decap::Passed, "not IP")?;
        ends.refused(
            &edited(inner, 0x50),
            Decap::DropMalformed,
            "version 5 inside",
        )?;
        let length = if families.0 { inner + 3 } else { inner + 5 };
        let shorter = frame[length] - 1;
        ends.refused(
            &edited(length, shorter),
            Decap::DropMalformed,
            "another length inside",
        )?;
        if mode == mode::GUE {
            ends.refused(&edited(inner - 5, 0), Decap::Passed, "another port")?;
            let shorter = frame[inner - 3] - 1;
            ends.refused(
                &edited(inner - 3, shorter),
                Decap::DropMalformed,
                "UDP length",
            )?;
        } else {
            let other = edited_protocol(&frame, families.1, if families.0 { 41 } else { 4 });
            ends.refused(&other, Decap::DropMalformed, "the other family named")?;
        }
        if families.1 {
            ends.refused(&edited(22, 9), Decap::DropMalformed, "outer checksum")?;
        }
        for cut in 14..frame.len() {
            let (verdict, _, counted) = ends.run(&frame[..cut])?;
            // Where the packet inside ends early its own length says so to the kernel.
            let whole = cut >= inner + if families.0 { 20 } else { 40 };
            let fits = if whole {
                (verdict, counted) == (Verdict::Pass, Decap::Decapsulated)
            } else {
                matches!(counted, Decap::Passed | Decap::DropMalformed)
            };
            assert!(
                fits,
                "{cut} of {} bytes: {verdict:?} {counted:?}",
                frame.len()
            );
        }
    }
    Ok(())
}

fn edited_protocol(frame: &[u8], outer: bool, protocol: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if outer {
        frame[23] = protocol;
        frame[24..26].fill(0);
        let check = !fold(sum_bytes(&frame[14..34]));
        frame[24..26].copy_from_slice(&check.to_ne_bytes());
    } else {
        frame[20] = protocol;
    }
    frame
}

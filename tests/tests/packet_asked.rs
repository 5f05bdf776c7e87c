//! A flow that no table knows, in a moved slot, behind tunnels that end in `ebb decap`: the base is asked for it, and what is
//! not there goes to the other one. Both programs and the kernel's own sockets. Needs root.

use std::{
    fs,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::Result;
use ebb_tests::{
    fragments::cut,
    outer::Outer,
    packets::Segment,
    rig::{Rig, ServiceSetup, Verdict, at, backend_macs, tunnel_source},
    tagged::Frames,
    tunnel_end::{TunnelEnd, ip},
};
use lb_common::{
    abi::{Slot, backend_flags, control_flags, mode, service_flags},
    entry::{Meta, state},
    former::Formers,
    outcome::Outcome,
    steer::tcp::{ACK, FIN, RST, SYN},
    tunnel::{
        Decap,
        question::{self, Header, Word},
    },
};
use lb_userspace::datapath::{Datapath as _, Table};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

const OLD: u32 = 1;
const NEW: u32 = 2;
const FORMER: u32 = 3;
const MOVED: Slot = Slot::new(NEW, OLD, false);
const UNLISTED: Outcome = Outcome::ForwardAskingUnlisted;
const MODES: [u8; 2] = [mode::IPIP, mode::GUE];
/// Families: of the service, of the base, of the current backend.
const FAMILIES: [(bool, bool, bool); 4] = [
    (true, true, true),
    (false, false, false),
    (true, false, true),
    (false, true, false),
];

/// A node with two backends that take turns at being this host.
struct Stage {
    rig: Rig,
    end: TunnelEnd,
    service: ServiceSetup,
    old: SocketAddr,
}

impl Stage {
    fn new(mode: u8, families: (bool, bool, bool)) -> Result<Self> {
        Self::with(mode, families, MOVED, service_flags::ASKS)
    }

    fn with(mode: u8, families: (bool, bool, bool), slot: Slot, flags: u32) -> Result<Self> {
        let mut rig = Rig::new()?;
        let vip = if families.0 {
            at("203.0.113.10", 80)
        } else {
            at("2001:db8:f::10", 80)
        };
        let service = ServiceSetup {
            id: 1,
            vip,
            mode,
            flags,
        };
        let backend = |id: u32, is_v4: bool| {
            let ip = if is_v4 {
                format!("10.0.0.{id}")
            } else {
                format!("fd00::{id}")
            };
            at(&ip, 80)
        };
        rig.backend(&service, OLD, backend(OLD, families.1))?;
        rig.backend(&service, NEW, backend(NEW, families.2))?;
        rig.service(service, &[slot; 101])?;
        rig.datapath.put_node_flags(control_flags::ASKS)?;
        for (family, address) in [
            ("-4", "203.0.113.10/32"),
            ("-6", "2001:db8:f::10/128"),
            ("-4", "198.51.100.7/32"),
            ("-6", "2001:db8:2::7/128"),
        ] {
            let nodad: &[&str] = if family == "-6" { &["nodad"] } else { &[] };
            ip(&[&[family, "addr", "add", address, "dev", "lo"][..], nodad].concat())?;
        }
        let end = TunnelEnd::new(&[])?;
        let old = backend(OLD, families.1);
        Ok(Self {
            rig,
            end,
            service,
            old,
        })
    }

    /// The same with a third backend, a former owner of every slot.
    fn with_former(mode: u8, slot: Slot) -> Result<Self> {
        let mut stage = Self::with(mode, FAMILIES[0], slot, service_flags::ASKS)?;
        let service = stage.service;
        stage.rig.backend(&service, FORMER, at("10.0.0.3", 80))?;
        let formers = Formers::new([FORMER]);
        let of_each: Vec<_> = (0..101).map(|index| (index, formers)).collect();
        let slots = [slot.with_formers(); 101];
        stage.rig.datapath.publish_table(1, &slots, &of_each)?;
        Ok(stage)
    }

    /// A packet that was sent back is another one's, who is asked in his turn and sends it back too.
    fn is_asked(&mut self, back: &[u8], id: u32) -> Result<Vec<u8>> {
        let (verdict, asking, outcome) = self.rig.run(back)?;
        let on = (Verdict::Tx, Outcome::ForwardSecondChance);
        assert_eq!((verdict, outcome), on);
        assert_eq!(asking[..6], backend_macs(id).0);
        let (_, place, _) = question_in(&asking);
        assert_eq!(
            asking[place..place + usize::from(question::LENGTH)],
            bytes(Header::new(Word::IsItHere, true, id))
        );
        let (verdict, back, counted) = self.end.run(&asking)?;
        assert_eq!((verdict, counted), (Verdict::Tx, Decap::SentBack));
        Ok(back)
    }

    /// The last one gets it without a question.
    fn is_for(&mut self, back: &[u8], id: u32, segment: &Segment) -> Result<()> {
        let (_, out, outcome) = self.rig.run(back)?;
        assert_eq!(outcome, Outcome::ForwardSecondChance);
        assert_eq!(out[..6], backend_macs(id).0);
        let (verdict, out, counted) = self.end.run(&out)?;
        assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
        assert_eq!(out[12..], segment.build()[12..], "as it came");
        Ok(())
    }

    /// Somebody of this host, so that he can have a connection with it.
    fn client(&self, port: u16) -> SocketAddr {
        let ip = if self.service.vip.is_ipv4() {
            "198.51.100.7"
        } else {
            "2001:db8:2::7"
        };
        at(ip, port)
    }

    fn segment(&self, port: u16, flags: u8) -> Segment {
        Segment::new(self.client(port), self.service.vip, flags)
            .at(7, 5000)
            .data(b"some data")
    }

    /// What the node makes of a client's packet: outcome, frame.
    fn sends(&mut self, segment: &Segment) -> Result<(Outcome, Vec<u8>)> {
        let (verdict, out, outcome) = self.rig.run(&segment.build())?;
        assert_eq!(verdict, Verdict::Tx, "{outcome:?}");
        Ok((outcome, out))
    }

    /// A packet with a question, and what the base, which has no such connection, sends back.
    fn asks(&mut self, segment: &Segment) -> Result<(Vec<u8>, Vec<u8>)> {
        self.asks_as(Outcome::ForwardAsking, segment)
    }

    fn asks_as(&mut self, wanted: Outcome, segment: &Segment) -> Result<(Vec<u8>, Vec<u8>)> {
        let (outcome, asking) = self.sends(segment)?;
        assert_eq!(outcome, wanted);
        let (verdict, back, counted) = self.end.run(&asking)?;
        assert_eq!((verdict, counted), (Verdict::Tx, Decap::SentBack));
        Ok((asking, back))
    }

    /// A packet that was sent back reaches the other backend, whose tunnel's end delivers it.
    fn is_delivered(&mut self, back: &[u8], segment: &Segment) -> Result<()> {
        let (verdict, out, outcome) = self.rig.run(back)?;
        assert_eq!(
            (verdict, outcome),
            (Verdict::Tx, Outcome::ForwardSecondChance)
        );
        self.is_for_new(&out, segment)
    }

    fn is_for_new(&mut self, frame: &[u8], segment: &Segment) -> Result<()> {
        assert_eq!(frame[..6], backend_macs(NEW).0, "to the other backend");
        let (verdict, out, counted) = self.end.run(frame)?;
        // Nobody is asked any more: there is no socket for it here either.
        assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
        assert_eq!(out[12..], segment.build()[12..], "as it came");
        Ok(())
    }

    /// The node passes the frame to the kernel as it is, and remembers nothing.
    fn is_no_business(&mut self, frame: &[u8], what: &str) -> Result<()> {
        let (verdict, out, outcome) = self.rig.run(frame)?;
        let passed = (Verdict::Pass, Outcome::PassNoService);
        assert_eq!((verdict, outcome), passed, "{what}");
        assert_eq!(out, frame, "{what}: untouched");
        assert!(self.rig.entries(Table::Flows)?.iter().all(|entry| {
            let meta = Meta(entry.meta);
            meta.backend() == OLD
        }));
        Ok(())
    }

    fn only_entry(&mut self) -> Result<Meta> {
        let entries = self.rig.entries(Table::Flows)?;
        assert_eq!(entries.len(), 1);
        Ok(Meta(entries[0].meta))
    }
}

/// The question in a frame, where it stands, and the packet behind it.
fn question_in(frame: &[u8]) -> (Outer, usize, Vec<u8>) {
    let outer = Outer::parse(frame).expect("sound headers");
    let udp = outer.udp.expect("UDP");
    assert_eq!(udp.check, 0);
    let place = frame.len() - outer.inner.len();
    let inner = outer.inner[usize::from(question::LENGTH)..].to_vec();
    (outer, place, inner)
}

fn bytes(header: Header) -> [u8; question::LENGTH as usize] {
    // SAFETY: twelve plain bytes.
    unsafe { std::mem::transmute(header) }
}

#[test]
fn what_is_not_there_goes_to_the_other() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut stage = Stage::new(mode, families)?;
        let segment = stage.segment(1000, ACK);
        let (asking, back) = stage.asks(&segment)?;
        let (outer, place, inner) = question_in(&asking);
        assert_eq!(outer.destination, stage.old.ip());
        assert_eq!(
            asking[place..place + usize::from(question::LENGTH)],
            bytes(Header::new(Word::IsItHere, families.0, OLD))
        );
        assert_eq!(inner, segment.build()[14..], "{mode} {families:?}");
        // What comes back is the same, turned round.
        let (turned, _, inside) = question_in(&back);
        assert_eq!(
            (turned.destination, turned.source),
            (outer.source, outer.destination)
        );
        assert_eq!(turned.macs, (outer.macs.1, outer.macs.0));
        assert_eq!(inside, inner);

        assert!(stage.only_entry()?.has(state::GUESSED));
        stage.is_delivered(&back, &segment)?;
        let known = stage.only_entry()?;
        // Forged segments must not fill the table with entries that never give way.
        assert!(!known.has(state::EXCEPTIONAL));
        assert_eq!(known.backend(), NEW);
        let (outcome, out) = stage.sends(&segment)?;
        assert_eq!(outcome, Outcome::ForwardFlow);
        stage.is_for_new(&out, &segment)?;
        assert_eq!(stage.rig.stats(NEW)?.adopted, 1);
    }
    Ok(())
}

#[test]
fn several_packets_on_their_way_all_arrive() -> Result<()> {
    let mut stage = Stage::new(mode::GUE, FAMILIES[0])?;
    let closing = stage.segment(1000, ACK | FIN);
    let all = [stage.segment(1000, ACK), stage.segment(1000, ACK), closing];
    let mut back = Vec::new();
    for segment in &all {
        back.push(stage.asks(segment)?.1);
    }
    for (back, segment) in back.iter().zip(&all) {
        stage.is_delivered(back, segment)?;
    }
    let known = stage.only_entry()?;
    assert!(known.has(state::FIN_CLIENT), "its close is not forgotten");
    assert_eq!(stage.rig.stats(NEW)?.adopted, 1);
    // A client's reset leaves no entry behind, and finds its way all the same.
    stage.rig.lose(Table::Flows)?;
    let reset = stage.segment(1001, RST);
    let (_, back) = stage.asks(&reset)?;
    stage.is_delivered(&back, &reset)
}

#[test]
fn without_room_for_an_entry_every_packet_takes_the_way_round() -> Result<()> {
    let mut stage = Stage::new(mode::IPIP, FAMILIES[0])?;
    stage.rig.limit(0, 0)?;
    let segment = stage.segment(1000, ACK);
    for _ in 0..3 {
        let (_, back) = stage.asks_as(UNLISTED, &segment)?;
        stage.is_delivered(&back, &segment)?;
        assert!(stage.rig.entries(Table::Flows)?.is_empty());
    }
    // The way back alone is enough, once there is room.
    let (_, back) = stage.asks_as(UNLISTED, &segment)?;
    stage.rig.limit(1000, 1000)?;
    stage.is_delivered(&back, &segment)?;
    assert_eq!(stage.only_entry()?.backend(), NEW);
    Ok(())
}

/// Whoever gets no entry is counted as such, with a question or, where there is no place for one, without.
#[test]
fn whoever_gets_no_entry_is_told_from_a_guess() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut stage = Stage::new(mode, families)?;
        let long = stage.segment(1001, ACK).data(&[1; 100]).build();
        let first = cut(&long, 64, 64, 7).swap_remove(0);
        let mut frames = vec![
            ("whole", stage.segment(1000, ACK).build()),
            ("a first fragment", first),
        ];
        if families.0 {
            let mut odd = stage.segment(1002, ACK);
            odd.ip_options = vec![1; 4];
            frames.push(("with options", odd.build()));
        }
        let to_base = &backend_macs(OLD).0[..];
        for (limit, outcome, entries) in [
            (0, UNLISTED, 0),
            (1000, Outcome::ForwardAsking, frames.len()),
        ] {
            stage.rig.limit(limit, limit)?;
            // An entry that is a guess asks again.
            for (what, frame) in frames.iter().chain(&frames) {
                let (verdict, out, counted) = stage.rig.run(frame)?;
                assert_eq!((verdict, counted), (Verdict::Tx, outcome), "{what}");
                assert_eq!(&out[..6], to_base, "{what}");
            }
            assert_eq!(stage.rig.entries(Table::Flows)?.len(), entries);
        }
    }
    Ok(())
}

#[test]
fn whoever_is_not_asked_gets_no_question() -> Result<()> {
    let asks = service_flags::ASKS;
    let cases = [
        ("unmoved", Slot::new(OLD, OLD, false), asks),
        ("with exceptions", Slot::new(OLD, OLD, true), asks),
        ("decapsulates by other means", MOVED, 0),
    ];
    for (what, slot, flags) in cases {
        for mode in MODES {
            let mut stage = Stage::with(mode, FAMILIES[0], slot, flags)?;
            let segment = stage.segment(1000, ACK);
            let (outcome, out) = stage.sends(&segment)?;
            assert_ne!(outcome, Outcome::ForwardAsking, "{what}");
            let (verdict, out, counted) = stage.end.run(&out)?;
            assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
            assert_eq!(out[12..], segment.build()[12..], "{what}");
        }
    }
    // An opening has nothing to ask for.
    let mut stage = Stage::new(mode::GUE, FAMILIES[0])?;
    let opening = stage.segment(1000, SYN);
    assert_eq!(stage.sends(&opening)?.0, Outcome::ForwardOpening);
    // Packets with options are not asked about, and go to the base.
    let mut odd = stage.segment(1001, ACK);
    odd.ip_options = vec![1; 4];
    let (outcome, out) = stage.sends(&odd)?;
    assert_eq!(
        (outcome, &out[..6]),
        (Outcome::ForwardAsking, &backend_macs(OLD).0[..])
    );
    Ok(())
}

#[test]
fn a_tag_does_not_matter() -> Result<()> {
    let mut stage = Stage::new(mode::IPIP, FAMILIES[0])?;
    let segment = stage.segment(1000, ACK);
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
    let (verdict, asking, outcome) = stage.rig.run(&tagged(&segment.build()))?;
    assert_eq!((verdict, outcome), (Verdict::Tx, Outcome::ForwardAsking));
    let (_, back, counted) = stage.end.run(&asking)?;
    assert_eq!(counted, Decap::SentBack);
    stage.is_delivered(&tagged(&back), &segment)
}

#[test]
fn where_the_other_has_ended_the_client_is_told() -> Result<()> {
    let mut stage = Stage::new(mode::GUE, FAMILIES[0])?;
    let segment = stage.segment(1000, ACK);
    let (_, back) = stage.asks(&segment)?;
    stage.rig.flags(NEW, backend_flags::ENDED, 0)?;
    let (_, out, outcome) = stage.rig.run(&back)?;
    assert_eq!(outcome, Outcome::ForwardSecondChance);
    assert_eq!(out[..6], backend_macs(OLD).0);
    // Without a question, so that the base's kernel answers.
    assert_eq!(stage.end.run(&out)?.2, Decap::Decapsulated);
    Ok(())
}

#[test]
fn a_change_that_has_settled_meanwhile_is_heeded() -> Result<()> {
    let mut stage = Stage::new(mode::GUE, FAMILIES[0])?;
    let segment = stage.segment(1000, ACK);
    let (_, back) = stage.asks(&segment)?;
    stage.rig.lose(Table::Flows)?;
    stage
        .rig
        .datapath
        .publish_table(1, &[Slot::new(NEW, NEW, false); 101], &[])?;
    stage.is_delivered(&back, &segment)?;
    assert!(stage.rig.entries(Table::Flows)?.is_empty());
    Ok(())
}

#[test]
fn only_the_backend_itself_is_believed() -> Result<()> {
    for families in [FAMILIES[0], FAMILIES[1]] {
        let mut stage = Stage::new(mode::GUE, families)?;
        let segment = stage.segment(1000, ACK);
        let (asking, back) = stage.asks(&segment)?;
        let (_, place, _) = question_in(&back);
        let edited = |at: usize, byte: u8| {
            let mut frame = back.clone();
            frame[at] ^= byte;
            if families.0 {
                frame[24..26].fill(0);
                let sum = lb_common::checksum::sum_bytes(&frame[14..34]);
                let check = !lb_common::checksum::fold(sum);
                frame[24..26].copy_from_slice(&check.to_ne_bytes());
            }
            frame
        };
        let (source, destination) = if families.0 { (29, 33) } else { (37, 53) };
        let inner = place + usize::from(question::LENGTH);
        let (vip, flags) = if families.0 {
            (inner + 19, inner + 33)
        } else {
            (inner + 39, inner + 53)
        };
        for (what, at, byte) in [
            ("another source", source, 1),
            ("another destination", destination, 1),
            ("another port", place - 5, 1),
            ("another backend", place + 11, OLD as u8 ^ NEW as u8),
            ("no backend", place + 8, 0xff),
            ("a question", place + 7, b'!' ^ b'?'),
            ("no name", place + 4, 1),
            ("to another service", vip, 1),
            ("an opening", flags, ACK ^ SYN),
        ] {
            stage.is_no_business(&edited(at, byte), what)?;
        }
        for cut in place..inner {
            let (verdict, out, _) = stage.rig.run(&back[..cut])?;
            assert_eq!(
                (verdict, &out[..]),
                (Verdict::Pass, &back[..cut]),
                "{cut} bytes"
            );
        }
        // A question to this node is none of its business, nor is an answer where nobody is asked.
        stage.is_no_business(&asking, "the question itself")?;
        let mut record = stage.rig.datapath.service(1)?;
        record.flags = 0;
        stage.rig.datapath.put_service(1, &record)?;
        stage.is_no_business(&back, "a service that does not ask")?;
        // And the whole and right one is believed, or all this would show nothing.
        record.flags = service_flags::ASKS;
        stage.rig.datapath.put_service(1, &record)?;
        stage.is_delivered(&back, &segment)?;
        assert_eq!(tunnel_source(stage.old.ip()).is_v4(), families.0);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_with_the_question_is_told_so() -> Result<()> {
    let mut stage = Stage::new(mode::IPIP, FAMILIES[0])?;
    let room = 1500 - 20 - 8 - usize::from(question::LENGTH) - 40;
    let fits = stage.segment(1000, ACK).data(&vec![1; room]);
    stage.asks(&fits)?;
    let too_big = stage.segment(1000, ACK).data(&vec![1; room + 1]);
    assert_eq!(stage.rig.run(&too_big.build())?.2, Outcome::AnswerTooBig);
    Ok(())
}

/// Connections of this host with itself: listener, client's end, server's end.
struct Connection {
    listener: TcpListener,
    client: OwnedFd,
    server: TcpStream,
}

impl Connection {
    fn new(stage: &Stage, port: u16) -> Result<Self> {
        let listener = TcpListener::bind(stage.service.vip)?;
        let family = if stage.service.vip.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&client, sockopt::ReuseAddr, &true)?;
        let from = SockaddrStorage::from(stage.client(port));
        bind(client.as_raw_fd(), &from)?;
        connect(
            client.as_raw_fd(),
            &SockaddrStorage::from(stage.service.vip),
        )?;
        let (server, _) = listener.accept()?;
        Ok(Self {
            listener,
            client,
            server,
        })
    }
}

#[test]
fn what_is_there_stays() -> Result<()> {
    for families in [FAMILIES[0], FAMILIES[1]] {
        let mut stage = Stage::new(mode::IPIP, families)?;
        let connection = Connection::new(&stage, 1000)?;
        let known = stage.segment(1000, ACK);
        let is_here = |stage: &mut Stage| -> Result<()> {
            let (outcome, asking) = stage.sends(&known)?;
            assert_eq!(outcome, Outcome::ForwardAsking);
            let (verdict, out, counted) = stage.end.run(&asking)?;
            assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
            assert_eq!(out[12..], known.build()[12..]);
            Ok(())
        };
        is_here(&mut stage)?;
        is_here(&mut stage)?;
        assert_eq!(stage.only_entry()?.backend(), OLD);
        // Only the listener knows anything of these ports.
        stage.asks(&stage.segment(1001, ACK))?;
        // Its end goes on while that of the client does, in any state.
        connection.server.shutdown(Shutdown::Write)?;
        is_here(&mut stage)?;
        drop(connection.listener);
        is_here(&mut stage)?;
        // When both have ended it waits for stragglers only: the client may be using its port again, with another host.
        drop(connection.client);
        drop(connection.server);
        stage.asks(&known)?;
    }
    Ok(())
}

/// A listener that has answered an opening with a cookie has no socket for the connection yet, and knows it all the same.
#[test]
fn whoever_brings_a_cookie_stays() -> Result<()> {
    for families in [FAMILIES[0], FAMILIES[1]] {
        let mut stage = Stage::new(mode::GUE, families)?;
        // Always, not only when the queue is full.
        fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")?;
        let _listener = TcpListener::bind(stage.service.vip)?;
        // Somebody at the rig's neighbour, the far end of its veth.
        let (client, transport) = if families.0 {
            (at("192.0.2.1", 1000), 34)
        } else {
            (at("2001:db8:1::1", 1000), 54)
        };
        let wire = Frames::here("far0")?;
        let opening = Segment::new(client, stage.service.vip, SYN).at(6, 0);
        wire.send(&opening.build())?;
        let cookie = wire.find(Duration::from_secs(10), |frame| {
            // Its checksum is left to a device that there is none of.
            let tcp = frame.get(transport..transport + 20)?;
            let is_answer =
                tcp[13] & (SYN | ACK) == SYN | ACK && tcp[2..4] == 1000u16.to_be_bytes();
            is_answer.then(|| u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]))
        })?;
        let done = |acknowledged: u32| {
            Segment::new(client, stage.service.vip, ACK)
                .at(7, acknowledged)
                .data(b"some data")
        };
        let (done, forged) = (done(cookie.wrapping_add(1)), done(cookie ^ 0x0100_0000));
        let (outcome, asking) = stage.sends(&done)?;
        assert_eq!(outcome, Outcome::ForwardAsking);
        let (verdict, out, counted) = stage.end.run(&asking)?;
        assert_eq!((verdict, counted), (Verdict::Pass, Decap::Decapsulated));
        assert_eq!(out[12..], done.build()[12..]);
        stage.asks(&forged)?;
    }
    Ok(())
}

#[test]
fn who_owned_the_slot_in_between_is_asked_after_both() -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::with_former(mode, MOVED)?;
        let segment = stage.segment(1000, ACK);
        let (_, first) = stage.asks(&segment)?;
        let second = stage.is_asked(&first, NEW)?;
        assert!(stage.only_entry()?.has(state::GUESSED));
        // The next packet is for the same one to answer, while his answer is on its way.
        let (outcome, asking) = stage.sends(&segment)?;
        assert_eq!(
            (outcome, &asking[..6]),
            (Outcome::ForwardAsking, &backend_macs(NEW).0[..])
        );
        stage.is_for(&second, FORMER, &segment)?;
        assert_eq!(stage.only_entry()?.backend(), FORMER);
        // What the others send back late goes the same way, and the flow's next packets do without a word.
        stage.is_for(&first, FORMER, &segment)?;
        stage.is_for(&second, FORMER, &segment)?;
        assert_eq!(stage.sends(&segment)?.0, Outcome::ForwardFlow);
    }
    Ok(())
}

#[test]
fn without_room_all_former_owners_are_asked_on_the_way_round() -> Result<()> {
    let mut stage = Stage::with_former(mode::GUE, MOVED)?;
    stage.rig.limit(0, 0)?;
    let segment = stage.segment(1000, ACK);
    for _ in 0..2 {
        let (_, back) = stage.asks_as(UNLISTED, &segment)?;
        let back = stage.is_asked(&back, NEW)?;
        stage.is_for(&back, FORMER, &segment)?;
        assert!(stage.rig.entries(Table::Flows)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_slot_that_is_its_bases_again_remembers_who_had_it() -> Result<()> {
    let mut stage = Stage::with_former(mode::IPIP, Slot::new(OLD, OLD, false))?;
    let segment = stage.segment(1000, ACK);
    let (_, back) = stage.asks(&segment)?;
    stage.is_for(&back, FORMER, &segment)
}

#[test]
fn a_former_owner_that_has_ended_is_not_asked() -> Result<()> {
    let mut stage = Stage::with_former(mode::GUE, MOVED)?;
    let segment = stage.segment(1000, ACK);
    stage.rig.flags(FORMER, backend_flags::ENDED, 0)?;
    let (_, back) = stage.asks(&segment)?;
    stage.is_delivered(&back, &segment)?;
    // It ends after it was to be asked: nobody is left, and the client is told by who was asked last.
    let mut stage = Stage::with_former(mode::GUE, MOVED)?;
    let (_, back) = stage.asks(&segment)?;
    let back = stage.is_asked(&back, NEW)?;
    stage.rig.flags(FORMER, backend_flags::ENDED, 0)?;
    stage.is_for(&back, NEW, &segment)?;
    // The base has ended, and nobody knows the flow: the current owner is asked, then who was it before.
    let mut stage = Stage::with_former(mode::GUE, MOVED)?;
    stage.rig.flags(OLD, backend_flags::ENDED, 0)?;
    let (_, back) = stage.asks(&segment)?;
    stage.is_for(&back, FORMER, &segment)?;
    assert_eq!(stage.only_entry()?.backend(), FORMER);
    Ok(())
}

/// While the deadline of the base's drain cuts its flows, the current owner is asked in its place, and the base not at all.
#[test]
fn the_base_is_not_asked_while_its_flows_are_cut() -> Result<()> {
    for (mode, families) in MODES.into_iter().flat_map(|m| FAMILIES.map(|f| (m, f))) {
        let mut stage = Stage::new(mode, families)?;
        let mut record = stage.rig.datapath.backend(OLD)?;
        record.flags |= backend_flags::CUT_RESET;
        record.cut = u32::MAX;
        stage.rig.datapath.put_backend(OLD, &record)?;
        let segment = stage.segment(1000, ACK);
        let (outcome, asking) = stage.sends(&segment)?;
        assert_eq!(outcome, Outcome::ForwardAsking);
        assert_eq!(asking[..6], backend_macs(NEW).0);
        let (_, place, inner) = question_in(&asking);
        assert_eq!(
            asking[place..place + usize::from(question::LENGTH)],
            bytes(Header::new(Word::IsItHere, families.0, NEW))
        );
        assert_eq!(inner, segment.build()[14..]);
        assert!(stage.only_entry()?.has(state::GUESSED));
        // While it is not sent back, it is there, and the next packet goes the same way.
        let (outcome, again) = stage.sends(&segment)?;
        assert_eq!((outcome, &again), (Outcome::ForwardAsking, &asking));

        // Once it is, it is the base's.
        let (verdict, back, counted) = stage.end.run(&asking)?;
        assert_eq!((verdict, counted), (Verdict::Tx, Decap::SentBack));
        let (verdict, _, outcome) = stage.rig.run(&back)?;
        let dropped = (Verdict::Drop, Outcome::DropDeadline);
        assert_eq!((verdict, outcome), dropped);
        assert_eq!(stage.only_entry()?.backend(), OLD);
        assert_eq!(stage.sends(&segment)?.0, Outcome::ResetDeadline);
    }
    Ok(())
}

/// A deadline cuts a backend's flows one after another. One that is found out to be that backend's goes on until its turn comes.
#[test]
fn before_its_turn_to_be_cut_a_flow_is_sent_on() -> Result<()> {
    let mut stage = Stage::new(mode::GUE, FAMILIES[0])?;
    let mut record = stage.rig.datapath.backend(NEW)?;
    record.flags |= backend_flags::CUT_RESET;
    record.cut = 0;
    stage.rig.datapath.put_backend(NEW, &record)?;
    let segment = stage.segment(1000, ACK);
    let (_, back) = stage.asks(&segment)?;
    stage.is_delivered(&back, &segment)?;
    // From then on it is cut like any other.
    record.cut = u32::MAX;
    stage.rig.datapath.put_backend(NEW, &record)?;
    assert_eq!(stage.sends(&segment)?.0, Outcome::ResetDeadline);
    Ok(())
}

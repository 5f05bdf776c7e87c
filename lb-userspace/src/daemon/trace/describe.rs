//! Records in words.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lb_common::{
    outcome::Outcome,
    trace::{TraceEvent, known},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    api::{TraceEnd, TracePacket},
    daemon::engine::Names,
    datapath::trace::Record,
};

/// Letters of the TCP flags, as tcpdump writes them, from the lowest bit on.
const FLAGS: [char; 8] = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];

/// Knows what numbers mean, as of now.
pub struct Describer {
    names: Names,
    interfaces: HashMap<u32, String>,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    offset: Duration,
}

impl Describer {
    /// With these names.
    pub fn new(names: Names) -> Self {
        Self {
            names,
            interfaces: HashMap::new(),
            offset: offset(),
        }
    }

    /// A record as it is shown.
    pub fn packet(&mut self, record: &Record) -> TracePacket {
        let event = &record.event;
        let has_network = event.known & known::NETWORK != 0;
        let time = UNIX_EPOCH + self.offset + Duration::from_nanos(event.came);
        let outcome = Outcome::ALL.get(event.outcome as usize);
        let is_sent = event.length_left != 0;
        TracePacket {
            time: humantime::format_rfc3339_nanos(time).to_string(),
            took_ns: event.left.saturating_sub(event.came),
            interface: self.interface(event.ifindex),
            exit: is_sent.then(|| self.interface(event.exit)),
            source: has_network.then(|| end(event, event.source.into(), event.source_port)),
            destination: has_network
                .then(|| end(event, event.destination.into(), event.destination_port)),
            protocol: has_network.then(|| protocol(event.protocol)),
            flags: flags(event),
            fragment: event.known & known::FRAGMENT != 0,
            service: self.names.services.get(&event.service).cloned(),
            backend: self.names.backends.get(&event.backend).cloned(),
            outcome: outcome
                .map_or("unknown", |outcome| outcome.name())
                .to_owned(),
            verdict: verdict(event.verdict).to_owned(),
            length: event.length,
            length_out: is_sent.then_some(event.length_left),
            frame_in: frame(&record.came),
            frame_out: frame(&record.left),
        }
    }

    fn interface(&mut self, index: u32) -> String {
        let name = |index: &mut u32| {
            let name = nix::net::if_::if_indextoname(*index);
            name.map_or_else(
                |_| format!("if{index}"),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        let mut index = index;
        self.interfaces
            .entry(index)
            .or_insert_with(|| name(&mut index))
            .clone()
    }
}

fn offset() -> Duration {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let real = SystemTime::now().duration_since(UNIX_EPOCH);
    real.unwrap_or_default().saturating_sub(monotonic)
}

fn end(event: &TraceEvent, address: IpAddr, port: u16) -> TraceEnd {
    let has_ports = event.known & known::TRANSPORT != 0 && !is_icmp(event.protocol);
    TraceEnd {
        address,
        port: has_ports.then_some(u16::from_be(port)),
    }
}

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

fn flags(event: &TraceEvent) -> Option<String> {
    if event.known & known::TRANSPORT == 0 {
        return None;
    }
    match event.protocol {
        6 => Some(tcp_flags(event.flags)),
        protocol if is_icmp(protocol) => {
            let [kind, code] = [event.source_port, event.destination_port].map(u16::from_be);
            Some(format!("{kind}/{code}"))
        }
        _ => None,
    }
}

/// As tcpdump does: the acknowledgement's dot last.
fn tcp_flags(flags: u8) -> String {
    let set = |(bit, letter): (usize, &char)| (flags >> bit & 1 != 0).then_some(*letter);
    let letters = FLAGS.iter().enumerate().filter_map(set);
    let (dot, mut text): (String, String) = letters.partition(|letter| *letter == '.');
    text.push_str(&dot);
    if text.is_empty() {
        text.push_str("none");
    }
    text
}

const fn verdict(code: u32) -> &'static str {
    match code {
        1 => "drop",
        2 => "pass",
        3 => "tx",
        4 => "redirect",
        _ => "abort",
    }
}

fn frame(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use lb_common::Addr;

    use super::*;

    fn describer() -> Describer {
        Describer::new(Names {
            services: [(3, "web".to_owned())].into(),
            backends: [(7, "b1".to_owned())].into(),
        })
    }

    fn event() -> TraceEvent {
        TraceEvent {
            came: 1_000,
            left: 1_500,
            source: Addr::from_v4([192, 0, 2, 7]),
            destination: Addr::from_v4([203, 0, 113, 10]),
            source_port: 40_000_u16.to_be(),
            destination_port: 80_u16.to_be(),
            protocol: 6,
            flags: 0x12,
            known: known::NETWORK | known::TRANSPORT,
            service: 3,
            backend: 7,
            outcome: Outcome::ForwardOpening as u32,
            verdict: 4,
            ifindex: 1,
            exit: 1,
            length: 74,
            length_left: 78,
            ..TraceEvent::default()
        }
    }

    fn shown(event: TraceEvent) -> TracePacket {
        describer().packet(&Record {
            event,
            came: Vec::new(),
            left: b"frame".to_vec(),
        })
    }

    #[test]
    fn a_packet_has_all_its_names() {
        let packet = shown(event());
        let end = |address: [u8; 4], port| TraceEnd {
            address: address.into(),
            port: Some(port),
        };
        assert_eq!(packet.source, Some(end([192, 0, 2, 7], 40_000)));
        assert_eq!(packet.destination, Some(end([203, 0, 113, 10], 80)));
        assert_eq!(packet.flags.as_deref(), Some("S."));
        assert_eq!(packet.service.as_deref(), Some("web"));
        assert_eq!(packet.backend.as_deref(), Some("b1"));
        assert_eq!(
            (packet.interface.as_str(), packet.exit.as_deref()),
            ("lo", Some("lo"))
        );
        assert_eq!(packet.outcome, "forward_opening");
        assert_eq!((packet.verdict.as_str(), packet.took_ns), ("redirect", 500));
        assert_eq!((packet.length, packet.length_out), (74, Some(78)));
        assert_eq!(
            (packet.frame_in, packet.frame_out.as_deref()),
            (None, Some("ZnJhbWU="))
        );
    }

    #[test]
    fn times_are_of_now() {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let came = monotonic.expect("a clock").as_nanos() as u64;
        let packet = shown(TraceEvent { came, ..event() });
        let time = humantime::parse_rfc3339(&packet.time).expect("a time");
        let age = SystemTime::now().duration_since(time).expect("in the past");
        assert!(age < Duration::from_secs(60), "{age:?}");
        assert_eq!(packet.time.len(), "2026-01-01T00:00:00.123456789Z".len());
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let nothing = shown(TraceEvent {
            known: 0,
            service: 0,
            backend: 0,
            length_left: 0,
            verdict: 2,
            ..event()
        });
        assert_eq!(
            (
                nothing.source,
                nothing.protocol,
                nothing.flags,
                nothing.service
            ),
            (None, None, None, None)
        );
        assert_eq!((nothing.exit, nothing.length_out), (None, None));
        let later = shown(TraceEvent {
            known: known::NETWORK | known::FRAGMENT,
            ..event()
        });
        assert!(later.fragment && later.flags.is_none());
        assert_eq!(later.source.and_then(|end| end.port), None);
    }

    #[test]
    fn icmp_has_type_and_code() {
        let echo = shown(TraceEvent {
            protocol: 58,
            source_port: 128_u16.to_be(),
            destination_port: 0,
            ..event()
        });
        assert_eq!(echo.flags.as_deref(), Some("128/0"));
        assert_eq!(echo.protocol.as_deref(), Some("icmpv6"));
        assert_eq!(echo.source.and_then(|end| end.port), None);
    }

    #[test]
    fn flags_are_written_as_tcpdump_does() {
        let rows = [
            (0x02, "S"),
            (0x12, "S."),
            (0x18, "P."),
            (0x11, "F."),
            (0x04, "R"),
            (0, "none"),
        ];
        for (flags, text) in rows {
            assert_eq!(tcp_flags(flags), text);
        }
    }
}

//! A packet as one line for people.

use crate::api::{TraceEnd, TracePacket};

/// Where in an RFC 3339 time with nanoseconds the time of day lies, to the microsecond.
const TIME_OF_DAY: std::ops::Range<usize> = 11..26;

/// `TIME INTERFACE[>EXIT] SOURCE > DESTINATION PROTOCOL FLAGS SERVICE/BACKEND OUTCOME LENGTH`.
pub fn line(packet: &TracePacket) -> String {
    let time = packet.time.get(TIME_OF_DAY).unwrap_or(&packet.time);
    let mut words = vec![time.to_owned(), way(packet)];
    if let (Some(source), Some(destination)) = (&packet.source, &packet.destination) {
        words.push(format!("{} > {}", end(source), end(destination)));
    }
    words.extend(packet.protocol.clone());
    words.extend(packet.flags.clone());
    if packet.fragment {
        words.push("fragment".to_owned());
    }
    words.push(whose(packet));
    words.push(packet.outcome.clone());
    words.push(packet.length.to_string());
    words.join(" ")
}

/// Interface, and where it was sent out by another one that too.
fn way(packet: &TracePacket) -> String {
    let interface = &packet.interface;
    match &packet.exit {
        Some(exit) if exit != interface => format!("{interface}>{exit}"),
        _ => interface.clone(),
    }
}

fn whose(packet: &TracePacket) -> String {
    match (&packet.service, &packet.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => service.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn end(end: &TraceEnd) -> String {
    match end.port {
        Some(port) => std::net::SocketAddr::new(end.address, port).to_string(),
        None => end.address.to_string(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A packet on its way to a backend.
    pub fn packet() -> TracePacket {
        let end = |address: &str, port| TraceEnd {
            address: address.parse().expect("an address"),
            port: Some(port),
        };
        TracePacket {
            time: "2026-11-21T12:20:49.123456789Z".to_owned(),
            took_ns: 900,
            interface: "eth0".to_owned(),
            exit: Some("eth1".to_owned()),
            source: Some(end("192.0.2.7", 40_000)),
            destination: Some(end("203.0.113.10", 80)),
            protocol: Some("tcp".to_owned()),
            flags: Some("S".to_owned()),
            fragment: false,
            service: Some("web".to_owned()),
            backend: Some("b1".to_owned()),
            outcome: "forward_opening".to_owned(),
            verdict: "redirect".to_owned(),
            length: 74,
            length_out: Some(74),
            frame_in: None,
            frame_out: None,
        }
    }

    #[test]
    fn a_packet_is_a_line() {
        assert_eq!(
            line(&packet()),
            "12:20:49.123456 eth0>eth1 192.0.2.7:40000 > 203.0.113.10:80 tcp S web/b1 forward_opening 74"
        );
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let mut packet = packet();
        packet.exit = Some("eth0".to_owned());
        packet.backend = None;
        packet.outcome = "drop_ttl".to_owned();
        assert!(line(&packet).contains(" eth0 192.0.2.7:40000"));
        assert!(line(&packet).ends_with(" web drop_ttl 74"));
        (packet.source, packet.destination) = (None, None);
        (packet.protocol, packet.flags, packet.service) = (None, None, None);
        assert_eq!(line(&packet), "12:20:49.123456 eth0 - drop_ttl 74");
    }

    #[test]
    fn fragments_have_no_ports_and_v6_has_brackets() {
        let mut packet = packet();
        packet.fragment = true;
        packet.flags = None;
        packet.source = Some(TraceEnd {
            address: "2001:db8::7".parse().expect("an address"),
            port: None,
        });
        packet.destination = Some(TraceEnd {
            address: "2001:db8::10".parse().expect("an address"),
            port: Some(443),
        });
        let text = line(&packet);
        assert!(
            text.contains("2001:db8::7 > [2001:db8::10]:443 tcp fragment web/b1"),
            "{text}"
        );
    }
}

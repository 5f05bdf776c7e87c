//! Where a service listens: `ADDRESS:PORTS[/PROTOCOL]`.

use std::net::SocketAddr;

use crate::model::{
    address::{is_mapped, unusable},
    spec::{Ports, Protocol, Vip},
};

use super::{
    super::{
        file::{Field, Located},
        problem::{Problems, Reported},
        words::quote,
    },
    address::{Endpoint, Fault, Port, SERVED_TODAY, endpoint, mapped, with_port},
};

/// What was read of a service's `listen`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listen {
    /// The address, when this version can serve it.
    pub(super) vip: Result<Vip, Reported>,
    /// The address as far as it was understood, also when it was refused; IPv4 where it is a mapped one.
    /// Its port is the first where there are several.
    pub(super) heard: Option<Located<SocketAddr>>,
    /// All the ports of it.
    pub(super) ports: Option<Ports>,
    /// The protocol, when it is one: the same port of another protocol is another place to listen.
    pub(super) protocol: Option<Protocol>,
}

impl Listen {
    /// Of a field that is not there or is no text.
    pub(super) fn unheard(reported: Reported) -> Self {
        Self {
            vip: Err(reported),
            heard: None,
            ports: None,
            protocol: None,
        }
    }
}

/// Reads the field.
pub(super) fn read(field: &Field<'_>, problems: &mut Problems<'_>) -> Listen {
    let text = match field.text(problems, "203.0.113.10:443") {
        Ok(text) => text,
        Err(reported) => return Listen::unheard(reported),
    };
    let (address, protocol) = match text.split_once('/') {
        Some((address, protocol)) => (address, Some(protocol)),
        None => (text, None),
    };
    let endpoint = endpoint(address);
    let heard = endpoint.as_ref().ok().and_then(|endpoint| {
        let ports = ports(endpoint.port)?;
        let value = SocketAddr::new(endpoint.ip.to_canonical(), ports.first);
        let place = field.place();
        Some((Located { value, place }, ports))
    });
    let vip = endpoint
        .and_then(|endpoint| vip(endpoint, protocol))
        .map_err(|fault| {
            field.wrong(
                problems,
                format_args!("= {} {}", quote(text), fault.message),
                fault.hint,
            )
        });
    Listen {
        vip,
        heard: heard.map(|(heard, _)| heard),
        ports: heard.map(|(_, ports)| ports),
        protocol: known(protocol),
    }
}

/// The ports meant, where they are in a row.
const fn ports(port: Port) -> Option<Ports> {
    match port {
        Port::One(port) => Some(Ports::one(port)),
        Port::Range(first, last) => Some(Ports { first, last }),
        Port::Every => Some(Ports::EVERY),
        Port::Absent | Port::Several => None,
    }
}

/// The protocol of this name; TCP without one.
fn known(name: Option<&str>) -> Option<Protocol> {
    match name {
        None => Some(Protocol::Tcp),
        Some(name) => [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|protocol| protocol.name() == name),
    }
}

fn vip(endpoint: Endpoint, protocol: Option<&str>) -> Result<Vip, Fault> {
    let later = |what: &str| {
        Fault::new(
            format!("asks for {what}, which is not supported yet"),
            SERVED_TODAY,
        )
    };
    let protocol = match (known(protocol), protocol) {
        (Some(known), _) => known,
        (None, Some("quic")) => {
            return Err(Fault::new(
                "has `quic` for a protocol",
                "write /udp here, and quic = {} below",
            ));
        }
        (None, Some("sctp")) => return Err(later("SCTP")),
        (None, other) => {
            return Err(Fault::new(
                format!("has {} for a protocol", quote(other.unwrap_or_default())),
                "write /udp or /tcp; without one it is TCP",
            ));
        }
    };
    if is_mapped(endpoint.ip) {
        return Err(mapped(endpoint));
    }
    if let Some(what) = unusable(endpoint.ip) {
        let message = format!("is {what}, at which no client can reach a service");
        return Err(Fault::new(
            message,
            "use an address that is routed to this node",
        ));
    }
    match (ports(endpoint.port), endpoint.port) {
        (Some(ports), _) => Ok(Vip {
            address: endpoint.ip,
            port: ports.first,
            last_port: ports.last,
            protocol,
        }),
        (None, Port::Absent) => Err(Fault::new(
            "lacks a port",
            format!("write {}", with_port(endpoint.ip, 443)),
        )),
        (None, _) => Err(later("a list of ports")),
    }
}

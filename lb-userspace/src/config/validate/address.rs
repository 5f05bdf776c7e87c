//! Addresses with ports, as services and backends write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::words::quote;

/// What this version serves; the hint to all that it does not.
pub(super) const SERVED_TODAY: &str =
    "ebb serves TCP and UDP, on a port, ports in a row or every port";

/// `ADDRESS` or `ADDRESS:PORT`, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    pub(super) port: Port,
}

/// What stands after the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    /// Nothing.
    Absent,
    /// A number, not 0.
    One(u16),
    /// `*`.
    Every,
    /// `8000-8100`; the first is less than the last, neither is 0.
    Range(u16, u16),
    /// A list.
    Several,
}

/// Why a text is no endpoint: the rest of a sentence that began with the text, and a hint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// Takes an endpoint apart.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Fault> {
    if let Some(rest) = text.strip_prefix('[') {
        return bracketed(rest);
    }
    // Without brackets nobody can tell the last group of an IPv6 address from a port.
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok(Endpoint {
            ip: ip.into(),
            port: Port::Absent,
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let ip = host.parse::<Ipv4Addr>().map_err(|_| not_an_address(host))?;
    Ok(Endpoint {
        ip: ip.into(),
        port: port.map_or(Ok(Port::Absent), parse_port)?,
    })
}

fn bracketed(rest: &str) -> Result<Endpoint, Fault> {
    let (host, after) = rest
        .split_once(']')
        .ok_or_else(|| Fault::new("lacks the closing `]`", "write [ADDRESS]:PORT"))?;
    let ip = host.parse::<Ipv6Addr>().map_err(|_| {
        Fault::new(
            format!("has {} in brackets, which is no IPv6 address", quote(host)),
            "brackets are for IPv6: write [2001:db8::10]:443, or 203.0.113.10:443",
        )
    })?;
    let port = match after.strip_prefix(':') {
        Some(port) => parse_port(port)?,
        None if after.is_empty() => Port::Absent,
        None => {
            return Err(Fault::new(
                "has no `:` after the `]`",
                "write [ADDRESS]:PORT",
            ));
        }
    };
    Ok(Endpoint {
        ip: ip.into(),
        port,
    })
}

fn not_an_address(host: &str) -> Fault {
    if host.is_empty() || host == "*" {
        return Fault::new(
            "names no address",
            "write ADDRESS:PORT, such as 203.0.113.10:443 or [2001:db8::10]:443",
        );
    }
    let hint = if host.chars().all(|c| c.is_ascii_digit() || c == '.') {
        "an IPv4 address is four numbers from 0 to 255 without leading zeros"
    } else {
        "names are not resolved; write the address, such as 203.0.113.10:443"
    };
    Fault::new(
        format!("does not begin with an IP address: {}", quote(host)),
        hint,
    )
}

fn parse_port(text: &str) -> Result<Port, Fault> {
    if text == "*" {
        return Ok(Port::Every);
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && digits(text) => Ok(port),
        _ => Err(Fault::new(
            format!("has {} for a port", quote(text)),
            "a port is a number from 1 to 65535",
        )),
    };
    if let Some((first, last)) = text.split_once('-')
        && digits(first)
        && digits(last)
    {
        let (first, last) = (number(first)?, number(last)?);
        if first < last {
            return Ok(Port::Range(first, last));
        }
        return Err(Fault::new(
            format!(
                "has the ports {}, of which the first is not the lesser",
                quote(text)
            ),
            "write FIRST-LAST, such as 8000-8999",
        ));
    }
    if text.contains(['-', ',']) && text.split(['-', ',']).all(digits) {
        return Ok(Port::Several);
    }
    number(text).map(Port::One)
}

/// Of an IPv4-mapped address: the IPv4 address is meant.
pub(super) fn mapped(Endpoint { ip, port }: Endpoint) -> Fault {
    let ip = ip.to_canonical();
    let hint = match port {
        Port::One(port) => format!("write {}", with_port(ip, port)),
        _ => format!("write {ip}"),
    };
    Fault::new("is an IPv4 address written as IPv6", hint)
}

/// How an address is written with a port: an IPv6 address in brackets.
pub(super) fn with_port(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let v4 = |port| Endpoint {
            ip: Ipv4Addr::new(203, 0, 113, 10).into(),
            port,
        };
        for (text, expected) in [
            ("203.0.113.10", v4(Port::Absent)),
            ("203.0.113.10:443", v4(Port::One(443))),
            ("203.0.113.10:65535", v4(Port::One(65535))),
            ("203.0.113.10:*", v4(Port::Every)),
            ("203.0.113.10:80-90", v4(Port::Range(80, 90))),
            ("203.0.113.10:80,90", v4(Port::Several)),
            (
                "::1",
                Endpoint {
                    ip: Ipv6Addr::LOCALHOST.into(),
                    port: Port::Absent,
                },
            ),
            (
                "[::1]",
                Endpoint {
                    ip: Ipv6Addr::LOCALHOST.into(),
                    port: Port::Absent,
                },
            ),
            (
                "[::1]:1",
                Endpoint {
                    ip: Ipv6Addr::LOCALHOST.into(),
                    port: Port::One(1),
                },
            ),
        ] {
            assert_eq!(endpoint(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn no_endpoints() {
        for (text, words) in [
            ("", "names no address"),
            (":443", "names no address"),
            ("*:443", "names no address"),
            ("www.example.com:443", "does not begin with an IP address"),
            ("203.0.113:443", "does not begin with an IP address"),
            ("203.0.113.010:443", "does not begin with an IP address"),
            (" 203.0.113.10:443", "does not begin with an IP address"),
            ("203.0.113.10:", "for a port"),
            ("203.0.113.10:0", "for a port"),
            ("203.0.113.10:+443", "for a port"),
            ("203.0.113.10:65536", "for a port"),
            ("203.0.113.10:80-", "for a port"),
            ("203.0.113.10:90-80", "not the lesser"),
            ("203.0.113.10:0-80", "`0` for a port"),
            ("203.0.113.10:https", "for a port"),
            ("[::1", "closing"),
            ("[::1]443", "no `:`"),
            ("[203.0.113.10]:443", "no IPv6 address"),
        ] {
            let fault = endpoint(text).expect_err(text);
            assert!(fault.message.contains(words), "{text}: {}", fault.message);
        }
    }
}

//! Which addresses a service or a backend can have.

use std::net::IpAddr;

/// Why no host can have this address to itself, or none be reached by it alone; `None` when both can be.
#[must_use]
pub fn unusable(ip: IpAddr) -> Option<&'static str> {
    if is_mapped(ip) {
        return Some("an IPv4 address written as IPv6");
    }
    if ip.is_loopback() {
        return Some("a loopback address");
    }
    if ip.is_multicast() {
        return Some("a multicast address");
    }
    match ip {
        _ if ip.is_unspecified() => Some("the unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\""),
        // It means a host only together with an interface (RFC 4007), which nobody can write here.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// Whether it is an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2): no packet has such an address.
#[must_use]
pub fn is_mapped(ip: IpAddr) -> bool {
    ip.is_ipv6() && ip.to_canonical().is_ipv4()
}

/// `IPv4` or `IPv6`, for messages.
#[must_use]
pub const fn family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts_and_others() {
        let rows = [
            ("203.0.113.10", None),
            ("169.254.1.1", None),
            ("2001:db8::10", None),
            ("fd00::1", None),
            ("127.0.0.1", Some("loopback")),
            ("::1", Some("loopback")),
            ("0.0.0.0", Some("unspecified")),
            ("::", Some("unspecified")),
            ("0.1.2.3", Some("this network")),
            ("224.0.0.1", Some("multicast")),
            ("ff02::1", Some("multicast")),
            ("255.255.255.255", Some("broadcast")),
            ("fe80::1", Some("link-local")),
            ("febf::1", Some("link-local")),
            ("::ffff:203.0.113.10", Some("written as IPv6")),
        ];
        for (text, expected) in rows {
            let found = unusable(text.parse().unwrap());
            match expected {
                None => assert_eq!(found, None, "{text}"),
                Some(words) => assert!(
                    found.is_some_and(|f| f.contains(words)),
                    "{text}: {found:?}"
                ),
            }
        }
    }
}

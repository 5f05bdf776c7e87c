//! Whether the kernel gives the node's own connections ports that flows of `full-nat` services may have too.

use std::fs;

use crate::model::spec::{Forward, Ports, Spec};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A warning when it does; none where there is no such service, or the kernel does not say.
pub(super) fn warnings(spec: &Spec) -> Vec<String> {
    let is_used = |forward| forward == Forward::FullNat;
    if !spec
        .services
        .values()
        .any(|service| is_used(service.forward))
    {
        return Vec::new();
    }
    let Ok(range) = fs::read_to_string(RANGE) else {
        return Vec::new();
    };
    let reserved = fs::read_to_string(RESERVED).unwrap_or_default();
    let shared = shared(&range, &reserved, spec.nat.ports);
    shared.map_or_else(Vec::new, |ports| vec![warning(ports, spec.nat.ports)])
}

fn warning(shared: Ports, wanted: Ports) -> String {
    format!(
        "nat_ports {wanted} and net.ipv4.ip_local_port_range share {shared}: a connection of the node's own to a \
         backend may lose its answers; set net.ipv4.ip_local_reserved_ports = {shared}"
    )
}

/// The first and the last port that both may have, without those reserved. `range`: two numbers; `reserved`: single ones
/// and ranges, separated by commas (Linux, Documentation/networking/ip-sysctl.rst).
fn shared(range: &str, reserved: &str, ours: Ports) -> Option<Ports> {
    let mut numbers = range.split_whitespace().map(str::parse::<u16>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let kept: Vec<Ports> = reserved.trim().split(',').filter_map(ports).collect();
    let is_shared = |port: &u16| !kept.iter().any(|ports| ports.contains(*port));
    let mut both = (first.max(ours.first)..=last.min(ours.last)).filter(is_shared);
    let first = both.next()?;
    Some(Ports {
        first,
        last: both.next_back().unwrap_or(first),
    })
}

fn ports(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(Ports {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_may_have() {
        let ours = |first, last| Ports { first, last };
        #[rustfmt::skip]
        let rows = [
            ("32768\t60999\n", "\n", ours(1024, 32767), None),
            ("32768\t60999\n", "\n", ours(1024, 40000), Some(ours(32768, 40000))),
            ("32768\t60999\n", "32768-40000\n", ours(1024, 40000), None),
            ("32768\t60999\n", "32768,32769-39999\n", ours(1024, 40000), Some(ours(40000, 40000))),
            ("1024 65535", "", ours(1024, 32767), Some(ours(1024, 32767))),
            ("unknown", "", ours(1024, 32767), None),
        ];
        for (range, reserved, ports, expected) in rows {
            assert_eq!(
                shared(range, reserved, ports),
                expected,
                "{range} {reserved}"
            );
        }
    }
}

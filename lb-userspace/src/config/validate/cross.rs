//! Rules between services, and between the backends of one.

use std::{collections::HashMap, net::IpAddr};

use lb_common::limits::RANGES_MAX;

use crate::model::spec::{Forward, Ports};

use super::{
    super::{file::Place, problem::Problems, words::quote},
    facts::{BackendAddress, Facts, ServiceFacts},
};

/// Checks them all. Of two things that clash, the later one in the file is reported.
pub(super) fn check(facts: &Facts, problems: &mut Problems<'_>) {
    one_service_a_vip(facts, problems);
    for service in &facts.services {
        one_backend_a_name(service, problems);
        one_backend_an_address(service, problems);
        no_vip_for_a_backend(service, facts, problems);
    }
    one_nat_service_a_backend(facts, problems);
    no_service_on_a_nat_port(facts, problems);
    within_capacity(facts, problems);
}

/// An exact port goes before ports in a row, and these before every port; ports in a row do not overlap.
fn one_service_a_vip(facts: &Facts, problems: &mut Problems<'_>) {
    let mut services: Vec<_> = facts
        .services
        .iter()
        .filter_map(|service| Some((service.listen?, service.ports?, service)))
        .collect();
    services.sort_by_key(|(listen, ..)| listen.place);
    let mut earlier: HashMap<_, Vec<(Ports, &ServiceFacts)>> = HashMap::new();
    for (listen, ports, service) in services {
        let key = (listen.value.ip(), service.protocol);
        let others = earlier.entry(key).or_default();
        if let Some((_, other)) = others.iter().find(|(other, _)| clash(*other, ports)) {
            let line = other.listen.map_or(0, |listen| problems.line(listen.place));
            let what = with_ports(listen.value.ip(), ports);
            let message = format!(
                "{} is already where service {} listens (line {line})",
                quote(&what),
                quote(other.title())
            );
            let hint = format!(
                "give service {} another address or port",
                quote(service.title())
            );
            problems.report(listen.place, message, hint);
        } else {
            others.push((ports, service));
        }
        let ranges = others.iter().filter(|(ports, _)| !ports.is_one()).count();
        if !ports.is_one() && ranges > RANGES_MAX as usize {
            let message = format!(
                "{} has more than {RANGES_MAX} services on several ports",
                quote(&listen.value.ip().to_string())
            );
            problems.report(
                listen.place,
                message,
                "join some of them, or use another address",
            );
        }
    }
}

fn clash(a: Ports, b: Ports) -> bool {
    let nested = a.is_one() != b.is_one() || (a == Ports::EVERY) != (b == Ports::EVERY);
    a == b || (a.overlaps(b) && !nested)
}

fn with_ports(ip: IpAddr, ports: Ports) -> String {
    match ip {
        IpAddr::V4(v4) => format!("{v4}:{ports}"),
        IpAddr::V6(v6) => format!("[{v6}]:{ports}"),
    }
}

fn one_backend_a_name(service: &ServiceFacts, problems: &mut Problems<'_>) {
    let mut backends: Vec<_> = service.backends.iter().collect();
    backends.sort_by_key(|backend| backend.name.place);
    let mut first: HashMap<&str, Place> = HashMap::new();
    for backend in backends {
        let name = backend.name.value.as_str();
        if let Some(other) = first.get(name) {
            let line = problems.line(*other);
            let message = format!(
                "service {} already has a backend {} (line {line})",
                quote(service.title()),
                quote(name)
            );
            problems.report(
                backend.name.place,
                message,
                "names are unique over all pools of a service",
            );
        } else {
            first.insert(name, backend.name.place);
        }
    }
}

fn one_backend_an_address(service: &ServiceFacts, problems: &mut Problems<'_>) {
    let mut backends: Vec<_> = service.addressed().collect();
    backends.sort_by_key(|(_, _, place)| *place);
    let mut first: HashMap<BackendAddress, (&str, Place)> = HashMap::new();
    for (backend, address, place) in backends {
        if let Some(&(other, other_place)) = first.get(&address) {
            let line = problems.line(other_place);
            let message = format!(
                "backend {} has the address of backend {} (line {line})",
                quote(&backend.name.value),
                quote(other)
            );
            problems.report(
                place,
                message,
                "list a backend once; to give it more flows, raise its weight",
            );
        } else {
            first.insert(address, (backend.name.value.as_str(), place));
        }
    }
}

/// A packet to such a backend would be a packet to a service.
fn no_vip_for_a_backend(service: &ServiceFacts, facts: &Facts, problems: &mut Problems<'_>) {
    let mut vips: HashMap<IpAddr, Vec<(Ports, &str)>> = HashMap::new();
    for other in &facts.services {
        if let (Some(listen), Some(ports)) = (other.listen, other.ports)
            && other.protocol == service.protocol
        {
            let at = vips.entry(listen.value.ip()).or_default();
            at.push((ports, other.title()));
        }
    }
    let listens = |ip: IpAddr, own: Ports| {
        let mut at = vips.get(&ip)?.iter();
        at.find(|(ports, _)| ports.overlaps(own))
            .map(|(_, title)| *title)
    };
    for (backend, BackendAddress { ip, ports }, place) in service.addressed() {
        let name = quote(&backend.name.value);
        if service.listen.is_some_and(|listen| listen.value.ip() == ip) {
            let message = format!("backend {name} has the address of its own service");
            let hint = match service.forward {
                Some(Forward::L2 | Forward::Ipip | Forward::Gue) => {
                    "write the backend's own address; the service's is added on its loopback interface"
                }
                _ => "write the address that the backend has on its network",
            };
            problems.report(place, message, hint);
        } else if let Some(other) = ports.and_then(|ports| listens(ip, ports)) {
            let message = format!("backend {name} is where service {} listens", quote(other));
            problems.report(
                place,
                message,
                "services cannot be chained; list that service's backends",
            );
        }
    }
}

/// A client's packet to such a service, and an answer of a backend, could not be told apart.
fn no_service_on_a_nat_port(facts: &Facts, problems: &mut Problems<'_>) {
    let is_used = |service: &ServiceFacts| service.forward == Some(Forward::FullNat);
    let Some((nat, place)) = facts
        .nat
        .as_ref()
        .filter(|_| facts.services.iter().any(is_used))
    else {
        return;
    };
    let clash = facts.services.iter().find(|service| {
        let at = service.listen.zip(service.ports);
        at.is_some_and(|(listen, ports)| {
            nat.addresses.contains(&listen.value.ip()) && nat.ports.overlaps(ports)
        })
    });
    if let Some(service) = clash {
        let message = format!(
            "service {} listens on a port of `nat_addresses`",
            quote(service.title())
        );
        let hint = "list addresses that no service listens on, or leave its port out of nat_ports";
        problems.report(*place, message, hint);
    }
}

/// An answer of a backend is told by its source address and port to belong to a service; it can belong to one. Behind
/// `full-nat` its destination port tells too, so that only `nat` must have it alone.
fn one_nat_service_a_backend(facts: &Facts, problems: &mut Problems<'_>) {
    let mut backends: Vec<_> = facts
        .services
        .iter()
        .enumerate()
        .filter(|(_, service)| service.forward.is_some_and(Forward::sees_answers))
        .flat_map(|(index, service)| {
            service
                .addressed()
                .map(move |found| (index, service, found))
        })
        .collect();
    backends.sort_by_key(|(_, _, (_, _, place))| *place);
    let mut earlier: HashMap<_, Vec<(Ports, usize, &str, Place)>> = HashMap::new();
    for (index, service, (backend, BackendAddress { ip, ports }, place)) in backends {
        let Some(ports) = ports else { continue };
        let others = earlier.entry((ip, service.protocol)).or_default();
        let clash = others
            .iter()
            .find(|(taken, other, ..)| {
                let both = [index, *other].map(|index| facts.services[index].forward);
                *other != index && taken.overlaps(ports) && both != [Some(Forward::FullNat); 2]
            })
            .copied();
        others.push((ports, index, service.title(), place));
        let ranges = others.iter().filter(|(ports, ..)| !ports.is_one()).count();
        if !ports.is_one() && ranges > RANGES_MAX as usize {
            let message = format!(
                "backend {} is in more than {RANGES_MAX} `nat` services on several ports",
                quote(&backend.name.value)
            );
            problems.report(place, message, "join some of the services");
        } else if let Some((_, _, other, other_place)) = clash {
            let line = problems.line(other_place);
            let message = format!(
                "backend {} is a `nat` backend of service {} too (line {line}): its answers could not be told apart",
                quote(&backend.name.value),
                quote(other)
            );
            problems.report(
                place,
                message,
                "let it listen on another port for this service, or use forward = \"l2\"",
            );
        }
    }
}

fn within_capacity(facts: &Facts, problems: &mut Problems<'_>) {
    let capacity = facts.capacity;
    let mut services: Vec<Place> = facts
        .services
        .iter()
        .map(|service| service.name.place)
        .collect();
    let mut backends: Vec<Place> = facts
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.name.place))
        .collect();
    for (kind, places, most) in [
        ("services", &mut services, capacity.services),
        ("backends", &mut backends, capacity.backends),
    ] {
        places.sort_unstable();
        if let Some(place) = places.get(most as usize) {
            let message = format!(
                "{} {kind} are more than the {most} the node has room for",
                places.len()
            );
            problems.report(
                *place,
                message,
                format!("set capacity.{kind} to {} or more", places.len()),
            );
        }
    }
}

//! `full-nat`: the node's addresses and ports that backends see, and the option that names the client.

use std::net::IpAddr;

use lb_common::full_nat::{ADDRESSES_MAX, BLOCK, OPTION_KIND, Sources};

use crate::model::{
    address::{family, unusable},
    spec::{Forward, NatSpec, Ports, Protocol},
};

use super::super::{
    file::{Field, Place, Section},
    limits,
    problem::{Problems, Reported},
    words::quote,
};

const ADDRESSES_EXAMPLE: &str = "[\"10.0.0.1\", \"2001:db8::1\"]";

/// What all `full-nat` services use, and where it is said.
pub(super) fn of_node(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> (Result<NatSpec, Reported>, Option<Place>) {
    let field = root.field("nat_addresses");
    let place = field.map(|field| field.place());
    let addresses = field.map_or(Ok(Vec::new()), |field| addresses(&field, problems));
    let ports = root
        .field("nat_ports")
        .map_or(Ok(NatSpec::default().ports), |field| {
            ports(&field, problems)
        });
    let spec = addresses.and_then(|addresses| {
        Ok(NatSpec {
            addresses,
            ports: ports?,
        })
    });
    (spec, place)
}

fn addresses(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<Vec<IpAddr>, Reported> {
    let mut seen: Vec<IpAddr> = Vec::new();
    for element in field.list(problems, ADDRESSES_EXAMPLE)? {
        let text = element.element_text(problems, ADDRESSES_EXAMPLE)?;
        let mut wrong = |what: &str, hint: &str| {
            let message = format!("`nat_addresses` = {} {what}", quote(text));
            problems.report(element.place(), message, hint)
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            let hint = "write an address of this node, without a port";
            return Err(wrong("is no address", hint));
        };
        if let Some(what) = unusable(address) {
            let hint = "write an address of this node that the backends reach";
            return Err(wrong(&format!("is {what}"), hint));
        }
        if seen.contains(&address) {
            return Err(wrong("is listed twice", "list each address once"));
        }
        let of_family = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
        if seen.iter().filter(of_family).count() == ADDRESSES_MAX {
            let what = format!("is more than {ADDRESSES_MAX} of {}", family(address));
            return Err(wrong(&what, "leave some out"));
        }
        seen.push(address);
    }
    Ok(seen)
}

fn ports(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<Ports, Reported> {
    let default = NatSpec::default().ports;
    let text = field.text(problems, &default.to_string())?;
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((port(first)?, port(last)?)))
        .filter(|(first, last)| first <= last);
    let Some((first, last)) = range else {
        let message = format_args!("= {} is no range of ports", quote(text)).to_string();
        return Err(field.wrong(
            problems,
            message,
            format!("for example: nat_ports = \"{default}\""),
        ));
    };
    if Sources::ports(Sources::range(first, last, 0)) < limits::NAT_PORTS_MIN {
        let message = format_args!("= {} is too short a range", quote(text)).to_string();
        let hint = format!(
            "give at least {} ports; they are used in whole blocks of {BLOCK}",
            limits::NAT_PORTS_MIN
        );
        return Err(field.wrong(problems, message, hint));
    }
    Ok(Ports { first, last })
}

/// Kind of the option that names the client to the backends of a service; 0 for none.
pub(super) fn of_service(
    section: &mut Section<'_>,
    forward: Result<Forward, Reported>,
    protocol: Option<Protocol>,
    problems: &mut Problems<'_>,
) -> Result<u8, Reported> {
    let Some(field) = section.field("client_address_option") else {
        return Ok(0);
    };
    let kind = if field.is_integer() {
        let kind = field.integer(problems, limits::OPTION_KIND)?;
        u8::try_from(kind).unwrap_or(OPTION_KIND)
    } else if field.boolean(problems)? {
        OPTION_KIND
    } else {
        return Ok(0);
    };
    // Where the mode could not be read, that is the error.
    if let Ok(forward) = forward
        && forward != Forward::FullNat
    {
        let message = format!(
            "`client_address_option` has no meaning with `{}`",
            forward.name()
        );
        let hint = "take the line out, or use forward = \"full-nat\"";
        return Err(problems.report(field.key_place, message, hint));
    }
    if protocol == Some(Protocol::Udp) {
        let message = "`client_address_option` has no meaning in a UDP service: it is a TCP option";
        return Err(problems.report(field.key_place, message, "take the line out"));
    }
    Ok(kind)
}

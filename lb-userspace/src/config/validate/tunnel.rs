//! Outer headers of the tunnel modes: `tunnel_source` of the node and of a service, `tunnel_port` and `decap` of a
//! service.

use std::net::IpAddr;

use crate::model::{
    address::{family, unusable},
    spec::{Decap, Forward, TunnelSpec},
};

use super::super::{
    file::{Field, Section},
    limits,
    problem::{Problems, Reported},
    words::quote,
};

const SOURCE: &str = "tunnel_source";
const EXAMPLE: &str = "10.0.0.1";
const DECAPS: [(&str, Decap); 2] = [("any", Decap::Any), ("ebb", Decap::Ebb)];

/// What all services use unless they say otherwise.
pub(super) fn of_node(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<TunnelSpec, Reported> {
    sources(root, TunnelSpec::default(), problems)
}

/// What a service uses. Without a tunnel nothing of it may be asked for, and nothing is kept.
pub(super) fn of_service(
    section: &mut Section<'_>,
    forward: Result<Forward, Reported>,
    node: TunnelSpec,
    problems: &mut Problems<'_>,
) -> Result<TunnelSpec, Reported> {
    let port = section.field("tunnel_port");
    let decap = section.field("decap");
    // Where the mode could not be read, that is the error.
    let Ok(forward) = forward else {
        return sources(section, node, problems);
    };
    if !forward.is_tunnel() {
        let (gue, any) = ("forward = \"gue\"", "forward = \"ipip\" or \"gue\"");
        let useless = [(port, gue), (section.field(SOURCE), any), (decap, any)];
        for (field, wanted) in useless {
            if let Some(field) = field {
                return Err(not_for(&field, forward, wanted, problems));
            }
        }
        return Ok(TunnelSpec::default());
    }
    let decap = decap.map_or(Ok(Decap::Any), |field| field.choice(problems, &DECAPS, &[]))?;
    if let Some(field) = port.filter(|_| forward != Forward::Gue && decap != Decap::Ebb) {
        let wanted = "forward = \"gue\" or decap = \"ebb\"";
        return Err(not_for(&field, forward, wanted, problems));
    }
    let tunnel = sources(section, node, problems);
    let port = port.map_or(Ok(node.port), |field| {
        let port = field.integer(problems, limits::TUNNEL_PORT)?;
        Ok(u16::try_from(port).unwrap_or(node.port))
    });
    Ok(TunnelSpec {
        port: port?,
        decap,
        ..tunnel?
    })
}

fn not_for(
    field: &Field<'_>,
    forward: Forward,
    wanted: &str,
    problems: &mut Problems<'_>,
) -> Reported {
    let message = format!(
        "{} has no meaning with `{}`",
        quote(field.key),
        forward.name()
    );
    let hint = format!("take the line out, or use {wanted}");
    problems.report(field.key_place, message, hint)
}

/// One address, or one of each family in a list.
fn sources(
    section: &mut Section<'_>,
    mut tunnel: TunnelSpec,
    problems: &mut Problems<'_>,
) -> Result<TunnelSpec, Reported> {
    let Some(field) = section.field(SOURCE) else {
        return Ok(tunnel);
    };
    let mut seen: Vec<IpAddr> = Vec::new();
    if field.is_text() {
        let text = field.text(problems, EXAMPLE)?;
        seen.push(source(&field, text, &seen, problems)?);
    } else {
        for element in field.list(problems, "[\"10.0.0.1\", \"2001:db8::1\"]")? {
            let text = element.element_text(problems, "[\"10.0.0.1\", \"2001:db8::1\"]")?;
            seen.push(source(&element, text, &seen, problems)?);
        }
    }
    for address in seen {
        match address {
            IpAddr::V4(v4) => tunnel.source_v4 = Some(v4),
            IpAddr::V6(v6) => tunnel.source_v6 = Some(v6),
        }
    }
    Ok(tunnel)
}

fn source(
    field: &Field<'_>,
    text: &str,
    earlier: &[IpAddr],
    problems: &mut Problems<'_>,
) -> Result<IpAddr, Reported> {
    let mut wrong = |what: &str, hint: &str| {
        let message = format!("`{SOURCE}` = {} {what}", quote(text));
        problems.report(field.place(), message, hint)
    };
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(wrong(
            "is no address",
            "write an address of this node, without a port",
        ));
    };
    if let Some(what) = unusable(address) {
        return Err(wrong(
            &format!("is {what}"),
            "write an address of this node that the backends see",
        ));
    }
    if earlier
        .iter()
        .any(|other| other.is_ipv4() == address.is_ipv4())
    {
        return Err(wrong(
            &format!("is a second {} address", family(address)),
            "give at most one of each family",
        ));
    }
    Ok(address)
}

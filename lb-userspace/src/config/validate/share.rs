//! `[share]`: other nodes that serve the same addresses.

use std::net::SocketAddr;

use crate::model::spec::Share;

use super::super::{
    file::{Field, Section},
    limits,
    problem::{Problems, Reported},
    words::quote,
};

const EXAMPLE: &str = "\"192.0.2.1:9651\"";

/// Reads the section, where there is one.
pub(super) fn read(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<Option<Share>, Reported> {
    let Some(field) = root.field("share") else {
        return Ok(None);
    };
    let mut section = field.section(problems, "share")?;
    let hint = format!("this node's own address and port: listen = {EXAMPLE}");
    let listen = section
        .required("listen", problems, hint)
        .and_then(|field| address(&field, field.text(problems, EXAMPLE)?, problems));
    let hint = format!("the addresses that the other nodes listen on: peers = [{EXAMPLE}]");
    let peers = section
        .required("peers", problems, hint)
        .and_then(|field| peers(&field, listen.ok(), problems));
    section.finish(problems);
    Ok(Some(Share {
        listen: listen?,
        peers: peers?,
    }))
}

fn peers(
    field: &Field<'_>,
    listen: Option<SocketAddr>,
    problems: &mut Problems<'_>,
) -> Result<Vec<SocketAddr>, Reported> {
    let elements = field.list(problems, "[\"192.0.2.2:9651\"]")?;
    if elements.is_empty() || elements.len() > limits::SHARE_PEERS {
        let message = format!("names {} nodes", elements.len());
        let hint = format!("name 1 to {}, or take [share] out", limits::SHARE_PEERS);
        return Err(field.wrong(problems, message, hint));
    }
    let mut peers: Vec<SocketAddr> = Vec::with_capacity(elements.len());
    let mut wrong = None;
    for element in elements {
        let text = element.element_text(problems, "[\"192.0.2.2:9651\"]");
        match text.and_then(|text| address(&element, text, problems)) {
            Ok(peer) if peers.contains(&peer) => {
                let message = format!("{peer} is named twice");
                wrong = Some(problems.report(element.place(), message, "name each node once"));
            }
            Ok(peer) if listen == Some(peer) => {
                let message = format!("{peer} is this node's own address");
                wrong =
                    Some(problems.report(element.place(), message, "name the other nodes only"));
            }
            Ok(peer) if listen.is_some_and(|listen| listen.is_ipv4() != peer.is_ipv4()) => {
                let message =
                    format!("{peer} can not be reached from an address of the other family");
                let hint = "give `listen` and `peers` addresses of one family";
                wrong = Some(problems.report(element.place(), message, hint));
            }
            Ok(peer) => peers.push(peer),
            Err(reported) => wrong = Some(reported),
        }
    }
    wrong.map_or(Ok(peers), Err)
}

/// An address that can be bound to, or sent to by its owner.
fn address(
    field: &Field<'_>,
    text: &str,
    problems: &mut Problems<'_>,
) -> Result<SocketAddr, Reported> {
    let parsed: Option<SocketAddr> = text.parse().ok();
    match parsed {
        Some(address)
            if address.port() != 0
                && !address.ip().is_unspecified()
                && !address.ip().is_multicast() =>
        {
            Ok(address)
        }
        _ => Err(problems.report(
            field.place(),
            format!("{} is not the address and port of one node", quote(text)),
            format!("for example {EXAMPLE} or \"[2001:db8::1]:9651\""),
        )),
    }
}

//! Settings of the node: the keys before the first section, and `[capacity]`.

use std::{ops::RangeInclusive, path::PathBuf};

use crate::model::spec::{Capacity, NodeSpec, XdpMode};

use super::{
    super::{
        file::{Field, Section},
        limits,
        problem::{Problems, Reported},
        words::quote,
    },
    facts::Facts,
    names, share, tunnel,
};

/// Reads them; the capacity is a fact for later.
pub(super) fn read(
    root: &mut Section<'_>,
    facts: &mut Facts,
    problems: &mut Problems<'_>,
) -> Result<NodeSpec, Reported> {
    let interfaces = interfaces(root, problems);
    let xdp_mode = root.field("xdp_mode").map_or(Ok(XdpMode::Auto), |field| {
        let modes = [
            ("auto", XdpMode::Auto),
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
        ];
        field.choice(problems, &modes, &[])
    });
    let hash_seed_file = root.field("hash_seed_file").map_or_else(
        || Ok(PathBuf::from(limits::HASH_SEED_FILE)),
        |field| seed_file(&field, problems),
    );
    let capacity = root
        .field("capacity")
        .map_or(Ok(Capacity::default()), |field| capacity(&field, problems));
    facts.capacity = capacity.unwrap_or_default();
    let tunnel = tunnel::of_node(root, problems);
    facts.tunnel = tunnel.unwrap_or_default();
    let share = share::read(root, problems);
    tunnel?;
    Ok(NodeSpec {
        interfaces: interfaces?,
        xdp_mode: xdp_mode?,
        hash_seed_file: hash_seed_file?,
        capacity: capacity?,
        share: share?,
    })
}

fn interfaces(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<Vec<String>, Reported> {
    const EXAMPLE: &str = "interfaces = [\"eth0\"]";
    let field = root.required(
        "interfaces",
        problems,
        format!("name at least one: {EXAMPLE}"),
    )?;
    let elements = field.list(problems, "[\"eth0\"]")?;
    if elements.is_empty() {
        return Err(field.wrong(
            problems,
            "is empty",
            format!("name at least one: {EXAMPLE}"),
        ));
    }
    let mut names: Vec<&str> = Vec::with_capacity(elements.len());
    let mut wrong = None;
    for element in elements {
        match interface(&element, &names, problems) {
            Ok(name) => names.push(name),
            Err(reported) => wrong = Some(reported),
        }
    }
    wrong.map_or_else(|| Ok(names.into_iter().map(str::to_owned).collect()), Err)
}

fn interface<'d>(
    element: &Field<'d>,
    earlier: &[&str],
    problems: &mut Problems<'_>,
) -> Result<&'d str, Reported> {
    let name = element.element_text(problems, "[\"eth0\"]")?;
    if let Some(fault) = names::interface_fault(name) {
        let message = format!("interface name {} {fault}", quote(name));
        return Err(problems.report(element.place(), message, "`ip link` shows the names"));
    }
    if earlier.contains(&name) {
        let message = format!("interface {} is named twice", quote(name));
        return Err(problems.report(element.place(), message, "name each interface once"));
    }
    Ok(name)
}

fn seed_file(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<PathBuf, Reported> {
    let text = field.text(problems, limits::HASH_SEED_FILE)?;
    let hint = format!(
        "for example: hash_seed_file = \"{}\"",
        limits::HASH_SEED_FILE
    );
    if text.contains(char::is_control) {
        return Err(field.wrong(
            problems,
            format_args!("= {} is not a path", quote(text)),
            hint,
        ));
    }
    let path = PathBuf::from(text);
    // A relative path would mean another file at each place the daemon is started from.
    if !path.is_absolute() || text.ends_with('/') {
        let message =
            format_args!("= {} is not an absolute path of a file", quote(text)).to_string();
        return Err(field.wrong(problems, message, hint));
    }
    Ok(path)
}

fn capacity(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<Capacity, Reported> {
    let mut section = field.section(problems, "capacity")?;
    let default = Capacity::default();
    let mut size = |key, range, default, power_of_two: bool, problems: &mut Problems<'_>| {
        let Some(field) = section.field(key) else {
            return Ok(default);
        };
        if power_of_two {
            power_of_two_in(&field, range, problems)
        } else {
            field.integer(problems, range)
        }
    };
    let services = size(
        "services",
        limits::CAPACITY_SERVICES,
        default.services,
        false,
        problems,
    );
    let backends = size(
        "backends",
        limits::CAPACITY_BACKENDS,
        default.backends,
        false,
        problems,
    );
    let slots = size(
        "slots",
        limits::CAPACITY_SLOTS,
        default.slots,
        false,
        problems,
    );
    let flows = size(
        "flows",
        limits::CAPACITY_FLOWS,
        default.flows,
        true,
        problems,
    );
    let handshakes = size(
        "handshakes",
        limits::CAPACITY_HANDSHAKES,
        default.handshakes,
        true,
        problems,
    );
    let ports = size(
        "ports",
        limits::CAPACITY_PORTS,
        default.ports,
        true,
        problems,
    );
    section.finish(problems);
    Ok(Capacity {
        services: services?,
        backends: backends?,
        slots: slots?,
        flows: flows?,
        handshakes: handshakes?,
        ports: ports?,
    })
}

fn power_of_two_in(
    field: &Field<'_>,
    range: RangeInclusive<u32>,
    problems: &mut Problems<'_>,
) -> Result<u32, Reported> {
    let number = field.integer(problems, range)?;
    if number.is_power_of_two() {
        return Ok(number);
    }
    // Both ends of the range are powers of two, so both neighbours are in it.
    let above = number.next_power_of_two();
    let hint = format!("use {} or {above}", above / 2);
    Err(field.wrong(
        problems,
        format_args!("= {number} is not a power of two"),
        hint,
    ))
}

//! What the fields of the file mean: one file a section, and `cross` for the rules between services.
//!
//! Every reader asks for all its fields before it uses the first `?`, so one bad field hides no other.

mod address;
mod clients;
mod cross;
mod facts;
mod full_nat;
mod health;
mod listen;
mod names;
mod node;
mod pool;
mod quic;
mod service;
mod share;
mod speech;
mod tunnel;

use std::collections::BTreeMap;

use crate::model::spec::{OutOfOrder, ServiceSpec, Spec};

use super::{
    file::Section,
    limits,
    problem::{Problems, Reported},
};
use facts::Facts;

/// The whole file.
pub(super) fn spec(mut root: Section<'_>, problems: &mut Problems<'_>) -> Result<Spec, Reported> {
    let mut facts = Facts::default();
    let node = node::read(&mut root, &mut facts, problems);
    let icmp_echo = boolean(&mut root, "icmp_echo", true, problems);
    facts.icmp_echo = icmp_echo.unwrap_or(true);
    let (nat, nat_place) = full_nat::of_node(&mut root, problems);
    facts.nat = nat.clone().ok().zip(nat_place);
    let services = services(&mut root, &mut facts, problems);
    let clients = clients::read(root.field("clients"), problems);
    let new_flows_per_core = new_flows_per_core(&mut root, problems);
    let fragments_out_of_order = fragments_out_of_order(&mut root, problems);
    root.finish(problems);
    cross::check(&facts, problems);
    Ok(Spec {
        node: node?,
        nat: nat?,
        services: services?,
        clients: clients?,
        new_flows_per_core: new_flows_per_core?,
        fragments_out_of_order: icmp_echo.and(fragments_out_of_order)?,
    })
}

fn fragments_out_of_order(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<OutOfOrder, Reported> {
    let choices = [("pass", OutOfOrder::Pass), ("drop", OutOfOrder::Drop)];
    root.field("fragments_out_of_order")
        .map_or(Ok(OutOfOrder::default()), |field| {
            field.choice(problems, &choices, &[])
        })
}

fn boolean(
    section: &mut Section<'_>,
    key: &'static str,
    default: bool,
    problems: &mut Problems<'_>,
) -> Result<bool, Reported> {
    section
        .field(key)
        .map_or(Ok(default), |field| field.boolean(problems))
}

/// A limit of new flows, of the node or of a service; 0 for none.
fn new_flows_per_core(
    section: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<u32, Reported> {
    section.field("new_flows_per_core").map_or(Ok(0), |field| {
        field.integer(problems, limits::NEW_FLOWS_PER_CORE)
    })
}

fn services(
    root: &mut Section<'_>,
    facts: &mut Facts,
    problems: &mut Problems<'_>,
) -> Result<BTreeMap<String, ServiceSpec>, Reported> {
    let Some(field) = root.field("service") else {
        return Ok(BTreeMap::new());
    };
    let section = field.section(problems, "service.NAME")?;
    let services: Vec<_> = section
        .entries()
        .map(|entry| service::read(&entry, facts, problems))
        .collect();
    services
        .into_iter()
        .map(|service| service.map(|service| (service.name.clone(), service)))
        .collect()
}

//! What the fields of the file mean: one file a section, and `cross` for the rules between services.
//!
//! Every reader asks for all its fields before it uses the first `?`, so one bad field hides no other.

mod address;
mod cross;
mod facts;
mod health;
mod listen;
mod names;
mod node;
mod pool;
mod service;
mod tunnel;

use std::collections::BTreeMap;

use crate::model::spec::{ServiceSpec, Spec};

use super::{
    file::Section,
    problem::{Problems, Reported},
};
use facts::Facts;

/// The whole file.
pub(super) fn spec(mut root: Section<'_>, problems: &mut Problems<'_>) -> Result<Spec, Reported> {
    let mut facts = Facts::default();
    let node = node::read(&mut root, &mut facts, problems);
    let services = services(&mut root, &mut facts, problems);
    root.finish(problems);
    cross::check(&facts, problems);
    Ok(Spec {
        node: node?,
        services: services?,
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

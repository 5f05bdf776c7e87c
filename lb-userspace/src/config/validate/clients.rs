//! Which clients may use the services: `[clients]`.

use std::{collections::btree_map::Entry, path::Path};

use crate::model::spec::{ClientAction, ClientRules, Prefix};

use super::super::{
    file::Field,
    limits,
    problem::{Problems, Reported},
    words::quote,
};

const EXAMPLE: &str = "[\"198.51.100.0/24\", \"2001:db8:bad::/48\"]";
const HINT: &str = "write an address, or a prefix such as 198.51.100.0/24 or 2001:db8:bad::/48";

/// Reads the section; absent, everybody may come.
pub(super) fn read(
    field: Option<Field<'_>>,
    problems: &mut Problems<'_>,
) -> Result<ClientRules, Reported> {
    let Some(field) = field else {
        return Ok(ClientRules::default());
    };
    let mut section = field.section(problems, "clients")?;
    let mut rules = ClientRules::default();
    let mut wrong = None;
    let actions = [
        (ClientAction::Deny, "deny", "deny_file"),
        (ClientAction::Allow, "allow", "allow_file"),
    ];
    for (action, list, file) in actions {
        let listed = section
            .field(list)
            .map(|field| from_list(&field, action, &mut rules, problems));
        let filed = section
            .field(file)
            .map(|field| from_file(&field, action, &mut rules, problems));
        wrong = listed
            .into_iter()
            .chain(filed)
            .find_map(Result::err)
            .or(wrong);
    }
    section.finish(problems);
    if rules.0.len() > limits::CLIENT_PREFIXES_MAX {
        let message = format!(
            "has {} prefixes, more than {}",
            rules.0.len(),
            limits::CLIENT_PREFIXES_MAX
        );
        return Err(field.wrong(problems, message, "put neighbouring prefixes together"));
    }
    wrong.map_or(Ok(rules), Err)
}

fn from_list(
    field: &Field<'_>,
    action: ClientAction,
    rules: &mut ClientRules,
    problems: &mut Problems<'_>,
) -> Result<(), Reported> {
    let mut wrong = None;
    for element in field.list(problems, EXAMPLE)? {
        let text = element.element_text(problems, EXAMPLE)?;
        if let Err(fault) = add(text, action, rules) {
            let message = format!("client {} {fault}", quote(text));
            wrong = Some(problems.report(element.place(), message, HINT));
        }
    }
    wrong.map_or(Ok(()), Err)
}

/// One prefix a line; empty lines, and what follows a `#`, are comments.
fn from_file(
    field: &Field<'_>,
    action: ClientAction,
    rules: &mut ClientRules,
    problems: &mut Problems<'_>,
) -> Result<(), Reported> {
    const PATH: &str = "/etc/ebb/clients";
    let name = field.text(problems, PATH)?;
    if !Path::new(name).is_absolute() {
        let message = format!("= {} is not an absolute path", quote(name));
        return Err(field.wrong(problems, message, format!("for example: {PATH}")));
    }
    let bytes = super::super::read(Path::new(name)).map_err(|(why, hint)| {
        let why = why.replace("the configuration", name);
        field.wrong(problems, format_args!(": {why}"), hint)
    })?;
    let text = String::from_utf8_lossy(&bytes);
    for (number, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        if let Err(fault) = add(entry, action, rules) {
            let message = format!("{name}:{}: client {} {fault}", number + 1, quote(entry));
            return Err(problems.report(field.place(), message, HINT));
        }
    }
    Ok(())
}

/// Why it cannot be added: the rest of a sentence.
fn add(text: &str, action: ClientAction, rules: &mut ClientRules) -> Result<(), String> {
    let prefix: Prefix = text.parse().map_err(|why| format!("is {why}"))?;
    match rules.0.entry(prefix) {
        Entry::Occupied(old) if *old.get() != action => {
            Err("is both denied and allowed".to_owned())
        }
        Entry::Occupied(_) => Ok(()),
        Entry::Vacant(place) => {
            place.insert(action);
            Ok(())
        }
    }
}

//! Names: of services, pools and backends, and of interfaces.

use super::super::{
    file::Place,
    limits::{INTERFACE_NAME_MAX_BYTES, NAME_MAX_CHARS},
    problem::{Problems, Reported},
    words::quote,
};

/// A name of a service, pool or backend. The first character is a letter or digit, so that no name is an option
/// on the command line or a step (`.`, `..`) of a URL.
pub(super) fn check(
    kind: &str,
    name: &str,
    place: Place,
    problems: &mut Problems<'_>,
) -> Result<String, Reported> {
    let wrong = if name.is_empty() {
        "is empty".to_owned()
    } else if name.chars().count() > NAME_MAX_CHARS {
        format!("is longer than {NAME_MAX_CHARS} characters")
    } else if let Some(bad) = name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c))
    {
        format!("contains {}", quote(&bad.to_string()))
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "begins with neither a letter nor a digit".to_owned()
    } else {
        return Ok(name.to_owned());
    };
    let hint = format!(
        "names have up to {NAME_MAX_CHARS} letters, digits, `-`, `_` and `.`, first a letter or digit"
    );
    Err(problems.report(place, format!("{kind} name {} {wrong}", quote(name)), hint))
}

/// What the kernel would say against an interface name.
pub(super) fn interface_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("is empty".to_owned())
    } else if name.len() > INTERFACE_NAME_MAX_BYTES {
        Some(format!("is longer than {INTERFACE_NAME_MAX_BYTES} bytes"))
    } else if name == "." || name == ".." {
        Some("is no name".to_owned())
    } else {
        let bad = |c: &char| c.is_whitespace() || c.is_control() || "/:".contains(*c);
        name.chars()
            .find(bad)
            .map(|bad| format!("contains {}", quote(&bad.to_string())))
    }
}

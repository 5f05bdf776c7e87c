//! How backends of a service ask to be drained: signs in the answers to HTTP checks, and the agent.

use crate::model::spec::{DrainSigns, HeaderSign, ProbeKind, ProbeSpec};

use super::super::{
    file::{Field, Section},
    limits,
    problem::{Problems, Reported},
    words::quote,
};

/// What an HTTP check listens for unless told otherwise.
fn header_default() -> HeaderSign {
    HeaderSign {
        name: "ebb-state".to_owned(),
        value: Some("drain".to_owned()),
    }
}

/// Reads `drain_header` and `drain_body` of an HTTP check.
pub(super) fn signs(
    section: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<DrainSigns, Reported> {
    let header = match section.field("drain_header") {
        None => Ok(Some(header_default())),
        Some(field) => header(&field, problems),
    };
    let body = section
        .field("drain_body")
        .map(|field| text(&field, problems, "draining"))
        .transpose();
    Ok(DrainSigns {
        header: header?,
        body: body?.map(str::to_owned),
    })
}

/// Refuses them for a check that has no such answers.
pub(super) fn refuse_signs(
    section: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<(), Reported> {
    let mut result = Ok(());
    for key in ["drain_header", "drain_body"] {
        if let Some(field) = section.field(key) {
            let message = format!("{} is for HTTP checks", quote(key));
            result = Err(problems.report(field.key_place, message, "take it out"));
        }
    }
    result
}

fn header(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<Option<HeaderSign>, Reported> {
    const EXAMPLE: &str = "Ebb-State: drain";
    let text = text(field, problems, EXAMPLE)?;
    if text == "none" {
        return Ok(None);
    }
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(value.trim().to_owned())),
        None => (text, None),
    };
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let fits = !name.is_empty() && name.chars().all(is_token);
    if fits && value.as_deref() != Some("") {
        return Ok(Some(HeaderSign {
            name: name.to_ascii_lowercase(),
            value,
        }));
    }
    let hint = format!(
        "write \"{EXAMPLE}\", or the header's name alone where any value asks for a drain, or \"none\""
    );
    Err(field.wrong(
        problems,
        format_args!("= {} is not a header", quote(text)),
        hint,
    ))
}

/// A text that is not empty, not too long, and printable ASCII.
fn text<'d>(
    field: &Field<'d>,
    problems: &mut Problems<'_>,
    example: &str,
) -> Result<&'d str, Reported> {
    let text = field.text(problems, example)?;
    let printable = text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    if (1..=limits::SPEECH_MAX_BYTES).contains(&text.len()) && printable {
        return Ok(text);
    }
    let hint = format!(
        "1 to {} printable ASCII characters",
        limits::SPEECH_MAX_BYTES
    );
    Err(field.wrong(
        problems,
        format_args!("= {} can not be it", quote(text)),
        hint,
    ))
}

/// Reads `agent = { port = 8080, ... }`.
pub(super) fn agent(
    field: &Field<'_>,
    title: &str,
    problems: &mut Problems<'_>,
) -> Result<ProbeSpec, Reported> {
    let mut section = field.section(problems, title)?;
    let port = section
        .required(
            "port",
            problems,
            "add the agent's port, such as port = 8088",
        )
        .and_then(|field| field.integer(problems, 1..=u32::from(u16::MAX)))
        .map(|port| u16::try_from(port).unwrap_or(u16::MAX));
    let send = section
        .field("send")
        .map_or(Ok(""), |field| send(&field, problems));
    let times = super::health::times(&mut section, problems);
    section.finish(problems);
    let (period, timeout) = times?;
    Ok(ProbeSpec {
        kind: ProbeKind::Agent {
            send: send?.to_owned(),
        },
        port: Some(port?),
        period,
        timeout,
        rise: 1,
        fall: 1,
    })
}

fn send<'d>(field: &Field<'d>, problems: &mut Problems<'_>) -> Result<&'d str, Reported> {
    let text = field.text(problems, "state\\n")?;
    if text.len() <= limits::SPEECH_MAX_BYTES {
        return Ok(text);
    }
    let hint = format!("at most {} bytes", limits::SPEECH_MAX_BYTES);
    Err(field.wrong(problems, "is too long", hint))
}

//! QUIC services: `quic = {}`, and the server ids of their backends.

use std::collections::HashMap;

use lb_common::quic::SERVER_ID_MAX;

use crate::model::spec::{Protocol, QuicSpec};

use super::{
    super::{
        file::{Field, Section},
        problem::{Problems, Reported},
        words::quote,
    },
    listen::Listen,
    pool::Pool,
};

/// Bytes of a server id unless told otherwise: an IPv4 address.
const LENGTH_DEFAULT: u8 = 4;

/// Reads `quic`.
pub(super) fn read(
    section: &mut Section<'_>,
    listen: &Listen,
    service: &str,
    problems: &mut Problems<'_>,
) -> Result<Option<QuicSpec>, Reported> {
    let Some(field) = section.field("quic") else {
        return Ok(None);
    };
    let fits =
        listen.protocol == Some(Protocol::Udp) && listen.ports.is_none_or(|ports| ports.is_one());
    let mut section = field.section(problems, &format!("service.{service}.quic"))?;
    let mut small = |key, range, default, problems: &mut Problems<'_>| {
        let number = section
            .field(key)
            .map(|field| field.integer(problems, range));
        let number = number.unwrap_or(Ok(default))?;
        Ok(u8::try_from(number).unwrap_or_default())
    };
    let most = u32::from(SERVER_ID_MAX);
    let length = small(
        "server_id_length",
        1..=most,
        u32::from(LENGTH_DEFAULT),
        problems,
    );
    let rotation = small("rotation", 0..=6, 0, problems);
    section.finish(problems);
    if !fits {
        let hint = "write listen = \"ADDRESS:443/udp\"";
        return Err(field.wrong(problems, "is for a UDP service on one port", hint));
    }
    Ok(Some(QuicSpec {
        server_id_length: length?,
        rotation: rotation?,
    }))
}

/// Reads a backend's `server_id`, hexadecimal.
pub(super) fn server_id(
    field: &Field<'_>,
    quic: Option<QuicSpec>,
    problems: &mut Problems<'_>,
) -> Result<u64, Reported> {
    let text = field.text(problems, "0a000001")?;
    let Some(quic) = quic else {
        let hint = "add quic = {} to the service, or take it out";
        return Err(field.wrong(problems, "is for QUIC services", hint));
    };
    let digits = 2 * usize::from(quic.server_id_length);
    let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(text, 16) {
        Ok(id) if hexadecimal && text.len() == digits => Ok(id),
        _ => Err(field.wrong(
            problems,
            format_args!("= {} is no server id", quote(text)),
            format!("write {digits} hexadecimal digits; the service's server ids have as many"),
        )),
    }
}

/// No two backends of a service go by one name.
pub(super) fn distinct(quic: &QuicSpec, pools: &[Pool<'_>], problems: &mut Problems<'_>) {
    let mut first: HashMap<u64, &str> = HashMap::new();
    for pool in pools {
        let Ok((_, spec)) = &pool.spec else { continue };
        for (name, backend) in &spec.backends {
            let id = quic.server_id(backend);
            let Some(other) = first.insert(id, name) else {
                continue;
            };
            let message = format!(
                "backends {} and {} both have the server id {id:0digits$x}",
                quote(other),
                quote(name),
                digits = 2 * usize::from(quic.server_id_length)
            );
            let hint = "give one of them another: { address = \"...\", server_id = \"...\" }; or raise server_id_length";
            if let Some(listed) = pool.listed {
                problems.report(listed.place, message, hint);
            }
        }
    }
}

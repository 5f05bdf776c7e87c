//! Health checks of a service: `[service.X.health]`.

use std::time::Duration;

use crate::model::spec::{HealthSpec, ProbeKind, ProbeSpec, Protocol};

use super::{
    super::{
        file::{Field, Section},
        limits,
        problem::{Problems, Reported},
        words::quote,
    },
    listen::Listen,
    speech,
};

const SWITCH_OFF: &str = "write health = \"none\" to switch health checks off";

/// What a service gets that says nothing: a TCP handshake a second decides whether a backend takes new flows, and two
/// whether it is dead, which is then known within 1.25 s: half a second to the next check, three in a row that are given
/// a quarter each.
fn default() -> HealthSpec {
    let readiness = ProbeSpec {
        kind: ProbeKind::Tcp,
        port: None,
        period: limits::PROBE_PERIOD_DEFAULT,
        timeout: limits::PROBE_TIMEOUT_DEFAULT,
        rise: limits::PROBE_RISE_DEFAULT,
        fall: limits::PROBE_FALL_DEFAULT,
    };
    let liveness = ProbeSpec {
        period: limits::LIVENESS_PERIOD_DEFAULT,
        timeout: limits::LIVENESS_TIMEOUT_DEFAULT,
        ..readiness.clone()
    };
    HealthSpec {
        startup: None,
        readiness: Some(readiness),
        liveness: Some(liveness),
        agent: None,
    }
}

/// Reads the section, or takes the default where there is none.
///
/// A section makes exactly the checks it lists. An empty one could mean "none" or "the usual", so it is refused.
///
/// Nobody answers a datagram that means nothing to him, and no port of several is the one to ask: such services have no
/// check that could go without saying.
pub(super) fn read(
    of: &mut Section<'_>,
    listen: &Listen,
    service: &str,
    problems: &mut Problems<'_>,
) -> Result<HealthSpec, Reported> {
    let Some(field) = of.field("health") else {
        let several = listen.ports.is_some_and(|ports| !ports.is_one());
        if several || listen.protocol == Some(Protocol::Udp) {
            let what = if several {
                "a service on several ports"
            } else {
                "a UDP service"
            };
            let hint = format!(
                "name a port that answers, such as health.readiness = {{ tcp = true, port = 8080 }}; or {SWITCH_OFF}"
            );
            return Err(problems.report(of.place, format!("{what} lacks `health`"), hint));
        }
        return Ok(default());
    };
    if field.is_text() {
        field.choice(problems, &[("none", ())], &[])?;
        return Ok(HealthSpec {
            startup: None,
            readiness: None,
            liveness: None,
            agent: None,
        });
    }
    let title = format!("service.{service}.health");
    let mut section = field.section(problems, &title)?;
    if section.entries().next().is_none() {
        let hint = format!("{SWITCH_OFF}; leave the section out for a TCP check each second");
        return Err(field.wrong(problems, "lists no check", hint));
    }
    let mut check = |key, rise, problems: &mut Problems<'_>| {
        let check = section
            .field(key)
            .map(|field| probe(&field, &format!("{title}.{key}"), listen, rise, problems));
        check.transpose()
    };
    let startup = check("startup", limits::PROBE_STARTUP_RISE_DEFAULT, problems);
    let readiness = check("readiness", limits::PROBE_RISE_DEFAULT, problems);
    let liveness = check("liveness", limits::PROBE_RISE_DEFAULT, problems);
    let agent = section
        .field("agent")
        .map(|field| speech::agent(&field, &format!("{title}.agent"), problems))
        .transpose();
    section.finish(problems);
    Ok(HealthSpec {
        startup: startup?,
        readiness: readiness?,
        liveness: liveness?,
        agent: agent?,
    })
}

fn probe(
    field: &Field<'_>,
    title: &str,
    listen: &Listen,
    default_rise: u32,
    problems: &mut Problems<'_>,
) -> Result<ProbeSpec, Reported> {
    let mut section = field.section(problems, title)?;
    let kind = kind(field, &mut section, problems);
    let port = section
        .field("port")
        .map(|field| field.integer(problems, 1..=u32::from(u16::MAX)));
    if port.is_none() && listen.ports.is_some_and(|ports| !ports.is_one()) {
        let message = format!(
            "{} lacks `port`: the service is on several",
            quote(field.key)
        );
        problems.report(
            field.place(),
            message,
            "add the port to ask, such as port = 8080",
        );
    }
    let port = port
        .transpose()
        .map(|port| port.and_then(|port| u16::try_from(port).ok()));
    let times = times(&mut section, problems);
    let mut count = |field: Option<Field<'_>>, default| {
        field.map_or(Ok(default), |field| {
            field.integer(problems, limits::PROBE_COUNT)
        })
    };
    let rise = count(section.field("rise"), default_rise);
    let (fall, fail) = (section.field("fall"), section.field("fail"));
    let twice = fall.and(fail);
    let fall = count(fall.or(fail), limits::PROBE_FALL_DEFAULT);
    if let Some(fail) = twice {
        let message = "`fail` is another word for `fall`, and both are given";
        problems.report(fail.key_place, message, "keep one of the two");
    }
    section.finish(problems);
    let (period, timeout) = times?;
    Ok(ProbeSpec {
        kind: kind?,
        port: port?,
        period,
        timeout,
        rise: rise?,
        fall: fall?,
    })
}

/// Reads `period` and `timeout`.
pub(super) fn times(
    section: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<(Duration, Duration), Reported> {
    let period = section
        .field("period")
        .map_or(Ok(limits::PROBE_PERIOD_DEFAULT), |field| {
            field.duration(problems, limits::PROBE_PERIOD)
        });
    let timeout = match section.field("timeout") {
        None => period.map(|period| period.min(limits::PROBE_TIMEOUT_DEFAULT)),
        Some(field) => field
            .duration(problems, limits::PROBE_TIMEOUT)
            .and_then(|timeout| match period {
                Ok(period) if timeout > period => {
                    let message = format!(
                        "is longer than the period of {}",
                        humantime::format_duration(period)
                    );
                    Err(field.wrong(problems, message, "a check ends before the next one begins"))
                }
                _ => Ok(timeout),
            }),
    };
    Ok((period?, timeout?))
}

fn kind(
    probe: &Field<'_>,
    section: &mut Section<'_>,
    problems: &mut Problems<'_>,
) -> Result<ProbeKind, Reported> {
    let tcp = section
        .field("tcp")
        .map(|field| is_true(&field, problems))
        .transpose();
    let http = section.field("http");
    let path = http.map(|field| http_path(&field, problems)).transpose();
    let host_field = section.field("host");
    let host = host_field
        .map(|field| http_host(&field, problems))
        .transpose();
    match (tcp?, path?) {
        (Some(()), Some(_)) => Err(probe.wrong(
            problems,
            "has both `tcp` and `http`",
            "a check asks one thing; keep one of the two",
        )),
        (None, None) => Err(probe.wrong(
            problems,
            "says neither `tcp` nor `http`",
            "add tcp = true or http = \"/health\"",
        )),
        (None, Some(path)) => Ok(ProbeKind::Http {
            path,
            host: host?,
            drain: speech::signs(section, problems)?,
        }),
        (Some(()), None) => {
            let signs = speech::refuse_signs(section, problems);
            match host_field {
                Some(host) => {
                    Err(problems.report(host.key_place, "`host` is for HTTP checks", "take it out"))
                }
                None => signs.map(|()| ProbeKind::Tcp),
            }
        }
    }
}

fn is_true(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<(), Reported> {
    if field.boolean(problems)? {
        return Ok(());
    }
    Err(field.wrong(
        problems,
        "= false says nothing",
        "take the whole check out to switch it off",
    ))
}

fn http_path(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<String, Reported> {
    let text = field.text(problems, "/health")?;
    let fault = if !text.starts_with('/') {
        "does not begin with `/`".to_owned()
    } else if text.len() > limits::HTTP_PATH_MAX_BYTES {
        format!("is longer than {} bytes", limits::HTTP_PATH_MAX_BYTES)
    } else if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        format!("contains {}", quote(&bad.to_string()))
    } else {
        return Ok(text.to_owned());
    };
    let hint = "write a path such as /health, other characters as %20";
    Err(field.wrong(problems, format_args!("= {} {fault}", quote(text)), hint))
}

fn http_host(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<String, Reported> {
    let text = field.text(problems, "www.example.com")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    if (1..=limits::HTTP_HOST_MAX_BYTES).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    let hint = "write a host name such as www.example.com, with :PORT where needed";
    Err(field.wrong(
        problems,
        format_args!("= {} cannot be a host name", quote(text)),
        hint,
    ))
}

//! One service: `[service.NAME]`.

use std::collections::BTreeMap;

use crate::model::spec::{
    Affinity, DrainSpec, Forward, OnDeadline, OnDeath, PoolSpec, Protocol, ServiceSpec, Tracking,
};

use super::{
    super::{
        file::{Field, Located, Section},
        limits,
        problem::{Problems, Reported},
        words::{did_you_mean, quote},
    },
    facts::{Facts, ServiceFacts},
    full_nat, health,
    listen::{self, Listen},
    names,
    pool::{self, Of, Pool},
    quic, tunnel,
};

/// Reads a service, and adds what others need to know of it to the facts.
pub(super) fn read(
    field: &Field<'_>,
    facts: &mut Facts,
    problems: &mut Problems<'_>,
) -> Result<ServiceSpec, Reported> {
    let name = names::check("service", field.key, field.key_place, problems);
    let mut section = field.section(problems, &format!("service.{}", field.key))?;
    let section = &mut section;
    let listen = section
        .required(
            "listen",
            problems,
            "for example: listen = \"203.0.113.10:443\"",
        )
        .map_or_else(Listen::unheard, |field| listen::read(&field, problems));
    let forward = forward(section, problems);
    let tunnel = tunnel::of_service(section, forward, facts.tunnel, problems);
    let client_option = full_nat::of_service(section, forward, listen.protocol, problems);
    let affinity = affinity(section, &listen, field.key, problems);
    let tracking = tracking(section, listen.protocol, problems);
    let drain = drain(section.field("drain"), field.key, problems);
    let default = match listen.protocol {
        Some(Protocol::Udp) => limits::IDLE_TIMEOUT_UDP_DEFAULT,
        _ => limits::IDLE_TIMEOUT_DEFAULT,
    };
    let idle_timeout = section.field("idle_timeout").map_or(Ok(default), |field| {
        field.duration(problems, limits::IDLE_TIMEOUT)
    });
    let health = health::read(section, &listen, field.key, problems);

    let mut service_facts = ServiceFacts {
        name: Located {
            value: field.key.to_owned(),
            place: field.key_place,
        },
        listen: listen.heard.filter(|_| listen.protocol.is_some()),
        ports: listen.ports,
        protocol: listen.protocol,
        forward: forward.ok(),
        backends: Vec::new(),
    };
    let quic = quic::read(section, &listen, field.key, problems);
    let of = Of {
        service: field.key,
        forward,
        listen,
        quic: quic.unwrap_or_default(),
    };
    let pools = pools(section, of, &mut service_facts, problems);
    let active_pool = active_pool(section, &pools, problems);
    let min_available = min_available(section, &pools, active_pool, problems);
    let slots = slots(section, facts.capacity.slots, &pools, problems);
    let new_flows_per_core = super::new_flows_per_core(section, problems);
    let icmp_echo = super::boolean(section, "icmp_echo", facts.icmp_echo, problems);
    let on_death = choice(section, "on_death", OnDeath::Reset, &DEATHS, problems);
    section.not_yet("slow_start");
    section.finish(problems);
    facts.services.push(service_facts);

    if let (Ok(Some(quic)), Ok(pools)) = (&quic, &pools) {
        quic::distinct(quic, pools, problems);
    }
    let pools = pools.and_then(|pools| {
        pools
            .into_iter()
            .map(|pool| pool.spec)
            .collect::<Result<BTreeMap<String, PoolSpec>, _>>()
    });
    Ok(ServiceSpec {
        name: name?,
        listen: listen.vip?,
        quic: quic?,
        forward: forward?,
        tunnel: tunnel?,
        client_option: client_option?,
        affinity: affinity?,
        tracking: tracking?,
        min_available: min_available?,
        drain: drain?,
        on_death: on_death?,
        idle_timeout: idle_timeout?,
        new_flows_per_core: new_flows_per_core?,
        icmp_echo: icmp_echo?,
        slots: slots?,
        health: health?,
        active_pool: active_pool?.to_owned(),
        pools: pools?,
    })
}

const TRACKINGS: [(&str, Tracking); 2] = [("moved", Tracking::Moved), ("full", Tracking::Full)];
const DEATHS: [(&str, OnDeath); 3] = [
    ("reset", OnDeath::Reset),
    ("resteer", OnDeath::Resteer),
    ("leave", OnDeath::Leave),
];
const DEADLINES: [(&str, OnDeadline); 3] = [
    ("reset", OnDeadline::Reset),
    ("leave", OnDeadline::Leave),
    ("drop", OnDeadline::Drop),
];

fn choice<T: Copy>(
    section: &mut Section<'_>,
    key: &'static str,
    default: T,
    choices: &[(&'static str, T)],
    problems: &mut Problems<'_>,
) -> Result<T, Reported> {
    section
        .field(key)
        .map_or(Ok(default), |field| field.choice(problems, choices, &[]))
}

/// `"flow"`, `"client"`, or `{ client = PREFIX }`.
fn affinity(
    section: &mut Section<'_>,
    listen: &Listen,
    service: &str,
    problems: &mut Problems<'_>,
) -> Result<Affinity, Reported> {
    let Some(field) = section.field("affinity") else {
        return Ok(Affinity::Flow);
    };
    // Where the family is not known, that is the error, not this.
    let bits = match listen.heard {
        Some(heard) if heard.value.is_ipv4() => 32,
        _ => 128,
    };
    if !field.is_table() {
        let choices = [
            ("flow", Affinity::Flow),
            ("client", Affinity::Client { prefix: bits }),
        ];
        return field.choice(problems, &choices, &[]);
    }
    let mut section = field.section(problems, &format!("service.{service}.affinity"))?;
    let hint = "for example: affinity = { client = 24 }";
    let prefix = section
        .required("client", problems, hint)
        .and_then(|field| field.integer(problems, 1..=u32::from(bits)));
    section.finish(problems);
    Ok(Affinity::Client {
        prefix: u8::try_from(prefix?).unwrap_or(bits),
    })
}

/// Of UDP every flow is listed: a datagram does not say whether it opens one.
fn tracking(
    section: &mut Section<'_>,
    protocol: Option<Protocol>,
    problems: &mut Problems<'_>,
) -> Result<Tracking, Reported> {
    let Some(field) = section.field("tracking") else {
        return Ok(match protocol {
            Some(Protocol::Udp) => Tracking::Full,
            _ => Tracking::Moved,
        });
    };
    let tracking = field.choice(problems, &TRACKINGS, &[])?;
    if protocol == Some(Protocol::Udp) && tracking == Tracking::Moved {
        let message =
            "cannot be `moved` in a UDP service: a datagram does not say whether it opens a flow";
        return Err(field.wrong(problems, message, "take the line out; every flow is listed"));
    }
    Ok(tracking)
}

fn forward(section: &mut Section<'_>, problems: &mut Problems<'_>) -> Result<Forward, Reported> {
    section.field("forward").map_or(Ok(Forward::Nat), |field| {
        let choices = Forward::ALL.map(|forward| (forward.name(), forward));
        field.choice(problems, &choices, &[])
    })
}

fn drain(
    field: Option<Field<'_>>,
    service: &str,
    problems: &mut Problems<'_>,
) -> Result<DrainSpec, Reported> {
    let Some(field) = field else {
        return Ok(DrainSpec {
            timeout: limits::DRAIN_TIMEOUT_DEFAULT,
            on_deadline: OnDeadline::Reset,
            spread: limits::DRAIN_SPREAD_DEFAULT,
        });
    };
    let mut section = field.section(problems, &format!("service.{service}.drain"))?;
    let timeout = section
        .field("timeout")
        .map_or(Ok(limits::DRAIN_TIMEOUT_DEFAULT), |field| {
            field.duration(problems, limits::DRAIN_TIMEOUT)
        });
    let on_deadline = choice(
        &mut section,
        "on_deadline",
        OnDeadline::Reset,
        &DEADLINES,
        problems,
    );
    let spread = section
        .field("spread")
        .map_or(Ok(limits::DRAIN_SPREAD_DEFAULT), |field| {
            field.duration(problems, limits::DRAIN_SPREAD)
        });
    section.finish(problems);
    Ok(DrainSpec {
        timeout: timeout?,
        on_deadline: on_deadline?,
        spread: spread?,
    })
}

fn pools<'d>(
    section: &mut Section<'d>,
    of: Of<'_>,
    facts: &mut ServiceFacts,
    problems: &mut Problems<'_>,
) -> Result<Vec<Pool<'d>>, Reported> {
    let example = format!("[service.{}.pool.NAME]", of.service);
    let hint = format!("add a section {example} with its backends");
    let field = section.required("pool", problems, hint.clone())?;
    let section = field.section(problems, &format!("service.{}.pool.NAME", of.service))?;
    let pools: Vec<_> = section
        .entries()
        .map(|entry| pool::read(&entry, of, &mut facts.backends, problems))
        .collect();
    if pools.is_empty() {
        Err(field.wrong(problems, "lists no pool", hint))
    } else {
        Ok(pools)
    }
}

/// The name of the pool that takes new flows.
fn active_pool<'d>(
    section: &mut Section<'d>,
    pools: &Result<Vec<Pool<'d>>, Reported>,
    problems: &mut Problems<'_>,
) -> Result<&'d str, Reported> {
    let field = section.field("active_pool");
    let named = field
        .map(|field| Ok((field, field.text(problems, "blue")?)))
        .transpose()?;
    let names: Vec<&str> = pools
        .as_ref()
        .map_err(|reported| *reported)?
        .iter()
        .map(|pool| pool.key)
        .collect();
    match (named, names.as_slice()) {
        (Some((_, name)), _) if names.contains(&name) => Ok(name),
        (Some((field, name)), _) => {
            let hint = did_you_mean(name, &names, "pools are");
            Err(field.wrong(
                problems,
                format_args!("= {} is no pool of this service", quote(name)),
                hint,
            ))
        }
        (None, [only]) => Ok(*only),
        (None, several) => {
            let message = format!("service has {} pools and no `active_pool`", several.len());
            let hint = format!(
                "say which takes new flows: active_pool = \"{}\"",
                several.first().unwrap_or(&"")
            );
            Err(problems.report(section.place, message, hint))
        }
    }
}

fn min_available(
    section: &mut Section<'_>,
    pools: &Result<Vec<Pool<'_>>, Reported>,
    active_pool: Result<&str, Reported>,
    problems: &mut Problems<'_>,
) -> Result<u32, Reported> {
    let field = section.field("min_available");
    let least = field.map_or(Ok(limits::MIN_AVAILABLE_DEFAULT), |field| {
        field.integer(problems, limits::MIN_AVAILABLE)
    })?;
    let active = active_pool
        .ok()
        .zip(pools.as_ref().ok())
        .and_then(|(active, pools)| pools.iter().find(|pool| pool.key == active));
    // Without a readable list of backends that is the error, not the number.
    let Some((name, listed)) = active.and_then(|pool| pool.listed.map(|listed| (pool.key, listed)))
    else {
        return Ok(least);
    };
    if least as usize <= listed.value {
        return Ok(least);
    }
    let backends = match listed.value {
        0 => "no backend".to_owned(),
        1 => "1 backend".to_owned(),
        more => format!("{more} backends"),
    };
    let message = format!(
        "`min_available` is {least}, but the active pool {} has {backends}",
        quote(name)
    );
    let place = field.map_or(listed.place, |field| field.place());
    Err(problems.report(
        place,
        message,
        format!("add backends, or set min_available = {}", listed.value),
    ))
}

fn slots(
    section: &mut Section<'_>,
    capacity: u32,
    pools: &Result<Vec<Pool<'_>>, Reported>,
    problems: &mut Problems<'_>,
) -> Result<Option<u32>, Reported> {
    let Some(field) = section.field("slots") else {
        return Ok(None);
    };
    let slots = field.integer(problems, limits::SLOTS)?;
    if !is_prime(slots) {
        // Both ends of the range are primes, so there is one on either side.
        let near = |step: fn(u32, u32) -> u32| {
            (1..)
                .map(|by| step(slots, by))
                .find(|n| is_prime(*n))
                .unwrap_or(slots)
        };
        let hint = format!("use {} or {}", near(|n, by| n - by), near(|n, by| n + by));
        return Err(field.wrong(problems, format_args!("= {slots} is not a prime"), hint));
    }
    if u64::from(slots) * 2 > u64::from(capacity) {
        let message = format!("= {slots} is more than half of the node's {capacity} slots");
        let hint = "a change needs the old and the new table at once; raise capacity.slots";
        return Err(field.wrong(problems, message, hint));
    }
    let largest = pools
        .iter()
        .flatten()
        .filter_map(|pool| pool.listed)
        .map(|listed| listed.value)
        .max();
    if let Some(backends) = largest.filter(|backends| *backends > slots as usize) {
        let message = format!("= {slots} is less than the {backends} backends of a pool");
        return Err(field.wrong(
            problems,
            message,
            "take at least 100 slots a backend, or leave `slots` out",
        ));
    }
    Ok(Some(slots))
}

fn is_prime(n: u32) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_slots_are_primes() {
        assert!(is_prime(*limits::SLOTS.start()) && is_prime(*limits::SLOTS.end()));
        let small: Vec<u32> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(small, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
    }
}

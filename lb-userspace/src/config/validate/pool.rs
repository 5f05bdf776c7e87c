//! Pools and their backends: `[service.X.pool.P]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crate::model::{
    address::{family, is_mapped, unusable},
    spec::{BackendSpec, Forward, PoolSpec, Ports, QuicSpec},
};

use super::{
    super::{
        file::{Field, Located},
        limits,
        problem::{Problems, Reported},
        words::quote,
    },
    address::{Endpoint, Fault, Port, endpoint, mapped, with_port},
    facts::{BackendAddress, BackendFacts},
    listen::Listen,
    names, quic,
};

/// What the backends of a service need to know of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'s> {
    /// The service's name.
    pub(super) service: &'s str,
    pub(super) forward: Result<Forward, Reported>,
    pub(super) listen: Listen,
    /// How its connection ids name backends, when it is QUIC and that could be read.
    pub(super) quic: Option<QuicSpec>,
}

/// A pool that was read.
#[derive(Debug)]
pub(super) struct Pool<'d> {
    pub(super) key: &'d str,
    /// Where its backends are listed, and how many: valid or not.
    pub(super) listed: Option<Located<usize>>,
    pub(super) spec: Result<(String, PoolSpec), Reported>,
}

/// Reads a pool, and adds its backends to the facts.
pub(super) fn read<'d>(
    field: &Field<'d>,
    of: Of<'_>,
    facts: &mut Vec<BackendFacts>,
    problems: &mut Problems<'_>,
) -> Pool<'d> {
    let mut listed = None;
    let spec = read_spec(field, of, facts, &mut listed, problems);
    Pool {
        key: field.key,
        listed,
        spec,
    }
}

fn read_spec(
    field: &Field<'_>,
    of: Of<'_>,
    facts: &mut Vec<BackendFacts>,
    listed: &mut Option<Located<usize>>,
    problems: &mut Problems<'_>,
) -> Result<(String, PoolSpec), Reported> {
    let name = names::check("pool", field.key, field.key_place, problems);
    let title = format!("service.{}.pool.{}", of.service, field.key);
    let mut section = field.section(problems, &title)?;
    let version = section
        .field("version")
        .map(|field| version(&field, problems))
        .transpose();
    let hint = "for example: backends = { b1 = \"10.0.0.11:8443\" }";
    let backends = section
        .required("backends", problems, hint)
        .and_then(|field| {
            let title = format!("{title}.backends");
            let section = field.section(problems, &title)?;
            *listed = Some(Located {
                value: section.entries().count(),
                place: field.key_place,
            });
            let backends: Vec<_> = section
                .entries()
                .map(|entry| backend(&entry, &title, of, facts, problems))
                .collect();
            backends.into_iter().collect::<Result<BTreeMap<_, _>, _>>()
        });
    section.finish(problems);
    Ok((
        name?,
        PoolSpec {
            version: version?,
            backends: backends?,
        },
    ))
}

fn version(field: &Field<'_>, problems: &mut Problems<'_>) -> Result<String, Reported> {
    let text = field.text(problems, "v1")?;
    if !text.is_empty()
        && text.chars().count() <= limits::VERSION_MAX_CHARS
        && !text.contains(char::is_control)
    {
        return Ok(text.to_owned());
    }
    let hint = format!(
        "write 1 to {} characters on one line",
        limits::VERSION_MAX_CHARS
    );
    Err(field.wrong(
        problems,
        format_args!("= {} cannot be a version label", quote(text)),
        hint,
    ))
}

fn backend(
    field: &Field<'_>,
    title: &str,
    of: Of<'_>,
    facts: &mut Vec<BackendFacts>,
    problems: &mut Problems<'_>,
) -> Result<(String, BackendSpec), Reported> {
    let name = names::check("backend", field.key, field.key_place, problems);
    let (address_field, weight, server_id) = if field.is_text() {
        (Ok(*field), Ok(limits::WEIGHT_DEFAULT), Ok(None))
    } else {
        long_form(field, title, of, problems)
    };
    let address = address_field.and_then(|address| {
        let text = address.text(problems, "10.0.0.11:8443")?;
        Ok((address, text, endpoint(text).map_err(Refused::from)))
    });
    facts.push(BackendFacts {
        name: Located {
            value: field.key.to_owned(),
            place: field.key_place,
        },
        address: address
            .as_ref()
            .ok()
            .and_then(|(field, _, endpoint)| heard(field, endpoint, of)),
    });
    let address = address.and_then(|(address, text, endpoint)| {
        endpoint
            .and_then(|endpoint| resolve(endpoint, of))
            .map_err(|refused| match refused {
                Refused::Fault(fault) => {
                    let message = format!(
                        "backend {} = {} {}",
                        quote(field.key),
                        quote(text),
                        fault.message
                    );
                    problems.report(address.place(), message, fault.hint)
                }
                Refused::Reported(reported) => reported,
            })
    });
    Ok((
        name?,
        BackendSpec {
            address: address?,
            weight: weight?,
            server_id: server_id?,
        },
    ))
}

/// What was read of a key.
type Read<T> = Result<T, Reported>;

/// The long form of a backend: address, weight, server id.
fn long_form<'d>(
    field: &Field<'d>,
    title: &str,
    of: Of<'_>,
    problems: &mut Problems<'_>,
) -> (Read<Field<'d>>, Read<u32>, Read<Option<u64>>) {
    if !field.is_table() {
        let example = format!("{} = \"10.0.0.11:8443\"", field.key);
        let reported = field.wrong_type(problems, "a text in quotes or a table", &example);
        return (Err(reported), Err(reported), Err(reported));
    }
    let mut section = match field.section(problems, &format!("{title}.{}", field.key)) {
        Ok(section) => section,
        Err(reported) => return (Err(reported), Err(reported), Err(reported)),
    };
    let hint = format!(
        "for example: {} = {{ address = \"10.0.0.11:8443\", weight = 2 }}",
        field.key
    );
    let address = section.required("address", problems, hint);
    let weight = section.field("weight");
    let weight = weight.map_or(Ok(limits::WEIGHT_DEFAULT), |field| {
        field.integer(problems, limits::WEIGHT)
    });
    let server_id = section
        .field("server_id")
        .map(|field| quic::server_id(&field, of.quic, problems))
        .transpose();
    section.finish(problems);
    (address, weight, server_id)
}

/// The address as far as it was understood.
fn heard(
    field: &Field<'_>,
    endpoint: &Result<Endpoint, Refused>,
    of: Of<'_>,
) -> Option<Located<BackendAddress>> {
    let Ok(Endpoint { ip, port }) = endpoint else {
        return None;
    };
    let several = of.listen.ports.is_some_and(|ports| !ports.is_one());
    let ports = match (port, of.forward) {
        (Port::One(port), _) => Some(Ports::one(*port)),
        (Port::Absent, Ok(forward)) if !forward.rewrites_port() => of.listen.ports,
        (Port::Absent, _) if several => of.listen.ports,
        _ => None,
    };
    Some(Located {
        value: BackendAddress {
            ip: ip.to_canonical(),
            ports,
        },
        place: field.place(),
    })
}

/// Why an address is refused: for a new reason, or one that was reported elsewhere.
enum Refused {
    Fault(Fault),
    Reported(Reported),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Reported> for Refused {
    fn from(reported: Reported) -> Self {
        Self::Reported(reported)
    }
}

fn resolve(Endpoint { ip, port }: Endpoint, of: Of<'_>) -> Result<SocketAddr, Refused> {
    if is_mapped(ip) {
        return Err(mapped(Endpoint { ip, port }).into());
    }
    if let Some(what) = unusable(ip) {
        let message = format!("is {what}, which is not a backend's own");
        return Err(Fault::new(
            message,
            "write the address that the backend has on its network",
        )
        .into());
    }
    if let Some(fault) = mixed_families(ip, of) {
        return Err(fault.into());
    }
    let listen_port = of.listen.heard.map(|listen| listen.value.port());
    let several = of.listen.ports.is_some_and(|ports| !ports.is_one());
    match port {
        Port::Absent if several => Ok(SocketAddr::new(ip, 0)),
        _ if several => Err(Fault::new(
            "has a port, but the service is on several and keeps the one that a client chose",
            format!("write {ip}"),
        )
        .into()),
        Port::Every | Port::Range(..) | Port::Several => Err(Fault::new(
            "has more than one port",
            "a backend listens on a single port",
        )
        .into()),
        Port::One(port) => {
            if let Some(forward) = of.forward.ok().filter(|forward| !forward.rewrites_port())
                && let Some(own) = listen_port.filter(|own| *own != port)
            {
                let message = format!(
                    "has port {port}, but `{}` cannot rewrite the service's port {own}",
                    forward.name()
                );
                return Err(
                    Fault::new(message, format!("write {ip}, or use forward = \"nat\"")).into(),
                );
            }
            Ok(SocketAddr::new(ip, port))
        }
        Port::Absent => match of.forward? {
            // Where the service's own port is not known, that is the error, not this.
            Forward::L2 | Forward::Ipip | Forward::Gue => {
                Ok(SocketAddr::new(ip, of.listen.vip?.port))
            }
            forward @ (Forward::Nat | Forward::FullNat) => {
                let port = listen_port.unwrap_or(8443);
                Err(Fault::new(
                    format!("lacks a port, which `{}` needs", forward.name()),
                    format!("write {}", with_port(ip, port)),
                )
                .into())
            }
        },
    }
}

/// Where the service's own address is refused, that is the error, not this.
fn mixed_families(ip: IpAddr, of: Of<'_>) -> Option<Fault> {
    let vip = of.listen.vip.ok()?.address;
    let forward = of.forward.ok()?;
    if ip.is_ipv4() == vip.is_ipv4() || forward.mixes_families() {
        return None;
    }
    let (own, wanted) = (family(ip), family(vip));
    Some(Fault::new(
        format!(
            "is {own} and the service is {wanted}: `{}` cannot change the family",
            forward.name()
        ),
        format!(
            "write the backend's {wanted} address; mixed families need a tunnel: forward = \"ipip\" or \"gue\""
        ),
    ))
}

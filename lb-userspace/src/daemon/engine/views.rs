//! What is shown to people: status, drains, flows, explanations.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    abi::Slot,
    entry::{FlowEntry, FlowKey, Meta, age, is_closed, state as entry_state},
    outcome::Outcome,
    quic,
};

use super::Engine;
use crate::{
    api,
    datapath::{Outcomes, Question, Table, Verdict},
    model::{
        command::{self, Result, find_service},
        compose,
        observed::Way,
        packed::Packed,
        refused::Refused,
        reload::listen,
        speech::{Troubles, Wish},
        state::{Backend, Service},
    },
};

/// What the status needs to know of the process.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Version of ebb.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Start, Unix milliseconds.
    pub started_ms: u64,
    /// Configuration file.
    pub config: String,
}

/// Most flows that one answer lists.
pub const FLOWS_MAX: usize = 10_000;

/// Age up to which the last look serves the status, milliseconds.
const LOOK_SERVES_MS: u64 = 500;

impl Engine {
    /// The whole node.
    pub fn status(&mut self, facts: &Facts, now_ms: u64) -> api::Status {
        if now_ms.saturating_sub(self.last_look.at_ms) > LOOK_SERVES_MS
            && let Err(error) = self.look(now_ms)
        {
            self.trouble = Some(error.to_string());
        }
        let services: Vec<_> = self
            .state
            .services
            .iter()
            .map(|(name, service)| self.service_status(name, service, now_ms))
            .collect();
        let mut warnings = self.notes.clone();
        warnings.extend(self.unfollowed.clone());
        warnings.extend(self.trouble.clone());
        let missing = self.datapath.missing().into_iter();
        warnings.extend(missing.map(|m| format!("interface {}: {}", m.interface, m.why)));
        let outside = self.datapath.outcomes(0).unwrap_or([0; Outcome::COUNT]);
        api::Status {
            node: api::NodeStatus {
                version: facts.version.clone(),
                pid: facts.pid,
                started_ms: facts.started_ms,
                config: facts.config.clone(),
                xdp: self.xdp_status(&services, &outside),
                warnings,
                share: self.share_status(),
            },
            services,
        }
    }

    fn xdp_status(&self, services: &[api::ServiceStatus], outside: &Outcomes) -> api::XdpStatus {
        let interfaces = self.datapath.attachments();
        let generic = interfaces
            .iter()
            .any(|attachment| attachment.mode == "generic");
        api::XdpStatus {
            mode: if generic { "generic" } else { "native" }.to_owned(),
            program: self.datapath.program_id(),
            trace: self.trace_status(),
            interfaces,
            packets: services
                .iter()
                .flat_map(|service| service.outcomes.values())
                .sum(),
            outcomes: named(outside),
            flow_entries: self.last_look.flows,
            handshake_entries: self.last_look.handshakes,
        }
    }

    fn service_status(&self, name: &str, service: &Service, now_ms: u64) -> api::ServiceStatus {
        let table = self.installed.tables.get(&service.id);
        let count = |what: fn(&Slot) -> bool| {
            let slots = table.into_iter().flat_map(Packed::iter);
            slots.filter(what).count() as u32
        };
        let mut warnings = command::warnings(service, &self.observed);
        warnings.extend(self.way_warnings(service));
        let outcomes = self
            .datapath
            .outcomes(service.id)
            .unwrap_or([0; Outcome::COUNT]);
        let portless = outcomes[Outcome::DropNoPort as usize];
        if portless > 0 {
            warnings.push(format!(
                "{portless} packets dropped because every port towards their backend was taken; \
                 list more `nat_addresses`, or widen `nat_ports`"
            ));
        }
        let displacing = outcomes[Outcome::ForwardDisplacing as usize];
        if displacing > 0 {
            warnings.push(format!(
                "{displacing} flows began on the port of another that was not confirmed yet: a flood of openings, or too few \
                 ports; list more `nat_addresses`, or widen `nat_ports`"
            ));
        }
        let pools = service
            .spec
            .pools
            .keys()
            .cloned()
            .chain(service.live_backends().map(|(_, b)| b.pool.clone()));
        let pools: std::collections::BTreeSet<String> = pools.collect();
        api::ServiceStatus {
            name: name.to_owned(),
            listen: listen(&service.spec),
            forward: service.spec.forward.name().to_owned(),
            slots: service.slots,
            slots_moved: count(|slot| slot.is_moved()),
            slots_with_exceptions: count(|slot| slot.has_exceptions()),
            changing: service.is_changing(),
            outcomes: named(&outcomes),
            pools: pools
                .iter()
                .map(|pool| self.pool_status(name, service, pool, now_ms))
                .collect(),
            warnings,
        }
    }

    fn way_warnings(&self, service: &Service) -> Vec<String> {
        let unknown = |(_, backend): (u32, &Backend)| match self
            .observed
            .ways
            .get(&backend.spec.address.ip())
        {
            Some(Way::Unknown(why)) => Some(format!("no way to backend {}: {why}", backend.name)),
            Some(Way::Known(_)) | None => None,
        };
        service.live_backends().filter_map(unknown).collect()
    }

    fn pool_status(
        &self,
        name: &str,
        service: &Service,
        pool: &str,
        now_ms: u64,
    ) -> api::PoolStatus {
        let spec = service.spec.pools.get(pool);
        let mut backends: Vec<_> = service
            .live_backends()
            .filter(|(_, backend)| backend.pool == pool)
            .collect();
        backends.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        api::PoolStatus {
            name: pool.to_owned(),
            version: spec.and_then(|spec| spec.version.clone()),
            active: service.active_pool() == pool,
            backends: backends
                .iter()
                .map(|(id, backend)| {
                    let target = command::Target {
                        name,
                        service,
                        id: *id,
                        backend,
                    };
                    self.backend_status(&target, now_ms)
                })
                .collect(),
        }
    }

    fn backend_status(&self, target: &command::Target, now_ms: u64) -> api::BackendStatus {
        let command::Target {
            service,
            id,
            backend,
            ..
        } = *target;
        let stats = self.datapath.backend_stats(id).unwrap_or_default();
        let sight = self.sight(service, id, backend);
        let reason = self
            .observed
            .health
            .get(&id)
            .and_then(|(_, reason)| reason.clone());
        api::BackendStatus {
            name: backend.name.clone(),
            address: backend.spec.address,
            id,
            admin: backend.admin.name().to_owned(),
            health: compose::health(service, &self.observed, id)
                .name()
                .to_owned(),
            health_reason: reason,
            accepting: service.current.iter().any(|share| share.backend == id),
            weight: backend.weight(),
            configured_weight: backend.hand_weight.map(|_| backend.spec.weight),
            flows: sight.left(),
            flows_listed: sight.listed,
            packets: stats.packets,
            bytes: stats.bytes,
            opened: stats.opened,
            closed: if service.spec.is_datagram() {
                (stats.opened + stats.adopted).saturating_sub(sight.listed)
            } else {
                stats.closed
            },
            reply_packets: stats.reply_packets,
            next_hop: self.next_hop(backend),
            drain: backend
                .last_drain
                .and_then(|drain| self.drain_of(target, drain, now_ms)),
            says: self.says(id, backend),
        }
    }

    fn says(&self, id: u32, backend: &Backend) -> Option<api::BackendSays> {
        let heard = self.observed.heard.get(&id)?;
        let overruled = backend.overruled && heard.wish == Some(Wish::Drain);
        let overruled = overruled.then(|| "the operator took its drain back".to_owned());
        let nothing = Troubles::default();
        let troubles = heard.troubles.as_deref().unwrap_or(&nothing);
        let words = &troubles.last_not_understood;
        Some(api::BackendSays {
            asks: heard.wish.map(|wish| wish.name().to_owned()),
            refused: troubles.refused.clone().or(overruled),
            refusals: troubles.refusals,
            not_understood: troubles.not_understood,
            last_not_understood: (!words.is_empty()).then(|| words.clone()),
        })
    }

    fn next_hop(&self, backend: &Backend) -> String {
        match self.observed.ways.get(&backend.spec.address.ip()) {
            None => "being looked up".to_owned(),
            Some(Way::Unknown(why)) => why.clone(),
            Some(Way::Known(hop)) => {
                let mac: Vec<String> = hop
                    .destination_mac
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                let interfaces = self.datapath.attachments();
                let name = interfaces
                    .iter()
                    .find(|attachment| attachment.ifindex == hop.ifindex);
                let name = name.map_or_else(
                    || format!("if{}", hop.ifindex),
                    |attachment| attachment.interface.clone(),
                );
                format!("{name} {}", mac.join(":"))
            }
        }
    }

    /// Flows in the flow table, of one service or of one backend; at most [`FLOWS_MAX`].
    pub fn flows(
        &mut self,
        service: Option<&str>,
        backend: Option<&str>,
    ) -> Result<Vec<api::Flow>> {
        let service_id = service
            .map(|name| find_service(&self.state, name).map(|(_, service)| service.id))
            .transpose()?;
        let backend_id = match (service, backend) {
            (Some(service), Some(backend)) => {
                Some(command::find(&self.state, &format!("{service}/{backend}"))?.id)
            }
            (None, Some(_)) => {
                return Err(
                    Refused::invalid("a backend without its service").hint("name the service too")
                );
            }
            (_, None) => None,
        };
        let mut found: Vec<FlowEntry> = Vec::new();
        let scanned = self.datapath.scan(Table::Flows, &mut |entry| {
            let of_service = service_id.is_none_or(|id| FlowKey::service(entry.ports) == id);
            let of_backend = backend_id.is_none_or(|id| Meta(entry.meta).backend() == id);
            if of_service && of_backend && found.len() < FLOWS_MAX {
                found.push(*entry);
            }
            Verdict::Keep
        });
        scanned.map_err(|error| {
            Refused::new(
                crate::model::refused::RefusedKind::Failed,
                format!("flows: {error}"),
            )
        })?;
        Ok(found.iter().filter_map(|entry| self.flow(entry)).collect())
    }

    fn flow(&self, entry: &FlowEntry) -> Option<api::Flow> {
        let meta = Meta(entry.meta);
        let (name, service) = self.state.service_by_id(FlowKey::service(entry.ports))?;
        let record = self.installed.services.get(&service.id)?;
        let backend = service.backends.get(&meta.backend())?;
        let phase = if is_closed(meta, record.mode) {
            "closed"
        } else if meta.has(entry_state::CLOSING) {
            "closing"
        } else {
            "established"
        };
        let now = self.datapath.now_ticks();
        let per_second = f64::from(self.datapath.ticks_per_second().max(1));
        Some(api::Flow {
            service: name.clone(),
            backend: backend.name.clone(),
            client: SocketAddr::new(
                entry.client.into(),
                u16::from_be(FlowKey::client_port(entry.ports)),
            ),
            service_port: if service.spec.listen.is_several() {
                u16::from_be(FlowKey::service_port(entry.ports))
            } else {
                service.spec.listen.port
            },
            phase: phase.to_owned(),
            age_s: f64::from(age(entry.opened, now)) / per_second,
            idle_s: f64::from(age(entry.seen, now)) / per_second,
            exceptional: meta.has(entry_state::EXCEPTIONAL),
        })
    }

    /// Where a client's packets go, as the loaded program says.
    ///
    /// `port`: which of the service's, where it has several; the first unless told otherwise.
    pub fn explain(
        &self,
        service: &str,
        from: SocketAddr,
        port: Option<u16>,
        cid: Option<&str>,
    ) -> Result<api::Explained> {
        let (name, service) = find_service(&self.state, service)?;
        let listen = &service.spec.listen;
        let port = port.unwrap_or(listen.port);
        if !listen.ports().contains(port) {
            return Err(
                Refused::invalid(format!("explain {name}: {port} is no port of {listen}"))
                    .hint("name one that it is on, or none"),
            );
        }
        let vip = SocketAddr::new(listen.address, port);
        if from.is_ipv4() != vip.is_ipv4() {
            return Err(Refused::invalid(format!(
                "explain {name}: {from} is not of the same family as {vip}"
            )));
        }
        let quic = service.spec.quic.is_some();
        let cid = match cid {
            Some(_) if !quic => {
                let error = format!("explain {name}: a connection id, and it is no QUIC service");
                return Err(Refused::invalid(error).hint("leave --cid out"));
            }
            Some(text) => Some(connection_id(name, text)?),
            None => None,
        };
        let ask = |opening, id: &[u8]| {
            let question = Question {
                client: from,
                vip,
                protocol: service.spec.listen.protocol,
                opening,
            };
            let said = if quic {
                self.datapath.explain_quic(&question, id)
            } else {
                self.datapath.explain(&question)
            };
            said.map_err(|error| {
                Refused::new(
                    crate::model::refused::RefusedKind::Failed,
                    format!("explain {name}: {error}"),
                )
            })
        };
        let (opening, established) = (ask(true, &[])?, ask(false, &NAMELESS)?);
        let named = cid.map(|id| ask(false, &id)).transpose()?;
        let slot = Slot(opening.slot);
        Ok(api::Explained {
            service: name.to_owned(),
            protocol: service.spec.listen.protocol.name().to_owned(),
            from,
            slot: opening.slot_index,
            current: backend_name(service, slot.current()),
            base: backend_name(service, slot.base()),
            formers: self.former_names(service, opening.slot_index),
            opening: answer(service, &opening),
            established: answer(service, &established),
            named: named.map(|named| answer(service, &named)),
            quic,
        })
    }

    /// Former owners of a slot.
    fn former_names(&self, service: &Service, slot: u32) -> Vec<String> {
        let rows = self.installed.formers.get(&service.id);
        let formers = rows.and_then(|rows| {
            let place = rows.binary_search_by_key(&slot, |(index, _)| *index);
            place.ok().map(|place| rows[place].1)
        });
        let ids = formers.unwrap_or_default().iter();
        ids.filter_map(|id| backend_name(service, id)).collect()
    }
}

/// A connection id that names nobody.
const NAMELESS: [u8; 1] = [quic::UNROUTABLE << 5];

/// A connection id as it is written: 1 to 20 bytes (RFC 9000 section 17.2), two hexadecimal digits each.
fn connection_id(service: &str, text: &str) -> Result<Vec<u8>> {
    let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    match bytes {
        Some(bytes) if is_hexadecimal && (1..=20).contains(&bytes.len()) => Ok(bytes),
        _ => Err(
            Refused::invalid(format!("explain {service}: {text:?} is no connection id"))
                .hint("write 1 to 20 bytes with two hexadecimal digits each"),
        ),
    }
}

fn backend_name(service: &Service, id: u32) -> Option<String> {
    service
        .backends
        .get(&id)
        .map(|backend| backend.name.clone())
}

fn answer(service: &Service, explanation: &lb_common::abi::Explanation) -> api::Answer {
    let outcome = Outcome::ALL
        .get(explanation.outcome as usize)
        .copied()
        .unwrap_or(Outcome::PassInternal);
    let backend = backend_name(service, explanation.backend);
    let to = backend.clone().unwrap_or_else(|| "nobody".to_owned());
    let slot = Slot(explanation.slot);
    let current = backend_name(service, slot.current()).unwrap_or_else(|| "nobody".to_owned());
    api::Answer {
        outcome: outcome.name().to_owned(),
        backend,
        why: why(outcome, &to, &current, slot.is_moved()),
    }
}

/// An outcome in words.
fn why(outcome: Outcome, to: &str, current: &str, moved: bool) -> String {
    match outcome {
        Outcome::ForwardSteady => format!("no change touches this slot: all its flows are {to}'s"),
        Outcome::ForwardFlow => format!("this flow is in the flow table, on {to}"),
        Outcome::ForwardServerId => format!("its connection id names {to}"),
        Outcome::ForwardServerUnknown => {
            format!("its connection id names no backend; by its address it is {to}'s")
        }
        Outcome::ForwardHandshake => format!("its handshake began on {to}"),
        Outcome::ForwardAdopted | Outcome::ForwardBase | Outcome::ForwardUnlisted if moved => {
            format!(
                "the slot has moved to {current}, but a flow that began before belongs to {to}, and stays there"
            )
        }
        Outcome::ForwardAsking | Outcome::ForwardAskingUnlisted => {
            format!(
                "nothing is known of it: {to} is asked whether it is there, and if not {current} gets it"
            )
        }
        Outcome::ForwardAdopted | Outcome::ForwardBase | Outcome::ForwardUnlisted => {
            format!("not in the flow table, so it is the slot's owner's: {to}")
        }
        Outcome::ForwardOrphan => {
            format!("the backend it was on has ended: it goes to {to}, which will reset it")
        }
        Outcome::ForwardOpening | Outcome::ForwardOpeningUnrecorded => {
            format!("new flows of this slot go to {to}")
        }
        Outcome::ForwardRetransmit => format!("this opening was seen before, and went to {to}"),
        Outcome::DropNoBackend => "no backend takes new flows".to_owned(),
        Outcome::DropNoNextHop => format!("the way to {to} is not known"),
        Outcome::ResetDeadline => format!("the deadline of {to}'s drain has passed: it is reset"),
        Outcome::ResetDead => format!("{to} has died: it is reset"),
        Outcome::DropDeadline => format!("the deadline of {to}'s drain has passed: it is dropped"),
        Outcome::DropOpeningUnrecorded => {
            "the opening can not be recorded now, and must be: the client tries again".to_owned()
        }
        Outcome::PassNoService => "the maps do not know this service yet".to_owned(),
        other => other.name().replace('_', " "),
    }
}

fn named(outcomes: &Outcomes) -> BTreeMap<String, u64> {
    let pairs = Outcome::ALL.iter().zip(outcomes);
    pairs
        .filter(|(_, count)| **count > 0)
        .map(|(outcome, count)| (outcome.name().to_owned(), *count))
        .collect()
}

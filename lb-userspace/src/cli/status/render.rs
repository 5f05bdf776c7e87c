//! A status as text.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    api::{BackendSays, BackendStatus, By, NodeStatus, PoolStatus, ServiceStatus, Status},
    cli::{
        drain, human,
        table::{self, Column},
    },
};

const COLUMNS: [Column; 10] = [
    ("POOL", false),
    ("BACKEND", false),
    ("ADDRESS", false),
    ("ADMIN", false),
    ("HEALTH", false),
    ("NEW", false),
    ("WEIGHT", true),
    ("FLOWS", true),
    ("PACKETS", true),
    ("BYTES", true),
];

const RATE_COLUMNS: [Column; 2] = [("PACKETS/S", true), ("BITS/S", true)];

/// The whole status; with the one before and the time since, also rates.
pub fn render(status: &Status, before: Option<(&Status, Duration)>, now_ms: u64) -> String {
    let mut parts = vec![node(&status.node, now_ms)];
    if status.services.is_empty() {
        parts.push("no services".to_owned());
    }
    for service in &status.services {
        let before = before.and_then(|(status, since)| {
            let mut services = status.services.iter();
            let same = services.find(|other| other.name == service.name)?;
            Some((same, since))
        });
        parts.push(render_service(service, before, now_ms));
    }
    parts.join("\n\n")
}

fn node(node: &NodeStatus, now_ms: u64) -> String {
    let interfaces = node.xdp.interfaces.iter();
    let interfaces: Vec<_> = interfaces
        .map(|attached| format!("{} ({})", attached.interface, attached.mode))
        .collect();
    let on = match interfaces.as_slice() {
        [] => "on no interface".to_owned(),
        some => format!("on {}", some.join(", ")),
    };
    let up = Duration::from_millis(now_ms.saturating_sub(node.started_ms));
    let mut text = format!(
        "ebb {}, pid {}, up {}, XDP {on}, {} flow entries, {} handshakes",
        node.version,
        node.pid,
        human::duration(up),
        human::count(node.xdp.flow_entries),
        human::count(node.xdp.handshake_entries)
    );
    if let Some(trace) = &node.xdp.trace {
        let by = human::clean(&trace.by);
        text.push_str(&format!("\na trace runs, by {by}"));
    }
    warnings(&mut text, "", &node.warnings);
    text
}

fn warnings(text: &mut String, indent: &str, warnings: &[String]) {
    for warning in warnings {
        text.push_str(&format!("\n{indent}warning: {}", human::clean(warning)));
    }
}

fn render_service(
    service: &ServiceStatus,
    before: Option<(&ServiceStatus, Duration)>,
    now_ms: u64,
) -> String {
    let mut text = format!(
        "{}  {}  {}  {}\n",
        service.name,
        service.listen,
        service.forward,
        change(service)
    );
    text.push_str(&backends(service, before));
    for pool in &service.pools {
        for backend in &pool.backends {
            for note in notes(backend, now_ms) {
                text.push_str(&format!("\n  {}: {note}", backend.name));
            }
        }
    }
    if let Some(lost) = lost(&service.outcomes) {
        text.push_str(&format!("\n  not delivered: {lost}"));
    }
    warnings(&mut text, "  ", &service.warnings);
    text
}

/// How far an unfinished change is.
fn change(service: &ServiceStatus) -> String {
    if !service.changing && service.slots_with_exceptions == 0 {
        return "settled".to_owned();
    }
    let what = if service.changing {
        "changing"
    } else {
        "settling"
    };
    format!(
        "{what}: {} of {} slots moved, {} with flows elsewhere",
        service.slots_moved, service.slots, service.slots_with_exceptions
    )
}

fn backends(service: &ServiceStatus, before: Option<(&ServiceStatus, Duration)>) -> String {
    let mut columns = COLUMNS.to_vec();
    if before.is_some() {
        columns.extend(RATE_COLUMNS);
    }
    let mut rows = Vec::new();
    for pool in &service.pools {
        for backend in &pool.backends {
            let mut row = row(pool, backend);
            if let Some((before, since)) = before {
                row.extend(rates(backend, before, since));
            }
            rows.push(row);
        }
    }
    table::render(&columns, rows, 2)
}

fn row(pool: &PoolStatus, backend: &BackendStatus) -> Vec<String> {
    let mark = if pool.active { "*" } else { "" };
    vec![
        format!("{}{mark}", pool.name),
        backend.name.clone(),
        address(&backend.address),
        backend.admin.clone(),
        backend.health.clone(),
        if backend.accepting { "yes" } else { "no" }.to_owned(),
        backend.weight.to_string(),
        backend.flows.to_string(),
        human::count(backend.packets),
        human::bytes(backend.bytes),
    ]
}

/// Rates since the status before; counters that began anew meanwhile count from there.
fn rates(backend: &BackendStatus, before: &ServiceStatus, since: Duration) -> [String; 2] {
    let mut others = before.pools.iter().flat_map(|pool| &pool.backends);
    let Some(other) = others.find(|other| other.id == backend.id) else {
        return ["-".to_owned(), "-".to_owned()];
    };
    [
        human::rate(backend.packets.saturating_sub(other.packets), since),
        human::bit_rate(backend.bytes.saturating_sub(other.bytes), since),
    ]
}

/// What it says for itself, where that is not what is done.
fn says(says: &BackendSays) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(refused) = &says.refused {
        notes.push(format!(
            "asks to be drained and is not: {}",
            human::clean(refused)
        ));
    }
    if let Some(words) = &says.last_not_understood {
        notes.push(format!(
            "its agent says {:?}, which means nothing to ebb ({} so far)",
            human::clean(words),
            human::plural(says.not_understood, "line")
        ));
    }
    notes
}

/// What a row has no room for.
fn notes(backend: &BackendStatus, now_ms: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(configured) = backend.configured_weight {
        notes.push(format!(
            "weight {} set by hand, {configured} otherwise",
            backend.weight
        ));
    }
    if let Some(drain) = &backend.drain
        && drain.receipt.is_none()
    {
        let rest = drain::at_deadline(drain.on_deadline);
        let remaining = drain::remaining(drain, now_ms);
        let by = drain::asked_for(drain.by);
        let mut note = format!("{}{by}, {remaining}, then {rest}", drain.state);
        if let Some(outlook) = drain::outlook(drain) {
            note.push_str(&format!("; {outlook}"));
        }
        notes.push(note);
    }
    if let Some(drain) = &backend.drain
        && backend.admin == "drained"
        && drain.by != By::Operator
    {
        notes.push(format!("drained{}", drain::asked_for(drain.by)));
    }
    notes.extend(backend.says.iter().flat_map(says));
    if !matches!(backend.health.as_str(), "up" | "unchecked")
        && let Some(reason) = &backend.health_reason
    {
        notes.push(format!("{}, {}", backend.health, human::clean(reason)));
    }
    notes
}

/// Packets that reached nobody, by outcome.
fn lost(outcomes: &BTreeMap<String, u64>) -> Option<String> {
    let lost = outcomes.iter().filter(|(name, count)| {
        **count > 0 && (name.starts_with("drop_") || name.starts_with("reset_"))
    });
    let lost: Vec<_> = lost
        .map(|(name, count)| format!("{} {name}", human::count(*count)))
        .collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}

/// Without a port where every one is the client's own choice.
fn address(address: &std::net::SocketAddr) -> String {
    match address.port() {
        0 => address.ip().to_string(),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Attachment, Drain, DrainFlows, XdpStatus},
        model::spec::OnDeadline,
    };

    fn backend(name: &str, id: u32, packets: u64) -> BackendStatus {
        BackendStatus {
            name: name.to_owned(),
            address: "10.0.0.11:8443".parse().expect("an address"),
            id,
            admin: "active".to_owned(),
            health: "up".to_owned(),
            health_reason: None,
            accepting: true,
            weight: 1,
            configured_weight: None,
            flows: 12,
            flows_listed: 0,
            packets,
            bytes: packets * 1000,
            opened: 12,
            closed: 0,
            reply_packets: 0,
            next_hop: "eth0 02:00:00:00:00:01".to_owned(),
            drain: None,
            says: None,
        }
    }

    fn service(backends: Vec<BackendStatus>) -> ServiceStatus {
        ServiceStatus {
            name: "web".to_owned(),
            listen: "203.0.113.10:443/tcp".to_owned(),
            forward: "nat".to_owned(),
            slots: 65_536,
            slots_moved: 0,
            slots_with_exceptions: 0,
            changing: false,
            outcomes: BTreeMap::new(),
            pools: vec![PoolStatus {
                name: "blue".to_owned(),
                version: None,
                active: true,
                backends,
            }],
            warnings: Vec::new(),
        }
    }

    fn status(service: ServiceStatus) -> Status {
        Status {
            node: NodeStatus {
                version: "0.1.0".to_owned(),
                pid: 7,
                started_ms: 0,
                config: "/etc/ebb/ebb.toml".to_owned(),
                xdp: XdpStatus {
                    mode: "native".to_owned(),
                    interfaces: vec![Attachment {
                        interface: "eth0".to_owned(),
                        ifindex: 2,
                        mode: "native".to_owned(),
                        program: Some(9),
                    }],
                    program: Some(9),
                    trace: None,
                    packets: 0,
                    outcomes: BTreeMap::new(),
                    flow_entries: 1234,
                    handshake_entries: 0,
                },
                warnings: vec!["low\x1b[2J on memory".to_owned()],
                share: None,
            },
            services: vec![service],
        }
    }

    #[test]
    fn a_settled_service() {
        let text = render(
            &status(service(vec![backend("b1", 1, 12_345)])),
            None,
            61_000,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ebb 0.1.0, pid 7, up 1m 1s, XDP on eth0 (native), 1.23k flow entries, 0 handshakes",
                "warning: low [2J on memory",
                "",
                "web  203.0.113.10:443/tcp  nat  settled",
                "  POOL   BACKEND  ADDRESS         ADMIN   HEALTH  NEW  WEIGHT  FLOWS  PACKETS     BYTES",
                "  blue*  b1       10.0.0.11:8443  active  up      yes       1     12    12.3k  11.8 MiB",
            ]
        );
    }

    #[test]
    fn notes_below_the_table() {
        let mut draining = backend("b1", 1, 0);
        draining.drain = Some(Drain {
            id: 3,
            backend: "web/b1".to_owned(),
            by: By::Operator,
            state: "draining".to_owned(),
            since_ms: 0,
            deadline_ms: 301_000,
            on_deadline: OnDeadline::Leave,
            flows: DrainFlows {
                at_start: 20,
                listed: 10,
                unseen: 2,
            },
            ended_ms: None,
            progress: None,
            receipt: None,
        });
        let mut down = backend("b2", 2, 0);
        down.health = "down".to_owned();
        down.health_reason = Some("connection refused".to_owned());
        (down.weight, down.configured_weight) = (5, Some(1));
        let mut service = service(vec![draining, down]);
        service.changing = true;
        service.slots_moved = 100;
        service.slots_with_exceptions = 9;
        service.outcomes.insert("drop_no_backend".to_owned(), 1200);
        service.outcomes.insert("forward_steady".to_owned(), 5);
        service.warnings.push("careful".to_owned());
        let text = render(&status(service), None, 1_000);
        for part in [
            "changing: 100 of 65536 slots moved, 9 with flows elsewhere",
            "\n  b1: draining, 12 flows left, deadline in 5m 0s, then the rest goes on",
            "\n  b2: weight 5 set by hand, 1 otherwise",
            "\n  b2: down, connection refused",
            "\n  not delivered: 1.20k drop_no_backend\n",
            "\n  warning: careful",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn rates_need_a_status_before() {
        let before = status(service(vec![backend("b1", 1, 1000)]));
        let now = status(service(vec![backend("b1", 1, 3000), backend("b2", 2, 5)]));
        let text = render(&now, Some((&before, Duration::from_secs(2))), 0);
        let rows: Vec<_> = text.lines().rev().take(2).collect();
        assert!(rows[1].ends_with("1.00k/s  8.00 Mbit/s"), "{text}");
        assert!(rows[0].trim_end().ends_with('-'), "{text}");
    }
}

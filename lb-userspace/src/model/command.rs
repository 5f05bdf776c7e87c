//! Commands on backends and pools: each becomes operations on the state, or a refusal that names the reason.

use std::net::SocketAddr;

use super::{
    address::{family, unusable},
    ages::Ages,
    compose::{accepting, health, is_checked},
    drain::{Admin, End, Reason, Sight},
    observed::Observed,
    refused::Refused,
    spec::{BackendSpec, Capacity, Forward, Ports},
    state::{Backend, Forgiven, Op, Origin, Service, State},
};

pub use drains::{
    DRAIN_MAX, Planned, Seen, Selection, Terms, back, begin, drain, end, members, taken_back,
    undrain,
};
pub use maintenance::{activate, maintain};
pub use weights::weigh;

mod drains;
mod maintenance;
mod weights;

/// Largest weight of a backend.
pub const WEIGHT_MAX: u32 = 1000;

/// Result of a command.
pub type Result<T> = std::result::Result<T, Refused>;

/// A backend that a command names.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Name of its service.
    pub name: &'a str,
    /// Its service.
    pub service: &'a Service,
    /// Its id.
    pub id: u32,
    /// The backend.
    pub backend: &'a Backend,
}

impl Target<'_> {
    /// `SERVICE/BACKEND`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.name, self.backend.name)
    }
}

/// Finds a service by name.
pub fn find_service<'a>(state: &'a State, name: &str) -> Result<(&'a str, &'a Service)> {
    let found = state.services.get_key_value(name);
    found
        .map(|(name, service)| (name.as_str(), &**service))
        .ok_or_else(|| {
            Refused::unknown_name("service", name, state.services.keys().map(String::as_str))
        })
}

/// Finds a backend by `SERVICE/BACKEND`.
pub fn find<'a>(state: &'a State, path: &str) -> Result<Target<'a>> {
    let Some((service, backend)) = path.split_once('/') else {
        return Err(
            Refused::invalid(format!("{path:?} does not name a backend"))
                .hint("write SERVICE/BACKEND"),
        );
    };
    let (name, service) = find_service(state, service)?;
    let (id, backend) = service.backend(backend).ok_or_else(|| {
        let known = service
            .live_backends()
            .map(|(_, known)| known.name.as_str());
        Refused::unknown_name(&format!("backend of service {name}"), backend, known)
    })?;
    Ok(Target {
        name,
        service,
        id,
        backend,
    })
}

/// Removes a backend. `ages`: of its listed flows, for the receipt of a drain that this ends.
pub fn remove(
    state: &State,
    path: &str,
    force: bool,
    (sight, ages): (Sight, &Ages),
    now_ms: u64,
) -> Result<Vec<Op>> {
    let target = find(state, path)?;
    let mut ops = Vec::new();
    let refuse = |why: String| Err(Refused::conflict(format!("remove {path}: {why}")));
    match &target.backend.admin {
        Admin::Active | Admin::Maintenance if !force => {
            return refuse(format!("it is {}", target.backend.admin.words())).map_err(|refused| {
                refused.hint(format!("`ebb drain {path} --wait` first, or use --force"))
            });
        }
        Admin::Draining(_) if !force => {
            return refuse(format!(
                "it is draining and has {} flows left",
                sight.left()
            ))
            .map_err(|refused| refused.hint("wait for the drain to end, or use --force"));
        }
        Admin::Drained(drained) if !force && drained.flows_go_on && sight.left() > 0 => {
            return refuse(format!("{} flows were left to go on", sight.left()))
                .map_err(|refused| refused.hint("wait for them to end, or use --force"));
        }
        Admin::Draining(drain) => {
            let cut = End {
                reset: sight.open(),
                ..End::of(Reason::Deadline)
            };
            let over = end(&target, drain, cut, ages, Forgiven::default(), now_ms);
            ops.push(over);
        }
        Admin::Active | Admin::Maintenance | Admin::Drained(_) | Admin::Removed => {}
    }
    ops.push(Op::BackendRemoved {
        service: target.name.to_owned(),
        backend: target.id,
        by_hand: true,
    });
    Ok(ops)
}

/// Adds a backend to `SERVICE/POOL/BACKEND`.
///
/// In `l2` a port may be left out (0): it is the service's own.
pub fn add(
    state: &State,
    capacity: &Capacity,
    path: &str,
    mut spec: BackendSpec,
) -> Result<Vec<Op>> {
    let mut parts = path.split('/');
    let (Some(service), Some(pool), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(
            Refused::invalid(format!("{path:?} does not name a place for a backend"))
                .hint("write SERVICE/POOL/BACKEND"),
        );
    };
    let (service_name, service) = find_service(state, service)?;
    let vip = &service.spec.listen;
    if spec.address.port() == 0 && !service.spec.forward.rewrites_port() && !vip.is_several() {
        spec.address.set_port(vip.port);
    }
    if !service.spec.pools.contains_key(pool) {
        let known = service.spec.pools.keys().map(String::as_str);
        return Err(Refused::unknown_name(
            &format!("pool of service {service_name}"),
            pool,
            known,
        ));
    }
    check_name(name)?;
    check_new(state, service_name, service, name, &spec)?;
    let id = free_backend_ids(state, capacity, 1)?[0];
    Ok(vec![Op::BackendAdded {
        service: service_name.to_owned(),
        id,
        name: name.to_owned(),
        pool: pool.to_owned(),
        spec,
        origin: Origin::Hand,
    }])
}

/// `count` free backend ids that fit the maps, which have one place more than the capacity says: nobody has id 0.
pub fn free_backend_ids(state: &State, capacity: &Capacity, count: usize) -> Result<Vec<u32>> {
    let ids: Vec<u32> = state
        .free_backend_ids()
        .take_while(|id| *id <= capacity.backends)
        .take(count)
        .collect();
    if ids.len() == count {
        return Ok(ids);
    }
    let error = format!(
        "no room for another backend: {} of {} ids are in use",
        state.backends().count(),
        capacity.backends
    );
    Err(Refused::conflict(error).hint("raise capacity.backends in the configuration and restart"))
}

fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 63 && name.chars().all(fits) {
        return Ok(());
    }
    Err(Refused::invalid(format!("{name:?} is not a name"))
        .hint("1 to 63 letters, digits, \"-\", \"_\" and \".\""))
}

fn check_new(
    state: &State,
    service_name: &str,
    service: &Service,
    name: &str,
    spec: &BackendSpec,
) -> Result<()> {
    if service.backend(name).is_some() {
        return Err(Refused::conflict(format!(
            "add {name}: service {service_name} has a backend of this name"
        ))
        .hint("choose another name"));
    }
    check_weight(&format!("add {name}"), spec.weight)?;
    check_address(service, name, spec.address)?;
    check_server_id(service, name, spec)?;
    let taken = state.backends().find(|(_, other, _, backend)| {
        let same = backend.admin != Admin::Removed
            && backend.spec.address.ip() == spec.address.ip()
            && ports(other, backend.spec.address).overlaps(ports(service, spec.address));
        let one_protocol = other.spec.listen.protocol == service.spec.listen.protocol;
        let shared = other.id == service.id || one_protocol && (is_nat(other) || is_nat(service));
        shared && same
    });
    match taken {
        None => Ok(()),
        Some((other, _, _, backend)) => {
            let error = format!(
                "add {name}: {} is backend {other}/{} already",
                spec.address, backend.name
            );
            Err(Refused::conflict(error).hint("a backend's answers must name one service"))
        }
    }
}

fn check_weight(what: &str, weight: u32) -> Result<()> {
    if weight <= WEIGHT_MAX {
        return Ok(());
    }
    let error = format!("{what}: weight {weight} is too large");
    Err(Refused::invalid(error).hint(format!("0 to {WEIGHT_MAX}")))
}

/// Refuses a server id that another backend of the service goes by.
fn check_server_id(service: &Service, name: &str, spec: &BackendSpec) -> Result<()> {
    let Some(quic) = &service.spec.quic else {
        return Ok(());
    };
    let id = quic.server_id(spec);
    let mut others = service.live_backends().map(|(_, backend)| backend);
    match others.find(|other| quic.server_id(&other.spec) == id) {
        None => Ok(()),
        Some(other) => Err(Refused::conflict(format!(
            "add {name}: {} has the server id {id:0digits$x} already",
            other.name,
            digits = 2 * usize::from(quic.server_id_length)
        ))
        .hint("write it into the configuration file with a server_id of its own")),
    }
}

/// The ports that a backend at `address` answers from.
const fn ports(service: &Service, address: SocketAddr) -> Ports {
    if address.port() == 0 {
        service.spec.listen.ports()
    } else {
        Ports::one(address.port())
    }
}

fn is_nat(service: &Service) -> bool {
    service.spec.forward == Forward::Nat
}

/// Refuses an address that the service can not send to.
pub fn check_address(service: &Service, name: &str, address: SocketAddr) -> Result<()> {
    let vip = &service.spec.listen;
    let ip = address.ip();
    let forward = service.spec.forward;
    if let Some(what) = unusable(ip) {
        return Err(
            Refused::invalid(format!("add {name}: {ip} is {what}, not a backend's own"))
                .hint("use the address that the backend has on its network"),
        );
    }
    if vip.is_several() && address.port() != 0 {
        let error = format!(
            "add {name}: service {} is on several ports and keeps the one that a client chose",
            service.spec.name
        );
        return Err(Refused::invalid(error).hint(format!("write {ip}, without a port")));
    }
    if ip == vip.address || (address.port() == 0 && !vip.is_several()) {
        return Err(Refused::invalid(format!(
            "add {name}: {address} can not be a backend's address"
        )));
    }
    if ip.is_ipv4() != vip.address.is_ipv4() && !forward.mixes_families() {
        let error = format!(
            "add {name}: {ip} is {} and the service is {}: forward = \"{}\" can not change the family",
            family(ip),
            family(vip.address),
            forward.name()
        );
        let hint = format!("use the backend's {} address", family(vip.address));
        return Err(Refused::invalid(error).hint(hint));
    }
    if !forward.rewrites_port() && !vip.is_several() && address.port() != vip.port {
        let error = format!(
            "add {name}: forward = \"{}\" can not change port {} to {}",
            forward.name(),
            vip.port,
            address.port()
        );
        return Err(Refused::invalid(error).hint(format!("use port {}", vip.port)));
    }
    Ok(())
}

/// Sends new flows to another pool.
pub fn switch(
    state: &State,
    observed: &Observed,
    service: &str,
    pool: &str,
    force: bool,
) -> Result<Vec<Op>> {
    let (name, service) = find_service(state, service)?;
    if !service.spec.pools.contains_key(pool) {
        let known = service.spec.pools.keys().map(String::as_str);
        return Err(Refused::unknown_name(
            &format!("pool of service {name}"),
            pool,
            known,
        ));
    }
    let (up, least) = (
        accepting(service, observed, pool).count(),
        service.spec.min_available.max(1) as usize,
    );
    if up < least && !force {
        let error = format!(
            "switch {name} to {pool}: {up} of its {} backends take new flows, min_available is {least}{}",
            service
                .live_backends()
                .filter(|(_, backend)| backend.pool == pool)
                .count(),
            why_not(service, observed, pool),
        );
        return Err(Refused::conflict(error).hint("see `ebb status`, or use --force"));
    }
    Ok(vec![Op::Switched {
        service: name.to_owned(),
        pool: (pool != service.spec.active_pool).then(|| pool.to_owned()),
    }])
}

fn why_not(service: &Service, observed: &Observed, pool: &str) -> String {
    let reason = |(id, backend): (u32, &Backend)| {
        let health = health(service, observed, id);
        match &backend.admin {
            Admin::Active if backend.weight() == 0 => {
                Some(format!("{} has weight 0", backend.name))
            }
            Admin::Active if health.is_up() => None,
            Admin::Active => Some(format!("{} is {}", backend.name, health.name())),
            admin => Some(format!("{} is {}", backend.name, admin.words())),
        }
    };
    let pool = service
        .live_backends()
        .filter(|(_, backend)| backend.pool == pool);
    let reasons: Vec<String> = pool.filter_map(reason).take(5).collect();
    if reasons.is_empty() {
        String::new()
    } else {
        format!(" ({})", reasons.join(", "))
    }
}

/// What does not work as it should in a service.
pub fn warnings(service: &Service, observed: &Observed) -> Vec<String> {
    let mut warnings = Vec::new();
    let pool = service.active_pool();
    let up = accepting(service, observed, pool).count();
    if service.current.is_empty() {
        warnings.push("no backend takes new flows: they are dropped".to_owned());
    } else if up == 0 {
        warnings.push(format!(
            "no backend of pool {pool} is up: new flows go to those that were up last"
        ));
    } else if up < service.spec.min_available as usize {
        warnings.push(format!(
            "{up} backends take new flows, min_available is {}",
            service.spec.min_available
        ));
    }
    if !is_checked(&service.spec.health) {
        warnings.push("no health checks: a backend that dies goes on getting flows".to_owned());
    }
    if let Some(pool) = &service.hand_pool {
        warnings.push(format!(
            "switched to pool {pool} by hand; the configuration says {}",
            service.spec.active_pool
        ));
    }
    warnings
}

//! What the maps should hold: a pure function of the state, of what is seen, and of the time.

use std::{
    collections::BTreeMap,
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, backend_flags, control_flags, mode, service_flags},
    checksum::address_delta,
    full_nat::Sources,
    hash::HashKey,
    index::{IndexEntry, kind, selector, server_key},
    tunnel::fixed_sum,
};
use siphasher::sip::SipHasher13;

use super::{
    death,
    drain::Admin,
    observed::{Hop, Observed, Vlans},
    spec::{
        Affinity, ClientRules, Decap, Forward, OnDeadline, OutOfOrder, Protocol, ServiceSpec, Spec,
        Tracking,
    },
    state::{Backend, Service, State},
};

/// All that the maps should hold.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Backends by id.
    pub backends: BTreeMap<u32, BackendRecord>,
    /// Services by id. The number of slots in a record is right, their place is not known.
    pub services: BTreeMap<u32, ServiceRecord>,
    /// The address index, in the order of its keys.
    pub index: Vec<IndexEntry>,
    /// Client prefixes.
    pub clients: ClientRules,
    /// The node's limit of new flows.
    pub flow_limit: u32,
    /// The node's [`control_flags`].
    pub node_flags: u32,
    /// Where ports for `full-nat` come from: for IPv4, for IPv6.
    pub sources: [Sources; 2],
    /// The node's VLAN devices; `None` when they are not known yet.
    pub vlans: Option<Vlans>,
}

impl Desired {
    /// Whether there is such a backend, and flows of it can go on.
    pub fn can_have_flows(&self, backend: u32) -> bool {
        let record = self.backends.get(&backend);
        record.is_some_and(|record| backend_flags::can_have_flows(record.flags))
    }
}

/// The node's constants.
pub struct Node<'a> {
    /// Secret seed of the hashes.
    pub seed: &'a [u8; 16],
    /// Makes ticks of the kernel's clock out of a duration.
    pub ticks: &'a dyn Fn(std::time::Duration) -> u32,
}

/// Works it out.
pub fn desired(state: &State, observed: &Observed, node: &Node, now_ms: u64) -> Desired {
    let mut desired = Desired::default();
    for (name, service) in &state.services {
        for (id, backend) in &service.backends {
            let record = backend_record(service, *id, backend, observed, now_ms);
            desired.backends.insert(*id, record);
        }
        let record = service_record(name, service, node);
        desired.services.insert(service.id, record);
    }
    desired.index = index(state);
    desired.vlans.clone_from(&observed.vlans);
    desired
}

/// Key of a service's flow hash: the same on every node that has the same seed.
pub fn flow_key(seed: &[u8; 16], name: &str) -> HashKey {
    HashKey::from_words(|number| {
        let mut hasher = SipHasher13::new_with_key(seed);
        hasher.write(b"ebb flow key ");
        hasher.write(&[b'0' + number, b' ']);
        hasher.write(name.as_bytes());
        hasher.finish()
    })
}

fn service_record(name: &str, service: &Service, node: &Node) -> ServiceRecord {
    let spec = &service.spec;
    let tracking = match (spec.listen.protocol, spec.tracking) {
        // Datagrams say neither when a flow begins nor when it ends: only its entry knows that there is one.
        (Protocol::Udp, _) => service_flags::DATAGRAM | service_flags::TRACK_ALL,
        (Protocol::Tcp, Tracking::Full) => service_flags::TRACK_ALL,
        (Protocol::Tcp, Tracking::Moved) => 0,
    };
    let echo = if spec.icmp_echo {
        service_flags::ECHO
    } else {
        0
    };
    let (affinity, affinity_mask) = affinity(spec);
    let mut record = ServiceRecord {
        table: ServiceRecord::table_word(0, service.slots),
        key: flow_key(node.seed, name),
        vip: spec.listen.address.into(),
        port: spec.listen.port.to_be(),
        last_port: if spec.listen.is_several() {
            spec.listen.last_port.to_be()
        } else {
            0
        },
        protocol: spec.listen.protocol.number(),
        mode: mode_of(spec.forward),
        flags: tracking
            | affinity
            | echo
            | spec.quic.map_or(0, |_| service_flags::QUIC)
            | if asks(spec) { service_flags::ASKS } else { 0 },
        quic_rotation: spec.quic.map_or(0, |quic| quic.rotation),
        quic_length: spec.quic.map_or(0, |quic| quic.server_id_length),
        linger_ticks: (node.ticks)(super::census::LINGER),
        affinity_mask,
        tunnel_port: spec.tunnel.port.to_be(),
        flows_per_second: spec.new_flows_per_core,
        client_option: spec.client_option,
        ..ServiceRecord::default()
    };
    record.set_idle((node.ticks)(spec.idle_timeout));
    record
}

/// Whether the service's backends are asked for connections that nothing is known of. There are none in datagrams.
const fn asks(spec: &ServiceSpec) -> bool {
    let is_tunnel = spec.forward.is_tunnel();
    is_tunnel && matches!(spec.tunnel.decap, Decap::Ebb) && !spec.is_datagram()
}

/// Flag and mask of what chooses a flow's slot.
fn affinity(spec: &ServiceSpec) -> (u32, Addr) {
    // An IPv4 address stands in the last 32 of 128 bits.
    let before = if spec.listen.address.is_ipv4() { 96 } else { 0 };
    match spec.affinity {
        Affinity::Flow => (0, Addr::prefix_mask(128)),
        Affinity::Client { prefix } => (
            service_flags::AFFINITY_CLIENT,
            Addr::prefix_mask((before + prefix).min(128)),
        ),
    }
}

fn backend_record(
    service: &Service,
    id: u32,
    backend: &Backend,
    observed: &Observed,
    now_ms: u64,
) -> BackendRecord {
    let hop = observed.hop(&backend.spec.address);
    let address = Addr::from(backend.spec.address.ip());
    let vip = Addr::from(service.spec.listen.address);
    let mut flags = backend_flags::VALID;
    let mut cut = 0;
    if service.current.iter().any(|share| share.backend == id) {
        flags |= backend_flags::ACCEPTING;
    }
    if backend.admin.is_ended() {
        flags |= backend_flags::ENDED;
    }
    if let Admin::Draining(drain) = &backend.admin
        && drain.cutting.is_some()
    {
        cut = drain.cut(now_ms);
        flags |= match (drain.on_deadline, service.spec.listen.protocol) {
            (OnDeadline::Reset, Protocol::Tcp) => backend_flags::CUT_RESET,
            // Nobody can be told that his datagrams go nowhere. They go to another backend at once.
            (OnDeadline::Reset, Protocol::Udp) => backend_flags::ENDED,
            (OnDeadline::Drop, _) => backend_flags::CUT_DROP,
            (OnDeadline::Leave, _) => 0,
        };
    }
    let flags = death::flags(flags, service, observed, id, backend);
    if flags & backend_flags::DEAD != 0 {
        cut = u32::MAX;
    }
    let mut record = BackendRecord {
        address,
        port: backend.spec.address.port().to_be(),
        flags,
        cut,
        to_backend: address_delta(&vip, &address),
        to_client: address_delta(&address, &vip),
        service: service.id,
        ..BackendRecord::default()
    };
    if let Some(hop) = hop {
        record.flags |= backend_flags::NEXT_HOP;
        record.ethernet[..6].copy_from_slice(&hop.destination_mac);
        record.ethernet[6..].copy_from_slice(&hop.source_mac);
        record.ifindex = hop.ifindex;
        record.mtu = hop.mtu;
        record.set_room(mode_of(service.spec.forward));
        if service.spec.forward.is_tunnel() {
            set_tunnel(&mut record, service, backend, hop);
        }
        if service.spec.forward == Forward::FullNat {
            set_own(&mut record, hop);
        }
        if hop.vlan != 0 {
            record.flags |= backend_flags::TAGGED;
            record.vlan = hop.vlan;
        }
    }
    record
}

/// The way of forwarding as programs name it.
const fn mode_of(forward: Forward) -> u8 {
    match forward {
        Forward::L2 => mode::L2,
        Forward::Nat => mode::NAT,
        Forward::FullNat => mode::FULL_NAT,
        Forward::Ipip => mode::IPIP,
        Forward::Gue => mode::GUE,
    }
}

/// The outer header's part. A backend without a source address can not be sent to.
fn set_tunnel(record: &mut BackendRecord, service: &Service, backend: &Backend, hop: &Hop) {
    let tunnel = &service.spec.tunnel;
    let chosen = tunnel.source_for(backend.spec.address.ip());
    let Some(source) = chosen.or(hop.source) else {
        record.flags &= !backend_flags::NEXT_HOP;
        return;
    };
    record.tunnel_source = source.into();
    record.tunnel_sum = fixed_sum(&record.tunnel_source, &record.address, tunnel.port.to_be());
}

/// Where ports for `full-nat` come from, by the configuration: for IPv4, for IPv6.
pub fn sources(spec: &Spec) -> [Sources; 2] {
    [true, false].map(|is_v4| {
        let nat = &spec.nat;
        let own: Vec<Addr> = nat
            .addresses
            .iter()
            .filter(|address| address.is_ipv4() == is_v4)
            .map(|address| (*address).into())
            .collect();
        let mut sources = Sources {
            range: Sources::range(nat.ports.first, nat.ports.last, own.len()),
            ..Sources::default()
        };
        for (place, address) in sources.addresses.iter_mut().zip(own) {
            *place = address;
        }
        sources
    })
}

/// The node's own address towards a `full-nat` backend, which is seen there when none is listed.
fn set_own(record: &mut BackendRecord, hop: &Hop) {
    match hop.source {
        Some(source) => record.tunnel_source = source.into(),
        None => record.flags &= !backend_flags::NEXT_HOP,
    }
}

/// The node's [`control_flags`], by its configuration.
pub fn node_flags(spec: &Spec) -> u32 {
    let fragments = match spec.fragments_out_of_order {
        OutOfOrder::Pass => 0,
        OutOfOrder::Drop => control_flags::DROP_EARLY_FRAGMENTS,
    };
    let asking = if spec.services.values().any(asks) {
        control_flags::ASKS
    } else {
        0
    };
    fragments | asking
}

/// The index: every service, every address of one, and every source that a backend answers the node from until the backend is
/// removed.
fn index(state: &State) -> Vec<IndexEntry> {
    let mut entries = Entries::default();
    for service in state.services.values() {
        entries.add_address(state, service);
    }
    let mut services: Vec<&Service> = state.services.values().map(|found| &**found).collect();
    // On an address with several ranges the narrowest comes first.
    services.sort_by_key(|service| {
        let ports = service.spec.listen.ports();
        (ports.last - ports.first, ports.first, service.id)
    });
    for service in services {
        let vip = &service.spec.listen;
        let several = vip.is_several();
        let kind = if several { kind::RANGE } else { kind::SERVICE };
        entries.add(service, SocketAddr::new(vip.address, vip.port), kind, 0);
        entries.add_servers(service);
        if !service.spec.forward.sees_answers() {
            continue;
        }
        let kind = if several {
            kind::REPLY_RANGE
        } else {
            kind::REPLY
        };
        for (id, backend) in service.live_backends() {
            entries.add(service, backend.spec.address, kind, id);
        }
    }
    entries.by_key.into_values().collect()
}

/// Entries of the index, and how many ranges each address has.
#[derive(Default)]
struct Entries {
    by_key: BTreeMap<([u8; 16], u64), IndexEntry>,
    ranges: BTreeMap<(IpAddr, u8, u8), u32>,
}

impl Entries {
    /// The service's address, whatever the port.
    fn add_address(&mut self, state: &State, service: &Service) {
        let address = service.spec.listen.address;
        let entry = IndexEntry {
            address: address.into(),
            selector: selector(0, 0, kind::VIP),
            service: service.id,
            backend: 0,
        };
        // Of several services at one address, one that wants echo requests answered.
        let place = self
            .by_key
            .entry((entry.address.bytes(), entry.selector))
            .or_insert(entry);
        if service.spec.icmp_echo && !answers_echo(state, place.service) {
            *place = entry;
        }
    }

    fn add(&mut self, service: &Service, at: SocketAddr, kind: u8, backend: u32) {
        let protocol = service.spec.listen.protocol.number();
        let port = if matches!(kind, kind::RANGE | kind::REPLY_RANGE) {
            let count = self.ranges.entry((at.ip(), protocol, kind)).or_default();
            let number = *count as u16;
            // Past the end nobody looks; the configuration and `add` refuse as many.
            *count += 1;
            number
        } else {
            at.port().to_be()
        };
        let entry = IndexEntry {
            address: at.ip().into(),
            selector: selector(port, protocol, kind),
            service: service.id,
            backend,
        };
        // Two live backends never share an address; a later id would be the newer one.
        self.insert(entry);
    }

    /// The names that a QUIC service's backends go by.
    fn add_servers(&mut self, service: &Service) {
        let Some(quic) = &service.spec.quic else {
            return;
        };
        for (id, backend) in service.live_backends() {
            let (address, selector) = server_key(service.id, quic.server_id(&backend.spec));
            self.insert(IndexEntry {
                address,
                selector,
                service: service.id,
                backend: id,
            });
        }
    }

    fn insert(&mut self, entry: IndexEntry) {
        let key = (entry.address.bytes(), entry.selector);
        self.by_key.insert(key, entry);
    }
}

fn answers_echo(state: &State, id: u32) -> bool {
    let mut services = state.services.values();
    services.any(|service| service.id == id && service.spec.icmp_echo)
}

//! What the fuzzed node serves: the table of services, their backends, and what the data plane can do by now.
//!
//! A new forwarding mode, protocol or family is a row here, an arm in [`super::oracle::forward`] and, for packets that
//! nothing makes yet, a shape in [`super::shapes`].

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, Slot, backend_flags, mode, service_flags},
    entry::FlowKey,
    full_nat::OPTION_KIND,
    steer,
};
use lb_userspace::{
    datapath::Datapath as _,
    model::spec::{Capacity, ClientAction, ClientRules, Prefix},
};

use super::{
    case::Ports,
    given::Given,
    numbered::Numbered,
    quote::Quote,
    sums::{TCP, UDP},
    view::{Family, Fragment, View},
};
use crate::rig::{INGRESS, Rig, ServiceSetup};

/// A service of the fuzzed node.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// In reports.
    pub name: &'static str,
    /// Where it listens.
    pub vip: &'static str,
    /// A [`mode`].
    pub mode: u8,
    /// [`service_flags`].
    pub flags: u32,
    /// Family of the backends, where it is not the service's: outside a tunnel.
    pub family: Option<Family>,
    /// Most flows that begin in a second; 0 for no limit.
    pub flows_per_second: u32,
    /// Kind of the TCP option that names the client; 0 for none.
    pub client_option: u8,
}

const fn tcp(name: &'static str, vip: &'static str, mode: u8, flags: u32) -> Row {
    Row {
        name,
        vip,
        mode,
        flags,
        family: None,
        flows_per_second: 0,
        client_option: 0,
    }
}

const fn udp(name: &'static str, vip: &'static str, mode: u8) -> Row {
    tcp(
        name,
        vip,
        mode,
        service_flags::DATAGRAM | service_flags::TRACK_ALL,
    )
}

/// A QUIC service whose backends go by [`Backend::server_id`].
const fn quic(name: &'static str, vip: &'static str, mode: u8) -> Row {
    let udp = udp(name, vip, mode);
    Row {
        flags: udp.flags | service_flags::QUIC,
        ..udp
    }
}

const fn tunnel(name: &'static str, vip: &'static str, mode: u8, outer: Family) -> Row {
    Row {
        family: Some(outer),
        ..tcp(name, vip, mode, 0)
    }
}

/// A service whose backends are asked for connections.
const fn asking(row: Row) -> Row {
    Row {
        flags: row.flags | service_flags::ASKS,
        ..row
    }
}

impl Row {
    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        if self.flags & service_flags::DATAGRAM == 0 {
            TCP
        } else {
            UDP
        }
    }
}

/// Bytes of the server ids of QUIC services.
pub const SERVER_ID_BYTES: usize = 2;
/// First octet of connection ids that name a backend, without its lower five bits.
pub const ROTATION: u8 = 3;

/// The services. Ids count from 1 in this order.
pub const ROWS: &[Row] = &[
    tcp("nat v4", "203.0.113.10:80", mode::NAT, service_flags::ECHO),
    tcp(
        "nat v6",
        "[2001:db8:f::10]:80",
        mode::NAT,
        service_flags::ECHO,
    ),
    tcp("l2 v4", "203.0.113.11:443", mode::L2, 0),
    tcp("l2 v6", "[2001:db8:f::11]:443", mode::L2, 0),
    tcp(
        "nat v4 full",
        "203.0.113.10:8081",
        mode::NAT,
        service_flags::TRACK_ALL,
    ),
    tcp(
        "l2 v6 by client",
        "[2001:db8:f::10]:65535",
        mode::L2,
        service_flags::AFFINITY_CLIENT,
    ),
    udp("nat v4 udp", "203.0.113.10:53", mode::NAT),
    udp("nat v6 udp", "[2001:db8:f::10]:53", mode::NAT),
    udp("l2 v4 udp", "203.0.113.11:443", mode::L2),
    tunnel("ipip v4 in v4", "203.0.113.12:80", mode::IPIP, Family::V4),
    tunnel("ipip v4 in v6", "203.0.113.12:81", mode::IPIP, Family::V6),
    tunnel(
        "ipip v6 in v4",
        "[2001:db8:f::12]:80",
        mode::IPIP,
        Family::V4,
    ),
    tunnel("gue v4 in v4", "203.0.113.12:82", mode::GUE, Family::V4),
    tunnel("gue v6 in v6", "[2001:db8:f::12]:82", mode::GUE, Family::V6),
    tunnel("gue v4 in v6", "203.0.113.12:83", mode::GUE, Family::V6),
    Row {
        family: Some(Family::V6),
        ..udp("gue v6 in v6 udp", "[2001:db8:f::12]:53", mode::GUE)
    },
    asking(tunnel(
        "ipip v4 in v4 asking",
        "203.0.113.12:84",
        mode::IPIP,
        Family::V4,
    )),
    asking(tunnel(
        "gue v6 in v6 asking",
        "[2001:db8:f::12]:84",
        mode::GUE,
        Family::V6,
    )),
    quic("nat v4 quic", "203.0.113.10:443", mode::NAT),
    quic("l2 v6 quic", "[2001:db8:f::11]:443", mode::L2),
    quic("nat v6 quic", "[2001:db8:f::10]:443", mode::NAT),
    Row {
        flows_per_second: 5,
        ..tcp("l2 v4 limited", "203.0.113.13:80", mode::L2, 0)
    },
    tcp("full-nat v4", "203.0.113.14:80", mode::FULL_NAT, 0),
    Row {
        client_option: OPTION_KIND,
        ..tcp("full-nat v4 option", "203.0.113.14:81", mode::FULL_NAT, 0)
    },
    Row {
        client_option: OPTION_KIND,
        ..tcp(
            "full-nat v6 option",
            "[2001:db8:f::14]:81",
            mode::FULL_NAT,
            0,
        )
    },
    udp("full-nat v4 udp", "203.0.113.14:53", mode::FULL_NAT),
    udp("full-nat v6 udp", "[2001:db8:f::14]:53", mode::FULL_NAT),
];

/// Clients that are denied, by family.
pub const DENIED: [&str; 2] = ["192.0.2.9", "2001:db8:1::9"];

/// Whether a client is denied.
pub fn is_denied(client: IpAddr) -> bool {
    DENIED.iter().any(|denied| denied.parse() == Ok(client))
}

/// What sound packets the data plane looks at at all. The others must pass untouched.
fn is_taken(view: &View) -> bool {
    /// As the program's parser has them.
    const TAGS_MAX: usize = 2;
    const EXTENSIONS_MAX: usize = 6;
    const EXTENSIONS_BYTES: usize = 256;
    let extensions = view.transport - view.network - view.header;
    view.tags <= TAGS_MAX
        && !view.rerouted
        && view.extensions <= EXTENSIONS_MAX
        && extensions <= EXTENSIONS_BYTES
}

/// A backend's part in every service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Owner of flows that began before a change.
    Old,
    /// Owner of flows that begin now.
    New,
    /// Behind another interface than packets come in by.
    Elsewhere,
    /// Its link-layer address is not known.
    NoNextHop,
    /// Past its deadline, all flows reset.
    Reset,
    /// Past its deadline, half its flows dropped.
    Dropped,
    /// It is gone.
    Ended,
    /// It has died, all flows reset.
    Dead,
}

impl Role {
    /// Every role; a backend's id is that of its service times 8 plus its place in here, plus 1.
    const ALL: [Self; 8] = [
        Self::Old,
        Self::New,
        Self::Elsewhere,
        Self::NoNextHop,
        Self::Reset,
        Self::Dropped,
        Self::Ended,
        Self::Dead,
    ];

    /// Id of the backend with this part in a service.
    pub fn id(self, service: u32) -> u32 {
        service * 8 + self as u32 + 1
    }

    /// Makes a backend's record one of this part.
    fn apply(self, record: &mut BackendRecord) {
        match self {
            Self::Old | Self::New => {}
            Self::Elsewhere => record.ifindex = INGRESS + 1,
            Self::NoNextHop => record.flags &= !backend_flags::NEXT_HOP,
            Self::Reset => {
                record.flags |= backend_flags::CUT_RESET;
                record.cut = u32::MAX;
            }
            Self::Dropped => {
                record.flags |= backend_flags::CUT_DROP;
                record.cut = u32::MAX / 2;
            }
            Self::Ended => record.flags |= backend_flags::ENDED,
            Self::Dead => {
                record.flags |= backend_flags::CUT_RESET | backend_flags::DEAD;
                record.cut = u32::MAX;
            }
        }
    }
}

/// A backend.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    /// Its id.
    pub id: u32,
    /// Its service.
    pub service: u32,
    /// Its part.
    pub role: Role,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Backend {
    /// What it goes by in connection ids of a QUIC service.
    pub fn server_id(&self) -> u16 {
        0x5a00 | self.id as u16
    }
}

/// A service as it was set up.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its id.
    pub id: u32,
    /// Its row.
    pub row: Row,
    /// Where it listens.
    pub vip: SocketAddr,
    /// Its backends, in the order of [`Role::ALL`].
    pub backends: Vec<Backend>,
    record: ServiceRecord,
    slots: Vec<Slot>,
}

/// The address that the rig's namespace has itself, by family: packets to it are not forwarded.
pub const NODE: [&str; 2] = ["192.0.2.254", "2001:db8:1::fe"];
/// The only client whose link-layer address the kernel knows, by family.
pub const NEIGHBOUR: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
/// An address that there is no route to, by family.
pub const NOWHERE: [&str; 2] = ["198.51.100.9", "2001:db8:dead::9"];
/// MAC addresses of frames to [`NEIGHBOUR`]: destination, source.
pub const NEIGHBOUR_MACS: [u8; 12] = [2, 0, 0, 0, 0, 0xc1, 2, 0, 0, 0, 0, 1];

/// Everything that is set up.
#[derive(Debug, Clone)]
pub struct World {
    /// The services, in the order of [`ROWS`].
    pub services: Vec<Service>,
    /// Ports that flows of `full-nat` services were seen with in this case.
    pub given: RefCell<Given>,
    /// Identifications that packets in fragments were seen with on their way through such services.
    pub numbered: RefCell<Numbered>,
    /// Which ports such flows may have.
    pub ports: Cell<Ports>,
}

/// Whom a packet concerns.
#[derive(Debug, Clone, Copy)]
pub enum Concern<'a> {
    /// It is for a service.
    To(&'a Service),
    /// It is a backend's answer.
    From(&'a Service, &'a Backend),
    /// An echo request to a service's address, which this service answers for.
    Echo(&'a Service),
    /// An error about what a service sent.
    ErrorTo(&'a Service, Quote),
    /// An error about what was sent to a backend.
    ErrorFrom(&'a Service, Quote),
    /// A later fragment, which goes where its first one went.
    Later,
    /// To a service's address, but nothing of the service's; this service counts it.
    Address(&'a Service),
    /// Nobody.
    Nobody,
}

impl World {
    /// Loads the program of `object` and sets all up. Moves this thread into a network namespace of its own.
    ///
    /// # Errors
    /// Root is missing, or the kernel refuses something.
    pub fn new(object: &[u8]) -> Result<(Self, Rig)> {
        // Small tables: entries give way all the time, and emptying them before each case costs little.
        let mut rig = Rig::with_object(
            object,
            Capacity {
                services: ROWS.len() as u32 + 1,
                backends: (ROWS.len() as u32 + 2) * 8,
                slots: 8192,
                flows: 128,
                handshakes: 64,
                ports: 1024,
            },
        )?;
        let services = (1..).zip(ROWS).map(|(id, row)| add(&mut rig, id, row));
        let services = services.collect::<Result<_>>()?;
        let deny = |text: &str| Some((host(text.parse().ok()?)?, ClientAction::Deny));
        let rules = DENIED.iter().filter_map(|text| deny(text)).collect();
        rig.datapath.publish_clients(&ClientRules(rules))?;
        Ok((Self::of(services), rig))
    }

    /// The same set up nowhere, for tests of the oracle.
    #[cfg(test)]
    pub fn imagined() -> Self {
        let services = (1..).zip(ROWS).map(|(id, row)| Service::planned(id, row));
        let services = services.collect::<Result<_>>();
        Self::of(services.expect("rows that can be read"))
    }

    fn of(services: Vec<Service>) -> Self {
        Self {
            services,
            given: RefCell::default(),
            numbered: RefCell::default(),
            ports: Cell::new(Ports::Free),
        }
    }

    /// The service with this id.
    pub fn service(&self, id: u32) -> Option<&Service> {
        self.services.get((id as usize).checked_sub(1)?)
    }

    /// The service that counts what is for its address alone: the first one with this address.
    pub fn owner(&self, address: IpAddr) -> Option<&Service> {
        self.services
            .iter()
            .find(|service| service.vip.ip() == address)
    }

    fn listening(&self, at: SocketAddr, protocol: u8) -> Option<&Service> {
        let fits = |service: &&Service| service.vip == at && service.row.protocol() == protocol;
        self.services.iter().find(fits)
    }

    /// The service that answers at this address go through, and its backend.
    fn answering(&self, at: SocketAddr, protocol: u8) -> Option<(&Service, &Backend)> {
        let two_way = |service: &&Service| {
            mode::is_two_way(service.row.mode) && service.row.protocol() == protocol
        };
        self.services.iter().filter(two_way).find_map(|service| {
            let backend = service
                .backends
                .iter()
                .find(|backend| backend.address == at)?;
            Some((service, backend))
        })
    }

    /// Whom a sound packet concerns.
    pub fn concern(&self, frame: &[u8], view: &View) -> Concern<'_> {
        if !is_taken(view) {
            return Concern::Nobody;
        }
        let owner = || {
            self.owner(view.to)
                .map_or(Concern::Nobody, Concern::Address)
        };
        let is_served = view.has_transport && matches!(view.protocol, TCP | UDP);
        match view.fragment {
            Fragment::Later => return Concern::Later,
            Fragment::First if !is_served => return owner(),
            _ if view.is_icmp() => return self.icmp_concern(frame, view),
            _ => {}
        }
        let (from, to) = (
            SocketAddr::new(view.from, view.from_port),
            SocketAddr::new(view.to, view.to_port),
        );
        if let Some(service) = self.listening(to, view.protocol) {
            return Concern::To(service);
        }
        match self.answering(from, view.protocol) {
            Some((service, backend)) => Concern::From(service, backend),
            None => Concern::Nobody,
        }
    }

    fn icmp_concern(&self, frame: &[u8], view: &View) -> Concern<'_> {
        let request = if view.family == Family::V4 { 8 } else { 128 };
        if frame[view.transport] == request {
            return self.owner(view.to).map_or(Concern::Nobody, Concern::Echo);
        }
        let Some(quote) = Quote::parse(frame, view).filter(|quote| quote.from.ip() == view.to)
        else {
            return Concern::Nobody;
        };
        if let Some(service) = self.listening(quote.from, quote.protocol) {
            return Concern::ErrorTo(service, quote);
        }
        match self.answering(quote.to, quote.protocol) {
            Some((service, _)) => Concern::ErrorFrom(service, quote),
            None => Concern::Nobody,
        }
    }
}

impl Concern<'_> {
    /// The service that it should be counted for, if that can be told.
    pub fn service(&self) -> u32 {
        match self {
            Self::To(service)
            | Self::From(service, _)
            | Self::Echo(service)
            | Self::ErrorTo(service, _)
            | Self::ErrorFrom(service, _)
            | Self::Address(service) => service.id,
            Self::Later | Self::Nobody => 0,
        }
    }
}

impl Service {
    /// A service as its row says, not set up anywhere.
    fn planned(id: u32, row: &Row) -> Result<Self> {
        let vip: SocketAddr = row.vip.parse()?;
        let backends = Role::ALL.map(|role| Backend {
            id: role.id(id),
            service: id,
            role,
            address: address(id, row, vip, role),
        });
        let slots = slots(id);
        Ok(Self {
            id,
            row: *row,
            vip,
            backends: backends.to_vec(),
            record: ServiceRecord {
                table: ServiceRecord::table_word(0, slots.len() as u32),
                flags: row.flags,
                affinity_mask: Addr::prefix_mask(128),
                ..ServiceRecord::default()
            },
            slots,
        })
    }

    /// Whether connection ids name its backends.
    pub fn is_quic(&self) -> bool {
        self.row.flags & service_flags::QUIC != 0
    }

    /// The backend with this id, if it is of this service.
    pub fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.id == id)
    }

    fn key(&self, client: SocketAddr) -> FlowKey {
        FlowKey {
            client: Addr::from(client.ip()),
            ports: FlowKey::pack(client.port().to_be(), self.vip.port().to_be(), self.id),
        }
    }

    /// The hash of a client's flow.
    pub fn hash(&self, client: SocketAddr) -> u64 {
        steer::flow_hash(&self.record, &self.key(client))
    }

    /// The slot of a client's flow.
    pub fn slot(&self, client: SocketAddr) -> Slot {
        let index = steer::slot_index(&self.record, &self.key(client), self.hash(client));
        self.slots[index as usize]
    }
}

/// The prefix with one address in it.
fn host(address: IpAddr) -> Option<Prefix> {
    Prefix::new(address, if address.is_ipv4() { 32 } else { 128 })
}

/// Sets a service up; from here on its record is the one that the program reads.
fn add(rig: &mut Rig, id: u32, row: &Row) -> Result<Service> {
    let mut service = Service::planned(id, row)?;
    let setup = ServiceSetup {
        id,
        vip: service.vip,
        mode: row.mode,
        flags: row.flags,
    };
    for backend in &service.backends {
        rig.backend_with(&setup, backend.id, backend.address, |record| {
            backend.role.apply(record);
        })?;
    }
    rig.service_with(setup, &service.slots, |record| {
        record.quic_length = SERVER_ID_BYTES as u8;
        record.quic_rotation = ROTATION;
        record.client_option = row.client_option;
    })?;
    if service.is_quic() {
        let names = service.backends.iter();
        let names: Vec<_> = names.map(|b| (b.server_id().into(), b.id)).collect();
        rig.server_ids(id, &names)?;
    }
    rig.limit_flows(0, id, row.flows_per_second)?;
    service.record = rig.datapath.service(id)?;
    Ok(service)
}

/// Addresses with all kinds of bytes in them, so that sums carry.
fn address(service: u32, row: &Row, vip: SocketAddr, role: Role) -> SocketAddr {
    let (high, low) = (service as u8, role as u8);
    let is_v4 = row
        .family
        .map_or(vip.is_ipv4(), |family| family == Family::V4);
    let ip: IpAddr = if is_v4 {
        [10, 0xff, high, 0xf0 | low].into()
    } else {
        let mut octets = [0xff; 16];
        (octets[0], octets[14], octets[15]) = (0xfd, high, low);
        octets.into()
    };
    let port = if mode::is_two_way(row.mode) {
        8080 + u16::from(low) * 9000
    } else {
        vip.port()
    };
    SocketAddr::new(ip, port)
}

/// A table with every kind of slot.
fn slots(service: u32) -> Vec<Slot> {
    /// A prime, as real tables have it.
    const SLOTS: usize = 101;
    use Role::{Dead, Dropped, Elsewhere, Ended, New, NoNextHop, Old, Reset};
    let id = |role: Option<Role>| role.map_or(0, |role| role.id(service));
    let slot = |current, base, exceptions| Slot::new(id(current), id(base), exceptions);
    let kinds = [
        slot(Some(Old), Some(Old), false),
        slot(Some(New), Some(Old), false),
        slot(Some(New), Some(New), true),
        slot(Some(Elsewhere), Some(Elsewhere), false),
        slot(None, Some(Old), false),
        slot(Some(NoNextHop), Some(NoNextHop), false),
        slot(Some(New), Some(Reset), false),
        slot(Some(New), Some(Dead), false),
        slot(Some(New), Some(Dropped), true),
        slot(Some(New), Some(Ended), false),
        slot(None, None, false),
    ];
    (0..SLOTS)
        .map(|number| kinds[number % kinds.len()])
        .collect()
}

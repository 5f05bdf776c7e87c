//! What the fuzzed node serves: the table of services, their backends, and what the data plane can do by now.
//!
//! A new forwarding mode, protocol or family is a row here, an arm in [`super::oracle::forward`] and, for packets that
//! nothing makes yet, a shape in [`super::shapes`].

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::{
    Addr,
    abi::{BackendRecord, ServiceRecord, Slot, backend_flags, mode, service_flags},
    entry::FlowKey,
    steer,
};
use lb_userspace::{datapath::Datapath as _, model::spec::Capacity};

use super::{
    sums::{TCP, UDP},
    view::{Fragment, View},
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
}

const fn tcp(name: &'static str, vip: &'static str, mode: u8, flags: u32) -> Row {
    Row {
        name,
        vip,
        mode,
        flags,
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

/// The services. Ids count from 1 in this order.
pub const ROWS: &[Row] = &[
    tcp("nat v4", "203.0.113.10:80", mode::NAT, 0),
    tcp("nat v6", "[2001:db8:f::10]:80", mode::NAT, 0),
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
];

/// What sound packets to a service the data plane takes up. The others must pass untouched.
pub fn is_taken(view: &View) -> bool {
    /// As the program's parser has them.
    const TAGS_MAX: usize = 2;
    const EXTENSIONS_MAX: usize = 6;
    const EXTENSIONS_BYTES: usize = 256;
    let extensions = view.transport - view.network - view.header;
    view.tags <= TAGS_MAX
        && view.fragment == Fragment::Whole
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
}

impl Role {
    /// Every role; a backend's id is that of its service times 8 plus its place in here, plus 1.
    const ALL: [Self; 7] = [
        Self::Old,
        Self::New,
        Self::Elsewhere,
        Self::NoNextHop,
        Self::Reset,
        Self::Dropped,
        Self::Ended,
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
}

/// Whom a packet concerns.
#[derive(Debug, Clone, Copy)]
pub enum Concern<'a> {
    /// It is for a service.
    To(&'a Service),
    /// It is a backend's answer.
    From(&'a Service, &'a Backend),
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
            },
        )?;
        let services = (1..).zip(ROWS).map(|(id, row)| add(&mut rig, id, row));
        let services = services.collect::<Result<_>>()?;
        Ok((Self { services }, rig))
    }

    /// The same set up nowhere, for tests of the oracle.
    #[cfg(test)]
    pub fn imagined() -> Self {
        let services = (1..).zip(ROWS).map(|(id, row)| Service::planned(id, row));
        Self {
            services: services
                .collect::<Result<_>>()
                .expect("rows that can be read"),
        }
    }

    /// The service with this id.
    pub fn service(&self, id: u32) -> Option<&Service> {
        self.services.get((id as usize).checked_sub(1)?)
    }

    /// Whom a sound packet concerns.
    pub fn concern(&self, view: &View) -> Concern<'_> {
        if !is_taken(view) {
            return Concern::Nobody;
        }
        let of_protocol = || {
            self.services
                .iter()
                .filter(|s| s.row.protocol() == view.protocol)
        };
        let to = SocketAddr::new(view.to, view.to_port);
        if let Some(service) = of_protocol().find(|service| service.vip == to) {
            return Concern::To(service);
        }
        let from = SocketAddr::new(view.from, view.from_port);
        for service in of_protocol().filter(|service| service.row.mode == mode::NAT) {
            if let Some(backend) = service.backends.iter().find(|b| b.address == from) {
                return Concern::From(service, backend);
            }
        }
        Concern::Nobody
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
            address: address(id, row.mode, vip, role),
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
    rig.service(setup, &service.slots)?;
    service.record = rig.datapath.service(id)?;
    Ok(service)
}

/// Addresses with all kinds of bytes in them, so that sums carry.
fn address(service: u32, forward: u8, vip: SocketAddr, role: Role) -> SocketAddr {
    let (high, low) = (service as u8, role as u8);
    let ip: IpAddr = if vip.is_ipv4() {
        [10, 0xff, high, 0xf0 | low].into()
    } else {
        let mut octets = [0xff; 16];
        (octets[0], octets[14], octets[15]) = (0xfd, high, low);
        octets.into()
    };
    let port = if forward == mode::NAT {
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
    use Role::{Dropped, Elsewhere, Ended, New, NoNextHop, Old, Reset};
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
        slot(Some(New), Some(Dropped), true),
        slot(Some(New), Some(Ended), false),
        slot(None, None, false),
    ];
    (0..SLOTS)
        .map(|number| kinds[number % kinds.len()])
        .collect()
}

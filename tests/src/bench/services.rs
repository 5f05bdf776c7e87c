//! ebb itself, loaded with the services and backends that are measured.

use std::{net::SocketAddr, path::Path, process::Command, rc::Rc};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use lb_common::{Addr, entry::FlowKey, steer::flow_hash};
use lb_common::{
    abi::{Slot, mode, service_flags},
    outcome::Outcome,
    steer::slot_index,
};
use lb_userspace::{
    datapath::{Datapath as _, Outcomes, Table, object},
    model::spec::Capacity,
};

use super::{
    Family, flows,
    frames::{CLIENT_NETWORKS, Frames},
    shared::{LARGE, TABLE_SLOTS},
};
use crate::rig::{INGRESS, Rig, ServiceSetup, at};

/// Backends of a service; the first half own the slots, the second half get them in a moved table.
pub const BACKENDS: u32 = 16;

/// Room for services: one more than there are.
const SERVICES: u32 = 19;

/// Entries of the flow table and of the handshake table: half full with the most flows.
pub const ENTRIES: u32 = 2 * LARGE;

/// How a service's slots stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Owners as they were; a flow needs no entry.
    Steady,
    /// Every slot has another owner for new flows.
    Moved,
    /// Owners as they were, but every flow is listed.
    Full,
    /// As `Steady`, for live frames: backends are behind the interface under test.
    Live,
}

/// One service of the bench.
pub struct Service {
    /// As the rig knows it.
    pub setup: ServiceSetup,
    /// Its slots.
    pub standing: Standing,
    /// Its family.
    pub family: Family,
    orders: Vec<Rc<Vec<u32>>>,
}

/// The loaded program.
pub struct Node {
    /// The rig.
    pub rig: Rig,
    /// Services.
    pub services: Vec<Service>,
    plain: Vec<Rc<Vec<u32>>>,
    /// Interface under test for live frames, and its far end.
    pub live_interfaces: (&'static str, &'static str),
}

const NEAR: &str = "lb0";
const FAR: &str = "gen0";

impl Node {
    /// Loads ebb's object, or the one in a file, and sets the services up.
    pub fn new(path: Option<&Path>) -> Result<Self> {
        let file = match path {
            Some(path) => {
                Some(std::fs::read(path).with_context(|| format!("reading {}", path.display()))?)
            }
            None => None,
        };
        let mut rig = Rig::with_object(
            file.as_deref().unwrap_or(object::XDP),
            Capacity {
                services: SERVICES,
                backends: SERVICES * BACKENDS,
                slots: 1 << 21,
                flows: ENTRIES,
                handshakes: ENTRIES,
                ports: 1024,
            },
        )?;
        for (network, gateway) in CLIENT_NETWORKS {
            ip(&format!("route add {network} via {gateway}"))?;
        }
        ip(&format!("link add {FAR} type veth peer name {NEAR}"))?;
        ip(&format!("link set {FAR} up"))?;
        ip(&format!("link set {NEAR} up"))?;
        rig.limit(u32::MAX, u32::MAX)?;
        let mut node = Self {
            rig,
            services: Vec::new(),
            plain: Vec::new(),
            live_interfaces: (NEAR, FAR),
        };
        for family in [Family::V4, Family::V6] {
            for mode in [mode::L2, mode::NAT] {
                for standing in [Standing::Steady, Standing::Moved, Standing::Full] {
                    node.add(family, mode, standing)?;
                }
            }
        }
        for mode in [mode::L2, mode::NAT] {
            node.add(Family::V4, mode, Standing::Live)?;
        }
        for family in [Family::V4, Family::V6] {
            for mode in [mode::IPIP, mode::GUE] {
                node.add(family, mode, Standing::Steady)?;
            }
        }
        Ok(node)
    }

    fn add(&mut self, family: Family, mode: u8, standing: Standing) -> Result<()> {
        let id = self.services.len() as u32 + 1;
        let ip = match family {
            Family::V4 => format!("203.0.113.{id}"),
            Family::V6 => format!("2001:db8:f::{id}"),
        };
        let flags = match standing {
            Standing::Full => service_flags::TRACK_ALL,
            _ => 0,
        };
        let setup = ServiceSetup {
            id,
            vip: at(&ip, 8000 + id as u16),
            mode,
            flags,
        };
        let ifindex = match standing {
            Standing::Live => nix::net::if_::if_nametoindex(NEAR)?,
            _ => INGRESS,
        };
        for number in 0..BACKENDS {
            let backend = Service::backend_id(id, number);
            let address = backend_address(&setup, backend);
            self.rig
                .backend_with(&setup, backend, address, |record| record.ifindex = ifindex)?;
        }
        let slots: Vec<Slot> = (0..TABLE_SLOTS)
            .map(|slot| slot_of(id, standing, slot))
            .collect();
        self.rig.service(setup, &slots)?;
        self.services.push(Service {
            setup,
            standing,
            family,
            orders: Vec::new(),
        });
        Ok(())
    }

    /// The service in this standing.
    pub fn service(&self, family: Family, mode: u8, standing: Standing) -> Result<usize> {
        self.services
            .iter()
            .position(|service| {
                (service.family, service.setup.mode, service.standing) == (family, mode, standing)
            })
            .context("no such service in the bench")
    }

    /// The order of flows for frames of this service, or of none.
    pub fn order(&mut self, service: Option<usize>, flows: u32) -> Result<Rc<Vec<u32>>> {
        let orders = match service {
            Some(number) => &self.services[number].orders,
            None => &self.plain,
        };
        if let Some(order) = orders.iter().find(|order| order.len() == flows as usize) {
            return Ok(Rc::clone(order));
        }
        let order = match service {
            Some(number) => {
                let service = &self.services[number];
                let record = self.rig.datapath.service(service.setup.id)?;
                flows::fitting((service.setup.id, &record), service.family, flows, ENTRIES)
            }
            None => flows::plain(flows),
        };
        let order = Rc::new(order);
        match service {
            Some(number) => self.services[number].orders.push(Rc::clone(&order)),
            None => self.plain.push(Rc::clone(&order)),
        }
        Ok(order)
    }

    /// Number of the flow at `position` in the order of a service's flows.
    pub fn flow_at(&self, service: usize, flows: u32, position: u32) -> Result<u32> {
        at_position(&self.services[service].orders, flows, position)
    }

    /// The same for frames that belong to no service.
    pub fn plain_at(&self, flows: u32, position: u32) -> Result<u32> {
        at_position(&self.plain, flows, position)
    }

    /// Empties both tables.
    pub fn clear(&mut self) -> Result<()> {
        self.rig.lose(Table::Flows)?;
        self.rig.lose(Table::Handshakes)
    }

    /// Outcomes of a service, or of packets that belong to none.
    pub fn outcomes(&self, service: Option<usize>) -> Result<Outcomes> {
        let id = service.map_or(0, |number| self.services[number].setup.id);
        Ok(self.rig.datapath.outcomes(id)?)
    }

    /// The balancer's program.
    pub fn program(&self) -> Result<&Xdp> {
        Ok(self.rig.datapath.program()?)
    }

    /// Where a flow of a service goes: a packet that opens nothing to the base, an opening to the current backend.
    pub fn backend_of(&self, service: usize, number: u32, opening: bool) -> Result<u32> {
        let service = &self.services[service];
        let record = self.rig.datapath.service(service.setup.id)?;
        let client = Frames::client(service.family, number);
        let key = FlowKey {
            client: Addr::from(client.ip()),
            ports: FlowKey::pack(client.port().to_be(), record.port, service.setup.id),
        };
        let index = slot_index(&record, &key, flow_hash(&record, &key));
        let slot = slot_of(service.setup.id, service.standing, index);
        Ok(if opening { slot.current() } else { slot.base() })
    }
}

impl Service {
    /// Id of its `number`-th backend, from 0.
    pub const fn backend_id(service: u32, number: u32) -> u32 {
        (service - 1) * BACKENDS + number + 1
    }

    /// Address of one of its backends.
    pub fn backend_address(&self, backend: u32) -> SocketAddr {
        backend_address(&self.setup, backend)
    }
}

fn at_position(orders: &[Rc<Vec<u32>>], flows: u32, position: u32) -> Result<u32> {
    orders
        .iter()
        .find(|order| order.len() == flows as usize)
        .and_then(|order| order.get(position as usize).copied())
        .with_context(|| format!("no flow at {position} of {flows}"))
}

fn backend_address(setup: &ServiceSetup, backend: u32) -> SocketAddr {
    let port = match setup.mode {
        mode::NAT => 9000 + backend as u16,
        _ => setup.vip.port(),
    };
    match setup.vip {
        SocketAddr::V4(_) => at(&format!("10.0.{}.{}", backend >> 8, backend & 255), port),
        SocketAddr::V6(_) => at(&format!("fd00::{backend:x}"), port),
    }
}

fn slot_of(id: u32, standing: Standing, index: u32) -> Slot {
    let half = BACKENDS / 2;
    let owner = index.wrapping_mul(0x9e37_79b1) % half;
    let base = Service::backend_id(id, owner);
    match standing {
        Standing::Moved => Slot::new(base + half, base, false),
        _ => Slot::new(base, base, false),
    }
}

/// Outcomes that went up, and by how much.
pub fn difference(before: &Outcomes, after: &Outcomes) -> Vec<(Outcome, u64)> {
    Outcome::ALL
        .iter()
        .map(|outcome| {
            let number = *outcome as usize;
            (*outcome, after[number] - before[number])
        })
        .filter(|(_, count)| *count != 0)
        .collect()
}

fn ip(command: &str) -> Result<()> {
    let status = Command::new("ip")
        .args(command.split(' '))
        .status()
        .context("running ip (iproute2)")?;
    ensure!(status.success(), "ip {command}: {status}");
    Ok(())
}

//! Ports of the node that flows of `full-nat` services have been seen with in this case, and where they are sought.

use std::{cell::UnsafeCell, collections::BTreeMap, net::SocketAddr, ptr::NonNull};

use lb_common::{
    Addr,
    full_nat::{self, PortEntry, PortTable, Sources},
};

use super::{
    oracle::Broken,
    world::{Backend, Service},
};
use crate::rig::tunnel_source;

/// Ports that such flows may have.
pub const PORTS: (u16, u16) = (1024, 2047);

/// Who has a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Service id.
    pub service: u32,
    /// Its client.
    pub client: SocketAddr,
    /// Whether the backend has sent something.
    pub answered: bool,
}

/// What the node shows towards backends: backend, protocol, address and port of the node.
type Shown = (SocketAddr, u8, SocketAddr);

/// Every port that was seen.
#[derive(Debug, Clone, Default)]
pub struct Given(BTreeMap<Shown, Owner>);

impl Given {
    /// Who has what the backend answers to.
    pub fn owner(&mut self, shown: Shown) -> Option<&mut Owner> {
        self.0.get_mut(&shown)
    }

    /// The node's end of a flow towards a backend.
    pub fn node(
        &self,
        service: u32,
        client: SocketAddr,
        backend: SocketAddr,
    ) -> Option<SocketAddr> {
        let is = |owner: &Owner| (owner.service, owner.client) == (service, client);
        let mut all = self.0.iter();
        let found = all.find(|((far, ..), owner)| *far == backend && is(owner));
        found.map(|((_, _, node), _)| *node)
    }

    /// Notes that a client's packet went out as from `node`; whether the backend had answered that flow.
    ///
    /// # Errors
    /// Another flow has that, or this one had another.
    pub fn note(
        &mut self,
        service: &Service,
        client: SocketAddr,
        backend: &Backend,
        node: SocketAddr,
    ) -> Result<bool, Broken> {
        let before = self.node(service.id, client, backend.address);
        if before.is_some_and(|before| before != node) {
            return Err(Broken(format!(
                "{client} was {before:?} to {}, and now is {node}",
                backend.address
            )));
        }
        let shown = (backend.address, service.row.protocol(), node);
        let owner = self.0.entry(shown).or_insert(Owner {
            service: service.id,
            client,
            answered: false,
        });
        if (owner.service, owner.client) != (service.id, client) {
            return Err(Broken(format!(
                "{node} to {} is {owner:?}'s, and now {client}'s too",
                backend.address
            )));
        }
        Ok(owner.answered)
    }
}

/// A table with room for one flow's candidates.
struct Empty([UnsafeCell<PortEntry>; 4]);

impl PortTable for Empty {
    fn mask(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    fn entry(&self, index: u32) -> Option<NonNull<PortEntry>> {
        NonNull::new(self.0.get(index as usize)?.get())
    }

    unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        // SAFETY: nobody else is at it.
        unsafe {
            let found = *word;
            if found == old {
                *word = new;
            }
            found
        }
    }
}

/// What the node shows to `backend` of this client, where no other flow has its port.
pub fn likely(service: &Service, client: SocketAddr, backend: &Backend) -> Option<SocketAddr> {
    let table = Empty(std::array::from_fn(|_| UnsafeCell::default()));
    let sources = Sources {
        range: Sources::range(PORTS.0, PORTS.1, 0),
        ..Sources::default()
    };
    let own = tunnel_source(backend.address.ip());
    let flow = full_nat::Flow {
        hash: service.hash(client),
        client: Addr::from(client.ip()),
        client_port: client.port().to_be(),
        service: service.id,
        backend: backend.id,
        backend_port: backend.address.port().to_be(),
        // Which place a port has does not matter here.
        far_end: full_nat::far_end(0, &own, 0, 0),
        own,
        idle_ticks: 1,
    };
    let entry = full_nat::claim(&table, &sources, &flow, 0, 1)?;
    // SAFETY: it lies in the table, and nobody else is at it.
    let port = unsafe { (*entry.as_ptr()).node_port };
    Some(SocketAddr::new(own.into(), u16::from_be(port)))
}

//! What the rules between services need to know, gathered also from services that have other errors.

use std::net::{IpAddr, SocketAddr};

use crate::model::spec::{Capacity, Forward, NatSpec, Ports, Protocol, TunnelSpec};

use super::super::file::{Located, Place};

/// Everything gathered.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Sizes of the maps, or the defaults where they are wrong.
    pub(super) capacity: Capacity,
    /// What services use for a tunnel unless they say otherwise.
    pub(super) tunnel: TunnelSpec,
    /// What backends of `full-nat` services see, and where the addresses are listed.
    pub(super) nat: Option<(NatSpec, Place)>,
    /// What the node says of echo requests, for services that say nothing.
    pub(super) icmp_echo: bool,
    /// The services in the order of the file.
    pub(super) services: Vec<ServiceFacts>,
}

/// Of one service.
#[derive(Debug)]
pub(super) struct ServiceFacts {
    pub(super) name: Located<String>,
    /// Where it listens, as far as an address and its (first) port could be read.
    pub(super) listen: Option<Located<SocketAddr>>,
    /// Its ports, when those could be read.
    pub(super) ports: Option<Ports>,
    /// Its protocol, when that could be read.
    pub(super) protocol: Option<Protocol>,
    /// How it forwards, when that could be read.
    pub(super) forward: Option<Forward>,
    /// Its backends in the order of the file.
    pub(super) backends: Vec<BackendFacts>,
}

/// Of one backend.
#[derive(Debug)]
pub(super) struct BackendFacts {
    pub(super) name: Located<String>,
    /// Its address, IPv4 where it is a mapped one, and the place of its text.
    pub(super) address: Option<Located<BackendAddress>>,
}

/// A backend's address; the ports are absent where they are the service's own and those could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BackendAddress {
    pub(super) ip: IpAddr,
    pub(super) ports: Option<Ports>,
}

impl ServiceFacts {
    /// The service's name in a message.
    pub(super) fn title(&self) -> &str {
        &self.name.value
    }

    /// Each backend whose address could be read.
    pub(super) fn addressed(&self) -> impl Iterator<Item = (&BackendFacts, BackendAddress, Place)> {
        self.backends.iter().filter_map(|backend| {
            backend
                .address
                .map(|address| (backend, address.value, address.place))
        })
    }
}

//! What is seen of the world and not remembered over a restart: health and next hops.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::VlanDevice;

use super::speech::Heard;

/// What health checks say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// The service has no checks.
    #[default]
    Unchecked,
    /// No verdict yet.
    Starting,
    /// It answers.
    Up,
    /// It was up before the daemon began; no verdict since.
    Presumed,
    /// It does not answer.
    Down,
}

impl Health {
    /// Whether new flows may go to it.
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Unchecked | Self::Up | Self::Presumed)
    }

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Starting => "starting",
            Self::Up | Self::Presumed => "up",
            Self::Down => "down",
        }
    }
}

/// A backend that does not answer its checks at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// When the last probe began that it answered, Unix milliseconds.
    pub since_ms: u64,
    /// Whether it has lasted past the liveness check's threshold.
    pub dead: bool,
}

/// Where frames to an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Interface that they leave by.
    pub ifindex: u32,
    /// MAC of that interface.
    pub source_mac: [u8; 6],
    /// MAC of the next hop.
    pub destination_mac: [u8; 6],
    /// Largest packet, in bytes from the IP header on.
    pub mtu: u16,
    /// Address that the kernel prefers as the node's own on that way.
    pub source: Option<IpAddr>,
    /// 802.1Q tag that they carry; 0 for none.
    pub vlan: u16,
}

/// VLAN devices by interface index.
pub type Vlans = BTreeMap<u32, VlanDevice>;

/// What is known of the way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Frames can be sent.
    Known(Hop),
    /// They can't, for this reason.
    Unknown(String),
}

/// All that is seen.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Health by backend id, and what the last probe said. Missing: [`Health::Unchecked`] or
    /// [`Health::Starting`], as the service has checks.
    pub health: BTreeMap<u32, (Health, Option<String>)>,
    /// What backends say for themselves, by backend id.
    pub heard: BTreeMap<u32, Heard>,
    /// Backends that may have died since they were last heard of, and are asked. They take no new flows meanwhile, while
    /// others do.
    pub suspects: BTreeSet<u32>,
    /// Backends that have fallen silent, by id.
    pub silence: BTreeMap<u32, Silence>,
    /// Ways by backend address.
    pub ways: BTreeMap<IpAddr, Way>,
    /// The node's VLAN devices; `None` when they are not known yet.
    pub vlans: Option<Vlans>,
}

impl Observed {
    /// The health of a backend of a service that has checks or has none.
    pub fn health(&self, backend: u32, checked: bool) -> Health {
        match self.health.get(&backend) {
            _ if !checked => Health::Unchecked,
            Some((health, _)) => *health,
            None => Health::Starting,
        }
    }

    /// The hop to an address, when known.
    pub fn hop(&self, address: &SocketAddr) -> Option<&Hop> {
        match self.ways.get(&address.ip()) {
            Some(Way::Known(hop)) => Some(hop),
            _ => None,
        }
    }
}

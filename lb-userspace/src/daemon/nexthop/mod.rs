//! Next hops of backends, taken from the kernel's own routes and neighbours and kept current.
//!
//! ```text
//!   kernel ──notifications──> monitor ──changes──> table (pure) ──> Resolution, when it differs from the last
//!     ^                                              │
//!     └── route lookups, dumps, "resolve this" <─────┘  neighbours without a fresh answer
//! ```
//!
//! | file | what |
//! |---|---|
//! | `table.rs` | pure: links, neighbours and looked-up routes -> [`Resolution`] |
//! | `attempts.rs` | pure: when the kernel is asked (again) to resolve a neighbour |
//! | `decode.rs` | netlink messages -> what the table holds |
//! | `monitor.rs` | the socket with the notifications; loss is a change of its own |
//! | `kernel.rs` | requests: lookups, dumps, neighbour probes |
//! | `path_mtu.rs` | errors of routers about packets in tunnels; what they teach is part of the table |
//! | `actor.rs` | the task that joins them |
//!
//! No address is resolved by hand: the kernel sends every ARP request and neighbour solicitation. A path with several
//! next hops (ECMP) resolves to the one the kernel names for a packet from this node; rules on source addresses and
//! marks are seen as for such a packet.
//!
//! Traffic that XDP forwards does not count as use of a neighbour, so the kernel would let its entry grow stale and
//! collect it. A watched neighbour that grows stale is therefore confirmed, and one that is collected keeps its last
//! MAC address until the kernel has a new answer. The kernel's own limits hold: `net.ipv4.neigh.default.gc_thresh3`
//! (1024 unless changed) bounds the neighbours of a node, and with them the backends on its own links.

use std::{collections::BTreeSet, fmt, io, net::IpAddr};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

mod actor;
mod attempts;
mod decode;
mod kernel;
#[cfg(test)]
mod live_tests;
mod monitor;
mod path_mtu;
mod table;

use crate::model::observed::Vlans;

/// Verifications that may wait; more are dropped, as each is only a hint.
const VERIFICATIONS_WAITING: usize = 256;

/// How a frame for a backend leaves this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Interface the frame leaves by.
    pub ifindex: u32,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the backend, or of the gateway towards it.
    pub destination_mac: [u8; 6],
    /// Largest IP packet, bytes: the interface's MTU, or the route's, or what a router on the way has
    /// said of a packet in a tunnel, where that is smaller.
    pub mtu: u32,
    /// Address that the kernel prefers as this node's own on that way.
    pub source: Option<IpAddr>,
    /// 802.1Q tag of the frame, where the route leads over a VLAN device: the frame then leaves by the interface below
    /// that device, with the device's MAC address. 0 for none.
    pub vlan: u16,
}

/// What is told of the node's interfaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Links {
    /// Counts changes: interfaces that came, went, or changed their address, state or MTU.
    pub changes: u64,
    /// VLAN devices.
    pub vlans: Vlans,
}

/// What the kernel knows of the way to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Frames can be sent.
    Resolved(NextHop),
    /// They cannot, for this reason.
    Unresolved(Reason),
}

/// Why there is no next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// No route, or one that refuses (blackhole, unreachable, prohibit).
    NoRoute,
    /// The route leads to this node itself.
    Local,
    /// The address is a broadcast or multicast address.
    NotUnicast,
    /// The route encapsulates (a lightweight tunnel); a MAC address alone would not do what it does.
    Encapsulated,
    /// The interface is gone, administratively down, or without carrier.
    LinkDown,
    /// The interface has no Ethernet framing.
    NotEthernet,
    /// The interface is a VLAN device, but one tag alone does not do what it does: it is on another VLAN device, of
    /// 802.1ad, or above an interface of another network namespace.
    StackedVlan,
    /// The kernel is resolving the neighbour and has not failed yet.
    Resolving,
    /// The neighbour (the address itself or its gateway) did not answer. The kernel is asked again and again.
    NoNeighbour,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route",
            Self::Local => "the address is this node's own",
            Self::NotUnicast => "not a unicast address",
            Self::Encapsulated => "the route encapsulates",
            Self::LinkDown => "the interface is down",
            Self::NotEthernet => "the interface is not Ethernet",
            Self::StackedVlan => {
                "the interface is a VLAN device that one 802.1Q tag does not stand for"
            }
            Self::Resolving => "being resolved",
            Self::NoNeighbour => "no answer to address resolution",
        })
    }
}

/// The resolver's handle. Its task ends when this is dropped, or when the receiver of its events is.
#[derive(Debug)]
pub struct Resolver {
    watched: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    verify: mpsc::Sender<IpAddr>,
    links: watch::Receiver<Links>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Opens the sockets, in the network namespace of the calling thread, and starts the task.
    ///
    /// `events` gets the first resolution of every watched address and then each change of it, in order. The task
    /// waits for a full channel; what happens in the kernel meanwhile is not lost.
    ///
    /// # Errors
    ///
    /// When a netlink socket cannot be opened or subscribed.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(events: mpsc::Sender<(IpAddr, Resolution)>) -> io::Result<Self> {
        let (watched, watched_receiver) = mpsc::unbounded_channel();
        let (verify, verify_receiver) = mpsc::channel(VERIFICATIONS_WAITING);
        let (changed, links) = watch::channel(Links::default());
        let actor = actor::Actor::open(watched_receiver, verify_receiver, events, changed)?;
        Ok(Self {
            watched,
            verify,
            links,
            task: tokio::spawn(actor.run()),
        })
    }

    /// Replaces the set of watched addresses.
    ///
    /// An address that leaves is forgotten without an event; one that comes (back) gets its resolution as an event.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        // The task outlives this handle's channel unless it has nobody left to tell.
        let _ = self.watched.send(addresses);
    }

    /// What is known of the interfaces, told anew with every change.
    pub fn links(&self) -> watch::Receiver<Links> {
        self.links.clone()
    }

    /// Asks the kernel to check the neighbour behind a watched address now, because its backend stopped answering.
    ///
    /// A NIC replaced without any announcement is found after some seconds this way, not only after the entry has
    /// grown old. Does nothing for an address that is not watched or not resolved.
    pub fn verify(&self, address: IpAddr) {
        // A full queue already holds plenty of hints; the caller's next failing probe brings this one again.
        let _ = self.verify.try_send(address);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

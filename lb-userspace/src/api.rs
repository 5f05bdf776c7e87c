//! What goes over the control socket: HTTP/1.1 with JSON bodies, these types. Times are Unix milliseconds, durations
//! seconds, unless a name says otherwise.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/drain` | [`DrainRequest`] | [`Drain`] once the drain is in effect |
//! | `POST /v1/drains` | [`DrainsRequest`]: several, all or none | [`Drain`]s once all are in effect |
//! | `GET /v1/drains?of=WHAT,..&wait_ms=N` | | [`Drain`]s, running ones first, as soon as all have ended or the time is up, with `&until=change` also when the terms or the state of one have changed; `WHAT`: a number, `SERVICE` or `SERVICE/BACKEND` |
//! | `GET /v1/drains/{id}?wait_ms=N` | | the same of one: a [`Drain`] |
//! | `POST /v1/undrain` | [`UndrainRequest`] | [`Done`] |
//! | `POST /v1/weight` | [`WeightRequest`]: of one backend or several, all or none | [`Done`] |
//! | `POST /v1/maintenance` | [`MaintenanceRequest`]: the same | [`Done`] |
//! | `POST /v1/activate` | [`Targets`]: the same | [`Done`] |
//! | `POST /v1/remove` | [`BackendRequest`] | [`Done`] |
//! | `POST /v1/add` | [`AddRequest`] | [`Done`] |
//! | `POST /v1/switch` | [`SwitchRequest`] | [`Done`] |
//! | `POST /v1/reload` | [`ReloadRequest`] | [`Reloaded`] |
//! | `GET /v1/flows?service=S&backend=B` | | [`Flow`]s |
//! | `GET /v1/clients` | | [`ClientPrefix`]es |
//! | `POST /v1/explain` | [`ExplainRequest`] | [`Explained`] |
//! | `POST /v1/trace` | [`TraceRequest`] | [`TraceLine`]s, one a line, until the client goes away |
//! | `POST /v1/stop` | [`StopRequest`] | [`Done`], then the daemon ends |
//! | `GET /v1/version` | | [`Version`] |
//!
//! A refusal is an HTTP status from 400 up with a [`Refusal`].

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

pub use crate::datapath::Attachment;
use crate::model::spec::{ClientAction, Prefix};
pub use admin::{MaintenanceRequest, Targets, WeightRequest};
pub use drains::{
    By, Drain, DrainFlows, DrainProgress, DrainRequest, DrainsRequest, Forecast, Receipt,
    UndrainRequest,
};
pub use trace::{TraceEnd, TraceLine, TracePacket, TraceRequest, TraceStatus};

mod admin;
mod drains;
mod trace;

/// The whole node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub node: NodeStatus,
    /// Its services, by name.
    pub services: Vec<ServiceStatus>,
}

/// The node itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    pub started_ms: u64,
    /// Configuration file.
    pub config: String,
    /// The XDP program.
    pub xdp: XdpStatus,
    /// What does not work as it should, for people.
    pub warnings: Vec<String>,
    /// What other nodes are told and heard of; absent where nothing is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<ShareStatus>,
}

/// What nodes with the same services tell each other of flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShareStatus {
    /// This node's address.
    pub listen: std::net::SocketAddr,
    /// The other nodes'.
    pub peers: Vec<std::net::SocketAddr>,
    /// Flows that the others were told of, each time counted.
    pub told: u64,
    /// Flows that they told of.
    pub heard: u64,
    /// Flows of those that were entered, because the tables here would have taken them elsewhere.
    pub entered: u64,
    /// Datagrams that were no message of a peer: forged, repeated or too old.
    pub refused: u64,
}

/// The XDP program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct XdpStatus {
    /// `native`, or `generic` when any interface is.
    pub mode: String,
    /// The kernel's id of the program; while a trace runs the interfaces run another one.
    #[serde(default)]
    pub program: Option<u32>,
    /// The trace that runs.
    #[serde(default)]
    pub trace: Option<TraceStatus>,
    /// Where it runs.
    pub interfaces: Vec<Attachment>,
    /// Packets of services that it handled (all outcomes).
    pub packets: u64,
    /// Packets that belong to no service, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Entries in use in the flow table.
    pub flow_entries: u64,
    /// Entries in use in the handshake table.
    pub handshake_entries: u64,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Name.
    pub name: String,
    /// `ADDRESS:PORT/PROTOCOL`.
    pub listen: String,
    /// Forwarding mode.
    pub forward: String,
    /// Slots of its table.
    pub slots: u32,
    /// Slots that the unfinished change has moved.
    pub slots_moved: u32,
    /// Slots with flows that are not their base's.
    pub slots_with_exceptions: u32,
    /// Whether a change has not settled yet.
    pub changing: bool,
    /// Its packets by outcome; zeroes left out.
    pub outcomes: BTreeMap<String, u64>,
    /// Pools, by name.
    pub pools: Vec<PoolStatus>,
    /// What does not work as it should, for people.
    pub warnings: Vec<String>,
}

/// A prefix of clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// The prefix.
    pub prefix: Prefix,
    /// `deny` or `allow`.
    pub action: ClientAction,
    /// Packets to services that it decided on, since the prefixes were loaded.
    pub packets: u64,
}

/// A pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Name.
    pub name: String,
    /// Version label.
    pub version: Option<String>,
    /// Whether it takes the new flows.
    pub active: bool,
    /// Backends, by name.
    pub backends: Vec<BackendStatus>,
}

/// A backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name.
    pub name: String,
    /// Address and port.
    pub address: SocketAddr,
    /// Id in the maps.
    pub id: u32,
    /// `active`, `draining`, `drained`, `maintenance`, `removed`.
    pub admin: String,
    /// `starting`, `up`, `down`, `unchecked`.
    pub health: String,
    /// Why it is down, or what the last probe said.
    pub health_reason: Option<String>,
    /// Whether new flows may go to it right now.
    pub accepting: bool,
    /// Its weight.
    pub weight: u32,
    /// The weight that it came with, while `weight` is set by hand; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_weight: Option<u32>,
    /// Flows it has, as far as known: listed ones, or opened minus closed, whichever is more.
    pub flows: u64,
    /// Flows listed in the flow table.
    pub flows_listed: u64,
    /// Packets to it.
    pub packets: u64,
    /// Bytes to it.
    pub bytes: u64,
    /// Flows opened on it.
    pub opened: u64,
    /// Flows of it that were seen to close.
    pub closed: u64,
    /// Packets from it, where ebb sees them.
    pub reply_packets: u64,
    /// Where its frames go: `INTERFACE MAC`, or why they can't.
    pub next_hop: String,
    /// The drain it is in, or was in last.
    pub drain: Option<Drain>,
    /// What it says for itself; absent before it has said something.
    #[serde(default)]
    pub says: Option<BackendSays>,
}

/// What a backend says for itself, in the answers to its checks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendSays {
    /// `drain`: it asks for one; `ready`: for nothing; absent before it has said either.
    pub asks: Option<String>,
    /// Why what it asks for is not done.
    pub refused: Option<String>,
    /// Times that it began to be refused, since the daemon's start.
    pub refusals: u64,
    /// Lines of its agent with words that mean nothing to ebb.
    pub not_understood: u64,
    /// The last such words.
    pub last_not_understood: Option<String>,
}

/// Names a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendRequest {
    /// `SERVICE/BACKEND`.
    pub backend: String,
    /// Even below `min_available`, or with flows left.
    #[serde(default)]
    pub force: bool,
}

/// Adds a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddRequest {
    /// `SERVICE/POOL/BACKEND`.
    pub backend: String,
    /// `ADDRESS:PORT`.
    pub address: SocketAddr,
    /// Weight; 1 when absent.
    pub weight: Option<u32>,
    /// A backend of this name at this address is left as it is, and no error.
    #[serde(default, skip_serializing_if = "drains::is_false")]
    pub if_absent: bool,
}

/// Sends new flows to another pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwitchRequest {
    /// Service.
    pub service: String,
    /// Pool.
    pub pool: String,
    /// Even when fewer than `min_available` of it are up.
    #[serde(default)]
    pub force: bool,
}

/// Reads the configuration file again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReloadRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Ends the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StopRequest {
    /// Take the program off its interfaces and forget all flows.
    #[serde(default)]
    pub detach: bool,
}

/// What a reload did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// Whether it was carried out.
    pub applied: bool,
    /// Steps, for people: `add backend web/blue/b4`, ...
    pub changes: Vec<String>,
}

/// A change that is in effect.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// What was done, for people.
    pub done: String,
}

/// A change that was not made, and nothing with it.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What failed and why.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A flow in the flow table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// Service.
    pub service: String,
    /// Backend.
    pub backend: String,
    /// Client.
    pub client: SocketAddr,
    /// Port of the service that it uses.
    pub service_port: u16,
    /// `established`, `closing`, `closed`.
    pub phase: String,
    /// Seconds since its first packet (since it was adopted, where that was missed).
    pub age_s: f64,
    /// Seconds since its last packet.
    pub idle_s: f64,
    /// Whether only this entry keeps it on its backend.
    pub exceptional: bool,
}

/// Asks where a client's packets go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Service.
    pub service: String,
    /// Client.
    pub from: SocketAddr,
    /// Port of the service, where it has several; the first when left out.
    #[serde(default)]
    pub port: Option<u16>,
    /// Of a QUIC service: the connection id of a packet, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid: Option<String>,
}

/// Where a client's packets go, answered by the loaded program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// Service.
    pub service: String,
    /// `tcp` or `udp`. Of `udp`, where no packet opens a flow, `opening` and `established` are the same.
    pub protocol: String,
    /// Client.
    pub from: SocketAddr,
    /// Its slot.
    pub slot: u32,
    /// Backend that takes new flows of the slot.
    pub current: Option<String>,
    /// Backend that owns its older flows.
    pub base: Option<String>,
    /// Backends that may have flows of the slot besides these two, because changes overlapped: the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formers: Vec<String>,
    /// A packet that opens a flow.
    pub opening: Answer,
    /// A packet of a flow that is open; of QUIC, one whose connection id names nobody.
    pub established: Answer,
    /// Of a QUIC service: a packet with the connection id that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Answer>,
    /// Whether it is a QUIC service.
    #[serde(default)]
    pub quic: bool,
}

/// One answer of the program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Outcome name ([`lb_common::outcome::Outcome::name`]).
    pub outcome: String,
    /// Backend.
    pub backend: Option<String>,
    /// The same in words.
    pub why: String,
}

/// Versions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Version {
    /// ebb.
    pub ebb: String,
    /// Map layout.
    pub map_layout: u32,
    /// Kernel release.
    pub kernel: String,
}

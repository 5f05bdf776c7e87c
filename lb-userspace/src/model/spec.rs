//! What the operator asked for: the validated form of the configuration file.
//!
//! Everything here is plain data. `config` makes it from a file, `model` turns it into tables, nothing in it
//! knows about files, sockets or maps.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::tunnel;
use serde::{Deserialize, Serialize};

/// A whole configuration, valid in itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Settings of this node, the same for all services.
    pub node: NodeSpec,
    /// What backends of `full-nat` services see in place of the client.
    #[serde(default)]
    pub nat: NatSpec,
    /// Services by name, in the order of their names.
    pub services: BTreeMap<String, ServiceSpec>,
    /// Which clients may use the services.
    #[serde(default)]
    pub clients: ClientRules,
    /// Most flows that a core lets begin in a second, over all services; 0 for no limit.
    #[serde(default)]
    pub new_flows_per_core: u32,
    /// What becomes of a later fragment to a service whose first one has not been seen.
    #[serde(default)]
    pub fragments_out_of_order: OutOfOrder,
}

/// What backends of `full-nat` services see in place of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSpec {
    /// Addresses of the node. Where there is none of a family, it is the one that the kernel prefers towards a backend.
    pub addresses: Vec<IpAddr>,
    /// Ports of each address.
    pub ports: Ports,
}

impl Default for NatSpec {
    /// Below the ports that Linux gives to the node's own connections (`net.ipv4.ip_local_port_range`).
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            ports: Ports {
                first: 1024,
                last: 32_767,
            },
        }
    }
}

/// What becomes of a later fragment to a service whose first one has not been seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutOfOrder {
    /// The kernel gets it, which does with it what its routes say.
    #[default]
    Pass,
    /// It is dropped.
    Drop,
}

/// Prefixes of clients; the longest that a client is in decides, and who is in none may come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRules(pub BTreeMap<Prefix, ClientAction>);

/// What clients of a prefix may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAction {
    /// Nothing: their packets to services are dropped.
    Deny,
    /// Use the services, although a shorter prefix denies it.
    Allow,
}

/// An address and how many of its bits count; the others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of that many bits that the address is in; `None` when there are more than it has.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.checked_sub(length.into())?);
                (v4.to_bits() & mask.unwrap_or(0)).to_be_bytes().into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.checked_sub(length.into())?);
                (v6.to_bits() & mask.unwrap_or(0)).to_be_bytes().into()
            }
        };
        Some(Self { address, length })
    }

    /// First address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An address alone is a prefix of all its bits.
impl std::str::FromStr for Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not an address or a prefix";
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| WRONG)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let length: u8 = match length {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| WRONG)?
            }
            Some(_) => return Err(WRONG),
            None => all,
        };
        let prefix = Self::new(address, length).ok_or("a prefix longer than the address")?;
        if prefix.address == address {
            Ok(prefix)
        } else {
            Err("a prefix with bits set behind its length")
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Settings of the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Names of the interfaces on which the XDP program runs; at least one, no name twice.
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// File with the secret seed of the flow hash (any bytes, at least 16); made at the first start when absent.
    pub hash_seed_file: PathBuf,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Other nodes that serve the same addresses, and are told of exceptional flows.
    #[serde(default)]
    pub share: Option<Share>,
}

/// How nodes that serve the same addresses tell each other of flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// This node's address.
    pub listen: SocketAddr,
    /// The other nodes' addresses; messages of nobody else are taken.
    pub peers: Vec<SocketAddr>,
}

/// How an XDP program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, else generic with a warning.
    Auto,
    /// Native or an error.
    Native,
    /// Generic (slow; works with every driver).
    Generic,
}

/// Sizes of the maps, fixed while the program is loaded. Memory is locked in the kernel whether used or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Services; 64 bytes each.
    pub services: u32,
    /// Backends over all services, removed ones counted until their id is free again; 64 bytes each.
    pub backends: u32,
    /// Slots over all services, 8 bytes each. A change needs room for the old and the new table of one service.
    pub slots: u32,
    /// Flow entries, a power of two, 64 bytes each.
    pub flows: u32,
    /// Handshake entries, a power of two, 64 bytes each.
    pub handshakes: u32,
    /// Ports given to flows of `full-nat` services at the same time, a power of two, 64 bytes each.
    #[serde(default = "ports_default")]
    pub ports: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: 1024,
            backends: 16_384,
            slots: 1 << 22,
            flows: 1 << 18,
            handshakes: 1 << 16,
            ports: ports_default(),
        }
    }
}

const fn ports_default() -> u32 {
    1 << 16
}

/// One virtual service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name, unique in the configuration: letters, digits, `-`, `_`, `.`; at most 63 characters.
    pub name: String,
    /// Where clients reach it.
    pub listen: Vip,
    /// QUIC's connection ids, when its datagrams are QUIC.
    #[serde(default)]
    pub quic: Option<QuicSpec>,
    /// How packets get to the backends.
    pub forward: Forward,
    /// The outer headers, where there are any.
    #[serde(default)]
    pub tunnel: TunnelSpec,
    /// Kind of the TCP option that names the client to backends (`full-nat`); 0 for none.
    #[serde(default)]
    pub client_option: u8,
    /// What of a packet chooses its slot.
    pub affinity: Affinity,
    /// Which flows are listed in the flow table.
    pub tracking: Tracking,
    /// A drain that would leave fewer active backends than this is refused unless forced.
    pub min_available: u32,
    /// What a drain does when nothing else is said.
    pub drain: DrainSpec,
    /// What becomes of a dead backend's flows.
    #[serde(default)]
    pub on_death: OnDeath,
    /// A flow not seen for this long has ended.
    #[serde(with = "millis")]
    pub idle_timeout: Duration,
    /// Most flows that a core lets begin in a second; 0 for no limit.
    #[serde(default)]
    pub new_flows_per_core: u32,
    /// Whether echo requests to its address are answered. Of several services at one address, one that says so is enough.
    #[serde(default = "yes")]
    pub icmp_echo: bool,
    /// Number of slots asked for; chosen from the number of backends when `None`.
    pub slots: Option<u32>,
    /// Health checks.
    pub health: HealthSpec,
    /// The pool whose backends take new flows.
    pub active_pool: String,
    /// Pools by name; at least one.
    pub pools: BTreeMap<String, PoolSpec>,
}

impl ServiceSpec {
    /// Whether its flows have neither an opening nor a closing packet: each of them has an entry in the flow table, begins
    /// when that is made and ends when it is not seen any more.
    pub const fn is_datagram(&self) -> bool {
        matches!(self.listen.protocol, Protocol::Udp)
    }
}

/// How QUIC connection ids name their server, in plain text (draft-ietf-quic-load-balancers-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuicSpec {
    /// Bytes of a server id: 1 to 8.
    pub server_id_length: u8,
    /// The upper three bits of a connection id's first octet: 0 to 6.
    pub rotation: u8,
}

impl QuicSpec {
    /// The server id of a backend: its own, or the last bytes of its address.
    pub fn server_id(&self, backend: &BackendSpec) -> u64 {
        let last = match backend.address.ip() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits() as u64,
        };
        let bits = 64 - 8 * u32::from(self.server_id_length.clamp(1, 8));
        backend.server_id.unwrap_or(last) & (u64::MAX >> bits)
    }
}

/// Address, port and protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vip {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port, or the first of several; host byte order, never 0.
    pub port: u16,
    /// The last of several ports; the same as `port` where there is one.
    pub last_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Vip {
    /// Its port or ports.
    pub const fn ports(&self) -> Ports {
        Ports {
            first: self.port,
            last: self.last_port,
        }
    }

    /// Whether it is more than one port. Such a service keeps the port that the client chose.
    pub const fn is_several(&self) -> bool {
        !self.ports().is_one()
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        write!(f, ":{}/{}", self.ports(), self.protocol.name())
    }
}

/// A port, or several in a row. Host byte order, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const EVERY: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// A single one.
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether it is a single one.
    pub const fn is_one(self) -> bool {
        self.first == self.last
    }

    /// Whether this is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether a port is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EVERY => write!(f, "*"),
            ports if ports.is_one() => write!(f, "{}", ports.first),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// Transport protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP (IANA 6).
    Tcp,
    /// UDP (IANA 17).
    Udp,
}

impl Protocol {
    /// Its IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// As it is written behind a port.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How a packet gets to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forward {
    /// Destination MAC rewritten; the backend owns the VIP and answers the client directly (DSR).
    L2,
    /// Destination address and port rewritten; the backend answers through the node, which rewrites the source back.
    Nat,
    /// Like `nat`, and the source becomes an address and a port of the node: the backend needs no route to clients.
    FullNat,
    /// In an outer IP header of the backend's family; the backend decapsulates and answers directly.
    Ipip,
    /// The same with a UDP header between them.
    Gue,
}

impl Forward {
    /// All of them, the usual one first.
    pub const ALL: [Self; 5] = [Self::Nat, Self::L2, Self::FullNat, Self::Ipip, Self::Gue];

    /// Whether a service of one address family can have backends of the other: only where the client's packet travels
    /// inside another one.
    #[must_use]
    pub const fn mixes_families(self) -> bool {
        match self {
            Self::L2 | Self::Nat | Self::FullNat => false,
            Self::Ipip | Self::Gue => true,
        }
    }

    /// Whether a backend can listen on another port than the service.
    #[must_use]
    pub const fn rewrites_port(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether answers come through the node, which tells by their source whose they are.
    #[must_use]
    pub const fn sees_answers(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether packets get an outer header.
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        self.mixes_families()
    }

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Nat => "nat",
            Self::FullNat => "full-nat",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }
}

/// Who takes a service's tunnels apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decap {
    /// Whoever understands them, such as the kernel's tunnel devices.
    #[default]
    Any,
    /// `ebb decap` on every backend: it can be asked whether a connection is there.
    Ebb,
}

/// What the outer headers of a service's tunnel hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelSpec {
    /// UDP port that the backends decapsulate at (`gue`), or are asked at whether a connection is there.
    pub port: u16,
    /// Who decapsulates.
    #[serde(default)]
    pub decap: Decap,
    /// Source address of outer IPv4 headers; what the kernel prefers when `None`.
    pub source_v4: Option<Ipv4Addr>,
    /// Source address of outer IPv6 headers; what the kernel prefers when `None`.
    pub source_v6: Option<Ipv6Addr>,
}

impl TunnelSpec {
    /// The source address asked for, of this address's family.
    #[must_use]
    pub fn source_for(&self, backend: IpAddr) -> Option<IpAddr> {
        match backend {
            IpAddr::V4(_) => self.source_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.source_v6.map(IpAddr::V6),
        }
    }
}

impl Default for TunnelSpec {
    fn default() -> Self {
        Self {
            port: tunnel::PORT_DEFAULT,
            decap: Decap::Any,
            source_v4: None,
            source_v6: None,
        }
    }
}

/// What of a packet chooses its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// The whole 5-tuple.
    Flow,
    /// The first bits of the client's address.
    Client {
        /// How many, counted in an address of the service's own family: at least 1, all of them for the address itself.
        prefix: u8,
    },
}

/// Which flows are listed in the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// Those in slots that a change has moved: where correctness needs them.
    Moved,
    /// All.
    Full,
}

/// What a drain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainSpec {
    /// Time from the command to the deadline.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// What happens to the flows left at the deadline.
    pub on_deadline: OnDeadline,
    /// Time over which flows are reset at the deadline, so that clients do not all reconnect at once.
    #[serde(with = "millis")]
    pub spread: Duration,
}

/// What happens to the flows left at a drain's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeadline {
    /// The client's next packet is answered with a RST.
    Reset,
    /// They go on, unlisted.
    Leave,
    /// Their packets are dropped.
    Drop,
}

/// What becomes of a dead backend's flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    /// The client's next packet is answered with a RST.
    #[default]
    Reset,
    /// Their packets go to a backend that takes new flows.
    Resteer,
    /// Their packets go on to it.
    Leave,
}

/// Health checks of a service's backends; each `None` is not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// Asked until its first success; a backend takes no new flows before.
    pub startup: Option<ProbeSpec>,
    /// Decides whether a backend takes new flows.
    pub readiness: Option<ProbeSpec>,
    /// Decides whether a backend is dead.
    pub liveness: Option<ProbeSpec>,
    /// Asks what the backend has to say for itself; always a [`ProbeKind::Agent`].
    #[serde(default)]
    pub agent: Option<ProbeSpec>,
}

impl HealthSpec {
    /// The check that decides whether a backend is up: readiness, without it liveness.
    pub const fn decider(&self) -> Option<&ProbeSpec> {
        match &self.readiness {
            Some(readiness) => Some(readiness),
            None => self.liveness.as_ref(),
        }
    }

    /// Whether its answers may ask for a drain. Those of the other checks are not heard: two could contradict each other.
    pub const fn decider_speaks(&self) -> bool {
        match self.decider() {
            Some(ProbeSpec {
                kind: ProbeKind::Http { drain, .. },
                ..
            }) => drain.header.is_some() || drain.body.is_some(),
            _ => false,
        }
    }
}

/// One health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// What is asked.
    pub kind: ProbeKind,
    /// Port, when it is not the backend's own.
    pub port: Option<u16>,
    /// Time between the starts of two probes.
    #[serde(with = "millis")]
    pub period: Duration,
    /// Time within which an answer counts.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Consecutive successes that make a backend up; at least 1.
    pub rise: u32,
    /// Consecutive failures that make it down; at least 1.
    pub fall: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// A TCP handshake completes.
    Tcp,
    /// `GET path` (HTTP/1.1) is answered with a status from 200 to 399.
    Http {
        /// Path with its query, beginning with `/`.
        path: String,
        /// `Host:` header; the backend's address when `None`.
        host: Option<String>,
        /// How an answer asks for a drain.
        #[serde(default)]
        drain: DrainSigns,
    },
    /// A connection on which the backend says a line of words ([`super::speech::line`]).
    Agent {
        /// What is sent first; nothing when empty.
        send: String,
    },
}

/// How an HTTP answer asks for a drain: by any of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrainSigns {
    /// It has this header.
    pub header: Option<HeaderSign>,
    /// The first bytes of its body contain this text.
    pub body: Option<String>,
}

/// A header that means something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderSign {
    /// Its name, in lower case.
    pub name: String,
    /// The value that means it, whatever its case; any value when `None`.
    pub value: Option<String>,
}

impl HeaderSign {
    /// Whether a header's value means it.
    pub fn means(&self, value: &[u8]) -> bool {
        let wanted = self.value.as_deref();
        wanted.is_none_or(|wanted| value.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

/// One version of a service: a named set of backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Version label, free text.
    pub version: Option<String>,
    /// Backends by name, unique over the whole service.
    pub backends: BTreeMap<String, BackendSpec>,
}

/// One backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Where it listens. In `l2` the port is the service's own. Of a service on several ports it is 0: the one that the
    /// client chose.
    pub address: SocketAddr,
    /// Its share relative to the other backends of its pool, 0 to 1000; 0 takes no new flows.
    pub weight: u32,
    /// Its server id in QUIC connection ids, when that is not the last bytes of its address.
    #[serde(default)]
    pub server_id: Option<u64>,
}

const fn yes() -> bool {
    true
}

/// Durations as whole milliseconds.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes whole milliseconds.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads whole milliseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

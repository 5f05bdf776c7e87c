//! The stream of a trace: JSON objects, one a line, until the client goes away or the daemon stops.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::spec::Prefix;

/// Which packets are to be shown, and how much of them. All that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// `SERVICE` or `SERVICE/BACKEND`.
    #[serde(default)]
    pub of: Option<String>,
    /// Source or destination lies in it.
    #[serde(default)]
    pub client: Option<Prefix>,
    /// Source or destination port.
    #[serde(default)]
    pub port: Option<u16>,
    /// `tcp`, `udp` or `icmp` (ICMPv6 too).
    #[serde(default)]
    pub protocol: Option<String>,
    /// Names of outcomes ([`lb_common::outcome::Outcome::name`]), or what the names of several begin with: `forward`,
    /// `answer`, `drop`, `reset`, `pass`. All when empty.
    #[serde(default)]
    pub outcomes: Vec<String>,
    /// Also packets that belong to no service.
    #[serde(default)]
    pub all: bool,
    /// Bytes wanted of each frame as it came.
    #[serde(default)]
    pub snap_in: u32,
    /// Bytes wanted of each frame as it left.
    #[serde(default)]
    pub snap_out: u32,
}

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TraceLine {
    /// A packet.
    Packet(Box<TracePacket>),
    /// Records that found no room, as the client reads too slowly or there are too many.
    Lost {
        /// How many since the trace began.
        lost: u64,
    },
}

/// One end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEnd {
    /// Address.
    pub address: IpAddr,
    /// Port; none in ICMP and in later fragments.
    pub port: Option<u16>,
}

/// What became of one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePacket {
    /// When it came: UTC, RFC 3339 with nanoseconds.
    pub time: String,
    /// Nanoseconds from then until its verdict. (Most of it is the trace's own doing.)
    pub took_ns: u64,
    /// Interface that it came by.
    pub interface: String,
    /// Interface that it was sent out by.
    pub exit: Option<String>,
    /// Where it came from; none where it is no IP packet that can be read.
    pub source: Option<TraceEnd>,
    /// Where it was going to.
    pub destination: Option<TraceEnd>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
    pub protocol: Option<String>,
    /// TCP flags as tcpdump writes them (`S`, `.`, `P.`), or type and code of ICMP (`8/0`).
    pub flags: Option<String>,
    /// It is a fragment.
    pub fragment: bool,
    /// Service.
    pub service: Option<String>,
    /// Backend.
    pub backend: Option<String>,
    /// Outcome name.
    pub outcome: String,
    /// `drop`, `pass`, `tx` or `redirect`.
    pub verdict: String,
    /// Length of the frame as it came.
    pub length: u32,
    /// Length of the frame as it left.
    pub length_out: Option<u32>,
    /// The frame as it came, base64; where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_in: Option<String>,
    /// The frame as it left, base64; where it was asked for and the packet was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_out: Option<String>,
}

/// A trace that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStatus {
    /// Who asked for it: `pid 123 of user 0`.
    pub by: String,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

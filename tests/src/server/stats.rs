//! What a server knows about the connections it accepted.

use std::{collections::VecDeque, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::clock;

/// Records kept; the oldest are forgotten (and counted) beyond.
const RECORDS_MAX: usize = 1 << 18;

/// What a connection was used for, from its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No request yet.
    Unused,
    /// Client traffic.
    Data,
    /// A health check.
    Health,
    /// `/stats` and `/control`.
    Stats,
}

/// One accepted connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    /// Counts up from 0; the `X-Connection` header.
    pub id: u64,
    /// The client as the server sees it.
    pub peer: SocketAddr,
    /// The server's own address on this connection.
    pub local: Option<SocketAddr>,
    /// When `accept` returned it, ns of `CLOCK_MONOTONIC`.
    pub accepted_ns: u64,
    /// When it ended, ns of `CLOCK_MONOTONIC`.
    pub closed_ns: Option<u64>,
    /// What it was used for.
    pub kind: Kind,
    /// Requests and echo frames answered.
    pub requests: u32,
}

/// The answer to `GET /stats`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stats {
    /// The server's name.
    pub name: String,
    /// When this was taken, ns of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Connections accepted since the start, of every kind.
    pub accepted: u64,
    /// Connections open now, of every kind.
    pub open: u64,
    /// Requests and echo frames answered.
    pub requests: u64,
    /// Frames from clients with a wrong byte or out of order.
    pub corrupt: u64,
    /// Connections no longer listed in `connections`.
    pub forgotten: u64,
    /// The connections, oldest first.
    pub connections: Vec<Connection>,
}

impl Stats {
    /// Connections of client traffic (or not yet used) from `peers`: neither health checks nor statistics.
    pub fn from_clients<'a>(
        &'a self,
        peers: &'a [std::net::IpAddr],
    ) -> impl Iterator<Item = &'a Connection> {
        self.connections
            .iter()
            .filter(|c| matches!(c.kind, Kind::Data | Kind::Unused) && peers.contains(&c.peer.ip()))
    }
}

/// The server's records.
#[derive(Debug, Default)]
pub(crate) struct Book {
    records: VecDeque<Connection>,
    first: u64,
    open: u64,
    requests: u64,
    corrupt: u64,
}

impl Book {
    pub(crate) fn opened(&mut self, peer: SocketAddr, local: Option<SocketAddr>) -> u64 {
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
            self.first += 1;
        }
        let id = self.first + self.records.len() as u64;
        let accepted_ns = clock::now_ns();
        self.open += 1;
        self.records.push_back(Connection {
            id,
            peer,
            local,
            accepted_ns,
            closed_ns: None,
            kind: Kind::Unused,
            requests: 0,
        });
        id
    }

    pub(crate) fn request(&mut self, id: u64, kind: Kind) {
        self.requests += 1;
        if let Some(record) = self.record(id) {
            record.requests = record.requests.saturating_add(1);
            if record.kind == Kind::Unused {
                record.kind = kind;
            }
        }
    }

    pub(crate) fn corrupt(&mut self) {
        self.corrupt += 1;
    }

    pub(crate) fn closed(&mut self, id: u64) {
        self.open -= 1;
        if let Some(record) = self.record(id) {
            record.closed_ns = Some(clock::now_ns());
        }
    }

    pub(crate) fn stats(&self, name: &str) -> Stats {
        Stats {
            name: name.to_owned(),
            now_ns: clock::now_ns(),
            accepted: self.first + self.records.len() as u64,
            open: self.open,
            requests: self.requests,
            corrupt: self.corrupt,
            forgotten: self.first,
            connections: self.records.iter().cloned().collect(),
        }
    }

    fn record(&mut self, id: u64) -> Option<&mut Connection> {
        let index = usize::try_from(id.checked_sub(self.first)?).ok()?;
        self.records.get_mut(index)
    }
}

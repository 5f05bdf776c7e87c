//! What the load generator saw.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use serde::Serialize;

use super::connection::Reason;
use crate::{clock, server};

/// Whether a connection was to be long or for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// Held, with traffic on it, until the client closes it.
    Long,
    /// One request.
    Short,
}

/// A connection that did not end as it should.
#[derive(Debug, Clone, Serialize)]
pub struct Broken {
    /// Long or short.
    pub length: Length,
    /// The client's end; unknown when the handshake already failed.
    pub local: Option<SocketAddr>,
    /// Who had answered first, if anyone.
    pub backend: Option<Arc<str>>,
    /// Class of the failure.
    pub reason: Reason,
    /// What was seen.
    pub detail: String,
    /// When the client began it, ns of `CLOCK_MONOTONIC`.
    pub started_ns: u64,
    /// When it broke, ns of `CLOCK_MONOTONIC`.
    pub broken_ns: u64,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self
            .local
            .map_or_else(|| "(unbound)".to_owned(), |local| local.to_string());
        write!(
            f,
            "{:?} connection {local} on {} after {:.3} s: {:?}: {}",
            self.length,
            self.backend.as_deref().unwrap_or("(no backend yet)"),
            clock::seconds_between(self.started_ns, self.broken_ns),
            self.reason,
            self.detail
        )
    }
}

/// One connection as the client saw it.
#[derive(Debug, Clone, Serialize)]
pub struct Flow {
    /// Long or short.
    pub length: Length,
    /// Just before `connect`, ns of `CLOCK_MONOTONIC`.
    pub started_ns: u64,
    /// The client's end.
    pub local: SocketAddr,
    /// Who answered; `None` while nobody has.
    pub backend: Option<Arc<str>>,
}

/// Where connections were at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// ns of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Open long connections by backend.
    pub long: BTreeMap<Arc<str>, usize>,
    /// Short requests answered since the start, by backend.
    pub short: BTreeMap<Arc<str>, u64>,
    /// Long connections begun since the start.
    pub opened: u64,
    /// Long connections the client closed in good order.
    pub finished: u64,
    /// Long connections that broke.
    pub broken: u64,
    /// Short requests that succeeded.
    pub requests_ok: u64,
    /// Short requests that failed.
    pub requests_failed: u64,
    /// Echo frames answered on long connections.
    pub frames: u64,
}

/// All that was seen, at the end.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Long connections begun.
    pub opened: u64,
    /// Those the client closed in good order. `opened == finished + broken of length long`.
    pub finished: u64,
    /// Every connection that broke, long or short.
    pub broken: Vec<Broken>,
    /// Short requests that succeeded.
    pub requests_ok: u64,
    /// Short requests that failed; each is in `broken` too.
    pub requests_failed: u64,
    /// Short requests not made because as many as allowed were waiting.
    pub requests_skipped: u64,
    /// Echo frames answered on long connections.
    pub frames: u64,
    /// Every connection, in the order of their beginning.
    pub flows: Vec<Flow>,
    /// Where connections were over time.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Long connections that broke.
    pub fn broken_long(&self) -> impl Iterator<Item = &Broken> {
        self.broken
            .iter()
            .filter(|broken| broken.length == Length::Long)
    }

    /// Nothing broke and nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.requests_failed == 0
    }

    /// A few lines for an assertion's message.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut lines = format!(
            "opened {} finished {} broken {}; requests ok {} failed {} skipped {}; frames {}",
            self.opened,
            self.finished,
            self.broken_long().count(),
            self.requests_ok,
            self.requests_failed,
            self.requests_skipped,
            self.frames
        );
        for broken in self.broken.iter().take(10) {
            lines.push_str(&format!("\n  {broken}"));
        }
        lines
    }
}

/// A connection that a backend accepted although the client began it after a moment from which it should not have.
#[derive(Debug, Clone, Serialize)]
pub struct Late {
    /// As the backend recorded it.
    pub accepted: server::Connection,
    /// When the client began it; `None` when the client knows of no such connection.
    pub started_ns: Option<u64>,
}

/// Connections on the backend with these `stats` that clients at `peers` began within one of `windows` (ns of
/// `CLOCK_MONOTONIC`, the ends excluded).
///
/// A handshake that was in flight when a window opened may be accepted later; it counts by its beginning, which
/// only the client knows. A connection accepted within a window that the client's log does not explain is listed
/// too. So `flows` should be complete: taken from a [`Report`].
#[must_use]
pub fn begun_within(
    stats: &server::Stats,
    flows: &[Flow],
    peers: &[IpAddr],
    windows: &[Range<u64>],
) -> Vec<Late> {
    let mut begun: HashMap<SocketAddr, Vec<u64>> = HashMap::new();
    for flow in flows {
        begun.entry(flow.local).or_default().push(flow.started_ns);
    }
    let within = |ns: u64| windows.iter().any(|w| w.start < ns && ns < w.end);
    stats
        .from_clients(peers)
        .filter_map(|accepted| {
            let starts = begun.get(&accepted.peer).map_or(&[][..], Vec::as_slice);
            let started_ns = starts
                .iter()
                .copied()
                .filter(|&ns| ns <= accepted.accepted_ns)
                .max();
            let is_late = within(started_ns.unwrap_or(accepted.accepted_ns));
            is_late.then(|| Late {
                accepted: accepted.clone(),
                started_ns,
            })
        })
        .collect()
}

//! Drains.

use serde::{Deserialize, Serialize};

use crate::model::spec::OnDeadline;
pub use crate::model::{
    drain::{By, Receipt},
    forecast::Forecast,
};

/// A drain, running or ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drain {
    /// Its number.
    pub id: u64,
    /// `SERVICE/BACKEND`.
    pub backend: String,
    /// Who asked for it.
    #[serde(default)]
    pub by: By,
    /// `draining`, `resetting` (past its deadline, flows being cut) or `drained`, `undrained`.
    pub state: String,
    /// When it began.
    pub since_ms: u64,
    /// When it is to end.
    pub deadline_ms: u64,
    /// What happens then.
    pub on_deadline: OnDeadline,
    /// Flows it still has: `listed` were seen since the drain began, `unseen` were not.
    pub flows: DrainFlows,
    /// When it ended.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// How it goes, while it runs.
    #[serde(default)]
    pub progress: Option<DrainProgress>,
    /// The receipt, once ended.
    pub receipt: Option<Receipt>,
}

/// Flows left on a draining backend.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct DrainFlows {
    /// At the start; 0 until they have been counted, which on a large node is a moment after the command.
    pub at_start: u64,
    /// Alive and seen since.
    pub listed: u64,
    /// Opened and never seen closing, not seen since.
    pub unseen: u64,
}

/// How a running drain goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DrainProgress {
    /// Flows left: listed and unseen ones.
    pub left: u64,
    /// Flows that have left since the start.
    pub gone: u64,
    /// Flows a second that leave, over the last ten seconds; absent in the first second.
    pub rate_per_s: Option<f64>,
    /// Of the flows left, those whose age is known.
    pub ages_known: u64,
    /// What becomes of them; absent before the first has left.
    pub forecast: Option<Forecast>,
}

/// Asks for a drain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrainRequest {
    /// `SERVICE/BACKEND`.
    pub backend: String,
    /// Time to the deadline in milliseconds; the service's own when absent.
    pub timeout_ms: Option<u64>,
    /// What happens at it; the service's own when absent.
    pub on_deadline: Option<OnDeadline>,
    /// Even below `min_available`.
    #[serde(default)]
    pub force: bool,
    /// In the backend's own name, as its systemd unit asks: see [`By::Unit`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub as_backend: bool,
}

/// Asks for several drains, all or none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DrainsRequest {
    /// `SERVICE/BACKEND`s.
    #[serde(default)]
    pub backends: Vec<String>,
    /// `SERVICE/POOL`s: every backend of theirs that is not drained already.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Time to the deadline in milliseconds; each service's own when absent.
    pub timeout_ms: Option<u64>,
    /// What happens at it; each service's own when absent.
    pub on_deadline: Option<OnDeadline>,
    /// Even below `min_available`.
    #[serde(default)]
    pub force: bool,
    /// In the backend's own name, as its systemd unit asks: see [`By::Unit`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub as_backend: bool,
}

/// Takes drains back, all or none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UndrainRequest {
    /// `SERVICE/BACKEND`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// More of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// `SERVICE/POOL`s: every backend of theirs that is not active.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// In the backend's own name: only what it asked for itself is taken back, and anything else is no error.
    #[serde(default, skip_serializing_if = "is_false")]
    pub as_backend: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) const fn is_false(value: &bool) -> bool {
    !*value
}

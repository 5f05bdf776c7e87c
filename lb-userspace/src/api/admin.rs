//! Weights, maintenance and the way back to work.

use serde::{Deserialize, Serialize};

use super::drains::is_false;

/// Backends that something is done to: to all or to none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Targets {
    /// `SERVICE/BACKEND`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// More of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// `SERVICE/POOL`s: every backend of theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
}

/// Sets weights by hand, or has those hold again that the backends came with: one of `weight` and `default`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WeightRequest {
    /// Whose.
    #[serde(flatten)]
    pub of: Targets,
    /// The weight, 0 to 1000; 0 takes no new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Take back what was set by hand.
    #[serde(default, skip_serializing_if = "is_false")]
    pub default: bool,
    /// Even below `min_available`.
    #[serde(default)]
    pub force: bool,
}

/// Puts backends into maintenance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MaintenanceRequest {
    /// Whom.
    #[serde(flatten)]
    pub of: Targets,
    /// Even below `min_available`.
    #[serde(default)]
    pub force: bool,
}

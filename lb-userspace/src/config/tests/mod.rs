//! The whole way from text to specification or errors.

mod accepted;
mod broken_input;
mod clients;
mod documents;
mod refused;

use std::path::Path;

use super::{ConfigError, parse};
use crate::model::spec::Spec;

/// Parses a text as the file `ebb.toml`.
fn check(text: &str) -> Result<Spec, ConfigError> {
    parse(Path::new("ebb.toml"), text)
}

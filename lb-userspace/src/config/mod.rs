//! The configuration file: from its text to a [`Spec`] that is valid in itself.
//!
//! ```text
//! text --toml--> tree with places --file::Section--> typed fields --validate--> facts + Spec
//!                    |                     |                            |
//!                    +------ problems -----+----------------------------+--> ConfigError, sorted by place
//! ```
//!
//! The tree is walked by hand and not by derived deserializers, because those stop at the first error, and an
//! operator wants to see all of them at once. Only a file that is not TOML ends the search early: what such a
//! file means is anybody's guess.
//!
//! | file | what |
//! |---|---|
//! | `problem` | errors with places, as people and programs see them |
//! | `text` | byte offsets to lines and columns |
//! | `file` | sections, fields and their types; unknown keys |
//! | `words` | "did you mean", quoting |
//! | `limits` | every limit and default of the file |
//! | `validate` | what the fields mean, one file a section; `validate/cross` has the rules between services |

mod file;
pub mod limits;
mod problem;
#[cfg(test)]
mod tests;
mod text;
mod validate;
mod words;

use std::{fs::File, io::Read, path::Path};

use toml::de::DeTable;

pub use problem::{ConfigError, Problem};

use crate::model::spec::Spec;
use file::{Place, Section};
use problem::Problems;

/// Reads and validates the configuration file at `path`.
///
/// # Errors
///
/// Every problem of the file at once; a file that cannot be read is one problem without a place.
pub fn load(path: &Path) -> Result<Spec, ConfigError> {
    let bytes =
        read(path).map_err(|(message, hint)| ConfigError::whole_file(path, message, hint))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let (valid, _) = bytes.split_at(error.valid_up_to());
        let mut problems = Problems::new(std::str::from_utf8(valid).unwrap_or_default());
        problems.report(
            Place(error.valid_up_to()),
            "this is not UTF-8 text",
            "save the file as UTF-8",
        );
        problems.into_error(path)
    })?;
    parse(path, text)
}

/// Validates the configuration `text`; `path` only names it in errors.
///
/// # Errors
///
/// Every problem of the text at once, in the order of their places.
pub fn parse(path: &Path, text: &str) -> Result<Spec, ConfigError> {
    let mut problems = Problems::new(text);
    let (tree, syntax_errors) = DeTable::parse_recoverable(text);
    if !syntax_errors.is_empty() {
        problems.report_syntax(&syntax_errors);
        return Err(problems.into_error(path));
    }
    let spec = validate::spec(Section::root(tree.get_ref()), &mut problems);
    match spec {
        Ok(spec) if problems.is_empty() => Ok(spec),
        _ => Err(problems.into_error(path)),
    }
}

/// The bytes of a file, or a message and a hint.
fn read(path: &Path) -> Result<Vec<u8>, (String, String)> {
    let failed = |error: std::io::Error| read_failed(error.kind());
    let mut bytes = Vec::new();
    let limit = u64::from(limits::FILE_MAX_BYTES);
    File::open(path)
        .map_err(failed)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err((
            format!(
                "cannot read the configuration: it is larger than {} MiB",
                limit >> 20
            ),
            "is this the right file?".to_owned(),
        ));
    }
    Ok(bytes)
}

/// What to say about a file that cannot be read: a message and a hint.
fn read_failed(kind: std::io::ErrorKind) -> (String, String) {
    use std::io::ErrorKind;
    let (why, hint) = match kind {
        ErrorKind::NotFound => (
            "there is no such file".to_owned(),
            "look for a slip in the path, or make the file",
        ),
        ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "run as root, or make the file readable",
        ),
        ErrorKind::IsADirectory => (
            "it is a directory".to_owned(),
            "name the file in it, such as ebb.toml",
        ),
        // The kind's own text ("timed out"), never an error number.
        other => (
            other.to_string(),
            "look at the path and at the file system it is on",
        ),
    };
    (
        format!("cannot read the configuration: {why}"),
        hint.to_owned(),
    )
}

//! Errors of a configuration file, with their places.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use super::{file::Place, text::Text};

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// Column in characters, from 1; 0 when the file as a whole is meant.
    pub column: u32,
    /// What is wrong, one line.
    pub message: String,
    /// What to do about it, one line.
    pub hint: Option<String>,
}

/// Everything that is wrong in a configuration file; never empty.
///
/// Shown as `FILE:LINE:COLUMN: error: MESSAGE` and an indented `hint: HINT` for each problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ConfigError {
    /// The file, as it was named.
    pub path: String,
    /// The problems in the order of their places.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// One problem of the file as a whole.
    pub(super) fn whole_file(path: &Path, message: String, hint: String) -> Self {
        let problem = Problem {
            line: 0,
            column: 0,
            message,
            hint: Some(hint),
        };
        Self {
            path: path.display().to_string(),
            problems: vec![problem],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match problem.line {
                0 => write!(f, "{}: error: {}", self.path, problem.message)?,
                line => write!(
                    f,
                    "{}:{line}:{}: error: {}",
                    self.path, problem.column, problem.message
                )?,
            }
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

/// Proof that a problem was reported: whoever holds one need not (and should not) report again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// The problems found so far in one text.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: Text<'t>,
    found: Vec<(Place, Problem)>,
}

impl<'t> Problems<'t> {
    /// None yet.
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text: Text::new(text),
            found: Vec::new(),
        }
    }

    /// Notes a problem.
    pub(super) fn report(
        &mut self,
        place: Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Reported {
        let (line, column) = self.text.position(place);
        let message = without_controls(message.into());
        let hint = Some(without_controls(hint.into()));
        self.found.push((
            place,
            Problem {
                line,
                column,
                message,
                hint,
            },
        ));
        Reported(())
    }

    /// Notes what the TOML parser found, the first error of each line: the rest of a line that was not understood
    /// is seldom worth a message of its own.
    pub(super) fn report_syntax(&mut self, errors: &[toml::de::Error]) {
        let end = self.text.end();
        let place = |error: &toml::de::Error| error.span().map_or(end, |span| Place(span.start));
        let mut errors: Vec<_> = errors
            .iter()
            .map(|error| (place(error), error.message()))
            .collect();
        errors.sort_by_key(|(place, _)| *place);
        errors.dedup_by_key(|(place, _)| self.text.position(*place).0);
        for (place, message) in errors {
            let what = message
                .strip_suffix(", expected nothing")
                .unwrap_or(message);
            self.report(place, format!("not TOML: {what}"), syntax_hint(message));
        }
    }

    /// Line of a place, for messages that point at a second place.
    pub(super) fn line(&self, place: Place) -> u32 {
        self.text.position(place).0
    }

    /// Whether nothing was reported.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them, by place.
    pub(super) fn into_error(mut self, path: &Path) -> ConfigError {
        self.found.sort_by_key(|(place, _)| *place);
        let problems = self.found.into_iter().map(|(_, problem)| problem).collect();
        ConfigError {
            path: path.display().to_string(),
            problems,
        }
    }
}

/// Messages may repeat pieces of the file, which must neither break a line nor reach a terminal as commands.
fn without_controls(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars()
        .fold(String::with_capacity(text.len()), |mut clean, c| {
            if c.is_control() {
                clean.extend(c.escape_default())
            } else {
                clean.push(c)
            }
            clean
        })
}

/// A hint for a message of the TOML parser. The message is only asked for the hint; a hint that no longer
/// matches a newer parser's words is a weaker hint, nothing worse.
fn syntax_hint(message: &str) -> &'static str {
    let any = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if any(&["duplicate key"]) {
        "each key and each [section] may be written once; merge the two"
    } else if any(&["missing comma"]) {
        "put a comma between the elements, or close the `[` or `{` above"
    } else if any(&["invalid basic string", "invalid literal string"]) {
        "a text ends on its line, with the quote it began with"
    } else if any(&[
        "values must be quoted",
        "invalid float",
        "invalid integer",
        "invalid time",
        "invalid date",
    ]) {
        "write texts, addresses and durations in quotes: key = \"text\""
    } else {
        "lines are `key = value` or `[section]`; texts are in \"quotes\", lists in [ ], tables in { }"
    }
}

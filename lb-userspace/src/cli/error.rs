//! Errors as people and scripts see them, and the exit codes.

use std::io::{ErrorKind, Write};

use serde_json::{Value, json};

/// Exit codes of `ebb`.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Refused or failed.
    pub const FAILED: u8 = 1;
    /// A drain's deadline passed with flows left.
    pub const DEADLINE: u8 = 3;
    /// The backend died while it was drained.
    pub const DIED: u8 = 4;
    /// The command line was wrong (`EX_USAGE` of sysexits.h).
    pub const USAGE: u8 = 64;
    /// Ctrl-C while waiting (128 + SIGINT, as shells have it).
    pub const INTERRUPTED: u8 = 130;
}

/// What is shown before the error line when there is more to say than one line.
#[derive(Debug)]
pub struct Details {
    /// For people, whole lines.
    pub text: String,
    /// The same for programs; becomes `details`.
    pub json: Value,
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CliError {
    /// `what failed: why`, one line.
    pub error: String,
    /// What to do, one line.
    pub hint: Option<String>,
    /// Exit code, never 0.
    pub exit: u8,
    /// More of it.
    pub details: Option<Box<Details>>,
}

impl CliError {
    /// Something was refused or failed.
    pub fn failed(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            hint: None,
            exit: exit::FAILED,
            details: None,
        }
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With another exit code.
    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// With more to say than one line.
    pub fn details(mut self, text: String, json: Value) -> Self {
        self.details = Some(Box::new(Details { text, json }));
        self
    }

    /// Writes it: `error:` and `hint:` lines, or one JSON object. Nobody is left to tell when that fails.
    pub fn report(&self, json: bool, to: &mut dyn Write) {
        let text = if json {
            format!("{}\n", self.to_json())
        } else {
            self.to_text()
        };
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    }

    fn to_json(&self) -> Value {
        let mut object = json!({ "error": self.error, "hint": self.hint });
        if let (Some(details), Some(map)) = (&self.details, object.as_object_mut()) {
            map.insert("details".to_owned(), details.json.clone());
        }
        object
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(details) = &self.details {
            text.push_str(details.text.trim_end());
            text.push('\n');
        }
        text.push_str(&format!("error: {}\n", self.error));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }
}

/// An I/O error in words, without its number.
pub fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            "the connection was cut".to_owned()
        }
        ErrorKind::WouldBlock => "too many are waiting for it already".to_owned(),
        _ => without_number(&error.to_string()),
    }
}

/// `Text (os error 5)` without what is in parentheses, in lower case at the front.
fn without_number(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => "unknown error".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: &CliError, json: bool) -> String {
        let mut bytes = Vec::new();
        error.report(json, &mut bytes);
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn error_then_hint() {
        let error = CliError::failed("cannot do it: no").hint("do that");
        assert_eq!(
            shown(&error, false),
            "error: cannot do it: no\nhint: do that\n"
        );
        assert_eq!(
            shown(&error, true),
            "{\"error\":\"cannot do it: no\",\"hint\":\"do that\"}\n"
        );
        assert_eq!(
            shown(&CliError::failed("x"), true),
            "{\"error\":\"x\",\"hint\":null}\n"
        );
    }

    #[test]
    fn details_come_first() {
        let error = CliError::failed("bad file").details("f:1:2: x\n".to_owned(), json!([1]));
        assert_eq!(shown(&error, false), "f:1:2: x\nerror: bad file\n");
        assert!(shown(&error, true).contains("\"details\":[1]"));
    }

    #[test]
    fn no_error_numbers() {
        for number in 1..134 {
            let words = io_words(&std::io::Error::from_raw_os_error(number));
            assert!(!words.contains("os error"), "{number}: {words}");
            assert!(!words.is_empty());
        }
    }
}

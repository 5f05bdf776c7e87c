//! Errors of the command line, in the form of all others: clap's words, our lines and exit code.

use std::ffi::OsString;

use clap::{CommandFactory, error::ErrorKind};

use super::{
    args::Cli,
    error::{CliError, exit},
};

/// What follows from a command line that is no command: help and version are printed, the rest is an error.
///
/// # Errors
///
/// The command line is wrong.
pub fn answer(error: &clap::Error, arguments: &[OsString]) -> Result<u8, CliError> {
    // A reader that has gone away needs no help.
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            Ok(exit::DONE)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Ok(exit::USAGE)
        }
        _ => Err(translate(
            &error.render().to_string(),
            command(arguments).as_deref(),
        )),
    }
}

/// Whether `--json` is among arguments that could not be parsed.
pub fn wants_json(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| argument == "--json")
}

/// The command among arguments that could not be parsed.
fn command(arguments: &[OsString]) -> Option<String> {
    let known = Cli::command();
    let mut names = arguments.iter().filter_map(|argument| argument.to_str());
    let name = names.find(|name| known.find_subcommand(name).is_some())?;
    Some(name.to_owned())
}

/// clap's paragraphs (`error: ...`, indented lists and tips, `Usage: ...`) as one error line and one hint line.
fn translate(text: &str, command: Option<&str>) -> CliError {
    let mut error = Vec::new();
    let mut tips = Vec::new();
    let mut usage = None;
    let mut in_first = true;
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            in_first = false;
        } else if let Some(rest) = line.strip_prefix("tip: ") {
            tips.push(rest);
        } else if let Some(rest) = line.strip_prefix("Usage: ") {
            usage = Some(rest);
        } else if in_first || line.starts_with("[possible values") {
            error.push(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    let hint = match (tips.as_slice(), usage) {
        ([], Some(usage)) => format!("usage: {usage}; more with --help"),
        ([], None) => match command {
            Some(command) => format!("`ebb {command} --help` says how it is written"),
            None => "`ebb --help` says how it is written".to_owned(),
        },
        (tips, _) => tips.join("; "),
    };
    CliError::failed(error.join(" "))
        .hint(hint)
        .exit(exit::USAGE)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(line: &str) -> CliError {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).expect_err(line);
        answer(&error, &arguments).expect_err(line)
    }

    #[test]
    fn every_usage_error_is_one_line_with_a_hint() {
        for line in [
            "ebb drain",
            "ebb drain web/blue/b1",
            "ebb remove web",
            "ebb drain web/b1 --timeout 300",
            "ebb drain web/b1 --on-deadline never",
            "ebb stattus",
            "ebb status --wacth",
            "ebb status a b",
            "ebb explain web",
            "ebb switch",
        ] {
            let error = said(line);
            assert_eq!(error.exit, exit::USAGE, "{line}");
            assert!(!error.error.contains('\n') && !error.error.is_empty());
            let hint = error.hint.expect(line);
            assert!(!hint.contains('\n') && !hint.is_empty(), "{line}: {hint}");
        }
    }

    #[test]
    fn our_own_reason_is_in_it() {
        let error = said("ebb remove web");
        assert!(error.error.contains("SERVICE/BACKEND, as in web/b1"));
        let error = said("ebb drain web/b1 --timeout 300");
        assert!(error.error.contains("300s or 300m"), "{}", error.error);
    }

    #[test]
    fn likely_words_are_the_hint() {
        let hint = said("ebb stattus").hint.expect("a hint");
        assert!(hint.contains("status"), "{hint}");
    }

    #[test]
    fn the_hint_knows_the_command() {
        let hint = said("ebb --json drain web/").hint.expect("a hint");
        assert_eq!(hint, "`ebb drain --help` says how it is written");
    }

    #[test]
    fn choices_are_shown() {
        let error = said("ebb drain web/b1 --on-deadline never");
        for choice in ["reset", "leave", "drop"] {
            assert!(error.error.contains(choice), "{}", error.error);
        }
    }

    #[test]
    fn json_is_found_where_parsing_failed() {
        let line = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&line("ebb drain --json")));
        assert!(!wants_json(&line("ebb drain -- --json")));
    }
}

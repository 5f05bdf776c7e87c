//! `ebb verify`.

use serde_json::json;

use super::{
    adapters,
    error::{CliError, exit},
    output::Output,
};

/// Lines of the verifier's log to show: its end says what it refused and why.
const LOG_LINES_MAX: usize = 30;

/// Shows what this kernel's verifier had to do for each program.
pub fn verify(out: &mut Output) -> Result<u8, CliError> {
    let programs = adapters::verified().map_err(|why| refused(&why))?;
    out.print(&if out.json() {
        json!({ "programs": programs }).to_string()
    } else {
        let lines: Vec<String> = programs.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    Ok(exit::DONE)
}

/// A refusal, whose first line is followed by the verifier's log where that was asked.
fn refused(why: &str) -> CliError {
    let (first, log) = why.split_once('\n').unwrap_or((why, ""));
    let error = CliError::failed(format!("this kernel does not take the program: {first}"));
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n");
    if !end.is_empty() {
        let json = json!({ "verifier": end });
        return error.details(end, json);
    }
    error.hint("it needs root, or CAP_BPF and CAP_NET_ADMIN, and a bpffs at /sys/fs/bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_with_the_end_of_the_log_before() {
        let log: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let error = refused(&format!("loading the program ebb: EACCES. log:\n{log}"));
        assert_eq!(
            error.error,
            "this kernel does not take the program: loading the program ebb: EACCES. log:"
        );
        let details = error.details.expect("details").text;
        assert!(details.starts_with("line 70\n") && details.ends_with("line 99"));
        assert!(refused("no right").hint.is_some());
    }
}

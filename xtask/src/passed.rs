//! Commands whose work is done by a program of the tests crate: made ready here, arguments passed on as they are.

use std::{ffi::OsString, os::unix::process::CommandExt};

use anyhow::{Context, Result};

use crate::{
    build,
    setup::{self, Purpose},
    shell,
};

/// Arguments for the program. `--no-install` among them is taken out: it belongs to the setup.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Passed on (`--help` shows what there is); `--no-install` fails instead of installing what is missing
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    args: Vec<OsString>,
}

/// Builds the daemon and `program`, and becomes `program`, run as root with `first` and the arguments.
///
/// # Errors
///
/// Something could not be made ready. When all is, this does not return: exit code and signals are the program's.
pub fn become_program(program: &str, first: Option<&str>, args: Args) -> Result<()> {
    let (args, install) = split(args.args);
    setup::ready(Purpose::Demo, install)?;
    build::daemon_and_lab()?;
    let select = ["--release", "-p", "ebb-tests", "--bin", program];
    shell::run(
        shell::cargo()
            .arg("build")
            .args(select)
            .current_dir(shell::repository()),
    )?;
    let mut cargo = shell::cargo();
    cargo.args(["run", "-q"]).args(select).arg("--");
    cargo.args(first).args(args);
    shell::run_as_root(&mut cargo)?;
    Err(cargo.exec()).context(shell::show(&cargo))
}

/// Takes `--no-install` out of what stands before a `--`: `(the rest, whether to install)`.
fn split(args: Vec<OsString>) -> (Vec<OsString>, bool) {
    let end = args
        .iter()
        .position(|arg| arg == "--")
        .unwrap_or(args.len());
    let before = args.len();
    let rest: Vec<OsString> = args
        .into_iter()
        .enumerate()
        .filter(|(at, arg)| *at >= end || arg != "--no-install")
        .map(|(_, arg)| arg)
        .collect();
    let install = rest.len() == before;
    (rest, install)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn no_install_is_not_passed_on() {
        assert_eq!(
            split(words("--json --no-install --keep")),
            (words("--json --keep"), false)
        );
        assert_eq!(split(words("--json")), (words("--json"), true));
    }

    #[test]
    fn what_follows_two_dashes_is_left_alone() {
        let line = "exec client -- apt --no-install";
        assert_eq!(split(words(line)), (words(line), true));
    }
}

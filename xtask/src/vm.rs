//! `cargo xtask vm`: the packet tests on other kernels, each in a virtual machine.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    build, ebpf,
    setup::{self, Purpose},
    shell,
};

/// The test program of `ebb-tests` that has all packet tests in it.
const ROWS: &str = "vm-rows";

/// Arguments of `vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel to boot (can be given several times) [default: all]
    #[arg(long = "kernel", value_parser = ["6.1", "6.12", "current"])]
    kernels: Vec<String>,
    /// Fail instead of installing what is missing
    #[arg(long)]
    no_install: bool,
    /// Fetch the kernels again, even those that are there
    #[arg(long)]
    update: bool,
    /// Leave image and logs where they are
    #[arg(long)]
    keep: bool,
    /// Another program of this machine to have inside (can be given several times)
    #[arg(long = "with", value_name = "PROGRAM")]
    with: Vec<OsString>,
    /// Leave out tests whose names contain this (can be given several times)
    #[arg(long = "skip", value_name = "PART")]
    skips: Vec<OsString>,
    /// Run this inside instead of the tests
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if let Err(why) = possible() {
        return Err(shell::failure(
            why,
            "run it on a Debian or Ubuntu machine with an x86-64 processor",
        ));
    }
    setup::ready(Purpose::Vm, !args.no_install)?;
    let mut program = program(&args.passed())?;
    eprintln!("+ {}", shell::show(&program));
    Err(program.exec()).context("start ebb-vm")
}

impl Args {
    fn passed(self) -> Vec<OsString> {
        let mut passed: Vec<OsString> = Vec::new();
        for kernel in self.kernels {
            passed.extend(["--kernel".into(), kernel.into()]);
        }
        for program in self.with {
            passed.extend(["--with".into(), program]);
        }
        for part in self.skips {
            passed.extend(["--skip".into(), part]);
        }
        for (flag, given) in [("--update", self.update), ("--keep", self.keep)] {
            passed.extend(given.then(|| flag.into()));
        }
        if !self.command.is_empty() {
            passed.push("--".into());
            passed.extend(self.command);
        }
        passed
    }
}

/// Whether this machine can do it; if not, why.
pub fn possible() -> Result<(), String> {
    if env::consts::ARCH != "x86_64" {
        return Err(format!(
            "the kernels are for x86-64 and run programs of this machine, which is {}",
            env::consts::ARCH
        ));
    }
    match ["apt-get", "apt-cache", "dpkg"]
        .into_iter()
        .find(|name| ebpf::program(name).is_none())
    {
        Some(name) => Err(format!(
            "the kernels come in Debian packages, and this machine has no {name}"
        )),
        None => Ok(()),
    }
}

/// Builds what goes into the machines, and returns the command that runs them.
fn program(arguments: &[OsString]) -> Result<Command> {
    build::daemon_and_lab()?;
    let rows = packet_tests()?;
    let mut cargo = shell::cargo();
    cargo
        .args(["run", "-q", "--release", "-p", "ebb-tests"])
        .args(["--bin", "ebb-vm", "--"])
        .arg("--packet")
        .arg(rows)
        .args(arguments)
        .current_dir(shell::repository());
    Ok(cargo)
}

/// Builds the program that has all packet tests in it; its path.
fn packet_tests() -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--release", "-p", "ebb-tests", "--test", ROWS])
        .arg("--no-run")
        .arg("--message-format=json-render-diagnostics")
        .current_dir(shell::repository());
    let shown = shell::show(&cargo);
    eprintln!("+ {shown}");
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| shown.clone())?;
    ensure!(output.status.success(), "{shown}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    rows_program(&text).with_context(|| format!("{shown}: it made no program {ROWS}"))
}

/// The program of the packet tests among cargo's messages, one JSON object a line.
fn rows_program(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == ROWS)
        .find_map(|message| Some(message["executable"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_program_is_that_of_the_rows() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"lb_common"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ebb"},"executable":"/t/release/ebb"}
{"reason":"compiler-artifact","target":{"name":"vm-rows"},"executable":"/t/release/deps/vm_rows-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            rows_program(messages),
            Some("/t/release/deps/vm_rows-1".into())
        );
        assert_eq!(rows_program("{}\nnot json"), None);
    }

    #[test]
    fn every_packet_test_is_among_the_rows() {
        let tests = shell::repository().join("tests");
        let rows = fs::read_to_string(tests.join("vm").join("rows.rs")).unwrap();
        for entry in fs::read_dir(tests.join("tests")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("packet") {
                assert!(rows.contains(&format!("\"../tests/{name}\"")), "{name}");
            }
        }
    }

    #[test]
    fn a_command_is_passed_behind_two_dashes() {
        let args = Args {
            kernels: vec!["6.1".into()],
            no_install: true,
            update: false,
            keep: true,
            with: vec!["bash".into()],
            skips: vec!["trace".into()],
            command: vec!["ip".into(), "--version".into()],
        };
        let expected = "--kernel 6.1 --with bash --skip trace --keep -- ip --version";
        let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(args.passed(), expected);
    }
}

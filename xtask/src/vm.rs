//! `cargo xtask vm`: the packet tests on other kernels, each in a virtual machine.

use std::{
    env,
    ffi::OsString,
    fs,
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
    let packet = packet_tests()?.into_iter();
    let packet = packet.flat_map(|test| [OsString::from("--packet"), test.into()]);
    let mut cargo = shell::cargo();
    cargo
        .args(["run", "-q", "--release", "-p", "ebb-tests"])
        .args(["--bin", "ebb-vm", "--"])
        .args(packet)
        .args(arguments)
        .current_dir(shell::repository());
    Ok(cargo)
}

/// Builds the packet tests, all that are called so; the programs that run them.
fn packet_tests() -> Result<Vec<PathBuf>> {
    let directory = shell::repository().join("tests").join("tests");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .with_context(|| directory.display().to_string())?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .filter(|name| is_packet_test(name))
        .collect();
    names.sort();
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--release", "-p", "ebb-tests"])
        .args(names.iter().flat_map(|name| ["--test", name]))
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
    let mut programs = test_programs(&text);
    ensure!(
        programs.len() == names.len(),
        "{shown}: not as many programs as packet tests: {programs:?}"
    );
    programs.sort();
    Ok(programs)
}

fn is_packet_test(name: &str) -> bool {
    name == "packet" || name.starts_with("packet_")
}

/// The programs of packet tests among cargo's messages, one JSON object a line.
fn test_programs(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message["target"]["name"]
                .as_str()
                .is_some_and(is_packet_test)
        })
        .filter_map(|message| Some(message["executable"].as_str()?.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_those_of_the_packet_tests() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"lb_common"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ebb"},"executable":"/t/release/ebb"}
{"reason":"compiler-artifact","target":{"name":"packet"},"executable":"/t/release/deps/packet-1"}
{"reason":"compiler-artifact","target":{"name":"packet_icmp"},"executable":"/t/release/deps/packet_icmp-2"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            test_programs(messages),
            ["/t/release/deps/packet-1", "/t/release/deps/packet_icmp-2"].map(PathBuf::from)
        );
        assert!(test_programs("{}\nnot json").is_empty());
    }

    #[test]
    fn a_command_is_passed_behind_two_dashes() {
        let args = Args {
            kernels: vec!["6.1".into()],
            no_install: true,
            update: false,
            keep: true,
            with: vec!["bash".into()],
            command: vec!["ip".into(), "--version".into()],
        };
        let expected = "--kernel 6.1 --with bash --keep -- ip --version";
        let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(args.passed(), expected);
    }
}

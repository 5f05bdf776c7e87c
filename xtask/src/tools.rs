//! Programs that the demo and the tests start, and the packages they are in.

use std::path::Path;

use anyhow::Result;

use crate::{
    apt, ebpf,
    setup::Purpose,
    shell::{self, failure},
    vm,
};

/// A program that is called by name, or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tool {
    /// A file's begins with a slash.
    name: &'static str,
    /// Debian's and Ubuntu's package.
    package: &'static str,
    needed_for: Purpose,
}

const fn tool(name: &'static str, package: &'static str, needed_for: Purpose) -> Tool {
    Tool {
        name,
        package,
        needed_for,
    }
}

const TOOLS: [Tool; 15] = [
    tool("ip", "iproute2", Purpose::Demo),
    tool("ethtool", "ethtool", Purpose::Demo),
    tool("nsenter", "util-linux", Purpose::Demo),
    tool("sysctl", "procps", Purpose::Demo),
    // Without what it recommends: qemu-utils is there in versions that do not go together.
    tool("qemu-system-x86_64", "qemu-system-x86", Purpose::Vm),
    tool("strip", "binutils", Purpose::Vm),
    tool("xz", "xz-utils", Purpose::Vm),
    tool(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        Purpose::Vm,
    ),
    tool(NGINX, "nginx-light", Purpose::Test),
    tool("wrk", "wrk", Purpose::Test),
    tool("iperf3", "iperf3", Purpose::Test),
    tool("tcpdump", "tcpdump", Purpose::Test),
    tool("ping", "iputils-ping", Purpose::Test),
    tool("systemd-nspawn", "systemd-container", Purpose::Test),
    tool("mmdebstrap", "mmdebstrap", Purpose::Test),
];

const NGINX: &str = "nginx";

/// Finds the programs of a purpose, and installs the missing.
///
/// # Errors
///
/// One is missing, and it must not or cannot be installed.
pub fn ready(purpose: Purpose, install: bool) -> Result<()> {
    let missing = missing(purpose, present);
    if !missing.is_empty() {
        let names = join(&missing, |tool| tool.name);
        let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
        if !install || !apt::present() {
            return Err(failure(
                format!("missing programs: {names}"),
                format!("install the packages {}", packages.join(" ")),
            ));
        }
        eprintln!("setup: missing programs: {names}");
        apt::update()?;
        apt::install(&packages)?;
        if missing.iter().any(|tool| tool.name == NGINX) {
            stop_nginx()?;
        }
    }
    if purpose >= Purpose::Demo {
        eprintln!("setup: programs: {}", join(&wanted(purpose), |t| t.name));
    }
    if purpose >= Purpose::Test {
        components(install)?;
    }
    Ok(())
}

fn present(name: &str) -> bool {
    match name.starts_with('/') {
        true => Path::new(name).exists(),
        false => ebpf::program(name).is_some(),
    }
}

fn wanted(purpose: Purpose) -> Vec<Tool> {
    let possible = |tool: &Tool| tool.needed_for != Purpose::Vm || vm::possible().is_ok();
    TOOLS
        .into_iter()
        .filter(|tool| tool.needed_for <= purpose && possible(tool))
        .collect()
}

fn missing(purpose: Purpose, present: impl Fn(&str) -> bool) -> Vec<Tool> {
    let mut tools = wanted(purpose);
    tools.retain(|tool| !present(tool.name));
    tools
}

fn join(tools: &[Tool], field: impl Fn(&Tool) -> &'static str) -> String {
    tools.iter().map(field).collect::<Vec<_>>().join(" ")
}

/// The package starts a server on port 80. Nobody asked for that: the tests start their own in namespaces.
fn stop_nginx() -> Result<()> {
    if Path::new("/run/systemd/system").exists() {
        shell::run(shell::as_root("systemctl")?.args(["disable", "--now", NGINX]))
    } else if Path::new("/run/nginx.pid").exists() {
        shell::run(shell::as_root("service")?.args([NGINX, "stop"]))
    } else {
        Ok(())
    }
}

/// rustup's minimal profile has neither.
fn components(install: bool) -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, command)| {
            let mut cargo = shell::cargo();
            let status = cargo.args([command, "--version"]).output();
            !status.is_ok_and(|output| output.status.success())
        })
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    match ebpf::program("rustup") {
        Some(rustup) if install => shell::run(
            std::process::Command::new(rustup)
                .args(["component", "add"])
                .args(missing),
        ),
        _ => Err(failure(
            format!("missing parts of Rust: {}", missing.join(" ")),
            format!("rustup component add {}", missing.join(" ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_needs_no_programs() {
        assert_eq!(missing(Purpose::Build, |_| false), []);
    }

    #[test]
    fn tests_need_all_that_the_demo_needs() {
        let names = |purpose| join(&missing(purpose, |_| false), |tool| tool.package);
        assert_eq!(names(Purpose::Demo), "iproute2 ethtool util-linux procps");
        assert!(names(Purpose::Test).starts_with(&names(Purpose::Demo)));
        assert!(
            names(Purpose::Test).contains(
                "nginx-light wrk iperf3 tcpdump iputils-ping systemd-container mmdebstrap"
            )
        );
    }

    #[test]
    fn what_is_there_is_not_installed() {
        let missing = missing(Purpose::Test, |name| name != "wrk");
        assert_eq!(join(&missing, |tool| tool.package), "wrk");
    }
}

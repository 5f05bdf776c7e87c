//! Starting other programs: cargo, and what needs root.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, IsTerminal},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::ebpf;

/// What failed, and what a person can do about it.
#[derive(Debug)]
pub struct Failure {
    /// What failed and why, one line.
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: {}", self.what, self.hint)
    }
}

impl std::error::Error for Failure {}

/// A failure with a hint.
pub fn failure(what: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Failure {
        what: what.into(),
        hint: hint.into(),
    }
    .into()
}

/// The repository.
pub fn repository() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The cargo that started this program, or the one in PATH. It is not told what cargo said of this program: build scripts
/// that ask for the like (ring's does) would run anew whenever somebody calls cargo without it in between.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(says_of_a_package) {
            command.env_remove(name);
        }
    }
    command
}

fn says_of_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Whether programs can be run as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// This is root.
    Already,
    /// By `sudo`, at this path.
    Sudo(PathBuf),
    /// Not at all; the reason.
    No(&'static str),
}

/// Finds out whether programs can be run as root.
pub fn root() -> Root {
    // The owner of /proc/self is the effective user.
    if fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Root::Already;
    }
    let Some(sudo) = ebpf::program("sudo") else {
        return Root::No("not root, and sudo is not installed");
    };
    let silent = Command::new(&sudo)
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if silent || io::stdin().is_terminal() {
        Root::Sudo(sudo)
    } else {
        Root::No("not root, and sudo wants a password without a terminal to ask on")
    }
}

/// A command that runs as root.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    match root() {
        Root::Already => Ok(Command::new(program)),
        Root::Sudo(sudo) => {
            let mut command = Command::new(sudo);
            command.arg("env").args(kept_variables()).arg(program);
            Ok(command)
        }
        Root::No(why) => Err(failure(
            format!("{}: {why}", program.as_ref().display()),
            "run the same command as root",
        )),
    }
}

/// `sudo` drops the environment; package managers need these.
fn kept_variables() -> Vec<OsString> {
    ["DEBIAN_FRONTEND=noninteractive".into()]
        .into_iter()
        .chain(
            ["http_proxy", "https_proxy", "no_proxy"]
                .into_iter()
                .filter_map(|name| {
                    let mut word = OsString::from(format!("{name}="));
                    word.push(env::var_os(name)?);
                    Some(word)
                }),
        )
        .collect()
}

/// Makes cargo start what it builds and runs as root.
///
/// # Errors
///
/// There is no way to be root.
pub fn run_as_root(cargo: &mut Command) -> Result<()> {
    match root() {
        Root::Already => Ok(()),
        Root::Sudo(sudo) => {
            let runner = format!("{} -E", sudo.display());
            cargo.env(runner_variable()?, runner);
            Ok(())
        }
        Root::No(why) => Err(failure(
            format!("network namespaces and XDP need root: {why}"),
            "run the same command as root",
        )),
    }
}

/// The variable that names cargo's runner for programs of this machine.
fn runner_variable() -> Result<String> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("-vV")
        .output()
        .context("rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = ebpf::parse_version(&text).context("rustc -vV: not understood")?;
    let host = version.host.replace('-', "_").to_uppercase();
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

/// Runs a command after showing it. Its output goes to standard error: standard output belongs to the lab's JSON.
///
/// # Errors
///
/// It could not be started, or failed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("+ {shown}");
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(stderr))
        .status()
        .with_context(|| shown.clone())?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// What a command prints; `None` when it cannot be run or fails.
pub fn answer(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let args = command.get_args().map(|arg| arg.display().to_string());
    set.chain([program.display().to_string()])
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_this_package() {
        assert!(
            env::var_os("CARGO_PKG_NAME").is_some(),
            "cargo says so to tests, too"
        );
        let told = |name: &str| {
            cargo()
                .get_envs()
                .any(|(key, value)| key == name && value.is_none())
        };
        assert!(told("CARGO_PKG_NAME"));
        assert!(!told("CARGO_HOME") && !told("PATH"));
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("/usr/bin/apt-get");
        command
            .args(["install", "-y"])
            .env("A", "b")
            .env_remove("C");
        assert_eq!(show(&command), "A=b apt-get install -y");
    }

    #[test]
    fn a_failure_has_its_hint_on_a_line_of_its_own() {
        let error = failure("what: why", "do this").context("outer");
        assert_eq!(format!("{error:#}"), "outer: what: why\nhint: do this");
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = run(&mut Command::new("false")).unwrap_err().to_string();
        assert!(error.starts_with("false: exit status: 1"), "{error}");
    }
}

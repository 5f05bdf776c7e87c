//! Debian's packages: which exist here, and installing them.

use std::process::Command;

use anyhow::Result;

use crate::{ebpf, shell};

/// Packages that together are a Rust with `core` for BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The compiler; the others have the same version.
    pub rustc: &'static str,
    /// Cargo.
    pub cargo: &'static str,
    /// `core` for BPF.
    pub core: &'static str,
}

/// Debian names the compiler of its stable releases, kept current for browsers, `-web`.
const FAMILIES: [Family; 2] = [
    Family {
        rustc: "rustc-web",
        cargo: "cargo-web",
        core: "libstd-rust-web-dev-bpf",
    },
    Family {
        rustc: "rustc",
        cargo: "cargo",
        core: "libstd-rust-dev-bpf",
    },
];

/// The oldest compiler that builds the eBPF crate: its `rust-version` in Cargo.toml.
const OLDEST: (u32, u32) = (1, 88);

/// Whether this machine installs packages with apt.
pub fn present() -> bool {
    ebpf::program("apt-get").is_some() && ebpf::program("apt-cache").is_some()
}

/// The family to install: the first that this machine's package lists have whole and new enough.
pub fn family() -> Option<Family> {
    let names = FAMILIES.iter().flat_map(|f| [f.rustc, f.cargo, f.core]);
    choose_family(&policy(&names.collect::<Vec<_>>()))
}

fn choose_family(policy: &str) -> Option<Family> {
    FAMILIES.into_iter().find(|family| {
        let new_enough = candidate(policy, family.rustc)
            .and_then(release)
            .is_some_and(|release| release >= OLDEST);
        new_enough
            && [family.cargo, family.core]
                .iter()
                .all(|name| candidate(policy, name).is_some())
    })
}

/// The first of these packages that can be installed.
pub fn first_available(names: &[String]) -> Option<&String> {
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    let policy = policy(&refs);
    names.iter().find(|name| candidate(&policy, name).is_some())
}

fn policy(names: &[&str]) -> String {
    let args: Vec<&str> = ["policy"].iter().chain(names).copied().collect();
    shell::answer("apt-cache", &args).unwrap_or_default()
}

/// The version that apt would install, from what `apt-cache policy` printed.
fn candidate<'a>(policy: &'a str, package: &str) -> Option<&'a str> {
    let mut lines = policy.lines();
    lines.find(|line| line.strip_suffix(':') == Some(package))?;
    lines
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
}

/// Major and minor of a Debian version such as `1.96.0+dfsg1-1~deb12u2`.
fn release(version: &str) -> Option<(u32, u32)> {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// Fetches the package lists.
///
/// # Errors
///
/// apt failed, or there is no way to be root.
pub fn update() -> Result<()> {
    shell::run(apt_get()?.args(["update", "-q"]))
}

/// Installs packages without what they merely recommend.
///
/// # Errors
///
/// apt failed, or there is no way to be root.
pub fn install(packages: &[&str]) -> Result<()> {
    shell::run(
        apt_get()?
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages),
    )
}

fn apt_get() -> Result<Command> {
    let mut command = shell::as_root("apt-get")?;
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
cargo-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
libstd-rust-web-dev-bpf:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
rustc:
  Installed: (none)
  Candidate: 1.63.0+dfsg1-2
cargo:
  Installed: (none)
  Candidate: 0.66.0+ds1-1
";

    #[test]
    fn the_web_family_is_found() {
        assert_eq!(choose_family(BOOKWORM), Some(FAMILIES[0]));
    }

    #[test]
    fn a_family_without_core_is_none() {
        let without = BOOKWORM.replace("libstd-rust-web-dev-bpf:", "libstd-rust-web-dev:");
        assert_eq!(choose_family(&without), None);
        assert_eq!(choose_family(""), None);
    }

    #[test]
    fn an_old_compiler_is_none() {
        let old = BOOKWORM.replace("1.96.0", "1.85.0");
        assert_eq!(choose_family(&old), None);
    }

    #[test]
    fn a_package_known_but_not_to_be_had_is_none() {
        let removed = BOOKWORM.replacen(
            "cargo-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2",
            "cargo-web:\n  Installed: (none)\n  Candidate: (none)",
            1,
        );
        assert_ne!(removed, BOOKWORM);
        assert_eq!(choose_family(&removed), None);
    }

    #[test]
    fn a_candidate_belongs_to_its_own_package() {
        assert_eq!(candidate(BOOKWORM, "rustc"), Some("1.63.0+dfsg1-2"));
        assert_eq!(
            candidate("a:\n  Installed: 1\nb:\n  Candidate: 2\n", "a"),
            None
        );
    }

    #[test]
    fn releases_are_numbers() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(release("1:22.1.8-1"), Some((22, 1)));
        assert_eq!(release("1.100~beta"), Some((1, 100)));
        assert_eq!(release("x"), None);
    }
}

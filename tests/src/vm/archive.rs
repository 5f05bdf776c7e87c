//! Debian's kernels: which packages they are in now, and fetching them once into `target/vm/`.
//!
//! apt is asked with directories of its own, so that neither the machine's package lists nor its sources are touched
//! and nobody has to be root. The kernels are the "cloud" ones: small, and with the drivers that QEMU's machine needs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::fcntl::{Flock, FlockArg};

use super::modules::Modules;

/// What a kernel's packages depend on.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// Where Debian keeps its public keys (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A line of kernels that Debian maintains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Release {
    /// Linux 6.1, of Debian 12 (bookworm)
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12, of Debian 12's backports
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has, in unstable (sid)
    Current,
}

impl Release {
    /// All, the oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Current];

    /// As it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Current => "current",
        }
    }

    /// Archive and suite where the newest of this line can be.
    fn suites(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::V6_1 => &[
                ("debian", "bookworm"),
                ("debian-security", "bookworm-security"),
            ],
            Self::V6_12 => &[("debian", "bookworm-backports")],
            Self::Current => &[("debian", "sid")],
        }
    }
}

/// A kernel on this machine's disk.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Which line it is of.
    pub release: Release,
    /// Its image.
    pub image: PathBuf,
    /// Its modules.
    pub modules: Modules,
}

impl Kernel {
    /// The kernel that was fetched before, or the newest one of its line.
    ///
    /// # Errors
    /// It is not there and cannot be fetched.
    pub fn get(release: Release) -> Result<Self> {
        Self::obtain(release, false)
    }

    /// The newest kernel of the line, fetched even when there is one.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub fn update(release: Release) -> Result<Self> {
        Self::obtain(release, true)
    }

    fn obtain(release: Release, again: bool) -> Result<Self> {
        let store = store();
        fs::create_dir_all(&store).with_context(|| format!("make {}", store.display()))?;
        let lock = store.join(format!("{}.lock", release.name()));
        let file = File::create(&lock).with_context(|| format!("write {}", lock.display()))?;
        // Whoever else wants it now waits for it.
        let _lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", lock.display()))?;
        let place = store.join("kernels").join(release.name());
        if again || !place.exists() {
            fetch(release, &store, &place)
                .with_context(|| format!("fetch Debian's kernel {}", release.name()))?;
        }
        Self::open(release, &place).with_context(|| {
            format!(
                "the kernel in {} is incomplete\nhint: remove that directory",
                place.display()
            )
        })
    }

    /// Takes a kernel from its unpacked packages.
    fn open(release: Release, place: &Path) -> Result<Self> {
        // Since 7.0 the packages know no other place than /usr.
        let modules = ["lib/modules", "usr/lib/modules"]
            .into_iter()
            .flat_map(|directory| fs::read_dir(place.join(directory)).into_iter().flatten())
            .flatten()
            .map(|entry| entry.path())
            .next()
            .context("no directory of modules")?;
        let version = modules.file_name().unwrap_or_default();
        let mut boot = std::ffi::OsString::from("vmlinuz-");
        boot.push(version);
        let image = [place.join("boot").join(boot), modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .context("no image")?;
        Ok(Self {
            release,
            image,
            modules: Modules::read(&modules)?,
        })
    }
}

/// Where kernels are kept, in the checkout.
fn store() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join("target").join("vm")
}

fn fetch(release: Release, store: &Path, place: &Path) -> Result<()> {
    let apt = Apt::new(release, &store.join("apt").join(release.name()))?;
    apt.update()?;
    let packages = apt.packages()?;
    let fresh = place.with_extension("new");
    let debs = fresh.join("debs");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&debs)?;
    let mut command = apt.command("apt-get");
    run(command.arg("download").args(&packages).current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(&fresh))?;
    }
    fs::remove_dir_all(&debs)?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    Ok(fs::rename(&fresh, place)?)
}

/// apt with sources, lists and state of its own.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(release: Release, directory: &Path) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).is_file(),
            "{KEYRING} is missing\nhint: install the package debian-archive-keyring"
        );
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("status"), "")?;
        let configured = configured_sources();
        let sources: String = release
            .suites()
            .iter()
            .map(|(archive, suite)| {
                let mirror = mirror(&configured, archive);
                format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
            })
            .collect();
        fs::write(directory.join("sources.list"), sources)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        for (option, value) in [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State", at("")),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::Status", at("status")),
            ("Dir::Cache", at("cache")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Sandbox::User", String::new()),
            ("Acquire::Languages", "none".into()),
            ("Acquire::Retries", "3".into()),
            // Descriptions of desktop programs, which some machines are set up to fetch with every list.
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false".into(),
            ),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }

    fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["-q", "update"]))
    }

    /// The metapackage and what it depends on in exactly its own version, as `NAME=VERSION`.
    fn packages(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        let mut wanted = vec![METAPACKAGE.to_owned()];
        while let Some(name) = wanted.pop() {
            let mut command = self.command("apt-cache");
            command.args(["show", "--no-all-versions", &name]);
            let output = command.output().context("run apt-cache")?;
            ensure!(
                output.status.success(),
                "the archive has no package {name}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            let text = String::from_utf8_lossy(&output.stdout);
            let (package, needs) = parse(&text).with_context(|| format!("package {name}"))?;
            found.push(package);
            let is_new = |need: &String| {
                let known = format!("{need}=");
                !wanted.contains(need) && !found.iter().any(|had| had.starts_with(&known))
            };
            let more: Vec<String> = needs.into_iter().filter(is_new).collect();
            wanted.extend(more);
        }
        Ok(found)
    }
}

/// From what `apt-cache show` prints: `NAME=VERSION`, and the kernel's packages that it needs in exactly one version.
fn parse(show: &str) -> Result<(String, Vec<String>)> {
    let field = |name: &str| {
        show.lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let name = field("Package").context("no name")?;
    let version = field("Version").context("no version")?;
    let needs = field("Depends").unwrap_or_default();
    let needs = needs
        .split(',')
        .map(str::trim)
        .filter(|need| need.starts_with("linux-") && !need.contains('|'))
        .filter_map(|need| need.split_once(" (= ").map(|(name, _)| name.to_owned()))
        .collect();
    Ok((format!("{name}={version}"), needs))
}

/// The text of all that tells this machine's apt where packages come from.
fn configured_sources() -> String {
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    let paths = parts.flatten().map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|ending| ending == "list" || ending == "sources")
    });
    [PathBuf::from("/etc/apt/sources.list")]
        .into_iter()
        .chain(paths)
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Where `archive` (`debian`, `debian-security`) is fetched from: the machine's own mirror, or Debian's address.
fn mirror(configured: &str, archive: &str) -> String {
    let ending = format!("/{archive}");
    configured
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with(&ending))
        .map_or_else(|| format!("http://deb.debian.org/{archive}"), str::to_owned)
}

/// Runs a command after showing it on the error output, where its own output goes too.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_versions_of_kernel_packages_are_followed() -> Result<()> {
        let show = "Package: linux-image-7.2.1-cloud-amd64\nVersion: 7.2.1-1\nInstalled-Size: 15\n\
                    Depends: dracut | linux-initramfs-tool, linux-base (>= 4.3~), \
                    linux-binary-7.2.1-cloud-amd64 (= 7.2.1-1), linux-modules-7.2.1-cloud-amd64 (= 7.2.1-1)\n\n\
                    Package: another\nVersion: 1\n";
        let (package, needs) = parse(show)?;
        assert_eq!(package, "linux-image-7.2.1-cloud-amd64=7.2.1-1");
        assert_eq!(
            needs,
            [
                "linux-binary-7.2.1-cloud-amd64",
                "linux-modules-7.2.1-cloud-amd64"
            ]
        );
        assert!(parse("Version: 1\n").is_err());
        Ok(())
    }

    #[test]
    fn the_machines_mirror_is_taken() {
        let sources = "# deb http://old.example/debian x main\n\
                       deb [arch=amd64] https://mirror.example/debian-security/ bookworm-security main\n\
                       Types: deb\nURIs: http://mirror.example/pub/debian\n";
        assert_eq!(
            mirror(sources, "debian"),
            "http://mirror.example/pub/debian"
        );
        assert_eq!(
            mirror(sources, "debian-security"),
            "https://mirror.example/debian-security"
        );
        assert_eq!(mirror("", "debian"), "http://deb.debian.org/debian");
    }
}

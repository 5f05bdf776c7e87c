//! A real systemd, in a container whose network is one of the lab's namespaces.
//!
//! Wants `systemd-nspawn` (package systemd-container), and a root file system with systemd in it: the directory
//! `EBB_SYSTEMD_ROOT`, or one that `mmdebstrap` makes below the temporary directory, once. Its files are not changed: the container
//! writes to memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Guard, Lab, find_binary};

/// Time in which systemd is up, and down.
const LIMIT: Duration = Duration::from_secs(60);

/// What the root file system is made of.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps";

/// Whoever has a container: one at a time, whatever else runs beside it, and one makes the root file system.
static ALONE: Mutex<()> = Mutex::new(());

/// A running container. There is one at a time.
#[derive(Debug)]
pub struct Machine {
    guard: Guard,
    leader: u32,
    /// Given back after the container is down.
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Boots systemd in the namespace of `place`, with the programs `ebb` and `ebb-lab` in `/usr/bin`, the lab's directory (and
    /// the daemon's socket in it) at `/lab`, and these directories of the repository at these places, read-only.
    ///
    /// # Errors
    /// Something is missing, or systemd does not come up.
    pub fn boot(lab: &Lab, place: &str, binds: &[(&str, &str)]) -> Result<Self> {
        // Whoever panicked has left nothing that matters here.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = root()?;
        let mut command = Command::new("systemd-nspawn");
        command
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .args(["-q", "--volatile=overlay", "--register=no", "--keep-unit"])
            .args([
                "--capability=all",
                "--system-call-filter=bpf perf_event_open",
            ])
            .args(["--kill-signal=SIGRTMIN+3", "--console=passive", "-b"])
            .arg(format!("--machine={}", lab.netns(place).name()))
            .arg(format!(
                "--network-namespace-path=/run/netns/{}",
                lab.netns(place).name()
            ))
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--bind={}:/lab", lab.directory().display()));
        for (binary, variable) in [("ebb", "EBB_BIN"), ("ebb-lab", "EBB_LAB_BIN")] {
            let path = find_binary(binary, variable)?;
            command.arg(format!("--bind-ro={}:/usr/bin/{binary}", path.display()));
        }
        let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        for (from, to) in binds {
            let from = repository.join(from).canonicalize()?;
            command.arg(format!("--bind-ro={}:{to}", from.display()));
        }
        let guard = lab.spawn("systemd", command)?;
        let mut machine = Self {
            guard,
            leader: 0,
            _alone: alone,
        };
        machine.leader = machine.wait_leader()?;
        machine.wait_up()?;
        Ok(machine)
    }

    /// Process 1 of the container. `systemd-nspawn` has another child for a moment, which makes the container and ends.
    fn wait_leader(&mut self) -> Result<u32> {
        let pid = self.guard.pid();
        let children = PathBuf::from(format!("/proc/{pid}/task/{pid}/children"));
        let found = || {
            let text = fs::read_to_string(&children).ok()?;
            let mut children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
            children.find(|&child| is_first(child))
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(leader) = found() {
                return Ok(leader);
            }
            self.check(deadline, "has no process 1")?;
        }
    }

    fn wait_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let output = self.run("systemctl is-system-running")?;
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if matches!(state.as_str(), "running" | "degraded") {
                return Ok(());
            }
            let error = String::from_utf8_lossy(&output.stderr);
            self.check(deadline, &format!("is {state:?} ({})", error.trim()))?;
        }
    }

    fn check(&mut self, deadline: Instant, state: &str) -> Result<()> {
        if let Some(status) = self.guard.try_wait()? {
            bail!(
                "systemd-nspawn ended with {status}{}",
                self.guard.log_tail()
            );
        }
        ensure!(
            Instant::now() < deadline,
            "systemd {state} after {LIMIT:?}{}",
            self.guard.log_tail()
        );
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Runs a shell's line in the container.
    ///
    /// # Errors
    /// It cannot be run at all.
    pub fn run(&self, line: &str) -> Result<Output> {
        self.command(line)
            .output()
            .with_context(|| format!("run {line:?} in the container"))
    }

    /// The command that [`Self::run`] runs.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.leader.to_string(), "-a", "--", "sh", "-c", line])
            .stdin(Stdio::null());
        command
    }

    /// The same, which must succeed; what it said.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn ok(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            output.status.success(),
            "{line}: {}: {said} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Writes a file of the container.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = PathBuf::from(format!("/proc/{}/root{path}", self.leader));
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// As [`Self::ok`].
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        self.ok(&format!("systemctl show --value -p {property} {unit}"))
    }

    /// Waits until a property of a unit is one of these.
    ///
    /// # Errors
    /// It is not in time; with the end of the unit's journal.
    pub fn wait(&self, unit: &str, property: &str, wanted: &[&str]) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = self.property(unit, property)?;
            if wanted.contains(&now.as_str()) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                let log = self.ok(&format!("journalctl --no-pager -n 30 -u {unit}"))?;
                bail!("{unit}: {property} is {now}, not one of {wanted:?}\n{log}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Killed alone, systemd-nspawn would leave what runs in there.
        if self.guard.terminate(LIMIT).is_err() && self.leader > 1 {
            let leader = i32::try_from(self.leader).map(nix::unistd::Pid::from_raw);
            if let Ok(leader) = leader {
                let _ = nix::sys::signal::kill(leader, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

/// Whether this process is the first one of its container (`NSpid` of proc(5) ends with 1), and systemd by now.
fn is_first(pid: u32) -> bool {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(name), Ok(status)) = (read("comm"), read("status")) else {
        return false;
    };
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = ids.and_then(|ids| ids.split_whitespace().last());
    name.trim() == "systemd" && inside == Some("1")
}

/// The root file system; made when there is none.
fn root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("EBB_SYSTEMD_ROOT") {
        return Ok(root.into());
    }
    let root = std::env::temp_dir().join("ebb-systemd-root");
    if root.join("usr/lib/systemd/systemd").exists() {
        return Ok(root);
    }
    // The packages come over the network, which fails now and then.
    if let Err(error) = make(&root) {
        eprintln!("{error:#}; once more");
        make(&root)?;
    }
    Ok(root)
}

fn make(root: &Path) -> Result<()> {
    let new = root.with_extension("new");
    let _ = fs::remove_dir_all(&new);
    let made = Command::new("mmdebstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"])
        .arg(&new)
        .output()
        .context("mmdebstrap: install the packages mmdebstrap and systemd-container, or set EBB_SYSTEMD_ROOT")?;
    ensure!(
        made.status.success(),
        "mmdebstrap: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    fs::rename(&new, root)?;
    Ok(())
}

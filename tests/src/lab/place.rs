//! What a lab leaves outside its process: directories, names of namespaces, process ids. Enough to remove it when
//! its maker is gone.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{kernel::BPF_FS, netns};

/// Where all labs have their directories.
const BASE: &str = "/run/ebb-lab";
/// Names of labs that end with their makers begin like this.
pub(super) const PASSING: &str = "ebbL";

/// A lab's files. Its directory is locked while its maker lives.
#[derive(Debug)]
pub(super) struct Place {
    name: String,
    _lock: Flock<File>,
}

impl Place {
    /// Makes the directories of the lab `name`, after removing what dead makers left.
    pub(super) fn create(name: &str) -> Result<Self> {
        fs::create_dir_all(BASE)?;
        let _all = lock_file(&Path::new(BASE).join("lock"), FlockArg::LockExclusive)?
            .context("lock all labs")?;
        remove_leftovers();
        let directory = directory(name);
        fs::create_dir(&directory)
            .with_context(|| format!("make the lab {name}: {}", directory.display()))?;
        let lock = lock_file(&directory.join("lock"), FlockArg::LockExclusiveNonblock)?
            .context("a new lab cannot be locked")?;
        for part in ["state", "logs"] {
            fs::create_dir(directory.join(part))?;
        }
        fs::create_dir_all(pins(name)).context("make the directory for pins")?;
        Ok(Self {
            name: name.to_owned(),
            _lock: lock,
        })
    }

    pub(super) fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    pub(super) fn pins(&self) -> PathBuf {
        pins(&self.name)
    }

    /// Notes a namespace before it is made.
    pub(super) fn note_netns(&self, name: &str) -> Result<()> {
        append(&self.directory().join("netns"), name)
    }

    /// Notes a process that outlives its maker.
    pub(super) fn note_process(&self, pid: u32) -> Result<()> {
        let started = start_time(pid).with_context(|| format!("process {pid} has ended"))?;
        append(
            &self.directory().join("processes"),
            &format!("{pid} {started}"),
        )
    }
}

/// Removes all of a lab; whether there was one. What cannot be removed is left: the next cleaning tries again.
pub(super) fn remove(name: &str) -> bool {
    let directory = directory(name);
    if !directory.exists() {
        return false;
    }
    for line in lines(&directory.join("processes")) {
        end_process(&line);
    }
    for name in lines(&directory.join("netns")) {
        let _ = netns::remove(&name);
    }
    let _ = fs::remove_dir_all(pins(name));
    let _ = fs::remove_dir_all(&directory);
    true
}

/// Removes labs whose makers have died.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(BASE) else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        if !name.starts_with(PASSING) {
            continue;
        }
        // The kernel gives a dead process's lock back, whatever its id was.
        if let Ok(Some(_lock)) = lock_file(
            &directory(&name).join("lock"),
            FlockArg::LockExclusiveNonblock,
        ) {
            remove(&name);
        }
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(BASE).join(name)
}

fn pins(name: &str) -> PathBuf {
    Path::new(BPF_FS).join(format!("ebb-lab-{name}"))
}

/// The lock, or `None` when somebody else has it.
fn lock_file(path: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    let file = File::options().create(true).append(true).open(path)?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

fn append(path: &Path, line: &str) -> Result<()> {
    let file = File::options().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("write {}", path.display()))?;
    Ok(writeln!(file, "{line}")?)
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Kills the process of a line `PID START`, unless the id is another process's by now.
fn end_process(line: &str) {
    let Some((pid, started)) = line.split_once(' ') else {
        return;
    };
    let Ok(number) = pid.parse::<u32>() else {
        return;
    };
    if start_time(number).as_deref() == Some(started)
        && let Ok(pid) = i32::try_from(number)
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// When a process began, in clock ticks since boot: field 22 of /proc/PID/stat.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, is in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19).map(str::to_owned)
}

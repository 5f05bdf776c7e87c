//! Network namespaces: entering them with a thread or a child process.

use std::{
    fs::{self, File},
    future::Future,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};

/// Where named namespaces are, as `ip netns` has them.
const DIRECTORY: &str = "/run/netns";

/// A handle on a named network namespace; it keeps the namespace alive, not its name.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Opens the namespace that `ip netns` knows as `name`.
    ///
    /// # Errors
    /// There is none, or no right to open it.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            file: Arc::new(File::open(path(name))?),
        })
    }

    /// Its name for `ip netns exec` and `nsenter --net=/run/netns/NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for good. Only for threads that end with this work.
    ///
    /// # Errors
    /// The kernel's (no `CAP_SYS_ADMIN`).
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.file, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` in the namespace on a thread of its own and waits for it. A panic in there goes on here.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| work()));
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future in the namespace on a thread and a single-threaded runtime of its own and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered or the runtime not made.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send) -> io::Result<T>
    where
        T: Send,
        F: Future<Output = T>,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(work()))
        })?
    }

    /// A command that will run in the namespace. Mounts stay the caller's, so /sys and the BPF file system are the
    /// same (`ip netns exec` would hide pins).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec the closure only makes a system call with a descriptor it owns.
        unsafe {
            command.pre_exec(
                move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            );
        }
        command
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Names of all namespaces.
pub(super) fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Removes a namespace's name; the namespace goes with its last process and handle.
pub(super) fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there but nothing is mounted on it.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

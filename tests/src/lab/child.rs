//! Child processes that end with what started them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What happens to a child when its parent goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is killed: by the guard's drop, and by the kernel when the parent dies without dropping.
    Parent,
    /// It stays, in a session of its own; [`Guard::forget`] must be called.
    Detached,
}

/// A child process, killed and reaped on drop.
#[derive(Debug)]
pub struct Guard {
    name: String,
    child: Option<Child>,
    log: Option<PathBuf>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Guard {
    /// Starts `command`. Its error output goes to the file `log` (appended), or nowhere; its standard output is
    /// read with [`Guard::wait_line`] while [`Lifetime::Parent`], and goes to the log as well when detached.
    ///
    /// # Errors
    /// The log cannot be written, or the program not started.
    pub fn spawn(
        name: &str,
        mut command: Command,
        log: Option<PathBuf>,
        lifetime: Lifetime,
    ) -> Result<Self> {
        let output = || -> Result<Stdio> {
            let Some(log) = &log else {
                return Ok(Stdio::null());
            };
            let file = File::options().create(true).append(true).open(log);
            Ok(file
                .with_context(|| format!("write {}", log.display()))?
                .into())
        };
        command.stdin(Stdio::null()).stderr(output()?);
        let program = command.get_program().to_owned();
        let child = match lifetime {
            Lifetime::Parent => {
                command.stdout(Stdio::piped());
                spawn_with_parent(command)
            }
            Lifetime::Detached => {
                command.stdout(output()?);
                // SAFETY: setsid is a system call without memory effects.
                unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
                command.spawn()
            }
        };
        let mut child = child.with_context(|| format!("start {name} ({})", program.display()))?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self {
            name: name.to_owned(),
            child: Some(child),
            log,
            stdout,
        })
    }

    /// Its process id, 0 after its end was seen.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits for a line on its standard output that begins with `prefix` and returns the rest of it. Only for
    /// [`Lifetime::Parent`]. The rest of the output is thrown away.
    ///
    /// # Errors
    /// The child ended before, or said something else first.
    pub fn wait_line(&mut self, prefix: &str) -> Result<String> {
        let mut stdout = self
            .stdout
            .take()
            .with_context(|| format!("{}: no output to read", self.name))?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(rest) = line.trim_end().strip_prefix(prefix) else {
            bail!(
                "{} said {line:?} instead of {prefix:?}{}",
                self.name,
                self.log_tail()
            );
        };
        // A full pipe would stop the child.
        thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        Ok(rest.trim().to_owned())
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The child is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self
            .child
            .as_ref()
            .with_context(|| format!("{} has ended", self.name))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end (SIGTERM) and waits; kills it when it takes longer than `limit`.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill9();
        bail!("{} did not end within {limit:?} of SIGTERM", self.name)
    }

    /// Lets the child live on without this guard.
    pub fn forget(mut self) {
        self.child = None;
    }

    /// The end of its log, for error messages; begins with a newline when there is one.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let Some(log) = &self.log else {
            return String::new();
        };
        let mut text = String::new();
        if let Ok(mut file) = File::open(log) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(20);
        lines[from..]
            .iter()
            .fold(String::new(), |all, line| format!("{all}\n  | {line}"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill9();
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a child that the kernel kills when this process dies.
///
/// The kernel's signal comes when the *thread* that forked ends, not the process; so all such children are forked
/// by one thread that lives as long as the process.
fn spawn_with_parent(mut command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let parent = std::process::id();
    // SAFETY: prctl and getppid are system calls without memory effects.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let forker = FORKER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = mpsc::channel();
    let gone = |_| io::Error::other("the forking thread is gone");
    forker
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| io::Error::other("the forking thread is gone"))?;
    result.recv().map_err(gone)?
}

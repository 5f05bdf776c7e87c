//! The balancer under test: its daemon and its command line, in the balancer's namespace.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Fate, Guard, Lab, Memory, Netns};

/// Time in which the daemon must answer, also after its start, and end.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Finds a program of this workspace: named by the environment variable `variable`, or next to the running
/// program (also as seen from a test, in `deps/`), or in the release directory beside.
///
/// # Errors
/// It is in none of these places.
pub fn find_binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let near = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name));
    let release = own
        .ancestors()
        .skip(2)
        .take(2)
        .map(|directory| directory.join("release").join(name));
    let found = near.chain(release).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no program {name} near {}\nhint: build it, or set {variable}",
            own.display()
        )
    })
}

/// What a command line run gave.
#[derive(Debug, Clone)]
pub struct Cli {
    /// The command, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Error output.
    pub stderr: String,
}

impl Cli {
    /// Its output as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON from {self}"))
    }

    /// Itself, if the command succeeded.
    ///
    /// # Errors
    /// It did not; with what it said.
    pub fn success(self) -> Result<Self> {
        if self.code == Some(0) {
            Ok(self)
        } else {
            bail!("{self}")
        }
    }
}

impl std::fmt::Display for Cli {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{command} ended with {code:?}; stdout: {}; stderr: {}",
            stdout.trim(),
            stderr.trim()
        )
    }
}

/// The balancer of a lab that has one.
const FIRST: &str = "lb";

/// A balancer's own directory.
fn directory(lab: &Lab, role: &str) -> PathBuf {
    match role {
        FIRST => lab.directory(),
        _ => lab.directory().join(role),
    }
}

/// Its pins.
fn pins(lab: &Lab, role: &str) -> PathBuf {
    lab.pins().join(name(role))
}

/// What a balancer's daemon is called among the lab's processes.
fn name(role: &str) -> &'static str {
    match role {
        FIRST => "ebb",
        _ => "ebb2",
    }
}

/// How to reach a daemon that may be somebody else's child.
#[derive(Debug, Clone)]
pub struct Reach {
    netns: Netns,
    binary: PathBuf,
    socket: PathBuf,
}

impl Reach {
    /// The daemon of a lab, running or not.
    ///
    /// # Errors
    /// There is no binary.
    pub fn of(lab: &Lab) -> Result<Self> {
        Self::on(lab, FIRST)
    }

    /// The daemon of one of a lab's balancers, by role.
    fn on(lab: &Lab, role: &str) -> Result<Self> {
        Ok(Self {
            netns: lab.netns(role).clone(),
            binary: find_binary("ebb", "EBB_BIN")?,
            socket: directory(lab, role).join("ebb.sock"),
        })
    }

    /// Runs `ebb ARGS` against the daemon's socket, inside the balancer's namespace.
    ///
    /// # Errors
    /// It cannot be run at all.
    pub fn cli(&self, args: &[&str]) -> Result<Cli> {
        let output = self
            .command(args)
            .output()
            .with_context(|| format!("run {}", self.binary.display()))?;
        Ok(Cli {
            command: format!("ebb {}", args.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The command that [`Self::cli`] runs.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.netns.command(&self.binary);
        command.args(args).env("EBB_SOCKET", &self.socket);
        command
    }

    /// `GET path` on the control socket: status and body.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        ask(&self.socket, &format!("GET {path}"), "")
    }

    /// `POST path` with a JSON body: status and body.
    ///
    /// # Errors
    /// Nobody answers, or not to the end.
    pub fn post(&self, path: &str, body: &str) -> io::Result<(u16, String)> {
        ask(&self.socket, &format!("POST {path}"), body)
    }
}

/// A running daemon; killed on drop, its pins go with the lab.
#[derive(Debug)]
pub struct Ebb {
    /// Name of its log.
    name: &'static str,
    reach: Reach,
    /// What runs as the daemon.
    program: PathBuf,
    arguments: Vec<String>,
    config: PathBuf,
    guard: Option<Guard>,
}

impl Ebb {
    /// Writes the configuration, starts the daemon and waits until it answers on its socket.
    ///
    /// # Errors
    /// No binary, or the daemon ends or does not answer; with the end of its log.
    pub fn start(lab: &Lab, config: &str) -> Result<Self> {
        Self::start_on(lab, FIRST, config)
    }

    /// The same on one of the lab's balancers, by role. It has files and pins of its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(lab: &Lab, role: &str, config: &str) -> Result<Self> {
        let program = find_binary("ebb", "EBB_BIN")?;
        Self::start_as(lab, role, config, program, vec!["run".to_owned()])
    }

    /// A daemon whose lives are decided over.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_mortal(lab: &Lab, config: &str) -> Result<(Self, Fate)> {
        let words = lab.directory().join("words");
        let fate = Fate::new(&words)?;
        let program = find_binary("ebb-lab", "EBB_LAB_BIN")?;
        let words = words.to_string_lossy().into_owned();
        let arguments = vec!["mortal".to_owned(), "--words".to_owned(), words];
        let ebb = Self::start_as(lab, FIRST, config, program, arguments)?;
        Ok((ebb, fate))
    }

    fn start_as(
        lab: &Lab,
        role: &str,
        config: &str,
        program: PathBuf,
        mut arguments: Vec<String>,
    ) -> Result<Self> {
        let directory = directory(lab, role);
        fs::create_dir_all(directory.join("state"))?;
        let path = directory.join("ebb.toml");
        fs::write(&path, config)?;
        let reach = Reach::on(lab, role)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        arguments.extend([
            "--config".to_owned(),
            text(&path),
            "--socket".to_owned(),
            text(&reach.socket),
            "--pins".to_owned(),
            text(&pins(lab, role)),
            "--state-dir".to_owned(),
            text(&directory.join("state")),
        ]);
        let mut ebb = Self {
            name: name(role),
            reach,
            program,
            arguments,
            config: path,
            guard: None,
        };
        ebb.restart(lab)?;
        Ok(ebb)
    }

    /// Starts the daemon again, after [`Self::kill9`] or [`Self::stop`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.guard = None;
        // The socket of the one before must not be taken for this one's.
        match fs::remove_file(&self.reach.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut command = self.reach.netns.command(&self.program);
        command.args(&self.arguments);
        let mut guard = lab.spawn(self.name, command)?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok((200, _)) = self.reach.get("/v1/status") {
                break;
            }
            if let Some(status) = guard.try_wait()? {
                bail!("the daemon ended with {status}{}", guard.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "the daemon does not answer after {START_LIMIT:?}{}",
                    guard.log_tail()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.guard = Some(guard);
        Ok(())
    }

    /// Another argument from its next start on.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Kills the daemon as `kill -9` does and waits for its end.
    pub fn kill9(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.kill9();
        }
    }

    /// Ends the daemon with SIGTERM.
    ///
    /// # Errors
    /// It does not end in [`START_LIMIT`].
    pub fn stop(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(mut guard) => guard.terminate(START_LIMIT).map(drop),
            None => Ok(()),
        }
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.guard
            .as_ref()
            .context("the daemon does not run")?
            .signal(signal)
    }

    /// Memory that the daemon has in use.
    ///
    /// # Errors
    /// It does not run.
    pub fn memory(&self) -> Result<Memory> {
        let guard = self.guard.as_ref().context("the daemon does not run")?;
        Memory::of(guard.pid())
    }

    /// How to reach it; can be used from other threads.
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// See [`Reach::cli`].
    ///
    /// # Errors
    /// See there.
    pub fn cli(&self, args: &[&str]) -> Result<Cli> {
        self.reach.cli(args)
    }

    /// `ebb status --json`.
    ///
    /// # Errors
    /// The command fails.
    pub fn status(&self) -> Result<Value> {
        self.cli(&["status", "--json"])?.success()?.json()
    }

    /// Asks for the status until `done` holds.
    ///
    /// # Errors
    /// It does not hold within `limit`; with the last status.
    pub fn wait_status(
        &self,
        limit: Duration,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let status = match self.reach.get("/v1/status") {
                Ok((200, body)) => serde_json::from_str(&body)?,
                _ => self.status()?,
            };
            if done(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("not reached within {limit:?}; the status is {status}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The configuration file, for reloads.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.guard.as_ref().map(Guard::log_tail).unwrap_or_default()
    }

    /// Lets the daemon live on, for a lab that is kept.
    pub fn forget(mut self) {
        if let Some(guard) = self.guard.take() {
            guard.forget();
        }
    }
}

fn ask(socket: &Path, what: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.set_write_timeout(Some(START_LIMIT))?;
    stream.write_all(
        format!(
            "{what} HTTP/1.1\r\nHost: ebb\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not an HTTP answer with a length",
        )
    })
}

/// Status and body of an answer with `Content-Length` that is read to its end.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("\r\ntransfer-encoding: chunked");
    (!chunked).then(|| (status, body.to_owned()))
}

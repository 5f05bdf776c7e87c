//! Process 1 of a virtual machine: mounts what every Linux has, loads the image's modules, and does what comes in by
//! the second serial port, one request after the other.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    kmod::init_module,
    mount::{MsFlags, mount},
    sys::{
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
        utsname::uname,
    },
};

use super::{
    image::{MODULES, PROGRAMS},
    talk::{Reply, Request},
};

/// The port that [`super::machine`] listens at.
const PORT: &str = "/dev/ttyS1";
/// The kernel's own messages go here, and what nobody waits for.
const CONSOLE: &str = "/dev/console";

/// Runs until the machine is switched off.
///
/// # Errors
/// What is needed to talk is missing. The kernel panics when process 1 ends, which ends the machine.
pub fn run() -> Result<Infallible> {
    mounts()?;
    modules()?;
    up("lo")?;
    let port = open(PORT)?;
    raw(&port).with_context(|| format!("set up {PORT}"))?;
    let mut reader = BufReader::new(port.try_clone()?);
    let mut host = Host { port };
    let system = uname().context("uname")?;
    let kernel = [system.release(), system.version()].map(|part| part.to_string_lossy());
    host.say(&Reply::Ready {
        kernel: kernel.join(" "),
    })?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            continue;
        }
        let done = serde_json::from_str(&line)
            .context("not a request")
            .and_then(|request| host.serve(request));
        let reply = match done {
            Ok(code) => Reply::Exit(code),
            Err(error) => Reply::Failed(format!("{error:#}")),
        };
        host.say(&reply)?;
    }
}

fn mounts() -> Result<()> {
    for (kind, directory) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(
            Some(kind),
            directory,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount {directory}"))?;
    }
    Ok(())
}

fn modules() -> Result<()> {
    let entries = fs::read_dir(MODULES).with_context(|| format!("read {MODULES}"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let module = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        init_module(&module, c"").with_context(|| format!("load {}", path.display()))?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn up(interface: &str) -> Result<()> {
    let status = program(&["ip", "link", "set", interface, "up"].map(str::to_owned))?.status();
    match status.context("run ip")? {
        status if status.success() => Ok(()),
        status => bail!("ip link set {interface} up: {status}"),
    }
}

fn open(path: &str) -> Result<File> {
    let file = File::options().read(true).write(true).open(path);
    file.with_context(|| format!("open {path}"))
}

/// No echo, no signals, no line ends that change on the way.
fn raw(port: &File) -> nix::Result<()> {
    let mut settings = tcgetattr(port)?;
    cfmakeraw(&mut settings);
    tcsetattr(port, SetArg::TCSANOW, &settings)
}

fn program(argv: &[String]) -> Result<Command> {
    let [name, arguments @ ..] = argv else {
        bail!("no program");
    };
    // PATH of this process decides where a program is found, PATH of the child what it finds.
    let path = if name.contains('/') {
        name.into()
    } else {
        Path::new(PROGRAMS).join(name)
    };
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PROGRAMS)
        .env("HOME", "/root");
    Ok(command)
}

/// The other end of the port.
struct Host {
    port: File,
}

impl Host {
    fn say(&mut self, reply: &Reply) -> Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.port.write_all(&line).context("write to the host")
    }

    /// Does it; the code to answer with.
    fn serve(&mut self, request: Request) -> Result<i32> {
        match request {
            Request::Run { argv, input } => self.run(&argv, input),
            Request::Start { argv, until } => self.start(&argv, &until),
            Request::Write { path, text } => {
                fs::write(&path, text).with_context(|| format!("write {path}"))?;
                Ok(0)
            }
        }
    }

    fn run(&mut self, argv: &[String], input: String) -> Result<i32> {
        let (mut child, output) = spawn(argv, Stdio::piped())?;
        let stdin = child.stdin.take();
        let writer = thread::spawn(move || {
            // A program that does not read its input is none of our business.
            let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        });
        for line in BufReader::new(output).split(b'\n') {
            self.say(&Reply::Line(text(&line?)))?;
        }
        let _ = writer.join();
        Ok(code(child.wait()?))
    }

    fn start(&mut self, argv: &[String], until: &str) -> Result<i32> {
        let (mut child, output) = spawn(argv, Stdio::null())?;
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            let said = text(line.strip_suffix(b"\n").unwrap_or(&line));
            let done = said.starts_with(until);
            self.say(&Reply::Line(said))?;
            if done {
                thread::spawn(move || watch(child, output));
                return Ok(0);
            }
            line.clear();
        }
        Ok(code(child.wait()?))
    }
}

/// A program, with both of its outputs in one pipe.
fn spawn(argv: &[String], input: Stdio) -> Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = program(argv)?;
    command
        .stdin(input)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = command
        .spawn()
        .with_context(|| format!("start {}", argv.join(" ")))?;
    // `command` keeps the pipe's writing end open until here.
    drop(command);
    Ok((child, reader))
}

/// Lets a program's further output out at the console, and takes note of its end.
fn watch(mut child: Child, mut output: BufReader<PipeReader>) {
    if let Ok(mut console) = open(CONSOLE) {
        let _ = io::copy(&mut output, &mut console);
        let _ = writeln!(
            console,
            "process {} has ended: {:?}",
            child.id(),
            child.wait()
        );
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As a shell has it.
fn code(status: ExitStatus) -> i32 {
    let killed = || 128 + status.signal().unwrap_or_default();
    status.code().unwrap_or_else(killed)
}

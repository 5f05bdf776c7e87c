//! A running virtual machine.
//!
//! QEMU emulates the processor (TCG): this works everywhere, also inside of virtual machines, and boots a kernel in
//! 2 to 3 s. `EBB_VM_ACCEL=kvm` takes the hardware's help where it is known to work; a /dev/kvm that can be opened says
//! little (seen: it opens, and the machine then never runs its first instruction).

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Kernel,
    talk::{Reply, Request},
};
use crate::lab::{Guard, Lifetime, Netns};

/// QEMU's program (package qemu-system-x86).
pub const QEMU: &str = "qemu-system-x86_64";
/// Time from the start to the first word of process 1. 3 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How often a boot is tried that the emulator breaks, see [`is_broken_by_emulator`].
const BOOTS: u32 = 3;
/// Time without a word from a program inside.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);

/// A tap device of a namespace that becomes the machine's network interface.
#[derive(Debug, Clone)]
pub struct Joint {
    /// Where the device is; QEMU runs there.
    pub netns: Netns,
    /// The device's name.
    pub tap: String,
    /// The machine's MAC address.
    pub mac: [u8; 6],
    /// Largest packet that the link takes, bytes.
    pub mtu: u16,
}

/// A running machine; it is switched off on drop.
#[derive(Debug)]
pub struct Machine {
    guard: Guard,
    link: BufReader<UnixStream>,
    kernel: String,
    directory: PathBuf,
}

impl Machine {
    /// Boots `kernel` with the image in the file `image` and waits until process 1 listens. Sockets and logs are in
    /// `directory`. A boot that the emulator breaks is said and tried again.
    ///
    /// # Errors
    /// QEMU is missing, or the kernel does not get so far; with the end of its console's messages.
    pub fn boot(
        kernel: &Kernel,
        image: &Path,
        directory: &Path,
        joint: Option<&Joint>,
    ) -> Result<Self> {
        for _ in 1..BOOTS {
            match Self::boot_once(kernel, image, directory, joint) {
                Err(error) if is_broken_by_emulator(&console(directory)) => eprintln!(
                    "the emulator has broken the machine's boot, which is tried again: {error:#}"
                ),
                booted => return booted,
            }
        }
        Self::boot_once(kernel, image, directory, joint)
    }

    fn boot_once(
        kernel: &Kernel,
        image: &Path,
        directory: &Path,
        joint: Option<&Joint>,
    ) -> Result<Self> {
        let socket = directory.join("vm.sock");
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listen at {}", socket.display()))?;
        let command = command(kernel, image, directory, joint);
        let log = directory.join("qemu.log");
        let mut guard = Guard::spawn("qemu", command, Some(log), Lifetime::Parent)
            .context("start a virtual machine\nhint: install the package qemu-system-x86")?;
        let stream = accept(&listener, &mut guard)?;
        stream.set_read_timeout(Some(BOOT_LIMIT))?;
        let mut machine = Self {
            guard,
            link: BufReader::new(stream),
            kernel: String::new(),
            directory: directory.to_owned(),
        };
        let Reply::Ready { kernel } = machine.hear().context("boot")? else {
            bail!(
                "the guest did not say that it is ready{}",
                machine.console()
            );
        };
        machine.kernel = kernel;
        machine
            .link
            .get_ref()
            .set_read_timeout(Some(SILENCE_LIMIT))?;
        Ok(machine)
    }

    /// Release and version of the kernel that runs, as `uname -r -v` prints them.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Runs a program to its end; `line` gets each line of its output. Returns its exit code.
    ///
    /// # Errors
    /// It cannot be started, or the machine has ended.
    pub fn run(&mut self, argv: &[&str], line: impl FnMut(&str)) -> Result<i32> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let input = String::new();
        self.ask(&Request::Run { argv, input }, line)
    }

    /// Runs a program with this as its standard input and returns its output.
    ///
    /// # Errors
    /// As [`Self::run`], and when it fails.
    pub fn output(&mut self, argv: &[&str], input: &str) -> Result<String> {
        let mut output = String::new();
        let request = Request::Run {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            input: input.to_owned(),
        };
        let code = self.ask(&request, |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        ensure!(
            code == 0,
            "{} in the machine: exit code {code}\n{input}{output}",
            argv.join(" ")
        );
        Ok(output)
    }

    /// Starts a program that stays, and waits for a line of it that begins with `until`.
    ///
    /// # Errors
    /// It ends before.
    pub fn start(&mut self, argv: &[&str], until: &str) -> Result<()> {
        let mut output = String::new();
        let request = Request::Start {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            until: until.to_owned(),
        };
        let code = self.ask(&request, |line| output.push_str(&format!("\n  | {line}")))?;
        let started = code == 0
            && output
                .lines()
                .last()
                .is_some_and(|line| line.starts_with(&format!("  | {until}")));
        ensure!(
            started,
            "{} in the machine ended with {code} before it said {until:?}{output}",
            argv.join(" ")
        );
        Ok(())
    }

    /// Writes a file, such as a setting below /proc/sys.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let (path, text) = (path.to_owned(), text.to_owned());
        self.ask(&Request::Write { path, text }, |_| {}).map(drop)
    }

    /// The end of what the kernel and programs in the background have said, for messages.
    #[must_use]
    pub fn console(&self) -> String {
        let text = console(&self.directory);
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(30)..];
        end.iter().fold(self.guard.log_tail(), |all, line| {
            format!("{all}\n  | {line}")
        })
    }

    fn ask(&mut self, request: &Request, mut line: impl FnMut(&str)) -> Result<i32> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        self.link
            .get_mut()
            .write_all(&text)
            .with_context(|| format!("talk to the machine{}", self.console()))?;
        loop {
            match self.hear()? {
                Reply::Line(said) => line(&said),
                Reply::Exit(code) => return Ok(code),
                Reply::Failed(why) => bail!("in the machine: {why}"),
                Reply::Ready { .. } => bail!("the machine has started again{}", self.console()),
            }
        }
    }

    fn hear(&mut self) -> Result<Reply> {
        let mut line = String::new();
        let read = self.link.read_line(&mut line);
        match read {
            Ok(0) => bail!("the machine has ended{}", self.console()),
            Ok(_) => serde_json::from_str(&line).with_context(|| format!("heard {line:?}")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the machine is silent{}", self.console())
            }
            Err(error) => Err(error).context("hear from the machine"),
        }
    }
}

/// All that the console of the machine with this directory has shown.
fn console(directory: &Path) -> String {
    let text = fs::read(directory.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether the kernel ended because QEMU showed it a breakpoint that it had taken away already. While Linux changes an instruction
/// that other processors may come to, it puts an `int3` in its first byte; an emulated processor may still run what was translated from
/// that. Seen with QEMU 7.2, once in many boots; others saw it in the same place up to QEMU 8.0 ("qemu-x86_64 booting with
/// 8.0.0 stil see int3", linux-kernel, July 2023).
fn is_broken_by_emulator(console: &str) -> bool {
    console.contains("int3: 0000 [#") && console.contains("Kernel panic")
}

/// QEMU opens the connection as the first thing it does.
fn accept(listener: &UnixListener, guard: &mut Guard) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = guard.try_wait()? {
            bail!("{QEMU} ended with {status}{}", guard.log_tail());
        }
        ensure!(
            Instant::now() < deadline,
            "{QEMU} does nothing{}",
            guard.log_tail()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn command(kernel: &Kernel, image: &Path, directory: &Path, joint: Option<&Joint>) -> Command {
    let mut command = match joint {
        Some(joint) => joint.netns.command(QEMU),
        None => Command::new(QEMU),
    };
    let file = |kind: &str, name: &str| format!("{kind}:{}", directory.join(name).display());
    command.args(["-M", "pc", "-m", "2G", "-smp", "2", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none"]);
    match env::var("EBB_VM_ACCEL").as_deref() {
        Ok("kvm") => command.args(["-accel", "kvm", "-cpu", "host"]),
        // Without cx16 a kernel does not use the one instruction that TCG runs under a global lock.
        _ => command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"]),
    };
    command.args(["-serial", &file("file", "console.log")]);
    let socket = directory.join("vm.sock");
    command.args([
        "-chardev",
        &format!("socket,id=talk,path={}", socket.display()),
    ]);
    command.args(["-serial", "chardev:talk"]);
    match joint {
        None => command.args(["-nic", "none"]),
        Some(joint) => {
            let mac = joint.mac.map(|byte| format!("{byte:02x}")).join(":");
            let Joint { tap, mtu, .. } = joint;
            // As on every other link of a lab: whoever sends also computes the checksum and cuts its segments, since
            // XDP sees frames as they were sent.
            let offloads = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
            command.args([
                "-netdev",
                &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
                "-device",
                // Nobody boots from the network.
                &format!("virtio-net-pci,netdev=net,mac={mac},host_mtu={mtu},{offloads},romfile="),
            ])
        }
    };
    command.arg("-kernel").arg(&kernel.image);
    command.arg("-initrd").arg(image);
    // A panic restarts the machine at once, which -no-reboot turns into an end.
    command.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command
}

#[cfg(test)]
mod tests {
    use super::is_broken_by_emulator;

    /// As Linux 6.12.95 said it.
    #[test]
    fn only_a_breakpoint_that_nobody_set_is_the_emulators_fault() {
        let first = "[    2.139581] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n";
        let older = "[    3.093098] int3: 0000 [#1] PREEMPT SMP NOPTI\n";
        let other = "[    2.139581] Oops: general protection fault: 0000 [#1] PREEMPT SMP NOPTI\n";
        let end = "[    2.139920] Kernel panic - not syncing: Fatal exception in interrupt\n";
        for (console, broken) in [
            ([first, end].concat(), true),
            ([older, end].concat(), true),
            ([other, end].concat(), false),
            (first.to_owned(), false),
            (end.to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_broken_by_emulator(&console), broken, "{console}");
        }
    }
}

//! `cargo xtask vm` runs this: the packet tests on other kernels, each in a virtual machine. As process 1 of such a
//! machine it is what serves the host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use ebb_tests::{
    lab::find_binary,
    vm::{Image, Kernel, Machine, Release, guest},
};

/// Programs of this workspace that are in every machine.
const OURS: [&str; 2] = ["ebb", "ebb-lab"];

/// Run ebb's packet tests, or another program, on other kernels.
#[derive(Parser)]
#[command(name = "ebb-vm")]
struct Arguments {
    /// Kernel to boot; may be given several times [default: all]
    #[arg(long = "kernel", value_enum)]
    kernels: Vec<Release>,
    /// A program of packet tests; may be given several times
    #[arg(long, value_name = "FILE")]
    packet: Vec<PathBuf>,
    /// Another program to have inside, by path or name; may be given several times
    #[arg(long = "with", value_name = "PROGRAM")]
    with: Vec<String>,
    /// Leave out tests whose names contain this; may be given several times
    #[arg(long = "skip", value_name = "PART")]
    skips: Vec<String>,
    /// Fetch the kernels again, even those that are there
    #[arg(long)]
    update: bool,
    /// Leave image and logs where they are
    #[arg(long)]
    keep: bool,
    /// Run this instead of the tests
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        let Err(error) = guest::run();
        eprintln!("init: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::parse();
    let kernels = if arguments.kernels.is_empty() {
        Release::ALL.to_vec()
    } else {
        arguments.kernels.clone()
    };
    let mut runs = Vec::new();
    for release in kernels {
        println!("== kernel {}", release.name());
        let run = on(release, &arguments);
        if let Err(error) = &run {
            eprintln!("error: {error:#}");
        }
        runs.push((release, run));
        println!();
    }
    println!("kernels:");
    for (release, run) in &runs {
        match run {
            Ok(run) => print!("{run}"),
            Err(_) => println!("  {}: could not be run", release.name()),
        }
    }
    let passed = |run: &Result<Run>| run.as_ref().is_ok_and(Run::passed);
    match runs.iter().all(|(_, run)| passed(run)) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What was run on a kernel.
struct Run {
    kernel: String,
    ends: Vec<End>,
    took: Duration,
}

/// A program that was run.
struct End {
    program: String,
    /// Its exit code.
    code: i32,
    /// The last line that it wrote.
    closing: String,
}

impl Run {
    fn passed(&self) -> bool {
        self.ends.iter().all(|end| end.code == 0)
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        let seconds = self.took.as_secs_f64();
        writeln!(f, "  {verdict}  {} ({seconds:.0} s)", self.kernel)?;
        for end in &self.ends {
            write!(f, "    {}: {}", end.program, end.closing)?;
            match end.code {
                0 => writeln!(f)?,
                code => writeln!(f, " (exit code {code})")?,
            }
        }
        Ok(())
    }
}

fn on(release: Release, arguments: &Arguments) -> Result<Run> {
    let kernel = match arguments.update {
        true => Kernel::update(release),
        false => Kernel::get(release),
    }?;
    let directory = tempfile::Builder::new()
        .prefix("ebb-vm-")
        .disable_cleanup(arguments.keep)
        .tempdir()?;
    let commands = commands(arguments)?;
    let started = Instant::now();
    let image = image(&kernel, directory.path(), arguments)?;
    if arguments.keep {
        println!("image and logs are kept in {}", directory.path().display());
    }
    let booting = Instant::now();
    let mut machine = Machine::boot(&kernel, &image, directory.path(), None)?;
    let booted = booting.elapsed().as_secs_f64();
    println!("{} (booted in {booted:.1} s)", machine.kernel());
    let mut ends = Vec::new();
    for command in commands {
        let end = run(&mut machine, &command)?;
        // A kernel that refuses the program would do so again for every test.
        let refused = end.code != 0 && command[0] == OURS[0];
        ends.push(end);
        if refused {
            break;
        }
    }
    Ok(Run {
        kernel: machine.kernel().to_owned(),
        ends,
        took: started.elapsed(),
    })
}

/// Runs a program inside and shows what it writes.
fn run(machine: &mut Machine, command: &[String]) -> Result<End> {
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut closing = String::new();
    let code = machine.run(&argv, |line| {
        println!("{line}");
        if !line.trim().is_empty() {
            line.clone_into(&mut closing);
        }
    })?;
    Ok(End {
        program: command.join(" "),
        code,
        closing,
    })
}

/// What to run inside, program and arguments of each.
fn commands(arguments: &Arguments) -> Result<Vec<Vec<String>>> {
    if !arguments.command.is_empty() {
        let mut command = arguments.command.clone();
        command[0] = name(Path::new(&command[0]))?;
        return Ok(vec![command]);
    }
    let words =
        |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
    let mut commands = vec![words(&["ebb", "--version"]), words(&["ebb", "verify"])];
    for packet in &arguments.packet {
        // The machine has two processors, and most of a test's time goes into the verifier.
        let mut command = words(&[&name(packet)?, "--test-threads=2"]);
        for part in &arguments.skips {
            command.extend(words(&["--skip", part]));
        }
        commands.push(command);
    }
    Ok(commands)
}

fn name(program: &Path) -> Result<String> {
    let name = program.file_name().context("no program's name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn image(kernel: &Kernel, directory: &Path, arguments: &Arguments) -> Result<PathBuf> {
    // A veth pair is what the tests of the data plane are made of.
    let mut image = Image::new(&directory.join("image.cpio"), kernel, &["veth"])?;
    let mut ours = vec![
        find_binary(OURS[0], "EBB_BIN")?,
        find_binary(OURS[1], "EBB_LAB_BIN")?,
    ];
    for packet in &arguments.packet {
        let packet = fs::canonicalize(packet).with_context(|| packet.display().to_string())?;
        ours.push(packet);
    }
    for program in ours {
        image.program(&program.to_string_lossy())?;
    }
    let first = arguments.command.first();
    let others = arguments.with.iter().chain(first);
    for program in others.filter(|name| !OURS.contains(&name.as_str())) {
        image.program(program)?;
    }
    image.finish()
}

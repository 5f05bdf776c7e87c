//! `cargo xtask vm` runs this: the packet tests on other kernels, each in a virtual machine. As process 1 of such a
//! machine it is what serves the host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
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
    /// The packet tests' program
    #[arg(long, value_name = "FILE")]
    packet: PathBuf,
    /// Another program to have inside, by path or name; may be given several times
    #[arg(long = "with", value_name = "PROGRAM")]
    with: Vec<String>,
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
    let mut passed = true;
    let mut ends = Vec::new();
    for release in kernels {
        println!("== kernel {}", release.name());
        let started = Instant::now();
        let (good, end) = match on(release, &arguments) {
            Ok(run) => (run.failed.is_empty(), run.to_string()),
            Err(error) => {
                eprintln!("error: {error:#}");
                (false, format!("{}: could not be run", release.name()))
            }
        };
        passed &= good;
        ends.push(format!("{end} ({:.0} s)", started.elapsed().as_secs_f64()));
        println!();
    }
    println!("kernels:");
    for end in ends {
        println!("  {end}");
    }
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What was run on a kernel.
struct Run {
    kernel: String,
    /// Programs that ended with something else than 0.
    failed: Vec<String>,
    /// The last line that the last program wrote.
    closing: String,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kernel,
            failed,
            closing,
        } = self;
        match failed.is_empty() {
            true => write!(f, "passed  {kernel}: {closing}"),
            false => write!(f, "FAILED  {kernel}: {}: {closing}", failed.join(", ")),
        }
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
    let image = image(&kernel, directory.path(), arguments)?;
    if arguments.keep {
        println!("image and logs are kept in {}", directory.path().display());
    }
    let started = Instant::now();
    let mut machine = Machine::boot(&kernel, &image, directory.path(), None)?;
    let booted = started.elapsed().as_secs_f64();
    println!("{} (booted in {booted:.1} s)", machine.kernel());
    let mut run = Run {
        kernel: machine.kernel().to_owned(),
        failed: Vec::new(),
        closing: String::new(),
    };
    for command in commands {
        let argv: Vec<&str> = command.iter().map(String::as_str).collect();
        let code = machine.run(&argv, |line| {
            println!("{line}");
            if !line.trim().is_empty() {
                line.clone_into(&mut run.closing);
            }
        })?;
        if code != 0 {
            run.failed
                .push(format!("{} ended with {code}", command.join(" ")));
        }
    }
    Ok(run)
}

/// What to run inside, program and arguments of each.
fn commands(arguments: &Arguments) -> Result<Vec<Vec<String>>> {
    if !arguments.command.is_empty() {
        let mut command = arguments.command.clone();
        command[0] = name(Path::new(&command[0]))?;
        return Ok(vec![command]);
    }
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Ok(vec![
        words(&["ebb", "--version"]),
        words(&["ebb", "verify"]),
        // The machine has two processors, and most of a test's time goes into the verifier.
        words(&[&name(&arguments.packet)?, "--test-threads=2"]),
    ])
}

fn name(program: &Path) -> Result<String> {
    let name = program.file_name().context("no program's name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn image(kernel: &Kernel, directory: &Path, arguments: &Arguments) -> Result<PathBuf> {
    // A veth pair is what the tests of the data plane are made of.
    let mut image = Image::new(&directory.join("image.cpio"), kernel, &["veth"])?;
    let ours = [
        find_binary(OURS[0], "EBB_BIN")?,
        find_binary(OURS[1], "EBB_LAB_BIN")?,
        fs::canonicalize(&arguments.packet)
            .with_context(|| format!("{}", arguments.packet.display()))?,
    ];
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

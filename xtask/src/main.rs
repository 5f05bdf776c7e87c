//! `cargo xtask`: everything one does with this repository, one command a file.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod choose;
mod demo;
#[expect(
    dead_code,
    reason = "the file is shared with the daemon's build script, which uses the rest"
)]
mod ebpf;
mod fuzz;
mod lab;
mod nightly;
mod passed;
mod setup;
mod shell;
mod soak;
mod test;
mod tools;
mod vm;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "ebb's build, demo, tests and benchmarks"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what the eBPF build needs
    Setup(setup::Args),
    /// Build the daemon in release mode, with the eBPF object in it
    Build(build::Args),
    /// Show drains and switches on real traffic in a lab of network namespaces (needs root)
    Demo(passed::Args),
    /// Leave the demo's lab up to play in: up, down, exec (needs root)
    Lab(passed::Args),
    /// Run every test (some need root)
    Test(test::Args),
    /// Send sound and broken packets through the loaded program and judge what becomes of each (needs root)
    Fuzz(passed::Args),
    /// Random operations and faults from a seed under live traffic, for as long as you like (needs root)
    Soak(passed::Args),
    /// Run the packet tests on other kernels, each in a virtual machine
    Vm(vm::Args),
    /// Measure what a packet costs (needs root)
    Bench(passed::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Test(args) => test::run(&args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Vm(args) => vm::run(args),
        Command::Bench(args) => bench::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The lab from the command line: servers, a lab to play in, and the demo.

mod demo;
mod fuzz;
mod mortal;
mod playground;
mod serve;
mod setting;
mod soak;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// ebb's lab of network namespaces.
#[derive(Debug, Parser)]
#[command(name = "ebb-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the lab's HTTP server in this network namespace
    Serve(serve::Serve),
    /// A drain, a switch and a rollback under real traffic, with a receipt
    Demo(demo::Demo),
    /// Sound and broken packets through the loaded program, each judged
    Fuzz(fuzz::Fuzz),
    /// Random operations and faults from a seed under live traffic, judged by clients and servers
    Soak(soak::Soak),
    /// A daemon that dies when a test says so, and is born again
    #[command(hide = true)]
    Mortal(mortal::Mortal),
    /// A lab that stays, to play in
    #[command(subcommand)]
    Lab(playground::Playground),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Demo(demo) => demo.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Soak(soak) => soak.run(),
        Command::Mortal(mortal) => mortal.run(),
        Command::Lab(lab) => lab.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

//! The command line.
//!
//! ```text
//! arguments --args--> Command --client--> control socket --api types--> status, drain, ... --output--> stdout
//!                        |                                                    |
//!                        +--adapters--> daemon, config, datapath              +--error--> stderr, exit code
//! ```
//!
//! | file | what |
//! |---|---|
//! | `args`, `help` | the arguments and the texts of `--help` |
//! | `names` | how services, backends, addresses, interfaces and durations are written |
//! | `usage` | clap's errors in our form |
//! | `client` | HTTP over the control socket |
//! | `adapters` | the only calls into the rest of the crate |
//! | `status`, `drain`, `drains`, `wait`, `progress`, `receipt`, `flows`, `clients`, `explain`, `trace`, `verify`, `version`, `changes` | the commands |
//! | `human`, `table`, `output`, `error` | how things are shown |
//!
//! Results go to stdout; progress and errors to stderr. Nothing here panics when a pipe is closed early.

mod adapters;
mod args;
mod changes;
mod client;
mod clients;
mod decap;
mod drain;
mod drains;
mod error;
mod explain;
mod flows;
mod help;
mod human;
mod names;
mod output;
mod progress;
mod receipt;
mod status;
mod table;
mod trace;
mod usage;
mod verify;
mod version;
mod wait;

use crate::{api::ExplainRequest, daemon::assemble::NodeOptions};
use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::Parser;

pub use adapters::start_log;
use args::{Cli, Command};
use client::Client;
use error::CliError;
use output::Output;

/// Runs the command that the process was started with; its exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(run(&arguments))
}

/// Parses and carries out; reports an error on stderr.
fn run(arguments: &[OsString]) -> u8 {
    let (result, json) = match Cli::try_parse_from(arguments) {
        Ok(cli) => {
            let json = cli.json;
            (carry_out(cli), json)
        }
        Err(error) => (
            usage::answer(&error, arguments),
            usage::wants_json(arguments),
        ),
    };
    result.unwrap_or_else(|error| {
        error.report(json, &mut std::io::stderr());
        error.exit
    })
}

/// Carries a command out; the exit code where it is no error.
fn carry_out(cli: Cli) -> Result<u8, CliError> {
    let client = Client::new(cli.socket.clone());
    let mut output = Output::stdout(cli.json);
    let out = &mut output;
    match cli.command {
        Command::Run(args) => adapters::run_daemon(&NodeOptions {
            config: args.config,
            socket: cli.socket,
            pins: args.pins,
            state_dir: args.state_dir,
            afresh: args.afresh,
            trace: args.log_packets,
        }),
        Command::Check { file } => adapters::check(&file, out),
        Command::Verify => verify::verify(out),
        Command::Pass { interface, detach } => adapters::pass(&interface, detach, out),
        Command::Decap(args) => decap::decap(&args, out),
        Command::Status(args) => block_on(status::status(&client, &args, out)),
        Command::Drain(args) => block_on(drain::drain(&client, &args, out)),
        Command::Undrain(targets) => block_on(changes::undrain(&client, &targets, out)),
        Command::Weight(args) => block_on(changes::weight(&client, &args, out)),
        Command::Maintenance(args) => block_on(changes::maintenance(&client, &args, out)),
        Command::Activate(targets) => block_on(changes::activate(&client, &targets, out)),
        Command::Drains(args) => block_on(drains::drains(&client, &args, out)),
        Command::Add(args) => block_on(changes::add(&client, &args, out)),
        Command::Remove { backend, force } => {
            block_on(changes::remove(&client, &backend, force, out))
        }
        Command::Switch(args) => block_on(changes::switch(&client, &args, out)),
        Command::Reload { dry_run } => block_on(changes::reload(&client, dry_run, out)),
        Command::Stop { detach } => block_on(changes::stop(&client, detach, out)),
        Command::Flows { of } => block_on(flows::flows(&client, of.as_ref(), out)),
        Command::Explain {
            service,
            from,
            port,
            cid,
        } => {
            let request = ExplainRequest {
                service: service.0,
                from,
                port,
                cid,
            };
            block_on(explain::explain(&client, &request, out))
        }
        Command::Trace(args) => block_on(trace::trace(&client, &args, out)),
        Command::Clients => block_on(clients::clients(&client, out)),
        Command::Version => block_on(version::version(&client, out)),
    }
}

/// Runs a command that talks to the daemon, on this thread.
fn block_on(command: impl Future<Output = Result<u8, CliError>>) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CliError::failed(format!("cannot start: {}", error::io_words(&error)))
                .hint("is the limit of open files reached? `ulimit -n` shows it")
        })?;
    runtime.block_on(command)
}

//! `ebb-lab lab`: the demo's lab, to play in.

use std::{
    env,
    ffi::{OsStr, OsString},
    net::SocketAddrV4,
    os::unix::process::CommandExt as _,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ebb_tests::{
    config,
    flood::{Flood, FloodOptions, Kind},
    lab::{Ebb, Lab, PLAYGROUND, find_binary},
};

use crate::setting::{self, Setting};

/// Arguments of `ebb-lab lab`.
#[derive(Debug, clap::Subcommand)]
pub enum Playground {
    /// Make the lab, with its servers and the balancer
    Up {
        #[command(flatten)]
        setting: Setting,
        /// Without the balancer's daemon
        #[arg(long)]
        no_ebb: bool,
    },
    /// Send the balancer a flood from sources that nobody has
    Flood(Flooding),
    /// Take the lab down, with all that runs in it
    Down,
    /// Run a command in one of the lab's namespaces: client, router, lb, b1 to b3, g1 to g3
    Exec {
        /// The namespace
        namespace: String,
        /// The command and its arguments; a shell when there is none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// Arguments of `ebb-lab lab flood`.
#[derive(Debug, clap::Args)]
pub struct Flooding {
    /// What is sent
    #[arg(long, value_enum, default_value_t = Kind::Syn)]
    kind: Kind,
    /// Frames a second, as far as the machine makes them
    #[arg(long, default_value_t = 2_000_000)]
    rate: u64,
    /// How long
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where to
    #[arg(long, default_value = "203.0.113.10:80")]
    target: SocketAddrV4,
}

impl Playground {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Up { setting, no_ebb } => up(&setting, no_ebb),
            Self::Flood(flooding) => flood(&flooding),
            Self::Down => {
                println!(
                    "{}",
                    if Lab::remove(PLAYGROUND) {
                        "the lab is down"
                    } else {
                        "no lab was up"
                    }
                );
                Ok(ExitCode::SUCCESS)
            }
            Self::Exec { namespace, command } => exec(&namespace, &command),
        }
    }
}

fn up(setting: &Setting, no_ebb: bool) -> Result<ExitCode> {
    let lab = setting.lab(true)?;
    let service = setting.service(&lab);
    let servers = lab.serve(service.backend_port)?;
    let text = config::file(&lab, std::slice::from_ref(&service));
    let ebb = if no_ebb {
        None
    } else {
        Some(Ebb::start(&lab, &text)?)
    };
    print!("{}", setting::keep(lab, &service, servers, ebb));
    Ok(ExitCode::SUCCESS)
}

fn flood(flooding: &Flooding) -> Result<ExitCode> {
    let router = Lab::find_netns(PLAYGROUND, "router")?;
    let balancer = Lab::find_netns(PLAYGROUND, "lb")?;
    let options = FloodOptions {
        kind: flooding.kind,
        target: flooding.target,
        interface: "lb".into(),
        to_mac: Lab::mac_in(&balancer, "eth0")?,
        per_second: flooding.rate,
    };
    let flood = Flood::start(&router, options)?;
    std::thread::sleep(Duration::from_secs(flooding.seconds));
    let sent = flood.stop()?;
    println!(
        "{} frames sent, {:.2} million a second",
        sent.frames,
        sent.mpps()
    );
    Ok(ExitCode::SUCCESS)
}

/// Becomes the command. It finds `ebb` on its path, and `ebb` finds the lab's daemon.
fn exec(namespace: &str, command: &[OsString]) -> Result<ExitCode> {
    let netns = Lab::find_netns(PLAYGROUND, namespace)?;
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let (program, arguments) = command.split_first().unwrap_or((&shell, &[]));
    let mut command = netns.command(program);
    command
        .args(arguments)
        .env("EBB_SOCKET", Lab::directory_of(PLAYGROUND).join("ebb.sock"));
    if let Some(path) = path_with_ebb() {
        command.env("PATH", path);
    }
    // exec runs what the command does before it starts, in this very process.
    Err(command.exec()).with_context(|| format!("run {}", program.display()))
}

fn path_with_ebb() -> Option<OsString> {
    let ebb = find_binary("ebb", "EBB_BIN").ok()?;
    let own = ebb.parent().map(Path::to_path_buf);
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(own.into_iter().chain(env::split_paths::<OsStr>(&path))).ok()
}

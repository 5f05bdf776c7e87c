//! `ebb-lab lab`: the demo's lab, to play in.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use ebb_tests::{
    config,
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

impl Playground {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Up { setting, no_ebb } => up(&setting, no_ebb),
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
